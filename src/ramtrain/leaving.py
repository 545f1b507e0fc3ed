"""Leaving a node of a cluster: what a job's run still holds there comes home, and its RAM is released.

The next attempt runs on whatever node is free, where it finds nothing of this one but what is at home. It is done by
`python -m ramtrain.leaving`: what comes home is verified by threads, and a process that is ending starts no more.
"""

from __future__ import annotations

import atexit
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ramtrain import caller
from ramtrain.errors import RamTrainError
from ramtrain.lease import MARK, Lease
from ramtrain.ramdisk import release_half
from ramtrain.rescue import halves, leftovers, rescue, row
from ramtrain.slurm import Job, is_alive

log = logging.getLogger(__name__)

# A trainer whose supervisor was killed ends within two seconds.
_PATIENCE_S = 8.0
_AGAIN_S = 0.5


def leave_at_end(workdir: Path, job: Job, run: str | None) -> None:
    """Leave the node clean when this process, Snakemake in a job, ends; first, what killed jobs of the same working
    directory left on it.

    Nothing is left to do where the run ended well. Snakemake waits for a training that is told to end.
    """
    for lease in leftovers(workdir):
        if lease.job and lease.job.id != job.id and is_alive(lease.job.id) is False:
            _leave(lease)
    atexit.register(_call_leave, sys.executable, workdir, job.id, run or "")


def _call_leave(python: str, workdir: Path, job: str, run: str) -> None:
    """Call `leave` if there is anything to do; a signal to end changes nothing: little time is left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if any(_of(workdir, job)) or any(_halves(workdir, run)):
        subprocess.run([python, "-I", "-m", "ramtrain.leaving", str(workdir), job, run], check=False)


def leave(workdir: Path, job: str, run: str) -> None:
    """Bring home what the job's run holds, and release it; what cannot be is told of, and stays."""
    for lease in _of(workdir, job):
        _leave(lease)
    for folder in _halves(workdir, run):
        try:
            release_half(folder)
        except (RamTrainError, OSError) as error:
            log.error("%s", error)


def _of(workdir: Path, job: str) -> Iterator[Lease]:
    return (lease for lease in leftovers(workdir) if lease.job and lease.job.id == job)


def _halves(workdir: Path, run: str) -> Iterator[Path]:
    return (folder for folder in halves(workdir) if folder.name == run)


def _leave(lease: Lease) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while (Path(lease.state) / MARK).exists():  # else it has been done meanwhile
        try:
            for saved in rescue(lease, discard=False, goes_on=True):
                print(row(lease.run, saved), flush=True)
        except (RamTrainError, OSError) as error:
            if time.monotonic() > deadline:
                log.error("%s\n%s", error, _stays(lease))
                return
            time.sleep(_AGAIN_S)


def _stays(lease: Lease) -> str:
    where = f"on node {lease.job.node}, at {lease.folder}" if lease.job else f"at {lease.folder}"
    return (
        f"What run {lease.run} holds stays {where}. The next job of {lease.workdir} there brings it home; so does "
        f"`{caller.command('unmount')}`, typed on that node."
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    leave(Path(sys.argv[1]), *sys.argv[2:])
