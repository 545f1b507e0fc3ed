"""A trainer of a few lines for the tests: seeded, writes checkpoints, can be slow, fail, or leave things behind."""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("out"))
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--mb", type=int, default=1, help="size of a checkpoint")
parser.add_argument("--status", type=int, default=0, help="exit status")
parser.add_argument("--sync", action="store_true", help="fsync each checkpoint")
parser.add_argument("--metrics", action="store_true", help="say how good it is, in its output and in a table")
parser.add_argument("--leave", action="store_true", help="leave a process in a session of its own behind")
arguments = parser.parse_args()

weights = random.Random(arguments.seed)
data = (Path(__file__).parent / "data" / "words.txt").read_bytes()
arguments.out.mkdir(parents=True, exist_ok=True)
if arguments.leave:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", str(arguments.out)]
    subprocess.Popen(sleeper, start_new_session=True)
for step in range(1, arguments.steps + 1):
    model = weights.randbytes(arguments.mb << 20) + data
    with (arguments.out / f"checkpoint_{step}.bin").open("wb") as checkpoint:
        checkpoint.write(model)
        if arguments.sync:
            os.fsync(checkpoint.fileno())
    (arguments.out / f"checkpoint_{step - 1}.bin").unlink(missing_ok=True)
    print(f"step {step} of {arguments.steps}", flush=True)
    if arguments.metrics:
        loss = abs(step - 3) + arguments.seed
        print(f"\x1b[1mloss:\x1b[0m {loss}.25", flush=True)
        with (arguments.out / "metrics.csv").open("a") as table:
            table.write("step,accuracy\n" * (step == 1) + f"{step},{1 / loss}\n")
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
if arguments.status:
    print("giving up", file=sys.stderr)
    sys.exit(arguments.status)
(arguments.out / "model.bin").write_bytes(model)
(arguments.out / "log.txt").write_text(f"{arguments.steps} steps\n")
