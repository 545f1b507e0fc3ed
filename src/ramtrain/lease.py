"""What a run holds of memory: its lease, where it lies, how much is in it.

The RAM root, /dev/shm/ramtrain-<uid>/<hash of the working directory>, holds one state folder a run. With `tmpfs` and
`shm` the run's data lies in that folder too; with `path` and `disk` it lies in a folder of the same name elsewhere.
A mark in the state folder and in the data folder (a copy of the lease) proves what is ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramtrain.meter import DiskCounters
from ramtrain.slurm import Job

SHM = Path("/dev/shm")
MARK = ".ramtrain.json"
_FULL_SHARE = 0.97


@dataclass(frozen=True)
class Lease:
    """What a run holds from mount to unmount; paths are absolute.

    `state` is the run's folder under the RAM root, `folder` the one with its data. `counters` are the disk's at the
    start, for the record. `may_swap` says whether the kernel may move it to a swap device, uncounted; `size_from` how
    its size was found; `started` when it was asked for, `mounted` when it was there; `job` is SLURM's, if in one.
    """

    run: str
    backend: str
    why: str
    state: str
    folder: str
    size_bytes: int
    may_swap: bool
    sudo: bool
    workdir: str
    token: str
    started: str
    mount_s: float
    counters: DiskCounters
    size_from: str = "ramdisk.size"
    mounted: str | None = None  # not in a note of before it was kept
    job: Job | None = None

    @classmethod
    def read(cls, path: Path) -> Lease:
        """Read a lease or a mark."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Lease:
        """Return the lease that `asdict` made `content` of."""
        job = content.get("job")
        return cls(**{**content, "counters": DiskCounters(**content["counters"]), "job": job and Job(**job)})


def ram_root(workdir: Path) -> Path:
    """Return the folder under which the runs of this working directory keep their state."""
    digest = hashlib.sha256(os.fsencode(workdir.resolve())).hexdigest()[:8]
    return user_root() / digest


def user_root() -> Path:
    """Return the folder of all RAM roots of the user on this machine."""
    return SHM / f"ramtrain-{os.geteuid()}"


def current(lease: Lease) -> Lease:
    """Return the lease as it is now: its RAM disk may have been enlarged."""
    return Lease.read(Path(lease.state) / MARK)


def lock_of(state: Path) -> Path:
    """Return the file that a process locks while it works on the run; beside the RAM disk, which it would keep busy."""
    return state.with_name(f"lock-{short_name(state)}")


def short_name(state: Path) -> str:
    """Return a name for what lies beside a run's state folder."""
    return hashlib.sha256(state.name.encode()).hexdigest()[:8]


def used_bytes(lease: Lease) -> int:
    """Return what the run's data takes on its RAM disk."""
    return used_in(Path(lease.folder), lease.backend)


def used_in(folder: Path, backend: str) -> int:
    """Return what is in a RAM disk's folder; no file of it is opened, which would keep it from being unmounted."""
    if backend == "tmpfs":
        usage = os.statvfs(folder)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    seen: set[int] = set()
    total_blocks = 0
    for status in _walk_status(folder):
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
        total_blocks += status.st_blocks
    return total_blocks * 512


def is_full(held_bytes: int, size_bytes: int) -> bool:
    """Whether a RAM disk is as good as full."""
    return held_bytes > _FULL_SHARE * size_bytes


def _walk_status(folder: Path) -> Iterator[os.stat_result]:
    # The trainer makes and deletes files meanwhile, and an overlay's work folder is closed to everybody.
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield status
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_status(Path(entry.path))
