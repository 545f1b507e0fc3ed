"""What memory there is: the machine's, cgroups of both versions, nested, in namespaces, and as the kernel has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import memory_group

from ramtrain import memory
from ramtrain.memory import Bound, Pressure, bounds

MIB = 1 << 20
GIB = 1 << 30
NO_LIMIT = "9223372036854771712\n"


class Machine:
    """A machine with 16 GiB, 12 of them available, as /proc and /sys/fs/cgroup show it; its cgroups are to be made."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "sys fs cgroup"
        (self.proc / "self").mkdir(parents=True)
        kib = {"MemTotal": 16 << 20, "MemFree": 1 << 20, "MemAvailable": 12 << 20, "SwapTotal": 2 << 20}
        text = "".join(f"{name}:{amount:>15} kB\n" for name, amount in kib.items())
        (self.proc / "meminfo").write_text(text + "HugePages_Total:       0\n")

    def is_in(self, path: str, version: int, root: str = "/") -> None:
        """Put the process into a cgroup of a hierarchy that is mounted from `root` on."""
        line = f"0::{path}\n" if version == 2 else f"9:name=systemd:/\n4:cpu,memory:{path}\n0::/\n"
        (self.proc / "self/cgroup").write_text(line)
        point = str(self.cgroups).replace(" ", r"\040")
        fstype, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,cpu,memory")
        (self.proc / "self/mountinfo").write_text(
            f"22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n"
            f"35 31 0:32 {root} {point} rw,relatime shared:3 - {fstype} cgroup {options}\n"
        )
        self.cgroups.mkdir(exist_ok=True)

    def group(self, path: str, **files: int | str) -> Path:
        """Make a cgroup with files such as `memory_max`."""
        folder = self.cgroups / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")
        return folder

    def found(self) -> dict[str, int]:
        """Return what is available by each bound, by the cgroup's path."""
        found = bounds(self.proc)
        return {
            "" if bound.group is None else str(bound.group.relative_to(self.cgroups)): bound.available_bytes
            for bound in found
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_there_is_the_machine(machine: Machine) -> None:
    assert bounds(machine.proc) == [Bound("this machine", 16 * GIB, 12 * GIB)]
    assert memory.total_bytes(machine.proc) == 16 * GIB
    assert memory.swap_bytes(machine.proc) == 2 * GIB
    assert memory.own_group(machine.proc) is None


def test_version_1_nested(machine: Machine) -> None:
    machine.is_in("/job/step", 1)
    machine.group("/", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes=5 * GIB)
    stat = f"cache 5\ninactive_file 7\ntotal_inactive_file {GIB // 2}\ntotal_active_file {GIB // 2}"
    machine.group("/job", memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=3 * GIB, memory_stat=stat)
    own = machine.group("/job/step", memory_limit_in_bytes=8 * GIB, memory_usage_in_bytes=GIB, memory_stat="cache 1")
    assert machine.found() == {"": 12 * GIB, "job/step": 7 * GIB, "job": 2 * GIB}
    assert memory.total_bytes(machine.proc) == 4 * GIB
    assert memory.own_group(machine.proc) == own


def test_version_2_nested_with_a_soft_limit(machine: Machine) -> None:
    machine.is_in("/user.slice/app", 2)
    machine.group("/user.slice", memory_max="max", memory_high=3 * GIB, memory_current=GIB, memory_stat="anon 1")
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}"
    machine.group("/user.slice/app", memory_max=2 * GIB, memory_high="max", memory_current=GIB, memory_stat=stat)
    assert machine.found() == {"": 12 * GIB, "user.slice/app": 3 * GIB // 2, "user.slice": 2 * GIB}


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param("/docker/abc", "/docker/abc", id="a container that sees its own cgroup as the root"),
        pytest.param("/", "/", id="a cgroup namespace"),
        pytest.param("/../other", "/", id="a cgroup outside of the namespace"),
        pytest.param("/docker/abc", "/", id="a path that is not below what is mounted"),
        pytest.param("/docker/abc", "/docker/other", id="another container's mount"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_what_is_mounted_counts(version: int, path: str, root: str, machine: Machine) -> None:
    machine.is_in(path, version, root)
    if version == 1:
        machine.group("/", memory_limit_in_bytes=GIB, memory_usage_in_bytes=MIB, memory_stat="cache 0")
    else:
        machine.group("/", memory_max=GIB, memory_current=MIB, memory_stat="anon 0")
    assert machine.found() == {"": 12 * GIB, ".": GIB - MIB}


def test_a_limit_beyond_the_machine_is_none(machine: Machine) -> None:
    machine.is_in("/a", 2)
    machine.group("/a", memory_max=16 * GIB, memory_current=0, memory_stat="anon 0")
    assert machine.found() == {"": 12 * GIB}


def test_what_is_kept_free() -> None:
    """The larger of 2 GiB and 10 %, but at most half; or what is configured."""
    sizes = {100 * GIB: 10 * GIB, 20 * GIB: 2 * GIB, 5 * GIB: 2 * GIB, GIB: GIB // 2}
    assert {total: Bound("", total, total).reserve_bytes(None) for total in sizes} == sizes
    assert Bound("", GIB, GIB).reserve_bytes(3 * GIB) == 3 * GIB


def test_a_cgroup_counts_for_those_below_it() -> None:
    job = Bound("", GIB, GIB, Path("/sys/fs/cgroup/job"))
    assert job.covers(Path("/sys/fs/cgroup/job"))
    assert job.covers(Path("/sys/fs/cgroup/job/step"))
    assert not job.covers(Path("/sys/fs/cgroup/job2"))
    assert not job.covers(None)
    assert Bound("", GIB, GIB).covers(None)


def test_pressure(machine: Machine) -> None:
    assert memory.pressure(machine.proc) is None
    (machine.proc / "pressure").mkdir()
    (machine.proc / "pressure/memory").write_text(
        "some avg10=12.50 avg60=1.00 avg300=0.10 total=2500000\nfull avg10=3.25 avg60=0.00 avg300=0.00 total=500000\n"
    )
    assert memory.pressure(machine.proc) == Pressure(12.5, 3.25, 2.5, 0.5)


def test_this_machine() -> None:
    found = bounds()
    assert (
        0 < found[0].available_bytes <= found[0].total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    assert memory.total_bytes() <= found[0].total_bytes
    assert memory.swap_bytes() >= 0


@pytest.fixture
def group() -> Iterator[Path]:
    with memory_group(GIB) as folder:
        yield folder


IN_THE_GROUP = """
import pathlib, sys
from ramtrain import memory
pathlib.Path(sys.argv[1], "cgroup.procs").write_text("0")
data = bytearray(b"x") * (100 << 20)
(own,) = [bound for bound in memory.bounds() if bound.group == pathlib.Path(sys.argv[1])]
print(own.total_bytes, own.available_bytes, memory.own_group() == own.group)
"""


def test_a_real_cgroup(group: Path) -> None:
    argv = [sys.executable, "-c", IN_THE_GROUP, str(group)]
    total, available, is_own = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert int(total) == GIB
    assert GIB - 250 * MIB < int(available) < GIB - 100 * MIB, "what it holds is not available"
    assert is_own == "True"
