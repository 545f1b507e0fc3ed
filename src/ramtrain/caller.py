"""What a job must know of the call of Snakemake that it belongs to; handed down in the environment."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ramtrain.slurm import Job

_CALLER = "RAMTRAIN_CALLER"
TOLD_TO_END = signal.SIGUSR1
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
TEMPORARY_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
_PROFILES = ("--profile", "--workflow-profile")


def remember(configfiles: Sequence[str | Path], budget_mb: int | None = None, job: Job | None = None) -> None:
    """Note this process, its --configfile, and the variables that Snakemake sets anew for every job.

    Args:
        budget_mb: what all its runs together may hold in RAM, in MiB.
        job: the cluster's job that Snakemake was sent there as; what was typed is then what its sender noted.
    """
    variables = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, *TEMPORARY_VARIABLES)}
    sender = _recall() if job else {}
    content = {
        "pid": os.getpid(),
        "configfiles": [str(path) for path in configfiles],
        "profiles": sender.get("profiles", []) if job else _profiles(sys.argv),
        "variables": variables,
        "budget_mb": budget_mb,
        "job": job and asdict(job),
    }
    os.environ[_CALLER] = json.dumps(content)


def _profiles(argv: Sequence[str]) -> list[str]:
    """Return the options of a call of Snakemake that name profiles."""
    joined = [argument for argument in argv if argument.startswith(tuple(f"{name}=" for name in _PROFILES))]
    return joined + [part for pair in itertools.pairwise(argv) if pair[0] in _PROFILES for part in pair]


def job() -> Job | None:
    """Return the cluster's job that our Snakemake was sent there as; None if it was not."""
    content = _recall().get("job")
    return Job(**content) if content else None


def pass_signals_on(*scripts: str) -> None:
    """Have this process, Snakemake, tell the scripts when it alone is told to end.

    Snakemake itself then waits for its jobs to finish, however long they take. Its own handlers are called once.
    """

    def tell(number: int, frame: FrameType | None) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                if any(part.endswith(scripts) for part in process.cmdline()):
                    process.send_signal(TOLD_TO_END)
        handler = before.pop(number, None)  # asked again, Snakemake would only trip over itself
        if callable(handler):
            handler(number, frame)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in list(before):
        signal.signal(number, tell)


def apart(handler: Callable[..., None]) -> Callable[..., None]:
    """Return a handler of signals that does the same in a thread of its own, where it may wait for a lock that is held
    by what the signal interrupts."""

    def start(*arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter is ending already, and starts no more
            threading.Thread(target=handler, args=arguments).start()

    return start


def pid() -> int | None:
    """Return the process of Snakemake; None if it did not call us."""
    return _recall().get("pid")


def budget_bytes() -> int | None:
    """Return what all runs of this call together may hold in RAM; None if Snakemake did not call us."""
    budget_mb = _recall().get("budget_mb")
    return None if budget_mb is None else budget_mb << 20


def has_ended() -> bool:
    """Whether Snakemake called us and is gone; then its lock is still there."""
    number = pid()
    if number is None:
        return False
    try:
        descriptor = os.pidfd_open(number)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def command(target: str) -> str:
    """Return what to type for a target, with the config that this call was given."""
    configfiles, profiles = _recall().get("configfiles", []), _recall().get("profiles", [])
    options = ["--configfile", *configfiles] if configfiles else []
    return shlex.join(["snakemake", "--cores", "1", target, *profiles, *options])


def environment() -> dict[str, str]:
    """Return the environment that Snakemake itself was called in."""
    env = dict(os.environ)
    variables = _recall().get("variables", {})
    env.pop(_CALLER, None)
    for name, value in variables.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def _recall() -> dict[str, Any]:
    return json.loads(os.environ.get(_CALLER, "{}"))
