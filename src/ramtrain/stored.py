"""Durable checkpoints in the store, `<store.url>/<run>/checkpoints/`, each as it is in results/<run>/checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ramtrain import shelf
from ramtrain.config import Run
from ramtrain.durable import read_manifest
from ramtrain.fingerprint import Fingerprint
from ramtrain.progress import CopyProgress
from ramtrain.shelf import DurableCheckpoint
from ramtrain.store import Store

CHECKPOINTS = "checkpoints"


def store_checkpoint(durable: DurableCheckpoint, run: Run, store: Store, report: Callable[[int, int], None]) -> None:
    """Put a durable checkpoint into the store, after the best models that it names; then older ones there go.

    It is opened first: when a newer one comes home meanwhile, it may lose its names here.

    Raises:
        Changed: it is gone already.
        RamTrainError, OSError: the store failed, or the disk; what `report` raises.
    """
    bests = [best for best in shelf.best_models(run.run) if best.folder.name in (durable.best or ())]
    for checkpoint in (*bests, durable):
        name = f"{run.run}/{CHECKPOINTS}/{checkpoint.folder.name}"
        if store.read_manifest(name) is None:
            about = {key: value for key, value in read_manifest(checkpoint.folder).items() if key != "files"}
            with contextlib.ExitStack() as opened:
                sources = {file.path: _opened(checkpoint.folder / file.path, opened) for file in checkpoint.files}
                store.put_folder(name, sources, checkpoint.files, about, report)
    mine = {n: content for n, content in _checkpoints(run.run, store).items() if _is_of(content, durable.fingerprint)}
    states = sorted((n for n in mine if not _is_best(n)), key=lambda n: mine[n]["saved_s"], reverse=True)
    kept = states[: run.protect.keep]
    kept += [best for name in kept for best in mine[name].get("best") or ()]
    for name in mine.keys() - kept:
        store.remove_folder(f"{run.run}/{CHECKPOINTS}/{name}")


def _opened(path: Path, opened: contextlib.ExitStack) -> Path:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return path  # which will be told of as gone
    opened.callback(os.close, descriptor)
    return Path(f"/proc/self/fd/{descriptor}")


def fetch_newest(run: str, store: Store) -> str | None:
    """Bring home the newest durable checkpoint in the store, and the best models that it names; return its name, None
    if there is none.

    Raises:
        RamTrainError: the store failed, or gave back something else than was put there.
        OSError: whatever the disk says.
    """
    found = _checkpoints(run, store)
    states = [name for name in found if not _is_best(name)]
    newest = max(states, key=lambda name: found[name]["saved_s"], default=None)
    if newest is not None:
        bests = [name for name in found[newest].get("best") or () if name in found]
        for name in (*bests, newest):
            files, about = found[name]["files"], {key: part for key, part in found[name].items() if key != "files"}
            with CopyProgress(f"run {run}: {name}", len(files), sum(file.bytes for file in files)) as progress:
                store.fetch_folder(f"{run}/{CHECKPOINTS}/{name}", files, shelf.shelf(run) / name, about, progress.add)
    return newest


def drop_checkpoints(run: str, store: Store, fingerprint: Fingerprint) -> None:
    """Remove the durable checkpoints of a training whose model is in the store, and what cut short uploads left."""
    whole = _checkpoints(run, store)
    for name in store.folders(f"{run}/{CHECKPOINTS}"):
        if name not in whole or _is_of(whole[name], fingerprint):
            store.remove_folder(f"{run}/{CHECKPOINTS}/{name}")


def _checkpoints(run: str, store: Store) -> dict[str, dict[str, Any]]:
    """Return the manifests of the durable checkpoints in the store, by their names, in the order of these."""
    names = store.folders(f"{run}/{CHECKPOINTS}")
    found = {name: store.read_manifest(f"{run}/{CHECKPOINTS}/{name}") for name in names}
    return {name: content for name, content in found.items() if content and "saved_s" in content}


def _is_best(name: str) -> bool:
    return name.startswith("best-")


def _is_of(content: Mapping[str, Any], fingerprint: Fingerprint) -> bool:
    return not fingerprint.changes(Fingerprint(**content["fingerprint"]))
