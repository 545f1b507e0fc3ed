"""A trainer whose checkpoints are large: 500 MB every five seconds for two minutes, of which the last one is kept."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

MB = 10**6

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoints", type=int, default=24)
parser.add_argument("--mb", type=int, default=500)
parser.add_argument("--every-s", type=float, default=5.0)
arguments = parser.parse_args()

output = Path("output")
output.mkdir(exist_ok=True)
content = bytearray(os.urandom(arguments.mb * MB))
began = time.monotonic()
for number in range(1, arguments.checkpoints + 1):
    time.sleep(max(0.0, began + number * arguments.every_s - time.monotonic()))
    content[:8] = number.to_bytes(8, "little")
    with (output / f"checkpoint_{number}.bin").open("wb") as file:
        for start in range(0, len(content), MB):  # in pieces, as serialisers do
            file.write(content[start : start + MB])
    (output / f"checkpoint_{number - 1}.bin").unlink(missing_ok=True)
    print(f"GLOBAL_STEP: {number}", flush=True)
(output / f"checkpoint_{arguments.checkpoints}.bin").rename(output / "model.bin")
