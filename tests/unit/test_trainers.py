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


# As transformers 5.24 prints it where there is no terminal: bars of the training, the evaluation, and of saving.
HUGGINGFACE_OUTPUT = """\
\r  0%|          | 0/24 [00:00<?, ?it/s]\r 33%|███▎      | 8/24 [00:02<00:04,  3.82it/s]\r        \r\
{'loss': '3.265', 'grad_norm': '0.8605', 'learning_rate': '3.542e-05', 'epoch': '1'}
\r 33%|███▎      | 8/24 [00:02<00:04,  3.82it/s]
\r  0%|          | 0/9 [00:00<?, ?it/s]\x1b[A\r         \r
\r                \r\x1b[A{'eval_loss': '3.269', 'eval_runtime': '0.0527', 'epoch': '1'}
\r 33%|███▎      | 8/24 [00:02<00:04,  3.82it/s]
\r100%|██████████| 9/9 [00:00<00:00, 46.44it/s]\x1b[A
\rWriting model shards: 100%|██████████| 1/1 [00:00<00:00, 170.90it/s]
\r100%|██████████| 9/9 [00:00<00:00, 46.44it/s]\x1b[A
"""

# As Lightning 2.6 prints it there, with the bar of tqdm.
LIGHTNING_OUTPUT = """\
\rSanity Checking DataLoader 0: 100%|██████████| 1/1 [00:00<00:00, 10.88it/s]\r   \r\
\rTraining: |   | 0/? [00:00<?, ?it/s]\
\rEpoch 0:   0%|          | 0/8 [00:00<?, ?it/s]\
\rEpoch 0:  12%|█▎  | 1/8 [00:00<00:00, 11.02it/s, v_num=0, train_loss=0.628]
\rValidation: |          | 0/? [00:00<?, ?it/s]\x1b[A
\r                    \x1b[A\
\rEpoch 2:  50%|█████     | 4/8 [00:00<00:00, 11.02it/s, v_num=0, train_loss=0.457, val_loss=0.7]
\rValidation DataLoader 0:   0%|          | 0/1 [00:00<?, ?it/s]\x1b[A
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPO / "config/trainers").glob("*.yaml")))
def test_every_adapter_is_valid_and_in_the_manual(name: str) -> None:
    assert load_trainer(name, REPO).name == name
    assert f"`{name}`" in (REPO / "config/README.md").read_text()


@pytest.mark.parametrize(
    ("name", "output", "latest"),
    [
        ("coqui", COQUI_OUTPUT, {"epoch": "3/11", "step": "110", "loss": "0.8351554274559021"}),
        ("huggingface", HUGGINGFACE_OUTPUT, {"step": "8", "epoch": "1", "loss": "3.265"}),
        ("lightning", LIGHTNING_OUTPUT, {"epoch": "2", "loss": "0.457"}),
    ],
)
def test_progress_is_read_from_a_trainer_s_output_in_any_pieces(name: str, output: str, latest: dict[str, str]) -> None:
    progress = TrainingProgress("run x", load_trainer(name, REPO).progress)
    for start in range(0, len(output), 7):
        progress.feed(output[start : start + 7])
    assert progress.latest == latest


def test_a_bar_that_is_at_its_beginning_is_no_progress_yet() -> None:
    """A checkpoint that the trainer cannot load is known by that there was none."""
    progress = TrainingProgress("run x", load_trainer("huggingface", REPO).progress)
    progress.feed("\r  0%|          | 0/24 [00:00<?, ?it/s]\rLoading weights:  50%|███   | 8/16 [00:00<?, ?it/s]\n")
    assert progress.latest == {}
