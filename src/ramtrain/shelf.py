"""The durable checkpoints of a run, results/<run>/checkpoints: which there are, how one is used, when one goes.

Each is a folder, whole or absent: `project/` holds the checkpoint's files, what it cannot be resumed without and the
trainer's logs, under their paths in the project; `train.log` the trainer's output; `manifest.json` the hashes, when it
was saved, and the fingerprint of the training. The best model so far, where it is another file, has a folder of its
own, `best-...`, written when it has changed. What is not to be gone on with has a name with a word before it:
`failed-`, `aside-`, `kept-`. `attempt.json` beside them says when the training was last seen alive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from humanfriendly import format_size

from ramtrain.durable import (
    Kept,
    fetch,
    fit_name,
    hash_from_disk,
    make_parents,
    read_manifest,
    remove,
    set_aside,
    sweep_all,
)
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.plain import one_line
from ramtrain.ramdisk import Lease
from ramtrain.staging import Stage

log = logging.getLogger(__name__)

RESULTS = Path("results")
TRAINER_LOG = "train.log"
IN_PROJECT = "project/"
_ATTEMPT = "attempt.json"
# What a folder's name has beside the checkpoint's: when it was saved, and the words and marks that may come to it.
_MORE_BYTES = 64


@dataclass(frozen=True)
class DurableCheckpoint:
    """A checkpoint on the disk: its folder, its path in the project, when it was saved (seconds since the epoch).

    `also` are paths at which the trainer had the same file once more, `best` the folder names of the best models at
    that time, None where that was not noted.
    """

    folder: Path
    checkpoint: str
    saved_s: float
    progress: dict[str, str]
    fingerprint: Fingerprint
    files: list[Kept]
    also: list[str]
    best: list[str] | None

    @property
    def size_bytes(self) -> int:
        """The size of all its files."""
        return sum(file.bytes for file in self.files)


def home(run: str) -> Path:
    """Return the folder of the run's results."""
    return RESULTS / run


def export_file(run: str) -> Path:
    """Return the file that says what the run's last export brought home."""
    return home(run) / "export.json"


def shelf(run: str) -> Path:
    """Return the folder of the run's durable checkpoints."""
    return home(run) / "checkpoints"


def attempt(run: str) -> Path:
    """Return the file that says when the run was last seen alive."""
    return shelf(run) / _ATTEMPT


def name_of(checkpoint: str, saved_s: float) -> str:
    """Return the folder name of a durable checkpoint; by it they sort in the order in which they were saved."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(saved_s))
    name = fit_name(one_line(PurePosixPath(checkpoint).name), _MORE_BYTES)
    return f"{stamp}.{int(saved_s * 1000) % 1000:03}-{name}"


def name_of_best(checkpoint: str, saved_s: float) -> str:
    """Return the folder name of a durable best model."""
    return f"best-{name_of(checkpoint, saved_s)}"


def about(checkpoint: str, saved_s: float, progress: Mapping[str, str], fingerprint: Fingerprint) -> dict[str, Any]:
    """Return what the manifest of a durable checkpoint says beside its files."""
    return {
        "checkpoint": checkpoint,
        "saved_s": saved_s,
        "progress": dict(progress),
        "fingerprint": asdict(fingerprint),
        "also": [],
        "best": [],
    }


def durable_checkpoints(run: str) -> list[DurableCheckpoint]:
    """Return what may be gone on with, the newest first; what cannot be read is named in the log and left."""
    return _read_all(run, "[0-9]*")


def best_models(run: str) -> list[DurableCheckpoint]:
    """Return the best models so far, likewise."""
    return _read_all(run, "best-[0-9]*")


def _read_all(run: str, pattern: str) -> list[DurableCheckpoint]:
    found = []
    for folder in shelf(run).glob(pattern):
        try:
            found.append(read_durable(folder))
        except RamTrainError as error:
            log.warning("run %s: %s", run, error)
    return sorted(found, key=lambda durable: durable.saved_s, reverse=True)


def read_durable(folder: Path) -> DurableCheckpoint:
    """Return the durable checkpoint in a folder.

    Raises:
        RamTrainError: it is none, or not whole.
    """
    return durable_of(folder, read_manifest(folder))


def durable_of(folder: Path, content: Mapping[str, Any]) -> DurableCheckpoint:
    """Return the durable checkpoint that a folder's manifest tells of.

    Raises:
        RamTrainError: it tells of none.
    """
    try:
        return DurableCheckpoint(
            folder=folder,
            checkpoint=content["checkpoint"],
            saved_s=content["saved_s"],
            progress=content["progress"],
            fingerprint=Fingerprint(**content["fingerprint"]),
            files=content["files"],
            also=content["also"],
            best=content.get("best"),
        )
    except (KeyError, TypeError) as error:
        raise RamTrainError(f"{folder} is no durable checkpoint that can be used: {error} is missing") from None


def put_back(durable: DurableCheckpoint, stage: Stage, lease: Lease) -> None:
    """Copy a durable checkpoint to where the trainer expects it, checking its hashes on the way.

    Raises:
        RamTrainError: it is not what was kept.
        OSError: it cannot be read, or the RAM disk has no room for it.
    """
    for file in durable.files:  # all of it, before anything of the trainer's is replaced
        if hash_from_disk(durable.folder / file.path) != (file.bytes, file.sha256):
            raise RamTrainError(f"{durable.folder / file.path} is not what was kept: its SHA-256 is another")
    upper = Path(stage.layers[0])
    for file in durable.files:
        if file.path.startswith(IN_PROJECT):
            path = PurePosixPath(file.path.removeprefix(IN_PROJECT))
            make_parents(path, upper, Path(stage.project))
            fetch(durable.folder, file, upper / path)
            if str(path) == durable.checkpoint:
                for other in durable.also:
                    fetch(durable.folder, file, upper / other)
        elif not (Path(lease.folder) / file.path).exists():
            fetch(durable.folder, file, Path(lease.folder) / file.path)


def prune(run: str, fingerprint: Fingerprint, keep: int) -> None:
    """Remove all but the `keep` newest durable checkpoints of this training, and the best models that are not theirs.

    Its newest best model stays, whatever they say.
    """
    same = _same(durable_checkpoints(run), fingerprint)
    named = {name for durable in same[:keep] for name in durable.best or ()}
    others = [best for best in _same(best_models(run), fingerprint)[1:] if best.folder.name not in named]
    for durable in same[keep:] + others:
        remove(durable.folder)


def close(run: str, fingerprint: Fingerprint, keep: int) -> None:
    """Remove the durable checkpoints of a training whose model is at home, but for the `keep` newest."""
    same = _same(durable_checkpoints(run), fingerprint)
    for best in _same(best_models(run), fingerprint):
        remove(best.folder)
    for durable in same[:keep]:
        kept = set_aside(durable.folder, "kept")
        log.info("run %s: the durable checkpoint %s stays", run, kept)
    for durable in same[keep:]:
        remove(durable.folder)
    if same[keep:]:
        size = format_size(sum(durable.size_bytes for durable in same[keep:]), binary=True)
        names = ", ".join(durable.folder.name for durable in same[keep:])
        log.info("run %s: the model is at home; its durable checkpoints are removed: %s, %s", run, names, size)
    attempt(run).unlink(missing_ok=True)
    if shelf(run).is_dir():
        sweep_all(shelf(run))
        if others := sorted(folder.name for folder in shelf(run).iterdir() if folder.name[0] != "."):
            log.info("run %s: in %s there stay %s", run, shelf(run), ", ".join(others))
        else:
            shelf(run).rmdir()


def _same(found: list[DurableCheckpoint], fingerprint: Fingerprint) -> list[DurableCheckpoint]:
    return [durable for durable in found if not fingerprint.changes(durable.fingerprint)]
