"""Adapters: what they find in a trainer's output and among its checkpoints."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, small_config

from ramtrain.checkpoints import find_resume, is_whole
from ramtrain.config import complete_config, load_runs, load_trainer
from ramtrain.progress import TrainingProgress
from ramtrain.staging import Stage

# As the Coqui Trainer 0.4.0 prints it, colours included.
COQUI_OUTPUT = """\
\x1b[4m\x1b[1m > EPOCH: 3/11\x1b[0m
\x1b[1m   --> TIME: 2026-01-01 12:14:38 -- STEP: 10/31 -- GLOBAL_STEP: 110\x1b[0m
     | > loss: 2.65902042388916  (11.121060156822205)
     | > grad_norm: tensor(6.7861)  (tensor(112.7887))
  \x1b[1m--> EVAL PERFORMANCE\x1b[0m
     | > avg_loss:\x1b[92m 0.8351554274559021 \x1b[0m(-0.4154060482978821)
     | > avg_loss_mel:\x1b[92m 0.5 \x1b[0m(-0.1)
 > BEST MODEL : output/best_model_128.pth
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPO / "config/trainers").glob("*.yaml")))
def test_every_adapter_is_valid_and_in_the_manual(name: str) -> None:
    assert load_trainer(name, REPO).name == name
    assert f"`{name}`" in (REPO / "config/README.md").read_text()


def test_progress_is_read_from_the_coqui_trainer_s_output_in_any_pieces() -> None:
    progress = TrainingProgress("run x", load_trainer("coqui", REPO).progress)
    for start in range(0, len(COQUI_OUTPUT), 7):
        progress.feed(COQUI_OUTPUT[start : start + 7])
    assert progress.latest == {"epoch": "3/11", "step": "110", "loss": "0.8351554274559021"}


def checkpoint(path: Path, age_s: float, whole: bool = True) -> None:
    """Write a zip file, as torch.save does, or the first half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", os.urandom(10_000))
    if not whole:
        os.truncate(path, path.stat().st_size // 2)
    os.utime(path, (1e9 - age_s, 1e9 - age_s))


def test_whole_or_not(tmp_path: Path) -> None:
    checkpoint(tmp_path / "whole.pth", 0)
    checkpoint(tmp_path / "half.pth", 0, whole=False)
    (tmp_path / "empty.bin").touch()
    (tmp_path / "some.bin").write_bytes(b"x")
    found = {path.name: is_whole(path) for path in tmp_path.iterdir()}
    assert found == {"whole.pth": True, "half.pth": False, "empty.bin": False, "some.bin": True}


def test_a_training_goes_on_from_its_newest_whole_checkpoint(project: Path, tmp_path: Path) -> None:
    config = complete_config(small_config(project, **{"project.trainer": "coqui"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    upper = tmp_path / "upper"
    checkpoint(project / "output/old-run/best_model_9.pth", age_s=0)
    checkpoint(upper / "output/run-a/checkpoint_50.pth", age_s=20)
    checkpoint(upper / "output/run-a/best_model_64.pth", age_s=10)
    checkpoint(upper / "output/run-a/best_model.pth", age_s=9)
    checkpoint(upper / "output/run-a/checkpoint_100.pth", age_s=5, whole=False)
    stage = Stage(str(project), "overlay", "", None, "", "", [str(upper), str(project)], [], 0, 0, 0.0)

    newest, arguments = find_resume(run, stage)

    assert newest == "output/run-a/best_model_64.pth"
    assert arguments == ["--continue_path", "output/run-a"]
    assert sorted(path.name for path in (upper / "output/run-a").iterdir()) == [
        "best_model.pth",
        "best_model_64.pth",
        "checkpoint_100.pth.incomplete",
        "checkpoint_50.pth",
    ]


def test_checkpoints_that_were_copied_with_the_project_are_not_gone_on_from(project: Path, tmp_path: Path) -> None:
    config = complete_config(small_config(project, **{"project.trainer": "coqui"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    checkpoint(project / "output/old-run/best_model_9.pth", age_s=0)
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    stage = Stage(str(project), "copy", "", None, "", "", [str(copy)], [], 0, 0, 0.0)
    assert find_resume(run, stage) == (None, [])
    checkpoint(copy / "output/run-a/checkpoint_50.pth", age_s=20)
    assert find_resume(run, stage)[0] == "output/run-a/checkpoint_50.pth"


def test_nothing_whole_means_from_the_beginning(project: Path, tmp_path: Path) -> None:
    config = complete_config(small_config(project, **{"project.trainer": "coqui"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    checkpoint(tmp_path / "output/run-a/checkpoint_0.pth", age_s=0)
    stage = Stage(str(project), "overlay", "", None, "", "", [str(tmp_path), str(project)], [], 0, 0, 0.0)
    assert find_resume(run, stage) == (None, [])
