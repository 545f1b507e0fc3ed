"""Files of a trainer for which RAM had no room: they lie on the disk, and a link stands in their place.

results/<run>/spilled/<kind>-<number>-<name>. The trainer reads, and writes, through the link; it may rename it. They
belong to the RAM disk: when that is released, or is gone after a reboot, they go as well. Only what is no checkpoint,
and has no link any more, stays: the trainer may have moved the link to another disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ramtrain.durable import commit_file, fit_name, write_bytes
from ramtrain.errors import RamTrainError
from ramtrain.lease import Lease

# What a name has beside the file's, while it is copied too.
_MORE_BYTES = 32
_NAME, _STAYS = "spilled", "stays.txt"
_CHECKPOINT, _OTHER = "c", "f"
# Of an overlay's work folder, which nobody may read, nothing is wanted.
_NO_MATTER = (errno.ENOENT, errno.EACCES)


class InUse(RamTrainError):
    """A file that somebody has open for writing."""


def spill_folder(lease: Lease) -> Path:
    """Return the folder on the disk that takes what does not fit in RAM, without links on the way: as the kernel names
    what a process has open there."""
    return Path(lease.workdir, "results", lease.run).resolve() / _NAME


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
    is_ours = target.is_absolute() and target.parent == folder
    return target if is_ours and target.is_file() and not target.is_symlink() else None


def spill(
    source: Path,
    place: Path,
    folder: Path,
    is_checkpoint: bool,
    held: Callable[[], contextlib.AbstractContextManager[bool]],
    report: Callable[[int, int], None] = lambda files, size: None,
) -> bool:
    """Move a file to the disk, verified, and put a link in its place; return whether that could be done.

    Args:
        source: the file in RAM.
        place: the same file as the trainer sees it, where the link is made.
        held: keeps the trainer stopped while the link is made; gives whether it is.
        report: called while it is copied; what it raises ends that.

    Raises:
        InUse: somebody has it open for writing.
        RamTrainError, OSError: the disk is full, or fails; the file is as it was.
    """
    kind = _CHECKPOINT if is_checkpoint else _OTHER
    target = folder / f"{kind}-{secrets.token_hex(4)}-{fit_name(place.name, _MORE_BYTES)}"
    link = place.with_name(f".{target.name}.partial")
    is_done = False
    try:
        with _unwritten(source) as is_unwritten:
            commit_file(source, target, report=report)
            with held() as is_stopped:
                if is_stopped and is_unwritten():
                    link.symlink_to(target)
                    link.replace(place)
                    is_done = True
    finally:
        if not is_done:
            link.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
    return is_done


@contextlib.contextmanager
def _unwritten(path: Path) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether nobody has opened the file for writing, or written to it, so far.

    Also processes that are none of the trainer's, in a container say, are noticed: by a read lease (fcntl(2), Leases),
    where the file system has them.

    Raises:
        InUse: somebody has.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # that it is broken is looked at; the default kills
        has_lease = True
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise InUse(f"{path} is open for writing") from None
            has_lease = False

        def is_unwritten() -> bool:
            now = path.lstat()
            same = (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
            return same and (not has_lease or fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK)

        yield is_unwritten
    finally:
        os.close(descriptor)


def remove_orphans(root: Path, folder: Path) -> None:
    """Delete the spilled checkpoints that have no link any more below `root`, all that the run holds in RAM; and what a
    copy that was killed left.

    Raises:
        OSError: it could not be looked for all links; nothing is deleted.
    """
    for path in _orphans(root, folder):
        if path.name.startswith((f"{_CHECKPOINT}-", ".")):
            path.unlink(missing_ok=True)


def moved_away(root: Path, folder: Path) -> list[Path]:
    """Return what was spilled, is no checkpoint, and has no link any more below `root`.

    Raises:
        OSError: it could not be looked for all links.
    """
    return sorted(path for path in _orphans(root, folder) if path.name.startswith(f"{_OTHER}-"))


def remove_spilled(folder: Path, stays: Sequence[Path] = ()) -> None:
    """Delete all that was spilled, but for what is to stay, now and from now on."""
    if not _is_spill_folder(folder):
        return
    note = folder / _STAYS
    names = {path.name for path in stays}
    if note.exists():
        names |= set(note.read_text(encoding="utf-8", errors="surrogateescape").split("\n"))
    for path in folder.iterdir():
        if path.name not in names and path != note:
            path.unlink()
    if left := names & {path.name for path in folder.iterdir()}:
        write_bytes(note, "\n".join(sorted(left)).encode("utf-8", "surrogateescape"))
    else:
        note.unlink(missing_ok=True)
        folder.rmdir()


def _orphans(root: Path, folder: Path) -> set[Path]:
    """Return what was spilled and has no link below `root`; what a copy cut short left is among it."""
    if not _is_spill_folder(folder):
        return set()
    orphans = {path for path in folder.iterdir() if path.is_file()}
    for link in _links(root):
        orphans.discard(Path(os.readlink(link)))
    return orphans


def _is_spill_folder(folder: Path) -> bool:
    return folder.is_absolute() and folder.name == _NAME and folder.is_dir() and not folder.is_symlink()


def _links(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        if error.errno not in _NO_MATTER:
            raise error

    for parent, folders, names in os.walk(root, onerror=fail):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                yield path
