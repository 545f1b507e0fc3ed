"""Counters: what they say of a disk, of the devices below it, of a cgroup; and when they say nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import needs_root

from ramtrain.meter import (
    DiskCounters,
    device_of,
    disk_counters,
    own_writes,
    physical_devices,
    settle,
    written_by_cgroup,
)
from ramtrain.system import born_s, mount_of, run_command

COUNTERS = DiskCounters(0.0, "sda", "ext4", 100, 10, {"sda": 100}, "/job", 7, 0)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (replace(COUNTERS, device_bytes=150), 50),
        (replace(COUNTERS, device_bytes=7), None),
        (replace(COUNTERS, device="sdb", device_bytes=150), None),
        (replace(COUNTERS, device_bytes=None), None),
        (replace(COUNTERS, device_bytes=150, cgroup="/other"), 50),
    ],
    ids=["written", "rebooted", "another disk", "no counter", "another cgroup"],
)
def test_counters_that_cannot_be_compared_give_no_figure(after: DiskCounters, expected: int | None) -> None:
    assert after.since(COUNTERS) == expected


def test_a_cgroups_counter_is_compared_within_one_cgroup() -> None:
    assert replace(COUNTERS, cgroup_bytes=17).since(COUNTERS, "cgroup_bytes") == 10
    assert replace(COUNTERS, cgroup="/other", cgroup_bytes=17).since(COUNTERS, "cgroup_bytes") is None


def test_io_stat_is_summed_over_the_devices_that_are_meant() -> None:
    # As the kernel's documentation has it, with a device that only has other controllers' values.
    io_stat = (
        "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
        "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
        "253:0 cost.usage=1\n"
    )
    assert written_by_cgroup(io_stat, {"8:16"}) == 314773504
    assert written_by_cgroup(io_stat, {"8:16", "8:0", "253:0"}) == 314773504 + 299008000
    assert written_by_cgroup(io_stat, set()) == 0


def test_memory_has_no_device(tmp_path: Path) -> None:
    found = disk_counters(Path("/dev/shm"))
    assert (found.device, found.device_bytes, found.filesystem_bytes, found.physical) == (None, None, None, {})
    assert found.filesystem == "tmpfs"


@pytest.fixture(params=["ext4", "xfs"])
def loop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return where a file system of its own is mounted, on a loop device."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    run_command(f"mkfs.{request.param}", *(["-q", "-F"] if request.param == "ext4" else ["-q"]), str(image))
    run_command("mount", "-o", "loop", str(image), str(point))
    yield point
    run_command("umount", str(point))


@needs_root("a loop device")
def test_a_file_system_on_a_loop_device_is_counted_down_to_the_disk_below(loop: Path, tmp_path: Path) -> None:
    below = device_of(tmp_path)
    if below is None:
        pytest.skip("needs a temporary folder on a block device")
    settle(loop)
    before = disk_counters(loop)
    own_before = own_writes()
    (loop / "file").write_bytes(os.urandom(32 << 20))
    settle(loop)
    after = disk_counters(loop)
    assert after.device == Path(mount_of(loop).source).name
    assert list(after.physical) == physical_devices(below)
    assert own_writes().since(own_before).disk_bytes >= 32 << 20
    for counter in ("device_bytes", "filesystem_bytes"):
        written_bytes = after.since(before, counter)
        assert written_bytes is not None
        assert 32 << 20 <= written_bytes < 36 << 20, counter


def test_settling_ends_although_somebody_writes(tmp_path: Path) -> None:
    assert settle(tmp_path) < 31


def test_the_birth_of_a_file_is_before_its_last_write(tmp_path: Path) -> None:
    for folder in (tmp_path, Path("/dev/shm")):
        path = folder / f"ramtrain-test-{os.getpid()}"
        try:
            before = time.time()
            path.write_bytes(b"first")
            time.sleep(0.3)
            path.write_bytes(b"second")
            born = born_s(path)
            if born is None:
                pytest.skip("needs a file system that keeps the birth of files")
            assert before - 0.1 <= born <= path.stat().st_mtime - 0.2
        finally:
            path.unlink()
