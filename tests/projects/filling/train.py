"""A trainer that fills its RAM disk: checkpoints of a given size, at a given rate, all of them kept.

Its model is the hash of all its checkpoints, read back by their names at the end. A checkpoint's contents
follow from its number.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

MB = 1 << 20

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("out"))
parser.add_argument("--checkpoints", type=int, default=24)
parser.add_argument("--mb", type=int, default=8)
parser.add_argument("--last-mb", type=int, help="size of the last one")
parser.add_argument("--mb-s", type=float, default=100.0, help="how fast it writes; 0: as fast as it can")
parser.add_argument("--pause-s", type=float, default=0.0, help="between two checkpoints")
parser.add_argument("--heap-mb", type=int, default=0, help="memory that it takes for itself with each checkpoint")
arguments = parser.parse_args()

arguments.out.mkdir(exist_ok=True)
kept, heap = [], []
for number in range(1, arguments.checkpoints + 1):
    block = hashlib.sha256(str(number).encode()).digest() * (MB // 32)
    path = arguments.out / f"checkpoint_{number}.bin"
    with path.open("wb", buffering=0) as file:
        is_last = number == arguments.checkpoints
        for _ in range(arguments.last_mb if is_last and arguments.last_mb else arguments.mb):
            began = time.perf_counter()
            file.write(block)
            while arguments.mb_s and time.perf_counter() - began < 1 / arguments.mb_s:
                time.sleep(0.001 if arguments.mb_s < 200 else 0)
    kept.append(path)
    heap.append(bytearray(os.urandom(MB) * arguments.heap_mb))
    print(f"step {number}", flush=True)
    time.sleep(arguments.pause_s)
model = hashlib.sha256()
for path in kept:
    with path.open("rb") as file:
        model.update(hashlib.file_digest(file, "sha256").digest())
(arguments.out / "model.bin").write_bytes(model.digest())
