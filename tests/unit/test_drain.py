"""The drain: when a checkpoint has to come home; that only a whole one does, whatever the trainer does meanwhile."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import REPO, small_config
from workplace import check_folder, spill_at_rest

from ramtrain import drain as drains
from ramtrain import durable, shelf
from ramtrain.checkpoints import Checkpoint, find_checkpoints
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.drain import Drain, Drained, Schedule, bring_home, find_twin
from ramtrain.durable import Kept, read_manifest
from ramtrain.fingerprint import Fingerprint
from ramtrain.meter import ProcessWrites
from ramtrain.ramdisk import Lease, acquire, release
from ramtrain.shelf import DurableCheckpoint, durable_checkpoints
from ramtrain.staging import Stage, stage_project

DAY_S = 86400
MINE = Fingerprint({"project": "/p", "command": ["train"], "threads": None}, {"train.py": "0123456789abcdef"})
ANOTHER = replace(MINE, inputs={"train.py": "fedcba9876543210"})

# -- when: pure


def schedule(seen: list[tuple[float, float]], max_loss_s: float | None = 100.0, drain_s: float = 0.0) -> Schedule:
    """Return the schedule of a training that began at 0, with checkpoints as (saved, seen to be complete)."""
    made = Schedule(max_loss_s, None, safe_s=0.0, drain_s=drain_s)
    for saved_s, now_s in seen:
        made.saw(saved_s, now_s)
    return made


@pytest.mark.parametrize(
    ("made", "not_due_s", "due_s"),
    [
        (schedule([]), 1e6, None),
        (schedule([(10, 10), (20, 20)], max_loss_s=None), 1e6, None),
        (schedule([(10, 10), (20, 20)]), 100, 101),
        (schedule([(10, 11), (20, 21)]), 99, 100),
        (schedule([(10, 10), (20, 25)]), 95, 96),
        (schedule([(25, 25), (50, 50)]), 100, 101),
        (schedule([(40, 40), (81, 81)]), None, 81),
        (schedule([(40, 40), (60, 60)]), 60, 101),
        (schedule([(40, 40), (50, 50), (61, 61)]), None, 61),
        (schedule([(45, 45), (52, 52), (54, 54), (56, 56), (58, 58), (60, 60)]), 60, 101),
        (schedule([(10, 10), (20, 20)], drain_s=30), 70, 71),
        (schedule([(25, 25), (50, 50)], drain_s=25), 50, 76),
        (schedule([(25, 25), (50, 50)], drain_s=26), None, 50),
        (schedule([(10, 10)], drain_s=1000), None, 10),
        (schedule([(150, 151)]), None, 151),
    ],
    ids=[
        "nothing seen",
        "never",
        "the next one comes in time, until it is overdue",
        "the time to notice one counts",
        "the last time to notice one counts",
        "just in time",
        "the next one would come too late",
        "the longest spacing counts, just in time",
        "the longest spacing counts, too late",
        "only the last five spacings count",
        "the drain's time counts",
        "the drain's time counts, just in time",
        "the drain's time counts, too late",
        "a drain longer than the bound cannot begin earlier than at once",
        "the first came later than the bound",
    ],
)
def test_a_checkpoint_is_brought_home_when_waiting_for_the_next_would_break_the_bound(
    made: Schedule, not_due_s: float | None, due_s: float | None
) -> None:
    if not_due_s is not None:
        assert not made.is_due(not_due_s)
    if due_s is not None:
        assert made.is_due(due_s)


@pytest.mark.parametrize(("drain_s", "due"), [(0, False), (5, False), (6, True), (1000, True)])
def test_what_is_on_the_disk_is_not_due_and_the_bound_counts_from_there(drain_s: float, due: bool) -> None:
    made = schedule([(90, 90)])
    assert made.is_due(90)
    made.drained(90, began_s=90, took_s=drain_s, size_bytes=1)
    assert not made.is_due(1e6), "there is no newer one"
    made.saw(95, 95)
    assert made.is_due(96) == due
    assert made.is_due(191)
    made.saw(20, 97)
    assert made.newest_s == 95, "an older one that is found later is not the newest"


@pytest.mark.parametrize(
    ("budget_bytes", "size_bytes", "free_s"),
    [(None, 1 << 40, 0), (DAY_S, 50, 1050), (DAY_S, 0, 1000), (10 * DAY_S, 50, 1005)],
)
def test_the_write_budget_spreads_what_is_written_over_the_day(
    budget_bytes: int | None, size_bytes: int, free_s: float
) -> None:
    made = Schedule(100.0, budget_bytes, safe_s=0.0)
    assert made.allows(0)
    made.drained(900, began_s=1000, took_s=5, size_bytes=size_bytes)
    assert made.allows(free_s)
    assert budget_bytes is None or not made.allows(free_s - 1)


@dataclass(frozen=True)
class Simulated:
    """What came of a simulated training; seconds. `drains` are the times when they began, `sizes` what they wrote."""

    max_loss_s: float
    spacing_s: float
    drain_s: float
    notice_s: float
    worst_loss_s: float
    drains: list[float]


def simulate(chance: random.Random, write_budget_bytes: int | None = None) -> Simulated:
    """Train with random spacings and drain times, from far below the bound to above it; each drain writes one byte."""
    max_loss_s = 10 ** chance.uniform(1, 4)
    spacing_s, jitter = max_loss_s * 10 ** chance.uniform(-1.7, 0.5), chance.choice([0, 0.2, 1])
    drain_s, drain_jitter = max_loss_s * 10 ** chance.uniform(-2, 0.3), chance.choice([0, 0.5])
    settle_s, tick_s = chance.choice([0, 0.005, 0.05]) * max_loss_s, chance.uniform(0.02, 0.1) * max_loss_s
    made = Schedule(max_loss_s, write_budget_bytes, safe_s=0.0)
    now_s = saved_s = worst_s = longest_spacing_s = longest_drain_s = 0.0
    waiting, began = [], []
    while now_s < 15 * max(max_loss_s, spacing_s):
        while saved_s <= now_s:
            before_s, saved_s = saved_s, saved_s + spacing_s * chance.uniform(1 - jitter, 1 + jitter) + 1e-6
            longest_spacing_s = max(longest_spacing_s, saved_s - before_s)
            waiting.append(saved_s)
        while waiting and waiting[0] + settle_s <= now_s:
            made.saw(waiting.pop(0), now_s)
        took_s = tick_s
        if made.is_due(now_s) and made.allows(now_s):
            took_s = drain_s * chance.uniform(1 - drain_jitter, 1 + drain_jitter)
            longest_drain_s = max(longest_drain_s, took_s)
            began.append(now_s)
        worst_s = max(worst_s, now_s + took_s - made.safe_s)
        if began[-1:] == [now_s]:
            made.drained(made.newest_s, now_s, took_s, size_bytes=1)
        now_s += took_s
    return Simulated(max_loss_s, longest_spacing_s, longest_drain_s, settle_s + 2 * tick_s, worst_s, began)


@pytest.fixture(scope="module")
def trainers() -> list[Simulated]:
    """Return a thousand simulated trainings, the same in each session."""
    return [simulate(random.Random(seed)) for seed in range(1000)]


def test_the_bound_holds_for_a_thousand_trainers(trainers: list[Simulated]) -> None:
    """At most the bound, or the longest spacing where that is more, and the time of one drain, is ever at stake.

    Where a spacing and a drain together take longer than the bound, it is at most a spacing and two drains.
    """
    possible = [trainer for trainer in trainers if trainer.spacing_s + trainer.drain_s <= trainer.max_loss_s]
    assert 200 < len(possible) < 800, "both kinds are tried"
    for trainer in trainers:
        most_s = max(trainer.max_loss_s, trainer.spacing_s)
        if trainer not in possible:
            most_s = max(most_s, trainer.spacing_s + trainer.drain_s)
        assert trainer.worst_loss_s <= most_s + trainer.drain_s + trainer.notice_s, trainer


def test_drains_are_no_more_than_the_bound_needs(trainers: list[Simulated]) -> None:
    for trainer in trainers:
        least_s = trainer.max_loss_s - 2 * trainer.spacing_s - trainer.drain_s - 2 * trainer.notice_s
        between = [after - before for before, after in zip(trainer.drains, trainer.drains[1:], strict=False)]
        assert trainer.drains
        assert min(between, default=least_s) >= least_s - 1e-9, trainer


def test_the_write_budget_is_kept_whatever_the_bound() -> None:
    for seed in range(50):
        trainer = simulate(random.Random(seed), write_budget_bytes=100)
        between = [after - before for before, after in zip(trainer.drains, trainer.drains[1:], strict=False)]
        assert min(between, default=DAY_S) >= DAY_S / 100, trainer


# -- what: on a RAM disk, with threads and trainers

BLOCK = 4096
BLOCKS = 300


def versioned(version: int, blocks: int = BLOCKS) -> bytes:
    """Return content that carries its version in each eight bytes."""
    return struct.pack("<Q", version) * (BLOCK // 8 * blocks)


def version_in(content: bytes, blocks: int = BLOCKS) -> int:
    """Return the version that content carries; all of it must be there, and of that version alone."""
    assert len(content) == BLOCK * blocks
    (version,) = set(struct.unpack(f"<{len(content) // 8}Q", content))
    return version


def zipped(version: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", versioned(version))
    return buffer.getvalue()


def version_of(path: Path) -> int:
    """Return the version that a checkpoint carries; it must be whole."""
    if path.suffix == ".pth":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            return version_in(archive.read("data"))
    return version_in(path.read_bytes())


@dataclass(frozen=True)
class Place:
    """A run with a RAM disk, its project copied there."""

    run: Run
    lease: Lease
    stage: Stage

    @property
    def ram(self) -> Path:
        """The project in RAM."""
        return Path(self.stage.ram)

    def write(self, name: str, content: bytes) -> Path:
        path = self.ram / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def spill(self, *names: str) -> None:
        """Move files to the disk, as the guard does."""
        for name in names:
            spill_at_rest(self.ram / name, self.ram / name, Path(self.stage.spilled))

    @property
    def on_disk(self) -> list[DurableCheckpoint]:
        """The durable checkpoints, the newest first; each must be what its manifest says."""
        found = durable_checkpoints(self.run.run)
        for one in found:
            check_folder(one.folder)
        return found

    @property
    def paths(self) -> list[str]:
        """Which checkpoints are durable, the newest first."""
        return [one.checkpoint for one in self.on_disk]

    def drain(self, kind: type[Drain] = Drain, **protect: Any) -> Drain:
        """Return a drain that brings every complete checkpoint home at once, unless `protect` says otherwise."""
        protection = replace(self.run.protect, **{"max_loss_s": 0.01, **protect})
        run = replace(self.run, protect=protection)
        made = kind(run, self.lease, self.stage, lambda: MINE, lambda: [psutil.Process()], lambda: {"step": "7"})
        time.sleep(0.01)  # the time of a file lags behind by up to a tick of the kernel
        return made


@contextlib.contextmanager
def a_place(project: Path, workdir: Path) -> Iterator[Place]:
    """Give a run with its project copied to a RAM disk in /dev/shm."""
    changes = {
        "ramdisk.backend": "shm",
        "staging": "copy",
        "project.trainer": "coqui",
        "project.checkpoints": ["out/*.bin", "out/*.pth", "out/ck-*"],
    }
    (run,) = load_runs(complete_config(small_config(project, **changes), REPO, "test"), REPO).values()
    lease = acquire(run, workdir)
    try:
        yield Place(run, lease, stage_project(run, lease))
    finally:
        release(lease)


@pytest.fixture
def place(project: Path, workdir: Path) -> Iterator[Place]:
    with a_place(project, workdir) as place:
        yield place


@pytest.fixture(autouse=True)
def fast_and_sound(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look more often than usual, wait less long for a file to hold still; no thread may die of a defect."""
    values = {"_TICK_S": 0.005, "_SETTLE_S": 0.1, "_SETTLE_FOLDER_S": 0.2, "_LOOKING_SHARE": 1.0, "_RETRY_S": 0.05}
    for name, value in values.items():
        monkeypatch.setattr(drains, name, value)
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info], "a defect"


@contextlib.contextmanager
def at_work(drain: Drain) -> Iterator[Drain]:
    """Have a drain work until the end of the block."""
    drain.start()
    try:
        yield drain
    finally:
        drain.finish(with_newest=False)
        assert drain.has_ended(wait_s=30)


def wait_until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to it within {within_s} s"
        time.sleep(0.005)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# What a trainer does to its checkpoint: versions as above, in eight pieces; it rests after each tenth.
REWRITE = """
import io, os, struct, sys, time, zipfile
path, way, blocks, block = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("begun", flush=True)
version = 0
while True:
    version += 1
    began = time.monotonic()
    content = struct.pack("<Q", version) * (block // 8 * blocks)
    if path.endswith(".pth"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data", content)
        content = buffer.getvalue()
    pieces = [content[at : at + len(content) // 8 + 1] for at in range(0, len(content), len(content) // 8 + 1)]
    target = path + ".new" if way == "renamed" else path
    file = open(target, "wb", buffering=0)
    for piece in pieces:
        file.write(piece)
        if way == "closed in between":
            file.close()
            file = open(target, "ab", buffering=0)
        time.sleep(0.0015)
    file.close()
    if way == "renamed":
        os.replace(target, path)
    if way == "deleted":
        time.sleep(0.01 if version % 4 else 0.2)
        os.unlink(path)
    else:
        time.sleep(max(0, 0.02 - (time.monotonic() - began)))
    if version % 10 == 0 and way != "deleted":
        time.sleep(0.25)
"""


@contextlib.contextmanager
def rewriting(path: Path, way: str) -> Iterator[psutil.Process]:
    """Run a trainer that overwrites its checkpoint all the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-I", "-c", REWRITE, str(path), way, str(BLOCKS), str(BLOCK)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as trainer:
        try:
            assert trainer.stdout.readline()
            yield psutil.Process(trainer.pid)
        finally:
            trainer.kill()


@pytest.mark.parametrize("name", ["out/last.pth", "out/last.bin"], ids=["zip", "unknown kind"])
@pytest.mark.parametrize("way", ["in place", "closed in between", "renamed"])
def test_a_checkpoint_that_is_overwritten_all_the_time_comes_home_as_one_version(
    name: str, way: str, place: Place
) -> None:
    drain = place.drain(keep=1000)
    with rewriting(place.ram / name, way) as trainer:
        drain.processes = lambda: [trainer]
        with at_work(drain):
            time.sleep(0.9)
            wait_until(lambda: drain.result.checkpoints > 1)
    assert len(place.on_disk) == drain.result.checkpoints
    for one in place.on_disk:
        path = one.folder / shelf.IN_PROJECT / name
        assert version_of(path) > 0
        assert path.stat().st_mtime_ns / 1e9 == one.saved_s, "it is the one that it is said to be"


def test_a_checkpoint_that_is_deleted_when_it_is_complete_comes_home_whole_or_not_at_all(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    drain = place.drain(keep=1000)
    with rewriting(place.ram / "out/ck.pth", "deleted") as trainer:
        drain.processes = lambda: [trainer]
        with at_work(drain):
            time.sleep(1)
            wait_until(lambda: drain.result.checkpoints > 1)
    assert len(place.on_disk) == drain.result.checkpoints
    assert all(version_of(one.folder / shelf.IN_PROJECT / "out/ck.pth") for one in place.on_disk)
    assert not warnings(caplog)
    assert not list(shelf.shelf(place.run.run).glob(".*"))


class Interfering(Drain):
    """A drain during whose copy, after its first piece, something happens to the checkpoint."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.interfere: Callable[[], object] | None = None
        self.is_over = threading.Event()

    def _bring_newest(self) -> None:
        was_to_interfere = self.interfere is not None
        super()._bring_newest()
        if was_to_interfere and self.interfere is None:
            self.is_over.set()

    def _stop_if_cancelled(self) -> None:
        interfere, self.interfere = self.interfere, None
        if interfere:
            interfere()
        super()._stop_if_cancelled()


def overwrite(path: Path, kept: contextlib.ExitStack) -> None:
    kept.enter_context(path.open("wb", buffering=0)).write(versioned(2))


def cut(path: Path, kept: contextlib.ExitStack) -> None:
    kept.enter_context(path.open("wb", buffering=0)).write(versioned(2)[: -2 * BLOCK])


def append(path: Path, kept: contextlib.ExitStack) -> None:
    kept.enter_context(path.open("ab", buffering=0)).write(b"more")


def open_it(path: Path, kept: contextlib.ExitStack) -> None:
    kept.enter_context(path.open("r+b"))


def map_it(path: Path, kept: contextlib.ExitStack) -> None:
    with path.open("r+b") as file:
        kept.enter_context(mmap.mmap(file.fileno(), 0))


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        cut,
        append,
        open_it,
        map_it,
    ],
)
def test_one_that_is_written_to_while_it_is_copied_is_dropped_and_the_older_stays(
    change: Callable[[Path, contextlib.ExitStack], None],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(durable, "_CHUNK_BYTES", BLOCK)
    with contextlib.ExitStack() as kept, at_work(place.drain(Interfering)) as drain:
        place.write("out/a.bin", versioned(0))
        wait_until(lambda: drain.result.checkpoints)
        drain.interfere = lambda: change(place.ram / "out/b.bin", kept)
        place.write("out/b.bin", versioned(1))
        assert drain.is_over.wait(30)
        time.sleep(0.05)
        assert place.paths == ["out/a.bin"]
        assert os.listdir(shelf.shelf(place.run.run)) == [place.on_disk[0].folder.name]
        assert (drain.result.checkpoints, drain.result.dropped) == (1, 1)
        assert not warnings(caplog)
        kept.close()
        place.write("out/b.bin", versioned(3))
        wait_until(lambda: drain.result.checkpoints == 2)
    (newer,) = place.on_disk
    assert version_of(newer.folder / "project/out/b.bin") == 3


@pytest.mark.parametrize("way", ["unlinked", "replaced"])
def test_one_that_is_deleted_while_it_is_copied_comes_home_whole(
    way: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_CHUNK_BYTES", BLOCK)
    drain = place.drain(Interfering)
    path = place.write("out/b.pth", zipped(1))

    def interfere() -> None:
        if way == "unlinked":
            path.unlink()
        else:
            place.write("out/tmp", b"half").replace(path)

    drain.interfere = interfere
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
    (one,) = place.on_disk
    assert version_of(one.folder / "project/out/b.pth") == 1
    assert drain.result.dropped == 0


FOLDER = {
    "model-00001-of-00002.safetensors": b"",
    "model-00002-of-00002.safetensors": b"",
    "optimizer.pt": b"",
    "rng/state_0.pth": b"",
    "trainer_state.json": b"{}",
}


def write_folder(place: Place, name: str, version: int) -> None:
    """Write a checkpoint as Hugging Face's Trainer does: a folder with several files."""
    for file in FOLDER:
        place.write(f"{name}/{file}.bin", versioned(version, blocks=2))


@pytest.mark.parametrize(
    ("what", "comes"),
    [
        ("added", False),
        ("added and spilled", False),
        ("changed", False),
        ("spilled", True),
        ("a link added", True),
        ("a pipe added", True),
        ("renamed", True),
        ("removed", True),
    ],
)
def test_a_folder_that_is_written_to_while_it_is_copied_is_dropped(
    what: str, comes: bool, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(durable, "_CHUNK_BYTES", BLOCK)
    with contextlib.ExitStack() as kept, at_work(place.drain(Interfering)) as drain:
        place.write("out/ck-1/model.bin", versioned(0))

        def interfere() -> None:
            if what == "added":
                overwrite(place.ram / "out/ck-2/scheduler.pt", kept)
            elif what == "added and spilled":
                place.write("out/ck-2/scheduler.pt", versioned(2))
                place.spill("out/ck-2/scheduler.pt")
            elif what == "spilled":
                place.spill("out/ck-2/optimizer.pt.bin", "out/ck-2/trainer_state.json.bin")
            elif what == "changed":  # the last to be copied, before its turn
                overwrite(place.ram / "out/ck-2/trainer_state.json.bin", kept)
            elif what == "a link added":
                (place.ram / "out/ck-2/latest").symlink_to("optimizer.pt.bin")
            elif what == "a pipe added":
                os.mkfifo(place.ram / "out/ck-2/pipe")
            elif what == "renamed":  # with all that is around it
                (place.ram / "out").rename(place.ram / "elsewhere")
            else:
                shutil.rmtree(place.ram / "out/ck-2")

        wait_until(lambda: drain.result.checkpoints)
        drain.interfere = interfere
        write_folder(place, "out/ck-2", 5)
        assert drain.is_over.wait(30)
        assert (drain.result.checkpoints, drain.result.dropped) == ((2, 0) if comes else (1, 1))
        assert place.paths == ["out/ck-2" if comes else "out/ck-1"]
    if comes:
        found = {str(path.relative_to(place.on_disk[0].folder)) for path in place.on_disk[0].folder.rglob("*.bin")}
        assert found == {f"project/out/ck-2/{file}.bin" for file in FOLDER}
        for path in found:
            assert version_in((place.on_disk[0].folder / path).read_bytes(), blocks=2) == 5
    assert not warnings(caplog)


@pytest.mark.parametrize("hold", [open_it, map_it])
@pytest.mark.parametrize("name", ["out/a.bin", "out/a.pth", "out/ck-1/a.bin"])
def test_one_that_somebody_may_still_write_to_is_not_complete(
    hold: Callable[[Path, contextlib.ExitStack], None], name: str, place: Place
) -> None:
    drain = place.drain()
    path = place.write(name, zipped(1) if name.endswith(".pth") else versioned(1))
    with contextlib.ExitStack() as kept:
        hold(path, kept)
        with at_work(drain):
            time.sleep(0.3)
            assert (drain.newest, drain.result.checkpoints) == (None, 0)
            kept.close()
            wait_until(lambda: drain.result.checkpoints)
    assert drain.result.dropped == 0


@pytest.mark.parametrize(
    ("name", "settle"), [("out/a.bin", "_SETTLE_S"), ("out/ck-1/a.bin", "_SETTLE_FOLDER_S")], ids=["file", "folder"]
)
def test_one_that_does_not_tell_its_end_has_to_hold_still_for_a_while(
    name: str, settle: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, settle, 0.5)
    with at_work(place.drain()) as drain:
        for number in range(10):
            path = place.write(name, versioned(number))
            time.sleep(0.03)
            assert drain.newest is None or time.time() - path.stat().st_mtime > 0.4
        wait_until(lambda: drain.result.checkpoints)
        assert time.time() - path.stat().st_mtime >= 0.49
    assert version_of(place.on_disk[0].folder / shelf.IN_PROJECT / name) == 9


def test_the_best_model_is_at_home_before_the_checkpoint_that_goes_on_from_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in between, the checkpoint before it is gone on with, and its best model is still there."""
    place.write("out/best_model.pth", zipped(1))
    place.write("out/ck_2.pth", zipped(2))
    products = replace(place.run.products, best=("best_model.pth",))
    made: list[str] = []
    rename = durable.DISK.rename

    def note_and_rename(source: Path, target: Path) -> None:
        made.append(target.name)
        rename(source, target)

    monkeypatch.setattr(durable.DISK, "rename", note_and_rename)
    keep(replace(place, run=replace(place.run, products=products)), "out/ck_2.pth")
    assert [name.rpartition("-")[2] for name in made if name.endswith(".pth")] == ["best_model.pth", "ck_2.pth"]


def test_a_copy_under_another_name_is_not_brought_home_again(place: Place) -> None:
    with at_work(place.drain()) as drain:
        numbered = place.write("out/best_model_64.pth", zipped(1))
        wait_until(lambda: drain.result.checkpoints)
        shutil.copyfile(numbered, place.ram / "out/best_model.pth")
        assert (place.ram / "out/best_model.pth").stat().st_mtime_ns > numbered.stat().st_mtime_ns
        wait_until(lambda: drain.result.duplicates)
        time.sleep(0.05)
    assert place.paths == ["out/best_model_64.pth"]
    assert (drain.result.checkpoints, drain.result.duplicates, drain.result.skipped) == (1, 1, 0)


def keep(place: Place, path: str, fingerprint: Fingerprint = MINE) -> Path:
    """Make a checkpoint that is in RAM durable."""
    (found,) = find_checkpoints(place.stage, [path])
    about = shelf.about(path, found.saved_s, {}, fingerprint)
    return bring_home(place.run.run, found, place.stage, place.lease, place.run.products, lambda: about)


@pytest.mark.parametrize(
    ("files", "is_twin"),
    [
        ({"out/b.bin": versioned(1)}, True),
        ({"out/b.bin": versioned(1)[:-1] + b"x"}, False),
        ({"out/b.bin": versioned(1, BLOCKS - 1)}, False),
        ({"out/a.bin.bin": versioned(1)}, True),
        ({"out/ck-2/a": b"1", "out/ck-2/b": b"2"}, False),
        ({"out/ck-1.bin/a": versioned(1)}, True),
    ],
    ids=["same", "last byte", "shorter", "a name that begins like it", "a folder", "a folder of one file"],
)
def test_only_the_same_contents_are_a_twin(files: dict[str, bytes], is_twin: bool, place: Place) -> None:
    place.write("out/a.bin", versioned(1))
    folder = keep(place, "out/a.bin")
    for name, content in files.items():
        place.write(name, content)
    newest = find_checkpoints(place.stage, ["out/*"])[0]
    assert find_twin(place.run.run, newest, place.stage, ANOTHER) is None, "another training's"
    twin = find_twin(place.run.run, newest, place.stage, MINE)
    assert (twin and twin.folder) == (folder if is_twin else None)
    shutil.rmtree(place.ram / "out")
    assert find_twin(place.run.run, newest, place.stage, MINE) is None, "it is gone"


def test_contents_are_compared_not_times_and_only_those_of_the_checkpoint(place: Place) -> None:
    place.write("out/ck-1/a", b"one")
    place.write("out/ck-1-logs/trainer_0_log.txt", b"of its own")
    folder = keep(place, "out/ck-1")
    before = (place.ram / "out/ck-1/a").stat()
    for name, content in {"out/ck-2/a": b"one", "out/ck-3/a": b"two"}.items():
        os.utime(place.write(name, content), ns=(before.st_atime_ns, before.st_mtime_ns))
    for name, expected in {"out/ck-2": folder, "out/ck-3": None}.items():
        (found,) = find_checkpoints(place.stage, [name])
        twin = find_twin(place.run.run, found, place.stage, MINE)
        assert (twin and twin.folder) == expected


def test_the_latest_wins_and_those_before_it_are_skipped(place: Place) -> None:
    drain = place.drain()
    for number in (1, 2, 3):
        place.write(f"out/ck_{number}.pth", zipped(number))
        time.sleep(0.01)
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
        time.sleep(0.05)
    assert place.paths == ["out/ck_3.pth"]
    assert (drain.result.checkpoints, drain.result.skipped, drain.result.dropped) == (1, 2, 0)


@pytest.mark.parametrize("kept", [1, 2])
def test_older_ones_go_only_when_the_newer_one_is_there(
    kept: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    rename = durable.DISK.rename

    def look_and_rename(source: Path, target: Path) -> None:
        seen.append(sorted(path.name[20:] for path in shelf.shelf(place.run.run).glob("[0-9]*")))
        rename(source, target)

    monkeypatch.setattr(durable.DISK, "rename", look_and_rename)
    with at_work(place.drain(keep=kept)) as drain:
        for number in range(1, 5):
            place.write(f"out/ck_{number}.pth", zipped(number))
            wait_until(lambda number=number: drain.result.checkpoints == number)
    newest = [f"ck_{number}.pth" for number in range(1, 5)]
    assert [Path(path).name for path in reversed(place.paths)] == newest[4 - kept :]
    for number in range(1, 5):
        there = [names for names in seen if f"ck_{number}.pth" in names and f"ck_{number + 1}.pth" not in names]
        assert all(set(newest[max(0, number - kept) : number]) <= set(names) for names in there)
    assert max(map(len, seen)) == kept + 1, "the newer one was there before the older one went"


def test_what_was_made_durable_is_noted_with_its_hashes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "_MOST_DURABLE", 2)
    with at_work(place.drain(keep=3)) as drain:
        for number in (1, 2, 3):
            place.write(f"out/ck_{number}.pth", zipped(number))
            wait_until(lambda number=number: drain.result.checkpoints == number)
    assert [entry.checkpoint for entry in drain.result.durable] == ["out/ck_2.pth", "out/ck_3.pth"]
    for entry, kept in zip(drain.result.durable, reversed(place.on_disk[:2]), strict=True):
        assert entry.files == kept.files
        assert datetime.fromisoformat(entry.saved).timestamp() == pytest.approx(kept.saved_s, abs=0.001)
    content = json.loads(json.dumps(asdict(drain.result)))
    assert Drained.from_dict(content) == drain.result
    del content["durable"]
    assert Drained.from_dict(content).durable == [], "of an older version"


def test_only_those_of_the_same_training_are_counted(place: Place) -> None:
    place.write("out/theirs.bin", versioned(1))
    os.utime(place.ram / "out/theirs.bin", (1e9, 1e9))
    theirs = keep(place, "out/theirs.bin", ANOTHER)
    with at_work(place.drain()) as drain:
        for number in (1, 2, 3):
            place.write(f"out/ck_{number}.pth", zipped(number))
            wait_until(lambda number=number: drain.result.checkpoints == number)
    assert place.paths == ["out/ck_3.pth", "out/theirs.bin"]
    assert theirs.is_dir()


@pytest.mark.parametrize(
    "folder",
    [
        "output/run-a",
        "output/run b ü",
        "output/run[1]",
    ],
)
def test_what_it_cannot_be_resumed_without_and_the_logs_come_along_at_their_paths(folder: str, place: Place) -> None:
    there = {
        f"{folder}/config.json": b"{}",
        f"{folder}/checkpoint_10.pth": zipped(1),
        f"{folder}/trainer_0_log.txt": b"epoch 1\n",
        f"{folder}/events.out.tfevents.1": b"event",
        "output/older/trainer_1_log.txt": b"epoch 0\n",
    }
    drain = place.drain()
    for name, content in {**there, "output/older/config.json": b"not its own", f"{folder}/other.txt": b"x"}.items():
        place.write(name, content)
    (place.ram / folder / "trainer_9_log.txt").symlink_to("/etc/hostname")
    (Path(place.lease.folder) / shelf.TRAINER_LOG).write_bytes(b"said\n")
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
    (one,) = place.on_disk
    came = {str(path.relative_to(one.folder)): path.read_bytes() for path in one.folder.rglob("*") if path.is_file()}
    manifest = json.loads(came.pop("manifest.json"))
    assert came == {**{f"project/{name}": content for name, content in there.items()}, "train.log": b"said\n"}
    assert manifest["checkpoint"] == f"{folder}/checkpoint_10.pth"
    assert manifest["progress"] == {"step": "7"}
    assert manifest["fingerprint"] == asdict(MINE)
    assert (place.ram / folder / "checkpoint_10.pth").stat().st_mtime_ns / 1e9 == manifest["saved_s"]


def test_a_log_that_grows_meanwhile_does_not_matter(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_CHUNK_BYTES", BLOCK)
    drain = place.drain(Interfering)
    place.write("out/ck.pth", zipped(1))
    log = place.write("out/trainer_0_log.txt", b"epoch 1\n" * BLOCK)

    def grow() -> None:
        with log.open("ab") as file:
            file.write(b"epoch 2\n")
        drain.interfere = grow

    drain.interfere = grow
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
    content = (place.on_disk[0].folder / "project/out/trainer_0_log.txt").read_bytes()
    assert content.startswith(b"epoch 1\n" * BLOCK + b"epoch 2\n")
    assert log.read_bytes().startswith(content)


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.DISK, "write", refuse)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 4096))


def less_and_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(1 << 20, 0, -4096))
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(drains.shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, next(left, 0)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (full, "No space left on device"),
        (no_room, "has 4 KiB free, and 1.17 MiB are to come home"),
        (less_and_less_room, "free, and 1.17 MiB are to come home"),
    ],
)
def test_a_full_disk_is_warned_of_once_and_tried_again(
    spoil: Callable[[pytest.MonkeyPatch], None], said: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with at_work(place.drain()) as drain:
        place.write("out/a.bin", versioned(1))
        wait_until(lambda: drain.result.checkpoints)
        tries = []
        drain.fingerprint = lambda: tries.append(1) or MINE
        with pytest.MonkeyPatch.context() as monkeypatch:
            spoil(monkeypatch)
            place.write("out/b.bin", versioned(2))
            wait_until(lambda: len(tries) > 3)
            assert place.paths == ["out/a.bin"]
        wait_until(lambda: drain.result.checkpoints == 2)
    assert place.paths == ["out/b.bin"]
    assert os.listdir(shelf.shelf(place.run.run)) == [place.on_disk[0].folder.name]
    (warning,) = warnings(caplog)
    assert said in warning
    assert "The training goes on; a power cut may cost more than max_loss" in warning


def test_never_means_that_nothing_is_written_to_the_disk(place: Place, workdir: Path) -> None:
    (Path(place.lease.folder) / shelf.TRAINER_LOG).write_bytes(b"said\n")
    drain = place.drain(max_loss_s=None)
    drain.start()
    place.write("out/a.pth", zipped(1))
    time.sleep(0.01)
    place.write("out/a.bin", versioned(1))
    wait_until(lambda: drain.newest and drain.newest.path == "out/a.bin")
    time.sleep(0.1)
    drain.finish(with_newest=True)
    assert drain.has_ended(wait_s=30)
    assert list(workdir.iterdir()) == []
    assert drain.result.checkpoints == drain.result.writes.disk_bytes == 0


@pytest.mark.parametrize(
    ("bring_newest", "expected"), [(True, ["out/b.bin", "out/a.pth"]), (False, ["out/a.pth"])], ids=["yes", "no"]
)
def test_the_newest_comes_home_in_the_end_if_that_is_wanted(
    bring_newest: bool, expected: list[str], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    drain = place.drain(write_budget_bytes=1 << 20, keep=9)
    drain.start()
    place.write("out/a.pth", zipped(1))
    wait_until(lambda: drain.result.checkpoints)
    place.write("out/a_2.pth", zipped(2))
    wait_until(lambda: warnings(caplog))
    time.sleep(0.05)
    place.write("out/b.bin", versioned(3))
    drain.finish(bring_newest)
    assert drain.has_ended(wait_s=30)
    assert place.paths == expected, "also one that has not held still for long: nobody writes any more"
    (warning,) = warnings(caplog)
    assert "protect.write_budget leaves no room for a durable checkpoint until" in warning


@pytest.mark.parametrize("name", ["out/b.pth", "out/ck-2/b.pth"], ids=["file", "folder"])
def test_one_that_was_cut_short_does_not_come_home_however_long_it_holds_still(name: str, place: Place) -> None:
    drain = place.drain()
    drain.start()
    place.write("out/a.pth", zipped(1))
    wait_until(lambda: drain.result.checkpoints)
    place.write(name, zipped(2)[:-30])
    time.sleep(0.3)
    drain.finish(with_newest=True)
    assert drain.has_ended(wait_s=30)
    assert drain.newest.path == "out/a.pth"
    assert place.paths == ["out/a.pth"]


def test_a_drain_that_is_cancelled_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_CHUNK_BYTES", BLOCK)
    drain = place.drain(Interfering)
    copied: list[Kept] = []
    drain.interfere = drain.cancel
    place.write("out/a.pth", zipped(1))
    drain.start()
    wait_until(lambda: drain.interfere is None)
    drain.finish(with_newest=True)
    assert drain.has_ended(wait_s=30)
    assert os.listdir(shelf.shelf(place.run.run)) == copied == []


def test_it_runs_at_a_low_priority_and_its_caller_does_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    priorities: dict[str, tuple[int, int]] = {}

    def note(who: str) -> None:
        number = threading.get_native_id()
        priorities[who] = (os.getpriority(os.PRIO_PROCESS, number), psutil.Process(number).ionice().ioclass)

    def note_and_hash(path: Path) -> tuple[int, str]:
        note("the one that reads back")
        return hash_from_disk(path)

    hash_from_disk = durable.hash_from_disk
    monkeypatch.setattr(durable, "hash_from_disk", note_and_hash)
    note("before")
    drain = place.drain()
    drain.fingerprint = lambda: note("the drain") or MINE
    place.write("out/a.pth", zipped(1))
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
    note("after")
    lowest = (10, psutil.IOPRIO_CLASS_IDLE)
    assert priorities["the drain"] == priorities["the one that reads back"] == lowest
    assert priorities["before"] == priorities["after"]
    assert priorities["after"][1] != psutil.IOPRIO_CLASS_IDLE


def test_what_is_at_stake_counts_from_the_newest_durable_checkpoint(place: Place) -> None:
    drain = place.drain()
    time.sleep(0.09)
    assert 0.1 <= drain.age_s() <= time.time() - drain.started_s
    path = place.write("out/a.pth", zipped(1))
    with at_work(drain):
        wait_until(lambda: drain.result.checkpoints)
    seen = drain.sight(drain.started_s, False, used_bytes=5, written=ProcessWrites(10 << 20, 0, 1))
    assert seen.safe_s == seen.newest_s == path.stat().st_mtime_ns / 1e9
    assert (seen.newest, seen.checkpoints) == ("out/a.pth", {"out/a.pth": {"step": "7"}})
    assert Path(seen.durable) == place.on_disk[0].folder
    assert drain.result.worst_loss_s >= 0.1
    assert drain.result.writes.disk_bytes + seen.kept_off_bytes == 10 << 20
    assert drain.age_s() < 20


def test_a_checkpoint_has_to_be_named_to_be_drained(place: Place) -> None:
    nameless = replace(place, run=replace(place.run, products=replace(place.run.products, checkpoints=())))
    drain = nameless.drain()
    place.write("out/a.pth", zipped(1))
    with at_work(drain):
        time.sleep(0.1)
    assert (drain.newest, drain.result.checkpoints) == (None, 0)
    assert not shelf.home(place.run.run).exists()


def test_a_manifest_says_which_one_it_is(place: Place) -> None:
    place.write("out/a.pth", zipped(1))
    folder = keep(place, "out/a.pth")
    (found,) = find_checkpoints(place.stage, ["out/a.pth"])
    assert isinstance(found, Checkpoint)
    assert folder.name == shelf.name_of("out/a.pth", found.saved_s)
    assert {file.path for file in read_manifest(folder)["files"]} == {"project/out/a.pth"}


# -- what the guard does meanwhile: files are spilled, the newest has to come home at once

KINDS = pytest.mark.parametrize(
    ("name", "spilled"),
    [("out/a.pth", ["out/a.pth"]), ("out/a.bin", ["out/a.bin"]), ("out/ck-1", ["out/ck-1/b.bin"])],
    ids=["zip", "unknown kind", "one file of a folder"],
)


def write_one(place: Place, name: str, version: int = 1) -> None:
    """Write a checkpoint of the kind that its name says."""
    if name.startswith("out/ck-"):
        for file in ("a.bin", "b.bin", "c.bin"):
            place.write(f"{name}/{file}", versioned(version))
    else:
        place.write(name, zipped(version) if name.endswith(".pth") else versioned(version))


def inodes(checkpoint: Checkpoint | None) -> set[int]:
    return {stamp.inode for _, stamp in checkpoint.files} if checkpoint else set()


def wait_until_seen(drain: Drain, path: Path) -> None:
    """Wait until the drain knows a file, as it is now, as one of its newest complete checkpoint."""
    wait_until(lambda: path.stat().st_ino in inodes(drain.newest))


@KINDS
def test_one_that_has_been_spilled_comes_home_with_its_contents(name: str, spilled: list[str], place: Place) -> None:
    write_one(place, name)
    place.spill(*spilled)
    came = keep(place, name) / shelf.IN_PROJECT / name
    files = sorted(came.iterdir()) if came.is_dir() else [came]
    assert len(files) == (3 if name == "out/ck-1" else 1)
    assert [version_of(path) for path in files] == [1] * len(files)
    assert not any(path.is_symlink() for path in files)
    assert place.paths == [name]
    (found,) = find_checkpoints(place.stage, [name])
    assert find_twin(place.run.run, found, place.stage, MINE), "it is at home"


def test_what_it_cannot_be_resumed_without_comes_along_although_it_has_been_spilled(place: Place) -> None:
    there = {"out/config.json": b"{}", "out/trainer_0_log.txt": b"epoch 1", "out/a.pth": zipped(1)}
    for name, content in there.items():
        place.write(name, content)
    place.spill("out/config.json", "out/trainer_0_log.txt")
    folder = keep(place, "out/a.pth")
    for name, content in there.items():
        path = folder / shelf.IN_PROJECT / name
        assert path.read_bytes() == content
        assert not path.is_symlink()


@KINDS
@pytest.mark.parametrize("then", ["it stays", "it is deleted"])
def test_one_that_is_at_home_and_is_spilled_then_counts_once(
    then: str, name: str, spilled: list[str], place: Place
) -> None:
    with at_work(place.drain(keep=9)) as drain:
        write_one(place, name)
        wait_until(lambda: drain.result.checkpoints == 1)
        place.spill(*spilled)
        wait_until_seen(drain, place.ram / spilled[0])
        time.sleep(0.05)
        place.write("out/b.pth", zipped(2))
        wait_until(lambda: drain.result.checkpoints == 2)
        if then == "it is deleted":
            path = place.ram / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            time.sleep(0.05)
    assert place.paths == ["out/b.pth", name]
    assert len(drain.saved) == 2
    assert (drain.result.checkpoints, drain.result.skipped, drain.result.dropped) == (2, 0, 0)


@KINDS
def test_one_that_is_overtaken_after_it_was_spilled_is_skipped_once(
    name: str, spilled: list[str], place: Place
) -> None:
    with at_work(place.drain(max_loss_s=3600)) as drain:
        write_one(place, name)
        wait_until_seen(drain, place.ram / spilled[0])
        place.spill(*spilled)
        wait_until_seen(drain, place.ram / spilled[0])
        time.sleep(0.01)
        place.write("out/b.pth", zipped(2))
        wait_until_seen(drain, place.ram / "out/b.pth")
    assert len(drain.saved) == 2
    assert (drain.result.checkpoints, drain.result.skipped) == (0, 1)


def test_a_twin_that_has_been_spilled_is_one(place: Place) -> None:
    with at_work(place.drain()) as drain:
        place.write("out/a.pth", zipped(1))
        wait_until(lambda: drain.result.checkpoints)
        time.sleep(0.01)
        place.write("out/best_model.pth", zipped(1))
        wait_until(lambda: drain.result.duplicates)
        place.spill("out/best_model.pth")
        wait_until_seen(drain, place.ram / "out/best_model.pth")
        time.sleep(0.1)
    assert (drain.result.checkpoints, drain.result.duplicates, drain.result.skipped) == (1, 1, 0)


@KINDS
def test_the_newest_stays_the_newest_when_it_is_spilled(name: str, spilled: list[str], place: Place) -> None:
    """It has been whole before: nobody has to wait, once more, whether it is; an older one is not taken for it."""
    drain = place.drain()
    place.write("out/older.pth", zipped(0))
    write_one(place, name)
    drain._look(settle=False)
    before = drain.newest
    assert before
    assert before.path == name
    place.spill(*spilled)
    drain._look()
    assert drain.newest
    assert drain.newest == before


def test_where_only_links_are_named_it_is_said_once_that_these_are_no_checkpoints(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    drain = place.drain()
    place.write("elsewhere/a.pth", zipped(1))
    (place.ram / "out").mkdir()
    (place.ram / "out/latest.pth").symlink_to("../elsewhere/a.pth")
    drain._look()
    drain._look()
    assert [
        message for message in warnings(caplog) if "out/latest.pth is a link, and links are no checkpoints" in message
    ]
    assert len(warnings(caplog)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a plain user: root may read any file")
def test_what_may_not_be_read_hides_no_other_checkpoint(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    drain = place.drain()
    place.write("out/a.pth", zipped(1))
    place.write("out/b.pth", zipped(2)).chmod(0)
    place.write("out/closed/c.pth", zipped(2)).parent.chmod(0)
    drain._look()
    assert drain.newest
    assert drain.newest.path == "out/a.pth"
    assert not warnings(caplog)
    (place.ram / "out/closed").chmod(0o700)


def test_how_far_the_training_was_is_known_of_one_that_is_spilled_later(place: Place) -> None:
    drain = place.drain()
    place.write("out/a.pth", zipped(1))
    drain._look()
    place.spill("out/a.pth")
    drain.progress = lambda: {"step": "8"}
    drain._look()
    place.write("out/b.pth", zipped(2))
    drain._look()
    seen = drain.sight(drain.started_s, False, used_bytes=0, written=ProcessWrites(0, 0, 0))
    assert seen.checkpoints == {"out/a.pth": {"step": "7"}, "out/b.pth": {"step": "8"}}


@pytest.mark.parametrize("results", ["a folder", "a link to another disk"])
@pytest.mark.parametrize("hold", [open_it, map_it])
@KINDS
def test_one_that_is_open_for_writing_through_its_link_is_not_complete(
    name: str,
    spilled: list[str],
    hold: Callable[[Path, contextlib.ExitStack], None],
    results: str,
    project: Path,
    workdir: Path,
    tmp_path: Path,
) -> None:
    if results != "a folder":
        (tmp_path / "scratch").mkdir()
        (workdir / "results").symlink_to(tmp_path / "scratch")
    with a_place(project, workdir) as place, contextlib.ExitStack() as kept:
        drain = place.drain()
        write_one(place, name)
        place.spill(*spilled)
        hold(place.ram / spilled[0], kept)
        with at_work(drain):
            time.sleep(0.3)
            assert (drain.newest, drain.result.checkpoints) == (None, 0)
            kept.close()
            wait_until(lambda: drain.result.checkpoints)
        assert drain.result.dropped == 0


@pytest.mark.parametrize("is_spilled", [False, True], ids=["in RAM", "spilled"])
def test_one_that_is_written_to_between_two_looks_at_it_is_not_taken(is_spilled: bool, place: Place) -> None:
    """A trainer that overwrites its checkpoint had it closed both times; what was found is not what is there."""
    drain = place.drain()
    place.write("out/a.pth", zipped(1))
    if is_spilled:
        place.spill("out/a.pth")

    def overwrite_and_close() -> list[psutil.Process]:
        place.write("out/a.pth", zipped(2))
        return []

    drain.processes = overwrite_and_close
    time.sleep(0.01)
    drain._look()
    assert (drain.newest, drain.saved) == (None, [])
    drain.processes = lambda: []
    drain._look()
    assert drain.newest
    assert len(drain.saved) == 1


@pytest.mark.parametrize(
    "protect",
    [
        {"max_loss_s": 3600},
        {"max_loss_s": 0.01, "write_budget_bytes": 1},
        {"max_loss_s": 3600, "write_budget_bytes": 1},
    ],
    ids=["not due", "no room in the write budget", "neither"],
)
def test_hurried_the_newest_comes_home_at_once(protect: dict[str, Any], place: Place) -> None:
    with at_work(place.drain(keep=9, **protect)) as drain:
        if "write_budget_bytes" in protect:
            place.write("out/a.pth", zipped(1))
            wait_until_seen(drain, place.ram / "out/a.pth")
            assert drain.hurry()
            wait_until(lambda: drain.result.checkpoints == 1)
            time.sleep(0.01)
        before = drain.result.checkpoints
        place.write("out/b.pth", zipped(2))
        time.sleep(0.01)
        place.write("out/c.pth", zipped(3))
        wait_until_seen(drain, place.ram / "out/c.pth")
        time.sleep(0.1)
        assert drain.result.checkpoints == before, "not before it is asked for"
        assert not drain.is_hurrying
        assert drain.hurry()
        wait_until(lambda: not drain.is_hurrying)
        assert drain.result.checkpoints == before + 1
        assert place.paths[0] == "out/c.pth"
        assert drain.hurry()
        wait_until(lambda: not drain.is_hurrying)
        assert drain.result.checkpoints == before + 1, "what is at home is at home"


def test_hurried_it_does_not_wait_for_its_next_look(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    drain = place.drain(max_loss_s=3600)
    place.write("out/a.pth", zipped(1))
    monkeypatch.setattr(drains, "_TICK_S", 60.0)
    with at_work(drain):
        wait_until_seen(drain, place.ram / "out/a.pth")
        drain.hurry()
        wait_until(lambda: drain.result.checkpoints, within_s=10)


def test_hurried_it_does_nothing_where_there_is_no_bound_or_when_it_has_ended(place: Place, workdir: Path) -> None:
    with at_work(place.drain(max_loss_s=None)) as drain:
        place.write("out/a.pth", zipped(1))
        wait_until_seen(drain, place.ram / "out/a.pth")
        assert not drain.hurry()
        assert not drain.is_hurrying
        time.sleep(0.1)
    ended = place.drain(max_loss_s=3600)
    with at_work(ended):
        wait_until_seen(ended, place.ram / "out/a.pth")
    assert not ended.hurry()
    assert not ended.is_hurrying
    assert list(workdir.iterdir()) == []
    assert drain.result.checkpoints == ended.result.checkpoints == 0
