"""The record of a run: what was done, how long it took, how much was written, what came of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from humanfriendly import format_size, format_timespan
from humanfriendly.text import pluralize

from ramtrain.baseline import Baseline
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.endurance import Drive, ask_drive, rated_bytes, wear
from ramtrain.environment import describe_machine
from ramtrain.export import Export
from ramtrain.meter import DiskCounters, ProcessWrites, disk_counters
from ramtrain.metrics import Metric
from ramtrain.ramdisk import Lease
from ramtrain.redact import redact
from ramtrain.schema import complete, load_yaml
from ramtrain.staging import Stage
from ramtrain.supervise import Training
from ramtrain.system import sync_filesystem

_PROCESS_METHOD = (
    "/proc/PID/io of the supervising process before and after, children waited for included; "
    "logical: wchar; disk: write_bytes - cancelled_write_bytes"
)
_DRAIN_METHOD = (
    "/proc/self/io of the supervising process around each durable checkpoint; "
    "logical: wchar; disk: write_bytes - cancelled_write_bytes"
)
_DEVICE_METHOD = "/proc/diskstats, sectors written from mount to unmount, all processes"
_FILESYSTEM_METHODS = {
    "ext4": "session_write_kbytes from mount to unmount, all processes: what went to the device",
    "xfs": "xs_write_bytes from mount to unmount, all processes: what was given to it, the page cache included",
}
_IDLE_METHOD = "/proc/diskstats from mount to the trainer's start, in which this run writes next to nothing"
_CGROUP_METHOD = "io.stat of the cgroup (v2) that RamTrain and the trainer are in, from mount to unmount"
_OWN_METHOD = (
    "/proc/self/io of the supervising process while it trains, less the trainer and the durable checkpoints; "
    "logical: wchar, RAM included; disk: write_bytes - cancelled_write_bytes"
)
_DRIVE_METHOD = "smartctl: all that hosts have written to the drive in its life"
# Later the time between mount and start is not that of one call: a training went on after a pause.
_LONGEST_IDLE_S = 120.0


@dataclass(frozen=True)
class Steps:
    """What the steps of a run left behind, in the order in which they were taken."""

    lease: Lease
    stage: Stage
    training: Training
    export: Export
    metrics: dict[str, Metric] = field(default_factory=dict)

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
            {name: Metric(**metric) for name, metric in content.get("metrics", {}).items()},
        )


def compose(
    steps: Steps,
    run: Run,
    workdir: Path,
    installed: Mapping[str, Any] | None,
    unmount_s: float,
    unmount: Mapping[str, str],
    baseline: Baseline | None = None,
    tbw: float | None = None,
) -> dict[str, Any]:
    """Return the record of a run, without secrets; the disk's counters are read now, to end its account.

    Args:
        installed: where else the model was put, with its files, its bytes, and what that wrote to the disk.
        unmount: when the unmounting `started` and `ended`.
        tbw: what the drive is rated for, in TB, if the config says so.
    """
    lease, stage, training, export = steps.lease, steps.stage, steps.training, steps.export
    if lease.backend == "disk":
        sync_filesystem(workdir)  # what lies in the page cache is this run's to account for
    ended = stamp()
    after = disk_counters(workdir)
    drive = next(filter(None, map(ask_drive, after.physical)), None)
    spent = datetime.fromisoformat(ended) - datetime.fromisoformat(lease.started)
    total_s = round(max(0.0, spent.total_seconds()), 3)
    written_bytes = sum(
        max(0, part)
        for part in (
            training.writes.disk_bytes,
            training.drained.writes.disk_bytes,
            training.guarded.writes.disk_bytes,
            export.writes.disk_bytes,
            training.own.disk_bytes,
            installed["disk_bytes"] if installed else 0,
        )
    )
    if training.resumed:
        baseline = None  # these figures are of the last attempt, and not to be compared with those of a whole run
    without_bytes = baseline.device_bytes if baseline else None
    project = training.project
    python = project.python
    content = {
        "run": lease.run,
        "status": "done",
        "started": lease.started,
        "ended": ended,
        "command": training.command,
        "parameters": run.values,
        "training": training.fingerprint.training,
        "config": dict(run.config),
        "devices": training.devices,
        "job": lease.job and {key: getattr(lease.job, key) for key in ("id", "node", "partition")},
        "timings_s": {
            "mount": lease.mount_s,
            "stage": stage.stage_s,
            "train": training.train_s,
            "export": export.export_s,
            "unmount": unmount_s,
            "total": total_s,
        },
        "steps": _times(steps, unmount),
        "writes": {
            "trainer": {
                **_process_writes(training.writes),
                "strays": [{"path": path, "bytes": size_bytes} for path, size_bytes in training.strays.items()],
            },
            "drain": {
                **asdict(training.drained.writes),
                "checkpoints": training.drained.checkpoints,
                "skipped": training.drained.skipped,
                "duplicates": training.drained.duplicates,
                "dropped": training.drained.dropped,
                "method": _DRAIN_METHOD,
            },
            "guard": _process_writes(training.guarded.writes),
            "export": _process_writes(export.writes),
            "own": {**asdict(training.own), "method": _OWN_METHOD},
            "filesystem": {
                "type": after.filesystem,
                "bytes": after.since(lease.counters, "filesystem_bytes"),
                "method": _FILESYSTEM_METHODS.get(after.filesystem, "none: it has no such counter"),
            },
            "device": {
                "name": after.device,
                "bytes": after.since(lease.counters),
                "physical": _physical(after, lease.counters),
                "idle": _idle(training.before, lease.counters),
                "method": _DEVICE_METHOD,
            },
            "cgroup": {
                "path": after.cgroup,
                "bytes": after.since(lease.counters, "cgroup_bytes"),
                "method": _CGROUP_METHOD,
            },
            "drive": {**asdict(drive), "method": _DRIVE_METHOD} if drive else None,
            "baseline": asdict(baseline) if baseline else None,
            "written_bytes": written_bytes,
            "saved_bytes": None if without_bytes is None else without_bytes - written_bytes,
        },
        "endurance": _endurance(written_bytes, without_bytes, total_s, tbw, drive),
        "ramdisk": {
            "backend": lease.backend,
            "why": lease.why,
            "size_bytes": lease.size_bytes,
            "size_from": lease.size_from,
            "peak_bytes": training.peak_bytes,
            "swap": lease.may_swap,
            "swapped_out_bytes": max(0, after.swapped_out_bytes - lease.counters.swapped_out_bytes),
        },
        "checkpoints": _checkpoints(training),
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
        "guard": {key: value for key, value in asdict(training.guarded).items() if key != "writes"},
        "progress": training.progress,
        "metrics": {name: asdict(metric) for name, metric in steps.metrics.items()},
        "model": [asdict(file) for file in export.model],
        "artifacts": [asdict(file) for file in export.artifacts],
        "installed": installed,
        "environment": {
            **describe_machine(workdir),
            "python": python.version,
            "interpreter": python.executable,
        },
        "project": {
            "path": run.config["project"]["path"],
            "git_commit": project.git_commit,
            "dirty": project.dirty,
            "diff": project.diff,
            "inputs": project.inputs,
            "inputs_left_out": project.inputs_left_out,
            "inputs_why": project.inputs_why,
        },
    }
    record = redact(content)
    # The names of packages are no names of secrets, whatever they are.
    record["environment"] |= {"packages": python.packages, "conda": python.conda}
    return record


def _times(steps: Steps, unmount: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return when each step started and ended, as far as the notes of the steps say."""
    noted = {
        "mount": {"started": steps.lease.started, "ended": steps.lease.mounted},
        "stage": {"started": steps.stage.started, "ended": steps.stage.ended},
        "train": {"started": steps.training.started, "ended": steps.training.ended},
        "export": {"started": steps.export.started, "ended": steps.export.ended},
        "unmount": unmount,
    }
    return {
        step: {what: at for what, at in times.items() if at} for step, times in noted.items() if any(times.values())
    }


def _physical(after: DiskCounters, before: DiskCounters) -> list[dict[str, Any]]:
    known = [name for name in after.physical if name in before.physical]
    return [
        {"name": name, "bytes": size_bytes}
        for name in known
        if (size_bytes := after.physical[name] - before.physical[name]) >= 0
    ]


def _idle(start: DiskCounters, mount: DiskCounters) -> dict[str, Any] | None:
    """Return what the device was given before the trainer started: the neighbours' share, as far as that tells."""
    size_bytes, over_s = start.since(mount), round(start.read_s - mount.read_s, 3)
    if size_bytes is None or not 0 < over_s <= _LONGEST_IDLE_S:
        return None
    return {"bytes": size_bytes, "over_s": over_s, "method": _IDLE_METHOD}


def _checkpoints(training: Training) -> dict[str, Any]:
    saves_s = [saved.save_s for saved in training.saved if saved.save_s is not None]
    return {
        "seen": len(training.saved),
        "size_bytes": statistics.median(saved.size_bytes for saved in training.saved) if training.saved else None,
        "save_s": round(statistics.median(saves_s), 3) if saves_s else None,
        "durable": [asdict(durable) for durable in training.drained.durable],
    }


def _endurance(
    written_bytes: int, without_bytes: int | None, total_s: float, tbw: float | None, drive: Drive | None
) -> dict[str, Any] | None:
    rated, source = rated_bytes(tbw, drive)
    if rated is None:
        return None
    return {
        "rated_bytes": rated,
        "source": source,
        "with_ram": wear(written_bytes, total_s, rated),
        "without": None if without_bytes is None else wear(without_bytes, total_s, rated),
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
    saved = "" if writes["saved_bytes"] is None else f"; {size(max(0, writes['saved_bytes']))} saved, as measured"
    guard = record["guard"]
    guarded = ", ".join(f"{action} {count}" for action, count in guard["counts"].items() if action != "go on")
    installed = f", and in {record['installed']['path']}" if record["installed"] else ""
    install = f", the install {size(max(0, record['installed']['disk_bytes']))}" if record["installed"] else ""
    memory = f"\nrun {record['run']}: memory ran short; the guard acted: {guarded}" if guarded else ""
    if guard["paused_s"]:
        memory += f"; the trainer was stopped for {format_timespan(guard['paused_s'])}"
    return (
        f"run {record['run']}: done in {took}. The model is in {home}/model, "
        f"{pluralize(len(record['model']), 'file')} of {size(model_bytes)}, verified{installed}; the RAM is released.\n"
        f"run {record['run']}: the trainer wrote {size(writes['trainer']['logical_bytes'])}, of which "
        f"{size(writes['trainer']['disk_bytes'])} went to the disk; "
        f"{pluralize(drain['checkpoints'], 'durable checkpoint')} wrote {size(max(0, drain['disk_bytes']))}, the "
        f"export {size(writes['export']['disk_bytes'])}{install}{saved}. Record: {home}/record.json{memory}"
    )


def _process_writes(writes: ProcessWrites) -> dict[str, Any]:
    return {**asdict(writes), "method": _PROCESS_METHOD}
