"""Which files are the model: what the training wrote, not what lay in the project before."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ramtrain.config import Products
from ramtrain.errors import RamTrainError
from ramtrain.export import find_model
from ramtrain.ramdisk import Lease, remove_tree
from ramtrain.staging import Stage
from ramtrain.view import View

NO_LEASE = cast(Lease, None)  # only the messages name it


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
        ("voices/base/model.pth", ["voices/base/model.pth"]),
        ("tokenizer/*.json", ["tokenizer/a.json"]),
        ("**/*.json", ["tokenizer/a.json", "voices/base/config.json"]),
    ],
)
def test_of_what_a_glob_names_that_is_taken_which_the_training_wrote(
    pattern: str, names: list[str], stage: Stage
) -> None:
    products = Products(model=(pattern,), artifacts=(), checkpoints=(), companions=(), best=(), logs=())
    assert sorted(find_model("run", products, NO_LEASE, stage, stage.view())) == names


def products(*model: str) -> Products:
    return Products(model=model, artifacts=(), checkpoints=(), companions=(), best=(), logs=())


def test_a_model_that_the_training_has_not_written_or_that_is_empty_is_told_of(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    find_model("run", products("voices/base/model.pth"), NO_LEASE, stage, stage.view())
    assert "run run: the model was in the project before: this training has not written it" in caplog.text
    caplog.clear()
    Path(stage.layers[0], "voices/anna/model.pth").write_bytes(b"")
    find_model("run", products("voices/base/model.pth", "voices/anna/model.pth"), NO_LEASE, stage, stage.view())
    assert not caplog.text, "a part of it is new, and a part not empty"
    find_model("run", products("voices/anna/model.pth"), NO_LEASE, stage, stage.view())
    assert "run run: the model is empty: 1 file of 0 bytes" in caplog.text


@pytest.mark.parametrize("model", ["voices/anna/*", "voices/anna/log [1].db"])
def test_to_a_database_belongs_what_is_in_its_wal_alone(model: str, stage: Stage) -> None:
    folder = Path(stage.layers[0], "voices/anna")
    (folder / "log [1].db").write_bytes(b"SQLite format 3\0".ljust(4096, b"\0"))
    for name in ("log [1].db-wal", "log [1].db-journal", "model.pth-wal"):
        (folder / name).write_bytes(b"x" * 512)
    found = find_model("run", products(model.replace("[1]", "[[]1]")), NO_LEASE, stage, stage.view())
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
    lease = cast(Lease, SimpleNamespace(folder="/dev/shm/x"))
    with pytest.raises(
        RamTrainError, match=r"'\*\*/model.pth' may name more than could be found: .*File name too long"
    ):
        find_model("run", products("**/model.pth"), lease, stage, stage.view())
    assert list(find_model("run", products("voices/anna/*"), lease, stage, stage.view())), "elsewhere it is no matter"
    remove_tree(Path(stage.layers[0]))
    assert not Path(stage.layers[0]).exists(), "such a folder can be deleted"


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a plain user: root may look into any folder")
@pytest.mark.parametrize("mode", [0o000, 0o400], ids=oct)
def test_so_does_a_folder_that_is_closed(mode: int, stage: Stage) -> None:
    closed = Path(stage.layers[0], "voices/closed")
    closed.mkdir()
    (closed / "model.pth").touch()
    closed.chmod(mode)
    lease = cast(Lease, SimpleNamespace(folder="/dev/shm/x"))
    with pytest.raises(RamTrainError, match=r"may name more than could be found: .*Permission denied"):
        find_model("run", products("**/model.pth"), lease, stage, stage.view())
    assert stage.written(["**/model.pth"]), "a drain sees what it can see"
    with pytest.raises(PermissionError):
        View([Path(stage.layers[0])]).written(Path(stage.project))
    remove_tree(closed)
