"""Boosts trees with XGBoost; slow where PAUSE_S says so.

It goes on from the newest checkpoint that it finds, by itself. `python train.py --rounds 40`
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import xgboost as xgb

CHECKPOINTS = Path("checkpoints")


class Slow(xgb.callback.TrainingCallback):
    """Takes its time over each round."""

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: dict) -> bool:
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        return False


parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=40)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

numbers = np.random.default_rng(arguments.seed)
points = numbers.normal(size=(500, 8))
data = xgb.DMatrix(points, label=points[:, 0] * points[:, 1] + numbers.normal(scale=0.1, size=500))
CHECKPOINTS.mkdir(exist_ok=True)
newest = max(CHECKPOINTS.glob("round_*.ubj"), key=lambda path: int(path.stem[6:]), default=None)
before = xgb.Booster(model_file=newest) if newest else None
done = before.num_boosted_rounds() if before else 0
print(f"from round {done}")
model = xgb.train(
    {"max_depth": 3, "eta": 0.2, "seed": arguments.seed, "nthread": 1},
    data,
    num_boost_round=arguments.rounds - done,
    evals=[(data, "train")],
    xgb_model=before,
    callbacks=[xgb.callback.TrainingCheckPoint(CHECKPOINTS, name="round", interval=4), Slow()],
)
model.save_model("model.ubj")
