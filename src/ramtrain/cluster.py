"""Runs on a cluster: what the job of a run asks for, and which job of SLURM this is.

A run's chain is one job, from mount to unmount; what it asks for is the most that any of its steps needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from humanfriendly import format_size

from ramtrain.admission import Line, table
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.memory import Bound
from ramtrain.sizing import NOTHING_KNOWN
from ramtrain.slurm import Job

_MIB_BYTES = 1 << 20
# Snakemake, which calls itself twice in a job, RamTrain's script and the trainer's keeper.
_OWN_BYTES = 512 << 20


def check_runs(runs: Iterable[Run]) -> None:
    """Check that it is known what the jobs of runs are to ask for.

    Raises:
        RamTrainError: the trainer's memory, or the RAM disk's size, is not; or a run's id cannot be sent.
    """
    for run in runs:
        _check_id(run.run)
        if run.memory_bytes is None:
            raise RamTrainError(
                f"run {run.run}: train.memory: missing; its job on the cluster asks for memory for the trainer and for "
                "the RAM disk. Give what the trainer itself takes at most, such as 12G."
            )
        if NOTHING_KNOWN in run.size_from:
            raise RamTrainError(
                f"run {run.run}: ramdisk.size: auto: nothing is known yet of what it writes, and what is free on this "
                "machine says nothing of the cluster's; give a size, such as 16G, for the first run."
            )


def _check_id(run: str) -> None:
    names = [piece.partition("=")[0] for piece in run.split(",")[1:] if "=" in piece]
    if len(set(names)) < run.count(",") or "run" in names:
        raise RamTrainError(
            f"run {run}: its id cannot be sent to a cluster: Snakemake takes it apart at its commas. Give it another, "
            "without commas or as name=value,name=value."
        )


def wildcards_of(pieces: Mapping[str, str]) -> dict[str, str]:
    """Return the wildcards of a job's target: Snakemake (9.27, parse_target_jobs_cli_args) takes the value of the only
    one, `run`, apart at its commas."""
    (name, value), *others = pieces.items()
    return {name: ",".join([value, *(f"{other}={part}" for other, part in others)])}


def run_of(argv: Sequence[str]) -> str | None:
    """Return the run that a call of Snakemake as a job is to work on; None if it is to do something else."""
    targets = argv[argv.index("--target-jobs") + 1 :] if "--target-jobs" in argv else []
    runs = {target.partition(":run=")[2].strip('"') for target in targets if ":run=" in target}
    return runs.pop() if len(runs) == 1 else None


def job_mb(run: Run) -> int:
    """Return what a run's job asks for, in MiB: for the RAM disk, the trainer and RamTrain itself; no less than what
    admission wants to see there, which keeps a reserve of each cgroup free (`guard.reserve`)."""
    needed_bytes = sum(line.amount_bytes for line in _needs(run))
    held_bytes = _ramdisk_bytes(run) + _OWN_BYTES
    while needed_bytes - _reserve_bytes(run, needed_bytes) < held_bytes:
        needed_bytes += held_bytes - (needed_bytes - _reserve_bytes(run, needed_bytes))
    return math.ceil(needed_bytes / _MIB_BYTES)


def ramdisk_mb(job: Job, trainer_bytes: int | None) -> int | None:
    """Return what a job's memory leaves to its RAM disk, in MiB, in a job where SLURM tells; None where it does not."""
    if job.memory_mb is None:
        return None
    return max(0, job.memory_mb - (_OWN_BYTES + (trainer_bytes or 0)) // _MIB_BYTES)


def runtime_minutes(run: Run, minutes: int | None) -> int | None:
    """Return how long a step may take, by default the training; None where the config does not limit the run."""
    if run.time_s is None:
        return None
    return math.ceil(run.time_s / 60) if minutes is None else minutes


def check_memory(runs: Mapping[str, Run], asked_mb: Mapping[str, int]) -> None:
    """Check that the jobs, as they will be sent, ask for enough memory: a profile or --set-resources may say otherwise.

    Args:
        asked_mb: what the job of each run asks for, in MiB.

    Raises:
        RamTrainError: one does not; with the arithmetic.
    """
    for name, mb in asked_mb.items():
        needs = _needs(runs[name])
        missing_bytes = sum(line.amount_bytes for line in needs) - (mb << 20)
        if missing_bytes > 0:
            asked = Line(mb << 20, "asked for", "mem_mb")
            needed = [Line(-line.amount_bytes, line.what, line.source) for line in needs]
            raise RamTrainError(
                "\n".join(
                    [
                        f"run {name}: its RAM disk does not fit in the memory of its job, nothing was sent:",
                        *table([asked, *needed, Line(-missing_bytes, "is missing")]),
                        "Leave mem_mb to RamTrain, which asks for "
                        f"{format_size(job_mb(runs[name]) * _MIB_BYTES, binary=True)}; or give a smaller ramdisk.size.",
                    ]
                )
            )


def _needs(run: Run) -> list[Line]:
    return [
        Line(_ramdisk_bytes(run), "RAM disk", run.size_from),
        Line(run.memory_bytes or 0, "the trainer itself", "train.memory"),
        Line(_OWN_BYTES, "Snakemake and RamTrain"),
    ]


def _ramdisk_bytes(run: Run) -> int:
    return run.ramdisk_mb * _MIB_BYTES


def _reserve_bytes(run: Run, total_bytes: int) -> int:
    return Bound("the job", total_bytes, total_bytes).reserve_bytes(run.reserve_bytes)
