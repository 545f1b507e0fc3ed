"""A trainer of a few lines that fits a line to points with PyTorch, and saves it as the Coqui Trainer saves a model."""

import argparse
from pathlib import Path

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("out"))
arguments = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(arguments.seed)
lines = (Path(__file__).parent / "data" / "points.txt").read_text().splitlines()
x, y = torch.tensor([[float(word) for word in line.split()] for line in lines]).T[:, :, None]
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)
for _ in range(arguments.epochs):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}", flush=True)
arguments.out.mkdir(parents=True, exist_ok=True)
content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": arguments.epochs}
torch.save(content, arguments.out / "model.pth")
