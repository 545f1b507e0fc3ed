"""The guard: how much of a RAM disk is free, its account as it is noted. What it does is tested by whole runs."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import REPO, needs_root, small_config

from ramtrain import guard
from ramtrain.config import BestNamed, complete_config, load_runs
from ramtrain.drain import Drain
from ramtrain.guard import Action, BackOff, Fill, Guard, Guarded
from ramtrain.lease import SHM, used_in
from ramtrain.meter import ProcessWrites
from ramtrain.ramdisk import acquire, release, remove_tree
from ramtrain.staging import stage_project
from ramtrain.system import run_command

MIB = 1 << 20
SIZE, CUSHION = 200 * MIB, 8 * MIB


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have no two of these tests write to /dev/shm at a time, whatever process they are in."""
    with (tmp_path_factory.getbasetemp().parent / "guard.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def shared(alone: None) -> Iterator[Path]:
    """Return a folder in memory for the RAM disk and for what others write; as root nobody else writes there."""
    folder = SHM / f"guard test {os.getpid()}"
    folder.mkdir()
    if os.geteuid() == 0:
        run_command("mount", "-t", "tmpfs", "-o", "size=400m", "guard-test", str(folder))
    for name in ("ram", "others"):
        (folder / name).mkdir()
    yield folder
    if os.geteuid() == 0:
        run_command("umount", str(folder))
    remove_tree(folder)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets what each walk found; within the time of a test there is none that nothing asks for."""
    found: list[int] = []

    def walk(folder: Path, backend: str) -> int:
        found.append(used_in(folder, backend))
        return found[-1]

    monkeypatch.setattr(guard, "_LONGEST_S", 600.0)
    monkeypatch.setattr(guard, "used_in", walk)
    return found


def write(folder: Path, mib: int, name: str = "file") -> None:
    (folder / name).write_bytes(bytes(mib * MIB))


def room(folder: Path) -> int:
    return SIZE - used_in(folder, "shm")


@pytest.mark.parametrize("writer", ["ram", "others"])
def test_between_two_walks_whatever_is_written_there_takes_room(writer: str, shared: Path, walks: list[int]) -> None:
    fill = Fill(shared / "ram", "shm")
    write(shared / "ram", 10, "first")
    assert fill.free_bytes(SIZE, CUSHION) == room(shared / "ram")
    write(shared / writer, 50)
    assert fill.free_bytes(SIZE, CUSHION) <= SIZE - 60 * MIB
    assert len(walks) == 1


def test_others_do_not_make_it_believe_in_more_room_than_there_is(shared: Path, walks: list[int]) -> None:
    write(shared / "others", 20, "before")
    fill = Fill(shared / "ram", "shm")
    for step in range(1, 6):
        write(shared / "ram", 10, f"ram {step}")
        write(shared / "others", 5, f"others {step}")
        assert fill.free_bytes(SIZE, CUSHION) <= room(shared / "ram")
    (shared / "others/others 3").unlink()
    assert fill.free_bytes(SIZE, CUSHION) <= room(shared / "ram")
    assert len(walks) == 1


def test_what_is_written_during_a_walk_counts(shared: Path, walks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, backend: str) -> int:
        held_bytes = used_in(folder, backend)
        write(shared / "ram", 50)  # where the walk has been already
        return held_bytes

    monkeypatch.setattr(guard, "used_in", walk)
    fill = Fill(shared / "ram", "shm")
    fill.free_bytes(SIZE, CUSHION)
    assert fill.free_bytes(SIZE, CUSHION) <= room(shared / "ram") == SIZE - 50 * MIB


def test_near_the_cushion_it_is_walked_and_what_others_took_is_room_again(
    shared: Path, walks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_WALKING_SHARE_IF_SHORT", 1e9)
    fill = Fill(shared / "ram", "shm")
    write(shared / "ram", 10)
    fill.free_bytes(SIZE, CUSHION)
    write(shared / "others", 180)
    assert fill.free_bytes(SIZE, CUSHION) == SIZE - 10 * MIB
    assert len(walks) == 2
    write(shared / "ram", 190)
    for _ in range(2):
        assert fill.free_bytes(SIZE, CUSHION) == 10 * MIB
    assert len(walks) == 4, "each time"
    monkeypatch.setattr(guard, "_WALKING_SHARE_IF_SHORT", 1e-9)
    for _ in range(3):
        fill.free_bytes(SIZE, CUSHION)
    assert len(walks) == 5, "but for a share of the time only"


def test_it_is_walked_from_time_to_time(shared: Path, walks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LONGEST_S", 0.05)
    fill = Fill(shared / "ram", "shm")
    write(shared / "ram", 50)
    fill.free_bytes(SIZE, CUSHION)
    (shared / "ram/file").unlink()
    write(shared / "ram", 10, "other")
    deadline = time.monotonic() + 10
    while fill.free_bytes(SIZE, CUSHION) != SIZE - 10 * MIB:
        assert time.monotonic() < deadline, "what was deleted is room again"
        time.sleep(0.01)


def test_there_is_no_more_room_than_in_the_file_system(shared: Path) -> None:
    usage = os.statvfs(shared)
    total_bytes = usage.f_blocks * usage.f_frsize
    write(shared / "others", 50)
    assert Fill(shared / "ram", "shm").free_bytes(1 << 60, CUSHION) <= total_bytes - 50 * MIB


@needs_root("mounts a tmpfs")
def test_a_tmpfs_tells_it_itself(shared: Path, walks: list[int]) -> None:
    run_command("mount", "-t", "tmpfs", "-o", "size=64m", "guard-test", str(shared / "ram"))
    try:
        fill = Fill(shared / "ram", "tmpfs")
        assert fill.free_bytes(SIZE, CUSHION) == 64 * MIB
        write(shared / "ram", 50)
        write(shared / "others", 50)
        assert fill.free_bytes(SIZE, CUSHION) == 14 * MIB
        (shared / "ram/file").unlink()
        assert fill.free_bytes(SIZE, CUSHION) == 64 * MIB
        run_command("mount", "-t", "tmpfs", "-o", "remount,size=80m", "guard-test", str(shared / "ram"))
        assert fill.free_bytes(SIZE, CUSHION) == 80 * MIB
        assert walks == []
    finally:
        run_command("umount", str(shared / "ram"))


def test_its_account_is_read_as_it_was_noted() -> None:
    spilled = Action(1.5, "spill", "its RAM disk of 1 GiB has 2 MiB left", "out/ü.pth", 5 * MIB, 0.2)
    account = Guarded(
        [spilled, Action(2.0, "go on", "", "", 0, 0.5)], {"spill": 1}, 0.5, 5 * MIB, ProcessWrites(3, 2, 1)
    )
    for each in (account, Guarded()):
        assert Guarded.from_dict(json.loads(json.dumps(asdict(each)))) == each


def zipped(path: Path, saved_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", path.name)
    os.utime(path, (saved_s, saved_s))


@pytest.fixture
def guarding(project: Path, workdir: Path) -> Iterator[Callable[..., Guard]]:
    """Return a function that gives the guard of a training with six checkpoints, saved a second apart."""
    leases = []

    def make(**changes: object) -> Guard:
        config = small_config(project, **{"ramdisk.backend": "shm", "staging": "copy", **changes})
        (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
        lease = acquire(run, workdir)
        leases.append(lease)
        stage = stage_project(run, lease)
        for number in range(1, 7):
            zipped(Path(stage.ram) / f"out/ck_{number}.pth", 1e9 + number)
        guarding = Guard(run, lease, stage, os.getpid(), Drain(run, lease, stage, None, list, dict), list)
        guarding._started_s = 1e9
        return guarding

    yield make
    for lease in leases:
        release(lease)


GLOBS = {"project.checkpoints": ["out/ck_*.pth"], "project.prunable": ["out/*"], "project.artifacts": []}


def pruned(guarding: Guard) -> list[str]:
    return [checkpoint.path for checkpoint in guarding._prunable()]


@pytest.mark.parametrize(
    ("changes", "stay"),
    [
        ({}, {6}),
        ({"project.artifacts": ["out/ck_2.pth"]}, {2, 6}),
        ({"project.model": ["out/ck_[13].pth"]}, {1, 3, 6}),
        ({"project.prunable": ["out/ck_[12].pth"]}, {3, 4, 5, 6}),
        ({"project.prunable": []}, {1, 2, 3, 4, 5, 6}),
    ],
)
def test_what_is_pruned_the_oldest_first(
    changes: dict[str, object], stay: set[int], guarding: Callable[..., Guard]
) -> None:
    expected = [f"out/ck_{number}.pth" for number in range(1, 7) if number not in stay]
    assert pruned(guarding(**{**GLOBS, **changes})) == expected


def test_what_a_link_stands_for_is_not_pruned(guarding: Callable[..., Guard]) -> None:
    """The model is a link to the checkpoint that was the best."""
    found = guarding(**GLOBS, **{"project.model": ["best.pth"]})
    Path(found.stage.ram, "best.pth").symlink_to("out/ck_4.pth")
    assert "out/ck_4.pth" not in pruned(found)
    assert len(pruned(found)) == 4


def test_what_belongs_to_the_newest_is_not_pruned(guarding: Callable[..., Guard]) -> None:
    """A file of a folder, a companion, the best so far: all of them older than the checkpoint itself."""
    found = guarding(**GLOBS)
    products = replace(found.run.products, companions=("D_6.pth",), best=("best_*.pth",), checkpoints=("out/ck_6*",))
    found.run = replace(found.run, products=products)
    for name in ("D_6.pth", "D_5.pth", "best_model.pth"):
        zipped(Path(found.stage.ram, "out", name), 1e9 + 0.5)
    assert "out/D_5.pth" in pruned(found)
    assert not {"out/D_6.pth", "out/best_model.pth"} & set(pruned(found))


def test_what_is_pruned_may_be_closed_to_writing(guarding: Callable[..., Guard]) -> None:
    found = guarding(**GLOBS)
    folder = Path(found.stage.ram, "out/ck-1")
    zipped(folder / "deep/weights.pth", 1e9)
    for closed in (folder / "deep", folder):
        closed.chmod(0o555)
    assert found._prune(1, "it is a test")
    assert not folder.exists()


def test_the_best_one_that_the_newest_names_is_not_pruned(guarding: Callable[..., Guard]) -> None:
    found = guarding(**GLOBS)
    products = replace(found.run.products, best_named=BestNamed("", "best_model_path"))
    found.run = replace(found.run, products=products)
    newest = Path(found.stage.ram, "out/ck_6.pth")
    saved = newest.stat()
    with zipfile.ZipFile(newest, "w") as archive:
        archive.writestr("ck_6/data.pkl", pickle.dumps({"best_model_path": "/somewhere/out/ck_2.pth"}))
    os.utime(newest, ns=(saved.st_atime_ns, saved.st_mtime_ns))
    assert pruned(found) == [f"out/ck_{number}.pth" for number in (1, 3, 4, 5)]


def test_what_a_training_may_have_to_go_on_from_is_not_pruned(guarding: Callable[..., Guard]) -> None:
    """Until it has written a checkpoint of its own, the newest may be one that it cannot load."""
    found = guarding(**GLOBS)
    found._started_s = 1e9 + 10
    assert pruned(found) == []
    zipped(Path(found.stage.ram, "out/ck_7.pth"), 1e9 + 11)
    assert len(pruned(found)) == 6


def test_it_is_tried_again_later_and_later_unless_it_gets_worse() -> None:
    back_off = BackOff()
    assert back_off.is_over(100 * MIB, 8 * MIB)
    waits_s = []
    for _ in range(12):
        back_off.extend(100 * MIB)
        waits_s.append(back_off.wait_s)
    assert waits_s[:4] == [1, 2, 4, 8]
    assert waits_s[-1] == 300
    assert not back_off.is_over(100 * MIB, 8 * MIB)
    assert not back_off.is_over(99 * MIB, 8 * MIB)
    assert back_off.is_over(90 * MIB, 8 * MIB)
    back_off.reset()
    back_off.extend(0)
    assert back_off.wait_s == 1


def test_files_with_holes_and_those_with_other_names_are_not_spilled(guarding: Callable[..., Guard]) -> None:
    """The one would be written out whole, the other would free nothing."""
    found = guarding(**GLOBS)
    ram = Path(found.stage.ram)
    write(ram, 1, "plain")
    write(ram, 1, "two names")
    os.link(ram / "two names", ram / "other name")
    with (ram / "holes").open("wb") as file:
        file.write(bytes(MIB))
        file.truncate(100 * MIB)
    assert list(found._spillable()) == [("plain", MIB)]
