"""A trainer of a few lines that fits a line to points with PyTorch, and saves it with torch.save."""

import argparse
from pathlib import Path

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("out"))
arguments = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(arguments.seed)
lines = (Path(__file__).parent / "data" / "points.txt").read_text().splitlines()
x, y = torch.tensor([[float(word) for word in line.split()] for line in lines]).T[:, :, None]
model = torch.nn.Linear(1, 1)
for _ in range(arguments.steps):
    model.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= arguments.lr * parameter.grad
arguments.out.mkdir(parents=True, exist_ok=True)
torch.save({"model": model.state_dict(), "step": arguments.steps}, arguments.out / "model.pth")
