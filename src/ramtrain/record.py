"""The record of a run: what was done, how long it took, how much was written, what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from humanfriendly import format_size, format_timespan
from humanfriendly.text import pluralize

from ramtrain.durable import write_json
from ramtrain.environment import describe_machine
from ramtrain.export import Export
from ramtrain.meter import DiskCounters, ProcessWrites, disk_counters
from ramtrain.ramdisk import Lease
from ramtrain.schema import complete, load_yaml
from ramtrain.staging import Stage
from ramtrain.supervise import Training

_PROCESS_METHOD = (
    "/proc/PID/io of the supervising process before and after, children waited for included; "
    "logical: wchar; disk: write_bytes - cancelled_write_bytes"
)
_DRAIN_METHOD = "/proc/self/io of the supervising process around each durable checkpoint: write_bytes - cancelled"
_DEVICE_METHOD = "/proc/diskstats, sectors written from mount to unmount, all processes"
_FILESYSTEM_METHOD = "ext4 session_write_kbytes from mount to unmount, all processes"


@dataclass(frozen=True)
class Steps:
    """What the steps of a run left behind, in the order in which they were taken."""

    lease: Lease
    stage: Stage
    training: Training
    export: Export

    def write(self, path: Path) -> None:
        """Keep all of it, for the unmount and the record."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Steps:
        """Read what `write` kept."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            Lease.from_dict(content["lease"]),
            Stage.from_dict(content["stage"]),
            Training.from_dict(content["training"]),
            Export.from_dict(content["export"]),
        )


def compose(steps: Steps, config: Mapping[str, Any], workdir: Path, unmount_s: float) -> dict[str, Any]:
    """Return the record of a run; the disk's counters are read now, to end its account."""
    lease, stage, training, export = steps.lease, steps.stage, steps.training, steps.export
    ended = datetime.now(UTC)
    after = disk_counters(workdir)
    project = training.project
    return {
        "run": lease.run,
        "status": "done",
        "started": lease.started,
        "ended": ended.isoformat(timespec="milliseconds"),
        "command": training.command,
        "config": dict(config),
        "timings_s": {
            "mount": lease.mount_s,
            "stage": stage.stage_s,
            "train": training.train_s,
            "export": export.export_s,
            "unmount": unmount_s,
            "total": round(max(0.0, (ended - datetime.fromisoformat(lease.started)).total_seconds()), 3),
        },
        "writes": {
            "trainer": _process_writes(training.writes),
            "drain": {
                "disk_bytes": training.drained.disk_bytes,
                "checkpoints": training.drained.checkpoints,
                "skipped": training.drained.skipped,
                "duplicates": training.drained.duplicates,
                "dropped": training.drained.dropped,
                "method": _DRAIN_METHOD,
            },
            "export": _process_writes(export.writes),
            "filesystem": {
                "type": after.filesystem,
                "bytes": _difference(after, lease.counters, "filesystem_bytes"),
                "method": _FILESYSTEM_METHOD,
            },
            "device": {
                "name": after.device,
                "bytes": _difference(after, lease.counters, "device_bytes"),
                "method": _DEVICE_METHOD,
            },
            "baseline": None,
        },
        "ramdisk": {
            "backend": lease.backend,
            "why": lease.why,
            "size_bytes": lease.size_bytes,
            "peak_bytes": training.peak_bytes,
            "swap": lease.may_swap,
        },
        "staging": {"method": stage.method, "why": stage.why, "files": stage.files, "bytes": stage.bytes},
        "protection": {
            "max_loss_s": training.drained.max_loss_s,
            "worst_loss_s": training.drained.worst_loss_s,
            "longest_spacing_s": training.drained.longest_spacing_s,
            "longest_drain_s": training.drained.longest_drain_s,
            "resumed_from": training.resumed and training.resumed.checkpoint,
            "resumed_source": training.resumed and training.resumed.source,
            "lost_s": training.resumed and training.resumed.lost_s,
            "lost_steps": training.resumed and training.resumed.lost_steps,
        },
        "guard": {"actions": []},
        "progress": training.progress,
        "model": [asdict(file) for file in export.model],
        "artifacts": [asdict(file) for file in export.artifacts],
        "environment": {**describe_machine(workdir), "python": project.python, "packages": project.packages},
        "project": {
            "path": config["project"]["path"],
            "git_commit": project.git_commit,
            "dirty": project.dirty,
            "inputs": project.inputs,
            "inputs_left_out": project.inputs_left_out,
        },
    }


def write_record(path: Path, record: Mapping[str, Any], schema: Path) -> None:
    """Check a record against its JSON schema and write it.

    Raises:
        RamTrainError: the record is not what its schema says.
    """
    write_json(path, complete(dict(record), load_yaml(schema), str(path)))


def in_brief(record: Mapping[str, Any], home: Path) -> str:
    """Return the run's end in a line or two for the terminal."""
    writes = record["writes"]

    def size(size_bytes: int) -> str:
        return format_size(size_bytes, binary=True)

    drain = writes["drain"]
    took = format_timespan(record["timings_s"]["total"])
    if record["protection"]["resumed_from"]:
        took = f"{format_timespan(record['timings_s']['train'])} since it went on"
    model_bytes = sum(file["bytes"] for file in record["model"])
    return (
        f"run {record['run']}: done in {took}. The model is in {home}/model, "
        f"{pluralize(len(record['model']), 'file')} of {size(model_bytes)}, verified; the RAM is released.\n"
        f"run {record['run']}: the trainer wrote {size(writes['trainer']['logical_bytes'])}, of which "
        f"{size(writes['trainer']['disk_bytes'])} went to the disk; "
        f"{pluralize(drain['checkpoints'], 'durable checkpoint')} wrote {size(max(0, drain['disk_bytes']))}, the "
        f"export {size(writes['export']['disk_bytes'])}. Record: {home}/record.json"
    )


def _process_writes(writes: ProcessWrites) -> dict[str, Any]:
    return {**asdict(writes), "method": _PROCESS_METHOD}


def _difference(after: DiskCounters, before: DiskCounters, name: str) -> int | None:
    first, last = getattr(before, name), getattr(after, name)
    if first is None or last is None or before.device != after.device or last < first:
        return None  # there is no such counter, it is another disk's, or a reboot has set it back
    return last - first
