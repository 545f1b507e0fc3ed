"""One configured run without a RAM disk against the same run in RAM, in turns: what is saved, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ramtrain.baseline import Baseline
from ramtrain.config import Run
from ramtrain.durable import remove
from ramtrain.errors import RamTrainError
from ramtrain.export import export_model
from ramtrain.iobench import Figure, clear_killed
from ramtrain.ledger import at_work
from ramtrain.meter import disk_counters, settle
from ramtrain.ramdisk import MARK, Lease, acquire, ram_root, release
from ramtrain.redact import redact_arguments
from ramtrain.series import SERIES
from ramtrain.shelf import home
from ramtrain.staging import stage_project
from ramtrain.supervise import Failed, Training, train

# The run id of its trainings, and so the name of their folders; no run of a user's may have it.
BENCHMARK = "benchmark_io"
DISK, RAM = "disk", "RAM"


@dataclass(frozen=True)
class Leg:
    """A whole training: on the disk until the trainer's end; in RAM with mount, staging, durable checkpoints, export.

    `device_bytes` is what the disk's device was given by all processes until it had come to rest, everything synced;
    None where it has no counter. `step_s` and `save_s`, the median of a checkpoint, are None where they are not known.
    """

    place: str
    wall_s: float
    step_s: float | None
    save_s: float | None
    logical_bytes: int
    disk_bytes: int
    device_bytes: int | None


def run_pairs(run: Run, pairs: int, workdir: Path, say: Callable[[str], None]) -> list[Leg]:
    """Train the run on the disk and in RAM, `pairs` times each, in turns; each is thrown away.

    Raises:
        RamTrainError: a training failed, or was told to end; nothing of it is left.
    """
    legs = []
    clear(workdir)
    for number in range(pairs):
        for place in (DISK, RAM) if number % 2 == 0 else (RAM, DISK):
            say(f"run {run.run}, {number + 1} of {pairs}: {'on the disk' if place == DISK else 'in RAM'}")
            try:
                legs.append(_train(run, place, workdir))
            except Failed as error:
                raise RamTrainError(f"benchmark_io: run {run.run} on the {place}: {error.what}") from None
            finally:
                clear(workdir)
    return legs


def clear(workdir: Path) -> None:
    """Release and delete what a benchmark, of this call or of one that was killed, has left."""
    mark = ram_root(workdir) / BENCHMARK / MARK
    if mark.exists():
        release(Lease.read(mark))
    remove(home(BENCHMARK))
    clear_killed(workdir)


def _train(run: Run, place: str, workdir: Path) -> Leg:
    backend = "disk" if place == DISK else "auto" if run.backend == "disk" else run.backend
    path = None if place == DISK else run.ramdisk_path
    own = replace(run, run=BENCHMARK, backend=backend, ramdisk_path=path, resume="never", store=None)
    settle(workdir)
    before, started = disk_counters(workdir), time.monotonic()
    lease = acquire(own, workdir)
    with at_work(Path(lease.state)):
        stage = stage_project(own, lease)
        training = train(own, lease, stage)
        if place == RAM:
            export_model(BENCHMARK, own.products, lease, stage)
    wall_s = round(time.monotonic() - started, 3)
    settle(workdir)
    saves_s = [saved.save_s for saved in training.saved if saved.save_s is not None]
    return Leg(
        place=place,
        wall_s=wall_s,
        step_s=_step_s(home(BENCHMARK) / SERIES),
        save_s=statistics.median(saves_s) if saves_s else None,
        logical_bytes=training.writes.logical_bytes,
        disk_bytes=_disk_bytes(training),
        device_bytes=disk_counters(workdir).since(before),
    )


def _disk_bytes(training: Training) -> int:
    return training.writes.disk_bytes + training.drained.writes.disk_bytes


def _step_s(series: Path) -> float | None:
    """Return the mean time of a step between the first and the last that were seen; the series is a second coarse."""
    table = pd.read_csv(series, sep="\t", dtype={"progress.step": str})
    if "progress.step" not in table:
        return None
    steps = pd.to_numeric(table["progress.step"], errors="coerce").dropna()
    first_seen = table.loc[steps.drop_duplicates().index, "t_s"]
    count = steps.max() - steps.min() if len(steps) else 0
    return round(float((first_seen.iloc[-1] - first_seen.iloc[0]) / count), 6) if count else None


def _values(legs: Sequence[Leg], place: str, key: str) -> list[Any]:
    return [value for leg in legs if leg.place == place and (value := getattr(leg, key)) is not None]


def figures(run: Run, legs: Sequence[Leg]) -> list[Figure]:
    """Return medians and ranges of all that was measured of the trainings."""
    measures = {
        "wall time": ("wall_s", "s"),
        "step time": ("step_s", "s"),
        "checkpoint write": ("save_s", "s"),
        "logical bytes": ("logical_bytes", "B"),
        "disk bytes": ("disk_bytes", "B"),
        "device bytes": ("device_bytes", "B"),
    }
    found = []
    for name, (key, unit) in measures.items():
        for place in (DISK, RAM):
            if values := _values(legs, place, key):
                low, high = min(values), max(values)
                size_bytes = int(statistics.median(_values(legs, place, "logical_bytes")))
                middle = statistics.median(values)
                what = f"run {run.run}: {name}"
                found.append(Figure(what, place, unit, "RamTrain", size_bytes, len(values), middle, low, high))
    return found


def baseline_of(run: Run, legs: Sequence[Leg]) -> Baseline:
    """Return the baseline that the trainings give."""

    def median(place: str, key: str) -> Any:
        values = _values(legs, place, key)
        return statistics.median(values) if values else None

    return Baseline(
        run=run.run,
        project=str(run.project),
        command=redact_arguments(run.command),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        pairs=len(legs) // 2,
        wall_s=median(DISK, "wall_s"),
        with_ram_wall_s=median(RAM, "wall_s"),
        logical_bytes=median(DISK, "logical_bytes"),
        disk_bytes=median(DISK, "disk_bytes"),
        device_bytes=median(DISK, "device_bytes"),
        with_ram_device_bytes=median(RAM, "device_bytes"),
    )


def write_table(path: Path, found: Sequence[Figure]) -> None:
    """Write the figures, a row each, tab-separated."""
    columns = [field.name for field in fields(Figure)]
    pd.DataFrame([asdict(figure) for figure in found], columns=columns).to_csv(path, sep="\t", index=False)
