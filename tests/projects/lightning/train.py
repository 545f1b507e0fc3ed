"""Trains a tiny classifier of random points with Lightning; slow where PAUSE_S says so.

`python train.py --max_epochs 6`
"""

import argparse
import os
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """Two layers with dropout."""

    def __init__(self, width: int = 64, lr: float = 0.03) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 2)
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()  # Lightning itself keeps none

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random_state"])

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        points, classes = batch
        loss = functional.cross_entropy(self.net(points), classes)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        points, classes = batch
        self.log("val_loss", functional.cross_entropy(self.net(points), classes), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def points(size: int) -> TensorDataset:
    """Return random points in random classes: all that can be learned is by heart, so that `val_loss` soon rises."""
    return TensorDataset(torch.rand(size, 2), torch.randint(0, 2, (size,)))


def main() -> None:
    """Train, and save the best model's weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ckpt_path", help="a checkpoint to go on from")
    arguments = parser.parse_args()
    L.seed_everything(arguments.seed)
    train, val = points(32), points(64)
    # With `monitor` alone Lightning saves, `save_last` or not, only when that has become better.
    best = ModelCheckpoint(dirpath="checkpoints", filename="best-{epoch}", monitor="val_loss")
    newest = ModelCheckpoint(dirpath="checkpoints", filename="newest-{epoch}")
    trainer = L.Trainer(
        max_epochs=arguments.max_epochs,
        callbacks=[best, newest, TQDMProgressBar()],
        logger=CSVLogger("."),
        log_every_n_steps=4,
    )
    model = Classifier()
    loaders = DataLoader(train, batch_size=4, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(model, *loaders, ckpt_path=arguments.ckpt_path)
    torch.save(Classifier.load_from_checkpoint(best.best_model_path).state_dict(), "model.pt")


if __name__ == "__main__":
    main()
