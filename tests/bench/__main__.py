"""What RamTrain promises in figures, each beside what it is measured against, in one run: `make bench`.

    python tests/bench [--rounds N] [part ...]

The contenders of a row take turns, each round begins with another one, and every round counts. The table gives
medians with min..max; the exit status is 1 when a figure misses its limit or could not be measured. Files lie in a
temporary folder in the current directory, which must be on a disk: about 4.5 GB, and 5 GB of RAM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from copies import measure_copy, measure_export, measure_overlay
from figures import HEADER, Row, say
from guarded import measure_guard
from planning import measure_planning
from trainings import measure_command, measure_drain, measure_steps, measure_watching, measure_writes

from ramtrain.errors import RamTrainError
from ramtrain.ramdisk import release
from ramtrain.rescue import leftovers
from ramtrain.system import mount_of

PARTS: dict[str, Callable[[Path, int], list[Row]]] = {
    "command": measure_command,
    "overlay": measure_overlay,
    "copy": measure_copy,
    "export": measure_export,
    "steps": measure_steps,
    "writes": measure_writes,
    "drain": measure_drain,
    "watching": measure_watching,
    "guard": measure_guard,
    "planning": measure_planning,
}


def show(rows: Sequence[Row]) -> None:
    """Print the table and the notes."""
    table = [HEADER, *(row.cells() for row in sorted(rows, key=lambda row: row.what))]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
    for row in sorted(rows, key=lambda row: row.what):
        for note in row.notes:
            print(f"{row.what.split()[0]} {note}")


def clear(bench: Path) -> None:
    """Release what an interrupted chain left in RAM, once its processes have gone, and delete the folder."""
    for workdir in [bench, *bench.glob("work-*")]:
        for lease in leftovers(workdir):
            for _ in range(20):
                try:
                    release(lease)
                    break
                except RamTrainError as error:
                    say(f"{error}")
                    time.sleep(1)
    shutil.rmtree(bench)


def main() -> int:
    """Run the parts that are named, or all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row but 6 (once) and 5 (at least 7)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if mount_of(Path.cwd().resolve()).fstype in ("tmpfs", "ramfs"):
        parser.error(f"{Path.cwd()} is in memory; run this in a directory on a disk")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path.cwd()))
    (bench / ".gitignore").write_text("*\n")
    rows, failed = [], []
    began = time.monotonic()
    try:
        for name in options.parts or PARTS:
            say(f"{name}: {' '.join((PARTS[name].__doc__ or '').split())}")
            try:
                rows += PARTS[name](bench, options.rounds)
            except (RamTrainError, OSError) as error:
                failed.append(f"{name}: NOT MEASURED: {error}")
                say(failed[-1])
    finally:
        took_s = time.monotonic() - began
        clear(bench)
        show(rows)
    print(*failed, sep="\n")
    print(f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores in the last 5 minutes; {took_s:.0f} s in all")
    return int(bool(failed) or not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
