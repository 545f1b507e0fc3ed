"""Locks in the user's folder, /dev/shm/ramtrain-<uid>: on the folder itself, and on files that say who holds what.

The kernel drops a lock when the last process that has its descriptor open is gone, however it ends. A file is made,
locked and removed only while the folder is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_HELD = "held-"


@contextlib.contextmanager
def folder_locked(root: Path) -> Iterator[None]:
    """Hold the lock on the folder; another process may remove it, when it is empty, while we wait for that."""
    while True:
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=stat.S_IRWXU)
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(descriptor, root):
                yield
                return
        finally:
            os.close(descriptor)


def _is_still(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


def take(root: Path, name: str, note: str) -> int | None:
    """Lock what goes by `name`, for as long as the descriptor is open that is returned; None if somebody holds it.

    Args:
        root: the folder, which is locked.
        name: letters, digits and such.
        note: what others may read of the holder.
    """
    descriptor = os.open(_file(root, name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, stat.S_IRUSR | stat.S_IWUSR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, note.encode())
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def holder(root: Path, name: str) -> str:
    """Return what is noted of who holds what goes by `name`; the folder is locked."""
    return _file(root, name).read_text(encoding="utf-8")


def tidy(root: Path) -> None:
    """Remove the files that nobody holds, and the folder if nothing else is in it; it is locked."""
    for file in root.glob(f"{_HELD}*"):
        with file.open() as content:
            try:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            file.unlink()
    with contextlib.suppress(OSError):  # not empty
        root.rmdir()


def _file(root: Path, name: str) -> Path:
    return root / f"{_HELD}{name}"
