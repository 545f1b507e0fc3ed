"""Trains a tiny GPT-2 on random words, with the Trainer of Hugging Face transformers; slow where PAUSE_S says so.

`python train.py --output_dir out --num_train_epochs 6 --eval_strategy epoch --save_strategy epoch`
"""

import os
import time

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments

LENGTH, WORDS = 16, 32


class Words(Dataset):
    """Random words: all that can be learned is by heart, so that the evaluation soon gets worse."""

    def __init__(self, size: int, seed: int) -> None:
        self.sequences = torch.randint(0, WORDS, (size, LENGTH), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        return {"input_ids": self.sequences[index], "labels": self.sequences[index]}


def main() -> None:
    """Train, evaluate, and save the model."""
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    torch.manual_seed(arguments.seed)
    config = GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=Words(64, seed=1),
        eval_dataset=Words(16, seed=2),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
