"""Copy a tree as `cp -a` does, with progress, things to leave out, and links that stay in the copy."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramtrain.errors import RamTrainError
from ramtrain.progress import CopyProgress
from ramtrain.system import data_ranges, is_sparse

log = logging.getLogger(__name__)

# One thread, and a buffer that stays in the processor's cache: measured faster than more threads or larger buffers.
_BUFFER_BYTES = 128 << 10
_OPEN_FILES = 128
_OWNER = (os.geteuid(), os.getegid())


@dataclass(frozen=True, slots=True)
class Item:
    """Something to copy: its path in the tree and its lstat."""

    path: str
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and no link to one."""
        return stat.S_ISDIR(self.status.st_mode)


def scan(tree: Path, leave_out: re.Pattern[str], prefix: str = "") -> Iterator[Item]:
    """Yield all that is in the tree, a folder before what it holds, less what `leave_out` matches.

    Raises:
        RamTrainError: a folder may not be read.
    """
    try:
        entries = sorted(os.scandir(tree / prefix), key=lambda entry: entry.name)
    except PermissionError as error:
        raise _unreadable(error) from None
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if leave_out.fullmatch(path):
            continue
        item = Item(path, entry.stat(follow_symlinks=False))
        yield item
        if item.is_folder:
            yield from scan(tree, leave_out, f"{path}/")


def copy_items(items: Sequence[Item], tree: Path, target: Path, what: str) -> tuple[int, int]:
    """Copy `items` with modes, times, owners, attributes, holes, links and hard links; return files and bytes.

    Args:
        items: as `scan` yields them.
        target: a folder that has none of them yet.
        what: what is done, for the progress.

    Raises:
        RamTrainError: a file may not be read.
    """
    files: list[Item] = []
    links: list[Item] = []
    folders: list[Item] = []
    first_names: dict[tuple[int, int], str] = {}
    hard_links: list[tuple[str, str]] = []
    for item in items:
        mode = item.status.st_mode
        if stat.S_ISREG(mode):
            inode = (item.status.st_dev, item.status.st_ino)
            if item.status.st_nlink > 1 and inode in first_names:
                hard_links.append((first_names[inode], item.path))
            else:
                first_names[inode] = item.path
                files.append(item)
        elif item.is_folder:
            (target / item.path).mkdir(mode=stat.S_IRWXU, exist_ok=True)
            folders.append(item)
        elif stat.S_ISLNK(mode):
            links.append(item)
        else:
            log.warning("%s: %s is neither file, folder nor link; left out", what, item.path)
    size_bytes = sum(item.status.st_size for item in files)
    with CopyProgress(what, len(files), size_bytes) as progress:
        for first in range(0, len(files), _OPEN_FILES):
            _copy_files(files[first : first + _OPEN_FILES], str(tree), str(target), progress)
    for name, other in hard_links:
        os.link(target / name, target / other)
    for link in links:
        _copy_link(link.path, tree, target)
    for folder in reversed(folders):
        _set_status(target / folder.path, folder.status)
    return len(files) + len(hard_links), size_bytes


def _copy_files(items: Sequence[Item], tree: str, target: str, progress: CopyProgress) -> None:
    """Copy some files, all of them opened first, so that a disk is asked for what comes next while this one is read."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    readers: list[int] = []
    try:
        for item in items:
            readers.append(os.open(f"{tree}/{item.path}", os.O_RDONLY | os.O_NOFOLLOW))
            os.posix_fadvise(readers[-1], 0, _BUFFER_BYTES, os.POSIX_FADV_WILLNEED)
        for item, reader in zip(items, readers, strict=True):
            _copy_file(reader, f"{target}/{item.path}", item.status, buffer, progress)
    except PermissionError as error:
        raise _unreadable(error) from None
    finally:
        for reader in readers:
            os.close(reader)


def _copy_file(reader: int, target: str, status: os.stat_result, buffer: memoryview, progress: CopyProgress) -> None:
    copied = 0
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    try:
        for start, end in data_ranges(reader, status):
            while start < end and (count := os.preadv(reader, [buffer[: end - start]], start)):
                start += os.pwrite(writer, buffer[:count], start)
                if count == _BUFFER_BYTES:
                    progress.add(0, count)
                    copied += count
        if is_sparse(status):
            os.ftruncate(writer, status.st_size)  # the last hole
        _copy_attributes(reader, writer)
        _set_status(writer, status)
    finally:
        os.close(writer)
    progress.add(1, status.st_size - copied)


def _copy_attributes(reader: int, writer: int) -> None:
    """Copy extended attributes as far as the user and the RAM disk's file system allow, as shutil.copystat does."""
    try:
        for name in os.listxattr(reader):
            os.setxattr(writer, name, os.getxattr(reader, name))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENODATA, errno.EINVAL):
            raise


def _set_status(target: Path | int, status: os.stat_result) -> None:
    if _OWNER[0] == 0 and (status.st_uid, status.st_gid) != _OWNER:  # only root may give files away
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_link(path: str, tree: Path, target: Path) -> None:
    """Make a link anew: one into the tree leads into the copy, one out of it to where it led."""
    text = os.readlink(tree / path)
    leads_to = Path(os.path.normpath((tree / path).parent / text))
    if leads_to.is_relative_to(tree):
        text = os.path.relpath(target / leads_to.relative_to(tree), (target / path).parent)
    elif not text.startswith("/"):
        text = str(leads_to)
    (target / path).symlink_to(text)


def _unreadable(error: PermissionError) -> RamTrainError:
    return RamTrainError(f"project.path: {error.filename} may not be read; check its owner and mode.")
