"""First configs for projects of Hugging Face's Trainer and of Lightning: they pass the check, and train as they are."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

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


def call(workdir: Path, *argv: str) -> str:
    """Run what a user types; return what it printed. It has to succeed."""
    ended = ran(argv, workdir, CUDA_VISIBLE_DEVICES="")
    assert ended.status == 0, ended.output
    return ended.output


@pytest.mark.parametrize(
    ("library", "project", "model"),
    [
        ("transformers", "huggingface", {"model.safetensors", "config.json"}),
        ("lightning", "lightning", {"model.pt"}),
    ],
)
def test_a_guessed_config_passes_the_check_and_trains(
    library: str, project: str, model: set[str], tmp_path: Path, workdir: Path
) -> None:
    pytest.importorskip(library, reason=f"needs {library}: requirements-trainers.txt")
    folder = with_environment(REPO / "tests/projects" / project, tmp_path)
    ramtrain = (sys.executable, "-m", "ramtrain")
    said = call(workdir, *ramtrain, "init", str(folder))
    assert "Look at" not in said, "nothing is left to look at"
    path = workdir / f"{project}.yaml"
    assert len(path.read_text().splitlines()) <= 20
    config = yaml.safe_load(path.read_text())["project"]
    assert config["trainer"] == project
    assert config["command"].startswith("{python} train.py")
    assert "can be trained" in call(workdir, *ramtrain, "check", "--configfile", path.name)
    call(workdir, *snakemake_argv("train", "--configfile", path.name))
    record = json.loads((workdir / "results" / project / "record.json").read_text())
    assert model <= {Path(file["path"]).name for file in record["model"]}
    assert record["checkpoints"]["seen"] > 0
