"""Gather the records of all runs into one table, a row per run.

run      status  started                        timings_s.train  writes.trainer.logical_bytes  ...
example  done    2026-01-01T12:00:00.000+00:00  52.1             1810000000                    ...
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

COLUMNS = [
    "run",
    "status",
    "started",
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
    """Return the table: columns as in the record, `model_bytes` of all model files, `model_sha256` of the first."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    table = pd.json_normalize(contents).reindex(columns=COLUMNS)
    table["model_bytes"] = [sum(file["bytes"] for file in content["model"]) for content in contents]
    table["model_sha256"] = [content["model"][0]["sha256"] for content in contents]
    return table


if __name__ == "__main__":
    summarize([Path(path) for path in snakemake.input.records]).to_csv(snakemake.output.table, sep="\t", index=False)
