"""Adapters: whether they are valid, and what they find in a trainer's output."""

from __future__ import annotations

import pytest
from conftest import REPO

from ramtrain.config import load_trainer
from ramtrain.progress import TrainingProgress

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
