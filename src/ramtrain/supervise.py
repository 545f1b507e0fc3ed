"""Start the trainer, watch it, end it: the side of RamTrain that stays outside the trainer's namespace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramtrain import caller
from ramtrain.checkpoints import find_resume
from ramtrain.config import Run
from ramtrain.environment import ProjectState, describe_project
from ramtrain.errors import RamTrainError
from ramtrain.export import TRAINER_LOG, keep_log
from ramtrain.keeper import ABANDONED_GRACE_S, Ending, Order, Stop, kill_descendants
from ramtrain.meter import ProcessWrites
from ramtrain.namespace import ENTER
from ramtrain.progress import TrainingProgress
from ramtrain.ramdisk import Lease, lock_of, temporary_folder, used_bytes
from ramtrain.staging import Stage, begin, has_begun, renew
from ramtrain.system import PR_SET_CHILD_SUBREAPER, set_process_attribute

log = logging.getLogger(__name__)

_TICK_S = 0.5
# Measuring a folder means walking it; it may take this share of the time.
_MEASURING_SHARE = 0.002
_TAIL_LINES = 12

END_OF_SNAKEMAKE = "the end of Snakemake"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Training:
    """A training that ended well; `progress` is what its output said last, `resumed_from` a checkpoint's path."""

    command: list[str]
    train_s: float
    writes: ProcessWrites
    peak_bytes: int
    left_behind: int
    progress: dict[str, str]
    resumed_from: str | None
    project: ProjectState

    @classmethod
    def read(cls, path: Path) -> Training:
        """Read how a training went."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Training:
        """Return the training that `asdict` made `content` of."""
        parts = {"writes": ProcessWrites(**content["writes"]), "project": ProjectState(**content["project"])}
        return cls(**{**content, **parts})


def trainer_environment(run: Run, lease: Lease, cwd: str) -> dict[str, str]:
    """Return the trainer's environment: the user's, TMPDIR in RAM, the adapter's variables, threads if configured."""
    env = caller.environment()
    env.update(dict.fromkeys(caller.TEMPORARY_VARIABLES, str(temporary_folder(lease))))
    if run.threads:
        env.update(dict.fromkeys(caller.THREAD_VARIABLES, str(run.threads)))
    env.update({"PWD": cwd, "PYTHONUNBUFFERED": "1"}, **run.trainer.environment)
    return env


def train(run: Run, lease: Lease, stage: Stage) -> Training:
    """Run the trainer to its end.

    Raises:
        RamTrainError: it is running already, could not be started, failed, or was told to end. Its RAM disk stays.
    """
    folder = Path(lease.folder)
    with only_one(run.run, Path(lease.state)), _signals() as signals:
        resumed_from, more = None, []
        if has_begun(run, lease) and run.trainer.resume:
            resumed_from, more = find_resume(run, stage)
            if resumed_from:
                log.info("run %s: going on from %s", run.run, resumed_from)
            elif others := stage.written(run.checkpoints):
                raise RamTrainError(
                    f"run {run.run}: none of the checkpoints in RAM is one that the adapter {run.trainer.name!r} can "
                    f"resume ({run.trainer.resume.checkpoint!r}), and there are {', '.join(others[:5])}. Correct the "
                    f"adapter, or bring them home with `{caller.command('unmount')}` and train again."
                )
            else:
                log.info("run %s: the earlier attempt left no whole checkpoint; starting anew", run.run)
                stage = renew(run, lease)
        begin(run, lease)
        command = run.arguments(stage.ram) + more
        order = Order(
            argv=command,
            cwd=stage.cwd,
            env=trainer_environment(run, lease, stage.cwd),
            log=str(folder / TRAINER_LOG),
            namespace=stage.namespace,
            overlays=stage.overlays,
        )
        log.info("run %s: training; its output: tail -f %s", run.run, order.log)
        clock = time.monotonic()
        with ThreadPoolExecutor(1) as background:
            watch = _Watch(run, lease, order, signals)
            project = background.submit(describe_project, run, command[0])
            ending = watch.until_end()
            train_s = time.monotonic() - clock
    log_at_home = keep_log(run, lease)
    trouble = _trouble(ending, watch.stopped_by)
    if trouble:
        unlock = "snakemake --unlock && " if watch.stopped_by == END_OF_SNAKEMAKE else ""
        raise RamTrainError(
            f"run {run.run}: {trouble} after {train_s:.0f} s. What it wrote is still in RAM, {lease.folder}, its "
            f"output in {log_at_home}, which ends:\n{_tail(Path(order.log))}\n"
            f"To go on from there, type\n  {unlock}{caller.command('train')}\n"
            f"To bring home what is there and release the RAM, type\n  {unlock}{caller.command('unmount')}"
        )
    assert ending is not None  # else there was trouble
    if ending.left_behind:
        log.warning("run %s: the trainer left %d processes behind; they were ended", run.run, ending.left_behind)
    return Training(
        command=command,
        train_s=round(train_s, 3),
        writes=ending.writes,
        peak_bytes=watch.peak_bytes,
        left_behind=ending.left_behind,
        progress=watch.progress.latest,
        resumed_from=resumed_from,
        project=project.result(),
    )


class _Watch:
    """One trainer under its keeper, watched until both are gone.

    `stopped_by` says what made RamTrain end it, if anything did; `peak_bytes` is the most its RAM disk held.
    """

    def __init__(self, run: Run, lease: Lease, order: Order, signals: _Signals) -> None:
        self.run = run
        self.lease = lease
        self.signals = signals
        self.log = Path(order.log)
        self.log_position = self.log.stat().st_size if self.log.exists() else 0
        self.progress = TrainingProgress(f"run {run.run}", run.trainer.progress)
        self.stopped_by: str | None = None
        self.used_bytes = self.peak_bytes = 0
        self.next_measure = 0.0
        # Should the keeper be killed, its orphans come to us.
        set_process_attribute(PR_SET_CHILD_SUBREAPER, 1)
        enter = ENTER[order.namespace] if order.namespace else ()
        self.keeper = subprocess.Popen(
            [*enter, sys.executable, "-I", "-m", "ramtrain.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._tell_keeper(asdict(order))

    def until_end(self) -> Ending | None:
        """Return how the trainer ended; None if its keeper died."""
        answers = b""
        with _workflow() as workflow:
            watched: list[Any] = [self.keeper.stdout, self.signals.wakeup, *workflow]
            while True:
                ready, _, _ = select.select(watched, [], [], _TICK_S)
                if self.keeper.stdout in ready:
                    answer = self.keeper.stdout.read(1 << 16)
                    answers += answer
                    if not answer:
                        break
                if self.signals.wakeup in ready:
                    self._stop(self.signals.take(), self.run.trainer.grace_s)
                if set(workflow) & set(ready):
                    watched = [source for source in watched if source not in workflow]
                    self._stop(END_OF_SNAKEMAKE, ABANDONED_GRACE_S)
                self._follow()
        self.keeper.wait()
        self._follow()
        self.progress.close()
        last = answers.decode().splitlines()[-1:]
        content = json.loads(last[0]) if last else {}
        if "returncode" not in content:
            kill_descendants()
            return None
        return Ending(**{**content, "writes": ProcessWrites(**content["writes"])})

    def _stop(self, reason: str, grace_s: float) -> None:
        """Have the trainer ended as its adapter says; asked a second time, at once."""
        if self.stopped_by:
            stop = Stop(signal.SIGKILL, 0.0)
        else:
            stop = Stop(self.run.trainer.stop_signal, grace_s)
            log.warning(
                "run %s: %s: the trainer is sent %s and has %g s to end",
                self.run.run,
                reason,
                self.run.trainer.stop_signal.name,
                grace_s,
            )
        self.stopped_by = self.stopped_by or reason
        self._tell_keeper(asdict(stop))

    def _tell_keeper(self, content: dict[str, Any]) -> None:
        # A keeper that is gone already is noticed by the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self.keeper.stdin.write(json.dumps(content).encode() + b"\n")

    def _follow(self) -> None:
        """Take in the trainer's new output and, now and then, how full the RAM disk is."""
        now = time.monotonic()
        if now >= self.next_measure:
            self.used_bytes = used_bytes(self.lease)
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            took_s = time.monotonic() - now
            self.next_measure = now + max(_TICK_S, took_s / _MEASURING_SHARE)
        if self.log.exists():
            with self.log.open("rb") as output:
                output.seek(self.log_position)
                new = output.read()
            self.log_position += len(new)
            self.progress.feed(new.decode(errors="replace"))
        self.progress.tell(self.used_bytes)


class _Signals:
    """SIGINT, SIGTERM and SIGHUP as something that select can wait for; `wakeup` is readable when one came."""

    def __init__(self) -> None:
        self.wakeup, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Under nohup a lost terminal is meant to be survived.
        heeded = [n for n in _STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    @staticmethod
    def _note(number: int, _: object) -> None:
        """Do nothing; the wakeup descriptor carries the number."""

    def take(self) -> str:
        """Return the name of the signal that came."""
        return signal.Signals(os.read(self.wakeup, 1)[0]).name

    def close(self) -> None:
        """Put the handlers back as they were."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wakeup)
        os.close(self._write)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    with contextlib.closing(_Signals()) as signals:
        yield signals


@contextlib.contextmanager
def only_one(run: str, state: Path) -> Iterator[None]:
    """Hold the run's lock, which the kernel drops with the process.

    Raises:
        RamTrainError: another process is training this run.
    """
    with lock_of(state).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RamTrainError(
                f"run {run}: is being trained by another process; wait for it, or end it with Ctrl-C there"
            ) from None
        yield


@contextlib.contextmanager
def _workflow() -> Iterator[list[int]]:
    """Give a descriptor that becomes readable when Snakemake ends (pidfd_open(2)); none if it is not our caller."""
    pid = caller.pid()
    try:
        descriptors = [os.pidfd_open(pid)] if pid else []
    except ProcessLookupError:
        raise RamTrainError("Snakemake ended before the training began.") from None
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _trouble(ending: Ending | None, stopped_by: str | None) -> str | None:
    """Return what kept the training from ending well."""
    if ending is None:
        return "the process that kept the trainer was killed, and the trainer with it,"
    if ending.error:
        return f"the trainer could not be started ({ending.error})"
    if stopped_by:
        return f"the trainer was ended by {stopped_by}"
    if ending.returncode is None or ending.returncode > 0:
        return f"the trainer failed with exit status {ending.returncode}"
    if ending.returncode < 0:
        name = signal.Signals(-ending.returncode).name if -ending.returncode in list(signal.Signals) else ""
        return f"the trainer was killed by {name or f'signal {-ending.returncode}'}"
    return None


def _tail(path: Path) -> str:
    if not path.exists() or path.stat().st_size == 0:
        return "  (it is empty)"
    lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)
