"""Which files are the model: what the training wrote, not what lay in the project before."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from ramtrain.config import Products
from ramtrain.export import find_model
from ramtrain.ramdisk import Lease
from ramtrain.staging import Stage

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
