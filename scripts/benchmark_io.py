"""Compare this disk with the RAM disks that can be had here, and a run on the disk with the same run in RAM.

benchmark_io: disk: sequential write, fsync: 391 MiB/s (380 MiB/s to 402 MiB/s)
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ramtrain.benchmark import BENCHMARK, baseline_of, clear, figures, run_pairs, write_table
from ramtrain.config import Run, benchmark_run
from ramtrain.durable import write_json
from ramtrain.environment import describe_machine
from ramtrain.iobench import Figure, measure_place
from ramtrain.ramdisk import Unavailable, acquire
from ramtrain.script import script_of_all

ROOM_BYTES = 1 << 30


def say(text: str) -> None:
    """Tell what is being done."""
    logging.info("benchmark_io: %s", text)


def places(run: Run, workdir: Path) -> Iterator[tuple[str, Path]]:
    """Give the disk's folder, and that of each RAM disk that can be had here, for as long as it is looked at."""
    yield "disk", workdir
    for backend in ("tmpfs", "shm", *(["path"] if run.ramdisk_path and run.backend == "path" else [])):
        try:
            lease = acquire(replace(run, run=BENCHMARK, backend=backend, size_bytes=ROOM_BYTES), workdir)
        except Unavailable as reason:
            say(f"no {backend} here: {reason}")
            continue
        try:
            yield backend, Path(lease.folder)
        finally:
            clear(workdir)


def benchmark_io(runs: Mapping[str, Run], run: Run | None, pairs: int, table: Path, baseline: Path) -> None:
    """Measure both, and write the table and the baseline."""
    workdir = Path.cwd()
    clear(workdir)
    found: list[Figure] = []
    for place, folder in places(next(iter(runs.values())), workdir):
        found += measure_place(place, folder, say=say)
    legs = run_pairs(run, pairs, workdir, say) if run else []
    if run:
        found += figures(run, legs)
    else:
        say(
            "no run is compared: name one in benchmark.run; without a RAM disk it writes all that it writes to the disk"
        )
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
