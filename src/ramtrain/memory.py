"""What memory there really is: of the machine, and of the cgroups that this process is in; swap, and pressure.

The files are proc_meminfo(5), cgroups(7), cgroup-v1/memory.rst, cgroup-v2.rst and accounting/psi.rst of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from humanfriendly import format_size

PROC = Path("/proc")
_LEAST_RESERVE_BYTES = 2 << 30
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Bound:
    """Something that memory has to be taken from, the machine or a cgroup with a limit.

    `available_bytes` is what can be had of its `total_bytes` without anything being swapped out or killed. `group` is
    the cgroup's folder, None for the machine.
    """

    name: str
    total_bytes: int
    available_bytes: int
    group: Path | None = None

    def reserve_bytes(self, configured_bytes: int | None) -> int:
        """Return what is kept free of it: as configured, or the larger of 2 GiB and 10 %, but at most half."""
        if configured_bytes is not None:
            return configured_bytes
        return min(max(_LEAST_RESERVE_BYTES, self.total_bytes // 10), self.total_bytes // 2)

    def covers(self, group: Path | None) -> bool:
        """Whether what a process in the cgroup `group` takes is taken from this."""
        return self.group is None or (group is not None and group.is_relative_to(self.group))


@dataclass(frozen=True)
class Pressure:
    """How long tasks waited for memory: in percent of the last 10 seconds, and in seconds since the start.

    `some`: at least one task did; `full`: all did, nothing was worked on.
    """

    some_percent: float
    full_percent: float
    some_s: float
    full_s: float


def bounds(proc: Path = PROC, among: Sequence[Path] | None = None) -> list[Bound]:
    """Return all that limits what this process and its children can have: the machine, and each cgroup on the way up
    that has a limit below the machine's memory.

    Args:
        among: the cgroups as `groups` finds them, which takes longer than to read what they say.
    """
    found = _meminfo(proc)
    machine = Bound("this machine", found["MemTotal"], found["MemAvailable"])
    known = [bound for group in (groups(proc) if among is None else among) if (bound := _bound_of(group)) is not None]
    return [machine, *(bound for bound in known if bound.total_bytes < machine.total_bytes)]


def total_bytes(proc: Path = PROC) -> int:
    """Return the memory that there is for this process: the machine's, or the smallest limit of its cgroups."""
    return min(bound.total_bytes for bound in bounds(proc))


def swap_bytes(proc: Path = PROC) -> int:
    """Return the size of all swap devices."""
    return _meminfo(proc).get("SwapTotal", 0)


def own_group(proc: Path = PROC) -> Path | None:
    """Return the folder of the cgroup that accounts for this process' memory; None where there is none to be seen."""
    return next(iter(groups(proc)), None)


def groups(proc: Path = PROC) -> list[Path]:
    """Return the folders of our memory cgroup and those above it, as far as they can be seen."""
    return list(_groups(proc))


def pressure(proc: Path = PROC) -> Pressure | None:
    """Return the machine's memory pressure; None where the kernel does not tell (CONFIG_PSI, psi=0)."""
    try:
        lines = (proc / "pressure" / "memory").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    told = {line.split()[0]: dict(part.split("=") for part in line.split()[1:]) for line in lines}
    return Pressure(
        some_percent=float(told["some"]["avg10"]),
        full_percent=float(told["full"]["avg10"]),
        some_s=int(told["some"]["total"]) / 1e6,
        full_s=int(told["full"]["total"]) / 1e6,
    )


def _meminfo(proc: Path) -> dict[str, int]:
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def _groups(proc: Path) -> Iterator[Path]:
    """Yield the folders of our memory cgroup and those above it, as far as they can be seen."""
    for root, point, own in _hierarchies(proc):
        # In a container or a cgroup namespace our path may not be below what is mounted; then that is all we can see.
        inside = own.is_relative_to(root) and ".." not in own.parts
        group = point / own.relative_to(root) if inside else point
        while group != point and not group.is_dir():
            group = group.parent
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(point))


def _hierarchies(proc: Path) -> Iterator[tuple[PurePosixPath, Path, PurePosixPath]]:
    """Yield, for each mounted hierarchy that may have the memory controller, its root, mount point, and our path."""
    own: dict[str, PurePosixPath] = {}
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own["cgroup2"] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            own["cgroup"] = PurePosixPath(path)
    mounted: dict[str, tuple[PurePosixPath, Path]] = {}
    for line in _lines(proc / "self" / "mountinfo"):
        left, right = line.split(" - ", 1)
        fstype, _, options = right.split(" ", 2)
        if fstype == "cgroup2" or (fstype == "cgroup" and "memory" in options.split(",")):
            _, _, _, root, point, *_ = left.split(" ")
            mounted.setdefault(fstype, (PurePosixPath(_unescape(root)), Path(_unescape(point))))
    for fstype in ("cgroup", "cgroup2"):
        if fstype in own and fstype in mounted:
            yield *mounted[fstype], own[fstype]


def _bound_of(group: Path) -> Bound | None:
    """Return what a cgroup allows; None if it has no limit, or no memory controller."""
    limits = [_number(group / name) for name in ("memory.limit_in_bytes", "memory.max", "memory.high")]
    used = [_number(group / name) for name in ("memory.usage_in_bytes", "memory.current")]
    known, usage_bytes = [limit for limit in limits if limit is not None], next(filter(None, used), 0)
    if not known:
        return None
    # The page cache is given up before anything is killed, as in MemAvailable; version 1 has the sums with the cgroups
    # below.
    stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))
    kinds = ("inactive_file", "active_file")
    reclaimable_bytes = sum(int(stat.get(f"total_{kind}", stat.get(kind, 0))) for kind in kinds)
    available_bytes = min(known) - max(0, usage_bytes - reclaimable_bytes)
    name = f"the cgroup {group}, limited to {format_size(min(known), binary=True)}"
    return Bound(name, min(known), max(0, available_bytes), group)


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no such file, or where it says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), field)
