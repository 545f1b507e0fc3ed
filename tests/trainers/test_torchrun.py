"""A training of two processes under torchrun: whatever ends it, nothing is left, and it can go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import REPO
from workplace import Workplace, check_folder

torch = pytest.importorskip("torch", reason="needs PyTorch")

RUN, EPOCHS = "ranks", 12
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def place(workdir: Path, tmp_path: Path) -> Iterator[Workplace]:
    """Return a workplace for the training, which is ended by SIGINT as a Ctrl-C does it."""
    (tmp_path / RUN).mkdir()
    shutil.copy(REPO / "tests/projects/ill_behaved/ranks.py", tmp_path / RUN)
    adapter = workdir / "torchrun.yaml"
    adapter.write_text(
        yaml.safe_dump(
            {
                "description": "torchrun",
                "checkpoints": ["out/ck_*.pt"],
                "stop": {"signal": "SIGINT", "grace_s": 20},
                "progress": {"epoch": "^epoch ([0-9]+)"},
            }
        )
    )
    config: dict[str, Any] = {
        "project": {
            "path": str(tmp_path / RUN),
            "command": [*TORCHRUN, "ranks.py", str(EPOCHS)],
            "trainer": str(adapter),
            "model": ["out/model.pt"],
        },
        "ramdisk": {"size": "64M"},
        "protect": {"max_loss": "1 s"},
    }
    found = Workplace(workdir, config, RUN)
    yield found
    found.reboot()


def uninterrupted(folder: Path) -> Any:
    """Return the weights that a training without RamTrain comes to."""
    folder.mkdir()
    subprocess.run([*TORCHRUN, str(REPO / "tests/projects/ill_behaved/ranks.py"), str(EPOCHS)], cwd=folder, check=True)
    return torch.load(folder / "out/model.pt", weights_only=True)


def running_rank(place: Workplace) -> psutil.Process:
    """Wait until the training is under way; return the second rank."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        noted = place.wait_for("**/rank_1.pid").read_text()  # it may be of an earlier call
        running = place.snakemake.children(recursive=True) if place.snakemake else []
        if found := [process for process in running if str(process.pid) == noted]:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(place.said())


def kill_one_rank(place: Workplace) -> None:
    running_rank(place).kill()


def press_ctrl_c(place: Workplace) -> None:
    running_rank(place)
    assert place.snakemake is not None
    os.killpg(place.snakemake.pid, signal.SIGINT)


def test_ranks_are_killed_or_interrupted_and_the_training_goes_on(place: Workplace, tmp_path: Path) -> None:
    for end, said in (
        (kill_one_rank, f"run {RUN}: the trainer failed with exit status 1 after "),
        (press_ctrl_c, f"run {RUN}: the trainer was ended by SIGINT after "),
    ):
        place.start(pause_s=0.5)
        durable = place.wait_for(f"results/{RUN}/checkpoints/[0-9]*")
        end(place)
        assert place.wait() != 0
        assert said in place.said()
        assert "Traceback" not in place.said().replace("  Traceback", ""), "but for what the trainer itself said"
        place.wait_for_nobody()
        check_folder(next(durable.parent.glob("[0-9]*")))
    ended = place.run("train", "--configfile", str(place.configfile))
    assert ended.returncode == 0, ended.stdout
    assert f"run {RUN}: going on from out/ck_" in ended.stdout
    place.check_disk()
    weights = torch.load(place.results / "model/model.pt", weights_only=True)
    assert torch.equal(weights, uninterrupted(tmp_path / "bare"))
