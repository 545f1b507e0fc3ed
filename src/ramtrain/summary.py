"""The table of the runs, results/summary.tsv: a row a run, with what came of it; failed ones with the reason."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humanfriendly.text import pluralize

from ramtrain import caller
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.failure import Failure, read_failure
from ramtrain.redact import redact
from ramtrain.shelf import RESULTS, home

log = logging.getLogger(__name__)

_MOST_NAMED = 3
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
NOT_CONFIGURED = "no longer configured"


@dataclass(frozen=True)
class Asked:
    """A run as it is asked for now, without secrets: what tells it from others, and what defines its training."""

    parameters: Mapping[str, str]
    training: Mapping[str, Any] | None


def asked(runs: Mapping[str, Run]) -> dict[str, Asked]:
    """Return what the table needs to know of configured runs, by their ids."""
    return {name: Asked(redact(run.values), run.training) for name, run in runs.items()}


def summarize(runs: Mapping[str, Asked]) -> list[dict[str, Any]]:
    """Return the table's rows: columns as in the record, `model_bytes` of all model files, `model_sha256` of the first;
    None for what is not known.

    After the configured runs come all others whose records are in results and can be read.

    Args:
        runs: the configured ones by their ids, in their order.

    Raises:
        RamTrainError: the record of a configured run cannot be read.
    """
    rows = [*(_row(run, what) for run, what in runs.items()), *_others(runs)]
    names = dict.fromkeys(name for row in rows for name in row)
    of_runs = [name for part in ("parameters.", "metrics.") for name in names if name.startswith(part)]
    return [{name: row.get(name) for name in (*_HEAD, *of_runs, *_COLUMNS, *_MODEL)} for row in rows]


def write_summary(path: Path, runs: Mapping[str, Asked]) -> None:
    """Write the table.

    Raises:
        RamTrainError: the record of a configured run cannot be read.
    """
    rows = summarize(runs)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def account(runs: Mapping[str, Asked]) -> list[str]:
    """Write the table although not every run has its record; return what there is to say of those that failed."""
    failures = {run: failure for run, what in runs.items() if (failure := _failure(run, what))}
    if not failures:
        return []
    lines = [f"run {run}: {failure.status}: {failure.reason}" for run, failure in failures.items()]
    path = RESULTS / "summary.tsv"
    try:
        write_summary(path, runs)
        # So that Snakemake makes it again when every run that is configured then has its record.
        records = [home(run) / "record.json" for run in runs]
        oldest_s = min((record.stat().st_mtime for record in records if record.exists()), default=path.stat().st_mtime)
        os.utime(path, (oldest_s - 1, oldest_s - 1))
    except OSError as error:
        return [*lines, f"{path} could not be written: {error.strerror}"]
    except RamTrainError as error:
        return [*lines, f"{path} could not be written: {error}"]
    return [*lines, f"{len(failures)} of {pluralize(len(runs), 'run')} did not end well; the table of all is {path}"]


def done(runs: Iterable[str]) -> list[str]:
    """Return where the models are, after all that Snakemake has said."""
    ended = [run for run in runs if (home(run) / "record.json").exists()]
    if len(ended) <= _MOST_NAMED:
        return [f"run {run}: done; its model is in {home(run) / 'model'}" for run in ended]
    return [f"{len(ended)} runs are done, each with its model in {RESULTS}/<run>/model: {RESULTS / 'summary.tsv'}"]


def _others(runs: Mapping[str, Asked]) -> list[dict[str, Any]]:
    """Return the rows of the runs that are no longer configured, as far as their records can be read."""
    rows = []
    for record in sorted(RESULTS.glob("*/record.json")):
        if record.parent.name in runs:
            continue
        try:
            rows.append({**_row(record.parent.name, Asked({}, None)), "status": NOT_CONFIGURED})
        except RamTrainError as error:
            log.warning("%s The run is no longer configured, and left out of the table.", error)
    return rows


def _row(run: str, what: Asked) -> dict[str, Any]:
    """Return what is known of a run; one that failed when it was last tried has no figures of the time before."""
    parameters = {f"parameters.{name}": value for name, value in what.parameters.items()}
    if failure := _failure(run, what):
        return {"run": run, "status": failure.status, "reason": failure.reason, **parameters}
    record = home(run) / "record.json"
    return _recorded(record) if record.exists() else {"run": run, "status": "not done", **parameters}


def _failure(run: str, what: Asked) -> Failure | None:
    """Return why the run failed when it was last tried; None if what it left is of the very training that is asked for
    now: what was tried in between is no longer wanted."""
    failure = read_failure(run)
    if failure and what.training is not None and _trained(run) == what.training:
        return None
    return failure


def _trained(run: str) -> Any:
    """Return what defined the training whose model and record are at home; None if they are not, or do not say."""
    try:
        record = json.loads((home(run) / "record.json").read_text(encoding="utf-8"))
        return record["training"] if (home(run) / "export.json").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recorded(path: Path) -> dict[str, Any]:
    """Return a record's part of the table: a record may list ten thousand files, and a table may be of a thousand.

    Raises:
        RamTrainError: it cannot be read, or is no record of a run.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        model = record["model"]
        return {
            **{name: record.get(name) for name in _HEAD},
            **{f"parameters.{name}": value for name, value in record.get("parameters", {}).items()},
            **{
                f"metrics.{name}.{part}": value
                for name, metric in record.get("metrics", {}).items()
                for part, value in metric.items()
                if part != "source"
            },
            **{column: _look_up(record, column) for column in _COLUMNS},
            "model_bytes": sum(file["bytes"] for file in model),
            "model_sha256": model[0]["sha256"],
        }
    except OSError as error:
        raise RamTrainError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RamTrainError(
            f"{path} is no record of a run ({error!r}). Delete it; if the run is configured, "
            f"`{caller.command('train')}` writes it again, and trains nothing for that."
        ) from error


def _look_up(record: Mapping[str, Any], column: str) -> Any:
    found: Any = record
    for key in column.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found
