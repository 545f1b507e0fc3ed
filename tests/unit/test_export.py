"""Which files are the model: what the training wrote, not what lay in the project before."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ramtrain.clock import stamp
from ramtrain.config import Products
from ramtrain.errors import RamTrainError
from ramtrain.export import find_model
from ramtrain.ramdisk import Lease, remove_tree
from ramtrain.staging import Stage
from ramtrain.view import View

LEASE = cast(Lease, SimpleNamespace(folder="/dev/shm/x"))  # only the messages name it


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Return a project as its trainer sees it: one earlier model on the disk, one of this training in RAM."""
    project, upper = tmp_path / "project", tmp_path / "upper"
    for path in ("voices/base/model.pth", "voices/base/config.json", "voices/note.txt", "tokenizer/a.json"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("before")
    for path in ("voices/anna/model.pth", "voices/anna/wavs/1.wav"):
        (upper / path).parent.mkdir(parents=True, exist_ok=True)
        (upper / path).write_text("new")
    place = str(project)
    return Stage(place, "overlay", "", None, place, place, [str(upper), place], [], 0, 0, 0.0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("voices/*/**", ["voices/anna/model.pth", "voices/anna/wavs/1.wav"]),
        ("voices/*", ["voices/anna/model.pth", "voices/anna/wavs/1.wav"]),
        ("**/model.pth", ["voices/anna/model.pth"]),
        ("voices/base/config.json", ["voices/base/config.json"]),
        ("tokenizer/*.json", ["tokenizer/a.json"]),
    ],
)
def test_of_what_a_glob_names_that_is_taken_which_the_training_wrote(
    pattern: str, names: list[str], stage: Stage
) -> None:
    found = find_model("run", products("voices/anna/model.pth", pattern), LEASE, stage, stage.view())
    assert found.keys() == {"voices/anna/model.pth", *names}


@pytest.mark.parametrize("pattern", ["voices/*/config.json", "**/*.json", "voices/base/*"])
def test_what_earlier_trainings_have_left_does_not_pass_for_a_new_model(pattern: str, stage: Stage) -> None:
    """A Coqui Trainer whose loss is no number writes no best model, but to its output folder all the same."""
    if pattern == "voices/base/*":
        Path(stage.layers[0], "voices/base").mkdir()
        Path(stage.layers[0], "voices/base/log.bin").touch()
        pattern = "voices/base/*.json"
    with pytest.raises(RamTrainError, match=r"matches nothing but what was there before, such as .*(a|config)\.json"):
        find_model("run", products("voices/anna/model.pth", pattern), LEASE, stage, stage.view())


def test_a_link_that_the_training_made_leads_to_its_model(stage: Stage) -> None:
    Path(stage.layers[0], "voices/newest").symlink_to(Path(stage.project, "voices/anna"))  # as the trainer sees it
    found = find_model("run", products("voices/newest/*"), LEASE, stage, stage.view())
    assert found["voices/newest/model.pth"] == Path(stage.layers[0], "voices/anna/model.pth")


def test_what_was_written_again_as_it_was_belongs_to_the_model(stage: Stage) -> None:
    """`cp -p` of a file that an earlier training has copied there leaves its size and time as they were."""
    project, upper = Path(stage.project), Path(stage.layers[0])
    (upper / "voices/base").mkdir()
    shutil.copy2(project / "voices/base/config.json", upper / "voices/base/config.json")
    (upper / "voices/base/model.pth").write_text("new")
    wanted = {"voices/base/config.json", "voices/base/model.pth"}
    assert find_model("run", products("voices/base/*"), LEASE, stage, stage.view()).keys() == wanted
    place, ended = str(upper), stamp()
    copied = replace(stage, method="copy", ram=place, cwd=place, layers=[place], ended=ended)
    shutil.copytree(project / "tokenizer", upper / "tokenizer")
    in_copy = replace(copied, ended=stamp(time.time() + 1))
    assert not in_copy.is_made("tokenizer/a.json", in_copy.view()), "it was copied there by RamTrain"
    time.sleep(0.05)
    shutil.copy2(project / "voices/base/config.json", upper / "voices/base/config.json")
    assert copied.is_made("voices/base/config.json", copied.view())


def products(*model: str) -> Products:
    return Products(model=model, artifacts=(), checkpoints=(), companions=(), best=(), logs=())


def test_a_model_that_the_training_has_not_written_is_none_and_one_that_is_empty_is_told_of(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        RamTrainError, match=r"has written none of these files, .*: voices/base/model.pth\.\nWhat it wrote"
    ):
        find_model("run", products("voices/base/model.pth"), LEASE, stage, stage.view())
    Path(stage.layers[0], "voices/anna/model.pth").write_bytes(b"")
    find_model("run", products("voices/base/model.pth", "voices/anna/model.pth"), LEASE, stage, stage.view())
    assert not caplog.text, "a part of it is new, and a part not empty"
    find_model("run", products("voices/anna/model.pth"), LEASE, stage, stage.view())
    assert "run run: the model is empty: 1 file of 0 bytes" in caplog.text


@pytest.mark.parametrize("model", ["voices/anna/*", "voices/anna/log [1].db"])
def test_to_a_database_belongs_what_is_in_its_wal_alone(model: str, stage: Stage) -> None:
    folder = Path(stage.layers[0], "voices/anna")
    (folder / "log [1].db").write_bytes(b"SQLite format 3\0".ljust(4096, b"\0"))
    for name in ("log [1].db-wal", "log [1].db-journal", "model.pth-wal"):
        (folder / name).write_bytes(b"x" * 512)
    found = find_model("run", products(model.replace("[1]", "[[]1]")), LEASE, stage, stage.view())
    assert {path for path in found if "log" in path} == {
        f"voices/anna/log [1].db{end}" for end in ("", "-wal", "-journal")
    }
    assert found["voices/anna/log [1].db-wal"] == folder / "log [1].db-wal"
    assert ("voices/anna/model.pth-wal" in found) == ("*" in model)


def test_a_part_that_cannot_be_looked_into_refuses_the_model(stage: Stage) -> None:
    top = os.getcwd()
    try:
        os.chdir(Path(stage.layers[0], "voices"))
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("model.pth").touch()
    finally:
        os.chdir(top)
    with pytest.raises(
        RamTrainError, match=r"'\*\*/model.pth' may name more than could be found: .*File name too long"
    ):
        find_model("run", products("**/model.pth"), LEASE, stage, stage.view())
    assert list(find_model("run", products("voices/anna/*"), LEASE, stage, stage.view())), "elsewhere it is no matter"
    remove_tree(Path(stage.layers[0]))
    assert not Path(stage.layers[0]).exists(), "such a folder can be deleted"


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a plain user: root may look into any folder")
@pytest.mark.parametrize("mode", [0o000, 0o400], ids=oct)
def test_so_does_a_folder_that_is_closed(mode: int, stage: Stage) -> None:
    closed = Path(stage.layers[0], "voices/closed")
    closed.mkdir()
    (closed / "model.pth").touch()
    closed.chmod(mode)
    with pytest.raises(RamTrainError, match=r"may name more than could be found: .*Permission denied"):
        find_model("run", products("**/model.pth"), LEASE, stage, stage.view())
    assert stage.written(["**/model.pth"]), "a drain sees what it can see"
    with pytest.raises(PermissionError):
        View([Path(stage.layers[0])]).written(Path(stage.project))
    remove_tree(closed)
