"""What earlier, failed or killed runs left in RAM: found, brought home, released."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ramtrain.durable import commit_folder
from ramtrain.export import TRAINER_LOG, home, spoilt_at_home
from ramtrain.progress import CopyProgress
from ramtrain.ramdisk import MARK, Lease, check_free, ram_root, release
from ramtrain.record import Steps
from ramtrain.staging import STAGE, Stage
from ramtrain.supervise import only_one
from ramtrain.view import Escapes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescue:
    """What became of a run's RAM disk; `files` and `bytes` are what came home to `folder`, None if nothing had to."""

    run: str
    folder: Path | None
    files: int
    bytes: int
    note: str


def leftovers(workdir: Path) -> Iterator[Lease]:
    """Yield the lease of every RAM disk that the runs of this working directory hold."""
    for mark in sorted(ram_root(workdir).glob(f"*/{MARK}")):
        try:
            yield Lease.read(mark)
        except (OSError, ValueError, TypeError, KeyError):
            log.error("%s: its mark %s cannot be read; it is left as it is. Look at what it holds.", mark.parent, MARK)


def rescue(lease: Lease, discard: bool) -> Rescue:
    """Bring home what the trainer wrote, unless it is at home already or to be discarded, and release the RAM disk.

    Raises:
        RamTrainError: a process is training the run, or keeps its RAM disk busy.
        OSError: whatever the disk says; the RAM disk stays.
    """
    with only_one(lease.run, Path(lease.state)):
        check_free(lease)
        is_home = _is_home(lease)
        sources = {} if is_home else _written(lease)
        size_bytes = sum(source.stat().st_size for source in sources.values())
        folder = None
        if sources and not discard:
            for left in home(lease.run).glob(".rescued-*.partial"):
                shutil.rmtree(left)  # of a rescue that was killed
            folder = home(lease.run) / f"rescued-{time.strftime('%Y%m%dT%H%M%S')}"
            with CopyProgress(f"run {lease.run}: bringing home", len(sources), size_bytes) as progress:
                commit_folder(sources, folder, progress.add)
        release(lease)
    if not sources:
        return Rescue(lease.run, None, 0, 0, "was at home already" if is_home else "held nothing")
    note = "thrown away as asked" if discard else "brought home and verified"
    return Rescue(lease.run, folder, len(sources), size_bytes, note)


def _is_home(lease: Lease) -> bool:
    """Whether the export of this very RAM disk has been completed, and is still there."""
    export = home(lease.run) / "export.json"
    if not export.exists():
        return False
    try:
        steps = Steps.read(export)
    except (ValueError, TypeError, KeyError):
        return False  # of another version of RamTrain: what is in RAM comes home once more
    return steps.lease.token == lease.token and not spoilt_at_home(lease.run, steps.export)


def _written(lease: Lease) -> dict[str, Path]:
    """Return what the trainer wrote, by its path in the project, and its output."""
    found: dict[str, Path] = {}
    kept = Path(lease.folder) / STAGE
    if kept.exists():
        stage = Stage.read(kept)
        view = stage.view()
        for path in view.written(Path(stage.project)):
            try:
                found[path] = view.real(path)
            except (Escapes, FileNotFoundError) as error:
                log.warning("run %s: %s is left out: %s", lease.run, path, error)
    output = Path(lease.folder) / TRAINER_LOG
    if output.exists():
        name = TRAINER_LOG
        while name in found:  # a file of the trainer's own
            name = f"ramtrain-{name}"
        found[name] = output
    return found
