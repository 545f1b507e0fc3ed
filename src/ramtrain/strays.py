"""What a trainer writes to the disk past its RAM disk: which files, and how they can be kept in RAM too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from humanfriendly import format_size

from ramtrain.namespace import OVERLAY_SOURCE
from ramtrain.opened import written_by
from ramtrain.ramdisk import MEMORY_FILESYSTEMS
from ramtrain.system import Mount, mount_of, mounts

# Less is what any program writes: access times, a cache of compiled code.
MUCH_BYTES = 1_000_000
_IN_MEMORY = (*MEMORY_FILESYSTEMS, "devtmpfs", "devpts", "mqueue", "proc", "sysfs", "hugetlbfs")
_MOST_TOLD = 5


class Strays:
    """The files on a disk that a trainer was seen to have open for writing, each with the largest size it had."""

    def __init__(self, spilled: str) -> None:
        self.files: dict[str, int] = {}
        self.spilled = spilled  # what is written there is so since RAM has no room

    def look(self, processes: Iterable[psutil.Process]) -> None:
        """See what the processes have open for writing now; a file that is open for a moment may be missed."""
        for process in processes:
            with contextlib.suppress(OSError):  # it has ended
                seen = mounts(process.pid)
                for path in filter(os.path.isabs, written_by(process.pid)):
                    if not path.startswith(f"{self.spilled}/") and _is_on_disk(mount_of(Path(path), seen)):
                        self._note(process.pid, path)

    def _note(self, pid: int, path: str) -> None:
        with contextlib.suppress(OSError):  # it has been deleted
            size_bytes = os.stat(f"/proc/{pid}/root{path}").st_size
            self.files[path] = max(size_bytes, self.files.get(path, 0))

    def told(self, disk_bytes: int, staging: str) -> str:
        """Return how much went to the disk, into which files, and what to do about it."""
        size = format_size(disk_bytes, binary=True)
        if not self.files:
            return f"{size} went to the disk past the RAM disk, into files that were not seen open"
        largest = sorted(self.files, key=lambda path: -self.files[path])
        names = ", ".join(largest[:_MOST_TOLD]) + (
            f" and {len(largest) - _MOST_TOLD} more" if len(largest) > _MOST_TOLD else ""
        )
        folders = ", ".join(sorted({os.path.dirname(path) for path in largest[:_MOST_TOLD]}))
        remedy = (
            f"`volatile: [{folders}]` in the config's project keeps such writes in RAM; they are thrown away with it"
            if staging == "overlay"
            else f"With staging {staging} only what it writes below {{ram}} is in RAM"
        )
        return f"{size} went to the disk past the RAM disk, into {names}. {remedy}"


def _is_on_disk(entry: Mount) -> bool:
    return entry.fstype not in _IN_MEMORY and (entry.fstype, entry.source) != ("overlay", OVERLAY_SOURCE)
