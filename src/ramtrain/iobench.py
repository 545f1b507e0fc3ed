"""This disk against this RAM disk: how fast a folder takes data and gives it back, in the patterns of a training.

What is measured, and how it is counted:

* `SEQUENTIAL_WRITE`: one file in blocks of 1 MiB, until fsync(2) returns; bytes by seconds.
* `COLD_READ`: the same file in blocks of 1 MiB once its cached pages are dropped; not where the file system is memory.
* `WARM_READ`: the same once more from the page cache. On a disk this is the speed of memory, not of the disk.
* `RANDOM_WRITE`: 4 KiB at random places of a file that is there in full, fdatasync(2) after each; writes by seconds.
* `SMALL_FILES`: new files of 1 KiB, each written and synced (fsync(2)); files by seconds, their removal left out.
* `SAVES_SYNCED`, `SAVES_WAITED`: what trainers do with checkpoints. Three times a file is written under its final name
  without a sync, copied to a second one (`best_model`), and the older pair deleted. `SAVES_WAITED` is how long the
  trainer waits for that; `SAVES_SYNCED` goes on until syncfs(2) returns, so that the page cache cannot hide what is
  still to be written. Both in seconds for all three, by `size_bytes` comparable where the sizes differ.

What could mislead:

* On tmpfs a sync does nothing, and a power cut takes everything: its syncs by seconds count calls, not safety.
* Virtual disks, and disks with a cache of their own, may say that something is safe when they only hold it in memory;
  syncs by the ten thousand are a sign of that.
* Memory that a virtual machine has not used yet must first be had from its host: a first round on a RAM disk may be
  several times slower than the next. A tmpfs with huge pages is faster than one without, such as /dev/shm.
* A cold read leaves out this system's cache only. The host of a virtual machine, a disk's own cache and ZFS's keep
  theirs. POSIX_FADV_DONTNEED is a request (posix_fadvise(2)), which some file systems ignore.
* syncfs waits for what others have written to the same file system, too; other load shows in every figure. Hence a
  median of a few rounds, with the least and the most.
* Our own loop, where there is no fio, adds Python's time to each call: nothing beside a disk's sync, much beside a RAM
  disk's. Figures of different tools are not for comparing.
* A file system that shares blocks between copies (btrfs, XFS) may do so for the copy of a checkpoint, if Python asks
  it to; a trainer gets the same.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import psutil
from humanfriendly import format_size

from ramtrain.errors import RamTrainError
from ramtrain.ramdisk import MEMORY_FILESYSTEMS, check_own_folder
from ramtrain.system import mount_of, sync_filesystem

log = logging.getLogger(__name__)

SEQUENTIAL_WRITE = "sequential write, fsync"
COLD_READ = "sequential read, cold"
WARM_READ = "sequential read, warm"
RANDOM_WRITE = "4 KiB random writes, fdatasync each"
SMALL_FILES = "1 KiB files, fsync each"
SAVES_SYNCED = "3 checkpoint saves, until synced"
SAVES_WAITED = "3 checkpoint saves, as the trainer sees it"

_OURS = "RamTrain"
_PREFIX = ".ramtrain-benchmark-"
_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = 4096
_PROBE_BYTES = 16 << 20
_ROOM_BYTES = 16 << 20
_FILE_BYTES = 1024
_FILES = 1000
_SAVES = 3
_RANDOM_WRITES = 1 << 16
# How long a test may go on, all its rounds together; a round that has begun is done.
_TEST_S = 10.0
_RANDOM_S = 3.0
_FILES_S = 6.0
# How long all the data of one place may take to write, by the speed of the first of it; a slower disk gets less data.
_DATA_S = 20.0
_FIO_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """One line of the comparison: what was measured where, with what, and the median, least and most of `n` rounds.

    `size_bytes` is what one round wrote or read, where rounds differ the median of them.
    """

    what: str
    place: str
    unit: str
    tool: str
    size_bytes: int
    n: int
    median: float
    min: float
    max: float


def measure_place(
    place: str, folder: Path, rounds: int = 3, size_bytes: int = 256 << 20, say: Callable[[str], None] = log.info
) -> list[Figure]:
    """Measure one folder, a disk's or a RAM disk's; takes up to a minute on a slow disk, seconds in memory.

    Args:
        place: what the figures call it.
        folder: where to measure; nothing is left in it, whatever happens.
        rounds: how often each test is done, less often where that would take more than some ten seconds.
        size_bytes: how large the file of the tests is, rounded down to whole MiB. A disk that would take long gets a
            half, a quarter, and so on; the figures say how much.
        say: told what is about to be measured.

    Raises:
        RamTrainError: too little room, or the folder cannot be written to.
    """
    size_bytes = max(1, size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    try:
        in_memory = mount_of(folder.resolve()).fstype in MEMORY_FILESYSTEMS
        _check_room(folder, size_bytes, in_memory)
        with _private_folder(folder) as private:
            return _Bench(place, private, max(1, rounds), size_bytes, say).measure(in_memory)
    except OSError as error:
        raise RamTrainError(f"{folder} could not be measured: {error}.") from error


def file_bytes(figures: Iterable[Figure]) -> int:
    """Return how large the file of the saves was: with as much at another place, their seconds can be compared."""
    return next(figure.size_bytes for figure in figures if figure.what == SAVES_SYNCED) // (2 * _SAVES)


def room_bytes(size_bytes: int) -> int:
    """Return what files of this size need for a moment: a checkpoint and its copy, and the older pair."""
    return 4 * size_bytes + _ROOM_BYTES


def clear_killed(folder: Path) -> None:
    """Remove what a measurement that was killed has left in a folder: folders of ours by name, owner and mode.

    Raises:
        RamTrainError: one of them is somebody else's.
    """
    for private in folder.glob(f"{_PREFIX}*"):
        check_own_folder(private)
        shutil.rmtree(private)


def _check_room(folder: Path, size_bytes: int, in_memory: bool) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if in_memory:
        free_bytes = min(free_bytes, psutil.virtual_memory().available)
    needed_bytes = room_bytes(size_bytes)
    if free_bytes < needed_bytes:
        raise RamTrainError(
            f"{folder} has {format_size(free_bytes, binary=True)} free, and measuring it needs "
            f"{format_size(needed_bytes, binary=True)} for a moment; free some room, or measure another folder."
        )


@contextmanager
def _private_folder(folder: Path) -> Iterator[Path]:
    """Give a folder that only the user can read, and remove it with all that is in it."""
    private = Path(tempfile.mkdtemp(dir=folder, prefix=_PREFIX))
    try:
        yield private
    finally:
        try:
            shutil.rmtree(private)
        except OSError as error:
            log.warning("%s could not be removed (%s); it can be deleted", private, error)


class _Data:
    """What is written: random bytes with a running number in each 4 KiB, which nothing can compress or find twice."""

    def __init__(self) -> None:
        self._block = bytearray(random.Random(0).randbytes(_BLOCK_BYTES))
        self._numbers = itertools.count(time.time_ns())

    def block(self) -> bytearray:
        """Return the next 1 MiB, valid until the next call."""
        for place, byte in enumerate(self._next_number()):
            self._block[place::_PAGE_BYTES] = bytes([byte]) * (_BLOCK_BYTES // _PAGE_BYTES)
        return self._block

    def start(self, size_bytes: int) -> memoryview:
        """Return the next bytes, no more than 4 KiB, valid until the next call."""
        number = self._next_number()
        self._block[: len(number)] = number
        return memoryview(self._block)[:size_bytes]

    def fill(self, file: BinaryIO, size_bytes: int) -> None:
        """Write `size_bytes`, whole blocks, to `file`."""
        for _ in range(size_bytes // _BLOCK_BYTES):
            file.write(self.block())

    def _next_number(self) -> bytes:
        return next(self._numbers).to_bytes(8, "little")


@dataclass(frozen=True)
class _Round:
    value: float
    size_bytes: int
    tool: str = _OURS


class _FioFailed(Exception):
    """What fio said, or did not say."""


class _Bench:
    """The tests of one place, in a folder of their own."""

    def __init__(self, place: str, folder: Path, rounds: int, size_bytes: int, say: Callable[[str], None]) -> None:
        self._place = place
        self._folder = folder
        self._rounds = rounds
        self._size_bytes = size_bytes
        self._say = say
        self._fio = shutil.which("fio")
        self._data = _Data()
        self._file = folder / "data"

    def measure(self, in_memory: bool) -> list[Figure]:
        self._reduce(self._write(min(self._size_bytes, _PROBE_BYTES)).value)
        figures = [self._sequential_writes()]
        self._reduce(figures[0].median)  # a disk may slow down after the first megabytes
        self._write(self._size_bytes)
        if not in_memory:
            figures.append(self._reads(COLD_READ, self._drop_cached))
        self._read()
        figures.append(self._reads(WARM_READ, lambda: None))
        figures.append(self._random_writes())
        self._file.unlink()
        figures.append(self._small_files())
        figures.extend(self._saves())
        return figures

    def _reduce(self, rate: float) -> None:
        """Halve the size until everything can be written in time at `rate` bytes a second."""
        # A write, a cold read, and the saves in each round; the file to read and the first one are one more.
        times = self._rounds * (2 + 2 * _SAVES) + 1
        while self._size_bytes > _BLOCK_BYTES and self._size_bytes * times > rate * _DATA_S:
            self._size_bytes = max(1, self._size_bytes // 2 // _BLOCK_BYTES) * _BLOCK_BYTES

    def _sequential_writes(self) -> Figure:
        return self._by_fio_or_us(
            SEQUENTIAL_WRITE,
            "B/s",
            lambda: self._write(self._size_bytes),
            lambda: self._by_fio("new", "write", "bw_bytes", "--rw=write", "--bs=1M", "--end_fsync=1", "--unlink=1"),
        )

    def _reads(self, what: str, prepare: Callable[[], None]) -> Figure:
        def ours() -> _Round:
            prepare()
            return self._read()

        def fio() -> _Round:
            prepare()
            return self._by_fio("data", "read", "bw_bytes", "--rw=read", "--bs=1M")

        return self._by_fio_or_us(what, "B/s", ours, fio)

    def _random_writes(self) -> Figure:
        limit_s = _RANDOM_S / self._rounds
        options = (
            "--rw=randwrite",
            f"--bs={_PAGE_BYTES}",
            "--fdatasync=1",
            "--norandommap=1",
            f"--io_size={_RANDOM_WRITES * _PAGE_BYTES}",
            f"--runtime={round(limit_s * 1000)}ms",
        )
        return self._by_fio_or_us(
            RANDOM_WRITE,
            "fsyncs/s",
            lambda: self._write_at_random(limit_s),
            lambda: self._by_fio("data", "write", "iops", *options),
        )

    def _small_files(self) -> Figure:
        self._say(f"{self._place}: {SMALL_FILES}")
        limit_s = _FILES_S / self._rounds
        return self._figure(SMALL_FILES, "files/s", self._repeat(lambda: self._write_small_files(limit_s)))

    def _saves(self) -> list[Figure]:
        self._say(f"{self._place}: {SAVES_SYNCED}")
        synced, waited = zip(*self._repeat(self._save), strict=True)
        return [self._figure(SAVES_SYNCED, "s", list(synced)), self._figure(SAVES_WAITED, "s", list(waited))]

    def _write(self, size_bytes: int) -> _Round:
        self._file.unlink(missing_ok=True)
        started = time.perf_counter()
        with self._file.open("xb") as file:
            self._data.fill(file, size_bytes)
            file.flush()
            os.fsync(file.fileno())
        return _Round(size_bytes / (time.perf_counter() - started), size_bytes)

    def _drop_cached(self) -> None:
        with self._file.open("rb") as file:
            os.fsync(file.fileno())  # only what is written out can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _read(self) -> _Round:
        buffer = bytearray(_BLOCK_BYTES)
        size_bytes = 0
        started = time.perf_counter()
        with self._file.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size_bytes += count
        return _Round(size_bytes / (time.perf_counter() - started), size_bytes)

    def _write_at_random(self, limit_s: float) -> _Round:
        places = random.choices(range(0, self._size_bytes, _PAGE_BYTES), k=_RANDOM_WRITES)
        done, took_s = 0, 0.0
        with self._file.open("r+b", buffering=0) as file:
            started = time.perf_counter()
            while done < len(places) and took_s < limit_s:
                os.pwrite(file.fileno(), self._data.start(_PAGE_BYTES), places[done])
                os.fdatasync(file.fileno())
                done += 1
                took_s = time.perf_counter() - started
        return _Round(done / took_s, done * _PAGE_BYTES)

    def _write_small_files(self, limit_s: float) -> _Round:
        folder = self._folder / "small"
        folder.mkdir()
        done, took_s = 0, 0.0
        started = time.perf_counter()
        while done < _FILES and took_s < limit_s:
            with (folder / f"{done}.json").open("xb", buffering=0) as file:
                file.write(self._data.start(_FILE_BYTES))
                os.fsync(file.fileno())
            done += 1
            took_s = time.perf_counter() - started
        shutil.rmtree(folder)
        return _Round(done / took_s, done * _FILE_BYTES)

    def _save(self) -> tuple[_Round, _Round]:
        """Save as trainers do; return the seconds until it is on the disk, and those that the trainer waits."""
        folder = self._folder / "saves"
        folder.mkdir()
        sync_filesystem(folder)
        older: list[Path] = []
        started = time.perf_counter()
        for number in range(_SAVES):
            checkpoint, best = folder / f"checkpoint_{number}.pth", folder / f"best_model_{number}.pth"
            with checkpoint.open("xb") as file:
                self._data.fill(file, self._size_bytes)
            shutil.copyfile(checkpoint, best)
            for path in older:
                path.unlink()
            older = [checkpoint, best]
        waited_s = time.perf_counter() - started
        sync_filesystem(folder)
        synced_s = time.perf_counter() - started
        shutil.rmtree(folder)
        size_bytes = 2 * _SAVES * self._size_bytes
        return _Round(synced_s, size_bytes), _Round(waited_s, size_bytes)

    def _by_fio_or_us(self, what: str, unit: str, ours: Callable[[], _Round], fio: Callable[[], _Round]) -> Figure:
        self._say(f"{self._place}: {what}")
        if self._fio:
            try:
                return self._figure(what, unit, self._repeat(fio))
            except _FioFailed as error:
                log.warning("%s: fio cannot measure this (%s); RamTrain's own loop does it instead", what, error)
        return self._figure(what, unit, self._repeat(ours))

    def _by_fio(self, name: str, direction: str, key: str, *options: str) -> _Round:
        """Have fio measure the file `name` of our folder; return what it reports as `key`."""
        assert self._fio is not None
        report = _run_fio(self._fio, self._folder, f"--filename={name}", f"--size={self._size_bytes}", *options)
        try:
            counted = report["jobs"][0][direction]
            done = _Round(float(counted[key]), int(counted["io_bytes"]), report["fio version"].replace("-", " ", 1))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _FioFailed(f"its report is not as expected: {error!r}") from error
        if done.value <= 0:
            raise _FioFailed("too fast for its clock")
        return done

    def _repeat(self, once: Callable[[], T]) -> list[T]:
        end = time.monotonic() + _TEST_S
        done = [once()]
        while len(done) < self._rounds and time.monotonic() < end:
            done.append(once())
        return done

    def _figure(self, what: str, unit: str, rounds: list[_Round]) -> Figure:
        values = [one.value for one in rounds]
        return Figure(
            what=what,
            place=self._place,
            unit=unit,
            tool=rounds[0].tool,
            size_bytes=statistics.median_low(one.size_bytes for one in rounds),
            n=len(rounds),
            median=statistics.median(values),
            min=min(values),
            max=max(values),
        )


def _run_fio(program: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run fio in `folder`, since it would take a path with a : in it for two; return its report.

    psync and the page cache are what trainers use, and work on tmpfs, which refuses O_DIRECT on older kernels. A thread
    instead of a process of its own goes when fio is killed. Hints and preallocation are off, as no trainer gives them.
    """
    always = ("--name=ramtrain", "--thread", "--ioengine=psync", "--direct=0", "--invalidate=0")
    argv = (program, "--output-format=json", *always, "--fadvise_hint=0", "--fallocate=none", *options)
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_FIO_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _FioFailed(str(error)) from error
    if done.returncode != 0:
        raise _FioFailed(" ".join(done.stderr.split()) or f"exit status {done.returncode}")
    try:
        # fio puts notes before its report.
        return json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as error:
        raise _FioFailed("it printed no report") from error
