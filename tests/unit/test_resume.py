"""What a training goes on from: the newest whole checkpoint of the same training, then the next; nothing is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config
from workplace import check_folder

from ramtrain import durable, shelf
from ramtrain.checkpoints import find_checkpoints
from ramtrain.config import Resume, Run, complete_config, load_runs
from ramtrain.fingerprint import Fingerprint, fingerprint
from ramtrain.inputs import read_inputs
from ramtrain.ramdisk import Lease, acquire, release
from ramtrain.resume import Ladder, belongs, prepare
from ramtrain.salvage import make_durable
from ramtrain.shelf import durable_checkpoints
from ramtrain.sighting import SIGHTING, Sighting
from ramtrain.staging import Begun, Stage, stage_project

FOLDER = "output/run"
NEWEST_S = 1e9


def path_of(number: int) -> str:
    return f"{FOLDER}/checkpoint_{number}.pth"


@dataclass
class Place:
    """A run of a project with the Coqui Trainer's adapter, its RAM disk, and the disk."""

    run: Run
    lease: Lease
    stage: Stage

    @property
    def ram(self) -> Path:
        """The project in RAM."""
        return Path(self.stage.layers[0])

    @property
    def mine(self) -> Fingerprint:
        """The fingerprint of the training as it is now."""
        return fingerprint(self.run, read_inputs(self.run.project))

    def write(self, name: str, content: bytes = b"{}") -> Path:
        path = self.ram / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def save(self, number: int, whole: bool = True) -> None:
        """Write a checkpoint as the trainer does; one with a higher number is newer."""
        self.write(f"{FOLDER}/config.json")
        path = self.write(path_of(number), b"")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", random.Random(number).randbytes(5000))
        if not whole:
            os.truncate(path, 2500)
        os.utime(path, (NEWEST_S - 100 + number,) * 2)

    def keep(self, *numbers: int, like: Fingerprint | None = None) -> None:
        """Make checkpoints that are in RAM durable."""
        for number in numbers:
            (found,) = find_checkpoints(self.stage, [path_of(number)])
            begun = Begun(like or self.mine, self.run.products)
            make_durable(self.run.run, self.lease, self.stage, begun, found, {"step": str(number)})

    def begin(self, like: Fingerprint | None = None) -> None:
        """Have the training begun on this RAM disk."""
        Begun(like or self.mine, self.run.products).write(self.lease)

    def reboot(self) -> None:
        """Lose what is in RAM."""
        release(self.lease)
        self.lease = acquire(self.run, Path.cwd())
        self.stage = stage_project(self.run, self.lease)

    def ladder(self) -> Ladder:
        return Ladder(self.run, self.lease, self.stage, lambda: self.mine)

    def prepare(self) -> Stage:
        return prepare(self.run, self.lease, self.stage, lambda: self.mine)

    @property
    def names(self) -> list[str]:
        """The checkpoints in RAM, under whatever name."""
        return sorted(path.name for path in (self.ram / FOLDER).glob("checkpoint_*"))

    @property
    def on_disk(self) -> list[str]:
        """The durable checkpoints, each with the word before its name."""
        found = []
        for folder in shelf.shelf(self.run.run).glob("*[0-9]T[0-9]*"):
            check_folder(folder)
            word, _, name = folder.name.rpartition("2001")  # when they were saved
            found.append(word + name.partition("-")[2])
        return sorted(found)


def a_run(project: Path, **changes: Any) -> Run:
    config = {"ramdisk.backend": "shm", "staging": "copy", "project.trainer": "coqui", **changes}
    (run,) = load_runs(complete_config(small_config(project, **config), REPO, "test"), REPO).values()
    return run


@pytest.fixture
def place(project: Path, workdir: Path) -> Iterator[Place]:
    run = a_run(project)
    lease = acquire(run, workdir)
    made = Place(run, lease, stage_project(run, lease))
    yield made
    release(made.lease)


def tried(ladder: Ladder) -> list[str]:
    """Fail at each step; return what was gone on from."""
    found = []
    for arguments in ladder.steps():
        if not arguments:
            assert ladder.resumed is None
            return [*found, "anew"]
        assert arguments == ["--continue_path", FOLDER]
        assert ladder.is_resuming
        found.append(Path(ladder.resumed.checkpoint).name)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- which, in which order


def test_the_newest_whole_one_in_ram_comes_first_and_is_made_durable(place: Place) -> None:
    for number in (9, 10, 8):
        place.save(number)
    place.save(11, whole=False)
    place.write(path_of(7), b"")
    place.begin()
    ladder = place.ladder()
    assert next(ladder.steps()) == ["--continue_path", FOLDER]
    assert (ladder.resumed.checkpoint, ladder.resumed.source) == (path_of(10), "which is still in RAM")
    assert place.names == [
        "checkpoint_10.pth",
        "checkpoint_11.pth.incomplete",
        "checkpoint_7.pth.incomplete",
        "checkpoint_8.pth",
        "checkpoint_9.pth",
    ]
    assert place.on_disk == ["checkpoint_10.pth"]


def test_with_max_loss_never_it_is_not_made_durable(place: Place, workdir: Path) -> None:
    place.run = replace(place.run, protect=replace(place.run.protect, max_loss_s=None))
    place.save(3)
    place.begin()
    assert next(place.ladder().steps())
    assert list(workdir.iterdir()) == []


def test_one_that_cannot_be_made_durable_is_gone_on_from_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place.save(3)
    place.begin()
    monkeypatch.setattr(durable.DISK, "write", refuse)
    ladder = place.ladder()
    assert next(ladder.steps())
    assert ladder.resumed.checkpoint == path_of(3)
    (warning,) = warnings(caplog)
    assert f"{path_of(3)} could not be made durable: [Errno 28] No space left" in warning


@pytest.mark.parametrize(
    ("in_ram", "on_disk", "begun", "expected"),
    [
        ([], [], False, ["anew"]),
        ([], [], True, ["anew"]),
        ([3], [], True, ["3"]),
        ([3, 4], [4], True, ["4", "3"]),
        ([3, 4], [3, 4], True, ["4", "3"]),
        ([3], [4], True, ["4", "3"]),
        ([4], [3], True, ["4", "3"]),
        ([], [3, 5, 4], True, ["5", "4", "3"]),
        ([], [3, 5, 4], False, ["5", "4", "3"]),
        ([9], [], False, ["anew"]),
    ],
)
def test_each_is_tried_once_from_the_newest_to_the_oldest_in_ram_or_on_the_disk(
    in_ram: list[int], on_disk: list[int], begun: bool, expected: list[str], place: Place
) -> None:
    for number in {*in_ram, *on_disk}:
        place.save(number)
    place.keep(*on_disk)
    for number in {*on_disk} - {*in_ram}:
        (place.ram / path_of(number)).unlink()
    if begun:
        place.begin()
    ladder = place.ladder()
    names = [name if name == "anew" else f"checkpoint_{name}.pth" for name in expected]
    assert tried(ladder) == names
    assert ladder.has_failed == (names != ["anew"])
    assert [Path(name).name for name in ladder.tried_names] == [name for name in names if name != "anew"]


def test_one_that_was_put_back_is_known_for_what_it_is_the_next_time(place: Place) -> None:
    place.save(3)
    place.keep(3)
    place.reboot()
    for _ in range(2):
        assert tried(place.ladder()) == ["checkpoint_3.pth"]
        place.begin()
    assert place.on_disk == ["checkpoint_3.pth"]


def test_nothing_whole_means_from_the_beginning_on_a_clean_ram_disk(place: Place) -> None:
    place.save(3, whole=False)
    place.write("train.py", b"changed by the trainer")
    place.begin()
    ladder = place.ladder()
    assert tried(ladder) == ["anew"]
    assert not (Path(ladder.stage.ram) / FOLDER).exists()
    assert (Path(ladder.stage.ram) / "train.py").read_bytes() == (place.run.project / "train.py").read_bytes()
    assert not ladder.has_failed


def test_a_trainer_that_looks_for_itself_is_told_nothing(place: Place) -> None:
    place.run = replace(place.run, trainer=replace(place.run.trainer, resume=None))
    place.save(3)
    place.begin()
    ladder = place.ladder()
    assert next(ladder.steps()) == []
    assert (ladder.resumed.checkpoint, ladder.is_resuming) == (path_of(3), False)


def test_a_folder_is_a_checkpoint_like_a_file(place: Place) -> None:
    resume = Resume(("--resume", "{checkpoint}"), (), ())
    products = replace(place.run.products, checkpoints=("out/ck-*[0-9]",))
    place.run = replace(place.run, trainer=replace(place.run.trainer, resume=resume), products=products)
    for number in (1, 2):
        for name in ("a", "sub/b"):
            path = place.write(f"out/ck-{number}/{name}")
            os.utime(path, (NEWEST_S + number,) * 2)
    place.begin()
    steps = place.ladder().steps()
    assert next(steps) == ["--resume", "out/ck-2"]
    assert next(steps) == ["--resume", "out/ck-1"]
    assert sorted(path.name for path in (place.ram / "out").iterdir()) == ["ck-1", "ck-2.ramtrain-tried"]


# -- from the disk


def test_what_was_kept_is_put_back_where_it_was(place: Place) -> None:
    (place.run.project / "output").mkdir(mode=0o750)
    (place.run.project / "output").chmod(0o750)
    log = place.write(f"{FOLDER}/trainer_0_log.txt", b"epoch 3\n")
    place.write(f"{FOLDER}/events.out.tfevents.1", b"event")
    place.write(f"{FOLDER}/other.txt", b"not needed")
    (Path(place.lease.folder) / shelf.TRAINER_LOG).write_bytes(b"said\n")
    place.save(3)
    content, modified_ns = (place.ram / path_of(3)).read_bytes(), log.stat().st_mtime_ns
    place.keep(3)
    place.reboot()
    (place.ram / "output").rmdir()  # an overlay's upper layer would not have it

    ladder = place.ladder()
    assert next(ladder.steps()) == ["--continue_path", FOLDER]

    assert ladder.resumed.source == f"from the durable checkpoint {durable_checkpoints(place.run.run)[0].folder}"
    there = {path.name: path.read_bytes() for path in (place.ram / FOLDER).iterdir()}
    assert there == {
        "checkpoint_3.pth": content,
        "config.json": b"{}",
        "trainer_0_log.txt": b"epoch 3\n",
        "events.out.tfevents.1": b"event",
    }
    assert (place.ram / FOLDER / "trainer_0_log.txt").stat().st_mtime_ns == modified_ns
    assert (place.ram / path_of(3)).stat().st_mtime == NEWEST_S - 97
    assert stat.S_IMODE((place.ram / "output").stat().st_mode) == 0o750
    assert (Path(place.lease.folder) / shelf.TRAINER_LOG).read_bytes() == b"said\n"


def test_the_trainer_s_output_of_now_is_not_overwritten(place: Place) -> None:
    output = Path(place.lease.folder) / shelf.TRAINER_LOG
    output.write_bytes(b"of then\n")
    place.save(3)
    place.keep(3)
    output.write_bytes(b"of then\nof now\n")
    (place.ram / path_of(3)).unlink()
    place.begin()
    assert next(place.ladder().steps())
    assert output.read_bytes() == b"of then\nof now\n"


@pytest.mark.parametrize("spoilt", [path_of(5), f"{FOLDER}/config.json", f"{FOLDER}/trainer_0_log.txt"])
def test_one_that_is_not_what_was_kept_is_set_aside_and_the_next_is_taken(
    spoilt: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.write(f"{FOLDER}/trainer_0_log.txt", b"epoch 5\n")
    for number in (4, 5):
        place.save(number)
        place.keep(number)
    place.reboot()
    newest = durable_checkpoints(place.run.run)[0]
    with (newest.folder / shelf.IN_PROJECT / spoilt).open("r+b") as file:
        file.write(b"!")
    ladder = place.ladder()
    assert next(ladder.steps())
    assert ladder.resumed.checkpoint == path_of(4)
    (failed,) = shelf.shelf(place.run.run).glob("failed-*")
    assert failed.name == f"failed-{newest.folder.name}"
    (warning,) = warnings(caplog)
    assert f"is not what was kept: its SHA-256 is another; it is set aside as {failed}" in warning
    assert json.loads((place.ram / FOLDER / "config.json").read_bytes()) == {}
    assert not [path for path in place.ram.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("spoilt", ["config.json", "the second file"])
def test_a_part_of_one_that_is_spoilt_is_not_left_for_the_trainer_to_find(spoilt: str, place: Place) -> None:
    if spoilt == "config.json":
        place.save(5)
        spoilt, newest = f"{FOLDER}/config.json", path_of(5)
    else:
        place.run = replace(place.run, products=replace(place.run.products, checkpoints=("out/ck-*[0-9]",)))
        place.write("out/ck-5/a")
        place.write("out/ck-5/b")
        spoilt, newest = "out/ck-5/b", "out/ck-5"
    (found,) = find_checkpoints(place.stage, [newest])
    folder = make_durable(place.run.run, place.lease, place.stage, Begun(place.mine, place.run.products), found, {})
    place.reboot()
    with (folder / shelf.IN_PROJECT / spoilt).open("r+b") as file:
        file.write(b"!")
    assert tried(place.ladder()) == ["anew"]
    assert not (place.ram / newest).exists()


def test_one_that_is_spoilt_costs_nothing_of_what_is_in_ram(place: Place) -> None:
    log = place.write(f"{FOLDER}/trainer_0_log.txt", b"epoch 5\n")
    place.save(4)
    place.save(5)
    place.keep(5)
    (place.ram / path_of(5)).unlink()
    place.begin()
    log.write_bytes(b"epoch 5\nepoch 6\n")
    kept = durable_checkpoints(place.run.run)[0].folder
    with (kept / shelf.IN_PROJECT / FOLDER / "trainer_0_log.txt").open("r+b") as file:
        file.write(b"!")
    ladder = place.ladder()
    assert next(ladder.steps())
    assert ladder.resumed.checkpoint == path_of(4)
    assert sorted(path.name for path in (place.ram / FOLDER).iterdir()) == [
        "checkpoint_4.pth",
        "config.json",
        "trainer_0_log.txt",
    ]
    assert log.read_bytes() == b"epoch 5\nepoch 6\n"


@pytest.mark.parametrize("spoil", ["cut", "gone", "no manifest", "an older RamTrain's"])
def test_one_that_cannot_be_used_is_named_and_left(spoil: str, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    for number in (4, 5):
        place.save(number)
        place.keep(number)
    place.reboot()
    newest = durable_checkpoints(place.run.run)[0].folder
    if spoil == "cut":
        os.truncate(newest / shelf.IN_PROJECT / path_of(5), 100)
    elif spoil == "gone":
        (newest / shelf.IN_PROJECT / path_of(5)).unlink()
    elif spoil == "no manifest":
        (newest / durable.MANIFEST).unlink()
    else:
        (newest / durable.MANIFEST).write_text('{"files": []}')
    ladder = place.ladder()
    assert next(ladder.steps())
    assert ladder.resumed.checkpoint == path_of(4)
    assert newest.is_dir()
    assert any(str(newest) in warning for warning in warnings(caplog))


def test_a_ram_disk_without_room_is_no_fault_of_the_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.save(3)
    place.keep(3)
    place.reboot()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device"):
        patched.setattr(durable.DISK, "write", refuse)
        next(place.ladder().steps())
    assert place.on_disk == ["checkpoint_3.pth"]
    assert tried(place.ladder()) == ["checkpoint_3.pth"]


# -- those that the trainer cannot load


def fail_until(number: int, place: Place) -> Ladder:
    """Have the trainer fail until it goes on from the checkpoint of this number."""
    ladder = place.ladder()
    for _ in ladder.steps():
        if ladder.resumed.checkpoint == path_of(number):
            break
    return ladder


def test_one_that_failed_is_out_of_the_trainer_s_sight_while_an_older_one_is_tried(place: Place) -> None:
    for number in (3, 4, 5):
        place.save(number)
    place.keep(5)
    place.begin()
    fail_until(3, place)
    assert place.names == ["checkpoint_3.pth", "checkpoint_4.pth.ramtrain-tried", "checkpoint_5.pth.ramtrain-tried"]


@pytest.mark.parametrize(
    ("made_progress", "names", "on_disk"),
    [
        (
            True,
            ["checkpoint_3.pth", "checkpoint_4.pth.failed", "checkpoint_5.pth.failed"],
            ["3", "failed-4", "failed-5"],
        ),
        (False, ["checkpoint_3.pth", "checkpoint_4.pth", "checkpoint_5.pth"], ["3", "4", "5"]),
    ],
    ids=["it got somewhere from the older one", "it ended for another reason"],
)
def test_what_becomes_of_those_that_failed_when_an_older_one_is_gone_on_from(
    made_progress: bool, names: list[str], on_disk: list[str], place: Place
) -> None:
    for number in (3, 4, 5):
        place.save(number)
    place.keep(5)
    place.begin()
    ladder = fail_until(3, place)
    ladder.works(made_progress)
    assert place.names == names
    assert not ladder.has_failed
    assert [name.replace("checkpoint_", "").removesuffix(".pth") for name in place.on_disk] == on_disk
    expected = ["checkpoint_3.pth"] if made_progress else ["checkpoint_5.pth", "checkpoint_4.pth", "checkpoint_3.pth"]
    assert tried(place.ladder()) == expected, "the next time"


def test_when_none_works_all_come_back(place: Place) -> None:
    for number in (3, 4):
        place.save(number)
    place.begin()
    for _ in range(2):
        ladder = place.ladder()
        assert tried(ladder) == ["checkpoint_4.pth", "checkpoint_3.pth"]
        assert ladder.has_failed
        assert place.names == ["checkpoint_3.pth", "checkpoint_4.pth"]
    assert place.on_disk == ["checkpoint_3.pth", "checkpoint_4.pth"]


def test_those_that_a_killed_call_hid_come_back(place: Place) -> None:
    place.run = replace(place.run, protect=replace(place.run.protect, max_loss_s=None))
    for number in (3, 4, 5):
        place.save(number)
    place.begin()
    fail_until(3, place)
    assert tried(place.ladder()) == ["checkpoint_5.pth", "checkpoint_4.pth", "checkpoint_3.pth"]
    assert place.names == ["checkpoint_3.pth", "checkpoint_4.pth", "checkpoint_5.pth"]


def test_one_that_a_killed_call_hid_does_not_replace_a_new_one_of_that_name(place: Place) -> None:
    for number in (3, 4):
        place.save(number)
    place.begin()
    fail_until(3, place)
    place.save(4)  # the training got there again, and its call was killed
    new = place.write(path_of(4), (place.ram / path_of(4)).read_bytes() + b"new").read_bytes()
    ladder = place.ladder()
    assert next(ladder.steps())
    assert ladder.resumed.checkpoint == path_of(4)
    assert (place.ram / path_of(4)).read_bytes() == new


@pytest.mark.parametrize("made_progress", [True, False])
def test_one_that_the_trainer_deleted_meanwhile_is_no_trouble(made_progress: bool, place: Place) -> None:
    for number in (3, 4):
        place.save(number)
    place.begin()
    ladder = fail_until(3, place)
    (place.ram / f"{path_of(4)}.ramtrain-tried").unlink()
    ladder.works(made_progress)


def test_one_that_the_trainer_deletes_when_it_cannot_load_it_is_no_trouble(place: Place) -> None:
    for number in (3, 4):
        place.save(number)
    place.begin()
    ladder = place.ladder()
    steps = ladder.steps()
    assert next(steps)
    (place.ram / path_of(4)).unlink()
    assert next(steps)
    assert ladder.resumed.checkpoint == path_of(3)


@pytest.mark.parametrize("pattern", ["output/run/checkpoint_*", "output/run/**"])
def test_what_was_renamed_is_no_checkpoint_whatever_the_glob(pattern: str, place: Place) -> None:
    products = replace(place.run.products, checkpoints=(pattern,))
    place.run = replace(place.run, products=products)
    place.save(3)
    place.save(4)
    place.save(5, whole=False)
    (place.ram / FOLDER / "config.json").unlink()
    place.begin()
    for _ in range(2):
        fail_until(3, place).works(made_progress=True)
        assert place.names == ["checkpoint_3.pth", "checkpoint_4.pth.failed", "checkpoint_5.pth.incomplete"]


# -- whose


def edit(path: str) -> Callable[[Path, Run], Run]:
    """Change a file of the project, or add it."""

    def change(project: Path, run: Run) -> Run:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("another")
        return run

    return change


def removed(project: Path, run: Run) -> Run:
    (project / "data/words.txt").unlink()
    return run


def linked(project: Path, run: Run) -> Run:
    (project / "link").unlink()
    (project / "link").symlink_to("data")
    return run


def touched(project: Path, run: Run) -> Run:
    os.utime(project / "train.py", (1, 1))
    return run


def with_results(project: Path, run: Run) -> Run:
    """Train in the project's own folder, as many do."""
    os.chdir(project)
    for name in ("results/x/model", ".snakemake/log", "results/summary.tsv/x"):
        edit(f"{name}/file")(project, run)
    return run


def differs(**changes: Any) -> Callable[[Path, Run], Run]:
    return lambda project, run: replace(run, **changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda project, run: run, []),
        (lambda project, run: replace(run, command=(*run.command, "--lr", "1")), ["command"]),
        (lambda project, run: replace(run, parameters={**run.parameters, "seed": "2"}), ["command"]),
        (lambda project, run: replace(run, parameters={**run.parameters, "note": "unused"}), []),
        (differs(threads=2), ["threads"]),
        (differs(project=Path("/other")), ["project"]),
        (differs(size_bytes=1 << 30, resume="always", backend="disk"), []),
        (edit("train.py"), ["train.py"]),
        (edit("data/words.txt"), ["data"]),
        (edit("data/new.txt"), ["data"]),
        (edit("new.txt"), ["new.txt"]),
        (removed, ["data"]),
        (linked, ["link"]),
        (touched, []),
        (edit(".git/HEAD"), []),
        (edit("__pycache__/x.pyc"), []),
        (edit("data/__pycache__/x.pyc"), []),
        (with_results, []),
    ],
)
def test_what_makes_it_another_training(
    change: Callable[[Path, Run], Run], named: list[str], project: Path, workdir: Path
) -> None:
    before_run = a_run(project)
    (project / "link").symlink_to("train.py")
    (project / ".git").mkdir()
    before = fingerprint(before_run, read_inputs(project))
    after_run = change(project, before_run)
    after = fingerprint(after_run, read_inputs(project))
    assert after.changes(before) == before.changes(after) == named
    kept = Fingerprint(**json.loads(json.dumps({"training": before.training, "inputs": before.inputs})))
    assert after.changes(kept) == named, "as read from the disk"
    assert belongs(replace(after_run, resume="same"), after, before) == (not named)
    assert belongs(replace(after_run, resume="always"), after, before)
    assert not belongs(replace(after_run, resume="never"), after, before)


def test_a_secret_defines_no_training_and_stands_in_no_manifest(project: Path, workdir: Path) -> None:
    run = a_run(project)
    first = replace(run, command=(*run.command, "--hf-token", "Zq81"))
    renewed = replace(run, command=(*run.command, "--hf-token", "Zq82"))
    before, after = fingerprint(first, None), fingerprint(renewed, None)
    assert "Zq8" not in str(before.training) + str(after.training)
    assert after.changes(before) == []
    assert fingerprint(run, None).changes(before) == ["command"]
    old = Fingerprint({**before.training, "command": first.arguments(ram="{ram}")}, None)
    assert after.changes(old) == [], "of a version that left secrets in"
    assert after.changes(replace(old, training={**old.training, "command": ["other"]})) == ["command"]


def test_files_that_are_not_known_to_be_inputs_do_not_count(project: Path, workdir: Path) -> None:
    run = a_run(project)
    known = fingerprint(run, read_inputs(project))
    (project / "train.py").write_text("another")
    changed = fingerprint(run, read_inputs(project))
    assert changed.changes(known) == ["train.py"]
    assert fingerprint(run, None).changes(known) == [], "not read yet"
    none = replace(run, staging="none")
    assert fingerprint(none, read_inputs(project)).inputs is None, "the trainer may have written there"
    assert fingerprint(none, read_inputs(project)).changes(known) == []


@pytest.mark.parametrize("resume", ["same", "always", "never"])
def test_durable_checkpoints_of_another_training_are_taken_only_if_that_is_wanted(resume: str, place: Place) -> None:
    place.run = replace(place.run, resume=resume)
    for number in (3, 4):
        place.save(number)
    place.keep(3)
    place.keep(4, like=replace(place.mine, inputs={"train.py": "another"}))
    place.reboot()
    expected = {"same": ["3"], "always": ["4", "3"], "never": ["anew"]}[resume]
    assert tried(place.ladder()) == [name if name == "anew" else f"checkpoint_{name}.pth" for name in expected]


# -- before it: another training's state


def test_the_same_training_is_gone_on_with_as_it_is(place: Place) -> None:
    place.save(3)
    place.begin()
    assert place.prepare() == place.stage
    assert place.names == ["checkpoint_3.pth"]
    assert place.on_disk == []


@pytest.mark.parametrize("durable_already", [False, True])
def test_another_training_s_newest_checkpoint_is_made_durable_and_named(
    durable_already: bool, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.save(3)
    place.save(4)
    place.save(5, whole=False)
    place.begin()
    if durable_already:
        place.keep(4)
    (place.run.project / "train.py").write_text("another")
    place.run = replace(place.run, threads=3)
    stage = place.prepare()
    assert not (Path(stage.ram) / FOLDER).exists(), "it starts on a clean RAM disk"
    assert (Path(stage.ram) / "train.py").read_text() == "another"
    assert place.on_disk == ["checkpoint_4.pth"]
    assert Begun.read(place.lease) is None
    (warning,) = warnings(caplog)
    (kept,) = durable_checkpoints(place.run.run)
    assert "the training was changed (threads, train.py) and starts anew" in warning
    assert f"its newest checkpoint, {path_of(4)}, is at home: {kept.folder}, 1 file of" in warning
    assert "--config resume=results/my_pr_ject_/checkpoints/" in warning
    place.stage = stage
    assert tried(place.ladder()) == ["anew"]


def test_another_training_without_a_checkpoint_leaves_all_that_it_wrote(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.write("output/log.txt", b"so far\n")
    place.begin()
    place.run = replace(place.run, threads=3)
    place.prepare()
    (rescued,) = shelf.home(place.run.run).glob("rescued-*")
    assert (rescued / "output/log.txt").read_bytes() == b"so far\n"
    assert f"all that it wrote is at home: {rescued}" in warnings(caplog)[0]


def test_a_state_that_cannot_be_brought_home_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.save(3)
    place.begin()
    before = place.mine
    place.run = replace(place.run, threads=3)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(durable.DISK, "write", refuse)
        place.prepare()
    assert place.names == ["checkpoint_3.pth"]
    assert Begun.read(place.lease).fingerprint == before


def test_a_project_that_is_elsewhere_now_is_staged_anew(place: Place, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/new.txt").touch()
    place.save(3)
    place.begin()
    place.run = replace(place.run, project=tmp_path / "elsewhere", resume="always")
    stage = place.prepare()
    assert stage.project == str(tmp_path / "elsewhere")
    assert (Path(stage.ram) / "new.txt").exists()
    assert place.on_disk == ["checkpoint_3.pth"]


@pytest.mark.parametrize("in_ram", [False, True])
def test_never_sets_aside_what_there_is_so_that_the_new_training_does_not_remove_it(in_ram: bool, place: Place) -> None:
    place.save(3)
    place.keep(3)
    if in_ram:
        place.save(4)
        place.begin()
    else:
        place.reboot()
    place.run = replace(place.run, resume="never")
    place.stage = place.prepare()
    assert place.names == []
    assert place.on_disk == ["aside-checkpoint_3.pth", *(["aside-checkpoint_4.pth"] if in_ram else [])]
    assert tried(place.ladder()) == ["anew"]
    shelf.prune(place.run.run, place.mine, keep=1)
    shelf.close(place.run.run, place.mine, keep=0)
    assert "aside-checkpoint_3.pth" in place.on_disk


# -- what was lost


def sighting(seen_s: float, step: str | None, checkpoints: dict[str, dict[str, str]] | None = None) -> Sighting:
    return Sighting(
        seen_s=seen_s,
        started_s=NEWEST_S - 1000,
        has_ended=False,
        progress={} if step is None else {"step": step},
        checkpoints=checkpoints or {},
        newest=None,
        newest_s=None,
        durable=None,
        safe_s=NEWEST_S,
        max_loss_s=None,
        worst_loss_s=0.0,
        used_bytes=0,
        kept_off_bytes=0,
    )


AT_3 = {path_of(3): {"step": "3"}}


@pytest.mark.parametrize(
    ("in_ram", "on_disk", "reboot", "lost_s", "lost_steps"),
    [
        (None, None, False, None, None),
        (sighting(NEWEST_S, "9", AT_3), None, False, 97.0, 6),
        (sighting(NEWEST_S, "9"), None, False, 97.0, None),
        (sighting(NEWEST_S, None, AT_3), None, False, 97.0, None),
        (sighting(NEWEST_S, "9/12", AT_3), None, False, 97.0, None),
        (sighting(NEWEST_S - 97, "3", AT_3), None, False, 0.0, 0),
        (sighting(NEWEST_S - 200, "2", AT_3), None, False, 0.0, 0),
        (sighting(NEWEST_S, "9", AT_3), sighting(NEWEST_S - 50, "5"), False, 97.0, 6),
        (None, sighting(NEWEST_S - 50, "5"), True, 47.0, 2),
        (sighting(NEWEST_S, "9", AT_3), sighting(NEWEST_S - 50, "5"), True, 47.0, 2),
        (None, None, True, None, None),
    ],
    ids=[
        "never seen",
        "seen in RAM",
        "where the checkpoint was is not known",
        "where it was in the end is not known",
        "no number",
        "nothing",
        "no less than nothing",
        "what is in RAM is newer",
        "seen on the disk",
        "what was in RAM is gone",
        "never seen, from the disk",
    ],
)
def test_what_was_lost_is_told_by_when_it_was_last_seen(
    in_ram: Sighting | None,
    on_disk: Sighting | None,
    reboot: bool,
    lost_s: float | None,
    lost_steps: int | None,
    place: Place,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    place.save(3)
    if in_ram:
        in_ram.write(Path(place.lease.state) / SIGHTING)
    if reboot:
        place.keep(3)
        place.reboot()
    else:
        place.begin()
    if on_disk:
        durable.make_folders(shelf.shelf(place.run.run))
        on_disk.write(shelf.attempt(place.run.run))
    ladder = place.ladder()
    assert next(ladder.steps())
    assert (ladder.resumed.lost_s, ladder.resumed.lost_steps) == (lost_s, lost_steps)
    said = next(record.getMessage() for record in caplog.records if "going on from" in record.getMessage())
    assert ("of training" in said) == bool(lost_s)


def test_a_checkpoint_that_is_the_best_model_itself_comes_back_once_and_alone(place: Place) -> None:
    """AllTalk's best models have their step in their names, and are what it goes on from."""
    place.run = a_run(place.run.project, **{"project.trainer": "alltalk"})
    folder = "finetune/anna/training/XTTS_FT-1"

    def save(name: str, number: int) -> None:
        place.save(number)
        path = place.write(f"{folder}/{name}_{number}.pth", (place.ram / path_of(number)).read_bytes())
        os.utime(path, (NEWEST_S - 100 + number,) * 2)
        (found,) = find_checkpoints(place.stage, [str(path.relative_to(place.ram))])
        make_durable(place.run.run, place.lease, place.stage, Begun(place.mine, place.run.products), found, {})

    def first_step() -> list[str]:
        place.reboot()
        assert next(place.ladder().steps()) == ["--resume", folder]
        return sorted(path.name for path in (place.ram / folder).iterdir())

    save("best_model", 3)
    assert first_step() == ["best_model_3.pth"]
    save("checkpoint", 5)
    assert first_step() == ["best_model_3.pth", "checkpoint_5.pth"], "no epoch has been better since"
    (place.ram / folder / "best_model_3.pth").unlink()
    save("best_model", 7)
    assert first_step() == ["best_model_7.pth"]


def test_a_folder_comes_back_with_the_best_one_that_it_names(place: Place) -> None:
    """As Hugging Face's Trainer has them: the best one of many, which only the newest one knows."""
    place.run = a_run(place.run.project, **{"project.trainer": "huggingface"})

    def save(step: int, best: int) -> None:
        state = {"global_step": step, "best_model_checkpoint": f"out/checkpoint-{best}"}
        for name, content in {"optimizer.pt": b"x", "trainer_state.json": json.dumps(state).encode()}.items():
            path = place.write(f"out/checkpoint-{step}/{name}", content)
            os.utime(path, (NEWEST_S - 100 + step,) * 2)
        (found,) = find_checkpoints(place.stage, [f"out/checkpoint-{step}"])
        make_durable(place.run.run, place.lease, place.stage, Begun(place.mine, place.run.products), found, {})
        shelf.prune(place.run.run, place.mine, keep=1)

    def after_a_reboot() -> list[str]:
        place.reboot()
        (newest,) = durable_checkpoints(place.run.run)
        assert next(place.ladder().steps()) == ["--resume_from_checkpoint", newest.checkpoint]
        return sorted(path.name for path in (place.ram / "out").iterdir())

    save(1, best=1)
    assert after_a_reboot() == ["checkpoint-1"]
    save(2, best=2)
    save(3, best=2)
    save(4, best=2)
    assert after_a_reboot() == ["checkpoint-2", "checkpoint-4"]
    assert [best.checkpoint for best in shelf.best_models(place.run.run)] == ["out/checkpoint-2"], "written once"
    save(5, best=5)
    assert after_a_reboot() == ["checkpoint-5"], "the best of before is no more"


def test_a_folder_without_the_file_that_is_written_last_is_out_of_the_trainer_s_sight(place: Place) -> None:
    place.run = a_run(place.run.project, **{"project.trainer": "huggingface"})
    for name in ("checkpoint-1/trainer_state.json", "checkpoint-1/optimizer.pt", "checkpoint-2/optimizer.pt"):
        place.write(f"out/{name}")
    place.begin()
    assert next(place.ladder().steps()) == ["--resume_from_checkpoint", "out/checkpoint-1"]
    assert sorted(path.name for path in (place.ram / "out").iterdir()) == ["checkpoint-1", "checkpoint-2.incomplete"]


def test_a_sighting_that_cannot_be_read_is_none(place: Place) -> None:
    path = Path(place.lease.state) / SIGHTING
    for content in ("", "{", "[]", "{}", '{"seen_s": 1}'):
        path.write_text(content)
        assert Sighting.read(path) is None
    sighting(time.time(), "1").write(path)
    assert Sighting.read(path).progress == {"step": "1"}
