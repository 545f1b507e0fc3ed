"""Gather the records of all runs into one table, a row per run.

run      status  started                        timings_s.train  writes.trainer.logical_bytes  ...
example  done    2026-01-01T12:00:00.000+00:00  52.1             1810000000                    ...
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

HEAD = ["run", "status", "started"]
COLUMNS = [
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


def summarize(records: Sequence[Path]) -> pd.DataFrame:
    """Return the table: columns as in the record, `model_bytes` of all model files, `model_sha256` of the first.

    Parameters and metrics have the columns that any of the records has.
    """
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    columns = [*HEAD, *_parameter_columns(contents), *_metric_columns(contents), *COLUMNS]
    table = pd.json_normalize(contents).reindex(columns=columns)
    table["model_bytes"] = [sum(file["bytes"] for file in content["model"]) for content in contents]
    table["model_sha256"] = [content["model"][0]["sha256"] for content in contents]
    return table


def _parameter_columns(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for content in contents for name in content.get("parameters", {}))
    return [f"parameters.{name}" for name in names if name != "run"]


def _metric_columns(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for content in contents for name in content.get("metrics", {}))
    return [f"metrics.{name}.{part}" for name in names for part in ("final", "best", "step_of_best", "goal")]


if __name__ == "__main__":
    summarize([Path(path) for path in snakemake.input.records]).to_csv(snakemake.output.table, sep="\t", index=False)
