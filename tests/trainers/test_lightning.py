"""Lightning: a checkpoint is a file; the best one may be older than the newest.

Equal after a resume, byte for byte: the weights, since the script keeps the random state in its checkpoints, which
Lightning itself does not; and the losses of each step. Not equal: the checkpoints themselves, which hold run times.
"""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from trained import Trained, sha256

PAUSE_S = 0.3
BATCHES = 8


def val_losses(folder: Path) -> dict[int, float]:
    """Return the evaluation's losses by step; of several attempts, which write a table each, all."""
    losses = {}
    for table in folder.glob("**/lightning_logs/version_*/metrics.csv"):
        with table.open() as rows:
            losses |= {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(rows) if row["val_loss"]}
    return losses


def test_it_is_killed_goes_on_and_comes_home(trained: Callable[..., Trained]) -> None:
    place = trained("lightning", "lightning")
    whole = place.train_whole()
    losses = val_losses(whole)
    best = min(losses, key=losses.__getitem__) + 1
    assert best <= 3 * BATCHES, "the best model is not the last one"
    best_name = f"best-epoch={best // BATCHES - 1}.ckpt"

    place.start(PAUSE_S)
    place.wait_for(f"overlay/upper/checkpoints/newest-epoch={best // BATCHES}.ckpt")
    place.wait_for("overlay/upper/lightning_logs/version_0/metrics.csv")
    place.process("train.py").kill()
    assert place.wait() != 0
    assert "killed by SIGKILL" in place.said()

    # As if it had been killed while it wrote the newest one.
    (newest,) = place.upper.glob("checkpoints/newest-*.ckpt")
    half = newest.with_name("newest-epoch=9.ckpt")
    half.write_bytes(newest.read_bytes()[:-100])
    place.start(3 * PAUSE_S)
    place.wait_for_another_checkpoint()
    assert f"{half.name} was cut short" in place.said()
    assert f"going on from checkpoints/{newest.name}, which is still in RAM" in place.said()
    place.snakemake.send_signal(signal.SIGKILL)
    place.reboot()
    assert list(place.results.glob(f"checkpoints/best-*-{best_name}/manifest.json"))

    said = place.go_on()
    assert "going on from checkpoints/newest-" in said
    assert "from the durable checkpoint" in said
    assert sha256(place.model / "model.pt") == sha256(whole / "model.pt")
    home = val_losses(place.results)
    assert home.items() <= losses.items(), "a table ends where its attempt was killed"
    record = json.loads((place.results / "record.json").read_text())
    assert record["metrics"]["val_loss"]["final"] == pytest.approx(losses[max(losses)])
    assert record["progress"]["epoch"] == "5"
