"""Tables as a run, a sweep and the benchmark leave them, for the tests of what is drawn from them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MIB = 1 << 20
GIB = 1 << 30
LONG = ("lr=0.001,schedule=cosine_with_restarts-" * 3)[:100]


def sample_record(run: str = "example") -> dict[str, Any]:
    """Return a record, or what of it is drawn and summed up."""
    return {
        "run": run,
        "status": "done",
        "started": "2026-01-01T12:00:00.000+00:00",
        "timings_s": {"mount": 0.005, "stage": 0.059, "train": 51.5, "export": 0.22, "unmount": 0.008, "total": 53.0},
        "writes": {
            "trainer": {"logical_bytes": 1654829381, "disk_bytes": 1413120},
            "drain": {"disk_bytes": 171 * MIB, "checkpoints": 3},
            "export": {"logical_bytes": 57 * MIB, "disk_bytes": 55 * MIB},
            "device": {"name": "vda", "bytes": 240 * MIB},
            "baseline": None,
        },
        "ramdisk": {"backend": "tmpfs", "size_bytes": 2 * GIB, "peak_bytes": 222879744},
        "environment": {"memory_bytes": 24 * GIB},
        "parameters": {"run": run, "seed": "1"},
        "metrics": {"loss": {"final": 0.5, "best": 0.25, "goal": "min", "step_of_best": 96, "source": "train.log: x"}},
        "model": [{"path": "model/best_model.pth", "bytes": 57056247, "sha256": "0" * 64}],
    }


def sample_series(rows: int = 52, checkpoints: int = 12, drains: int = 3) -> pd.DataFrame:
    """Return the samples of a training that keeps its three newest checkpoints."""
    seconds = np.arange(rows)
    complete, home = (seconds * count // max(1, rows - 1) for count in (checkpoints, drains))
    return pd.DataFrame(
        {
            "t_s": np.round(seconds * 1.003, 3),
            "ram_bytes": np.minimum(complete, 3) * 54 * MIB + seconds,
            "memory_bytes": 3 * GIB + seconds,
            "logical_bytes": complete * 130 * MIB,
            "disk_bytes": np.minimum(seconds * 30000, 1413120),
            "drain_bytes": home * 57 * MIB,
            "device_bytes": home * 57 * MIB + seconds * 90000,
            "swap_bytes": 0,
            "checkpoints": complete,
            "drains": home,
            "progress.epoch": [f"{number}/12" for number in complete],
            "progress.loss": '"',
        }
    )


def sample_summary(runs: list[str], baseline: bool) -> pd.DataFrame:
    """Return the table of the runs; with a baseline, it was measured for every other one, and the last lost by it."""
    rows = pd.DataFrame(
        {
            "run": runs,
            "timings_s.total": 53.0,
            "writes.trainer.logical_bytes": 3 * GIB,
            "writes.trainer.disk_bytes": [-4096.0, *[1413120.0] * (len(runs) - 1)],
            "writes.drain.disk_bytes": 114 * MIB,
            "writes.export.disk_bytes": 55 * MIB,
            "writes.device.bytes": 200 * MIB,
        }
    )
    if baseline:
        measured = rows.index % 2 == 0
        rows["writes.baseline.device_bytes"] = np.where(measured, 2.5 * GIB, np.nan)
        rows["writes.baseline.wall_s"] = np.where(measured, 61.0, np.nan)
        rows["writes.saved_bytes"] = np.where(measured, 2.25 * GIB, np.nan)
        rows.loc[rows.index[-1], ["writes.baseline.device_bytes", "writes.saved_bytes"]] = [100 * MIB, -12 * MIB]
    return rows


def sample_ranked(
    grid: dict[str, list[str]], metric: str = "loss", goal: str = "min", names: str = "{id}"
) -> pd.DataFrame:
    """Return the table of the runs of a grid: parameters, each run's metric, best in the middle of the grid."""
    rows = []
    for number, values in enumerate(itertools.product(*grid.values())):
        run = ",".join(f"{name}={value}" for name, value in zip(grid, values, strict=True)) or "example"
        away = sum(
            abs(column.index(value) - len(column) // 2) for column, value in zip(grid.values(), values, strict=True)
        )
        best = 0.5 + 0.1 * away + 0.0001 * number
        rows.append(
            {"run": names.format(id=run)[:100], "timings_s.total": 53.0}
            | {f"parameters.{name}": value for name, value in zip(grid, values, strict=True)}
            | {f"metrics.{metric}.final": best * 1.05, f"metrics.{metric}.best": best, f"metrics.{metric}.goal": goal}
        )
    return pd.DataFrame(rows)


def sample_benchmark(run: str = "example") -> pd.DataFrame:
    """Return what the benchmark leaves: places by themselves, and a pair of whole runs."""
    measures = [
        ("sequential write, fsync", "B/s", "fio", GIB, {"disk": 4.1e8, "tmpfs": 2.4e9, "shm": 2.3e9, "path": 2.35e9}),
        ("random 4 KiB write, fsync", "fsyncs/s", "fio", 256 * MIB, {"disk": 620, "tmpfs": 310e3, "shm": 305e3}),
        ("1,000 small files, fsync", "files/s", "python", 4 * MIB, {"disk": 410, "tmpfs": 52e3}),
        ("checkpoint pattern", "s", "python", 512 * MIB, {"disk": 3.3, "tmpfs": 0.41}),
        (f"run {run}: wall time", "s", "", None, {"disk": 55.1, "RAM": 52.3}),
        (f"run {run}: device bytes", "B", "", None, {"disk": 1.7e9, "RAM": 1.4e6}),
    ]
    rows = [
        (what, place, unit, tool, size_bytes, 5, median, median * 0.9, median * 1.1)
        for what, unit, tool, size_bytes, places in measures
        for place, median in places.items()
    ]
    return pd.DataFrame(rows, columns=["what", "place", "unit", "tool", "size_bytes", "n", "median", "min", "max"])


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as the workflow does."""
    table.to_csv(path, sep="\t", index=False, quoting=3)
    return path


def write_results(run: str, home: Path) -> None:
    """Put there what a run leaves, as far as pictures and the summary need it."""
    home.mkdir(parents=True)
    (home / "export.json").write_text("{}", encoding="utf-8")
    (home / "record.json").write_text(json.dumps(sample_record(run)), encoding="utf-8")
    write_table(sample_series(), home / "series.tsv")
