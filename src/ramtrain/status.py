"""Every RAM disk of the user: which run holds it, where its training is, what a power cut would cost now."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from humanfriendly import format_size
from humanfriendly.tables import format_smart_table
from tqdm import tqdm

from ramtrain.ramdisk import MARK, SHM, Lease, used_bytes
from ramtrain.sighting import SIGHTING, Sighting

# A training notes where it is every second.
_ALIVE_S = 10.0


def read_status() -> list[dict[str, Any]]:
    """Return one entry a RAM disk; sizes in bytes, times in seconds, what is not known None."""
    root = SHM / f"ramtrain-{os.geteuid()}"
    states = [state for workdir in _listed(root) for state in _listed(workdir)]
    return [entry for state in states if (entry := _read(state / MARK))]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # a run has ended meanwhile; or it is a run's lock


def _read(mark: Path) -> dict[str, Any] | None:
    try:
        lease = Lease.read(mark)
        in_use_bytes = used_bytes(lease)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is being released; `unmount` speaks of what is not
    now_s = time.time()
    seen = Sighting.read(mark.parent / SIGHTING)
    is_training = seen is not None and not seen.has_ended and now_s - seen.seen_s < _ALIVE_S
    return {
        "run": lease.run,
        "workdir": lease.workdir,
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
        "at_stake_s": seen and round((now_s if is_training else seen.seen_s) - seen.safe_s, 1),
        "max_loss_s": seen and seen.max_loss_s,
        "worst_loss_s": seen and seen.worst_loss_s,
        "kept_off_bytes": seen and seen.kept_off_bytes,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Return the entries as a table for a terminal."""
    if not runs:
        return "No RAM disk of yours is there."
    columns = ["run", "RAM disk", "training", "newest checkpoint", "on the disk", "at stake", "kept off the disk"]
    return format_smart_table([_row(run) for run in runs], columns)


def _row(run: dict[str, Any]) -> list[str]:
    used, size = (format_size(run[key], binary=True) for key in ("used_bytes", "size_bytes"))
    where = ", ".join(f"{name} {value}" for name, value in run["progress"].items())
    if not run["is_training"]:
        where = f"not training; {where}" if where else "not training"
    bound = "no bound" if run["max_loss_s"] is None else f"of {_time(run['max_loss_s'])}"
    return [
        run["run"],
        f"{run['backend']}, {used} of {size}",
        where or "training",
        f"{Path(run['newest']).name}, {_time(run['newest_age_s'])} ago" if run["newest"] else "none yet",
        Path(run["durable"]).name if run["durable"] else "none yet",
        "-" if run["at_stake_s"] is None else f"{_time(run['at_stake_s'])} {bound}",
        "-" if run["kept_off_bytes"] is None else format_size(run["kept_off_bytes"], binary=True),
    ]


def _time(seconds: float) -> str:
    return tqdm.format_interval(max(0.0, seconds))
