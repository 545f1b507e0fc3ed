"""The adapter `generic`: any command, here ones that go on from the newest checkpoint that they find, by themselves.

Equal after a resume: the model, byte for byte; of scikit-learn its numbers, since a pickle also tells which of its
texts were one and the same object.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from trained import Trained


def content_of(model: Path) -> bytes:
    if model.suffix != ".joblib":
        return model.read_bytes()
    joblib = pytest.importorskip("joblib")
    classifier = joblib.load(model)
    return classifier.coef_.tobytes() + classifier.intercept_.tobytes()


@pytest.mark.parametrize(
    ("name", "packages", "pause_s", "model", "first", "unit"),
    [
        ("sklearn", ["sklearn", "joblib"], 0.7, "model.joblib", "epoch-002.joblib", "epoch"),
        ("xgboost", ["xgboost"], 0.25, "model.ubj", "round_4.ubj", "round"),
        ("shell", [], 0.4, "model.txt", "step-2", "step"),
    ],
)
def test_it_is_killed_goes_on_and_comes_home(
    name: str, packages: list[str], pause_s: float, model: str, first: str, unit: str, trained: Callable[..., Trained]
) -> None:
    place = trained(name, *packages)
    whole = content_of(place.train_whole() / model)

    place.start(pause_s)
    place.wait_for(f"overlay/upper/checkpoints/{first}")
    place.process(place.config["project"]["command"].split()[1]).kill()
    assert place.wait() != 0
    assert "killed by SIGKILL" in place.said()
    place.start(pause_s)
    place.wait_for_another_checkpoint()
    place.snakemake.send_signal(signal.SIGKILL)
    place.reboot()

    said = place.go_on()
    assert "from the durable checkpoint" in said
    assert content_of(place.model / model) == whole
    begins = [
        line for line in (place.results / "train.log").read_text().splitlines() if line.startswith(f"from {unit}")
    ]
    first_begin, *others = (int(line.split()[-1]) for line in begins)
    assert first_begin == 0
    assert min(others) > 0, "none of them began anew"
    assert len(others) == 2, begins
