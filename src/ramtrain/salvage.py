"""Bring home what a training left in RAM: its newest checkpoint, its model, or all that it wrote."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain import shelf
from ramtrain.checkpoints import Checkpoint, find_checkpoints, is_whole, is_whole_file
from ramtrain.drain import bring_home, find_twin
from ramtrain.durable import commit_folder, sweep_all
from ramtrain.progress import CopyProgress
from ramtrain.ramdisk import Lease
from ramtrain.shelf import TRAINER_LOG, home
from ramtrain.sighting import SIGHTING, Sighting
from ramtrain.staging import Begun, Stage, current_stage
from ramtrain.view import real_files

log = logging.getLogger(__name__)

RESCUED = "rescued-"


@dataclass(frozen=True)
class Saved:
    """What came home, or was there already: in words, with its folder, files and bytes; None if there was nothing."""

    what: str
    folder: Path | None
    files: int
    bytes: int

    @property
    def is_durable(self) -> bool:
        """Whether it is a durable checkpoint."""
        return self.folder is not None and self.folder.parent.name == "checkpoints"

    def sentence(self) -> str:
        """Return it as a sentence."""
        if self.folder is None:
            return f"The earlier state: {self.what}."
        size = format_size(self.bytes, binary=True)
        return f"The earlier state: {self.what} is at home: {self.folder}, {pluralize(self.files, 'file')} of {size}."


NOTHING = Saved("nothing was written", None, 0, 0)


def make_durable(
    run: str, lease: Lease, stage: Stage, begun: Begun, checkpoint: Checkpoint, progress: Mapping[str, str]
) -> Path:
    """Make a checkpoint that is in RAM durable, which nobody writes to any more; return its folder.

    Raises:
        RamTrainError, OSError: the disk is full, or fails; nothing is left of it.
    """
    about = shelf.about(checkpoint.path, checkpoint.saved_s, progress, begun.fingerprint)
    return bring_home(run, checkpoint, stage, lease, begun.products, lambda: about)


def save_state(lease: Lease) -> Saved:
    """Bring home the newest whole checkpoint, with its logs; where none is known, all that the trainer wrote.

    Of a training that ended well, its model.

    Raises:
        RamTrainError, OSError: the disk is full, or fails; nothing is lost.
    """
    begun, stage = Begun.read(lease), current_stage(lease)
    if begun is None or stage is None:
        return NOTHING
    if begun.finished and (model := whole_model(lease, stage, begun)):
        return save_files("its model", lease, model)
    if durable := save_newest(lease, stage, begun):
        return durable
    return save_files("all that it wrote", lease, written(lease, stage))


def save_newest(lease: Lease, stage: Stage, begun: Begun) -> Saved | None:
    """Make the newest whole checkpoint durable, unless it is; None if there is none."""
    upper, products = Path(stage.layers[0]), begun.products
    found = find_checkpoints(stage, products.checkpoints)
    newest = next((checkpoint for checkpoint in found if is_whole(checkpoint, upper, products.complete)), None)
    if newest is None:
        return None
    if twin := find_twin(lease.run, newest, stage, begun.fingerprint):
        folder = twin.folder
    else:
        seen = Sighting.read(Path(lease.state) / SIGHTING)
        progress = seen.checkpoints.get(newest.path, {}) if seen else {}
        folder = make_durable(lease.run, lease, stage, begun, newest, progress)
    return Saved(f"its newest checkpoint, {newest.path},", folder, len(newest.files), newest.size_bytes)


def save_files(what: str, lease: Lease, sources: Mapping[str, Path]) -> Saved:
    """Bring files home to a folder of their own, results/<run>/rescued-<time>."""
    if not sources:
        return NOTHING
    sweep_all(home(lease.run))
    size_bytes = sum(source.stat().st_size for source in sources.values())
    folder = home(lease.run) / f"{RESCUED}{time.strftime('%Y%m%dT%H%M%S')}"
    with CopyProgress(f"run {lease.run}: bringing home", len(sources), size_bytes) as progress:
        commit_folder(sources, folder, progress.add)
    return Saved(what, folder, len(sources), size_bytes)


def whole_model(lease: Lease, stage: Stage, begun: Begun) -> dict[str, Path]:
    """Return the files that the model's globs name; nothing unless each glob names some and all of them are whole."""
    view = stage.view()
    found: dict[str, Path] = {}
    for pattern in begun.products.model:
        files = real_files(view, stage.products(view, pattern), f"run {lease.run}:")
        if not files or view.closed or not all(is_whole_file(file) for file in files.values()):
            return {}
        found |= files
    made = (Path(stage.layers[0]), Path(stage.spilled))
    return found if any(file.is_relative_to(place) for file in found.values() for place in made) else {}


def written(lease: Lease, stage: Stage) -> dict[str, Path]:
    """Return all that the trainer wrote, by its path in the project, and its output."""
    view = stage.view()
    found = real_files(view, view.written(Path(stage.project)), f"run {lease.run}:")
    output = Path(lease.folder) / TRAINER_LOG
    if output.exists():
        name = TRAINER_LOG
        while name in found:  # a file of the trainer's own
            name = f"ramtrain-{name}"
        found[name] = output
    return found
