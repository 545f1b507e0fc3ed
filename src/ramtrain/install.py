"""Put a model that is at home where the config wants it too, such as in the project that lists its models there.

The folder is RamTrain's own: a file in it says so, and names each other file with its hash. It is replaced as a whole,
and only while it holds these files and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ramtrain import caller
from ramtrain.config import Run
from ramtrain.durable import Kept, commit_folder, hash_from_disk, make_folders, read_manifest
from ramtrain.errors import RamTrainError
from ramtrain.inputs import INSTALLED, WORKPLACE, is_installed
from ramtrain.meter import own_writes
from ramtrain.ramdisk import check_own_folder
from ramtrain.shelf import RESULTS, home

_MODEL = "model/"


def check_install(run: Run) -> None:
    """Check that the run's model can be put where `project.install_to` says.

    Raises:
        RamTrainError: the folder is somebody else's, has a part that is not RamTrain's, or cannot be made.
    """
    if run.install_to is None:
        return
    folder, where = run.install_to, f"run {run.run}: project.install_to: {run.install_to}"
    taken = (run.project, Path.cwd(), RESULTS.absolute())
    if any(place.is_relative_to(folder) for place in taken) or folder.is_relative_to(RESULTS.absolute()):
        raise RamTrainError(f"{where}: name a folder of its own for the model.")
    if not Path(run.install_pattern or "").expanduser().is_absolute():
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not there.resolve().is_relative_to(run.project.resolve()):
            raise RamTrainError(f"{where}: leads out of the project; give an absolute path if you want it there.")
    _check_ours(run, folder, where)
    parent = next(place for place in folder.parents if os.path.lexists(place))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RamTrainError(f"{where}: cannot be made: {parent} is no folder that you may write to.")


def install(run: Run, model: Iterable[Kept]) -> dict[str, Any] | None:
    """Put the model's files into `project.install_to`; return where, for the record, or None if nothing is asked for.

    Args:
        model: the files of the model at home, by their paths in the run's results.

    Raises:
        RamTrainError: the folder is not RamTrain's, or the disk is full or fails; the model is at home all the same.
    """
    folder = run.install_to
    if folder is None:
        return None
    sources = {file.path.removeprefix(_MODEL): home(run.run) / file.path for file in model}
    before = own_writes()

    def mark() -> Mapping[str, Any]:
        check_install(run)  # while all was copied somebody may have put something there
        return {"run": run.run, "workdir": str(Path.cwd())}

    try:
        check_install(run)
        workplace = _make_workplace(folder, run.project)
        place = workplace / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        kept = commit_folder(sources, folder, about=mark, manifest=INSTALLED, place=place)
        with suppress(OSError):  # another run is at work there
            workplace.rmdir()
    except (RamTrainError, OSError) as error:
        raise RamTrainError(
            f"{error}\nrun {run.run}: its model is in {home(run.run) / _MODEL}, verified, but not in {folder}. "
            f"When the cause is mended, type `{caller.command('train')}`: only that is repeated."
        ) from None
    return {
        "path": str(folder),
        "files": len(kept),
        "bytes": sum(file.bytes for file in kept),
        "disk_bytes": own_writes().since(before).disk_bytes,
    }


def _make_workplace(folder: Path, project: Path) -> Path:
    """Make a private folder as far above as the file system is the same, in the project if `folder` lies there: a
    program that lists its models takes whatever lies beside them for one."""
    make_folders(folder.parent)
    device = folder.parent.stat().st_dev
    above = [place for place in folder.parents if place.is_relative_to(project)] or [folder.parent]
    workplace = next(place for place in reversed(above) if place.stat().st_dev == device) / WORKPLACE
    if not os.path.lexists(workplace):
        make_folders(workplace)
    check_own_folder(workplace)
    return workplace


def _check_ours(run: Run, folder: Path, where: str) -> None:
    remedy = "Name another folder, or move it away."
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not is_installed(folder):
        raise RamTrainError(f"{where}: is there already, and is of no run of this working directory. {remedy}")
    manifest = read_manifest(folder, INSTALLED)
    if manifest["run"] != run.run:
        raise RamTrainError(f"{where}: holds the model of run {manifest['run']}. {remedy}")
    files: list[Kept] = manifest["files"]
    known = {INSTALLED, *(file.path for file in files)}
    folders = {str(parent) for name in known for parent in Path(name).parents}
    changed = []
    for place, names, others in os.walk(folder):
        paths = {name: Path(place, name) for name in (*names, *others)}
        there = {os.path.relpath(path, folder): path for path in paths.values()}
        changed += [name for name, path in there.items() if path.is_symlink() or name not in known | folders]
    changed += [file.path for file in files if hash_from_disk(folder / file.path) != (file.bytes, file.sha256)]
    if changed:
        raise RamTrainError(f"{where}: {min(changed)} is not as RamTrain put it there, and would be lost. {remedy}")
