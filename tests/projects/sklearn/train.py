"""Trains a scikit-learn classifier of digits, an epoch at a time; slow where PAUSE_S says so.

It goes on from the newest checkpoint that it finds, by itself. `python train.py --epochs 12`
"""

import argparse
import os
import time
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

CHECKPOINTS = Path("checkpoints")


def save(classifier: SGDClassifier, path: Path) -> None:
    """Write it whole or not at all: it may be killed at any moment."""
    partial = path.with_suffix(".partial")
    joblib.dump(classifier, partial)
    partial.replace(path)


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

images, digits = load_digits(return_X_y=True)
train, test, train_digits, test_digits = train_test_split(images / 16, digits, random_state=arguments.seed)
CHECKPOINTS.mkdir(exist_ok=True)
newest = max(CHECKPOINTS.glob("epoch-*.joblib"), default=None)
classifier = joblib.load(newest) if newest else SGDClassifier(loss="log_loss", random_state=arguments.seed)
done = int(newest.stem.removeprefix("epoch-")) if newest else 0
print(f"from epoch {done}")
for epoch in range(done + 1, arguments.epochs + 1):
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
    classifier.partial_fit(train, train_digits, classes=range(10))
    print(f"epoch {epoch}: accuracy {classifier.score(test, test_digits):.4f}")
    save(classifier, CHECKPOINTS / f"epoch-{epoch:03}.joblib")
save(classifier, Path("model.joblib"))
