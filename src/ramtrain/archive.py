"""Runs that have ended in the store, `<store.url>/<run>/<when it began>/`, each as it is in results/<run>."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ramtrain import afar, shelf
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.crate import CRATE, WORKFLOW
from ramtrain.durable import Kept, read_manifest
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint, fingerprint
from ramtrain.git import DIFF
from ramtrain.lease import MARK, ram_root
from ramtrain.progress import CopyProgress
from ramtrain.record import Steps
from ramtrain.series import SERIES
from ramtrain.shelf import DurableCheckpoint
from ramtrain.store import Store
from ramtrain.stored import CHECKPOINTS, drop_checkpoints, fetch_checkpoint, newest_in

_FOLDERS = ("model", "artifacts")
_RECORD = "record.json"
STORED = "stored.json"
# Beside the model and the artifacts; the record comes last, since with it the run has ended.
_FILES = ("export.json", "config.yaml", CRATE, WORKFLOW, shelf.TRAINER_LOG, SERIES, DIFF, _RECORD)


def store_run(run: Run, store: Store) -> dict[str, Any]:
    """Put a run that has ended into the store, unless it is there; return where it is, and what that took.

    Raises:
        RamTrainError: the store failed; or what is at home is not what was exported.
    """
    began_s, home = time.monotonic(), shelf.home(run.run)
    steps = Steps.read(shelf.export_file(run.run))
    record = json.loads((home / _RECORD).read_text(encoding="utf-8"))
    name = f"{run.run}/{_when(record['started'])}"
    exported = [*steps.export.model, *steps.export.artifacts]
    there = store.read_manifest(name)
    kept = there["files"] if there else []
    if not set(exported) <= set(kept):
        if there:
            store.remove_folder(name)
        names = [*(file.path for file in exported), *(name for name in _FILES if (home / name).is_file())]
        sources = {path: home / path for path in names}
        size_bytes = sum(source.stat().st_size for source in sources.values() if source.exists())
        with CopyProgress(f"run {run.run}: to the store", len(sources), size_bytes) as progress:
            ended_s = datetime.fromisoformat(record["ended"]).timestamp()
            about = {"run": run.run, "ended_s": ended_s, "fingerprint": asdict(steps.training.fingerprint)}
            kept = store.put_folder(name, sources, exported, about, progress.add)
    drop_checkpoints(run.run, store, steps.training.fingerprint)
    return {
        "url": f"{store.url}/{name}",
        "stored": stamp(),
        "store_s": round(time.monotonic() - began_s, 3),
        "files": len(kept),
        "bytes": sum(file.bytes for file in kept),
    }


def not_stored(runs: Mapping[str, Run]) -> list[str]:
    """Return what there is to say of runs that have ended and are not in the store that they are to be in."""
    homes = {run: shelf.home(run) for run, settings in runs.items() if settings.store}
    return [
        f"run {run}: done, in {home}, and not in {runs[run].store.url} yet"
        for run, home in homes.items()
        if (home / _RECORD).exists() and not (home / STORED).exists()
    ]


def fetch_run(run: Run, store: Store, workdir: Path) -> tuple[bool, str]:
    """Bring home what the store has of a run of which nothing is here: the run that has ended, if it was this training,
    or its newest durable checkpoint, if that is newer; else the newest one of another training, which `train` does not
    go on from unasked.

    Returns:
        whether something of the run is at home now; and what, or why not.

    Raises:
        RamTrainError: the store failed, a job works on the run, or something else is in the way; what was brought
            home is whole.
        OSError: whatever the disk says.
    """
    name = run.run
    if here := _is_here(name, workdir):
        return True, here
    afar.check_alone(name)
    mine = fingerprint(run, None)
    versions = _versions(name, store)
    ended = next((version for version, about in versions.items() if not _changes(mine, about)), None)
    newest = newest_in(name, store, mine)
    changes = mine.changes(newest.fingerprint) if newest else []
    has_begun_again = newest and ended and not changes and newest.saved_s > versions[ended]["ended_s"]
    if ended and not has_begun_again:
        _fetch_version(name, store, f"{name}/{ended}", versions[ended]["files"])
        return True, f"has ended; it came home from {store.url}/{name}/{ended}"
    if newest:
        fetch_checkpoint(name, store, newest)
        what = f"its durable checkpoint {newest.folder.name} came home from {store.url}"
        return True, f"{what}. {_told_of(newest, changes)}" if changes else what
    if versions:
        latest, about = next(iter(versions.items()))
        return (
            False,
            f"is there as another training alone ({', '.join(_changes(mine, about))}), {store.url}/{name}/{latest}",
        )
    return False, f"is not in {store.url}"


def _is_here(run: str, workdir: Path) -> str | None:
    """Return what there is of a run here; None if there is nothing."""
    if (shelf.home(run) / _RECORD).exists():
        return f"is here already, in {shelf.home(run)}"
    if (ram_root(workdir) / run / MARK).exists():
        return "is in RAM here"
    if shelf.durable_checkpoints(run):
        return f"has durable checkpoints here already, in {shelf.shelf(run)}"
    return None


def _told_of(durable: DurableCheckpoint, changes: list[str]) -> str:
    resume = f"--config resume={shlex.quote(str(durable.folder))}"
    return f"It is another training's ({', '.join(changes)}); to go on from it all the same, add `{resume}`"


def _versions(run: str, store: Store) -> dict[str, dict[str, Any]]:
    """Return the manifests of a run's trainings that have ended, by their names, the newest first."""
    names = [name for name in store.folders(run) if name != CHECKPOINTS]
    found = {name: store.read_manifest(f"{run}/{name}") or {} for name in reversed(names)}
    return {name: about for name, about in found.items() if {"fingerprint", "ended_s"} <= about.keys()}


def _changes(mine: Fingerprint, about: Mapping[str, Any]) -> list[str]:
    return mine.changes(Fingerprint(**about["fingerprint"]))


def _fetch_version(run: str, store: Store, name: str, files: list[Kept]) -> None:
    home = shelf.home(run)
    with CopyProgress(f"run {run}: from the store", len(files), sum(file.bytes for file in files)) as progress:
        for part in _FOLDERS:
            inside = [replace(f, path=f.path.removeprefix(f"{part}/")) for f in files if f.path.startswith(f"{part}/")]
            if inside and not _is_there(home / part, inside):
                store.fetch_folder(f"{name}/{part}", inside, home / part, {}, progress.add)
        known = {file.path: file for file in files}
        for path in _FILES:
            if path in known:
                store.fetch_file(name, known[path], home / path)


def _is_there(folder: Path, files: list[Kept]) -> bool:
    """Whether a folder holds these files already, of a call before.

    Raises:
        RamTrainError: it holds others.
    """
    if not folder.exists():
        return False
    with contextlib.suppress(RamTrainError):
        if read_manifest(folder)["files"] == files:
            return True
    raise RamTrainError(f"{folder} is there already, and is not what the store has; move it away, or remove it.")


def _when(started: str) -> str:
    return datetime.fromisoformat(started).astimezone(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"
