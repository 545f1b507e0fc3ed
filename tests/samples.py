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
        "parameters": {"seed": "1"},
        "metrics": {"loss": {"final": 0.5, "best": 0.25, "goal": "min", "step_of_best": 96, "source": "train.log: x"}},
        "model": [{"path": "model/best_model.pth", "bytes": 57056247, "sha256": "0" * 64}],
    }


def whole_record(run: str = "example", version: str = "1.2.3") -> dict[str, Any]:
    """Return a record with all that its schema asks for."""

    def wrote(logical_bytes: int, disk_bytes: int) -> dict[str, Any]:
        return {"logical_bytes": logical_bytes, "disk_bytes": disk_bytes, "write_calls": 9, "method": "/proc/PID/io"}

    counted = {"checkpoints": 3, "skipped": 8, "duplicates": 0, "dropped": 0}
    return {
        **sample_record(run),
        "ended": "2026-01-01T12:00:53.000+00:00",
        "command": ["python", "train.py", "--lr", "1e-4"],
        "training": {"project": "/project", "command": ["python", "train.py", "--lr", "1e-4"], "threads": None},
        "config": {},
        "devices": [],
        "job": None,
        "steps": {
            "mount": {"started": "2026-01-01T12:00:00.000+00:00", "ended": "2026-01-01T12:00:00.005+00:00"},
            "stage": {"started": "2026-01-01T12:00:00.200+00:00", "ended": "2026-01-01T12:00:00.259+00:00"},
            "train": {"started": "2026-01-01T12:00:00.500+00:00", "ended": "2026-01-01T12:00:52.000+00:00"},
            "export": {"started": "2026-01-01T12:00:52.400+00:00", "ended": "2026-01-01T12:00:52.620+00:00"},
            "unmount": {"started": "2026-01-01T12:00:52.992+00:00", "ended": "2026-01-01T12:00:53.000+00:00"},
        },
        "writes": {
            "trainer": {**wrote(1654829381, 1413120), "strays": []},
            "drain": {**wrote(171 * MIB, 171 * MIB), **counted},
            "guard": wrote(0, 0),
            "export": wrote(57 * MIB, 55 * MIB),
            "own": wrote(900, 8192),
            "filesystem": {"type": "overlay", "bytes": None, "method": "none: it has no such counter"},
            "device": {"name": "vda", "bytes": 240 * MIB, "physical": [], "idle": None, "method": "/proc/diskstats"},
            "cgroup": {"path": None, "bytes": None, "method": "io.stat"},
            "drive": None,
            "baseline": None,
            "written_bytes": 238388224,
            "saved_bytes": None,
        },
        "endurance": None,
        "ramdisk": {
            "backend": "tmpfs",
            "why": "the first choice, and it works here",
            "size_bytes": 2 * GIB,
            "size_from": "ramdisk.size",
            "peak_bytes": 222879744,
            "swap": False,
            "swapped_out_bytes": 0,
        },
        "checkpoints": {"seen": 12, "size_bytes": 54 * MIB, "save_s": 0.2, "durable": []},
        "staging": {"method": "overlay", "why": "the first choice, and it works here", "files": 0, "bytes": 0},
        "protection": {
            "max_loss_s": 600,
            "worst_loss_s": 12.5,
            "longest_spacing_s": 4.5,
            "longest_drain_s": 0.4,
            "resumed_from": None,
            "resumed_source": None,
            "lost_s": None,
            "lost_steps": None,
        },
        "guard": {"actions": [], "counts": {}, "paused_s": 0, "spilled_bytes": 0},
        "progress": {},
        "artifacts": [{"path": "artifacts/log.txt", "bytes": 8, "sha256": "1" * 64}],
        "installed": None,
        "environment": {
            "kernel": "6.12.0",
            "cpu": "a CPU",
            "cpus": 2,
            "memory_bytes": 24 * GIB,
            "disk": {"source": "/dev/vda1", "filesystem": "overlay", "model": None},
            "gpus": [],
            "ramtrain": version,
            "ramtrain_commit": None,
            "ramtrain_dirty": None,
            "snakemake": "9.27.1",
            "ramtrain_python": "3.12.1",
            "python": "3.11.7",
            "interpreter": "/home/me/.venv/bin/python",
            "packages": {},
            "conda": {},
        },
        "project": {
            "path": "/home/me/project",
            "git_commit": "c" * 40,
            "dirty": False,
            "diff": None,
            "inputs": [{"path": "train.py", "sha256": "2" * 64}],
            "inputs_left_out": 0,
            "inputs_why": "all of them",
        },
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
            "status": "done",
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
            {"run": names.format(id=run)[:100], "status": "done", "timings_s.total": 53.0}
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
    (home / "record.json").write_text(json.dumps(whole_record(run)), encoding="utf-8")
    write_table(sample_series(), home / "series.tsv")
