"""Real runs compared: the same seed twice is the same model; what was changed is named, also on another machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from workplace import snakemake_argv

from ramtrain.compare import compare
from ramtrain.compared import as_dict, as_text
from ramtrain.recorded import find_record

pytest.importorskip("torch", reason="needs PyTorch: examples/tiny_tts/requirements.txt")

FIRST = "run\tseed\tlr\nfirst\t1\t0.01\nagain\t1\t0.01\n"
LATER = f"{FIRST}changed\t1\t0.02\n"


def git(project: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(project), *who, *arguments], check=True, capture_output=True)


def train(workdir: Path, runs: str, packages: Path) -> None:
    """Train the runs of the table; the command's Python finds packages in that folder as well."""
    (workdir / "runs.tsv").write_text(runs)
    subprocess.run(
        snakemake_argv("train", "--configfile", "my.yaml", cores=2),
        cwd=workdir,
        env={**os.environ, "PYTHONPATH": str(packages)},
        check=True,
        capture_output=True,
        timeout=120,
    )


def install(packages: Path, version: str) -> None:
    """Put what a package manager leaves there, in place of another version."""
    shutil.rmtree(packages, ignore_errors=True)
    about = packages / f"made_up-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up\nVersion: {version}\n")


def said(*records: str) -> str:
    return as_text(compare(*map(find_record, records)))


def test_the_same_seed_is_the_same_model_and_what_was_changed_is_named(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, packages = tmp_path / "line", tmp_path / "packages"
    shutil.copytree(REPO / "tests/projects/line", project)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "a line")
    config = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", "--seed", "{seed}", "--lr", "{lr}", "--out", "{ram}/out"],
            "model": ["out/model.pth"],
        },
        "runs": "runs.tsv",
        "ramdisk": {"size": "64M"},
    }
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    install(packages, "1.0")
    train(workdir, FIRST, packages)
    install(packages, "2.0")
    with (project / "data/points.txt").open("a") as points:
        points.write("4 9\n")
    train(workdir, LATER, packages)

    text = said("first", "again")
    hashed = json.loads((workdir / "results/first/record.json").read_text())["model"][0]["sha256"]
    assert text.splitlines()[0] == f"the models are the same, byte for byte (SHA-256 {hashed})"
    assert "\nthe same: command, project, " in text
    assert as_dict(compare(find_record("first"), find_record("again")))["differences"] == {}

    changed = {
        "training": "  --lr: 0.01 -> 0.02",
        "code": "  uncommitted changes: no -> yes",
        "inputs": "  changed: data/points.txt",
        "packages": "  changed: made-up: 1.0 -> 2.0",
    }
    comparison = compare(find_record("first"), find_record("changed"))
    assert as_dict(comparison)["differences"].keys() == changed.keys()
    for section, line in changed.items():
        assert f"\n{section}\n{line}\n" in as_text(comparison)
    assert comparison.verdict.startswith("the models differ: 2 of 2 tensors, at most ")

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workdir / "results/first", elsewhere / "first")
    shutil.copytree(workdir / "results/changed", elsewhere / "changed")
    shutil.copy(workdir / "results/changed/record.json", elsewhere / "changed.json")
    for gone in (project, packages, workdir):
        shutil.rmtree(gone)
    monkeypatch.chdir(elsewhere)
    text = said("first", "changed")
    assert text.startswith(f"{comparison.verdict}\n")
    assert all(f"\n{section}\n{line}\n" in text for section, line in changed.items())
    text = said("first", "changed.json")
    assert text.startswith("the models differ; only the hashes are known here: the files are not beside the record\n")
    assert all(f"\n{section}\n{line}\n" in text for section, line in changed.items())
