"""Who wrote how much where. How each figure is counted stands beside it in the record."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ramtrain.system import mount_of, mounts, sync_filesystem

_BLOCK = Path("/sys/class/block")
_SETTLED_S = 1.0
_LONGEST_SETTLE_S = 30.0


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


NO_WRITES = ProcessWrites(0, 0, 0)


def own_writes() -> ProcessWrites:
    """Return what this process and the children it has waited for wrote so far."""
    return writes_of("self")


def thread_writes() -> ProcessWrites:
    """Return what this thread alone wrote so far."""
    return writes_of("thread-self")


def writes_of(pid: int | str) -> ProcessWrites:
    """Return what a process and the children it has waited for wrote so far.

    Raises:
        OSError: there is no such process, or it is another user's.
    """
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    io = {key: int(value) for key, value in (line.split(": ") for line in lines)}
    return ProcessWrites(io["wchar"], io["write_bytes"] - io["cancelled_write_bytes"], io["syscw"])


@dataclass(frozen=True)
class DiskCounters:
    """What the disk under a folder has been given to write, by all processes, when these were read (seconds since the
    epoch). None where there is no such counter, or no such device (a network file system, say).

    `device` is the file system's block device, `device_bytes` the sectors written to it (/proc/diskstats, field 10);
    `physical` has the same for each device that it lies on in the end, below partitions, LVM, dm-crypt, md and loop.
    `filesystem_bytes` is the file system's own counter. `cgroup_bytes` is what the devices were given by the cgroup
    that this process is in, writeback included (cgroup v2, io.stat). `swapped_out_bytes` is the whole machine's.
    """

    read_s: float
    device: str | None
    filesystem: str
    device_bytes: int | None
    filesystem_bytes: int | None
    physical: dict[str, int]
    cgroup: str | None
    cgroup_bytes: int | None
    swapped_out_bytes: int

    def since(self, before: DiskCounters, counter: str = "device_bytes") -> int | None:
        """Return what a counter went up by; None without one, with another disk's, or when a reboot set it back."""
        first, last = getattr(before, counter), getattr(self, counter)
        is_same = before.device == self.device and (counter != "cgroup_bytes" or before.cgroup == self.cgroup)
        return None if first is None or last is None or not is_same or last < first else last - first


def disk_counters(folder: Path) -> DiskCounters:
    """Read all counters that there are of the disk that holds `folder`."""
    holding = mount_of(folder.resolve())
    device = device_of(folder)
    written = _device_bytes()
    physical = physical_devices(device) if device else []
    group, group_bytes = _cgroup_bytes(physical)
    return DiskCounters(
        read_s=round(time.time(), 3),
        device=device if device in written else None,
        filesystem=holding.fstype,
        device_bytes=written.get(device or ""),
        filesystem_bytes=_filesystem_bytes(holding.fstype, device),
        physical={name: written[name] for name in physical if name in written},
        cgroup=group,
        cgroup_bytes=group_bytes,
        swapped_out_bytes=swapped_out_bytes(),
    )


def _device_bytes() -> dict[str, int]:
    try:
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False)
    except NotImplementedError:  # a sandbox that shows no devices
        return {}
    return {name: count.write_bytes for name, count in counters.items()}


def device_of(folder: Path) -> str | None:
    """Return the name of the block device that holds `folder`, as in /proc/diskstats; None if there is none.

    A file system with several devices (btrfs, stat(2) shows none) is told by the device that it was mounted from.
    """
    number = os.stat(folder).st_dev
    if os.major(number) == 0:
        source = Path(mount_of(folder.resolve()).source)
        if not source.is_block_device():
            return None
        number = source.stat().st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return node.resolve().name if node.exists() else None


def physical_devices(device: str) -> list[str]:
    """Return the devices that a block device lies on in the end: of a partition its disk, of LVM, dm-crypt and md each
    of theirs, of a loop device that of its file."""
    node = _BLOCK / device
    if (node / "partition").exists():
        return physical_devices(node.resolve().parent.name)
    below = sorted(entry.name for entry in node.glob("slaves/*"))
    if not below and (node / "loop/backing_file").exists():
        file = Path((node / "loop/backing_file").read_text(encoding="utf-8").rstrip("\n"))
        holder = device_of(file.parent) if file.exists() else None
        below = [holder] if holder else []
    return list(dict.fromkeys(name for other in below for name in physical_devices(other))) or [device]


def _filesystem_bytes(fstype: str, device: str | None) -> int | None:
    """Return what a file system says it has written: ext4's session_write_kbytes (to the device, journal included),
    the second of `xpc` of XFS (its `xs_write_bytes`: what was given to it, the page cache included). btrfs has none."""
    session = Path(f"/sys/fs/ext4/{device}/session_write_kbytes")
    if fstype == "ext4" and session.exists():
        return int(session.read_text(encoding="ascii")) * 1024
    stats = Path(f"/sys/fs/xfs/{device}/stats/stats")
    if fstype == "xfs" and stats.exists():
        counters = dict(line.split(" ", 1) for line in stats.read_text(encoding="ascii").splitlines())
        return int(counters["xpc"].split()[1])
    return None


def _cgroup_bytes(devices: list[str]) -> tuple[str | None, int | None]:
    """Return our cgroup (v2) and the bytes that the devices were given by it; None where it has no io.stat."""
    group = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    root = next((entry.point for entry in mounts() if entry.fstype == "cgroup2"), None)
    if group is None or root is None:
        return None, None
    file = root / group.lstrip("/") / "io.stat"
    if not file.exists():
        return None, None
    numbers = {(_BLOCK / name / "dev").read_text(encoding="ascii").strip() for name in devices}
    return group, written_by_cgroup(file.read_text(encoding="ascii"), numbers)


def written_by_cgroup(io_stat: str, devices: set[str]) -> int:
    """Return the bytes written to the devices (`major:minor`) by what io.stat says (cgroup-v2.rst, IO Interface)."""
    written_bytes = 0
    for line in io_stat.splitlines():
        number, *values = line.split()
        if number in devices:
            written_bytes += int(dict(value.split("=") for value in values if "=" in value).get("wbytes", 0))
    return written_bytes


def swapped_out_bytes() -> int:
    """Return what the machine has moved to its swap devices since it was started (pswpout of /proc/vmstat)."""
    pages = next((int(line.split()[1]) for line in _lines("/proc/vmstat") if line.startswith("pswpout ")), 0)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="ascii").splitlines()


def settle(folder: Path) -> float:
    """Bring the disk of `folder` to rest: all of its file system written, its device still for a second.

    Returns the seconds that it took; at most half a minute where neighbours give the device no rest.
    """
    started = time.monotonic()
    sync_filesystem(folder)
    before, since = disk_counters(folder).device_bytes, time.monotonic()
    while time.monotonic() - since < _SETTLED_S and time.monotonic() - started < _LONGEST_SETTLE_S:
        time.sleep(0.1)
        now = disk_counters(folder).device_bytes
        if now != before:
            before, since = now, time.monotonic()
    return time.monotonic() - started
