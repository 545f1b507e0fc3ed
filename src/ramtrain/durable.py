"""The one way anything is written to the disk for keeps.

A file: temporary name in the target's own folder, flush, fsync, rename, fsync of the folder. A folder of files: each
file copied and hashed on the way, fsynced, read back from the disk and compared, the manifest with the hashes last;
then the whole folder takes its name in one step. The protocol is restic's and borg's; the exchange keeps the older
version whole under its name until the newer one is.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramtrain.errors import RamTrainError
from ramtrain.system import exchange

MANIFEST = "manifest.json"
_CHUNK_BYTES = 4 << 20
_FLUSH_BYTES = 64 << 20


@dataclass(frozen=True)
class Kept:
    """One file that is on the disk for good: its path in its folder, its size, its SHA-256."""

    path: str
    bytes: int
    sha256: str


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`: the old file or the new one, whole, whatever happens in between."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        # A file name that is no UTF-8 becomes a JSON escape, and itself again when it is read.
        with partial.open("x", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def commit_file(source: Path, target: Path) -> None:
    """Bring one file home: the old one or the new one, whole.

    Raises:
        RamTrainError: the disk gave back something else than what was written.
        OSError: whatever the disk says.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with ThreadPoolExecutor(1) as flusher:
            file = Kept(target.name, *_copy(source, partial, flusher, lambda files, size: None))
        _verify(partial, file)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)


def commit_folder(
    sources: Mapping[str, Path], folder: Path, report: Callable[[int, int], None] = lambda files, size: None
) -> list[Kept]:
    """Bring `sources` home as `folder`, which is replaced as a whole once all of them are verified.

    Args:
        sources: the file to copy for each path in the new folder.
        folder: the folder to make; an older one of that name stays until the new one is whole.
        report: called with the files and bytes that came on since the last call.

    Raises:
        RamTrainError: the disk gave back something else than what was written, or a source changed meanwhile.
        OSError: whatever the disk says; nothing half-done is left under a final name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        kept = _copy_verified(sources, partial, report)
        manifest = partial / MANIFEST
        while manifest.exists():  # a file of the trainer's own
            manifest = manifest.with_name(f"ramtrain-{manifest.name}")
        write_json(manifest, {"files": [asdict(file) for file in kept]})
        for parent, _, _ in os.walk(partial):
            _sync_folder(Path(parent))
        _take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return kept


def sweep(folder: Path) -> None:
    """Clear what a killed `commit_folder` left beside `folder`; an older version it had moved aside takes its name."""
    aside = folder.with_name(f".{folder.name}.aside")
    if aside.exists():
        if folder.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(folder)
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)


def _copy_verified(sources: Mapping[str, Path], partial: Path, report: Callable[[int, int], None]) -> list[Kept]:
    kept = []
    checks: list[Future[None]] = []
    # One thread pushes what is written to the device, one reads back what is there, while this one copies on.
    with ThreadPoolExecutor(1) as flusher, ThreadPoolExecutor(1) as verifier:
        for path, source in sources.items():
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            file = Kept(path, *_copy(source, target, flusher, report))
            kept.append(file)
            checks.append(verifier.submit(_verify, target, file))
            report(1, 0)
        for check in checks:
            check.result()
    return kept


def _copy(
    source: Path, target: Path, flusher: ThreadPoolExecutor, report: Callable[[int, int], None]
) -> tuple[int, str]:
    """Copy one file, hashing on the way; return its size and hash once it is synced."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size_bytes = unflushed_bytes = 0
    pending: list[Future[None]] = []
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        before = os.fstat(reader.fileno())
        while size_bytes <= before.st_size and (count := reader.readinto(buffer)):
            digest.update(buffer[:count])
            written = 0
            while written < count:
                written += writer.write(buffer[written:count])
            size_bytes += count
            unflushed_bytes += count
            if unflushed_bytes >= _FLUSH_BYTES:
                pending.append(flusher.submit(os.fdatasync, writer.fileno()))
                unflushed_bytes = 0
            report(0, count)
        for flush in pending:
            flush.result()
        after = os.fstat(reader.fileno())
        if size_bytes != before.st_size or (before.st_size, before.st_mtime_ns) != (
            after.st_size,
            after.st_mtime_ns,
        ):
            raise RamTrainError(f"{source} changed while it was copied; is something still writing to it?")
        os.fchmod(writer.fileno(), stat.S_IMODE(before.st_mode) | stat.S_IRUSR)
        os.utime(writer.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(writer.fileno())
    return size_bytes, digest.hexdigest()


def _verify(path: Path, expected: Kept) -> None:
    """Read `path` back from the disk and compare it with what was copied."""
    size_bytes, sha256 = hash_from_disk(path)
    if (size_bytes, sha256) != (expected.bytes, expected.sha256):
        raise RamTrainError(
            f"{path}: the disk gave back {size_bytes} bytes with SHA-256 {sha256} where {expected.bytes} bytes with "
            f"{expected.sha256} were written. The disk or its file system is failing; the model is still in RAM."
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


def _take_name(partial: Path, folder: Path) -> None:
    """Give `partial` the name `folder`; what was there goes only once the new name is on the disk."""
    if not folder.exists():
        partial.rename(folder)
        _sync_folder(folder.parent)
        return
    try:
        exchange(partial, folder)
        _sync_folder(folder.parent)
    except OSError:
        # Where two names cannot be swapped (NFS) there is a moment with neither; `sweep` mends it.
        aside = folder.with_name(f".{folder.name}.aside")
        folder.rename(aside)
        partial.rename(folder)
        _sync_folder(folder.parent)
        shutil.rmtree(aside)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
