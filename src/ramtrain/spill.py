"""Files of a trainer for which RAM had no room: they lie on the disk, and a link stands in their place.

results/<run>/spilled/<number>-<name>. The trainer reads, and writes, through the link; it may rename it. They belong to
the RAM disk: when that is released, or is gone after a reboot, they go as well.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ramtrain.durable import commit_file
from ramtrain.lease import Lease


def spill_folder(lease: Lease) -> Path:
    """Return the folder on the disk that takes what does not fit in RAM, without links on the way: as the kernel names
    what a process has open there."""
    return Path(lease.workdir, "results", lease.run).resolve() / "spilled"


def contents_of(path: Path, folder: Path | None) -> Path | None:
    """Return where the contents of a trainer's file are, itself or a file in the spill `folder`; None of other links.

    Raises:
        FileNotFoundError: it is gone.
    """
    try:  # one step: a trainer may put a file in a link's place
        target = Path(os.readlink(path))
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is no link
            return path
        raise
    return (
        target
        if target.is_absolute() and target.parent == folder and target.is_file() and not target.is_symlink()
        else None
    )


def spill(source: Path, place: Path, folder: Path) -> None:
    """Move a file to the disk, verified, and put a link in its place.

    Nobody may have it open: what is written to the old file meanwhile would be lost.

    Args:
        source: the file in RAM.
        place: the same file as the trainer sees it, where the link is made.

    Raises:
        RamTrainError, OSError: the disk is full, or fails; the file is as it was.
    """
    target = folder / f"{secrets.token_hex(4)}-{place.name}"
    link = place.with_name(f".{target.name}.partial")
    try:
        commit_file(source, target)
        link.symlink_to(target)
        link.replace(place)
    except BaseException:
        link.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise


def remove_orphans(root: Path, folder: Path) -> None:
    """Delete what was spilled and has no link any more below `root`, all that the run holds in RAM."""
    if not folder.is_dir():
        return
    orphans = {path for path in folder.iterdir() if path.is_file()}
    for link in _links(root):
        orphans.discard(Path(os.readlink(link)))
    for path in orphans:
        path.unlink(missing_ok=True)


def _links(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                yield path
