"""Durable checkpoints in the store, `<store.url>/<run>/checkpoints/`, each as it is in results/<run>/checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

from ramtrain import shelf
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.progress import CopyProgress
from ramtrain.shelf import DurableCheckpoint
from ramtrain.store import Store

CHECKPOINTS = "checkpoints"


def store_checkpoint(durable: DurableCheckpoint, run: Run, store: Store, report: Callable[[int, int], None]) -> None:
    """Put a durable checkpoint into the store, after the best models that it names; then older ones there go.

    All of them are opened first: when a newer one comes home meanwhile, they may lose their names here.

    Raises:
        Changed: a file is gone already, or not as it came home.
        RamTrainError, OSError: the store failed, or the disk; what `report` raises.
    """
    bests = []
    for name in durable.best or ():
        with contextlib.suppress(RamTrainError):  # it could not be brought home
            bests.append(shelf.read_durable(durable.folder.with_name(name)))
    with contextlib.ExitStack() as opened:
        ready = [
            (one, {file.path: _opened(one.folder / file.path, opened) for file in one.files})
            for one in (*bests, durable)
        ]
        for one, sources in ready:
            name = _name(run.run, one.folder.name)
            if store.read_manifest(name) is None:
                store.put_folder(name, sources, one.files, _about(one), report)
    found = _find(run.run, store)
    mine = {name: one for name, one in found.items() if one and _is_of(one, durable.fingerprint)}
    states = sorted((name for name in mine if not _is_best(name)), key=lambda name: mine[name].saved_s, reverse=True)
    kept = states[: run.protect.keep]
    kept += [best for name in kept for best in mine[name].best or ()]
    _remove_others(run.run, store, found, durable.fingerprint, kept)


def _about(durable: DurableCheckpoint) -> dict[str, object]:
    about = shelf.about(durable.checkpoint, durable.saved_s, durable.progress, durable.fingerprint)
    return {**about, "also": durable.also, "best": durable.best}


def _opened(path: Path, opened: contextlib.ExitStack) -> Path:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return path  # which will be told of as gone
    opened.callback(os.close, descriptor)
    return Path(f"/proc/self/fd/{descriptor}")


def newest_in(run: str, store: Store, fingerprint: Fingerprint) -> DurableCheckpoint | None:
    """Return the newest durable checkpoint in the store that is of this training, else the newest of another; with the
    folder that it has at home."""
    states = [one for name, one in _find(run, store).items() if one and not _is_best(name)]
    return max(states, key=lambda one: (_is_of(one, fingerprint), one.saved_s), default=None)


def fetch_checkpoint(run: str, store: Store, durable: DurableCheckpoint) -> None:
    """Bring home a durable checkpoint in the store, and first the best models that it names.

    Raises:
        RamTrainError: the store failed, or gave back something else than was put there.
        OSError: whatever the disk says.
    """
    bests = _find(run, store, durable.best or ()).values()
    for one in (*filter(None, bests), durable):
        name = one.folder.name
        with CopyProgress(f"run {run}: {name}", len(one.files), one.size_bytes) as progress:
            store.fetch_folder(_name(run, name), one.files, one.folder, _about(one), progress.add)


def drop_checkpoints(run: str, store: Store, fingerprint: Fingerprint) -> None:
    """Remove the durable checkpoints of a training whose model is in the store, and what cut short uploads left."""
    _remove_others(run, store, _find(run, store), fingerprint, ())


def _remove_others(
    run: str,
    store: Store,
    found: Mapping[str, DurableCheckpoint | None],
    fingerprint: Fingerprint,
    kept: Container[str],
) -> None:
    for name, one in found.items():
        if name not in kept and (one is None or _is_of(one, fingerprint)):
            store.remove_folder(_name(run, name))


def _find(run: str, store: Store, names: Iterable[str] | None = None) -> dict[str, DurableCheckpoint | None]:
    """Return durable checkpoints in the store, with the folders that they have at home; None for what is not whole.

    What something else has put there is left out.

    Args:
        names: those that are looked for; all if None.
    """
    found: dict[str, DurableCheckpoint | None] = {}
    for name in store.folders(_name(run)) if names is None else names:
        content = store.read_manifest(_name(run, name))
        with contextlib.suppress(RamTrainError):
            found[name] = content and shelf.durable_of(shelf.shelf(run) / name, content)
    return found


def _name(run: str, *names: str) -> str:
    return "/".join((run, CHECKPOINTS, *names))


def _is_best(name: str) -> bool:
    return name.startswith("best-")


def _is_of(durable: DurableCheckpoint, fingerprint: Fingerprint) -> bool:
    return not fingerprint.changes(durable.fingerprint)
