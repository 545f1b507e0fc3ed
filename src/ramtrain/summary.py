"""The table of the runs, results/summary.tsv: a row a run, with what came of it; failed ones with the reason."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humanfriendly.text import pluralize

from ramtrain.failure import read_failure
from ramtrain.shelf import RESULTS, home

if TYPE_CHECKING:
    import pandas as pd

# Columns are named as in the record; those of parameters and metrics follow `started`.
_HEAD = ["run", "status", "reason", "started"]
_COLUMNS = [
    *(f"timings_s.{step}" for step in ("mount", "stage", "train", "export", "unmount", "total")),
    "writes.trainer.logical_bytes",
    "writes.trainer.disk_bytes",
    "writes.export.disk_bytes",
    "writes.guard.disk_bytes",
    "writes.own.disk_bytes",
    "writes.written_bytes",
    "writes.device.bytes",
    "writes.baseline.device_bytes",
    "writes.baseline.wall_s",
    "writes.saved_bytes",
    "endurance.with_ram.percent",
    "endurance.with_ram.life_days",
    "endurance.without.percent",
    "endurance.without.life_days",
    "ramdisk.backend",
    "ramdisk.peak_bytes",
    "ramdisk.swapped_out_bytes",
    "guard.paused_s",
    "guard.spilled_bytes",
    "staging.method",
    "writes.drain.disk_bytes",
    "writes.drain.checkpoints",
    "checkpoints.seen",
    "checkpoints.size_bytes",
    "checkpoints.save_s",
    "protection.worst_loss_s",
    "protection.resumed_from",
    "protection.lost_s",
]
_MODEL = ["model_bytes", "model_sha256"]


def summarize(runs: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Return the table: columns as in the record, `model_bytes` of all model files, `model_sha256` of the first.

    After the configured runs come all others whose records are in results.

    Args:
        runs: the configured ones by their ids, in their order, with the parameters of those that have no record yet.
    """
    import pandas as pd  # it takes a fifth of a second, and every call of Snakemake reads this module

    others = {path.parent.name: {} for path in sorted(RESULTS.glob("*/record.json")) if path.parent.name not in runs}
    rows = pd.json_normalize([_row(run, parameters) for run, parameters in {**runs, **others}.items()])
    of_runs = [name for part in ("parameters.", "metrics.") for name in rows.columns if name.startswith(part)]
    of_runs = [name for name in of_runs if not name.endswith(".source")]
    return rows.reindex(columns=[*_HEAD, *of_runs, *_COLUMNS, *_MODEL]).convert_dtypes()


def write_summary(path: Path, runs: Mapping[str, Mapping[str, str]]) -> None:
    """Write the table."""
    summarize(runs).to_csv(path, sep="\t", index=False)


def account(runs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Write the table although not every run has its record; return what there is to say of those that failed."""
    failures = {run: failure for run in runs if (failure := read_failure(run))}
    if not failures:
        return []
    lines = [f"run {run}: failed: {failure.reason}" for run, failure in failures.items()]
    path = RESULTS / "summary.tsv"
    try:
        write_summary(path, runs)
        # So that Snakemake makes it again when every run that is configured then has its record.
        records = [home(run) / "record.json" for run in runs]
        oldest_s = min((record.stat().st_mtime for record in records if record.exists()), default=path.stat().st_mtime)
        os.utime(path, (oldest_s - 1, oldest_s - 1))
    except OSError as error:
        return [*lines, f"{path} could not be written: {error.strerror}"]
    return [*lines, f"{pluralize(len(failures), 'run')} of {len(runs)} failed; the table of all is {path}"]


def _row(run: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return what is known of a run; one that failed when it was last tried has no figures of the time before."""
    failure, record = read_failure(run), home(run) / "record.json"
    if failure:
        return {"run": run, "status": "failed", "reason": failure.reason, "parameters": dict(parameters)}
    if not record.exists():
        return {"run": run, "status": "not done", "parameters": dict(parameters)}
    content = json.loads(record.read_text(encoding="utf-8"))
    model = content["model"]
    return {**content, "model_bytes": sum(file["bytes"] for file in model), "model_sha256": model[0]["sha256"]}
