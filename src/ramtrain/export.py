"""Bring the model, the artifacts and the trainer's log home, verified."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain import caller, remedy
from ramtrain.clock import stamp
from ramtrain.config import Products
from ramtrain.durable import MANIFEST, Kept, commit_file, commit_folder, make_folders, remove, room_bytes
from ramtrain.environment import diff_of
from ramtrain.errors import RamTrainError
from ramtrain.git import DIFF
from ramtrain.meter import ProcessWrites, own_writes
from ramtrain.metrics import Metric, read_metrics
from ramtrain.plain import one_line
from ramtrain.progress import CopyProgress
from ramtrain.ramdisk import Lease
from ramtrain.series import series_of
from ramtrain.shelf import TRAINER_LOG, home
from ramtrain.staging import Stage
from ramtrain.view import Escapes, View, plain_files, real_files

log = logging.getLogger(__name__)

_MOST_NAMES = 30
# Of an SQLite database: how it begins, what its size is a multiple of, what the files beside it are called.
_SQLITE, _LEAST_PAGE_BYTES, _JOURNALS = b"SQLite format 3\0", 512, ("-wal", "-journal")


class NotExported(RamTrainError):
    """A model that did not come home: `what` says why, the rest of the text where it is and what to do."""

    def __init__(self, what: str, lease: Lease, first: str) -> None:
        super().__init__(f"{what}\n{remedy.still_in_ram(lease.folder)} {first} {remedy.repeat_export()}.")
        self.what = what


@dataclass(frozen=True)
class Export:
    """What came home: files with their path in the run's results, seconds, and what it wrote to the disk.

    `started` and `ended` are not in a note of before they were kept.
    """

    model: list[Kept]
    artifacts: list[Kept]
    export_s: float
    writes: ProcessWrites
    started: str | None = None
    ended: str | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Export:
        """Return the export that `asdict` made `content` of."""
        return cls(
            model=[Kept(**file) for file in content["model"]],
            artifacts=[Kept(**file) for file in content["artifacts"]],
            export_s=content["export_s"],
            writes=ProcessWrites(**content["writes"]),
            started=content.get("started"),
            ended=content.get("ended"),
        )


def keep_log(run: str, lease: Lease) -> Path:
    """Bring the trainer's output and the series of the training home; return where the output is then.

    What is not committed comes with the model alone: beside the record of an earlier training it would be another's.
    """
    kept = Path(lease.folder) / TRAINER_LOG
    for source in _logs(lease):
        try:
            commit_file(source, home(run) / source.name)
        except (OSError, RamTrainError) as error:
            log.error("run %s: %s could not be brought home: %s", run, source, error)
        else:
            kept = home(run) / TRAINER_LOG if source == kept else kept
    return kept


def _logs(lease: Lease) -> list[Path]:
    places = (Path(lease.folder) / TRAINER_LOG, series_of(lease))
    return [path for path in places if path.exists()]


def export_model(run: str, products: Products, lease: Lease, stage: Stage) -> Export:
    """Copy what the config names from RAM to the run's results; verified, or an error with everything still in RAM.

    Raises:
        NotExported: a glob of the model matches nothing, a link points out of the project, the disk is full or fails.
    """
    started, started_at, before = time.monotonic(), stamp(), own_writes()
    view = stage.view()
    model = find_model(run, products, lease, stage, view)
    artifacts = _find_artifacts(run, products, stage, view, leave_out=set(model))
    sizes = {path: source.stat().st_size for path, source in {**model, **artifacts}.items()}
    target, diff = home(run), diff_of(lease)
    logs = [*_logs(lease), *([diff] if diff.exists() else [])]
    try:
        make_folders(target)
        _check_room(target, sum(map(room_bytes, (*model.values(), *artifacts.values(), *logs))))
        for path in logs:
            commit_file(path, target / path.name)
        with CopyProgress(f"run {run}: exporting", len(sizes), sum(sizes.values())) as progress:
            kept_model = commit_folder(_shorten(model), target / "model", progress.add)
            kept_artifacts = commit_folder(artifacts, target / "artifacts", progress.add) if artifacts else []
        if not artifacts and (target / "artifacts" / MANIFEST).is_file():
            remove(target / "artifacts")  # of an earlier training
        if not diff.exists():
            remove(target / DIFF)  # likewise
    except (OSError, RamTrainError) as error:
        raise NotExported(f"run {run}: the export failed: {error}", lease, "When the cause is mended,") from error
    return Export(
        model=[replace(file, path=f"model/{file.path}") for file in kept_model],
        artifacts=[replace(file, path=f"artifacts/{file.path}") for file in kept_artifacts],
        export_s=round(time.monotonic() - started, 3),
        writes=own_writes().since(before),
        started=started_at,
        ended=stamp(),
    )


def metrics_of(run: str, products: Products, lease: Lease, stage: Stage) -> dict[str, Metric]:
    """Return the metrics of a training that has ended, read from RAM."""
    output = Path(lease.folder) / TRAINER_LOG
    return read_metrics(run, products.metrics, stage.view(), Path(stage.project), output)


def check_home(run: str, lease: Lease, export: Export) -> None:
    """Check that what was exported is still at home, before the RAM is released.

    Raises:
        RamTrainError: a file is missing or has another size.
    """
    if spoilt := spoilt_at_home(run, export):
        now = (
            f"{remedy.still_in_ram(lease.folder)} To go on, {remedy.bring_home()}."
            if Path(lease.state).exists()
            else f"Nothing of it is in RAM; to train again, type `{caller.command('train')} --forcerun train_run`."
        )
        raise RamTrainError(f"run {run}: {', '.join(map(str, spoilt))} is no longer as it was exported. {now}")


def spoilt_at_home(run: str, export: Export) -> list[Path]:
    """Return the exported files that are missing at home or have another size."""
    paths = {home(run) / file.path: file.bytes for file in (*export.model, *export.artifacts)}
    return [path for path, size in paths.items() if not path.is_file() or path.stat().st_size != size]


def find_model(run: str, products: Products, lease: Lease, stage: Stage, view: View) -> dict[str, Path]:
    """Return the real file for each path that the model's globs name."""
    found: dict[str, Path] = {}
    for pattern in products.model:
        paths = stage.products(view, pattern)
        if closed := [error for path, error in view.closed.items() if path.is_relative_to(view.layers[0])]:
            what = f"run {run}: project.model: {pattern!r} may name more than could be found: {closed[0]}."
            raise NotExported(what, lease, "Mend that, such as by `chmod -R u+rwX`, and")
        if not paths:
            written = view.written(Path(stage.project))
            listed = "\n".join(f"  {name}" for name in written[:_MOST_NAMES]) or "  (nothing)"
            more = f"\n  and {len(written) - _MOST_NAMES} more" if len(written) > _MOST_NAMES else ""
            before = view.glob([pattern])
            what = f"nothing but what was there before, such as {one_line(before[0])}," if before else "nothing"
            raise NotExported(
                f"run {run}: project.model: {pattern!r} matches {what} after training. The trainer wrote, in "
                f"{stage.layers[0]}:\n{listed}{more}",
                lease,
                "Correct project.model in the config and",
            )
        try:
            real = plain_files({path: view.real(path) for path in paths}, f"run {run}: model:")
            if not real:
                raise FileNotFoundError("there is no file in it that could be copied")
        except (Escapes, FileNotFoundError) as error:
            what = f"run {run}: project.model: {pattern!r} is refused: {error}."
            first = "Name another file in project.model, or put the file itself there, and"
            raise NotExported(what, lease, first) from error
        found |= real
    if not any(stage.is_made(path, view) for path in found):
        raise NotExported(
            f"run {run}: project.model: the training has written none of these files, which were there before: "
            f"{one_line(next(iter(found)))}{' and others' if len(found) > 1 else ''}.",
            lease,
            "Name what it writes, and",
        )
    if not any(file.stat().st_size for file in found.values()):
        log.warning("run %s: the model is empty: %s of 0 bytes", run, pluralize(len(found), "file"))
    return _with_journals(view, found)


def _with_journals(view: View, found: Mapping[str, Path]) -> dict[str, Path]:
    """Add to SQLite databases what belongs to them: changes that are in the file beside it alone, as a trainer leaves
    them that does not close its database (https://www.sqlite.org/wal.html)."""
    journals = [f"{path}{end}" for path, source in found.items() if _is_database(source) for end in _JOURNALS]
    return {**found, **{path: view.real(path) for path in view.glob(map(glob.escape, journals))}}


def _is_database(path: Path) -> bool:
    size_bytes = path.stat().st_size
    if not size_bytes or size_bytes % _LEAST_PAGE_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _find_artifacts(run: str, products: Products, stage: Stage, view: View, leave_out: set[str]) -> dict[str, Path]:
    found = {path for pattern in products.artifacts for path in stage.products(view, pattern)}
    paths = sorted(found - leave_out)
    return _with_journals(view, real_files(view, paths, f"run {run}: artifact"))


def _shorten(sources: Mapping[str, Path]) -> dict[str, Path]:
    """Leave out the folders that all of the model's files share."""
    shared = os.path.commonpath([os.path.dirname(path) for path in sources])
    return {os.path.relpath(path, shared or "."): source for path, source in sources.items()}


def _check_room(folder: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise RamTrainError(
            f"{folder} has {format_size(free_bytes, binary=True)} free, and {format_size(size_bytes, binary=True)} are "
            "to come home; make room there."
        )
