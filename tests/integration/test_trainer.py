"""What the trainer sees and is given: its path, its environment, RAM where it writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, small_config

Snakemake = Callable[..., Ended]

LOOK = """
import json, os, pathlib, tempfile
seen = {"cwd": os.getcwd(), "environ": dict(os.environ), "uid": os.geteuid(),
        "capabilities": [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1],
        "signals": [line for line in open("/proc/self/status") if line.startswith("SigIgn")][0].split()[1],
        "group_leader": os.getpgid(0) == os.getpid(), "temporary": tempfile.mkdtemp()}
cache = pathlib.Path(os.environ["CACHE"])
(cache / "deep").mkdir()
(cache / "deep" / "downloaded").write_bytes(bytes(1 << 20))
(cache / "there").write_text("changed")
pathlib.Path("seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def look(
    snakemake: Snakemake, project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that trains runs `1`, `2` and so on with a trainer that writes down what it sees, each with
    settings and a cache of its own, and returns that."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (project / "look.py").write_text(LOOK)

    def train(*runs: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
        config = small_config(project, **{"project.command": [sys.executable, "look.py"], **changes})
        config["project"].update({"model": ["seen.json"], "artifacts": [], "checkpoints": []})
        config["train"] = {"environment": {"CACHE": str(project.parent / "cache {run}")}}
        config["runs"] = []
        for number, settings in enumerate(runs, 1):
            config["runs"].append({"run": str(number), **settings})
            (project.parent / f"cache {number}").mkdir()
            (project.parent / f"cache {number}" / "there").write_text("before")
        ended = snakemake(config, "train")
        assert ended.status == 0, ended.output
        return [json.loads((workdir / f"results/{run['run']}/model/seen.json").read_text()) for run in config["runs"]]

    return train


def test_the_trainer_runs_as_it_would_without_ramtrain_but_for_threads_that_the_config_sets(
    look: Callable[..., list[dict[str, Any]]], project: Path
) -> None:
    seen, with_threads = look({}, {"train.threads": 3})
    assert with_threads["environ"]["OMP_NUM_THREADS"] == with_threads["environ"]["MKL_NUM_THREADS"] == "3"
    assert seen["cwd"] == str(project)
    assert seen["uid"] == os.geteuid()
    assert seen["environ"]["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in seen["environ"]
    assert not [name for name in seen["environ"] if name.startswith("RAMTRAIN")]
    assert seen["group_leader"]
    assert int(seen["signals"], 16) & 0b011 == 0, "SIGHUP and SIGINT are not ignored"
    if os.geteuid() != 0:
        assert int(seen["capabilities"], 16) == 0, "the rights that mounting needed are gone"
    temporary = seen["environ"]["TMPDIR"]
    assert temporary.startswith("/dev/shm/ramtrain-")
    assert len(temporary) < 60
    assert seen["temporary"].startswith(temporary)


def test_volatile_folders_are_captured_beside_the_project_and_above_it(
    look: Callable[..., list[dict[str, Any]]], project: Path, workdir: Path
) -> None:
    folders = [project.parent / "cache 1", project.parent]
    look(*({"project.volatile": [str(folder)]} for folder in folders), staging="overlay")
    for run in ("1", "2"):
        cache = project.parent / f"cache {run}"
        assert os.listdir(cache) == ["there"], "nothing was written outside"
        assert (cache / "there").read_text() == "before"
        record = json.loads((workdir / "results" / run / "record.json").read_text())
        assert record["writes"]["trainer"]["disk_bytes"] <= 64 << 10
