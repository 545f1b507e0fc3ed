"""Every RAM disk of the user on this machine: which run holds it, where its training is, what a power cut would cost
now; and what jobs of a cluster have last told of the runs of this working directory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from humanfriendly import format_size
from humanfriendly.tables import format_smart_table
from tqdm import tqdm

from ramtrain import afar, caller, slurm
from ramtrain.plain import one_line
from ramtrain.ramdisk import MARK, SHM, Lease, used_bytes
from ramtrain.sighting import SIGHTING, Sighting
from ramtrain.staging import Begun

# A training notes where it is every second.
_ALIVE_S = 10.0
_ALIVE_AFAR_S = 3 * afar.EVERY_S


def read_status() -> list[dict[str, Any]]:
    """Return one entry a RAM disk; sizes in bytes, times in seconds, what is not known None."""
    root = SHM / f"ramtrain-{os.geteuid()}"
    states = [state for workdir in _listed(root) for state in _listed(workdir)]
    here = [entry for state in states if (entry := _read(state / MARK))]
    known = {(entry["workdir"], entry["run"]) for entry in here}
    return here + [_read_note(note) for note in afar.notes() if (note.lease.workdir, note.lease.run) not in known]


def _read_note(note: afar.Note) -> dict[str, Any]:
    """Return the entry of a run whose RAM disk is elsewhere."""
    seen = note.sighting
    entry = _entry(note.lease, seen, None, seen.used_bytes if seen else 0, _ALIVE_AFAR_S)
    if seen and not seen.has_ended and not entry["is_training"]:
        entry["state"] = f"not heard of for {_time(entry['seen_age_s'])}"
    elif seen and seen.has_ended:
        entry["used_bytes"] = 0  # a job that ends releases its RAM
    elif not seen:
        entry["state"] = "mounted"
    return entry


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # a run has ended meanwhile; or it is a run's lock


def _read(mark: Path) -> dict[str, Any] | None:
    try:
        lease = Lease.read(mark)
        in_use_bytes = used_bytes(lease)
        begun = Begun.read(lease)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is being released; `unmount` speaks of what is not
    return _entry(lease, Sighting.read(mark.parent / SIGHTING), begun, in_use_bytes, _ALIVE_S)


def _entry(
    lease: Lease, seen: Sighting | None, begun: Begun | None, in_use_bytes: int, alive_s: float
) -> dict[str, Any]:
    """Return what is said of a RAM disk.

    Args:
        alive_s: a training that was seen no longer ago is going on.
    """
    now_s = time.time()
    is_training = seen is not None and not seen.has_ended and now_s - seen.seen_s < alive_s
    is_home = seen is not None and seen.newest_s is not None and seen.newest_s <= seen.safe_s
    return {
        "run": lease.run,
        "workdir": lease.workdir,
        "job": lease.job and lease.job.id,
        "node": lease.job and lease.job.node,
        "partition": lease.job and lease.job.partition,
        "state": _state(is_training, seen, begun),
        "folder": lease.folder,
        "backend": lease.backend,
        "used_bytes": in_use_bytes,
        "size_bytes": lease.size_bytes,
        "is_training": is_training,
        "seen_age_s": seen and round(now_s - seen.seen_s, 1),
        "elapsed_s": seen and round(seen.seen_s - seen.started_s, 1),
        "progress": seen.progress if seen else {},
        "newest": seen and seen.newest,
        "newest_age_s": seen and seen.newest_s and round(now_s - seen.newest_s, 1),
        "durable": seen and seen.durable,
        "durable_age_s": round(now_s - seen.safe_s, 1) if seen and seen.durable else None,
        "at_stake_s": seen and (0.0 if is_home and not is_training else round(seen.at_stake_s, 1)),
        "max_loss_s": seen and seen.max_loss_s,
        "worst_loss_s": seen and seen.worst_loss_s,
        "kept_off_bytes": seen and seen.kept_off_bytes,
    }


def _state(is_training: bool, seen: Sighting | None, begun: Begun | None) -> str:
    if is_training:
        return f"paused: {seen.paused}" if seen and seen.paused else "training"
    return "trained, not exported" if begun and begun.finished else "not training"


def table(runs: list[dict[str, Any]]) -> str:
    """Return the entries as a table, or one below the other where the terminal is too narrow."""
    if not runs:
        return "No RAM disk of yours is there."
    columns = ["run", "state", "progress", "newest checkpoint", "at home", "at stake", "RAM", "kept off the disk"]
    several = len({run["workdir"] for run in runs}) > 1
    return format_smart_table([_row(run, several) for run in runs], columns)


def _row(run: dict[str, Any], with_workdir: bool) -> list[str]:
    used, size = (format_size(run[key], binary=True) for key in ("used_bytes", "size_bytes"))
    bound = "no bound" if run["max_loss_s"] is None else f"of {_time(run['max_loss_s'])}"
    name = f"{run['run']} in {run['workdir']}" if with_workdir else run["run"]
    return [
        f"{name} (job {run['job']} on {run['node']})" if run["job"] else name,
        run["state"],
        ", ".join(f"{name} {value}" for name, value in run["progress"].items()) or "-",
        f"{Path(run['newest']).name}, {_time(run['newest_age_s'])} ago" if run["newest"] else "none yet",
        f"{_time(run['durable_age_s'])} ago, {run['durable']}" if run["durable"] else "none yet",
        "-" if run["at_stake_s"] is None else f"{_time(run['at_stake_s'])} {bound}",
        f"{used} of {size} ({run['backend']})",
        "-" if run["kept_off_bytes"] is None else format_size(run["kept_off_bytes"], binary=True),
    ]


def last_words(root: Path) -> list[str]:
    """Return what is in RAM under a RAM root, run by run, and what to type; nothing of other jobs of a cluster, which
    bring it home themselves."""
    lines, job = [], slurm.this_job()
    for run in filter(None, (_read(state / MARK) for state in _listed(root))):
        if run["job"] not in (None, job and job.id):
            continue
        newest = f"its newest checkpoint, {one_line(run['newest'])}, " if run["newest"] else ""
        home = f"; at home: {run['durable']}" if run["durable"] else ""
        what = "trained to its end, its model " if run["state"].startswith("trained") else newest or "what it wrote "
        lines.append(f"run {run['run']}: {what}is in RAM, {run['folder']}{home}")
    if lines:
        lines.append(f"To go on from there, type\n  {caller.command('train')}")
        lines.append(f"To bring home what is there and release the RAM, type\n  {caller.command('unmount')}")
    return lines


def _time(seconds: float) -> str:
    return tqdm.format_interval(max(0.0, seconds))
