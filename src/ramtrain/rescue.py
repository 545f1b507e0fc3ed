"""What earlier, failed or killed runs left in RAM: found, brought home, released."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.errors import RamTrainError
from ramtrain.export import NotExported, export_model, keep_log, metrics_of, spoilt_at_home
from ramtrain.ramdisk import MARK, Lease, check_free, only_one, ram_root, release
from ramtrain.record import Steps
from ramtrain.salvage import NOTHING, Saved, save_files, save_newest, save_state, whole_model, written
from ramtrain.shelf import durable_checkpoints, export_file, home
from ramtrain.staging import Begun, Stage, current_stage
from ramtrain.supervise import Training

log = logging.getLogger(__name__)

TRAIN = "train.json"


def leftovers(workdir: Path) -> Iterator[Lease]:
    """Yield the lease of every RAM disk that the runs of this working directory hold."""
    for mark in sorted(ram_root(workdir).glob(f"*/{MARK}")):
        try:
            yield Lease.read(mark)
        except (OSError, ValueError, TypeError, KeyError):
            log.error("%s: its mark %s cannot be read; it is left as it is. Look at what it holds.", mark.parent, MARK)


def halves(workdir: Path) -> list[Path]:
    """Return the folders of runs without a mark: made, or emptied, by a call that was killed."""
    root = ram_root(workdir)
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink()] if root.is_dir() else []
    return sorted(folder for folder in folders if not (folder / MARK).exists())


def rescue(lease: Lease, discard: bool, goes_on: bool = False) -> list[Saved]:
    """Bring home what is complete, unless it is at home already or to be discarded, and release the RAM disk.

    Args:
        goes_on: the training will go on from what comes home: a copy of its model so far is not wanted beside that.

    Returns:
        what came home or was thrown away; nothing of it is in RAM any more.

    Raises:
        RamTrainError: a process is training the run, or keeps its RAM disk busy, or the disk does not take it.
        OSError: whatever the disk says; the RAM disk stays.
    """
    with only_one(lease.run, Path(lease.state)):
        check_free(lease)
        if _is_home(lease):
            saved = [Saved("all of it was at home already", None, 0, 0)]
        elif discard:
            saved = [_count(lease)]
            for durable in durable_checkpoints(lease.run):
                log.info("run %s: at home there stays %s; `resume: never` starts anew", lease.run, durable.folder)
        else:
            saved = _bring_home(lease, goes_on)
            keep_log(lease.run, lease)
        release(lease)
    return saved


def _is_home(lease: Lease) -> bool:
    """Whether the export of this very RAM disk has been completed, and is still there."""
    export = export_file(lease.run)
    if not export.exists():
        return False
    try:
        steps = Steps.read(export)
    except (ValueError, TypeError, KeyError):
        return False  # of another version of RamTrain: what is in RAM comes home once more
    return steps.lease.token == lease.token and not spoilt_at_home(lease.run, steps.export)


def _count(lease: Lease) -> Saved:
    """Return what is thrown away."""
    stage, sources = current_stage(lease), {}
    if stage and Begun.read(lease):
        with contextlib.suppress(OSError):  # a path that is too long, say: it need not be counted to be thrown away
            sources = written(lease, stage)
    size_bytes = sum(source.stat().st_size for source in sources.values())
    return Saved("thrown away as asked: all that it wrote", None, len(sources), size_bytes)


def _bring_home(lease: Lease, goes_on: bool) -> list[Saved]:
    begun, stage = Begun.read(lease), current_stage(lease)
    if begun is None or stage is None:
        return [NOTHING]
    try:
        return _find(lease, begun, stage, goes_on)
    except re.error as error:
        log.warning("run %s: a glob of its config cannot be used: %s; all that it wrote comes home", lease.run, error)
        return [save_files("all that it wrote", lease, written(lease, stage))]


def _find(lease: Lease, begun: Begun, stage: Stage, goes_on: bool) -> list[Saved]:
    """Bring home what the globs find: the model, or else the newest checkpoint, or all that is there."""
    trained = Path(lease.state) / TRAIN
    if begun.finished and trained.exists():
        try:
            exported = export_model(lease.run, begun.products, lease, stage)
        except RamTrainError as error:
            log.warning("%s", error.what if isinstance(error, NotExported) else error)
        else:
            # With it `train` has nothing left to do but the record.
            metrics = metrics_of(lease.run, begun.products, lease, stage)
            Steps(lease, stage, Training.read(trained), exported, metrics).write(export_file(lease.run))
            size_bytes = sum(file.bytes for file in exported.model)
            return [Saved("its model", home(lease.run) / "model", len(exported.model), size_bytes)]
    if newest := save_newest(lease, stage, begun):
        model = None if goes_on else whole_model(lease, stage, begun)
        return [newest, *([save_files("its model so far", lease, model)] if model else [])]
    return [save_state(lease)]


def row(run: str, saved: Saved) -> str:
    """Return a line for the terminal."""
    size = f", {pluralize(saved.files, 'file')} of {format_size(saved.bytes, binary=True)}" if saved.files else ""
    return (
        f"run {run}: {saved.what.rstrip(',')}{size}{f': {saved.folder}' if saved.folder else ''}; the RAM is released"
    )
