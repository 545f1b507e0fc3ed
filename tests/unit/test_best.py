"""The best model so far, where a checkpoint itself names it: which it is, that it comes home and back, and stays."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from ramtrain.best import globs_of_best, texts_after
from ramtrain.checkpoints import Checkpoint, Stamp
from ramtrain.config import BestNamed, Products

IN_JSON = BestNamed("trainer_state.json", "best_model_checkpoint")
IN_PICKLE = BestNamed("", "best_model_path")
FOLDER, FILE = "out/checkpoint-8", "out/last.ckpt"


def products(named: BestNamed) -> Products:
    return Products((), (), (), (), ("best_*.pth",), (), best_named=named)


def globs(upper: Path, path: str, named: BestNamed) -> list[str]:
    name = f"{path}/a" if path == FOLDER else path
    return globs_of_best(Checkpoint(path, ((name, Stamp(1, 1, 1)),)), products(named), upper)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"best_model_checkpoint": "out/checkpoint-4"}, ["out/checkpoint-4"]),
        ({"best_model_checkpoint": "/home/me/moved/out/checkpoint-4/"}, ["out/checkpoint-4"]),
        ({"best_model_checkpoint": "out/checkpoint-[4]"}, ["out/checkpoint-[[]4]"]),
        ({"best_model_checkpoint": None}, []),
        ({}, []),
    ],
)
def test_a_folder_names_it_in_json(state: dict[str, object], named: list[str], tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "trainer_state.json").write_text(json.dumps(state))
    assert globs(tmp_path, FOLDER, IN_JSON) == ["out/best_*.pth", *named]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"best_model_checkpoint": 4}', b'"text"'])
def test_what_cannot_be_read_names_none(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    if content is not None:
        (tmp_path / FOLDER / "trainer_state.json").write_bytes(content)
    assert globs(tmp_path, FOLDER, IN_JSON) == ["out/best_*.pth"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_of_pytorch_names_it_in_its_pickle(protocol: int, tmp_path: Path) -> None:
    path = "/home/me/out/epoch=1-step=16.ckpt"
    content = {"last": path, "callbacks": [{"best_model_path": path}, {"best_model_path": ""}], path: "best_model_path"}
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / FILE, "w") as archive:
        archive.writestr("last/data.pkl", pickle.dumps(content, protocol))
    assert globs(tmp_path, FILE, IN_PICKLE) == ["out/best_*.pth", "out/epoch=1-step=16.ckpt"]


@pytest.mark.parametrize("content", [b"", b"no zip file", None])
def test_a_file_that_is_none_of_pytorch_s_names_none(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    else:
        with zipfile.ZipFile(tmp_path / FILE, "w") as archive:
            archive.writestr("other", b"")
    assert globs(tmp_path, FILE, IN_PICKLE) == ["out/best_*.pth"]


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "run",)

    assert list(texts_after(pickle.dumps({"evil": Evil(), "key": "value"}), "key")) == ["value"]
    assert not (tmp_path / "run").exists()
