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


def look(snakemake: Snakemake, project: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Train with a trainer that writes down what it sees; return that."""
    cache = project.parent / "cache"
    cache.mkdir()
    (cache / "there").write_text("before")
    monkeypatch.setenv("CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (project / "look.py").write_text(LOOK)
    config = small_config(project, **{"project.command": [sys.executable, "look.py"], **changes})
    config["project"].update({"model": ["seen.json"], "artifacts": [], "checkpoints": []})
    ended = snakemake(config, "train")
    assert ended.status == 0, ended.output
    (model,) = Path.cwd().glob("results/*/model/seen.json")
    return json.loads(model.read_text())


def test_the_trainer_runs_as_it_would_without_ramtrain(
    snakemake: Snakemake, project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(snakemake, project, monkeypatch)
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


def test_threads_are_set_where_the_config_sets_them(
    snakemake: Snakemake, project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(snakemake, project, monkeypatch, **{"train.threads": 3})
    assert seen["environ"]["OMP_NUM_THREADS"] == seen["environ"]["MKL_NUM_THREADS"] == "3"


@pytest.mark.parametrize("volatile", ["cache", "parent"])
def test_volatile_folders_are_captured(
    volatile: str, snakemake: Snakemake, project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = project.parent / "cache"
    folder = cache if volatile == "cache" else project.parent
    look(snakemake, project, monkeypatch, **{"staging": "overlay", "project.volatile": [str(folder)]})
    assert os.listdir(cache) == ["there"], "nothing was written outside"
    assert (cache / "there").read_text() == "before"
    (record,) = workdir.glob("results/*/record.json")
    assert json.loads(record.read_text())["writes"]["trainer"]["disk_bytes"] <= 64 << 10
