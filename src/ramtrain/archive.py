"""Runs that have ended in the store, `<store.url>/<run>/<when it began>/`, each as it is in results/<run>."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ramtrain import afar, caller, shelf
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.crate import CRATE
from ramtrain.durable import Kept, read_manifest
from ramtrain.errors import RamTrainError
from ramtrain.git import DIFF
from ramtrain.lease import MARK, ram_root
from ramtrain.progress import CopyProgress
from ramtrain.record import Steps
from ramtrain.series import SERIES
from ramtrain.store import Store
from ramtrain.stored import CHECKPOINTS, drop_checkpoints, fetch_newest

_FOLDERS = ("model", "artifacts")
_RECORD = "record.json"
# Beside the model and the artifacts; the record comes last, since with it the run has ended.
_FILES = ("export.json", "config.yaml", CRATE, shelf.TRAINER_LOG, SERIES, DIFF, _RECORD)


def store_run(run: Run, store: Store) -> dict[str, Any]:
    """Put a run that has ended into the store, unless it is there; return where it is, and what that took.

    Raises:
        RamTrainError: the store failed; or what is at home is not what was exported.
    """
    began_s, home = time.monotonic(), shelf.home(run.run)
    steps = Steps.read(shelf.export_file(run.run))
    name = f"{run.run}/{_when(json.loads((home / _RECORD).read_text(encoding='utf-8'))['started'])}"
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
            kept = store.put_folder(name, sources, exported, {"run": run.run}, progress.add)
    drop_checkpoints(run.run, store, steps.training.fingerprint)
    return {
        "url": f"{store.url}/{name}",
        "stored": stamp(),
        "store_s": round(time.monotonic() - began_s, 3),
        "files": len(kept),
        "bytes": sum(file.bytes for file in kept),
    }


def fetch_run(run: str, store: Store, workdir: Path) -> str:
    """Bring home what the store has of a run of which nothing is here: the run that has ended, or else its newest
    durable checkpoint; return what that was, or why there was nothing to do.

    Raises:
        RamTrainError: the store failed, a job works on the run, or something else is in the way; what was brought
            home is whole.
        OSError: whatever the disk says.
    """
    home = shelf.home(run)
    if (home / _RECORD).exists():
        return "is at home"
    if (ram_root(workdir) / run / MARK).exists():
        return f"is in RAM; type `{caller.command('train')}` to go on with it"
    if shelf.durable_checkpoints(run):
        return f"has durable checkpoints here, in {shelf.shelf(run)}"
    afar.check_alone(run)
    versions = [name for name in store.folders(run) if name != CHECKPOINTS]
    for name in (f"{run}/{version}" for version in reversed(versions)):
        if content := store.read_manifest(name):
            _fetch_version(run, store, name, content["files"])
            return f"has ended; it came home from {store.url}/{name}"
    newest = fetch_newest(run, store)
    return f"goes on from {newest}, which came home from {store.url}" if newest else f"is not in {store.url}"


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
