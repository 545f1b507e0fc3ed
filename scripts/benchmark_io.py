"""Compare this disk with the RAM disks that can be had here, and a run on the disk with the same run in RAM.

benchmark_io: disk: sequential write, fsync: 391 MiB/s (380 MiB/s to 402 MiB/s)
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ramtrain.admission import DoesNotFit
from ramtrain.benchmark import BENCHMARK, baseline_of, clear, figures, run_pairs, write_table
from ramtrain.config import Run, benchmark_run
from ramtrain.durable import write_json
from ramtrain.environment import describe_machine
from ramtrain.iobench import Figure, file_bytes, measure_place, room_bytes
from ramtrain.ramdisk import Unavailable, acquire
from ramtrain.script import script_of_all

# What lies on a RAM disk beside what is measured: its lease and marks.
NOTES_BYTES = 16 << 20


def say(text: str) -> None:
    """Tell what is being done."""
    logging.info("benchmark_io: %s", text)


def compare_disks(run: Run, workdir: Path) -> list[Figure]:
    """Measure the disk, then with as much data each RAM disk that can be had here."""
    found = measure_place("disk", workdir, say=say)
    size_bytes = file_bytes(found)
    for backend in ("tmpfs", "shm", *(["path"] if run.backend == "path" else [])):
        needed_bytes = room_bytes(size_bytes) + NOTES_BYTES
        size = {"size_bytes": needed_bytes, "least_bytes": needed_bytes, "auto_size": False, "fallback": "none"}
        own = replace(run, run=BENCHMARK, backend=backend, **size)
        try:
            lease = acquire(own, workdir)
        except (Unavailable, DoesNotFit) as reason:
            say(f"no {backend} here: {reason}")
            continue
        try:
            found += measure_place(backend, Path(lease.folder), size_bytes=size_bytes, say=say)
        finally:
            clear(workdir)
    return found


def benchmark_io(runs: Mapping[str, Run], run: Run | None, pairs: int, table: Path, baseline: Path) -> None:
    """Measure both, and write the table and the baseline."""
    workdir = Path.cwd()
    clear(workdir)
    legs = run_pairs(run, pairs, workdir, say) if run else []
    found = compare_disks(next(iter(runs.values())), workdir)
    if run:
        found += figures(run, legs)
    else:
        say("no run is compared: name one in benchmark.run; on the disk it writes all that a RAM disk would spare it")
    write_table(table, found)
    content = {"machine": describe_machine(workdir), "baseline": asdict(baseline_of(run, legs)) if run else None}
    write_json(baseline, {**content, "trainings": [asdict(leg) for leg in legs]})


if __name__ == "__main__":
    with script_of_all(snakemake, "benchmark_io") as runs:
        benchmark_io(
            runs,
            benchmark_run(snakemake.config, runs),
            snakemake.config["benchmark"]["pairs"],
            Path(snakemake.output.table),
            Path(snakemake.output.baseline),
        )
