"""Who wrote how much where. How each figure is counted stands beside it in the record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from ramtrain.system import mount_of


@dataclass(frozen=True)
class ProcessWrites:
    """What a process and the children it waited for have written (/proc/PID/io, proc_pid_io(5)).

    `logical_bytes` is wchar, what was given to write calls, pipes and RAM included. `disk_bytes` is write_bytes
    minus cancelled_write_bytes: pages dirtied for a block device less those dropped before they reached it.
    """

    logical_bytes: int
    disk_bytes: int
    write_calls: int

    def since(self, before: ProcessWrites) -> ProcessWrites:
        """Return what was written between `before` and now."""
        return ProcessWrites(
            self.logical_bytes - before.logical_bytes,
            self.disk_bytes - before.disk_bytes,
            self.write_calls - before.write_calls,
        )

    def and_also(self, other: ProcessWrites) -> ProcessWrites:
        """Return the sum of both."""
        return ProcessWrites(
            self.logical_bytes + other.logical_bytes,
            self.disk_bytes + other.disk_bytes,
            self.write_calls + other.write_calls,
        )


def own_writes() -> ProcessWrites:
    """Return what this process and the children it has waited for wrote so far."""
    return writes_of(os.getpid())


def writes_of(pid: int) -> ProcessWrites:
    """Return what a process and the children it has waited for wrote so far.

    Raises:
        OSError: there is no such process, or it is another user's.
    """
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    io = {key: int(value) for key, value in (line.split(": ") for line in lines)}
    return ProcessWrites(io["wchar"], io["write_bytes"] - io["cancelled_write_bytes"], io["syscw"])


@dataclass(frozen=True)
class DiskCounters:
    """What the disk under a folder has been given to write, by all processes, since it was attached or mounted.

    `device_bytes` counts sectors (/proc/diskstats field 10), `filesystem_bytes` is ext4's session_write_kbytes.
    None where there is no such counter (a network file system; another file system than ext4).
    """

    device: str | None
    filesystem: str
    device_bytes: int | None
    filesystem_bytes: int | None


def disk_counters(folder: Path) -> DiskCounters:
    """Read the counters of the block device and the file system that hold `folder`."""
    number = os.stat(folder).st_dev
    name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    device = psutil.disk_io_counters(perdisk=True).get(name)
    session = Path(f"/sys/fs/ext4/{name}/session_write_kbytes")
    return DiskCounters(
        device=name if device else None,
        filesystem=mount_of(folder.resolve()).fstype,
        device_bytes=device.write_bytes if device else None,
        filesystem_bytes=int(session.read_text(encoding="ascii")) * 1024 if session.exists() else None,
    )
