"""The process between RamTrain and the trainer: no trainer outlives it, and it does not outlive RamTrain.

`python -m ramtrain.keeper`, started by `supervise` in the namespace of the staging, reads from its standard input one
line of JSON that says what to start (`Order`), then lines that say how to end it (`Stop`). End of input means that
whoever gave the order is gone: the trainer is ended too. It writes one line of JSON when the trainer runs and one when
all is over. It is a child subreaper (prctl(2)): what a trainer leaves in the background, in whatever session, becomes
its child, so that it can be ended, and waited for, and what it wrote counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from ramtrain.meter import ProcessWrites, own_writes
from ramtrain.namespace import Overlay, mount_overlays
from ramtrain.opened import written_by
from ramtrain.packages import is_python
from ramtrain.system import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    set_process_attribute,
)

ABANDONED_GRACE_S = 2.0
_LEFTOVER_GRACE_S = 0.5
_KILL_WAIT_S = 10.0
_LONGEST_COMMAND = 200


@dataclass(frozen=True)
class Order:
    """What to start, where, and where its output goes; `namespace` None means as it is, without overlays.

    `spilled` is the folder that the trainer sees as it is on the disk.
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    log: str
    namespace: str | None
    overlays: list[Overlay]
    spilled: str


@dataclass(frozen=True)
class Stop:
    """How to end the trainer: a signal, to its process group or its Python program, and seconds until all of it is
    killed."""

    signal: int
    grace_s: float
    to: str = "group"


@dataclass(frozen=True)
class Ending:
    """How the trainer ended: exit status or minus the signal (as subprocess has it), what it wrote, what it left.

    `error` says why it could not be started at all; `was_killed` that it did not end in the time that it was given.
    `left_behind` are the processes that it left in the background, `unfinished` the files that these were writing to.
    """

    returncode: int | None
    writes: ProcessWrites
    error: str | None
    was_killed: bool
    left_behind: list[str]
    unfinished: list[str]


def main() -> None:
    """Carry out one order."""
    # The supervisor passes signals on in its own words; a Ctrl-C must reach the trainer once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_process_attribute(PR_SET_CHILD_SUBREAPER, 1)
    # Unbuffered: a line that lay in a buffer would not wake the select below.
    orders = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
    content = json.loads(orders.readline())
    order = Order(**{**content, "overlays": [Overlay(**entry) for entry in content["overlays"]]})
    before = own_writes()
    error, returncode, was_killed = None, None, False
    left_behind: list[str] = []
    unfinished: list[str] = []
    try:
        if order.namespace:
            mount_overlays(order.overlays, order.namespace, Path(order.spilled))
        trainer = _start(order)
    except (OSError, subprocess.SubprocessError) as failure:
        error = f"{failure}"
        if isinstance(failure, FileNotFoundError) and Path(order.cwd, order.argv[0]).exists():
            error += ", or the interpreter that its first line names"
    else:
        _say({"pid": trainer.pid})
        was_killed = _wait(trainer, orders)
        returncode = trainer.returncode
        left_behind, unfinished = _end_leftovers()
    _say(asdict(Ending(returncode, own_writes().since(before), error, was_killed, left_behind, unfinished)))


def _start(order: Order) -> subprocess.Popen[bytes]:
    keeper = os.getpid()

    def before_exec() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        set_process_attribute(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        if order.namespace == "user":
            # The rights that mounting needed end here; the trainer runs with its user's.
            set_process_attribute(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)

    with open(order.log, "ab", buffering=0) as log:
        return subprocess.Popen(
            order.argv,
            cwd=order.cwd,
            env=order.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=before_exec,  # noqa: PLW1509 (there is one thread)
        )


def _wait(trainer: subprocess.Popen[bytes], orders: BinaryIO) -> bool:
    """Wait until the trainer ends, ending it as told, or at once and gently when nobody is there to tell.

    Returns:
        whether it had to be killed.
    """
    deadline = None
    with _closing(os.pidfd_open(trainer.pid)) as process:
        watched: list[Any] = [process, orders]
        while True:
            timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(watched, [], [], timeout_s)
            if process in ready:
                trainer.wait()
                return False
            if not ready:
                os.killpg(trainer.pid, signal.SIGKILL)
                trainer.wait()
                return True
            line = orders.readline()
            if line:
                stop = Stop(**json.loads(line))
            else:
                stop = Stop(signal.SIGTERM, ABANDONED_GRACE_S)
                watched = [process]
            deadline = time.monotonic() + stop.grace_s
            with contextlib.suppress(ProcessLookupError):
                send(trainer.pid, stop)
                os.killpg(trainer.pid, signal.SIGCONT)  # the guard may have stopped it


def send(pid: int, stop: Stop) -> None:
    """Send a trainer the signal to end: to its whole process group; or to the Python program alone that it is, or that
    a shell or another wrapper has started: the processes of that one, which load data, say, are its own to end.

    Raises:
        ProcessLookupError: it has ended.
    """
    if stop.to == "python":
        with contextlib.suppress(psutil.Error):
            trainer = psutil.Process(pid)
            for process in (trainer, *trainer.children(recursive=True)):  # parents come before their children
                if is_python(Path(process.exe())):
                    os.kill(process.pid, stop.signal)
                    return
    os.killpg(pid, stop.signal)


def _end_leftovers() -> tuple[list[str], list[str]]:
    """End what the trainer left in the background, give it a moment first; return the processes that there were, and
    the files that they were writing to."""
    _reap(_LEFTOVER_GRACE_S)
    left = psutil.Process().children(recursive=True)
    names = [name for process in left if (name := _name(process))]
    unfinished = sorted({path for process in left for path in written_by(process.pid) if path.startswith("/")})
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _reap(_LEFTOVER_GRACE_S if left else 0.0)
    kill_descendants()
    return names, unfinished


def _name(process: psutil.Process) -> str | None:
    """Return a process's command, or its name where it has hidden that; None if it has ended."""
    try:
        return shlex.join(process.cmdline())[:_LONGEST_COMMAND] or process.name()
    except psutil.Error:
        return None


def kill_descendants() -> None:
    """Kill every descendant, again until none is left: orphans become our children, so none can hide."""
    deadline = time.monotonic() + _KILL_WAIT_S
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap(0.05)


def _reap(wait_s: float) -> None:
    """Wait for children that have ended, up to `wait_s` while there are others; waiting is what counts their writes."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.01)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _say(content: dict[str, Any]) -> None:
    # With the supervisor gone there is nobody to tell; what has to be ended is ended all the same.
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    main()
