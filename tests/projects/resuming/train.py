"""A trainer that resumes as the Coqui Trainer 0.4.0 does, in a few lines: seeded, slow where PAUSE_S says so.

What it comes to depends on the seed and the learning rate alone, not on where it was interrupted. FAULT, such as
`exit@5`, lets something go wrong at that step: exit, kill, full (the RAM disk), memory, stall.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
import zipfile
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--lr", default="0.1")
parser.add_argument("--mb", type=int, default=1, help="size of a checkpoint")
parser.add_argument("--keep", type=int, default=1, help="how many checkpoints it keeps")
parser.add_argument("--best", type=int, default=0, help="the epoch that is better than all others; the last if 0")
parser.add_argument("--continue_path", type=Path)
arguments = parser.parse_args()

fault, _, fault_step = os.environ.get("FAULT", "@0").partition("@")
folder = arguments.continue_path or Path("output/run")


def save(path: Path, epoch: int, state: str) -> None:
    """Write a zip file under its final name, as torch.save does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", json.dumps({"epoch": epoch, "state": state}))
        archive.writestr("data/0", random.Random(state).randbytes(arguments.mb << 20))


def loss(state: str) -> float:
    """Return what stands for the loss of a state."""
    return int(state[:8], 16) / 1e9


def load() -> tuple[int, str]:
    """Return epoch and state of the checkpoint with the highest number; there is no way back to an older one."""
    json.loads((folder / "config.json").read_text())
    newest = max(folder.glob("checkpoint_*.pth"), key=lambda path: int(re.findall(r"\d+", path.name)[0]))
    with zipfile.ZipFile(newest) as archive:
        content = json.loads(archive.read("data.pkl"))
    return content["epoch"], content["state"]


def go_wrong(epoch: int) -> None:
    """Do what FAULT says."""
    if fault == "exit":
        sys.exit("giving up")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "full":
        with (folder / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(1 << 20))
    if fault == "memory":
        Path(os.environ["CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
        hog = []
        while True:
            hog.append(bytearray(os.urandom(1 << 20)))
    if fault == "stall":
        time.sleep(600)


folder.mkdir(parents=True, exist_ok=True)
if arguments.continue_path:
    epoch, state = load()
else:
    epoch, state = 0, f"{arguments.seed} {arguments.lr}"
    (folder / "config.json").write_text(json.dumps(vars(arguments), default=str))
try:
    while epoch < arguments.epochs:
        epoch += 1
        print(f" > EPOCH: {epoch}/{arguments.epochs}\n   --> STEP: 1/1 -- GLOBAL_STEP: {epoch}", flush=True)
        state = hashlib.sha256(f"{state} {epoch}".encode()).hexdigest()
        print(f"     | > avg_loss:\x1b[92m {loss(state)} \x1b[0m(+0.0)", flush=True)
        if epoch == int(fault_step):
            go_wrong(epoch)
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        save(folder / f"checkpoint_{epoch}.pth", epoch, state)
        if epoch == arguments.best:
            save(folder / "best_model.pth", epoch, state)
        (folder / f"checkpoint_{epoch - arguments.keep}.pth").unlink(missing_ok=True)
        with (folder / "trainer_0_log.txt").open("a") as log:
            log.write(f"epoch {epoch}\n")
except KeyboardInterrupt:
    save(folder / f"checkpoint_{epoch}.pth", epoch, state)
    sys.exit(130)
if not arguments.best:
    save(folder / "best_model.pth", epoch, state)
