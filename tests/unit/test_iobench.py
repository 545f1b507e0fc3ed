"""A folder is measured by real writes and reads; each figure says how, and nothing is left behind."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import shutil
import signal
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import needs_root

from ramtrain import iobench
from ramtrain.errors import RamTrainError
from ramtrain.iobench import COLD_READ, RANDOM_WRITE, SAVES_SYNCED, SAVES_WAITED, SMALL_FILES, WARM_READ, Figure
from ramtrain.ramdisk import MEMORY_FILESYSTEMS
from ramtrain.system import mount_of, run_command

SIZE_BYTES = 8 << 20
BY_FIO = (iobench.SEQUENTIAL_WRITE, COLD_READ, WARM_READ, RANDOM_WRITE)
UNITS = {
    iobench.SEQUENTIAL_WRITE: "B/s",
    COLD_READ: "B/s",
    WARM_READ: "B/s",
    RANDOM_WRITE: "fsyncs/s",
    SMALL_FILES: "files/s",
    SAVES_SYNCED: "s",
    SAVES_WAITED: "s",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iobench, "_RANDOM_S", 0.2)
    monkeypatch.setattr(iobench, "_FILES", 50)


@pytest.fixture
def shm() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="ramtrain-test-"))
    yield folder
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert not left, f"left behind: {left}"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "a: disk"
    folder.mkdir()
    if mount_of(folder.resolve()).fstype in MEMORY_FILESYSTEMS:
        pytest.skip(f"needs a disk: {folder} is in memory")
    return folder


@pytest.fixture
def no_fio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def needs_fio() -> None:
    if not shutil.which("fio"):
        pytest.skip("needs fio, which is not installed")


def put_fio(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another program in the place of fio."""
    program = folder / "bin" / "fio"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def measure(folder: Path, place: str = "disk", rounds: int = 2, **more: int) -> dict[str, Figure]:
    figures = iobench.measure_place(place, folder, rounds, **{"size_bytes": SIZE_BYTES, **more})
    assert not list(folder.iterdir())
    assert {figure.place for figure in figures} == {place}
    assert all(0 < figure.min <= figure.median <= figure.max for figure in figures)
    assert all(figure.unit == UNITS[figure.what] for figure in figures)
    return {figure.what: figure for figure in figures}


def tools(figures: dict[str, Figure]) -> dict[str, str]:
    return {what: figure.tool.split(" ")[0] for what, figure in figures.items()}


def test_a_disk_is_measured_with_fio(disk: Path) -> None:
    needs_fio()
    figures = measure(disk, rounds=1)
    assert tools(figures) == {what: "fio" if what in BY_FIO else "RamTrain" for what in UNITS}
    assert figures[COLD_READ].tool == run_command("fio", "--version").strip().replace("-", " ")
    assert [figures[what].size_bytes for what in BY_FIO[:3]] == [SIZE_BYTES] * 3
    assert figures[RANDOM_WRITE].size_bytes % 4096 == 0 < figures[RANDOM_WRITE].size_bytes
    assert figures[SMALL_FILES].size_bytes == 50 * 1024
    assert figures[SAVES_SYNCED].size_bytes == figures[SAVES_WAITED].size_bytes == 6 * SIZE_BYTES
    assert figures[SAVES_WAITED].median < figures[SAVES_SYNCED].median


def test_a_disk_is_measured_without_fio(disk: Path, no_fio: None) -> None:
    figures = measure(disk)
    assert tools(figures) == dict.fromkeys(UNITS, "RamTrain")
    assert {figure.n for figure in figures.values()} == {2}
    assert [figures[what].size_bytes for what in BY_FIO[:3]] == [SIZE_BYTES] * 3
    assert figures[RANDOM_WRITE].size_bytes % 4096 == 0 < figures[RANDOM_WRITE].size_bytes


def test_memory_has_no_cold_read(shm: Path) -> None:
    needs_fio()
    figures = measure(shm, "shm", rounds=1, size_bytes=32 << 20)
    assert list(figures) == [what for what in UNITS if what != COLD_READ]
    assert figures[RANDOM_WRITE].tool.startswith("fio ")
    assert figures[RANDOM_WRITE].size_bytes <= 4096 * iobench._RANDOM_WRITES


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'fio: unrecognized option' >&2; exit 1", "fio: unrecognized option"),
        ("exit 3", "exit status 3"),
        ("echo done", "it printed no report"),
        ("echo '{\"jobs\": []}'", "not as expected"),
        (
            'echo \'{"fio version": "fio-3.33", "jobs": [{"read": {"bw_bytes": 0, "io_bytes": 1}, '
            '"write": {"bw_bytes": 0, "iops": 0, "io_bytes": 1}}]}\'',
            "too fast for its clock",
        ),
    ],
)
def test_a_fio_that_fails_is_replaced_by_our_own_loop(
    script: str,
    said: str,
    shm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_fio(tmp_path, script, monkeypatch)
    assert set(tools(measure(shm, rounds=1)).values()) == {"RamTrain"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert all("fio" in warning and said in warning for warning in warnings)


def test_too_little_room_is_said_before_anything_is_written(disk: Path) -> None:
    free_bytes = shutil.disk_usage(disk).free
    with pytest.raises(RamTrainError, match=r"a: disk has .* free, and measuring it needs .*; free some room"):
        measure(disk, size_bytes=free_bytes // 3)
    assert not list(disk.iterdir())


@needs_root("mounts a tmpfs")
def test_a_ram_disk_larger_than_the_memory_has_only_the_memory(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    total_bytes = psutil.virtual_memory().total
    run_command("mount", "-t", "tmpfs", "-o", f"size={8 * total_bytes}", "test", str(folder))
    try:
        with pytest.raises(RamTrainError, match=r"large has .* free"):
            measure(folder, size_bytes=total_bytes // 3)
    finally:
        run_command("umount", str(folder))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RamTrainError, match=r"missing could not be measured: .*No such file"):
        measure(tmp_path / "missing")


def test_a_slow_disk_gets_less_data(disk: Path, no_fio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iobench, "_DATA_S", 0.001)
    figures = measure(disk)
    assert [figures[what].size_bytes for what in BY_FIO[:3]] == [1 << 20] * 3
    assert figures[SAVES_SYNCED].size_bytes == 6 << 20


def test_a_test_ends_when_its_time_is_up(shm: Path, no_fio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iobench, "_TEST_S", 1e-6)
    monkeypatch.setattr(iobench, "_RANDOM_S", 1e-6)
    monkeypatch.setattr(iobench, "_FILES_S", 1e-6)
    figures = measure(shm)
    assert {figure.n for figure in figures.values()} == {1}
    assert figures[SMALL_FILES].size_bytes == 1024
    assert figures[RANDOM_WRITE].size_bytes == 4096


def test_random_writes_end_at_their_number(shm: Path, no_fio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iobench, "_RANDOM_WRITES", 10)
    assert measure(shm)[RANDOM_WRITE].size_bytes == 10 * 4096


def test_a_cold_read_is_cold_and_a_warm_one_is_warm(disk: Path, no_fio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = iobench._Bench._read
    seen = []

    def look_and_read(bench: iobench._Bench) -> iobench._Round:
        seen.append(cached_share(bench._file))
        return read(bench)

    monkeypatch.setattr(iobench._Bench, "_read", look_and_read)
    measure(disk)
    cold, warm = seen[:2], seen[3:]  # between them one that is not counted
    assert max(cold) < 0.05
    assert min(warm) > 0.95


def cached_share(path: Path) -> float:
    """Return which part of a file is in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(view)
        status = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(view)), pages)
        del start
    assert status == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) / len(pages)


def test_what_is_written_cannot_be_compressed_or_shared(shm: Path, no_fio: None) -> None:
    pages: set[bytes] = set()

    def look(said: str) -> None:
        if said == f"shm: {WARM_READ}":
            (file,) = shm.glob(".ramtrain-benchmark-*/data")
            content = file.read_bytes()
            assert len(content) == SIZE_BYTES
            assert len(zlib.compress(content)) > 0.99 * len(content)
            pages.update(content[start : start + 4096] for start in range(0, len(content), 4096))

    iobench.measure_place("shm", shm, 1, SIZE_BYTES, look)
    assert len(pages) == SIZE_BYTES // 4096


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("moment", [what for what in UNITS if what not in (COLD_READ, SAVES_WAITED)])
def test_nothing_is_left_when_interrupted(moment: str, error: type[BaseException], shm: Path, no_fio: None) -> None:
    def interrupt(said: str) -> None:
        if said == f"shm: {moment}":
            (folder,) = shm.iterdir()
            assert folder.name.startswith(".ramtrain-benchmark-")
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            raise error

    with pytest.raises(error):
        iobench.measure_place("shm", shm, 1, SIZE_BYTES, interrupt)
    assert not list(shm.iterdir())


def test_ctrl_c_while_fio_runs_ends_fio_and_leaves_nothing(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests that a shell started in its background would ignore it. That fio is gone is what `nothing_left` sees.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    put_fio(tmp_path, "echo > new; kill -INT $PPID; exec sleep 60", monkeypatch)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(disk)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(disk.iterdir())
