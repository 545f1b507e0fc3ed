"""How the trainer comes to see the project: through an overlay, as a copy in RAM, or as it is."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ramtrain.clock import stamp
from ramtrain.config import Products, Run
from ramtrain.durable import write_json
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.inputs import own_places
from ramtrain.namespace import ENTER, Overlay
from ramtrain.ramdisk import Lease, remove_tree
from ramtrain.sighting import SIGHTING
from ramtrain.spill import remove_spilled, spill_folder
from ramtrain.system import mounts
from ramtrain.tree import Item, copy_items, scan
from ramtrain.view import View, matcher, split_pattern

log = logging.getLogger(__name__)

_STAGE = ".stage.json"
_BEGUN = "begun.json"
# How much coarser than the clock the times of files are.
_CLOCK_S = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """How a run's project was staged; paths are absolute, `project` resolved.

    `ram` is what {ram} stands for and where the trainer's products are looked for, `cwd` the folder it starts in,
    `layers` what makes up the project as it sees it, the upper first, `spilled` the folder on the disk for files that
    found no room in RAM. `files` and `bytes` are what was copied to RAM; `started` and `ended` say when, and are not
    in a note of before they were kept.
    """

    project: str
    method: str
    why: str
    namespace: str | None
    ram: str
    cwd: str
    layers: list[str]
    overlays: list[Overlay]
    files: int
    bytes: int
    stage_s: float
    spilled: str = "/dev/null/spilled"  # in a note of before there was one: no file can be made there
    started: str | None = None
    ended: str | None = None

    @classmethod
    def read(cls, path: Path) -> Stage:
        """Read what `stage_project` found."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Stage:
        """Return the stage that `asdict` made `content` of."""
        return cls(**{**content, "overlays": [Overlay(**entry) for entry in content["overlays"]]})

    def written(self, patterns: Iterable[str]) -> dict[str, list[str]]:
        """Return the files of each file or folder that the globs name and the trainer wrote, by its path."""
        upper = View([Path(self.layers[0])])
        found = {}
        for path, files in upper.find(patterns).items():
            with contextlib.suppress(FileNotFoundError):  # the trainer deletes some meanwhile
                if any(upper.is_written(file, Path(self.project)) for file in files):
                    found[path] = files
        return found

    def products(self, view: View, pattern: str) -> list[str]:
        """Return the files that a glob names and the training made, with all of a folder that it made some of.

        Where it made none of them: what a name without wildcards names; and what a glob names in folders that the
        training made nothing in, such as a tokenizer's. Otherwise it is what earlier trainings have left.
        """
        found = view.find([pattern])
        literal, rest = split_pattern(pattern)
        made = [path for path, files in found.items() if any(map(self.is_made, files))]
        if not made and rest and any(map(self.is_made, View([Path(self.layers[0])]).glob([literal or "**"]))):
            return []
        return sorted({file for path in made or found for file in found[path]})

    def is_made(self, path: str) -> bool:
        """Whether a file of the project is one that the training made, or wrote to."""
        upper = Path(self.layers[0])
        try:
            status = (upper / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if self.method != "copy":
            return True
        # A copy that keeps its original's time (cp -p) is told by the time that nobody can set.
        ended_s = datetime.fromisoformat(self.ended).timestamp() if self.ended else math.inf
        return View([upper]).is_written(path, Path(self.project)) or status.st_ctime > ended_s + _CLOCK_S

    def view(self) -> View:
        """Return the project as the trainer sees it."""
        seen_as = [self.ram] if self.method == "none" else [self.ram, self.project]
        return View([Path(layer) for layer in self.layers], [Path(path) for path in seen_as], Path(self.spilled))


@dataclass(frozen=True)
class Begun:
    """Which training has been started on a RAM disk, the globs of what it makes, and whether it ended well."""

    fingerprint: Fingerprint
    products: Products
    finished: bool = False

    def write(self, lease: Lease) -> None:
        """Note it on the RAM disk, before the trainer writes there."""
        write_json(Path(lease.folder) / _BEGUN, asdict(self))

    @classmethod
    def read(cls, lease: Lease) -> Begun | None:
        """Return what has been started on this RAM disk; None if nothing has."""
        path = Path(lease.folder) / _BEGUN
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        products = Products.from_dict(content["products"])
        return cls(Fingerprint(**content["fingerprint"]), products, content["finished"])


def current_stage(lease: Lease) -> Stage | None:
    """Return how the project was last staged on this RAM disk; None if it was not."""
    path = Path(lease.folder) / _STAGE
    return Stage.read(path) if path.exists() else None


def renew(run: Run, lease: Lease) -> Stage:
    """Throw away what a training wrote, which is at home or of no use, and stage the project anew."""
    (Path(lease.folder) / _BEGUN).unlink(missing_ok=True)
    (Path(lease.state) / SIGHTING).unlink(missing_ok=True)
    return stage_project(run, lease)


class Unavailable(RamTrainError):
    """A staging method that does not work here; its text says why."""


def stage_project(run: Run, lease: Lease) -> Stage:
    """Prepare the run's folder on its RAM disk so that the trainer can be started on it.

    What a killed attempt at staging left is done again; what a trainer has begun to write to is kept. How it was done
    is noted on the RAM disk too, for a rescue.

    Raises:
        RamTrainError: the configured method does not work here.
    """
    started, started_at = time.monotonic(), stamp()
    folder = Path(lease.folder)
    if Begun.read(lease) is None:
        for left in ("overlay", "volatile", "project", "out"):
            remove_tree(folder / left)
        remove_spilled(spill_folder(lease))
    methods = {"overlay": _overlay, "copy": _copy, "none": _none}
    _, why, stage = _first_working(run, {name: partial(method, run, folder) for name, method in methods.items()})
    if run.volatile and stage.method != "overlay":
        log.warning("run %s: project.volatile needs the overlay; writes to those folders go to the disk", run.run)
    stage = replace(
        stage,
        why=why,
        stage_s=round(time.monotonic() - started, 3),
        spilled=str(spill_folder(lease)),
        started=started_at,
        ended=stamp(),
    )
    write_json(folder / _STAGE, asdict(stage))
    return stage


def foresee(run: Run, folder: Path, place: Path) -> tuple[str, str]:
    """Return the method by which the run's project would be staged now, and why; nothing is left of the trial.

    Args:
        folder: where its RAM disk will be.
        place: a folder on a file system of the same kind, to try things out in.

    Raises:
        RamTrainError: the configured method does not work here.
    """

    def try_overlay() -> None:
        scratch = Path(tempfile.mkdtemp(prefix="ramtrain-check-", dir=place))
        try:
            existing = [path for path in run.volatile if path.is_dir()]
            captured = _captured(run, existing, folder)
            _find_namespace([_prepare(lower, scratch / name) for name, lower in captured.items()], scratch)
        finally:
            remove_tree(scratch)

    method, why, _ = _first_working(run, {"overlay": try_overlay, "copy": lambda: None, "none": lambda: None})
    return method, why


def _first_working(run: Run, methods: Mapping[str, Callable[[], T]]) -> tuple[str, str, T]:
    """Return the method that the config names, or the first that works, why it was taken, and what it returned."""
    if run.staging != "auto":
        try:
            return run.staging, "as configured", methods[run.staging]()
        except Unavailable as reason:
            raise RamTrainError(
                f"run {run.run}: staging: overlay does not work here: {str(reason).rstrip('.')}. "
                "Choose `auto` or `copy`."
            ) from None
    try:
        return "overlay", "the first choice, and it works here", methods["overlay"]()
    except Unavailable as reason:
        return "copy", f"no overlay: {reason}", methods["copy"]()


def _captured(run: Run, volatile: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Return the folders that overlays are mounted on, by the names of their places in the run's folder."""
    project = run.project.resolve()
    found = {"overlay": project}
    for number, place in enumerate(volatile, 1):
        captured = place.resolve()
        if captured.is_relative_to(project):
            log.info("run %s: volatile folder %s is in the project, which is captured as a whole", run.run, place)
        else:
            found[f"volatile/{number}"] = captured
    for captured in found.values():
        _check_disjoint(captured, folder)
    return found


def _overlay(run: Run, folder: Path) -> Stage:
    project = run.project.resolve()
    for place in run.volatile:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RamTrainError(f"project.volatile: {place}: {error.strerror}; give a folder.") from None
    overlays = [_prepare(lower, folder / name) for name, lower in _captured(run, run.volatile, folder).items()]
    namespace = _find_namespace(overlays, folder)
    upper = Path(overlays[0].upper)
    files, size_bytes = (0, 0) if any(upper.iterdir()) else _preload(run, project, upper)
    return Stage(
        project=str(project),
        method="overlay",
        why="as configured",
        namespace=namespace,
        ram=str(project),
        cwd=str(project),
        layers=[str(upper), str(project)],
        overlays=overlays,
        files=files,
        bytes=size_bytes,
        stage_s=0.0,
    )


def _preload(run: Run, project: Path, upper: Path) -> tuple[int, int]:
    """Copy the files that `preload` names into the upper layer, where reads find them in RAM."""
    if not run.preload:
        return 0, 0
    items = [item for item in scan(project, matcher(())) if not item.is_folder]
    wanted = set(View([project]).glob(run.preload))
    chosen = [item for item in items if item.path in wanted]
    if not chosen:
        raise RamTrainError(f"project.preload: {', '.join(run.preload)} matches no file in {project}.")
    parents = {str(parent) for item in chosen for parent in PurePosixPath(item.path).parents} - {"."}
    folders = [Item(path, (project / path).lstat()) for path in sorted(parents)]
    return copy_items([*folders, *chosen], project, upper, f"run {run.run}: preloading")


def _copy(run: Run, folder: Path) -> Stage:
    project = run.project.resolve()
    target, partial = folder / "project", folder / "project.partial"
    files = size_bytes = 0
    if not target.exists():
        remove_tree(partial)
        partial.mkdir()
        items = list(scan(project, matcher((*run.exclude, *own_places(project)))))
        files, size_bytes = copy_items(items, project, partial, f"run {run.run}: staging")
        shutil.copystat(project, partial)
        partial.rename(target)
    return Stage(
        project=str(project),
        method="copy",
        why="as configured",
        namespace=None,
        ram=str(target),
        cwd=str(target),
        layers=[str(target)],
        overlays=[],
        files=files,
        bytes=size_bytes,
        stage_s=0.0,
    )


def _none(run: Run, folder: Path) -> Stage:
    project, out = run.project.resolve(), folder / "out"
    out.mkdir(exist_ok=True)
    return Stage(
        project=str(project),
        method="none",
        why="as configured",
        namespace=None,
        ram=str(out),
        cwd=str(project),
        layers=[str(out)],
        overlays=[],
        files=0,
        bytes=0,
        stage_s=0.0,
    )


def _check_disjoint(lower: Path, folder: Path) -> None:
    if folder.is_relative_to(lower):
        raise Unavailable(f"{lower} holds the RAM disk {folder} itself.")
    inside = [str(entry.point) for entry in mounts() if entry.point != lower and entry.point.is_relative_to(lower)]
    if inside:
        raise Unavailable(f"{', '.join(inside)} is mounted inside {lower}, and an overlay would hide it.")


def _prepare(lower: Path, place: Path) -> Overlay:
    upper, work = place / "upper", place / "work"
    work.mkdir(parents=True, exist_ok=True)
    if not upper.exists():
        upper.mkdir()
        status = lower.stat()
        if os.geteuid() == 0:
            os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(stat.S_IMODE(status.st_mode))
        os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))
    return Overlay(str(lower), str(upper), str(work))


def _find_namespace(overlays: Sequence[Overlay], folder: Path) -> str:
    """Return the first kind of namespace in which the overlays work, found out by using them."""
    reasons = []
    for namespace in ("mount", "user") if os.geteuid() == 0 else ("user",):
        with tempfile.TemporaryDirectory(prefix="trial-", dir=folder) as scratch:
            trial = {
                "overlays": [asdict(overlay) for overlay in overlays],
                "namespace": namespace,
                "scratch": scratch,
            }
            argv = [*ENTER[namespace], sys.executable, "-I", "-m", "ramtrain.namespace"]
            try:
                done = subprocess.run(argv, check=False, input=json.dumps(trial), capture_output=True, text=True)
            except OSError as error:
                raise Unavailable(f"{argv[0]}: {error.strerror} (package util-linux).") from None
            remove_tree(Path(scratch) / "work")
        if done.returncode == 0:
            return namespace
        reasons.append(f"in a {namespace} namespace: {' '.join(done.stderr.split())}")
    raise Unavailable("; ".join(reasons) + " (README, 'Overlay without root')")
