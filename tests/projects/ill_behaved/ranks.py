"""A training of several processes, for torchrun: rank 0 saves `out/ck_<epoch>.pt`, all go on from the newest."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

EPOCHS = int(sys.argv[1])
OUT = Path("out")


def newest() -> Path | None:
    """Return the newest checkpoint."""
    found = sorted(OUT.glob("ck_*.pt"), key=lambda path: int(path.stem[3:]))
    return found[-1] if found else None


def main() -> None:
    """Train: each rank has a part of the data, and gradients are averaged."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    weights, start = torch.zeros(1000, dtype=torch.float64), 0
    if checkpoint := newest():
        weights, start = torch.load(checkpoint, weights_only=True)
    OUT.mkdir(exist_ok=True)
    (OUT / f"rank_{rank}.pid").write_text(str(os.getpid()))
    for epoch in range(start + 1, EPOCHS + 1):
        target = torch.randn(1000, generator=torch.Generator().manual_seed(1000 * epoch + rank), dtype=torch.float64)
        gradient = weights - target
        dist.all_reduce(gradient)
        weights = weights - 0.1 * gradient
        if rank == 0:
            torch.save((weights, epoch), OUT / "saving")
            (OUT / "saving").rename(OUT / f"ck_{epoch}.pt")
            (OUT / f"ck_{epoch - 3}.pt").unlink(missing_ok=True)
            print(f"epoch {epoch}", flush=True)
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
    if rank == 0:
        torch.save(weights, OUT / "model.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
