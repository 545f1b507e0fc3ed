"""First configs for projects of all kinds of trainers: they pass the check, and train as they are."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO, ran
from workplace import snakemake_argv


def with_environment(project: Path, root: Path) -> Path:
    """Copy a project, and give it an environment of its own, which has the packages of this one."""
    folder = root / project.name
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("__pycache__"))
    own = folder / ".venv"
    venv.create(own, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": own, "platbase": own}))
    (packages / "these.pth").write_text("\n".join(place for place in sys.path if place.endswith("-packages")))
    return folder


def trained_as_guessed(project: Path, trainer: str, workdir: Path) -> dict[str, Any]:
    """Have a config made for a project, checked, and trained as it is; return the record."""
    own = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ramtrain = (sys.executable, "-m", "ramtrain")
    for argv, said in (
        ((*ramtrain, "init", str(project), "--output", "its.yaml"), ""),
        ((*ramtrain, "check", "--configfile", "its.yaml"), "can be trained"),
        (snakemake_argv("train", "--configfile", "its.yaml"), ""),
    ):
        ended = ran(argv, workdir, **own)
        assert ended.status == 0 and said in ended.output, ended.output
    text = (workdir / "its.yaml").read_text()
    assert len(text.splitlines()) <= 20 and yaml.safe_load(text)["project"]["trainer"] == trainer
    (record,) = workdir.glob("results/*/record.json")
    return json.loads(record.read_text())


def names(record: dict[str, Any]) -> set[str]:
    return {Path(file["path"]).name for file in record["model"]}


@pytest.mark.parametrize(
    ("library", "project", "model"),
    [
        ("transformers", "huggingface", {"model.safetensors", "config.json"}),
        ("lightning", "lightning", {"model.pt"}),
    ],
)
def test_a_project_with_its_own_environment_trains_as_guessed(
    library: str, project: str, model: set[str], tmp_path: Path, workdir: Path
) -> None:
    pytest.importorskip(library, reason=f"needs {library}: requirements-trainers.txt")
    folder = with_environment(REPO / "tests/projects" / project, tmp_path)
    record = trained_as_guessed(folder, project, workdir)
    assert model <= names(record)
    assert record["checkpoints"]["seen"] > 0
    text = (workdir / "its.yaml").read_text()
    assert yaml.safe_load(text)["project"]["command"].startswith("{python} train.py")
    assert "LOOK" not in text, "nothing is left to look at"


def test_the_example_trains_as_guessed(tmp_path: Path, workdir: Path) -> None:
    example = tmp_path / "tiny_tts"
    shutil.copytree(REPO / "examples/tiny_tts", example, ignore=shutil.ignore_patterns("output", "__pycache__"))
    source = example / "tiny_tts.py"
    source.write_text(source.read_text().replace("epochs: int = 12", "epochs: int = 1"))
    record = trained_as_guessed(example, "coqui", workdir)
    assert names(record) == {"best_model.pth", "config.json"}
    assert record["progress"]["epoch"] == "0/0"


def test_alltalk_trains_as_guessed(tmp_path: Path, workdir: Path) -> None:
    alltalk = tmp_path / "alltalk_tts"
    runpy.run_path(str(REPO / "tests/projects/alltalk/make_alltalk.py"))["make_alltalk"](alltalk)
    record = trained_as_guessed(alltalk, "alltalk", workdir)
    assert "--project {run} --epochs 10" in (workdir / "its.yaml").read_text()
    assert {"model.pth", "config.json", "vocab.json"} <= names(record)
    assert (alltalk / "models/xtts/anna/model.pth").is_file()
