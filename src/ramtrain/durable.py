"""The one way anything is written to the disk for keeps.

A file: temporary name in the target's own folder, flush, fsync, rename, fsync of the folder. A folder of files: each
file copied and hashed on the way, fsynced, read back from the disk and compared, the manifest with the hashes last;
then the whole folder takes its name in one step. What goes loses its name first, for good, and only then its files.
The protocol is restic's and borg's; the exchange keeps the older version whole under its name until the newer one is.

Every change on the disk goes through `Disk`, so that a test can put a disk in its place that forgets what was not
synced, and cut the power after each single operation.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ramtrain.errors import RamTrainError
from ramtrain.system import data_ranges, exchange

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHUNK_BYTES = 4 << 20
_FLUSH_BYTES = 64 << 20
_ZEROS = memoryview(bytes(_CHUNK_BYTES))
# What a temporary name has beside the name that it stands for, and the longest name that file systems take.
_PARTIAL, _LONGEST_NAME_BYTES = ".{}.{}.partial", 255


class Changed(RamTrainError):
    """What was to be kept is not the same any more, or gone."""


@dataclass(frozen=True)
class Kept:
    """One file that is on the disk for good: its path in its folder, its size, its SHA-256."""

    path: str
    bytes: int
    sha256: str


class Disk:
    """The operations that change what is on a disk; the one place where they are called."""

    def make_folder(self, path: Path) -> None:
        """mkdir(2)."""
        path.mkdir()

    def create(self, path: Path) -> BinaryIO:
        """Make a new file, opened for unbuffered writing (open(2) with O_EXCL)."""
        return path.open("xb", buffering=0)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Write all of `data` (write(2) until it is done)."""
        written = 0
        while written < len(data):
            written += file.write(data[written:])

    def skip(self, file: BinaryIO, count: int) -> None:
        """Leave a hole of `count` bytes, which read as zeros (ftruncate(2), lseek(2))."""
        os.ftruncate(file.fileno(), file.tell() + count)
        file.seek(count, os.SEEK_CUR)

    def flush(self, file: BinaryIO) -> None:
        """Push what was written so far to the device (fdatasync(2))."""
        os.fdatasync(file.fileno())

    def sync(self, file: BinaryIO) -> None:
        """Return once the file is on the device (fsync(2))."""
        os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Return once the names in the folder are on the device (fsync(2))."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name, in place of a file that has it (rename(2))."""
        source.rename(target)

    def exchange(self, first: Path, second: Path) -> None:
        """Swap two names in one step; OSError where the file system cannot."""
        exchange(first, second)

    def unlink(self, path: Path) -> None:
        """unlink(2)."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """rmdir(2)."""
        path.rmdir()


DISK = Disk()


def write_json(path: Path, content: Mapping[str, Any], disk: Disk = DISK) -> None:
    """Write `content` to `path`: the old file or the new one, whole, whatever happens in between."""
    write_bytes(path, as_json(content), disk)


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return what `write_json` writes."""
    # A file name that is no UTF-8 becomes a JSON escape, and itself again when it is read.
    return json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_bytes(path: Path, content: bytes, disk: Disk = DISK) -> None:
    """Write `content` to `path`: likewise."""
    sweep(path, disk)
    partial = _partial(path)
    try:
        with disk.create(partial) as file:
            disk.write(file, content)
            disk.sync(file)
        disk.rename(partial, path)
    except BaseException:
        _give_up(partial, disk)
        raise
    disk.sync_folder(path.parent)


def commit_file(
    source: Path,
    target: Path,
    growing: bool = False,
    report: Callable[[int, int], None] = lambda files, size: None,
    disk: Disk = DISK,
) -> None:
    """Bring one file home: the old one or the new one, whole.

    Args:
        growing: it is being appended to, such as a log; what is there now is taken.
        report: called with the files and bytes that came on since the last call.

    Raises:
        RamTrainError: the disk gave back something else than what was written.
        OSError: whatever the disk says.
    """
    make_folders(target.parent, disk)
    sweep(target, disk)
    partial = _partial(target)
    try:
        with ThreadPoolExecutor(1) as flusher:
            copied = _copy(source, partial, flusher, report, growing, disk)
        _verify(partial, Kept(target.name, *copied))
        disk.rename(partial, target)
    except BaseException:
        _give_up(partial, disk)
        raise
    disk.sync_folder(target.parent)


def commit_folder(
    sources: Mapping[str, Path],
    folder: Path,
    report: Callable[[int, int], None] = lambda files, size: None,
    growing: Container[str] = (),
    about: Callable[[], Mapping[str, Any]] = dict,
    manifest: str = MANIFEST,
    place: Path | None = None,
    disk: Disk = DISK,
) -> list[Kept]:
    """Bring `sources` home as `folder`, which is replaced as a whole once all of them are verified.

    Args:
        sources: the file to copy for each path in the new folder.
        folder: the folder to make; an older one of that name stays until the new one is whole.
        report: called with the files and bytes that came on since the last call.
        growing: paths of logs, which are being appended to; what is there now is taken.
        about: called when all is copied; what it returns stands in the manifest, what it raises ends the commit.
        manifest: the manifest's name.
        place: a path of the caller's own, on the same file system, beside which the new one is made, if not `folder`.

    Raises:
        Changed: a source changed meanwhile.
        RamTrainError: the disk gave back something else than what was written.
        OSError: whatever the disk says; nothing half-done is left under a final name.
    """
    place = place or folder
    make_folders(folder.parent, disk)
    sweep(folder, disk, place)
    partial = _partial(place)
    disk.make_folder(partial)
    try:
        kept = _copy_verified(sources, partial, report, growing, disk)
        _list(kept, about(), partial / manifest, disk)
    except BaseException:
        _give_up(partial, disk)
        raise
    _take_name(partial, folder, place, disk)
    return kept


def receive_folder(
    files: Sequence[Kept],
    read: Callable[[Kept], Iterable[bytes]],
    folder: Path,
    about: Mapping[str, Any],
    disk: Disk = DISK,
) -> None:
    """Bring files from elsewhere home as `folder`, likewise, with a manifest.

    Args:
        files: what they are known to be.
        read: yields a file's contents.
        about: what stands in the manifest beside them.

    Raises:
        RamTrainError: a file is not what it should be, or the disk gave back something else.
        OSError: whatever the disk says; nothing half-done is left under a final name.
    """
    make_folders(folder.parent, disk)
    sweep(folder, disk)
    partial = _partial(folder)
    disk.make_folder(partial)
    try:
        for file in files:
            target = partial / file.path
            if not target.parent.is_dir():
                make_folders(target.parent, disk)
            _receive(file, read(file), target, disk)
        _list(files, about, partial / MANIFEST, disk)
    except BaseException:
        _give_up(partial, disk)
        raise
    _take_name(partial, folder, folder, disk)


def receive_file(file: Kept, chunks: Iterable[bytes], target: Path, disk: Disk = DISK) -> None:
    """Bring one file from elsewhere home: the old one or the new one, whole; it raises as `receive_folder` does."""
    make_folders(target.parent, disk)
    sweep(target, disk)
    partial = _partial(target)
    try:
        _receive(file, chunks, partial, disk)
        disk.rename(partial, target)
    except BaseException:
        _give_up(partial, disk)
        raise
    disk.sync_folder(target.parent)


def _list(files: Sequence[Kept], about: Mapping[str, Any], listed: Path, disk: Disk) -> None:
    """Write the manifest of a folder, and have the disk hold all its names."""
    while listed.exists():  # a file of the trainer's own
        listed = listed.with_name(f"ramtrain-{listed.name}")
    write_json(listed, {**about, "files": [asdict(file) for file in files]}, disk)
    for parent, _, _ in os.walk(listed.parent):
        disk.sync_folder(Path(parent))


def _receive(file: Kept, chunks: Iterable[bytes], target: Path, disk: Disk) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    with disk.create(target) as writer:
        for chunk in chunks:
            digest.update(chunk)
            disk.write(writer, chunk)
            size_bytes += len(chunk)
        disk.sync(writer)
    if (size_bytes, digest.hexdigest()) != (file.bytes, file.sha256):
        raise RamTrainError(f"{file.path} is not what was kept: its SHA-256 is another")
    _verify(target, file)


def read_manifest(folder: Path, manifest: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest of a folder that `commit_folder` made, its `files` as `Kept`.

    Raises:
        RamTrainError: there is none that can be read, or a file is missing or has another size.
    """
    try:
        content = json.loads((folder / manifest).read_text(encoding="utf-8"))
        content["files"] = [Kept(**file) for file in content["files"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RamTrainError(f"{folder}: its {manifest} cannot be read: {error}") from None
    for file in content["files"]:
        path = folder / file.path
        if not _has_size(path, file.bytes):
            raise RamTrainError(f"{path} is not the file of {file.bytes} bytes that {manifest} names")
    return content


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def room_bytes(source: Path) -> int:
    """Return what a copy of a file takes on the disk: holes stay holes."""
    status = source.stat()
    return min(status.st_size, status.st_blocks * 512)


def remove(path: Path, disk: Disk = DISK) -> None:
    """Remove what was kept: first its name, for good, then its files; at no moment is a part of it under its name."""
    sweep(path, disk)
    if not path.exists():
        return
    partial = _partial(path)
    disk.rename(path, partial)
    disk.sync_folder(path.parent)
    _remove(partial, disk)


def set_aside(path: Path, mark: str, disk: Disk = DISK) -> Path:
    """Put `mark` before the name of what was kept, for good; return the new path."""
    target = path.with_name(f"{mark}-{path.name}")
    if target.exists():
        target = path.with_name(f"{mark}-{secrets.token_hex(4)}-{path.name}")
    disk.rename(path, target)
    disk.sync_folder(path.parent)
    return target


def fetch(folder: Path, file: Kept, target: Path, disk: Disk = DISK) -> None:
    """Copy a kept file back to where a trainer works, whole or not at all.

    Raises:
        RamTrainError: it is not what was kept.
        OSError: it cannot be read, or there is no room.
    """
    make_folders(target.parent, disk)
    sweep(target, disk)
    partial = _partial(target)
    try:
        with ThreadPoolExecutor(1) as flusher:
            copied = _copy(folder / file.path, partial, flusher, lambda files, size: None, False, disk)
        if copied != (file.bytes, file.sha256):
            raise RamTrainError(f"{folder / file.path} is not what was kept: its SHA-256 is another")
        disk.rename(partial, target)
    except BaseException:
        _give_up(partial, disk)
        raise


def sweep(path: Path, disk: Disk = DISK, place: Path | None = None) -> None:
    """Clear what a killed commit to `path` left beside it; an older version it had moved aside takes its name.

    Args:
        place: the path that it was made beside, if not `path`.
    """
    place = place or path
    left, aside = list(place.parent.glob(_PARTIAL.format(glob.escape(_stem(place)), "????????"))), _aside(place)
    if aside.exists() and not path.exists():
        disk.rename(aside, path)
    elif aside.exists():
        left.append(aside)
    if left:
        # Among them may be an older version whose successor took its name without its being synced.
        disk.sync_folder(path.parent)
    for partial in left:
        _remove(partial, disk)


def sweep_all(folder: Path, disk: Disk = DISK) -> None:
    """Clear what killed commits to any name left in a folder that nobody else is writing to."""
    if left := list(folder.glob(".*.????????.partial")):
        disk.sync_folder(folder)
    for partial in left:
        _remove(partial, disk)


def make_folders(path: Path, disk: Disk = DISK) -> None:
    """Make a folder and those above it, as far as they are missing; sync the names of those that may be our own."""
    if path == path.parent:
        return
    make_folders(path.parent, disk)
    if not path.is_dir():
        try:
            disk.make_folder(path)
        except FileExistsError:
            if not path.is_dir():
                raise
    elif not os.access(path.parent, os.R_OK | os.W_OK):
        return
    disk.sync_folder(path.parent)  # also of one that is there: a call that was killed may have made it


def make_parents(path: PurePosixPath, upper: Path, project: Path) -> None:
    """Make the folders above a file of the project in what lies over it, with the modes that they have there."""
    for parent in reversed(path.parents):
        if not (upper / parent).exists():
            make_folders(upper / parent)
            if (project / parent).is_dir():
                shutil.copymode(project / parent, upper / parent)


def sync_tree(folder: Path, disk: Disk = DISK) -> None:
    """Have the disk hold what another program has written into its folder so far; what it removes is let go."""
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError), open(Path(path, name), "rb") as file:
                disk.sync(file)
        with suppress(FileNotFoundError):
            disk.sync_folder(Path(path))


def fit_name(name: str, more_bytes: int) -> str:
    """Return a name that `more_bytes` may be added to: itself, or its beginning and a digest of the whole."""
    raw = os.fsencode(name)
    if len(raw) + more_bytes <= _LONGEST_NAME_BYTES:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return f"{raw[: _LONGEST_NAME_BYTES - more_bytes - 9].decode(errors='ignore')}-{digest}"


def _stem(path: Path) -> str:
    return fit_name(path.name, len(_PARTIAL.format("", "????????")))


def _partial(path: Path) -> Path:
    return path.with_name(_PARTIAL.format(_stem(path), secrets.token_hex(4)))


def _aside(path: Path) -> Path:
    return path.with_name(f".{_stem(path)}.aside")


def _give_up(partial: Path, disk: Disk) -> None:
    """Clear away what could not be completed, without hiding why."""
    try:
        _remove(partial, disk)
    except OSError as error:
        log.warning("%s could not be cleared away (%s); the next attempt does it", partial, error)


def _remove(path: Path, disk: Disk) -> None:
    """Delete a file or a folder of ours that has no final name, if it is there."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            disk.unlink(path)
        return
    for parent, folders, names in os.walk(path, topdown=False):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*names, *links):
            disk.unlink(Path(parent) / name)
        for name in folders:
            if name not in links:
                disk.remove_folder(Path(parent) / name)
    disk.remove_folder(path)


def _copy_verified(
    sources: Mapping[str, Path],
    partial: Path,
    report: Callable[[int, int], None],
    growing: Container[str],
    disk: Disk,
) -> list[Kept]:
    kept = []
    checks: list[Future[None]] = []
    # One thread pushes what is written to the device, one reads back what is there, while this one copies on.
    with ThreadPoolExecutor(1) as flusher, ThreadPoolExecutor(1) as verifier:
        for path, source in sources.items():
            target = partial / path
            if not target.parent.is_dir():
                make_folders(target.parent, disk)
            file = Kept(path, *_copy(source, target, flusher, report, path in growing, disk))
            kept.append(file)
            checks.append(verifier.submit(_verify, target, file))
            report(1, 0)
        for check in checks:
            check.result()
    return kept


def _copy(
    source: Path,
    target: Path,
    flusher: ThreadPoolExecutor,
    report: Callable[[int, int], None],
    growing: bool,
    disk: Disk,
) -> tuple[int, str]:
    """Copy one file, hashing on the way; return its size and hash once it is synced."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size_bytes = unflushed_bytes = 0
    pending: list[Future[None]] = []
    with source.open("rb", buffering=0) as reader, disk.create(target) as writer:
        before = os.fstat(reader.fileno())
        for start, end in (*data_ranges(reader.fileno(), before), (before.st_size, before.st_size)):
            if hole_bytes := start - size_bytes:
                _hash_zeros(digest, hole_bytes)
                disk.skip(writer, hole_bytes)
                report(0, hole_bytes)
            size_bytes = reader.seek(start)
            while count := reader.readinto(buffer[: end - size_bytes]):
                digest.update(buffer[:count])
                disk.write(writer, buffer[:count])
                size_bytes += count
                unflushed_bytes += count
                if unflushed_bytes >= _FLUSH_BYTES:
                    pending.append(flusher.submit(disk.flush, writer))
                    unflushed_bytes = 0
                report(0, count)
            if size_bytes < end:
                break  # somebody has cut it off meanwhile
        for flush in pending:
            flush.result()
        after = os.fstat(reader.fileno())
        seen = [
            (size_bytes, before.st_mtime_ns),
            (before.st_size, before.st_mtime_ns),
            (after.st_size, after.st_mtime_ns),
        ]
        if not growing and len(set(seen)) > 1:
            raise Changed(f"{source} changed while it was copied; is something still writing to it?")
        os.fchmod(writer.fileno(), stat.S_IMODE(before.st_mode) | stat.S_IRUSR)
        os.utime(writer.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
        disk.sync(writer)
    return size_bytes, digest.hexdigest()


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        digest.update(_ZEROS[:count])
        count -= len(_ZEROS)


def _verify(path: Path, expected: Kept) -> None:
    """Read `path` back from the disk and compare it with what was copied."""
    size_bytes, sha256 = hash_from_disk(path)
    if (size_bytes, sha256) != (expected.bytes, expected.sha256):
        raise RamTrainError(
            f"{path}: the disk gave back {size_bytes} bytes with SHA-256 {sha256} where {expected.bytes} bytes with "
            f"{expected.sha256} were written. The disk or its file system is failing."
        )


def hash_from_disk(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of what the device holds, past the page cache.

    O_DIRECT reads bypass the cache (open(2)); where the file system refuses them (tmpfs, some network file systems),
    the file's cached pages are dropped first (posix_fadvise(2), POSIX_FADV_DONTNEED), which works once it is synced.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
    digest = hashlib.sha256()
    size_bytes = 0
    with open(descriptor, "rb", buffering=0) as file, mmap.mmap(-1, _CHUNK_BYTES) as buffer:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with memoryview(buffer) as view:
            while count := file.readinto(view):
                with view[:count] as part:
                    digest.update(part)
                size_bytes += count
    return size_bytes, digest.hexdigest()


def _take_name(partial: Path, folder: Path, place: Path, disk: Disk) -> None:
    """Give `partial` the name `folder`; what was there goes only once the new name is on the disk."""
    if not folder.exists():
        disk.rename(partial, folder)
        disk.sync_folder(folder.parent)
        return
    try:
        disk.exchange(partial, folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # Where two names cannot be swapped (NFS) there is a moment with neither; `sweep` mends it.
        partial, new = _aside(place), partial
        disk.rename(folder, partial)
        try:
            disk.rename(new, folder)
        except OSError:
            disk.rename(partial, folder)
            raise
    disk.sync_folder(folder.parent)
    _remove(partial, disk)
