"""SLURM, as a job of it sees itself: which job this is, and how long it may still take."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ramtrain.system import CommandError, run_command

# A controller that does not answer must not take the time that a job has left.
_ANSWER_S = 3.0
_KILL_WAIT_S = 30.0
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True)
class Job:
    """A job: its number, its node, and, where that is told, its partition, the memory that it has there, in MiB, and a
    folder for its own use."""

    id: str
    node: str
    partition: str | None
    memory_mb: int | None
    scratch: str | None = None


def this_job(environment: Mapping[str, str] = os.environ) -> Job | None:
    """Return the job that this process is in; None if it is in none."""
    if "SLURM_JOB_ID" not in environment:
        return None
    memory = environment.get("SLURM_MEM_PER_NODE", "")
    return Job(
        id=environment["SLURM_JOB_ID"],
        node=environment.get("SLURMD_NODENAME", os.uname().nodename),
        partition=environment.get("SLURM_JOB_PARTITION"),
        memory_mb=int(memory) if memory.isdecimal() and int(memory) else None,
        scratch=environment.get("SLURM_TMPDIR") or environment.get("TMPDIR"),
    )


def seconds_left(job: Job) -> float:
    """Return how long it takes at least until a job that was told to end is killed.

    Told ahead of its time limit, or since another job is to have its place (GraceTime), it goes on until then; told by
    scancel or a requeue it has KillWait.
    """
    state, _, left = _ask("squeue", "--noheader", "--jobs", job.id, "--format=%T %L").strip().partition(" ")
    parts = _TIME.fullmatch(left)
    if state == "RUNNING" and parts:
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    found = re.search(r"^KillWait\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return float(found[1]) if found else _KILL_WAIT_S


def is_alive(number: str) -> bool | None:
    """Whether a job has not ended yet, or is queued again; None where SLURM does not tell."""
    try:
        return bool(run_command("squeue", "--noheader", "--jobs", number, "--format=%i", timeout_s=_ANSWER_S).split())
    except CommandError as error:
        return False if "Invalid job id" in str(error) else None


def _ask(*command: str) -> str:
    """Return what SLURM answers; nothing if it does not."""
    try:
        return run_command(*command, timeout_s=_ANSWER_S)
    except CommandError:
        return ""
