"""A trainer's checkpoints in RAM: which there are, whether they are whole, whether somebody is writing to them."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ramtrain.durable import fit_name
from ramtrain.spill import contents_of
from ramtrain.staging import Stage

_ZIP_START = b"PK\3\4"
_SAFETENSORS = ".safetensors"
_LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_DATA_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')


@dataclass(frozen=True)
class Stamp:
    """By which a file that was written to is known: size in bytes, time of the last change in nanoseconds.

    Its inode is noted, and another one when it has been spilled: it is the same file all the same.
    """

    inode: int = field(compare=False)
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp of a file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Checkpoint:
    """A file, or a folder of files, that a glob names; the files by their path in the project, with their stamps."""

    path: str
    files: tuple[tuple[str, Stamp], ...]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files."""
        return self.files[0][0] != self.path

    @property
    def saved_s(self) -> float:
        """When it was last written to, in seconds since the epoch."""
        return max(stamp.mtime_ns for _, stamp in self.files) / 1e9

    @property
    def size_bytes(self) -> int:
        """The size of all its files."""
        return sum(stamp.size_bytes for _, stamp in self.files)


# A checkpoint with such a name is none to a trainer, nor to us: cut short; hidden while an older one is tried; failed.
INCOMPLETE, TRIED, FAILED = ".incomplete", ".ramtrain-tried", ".failed"


def marked(path: Path, mark: str) -> Path:
    """Return the path of a checkpoint with a mark after its name."""
    return path.with_name(fit_name(path.name, len(mark)) + mark)


def find_checkpoints(stage: Stage, patterns: Iterable[str]) -> list[Checkpoint]:
    """Return the checkpoints in RAM, or spilled, that the trainer wrote, whole or not, the newest first.

    Links of the trainer's own are none.
    """
    upper, spilled, found = Path(stage.layers[0]), Path(stage.spilled), []
    for path, names in stage.written(patterns).items():
        if path.endswith((INCOMPLETE, TRIED, FAILED)):
            continue
        with contextlib.suppress(FileNotFoundError):  # the trainer deletes some meanwhile
            if contents_of(upper / path, spilled) is None:
                continue
            places = {name: contents_of(upper / name, spilled) for name in sorted(names)}
            # Not lstat: it may have been spilled since, and a checkpoint must not be found without it.
            status = {name: place.stat() for name, place in places.items() if place}
            files = tuple((name, Stamp.of(of)) for name, of in status.items() if stat.S_ISREG(of.st_mode))
            if files:
                found.append(Checkpoint(path, files))
    return sorted(found, key=lambda checkpoint: checkpoint.saved_s, reverse=True)


def find_links(stage: Stage, patterns: Iterable[str]) -> list[str]:
    """Return the trainer's own links that the globs name, which are no checkpoints."""
    upper, spilled = Path(stage.layers[0]), Path(stage.spilled)
    with contextlib.suppress(FileNotFoundError):  # the trainer deletes some meanwhile
        return [path for path in stage.written(patterns) if contents_of(upper / path, spilled) is None]
    return []


def in_folder_of(checkpoint: Checkpoint, patterns: Iterable[str]) -> list[str]:
    """Return globs that are meant in the checkpoint's folder as globs in the project."""
    place = PurePosixPath(glob.escape(str(PurePosixPath(checkpoint.path).parent)))
    return [str(place / pattern) for pattern in patterns]


def is_unchanged(checkpoint: Checkpoint, upper: Path, spilled: Path) -> bool:
    """Whether it has not been written to since it was found."""
    with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
        places = ((contents_of(upper / path, spilled), stamp) for path, stamp in checkpoint.files)
        return all(place and Stamp.of(place.stat()) == stamp for place, stamp in places)
    return False


def is_whole(checkpoint: Checkpoint, folder: Path, complete: Iterable[str] = ()) -> bool:
    """Whether each file may be read and is as long as it has to be, as far as its kind tells.

    Args:
        complete: the files of a folder, by globs, that are written last; without them it is not whole.
    """
    try:
        return all(is_whole_file(folder / path) for path, _ in checkpoint.files) and (
            not checkpoint.is_folder or _has_last(checkpoint, folder, complete)
        )
    except (FileNotFoundError, PermissionError):
        return False


def is_whole_file(path: Path) -> bool:
    """Whether a file's end is there: of a zip file and of safetensors; of other kinds only that it is not empty."""
    end = _has_end(path)
    return path.stat().st_size > 0 if end is None else end


def tells_its_end(checkpoint: Checkpoint, folder: Path, complete: Sequence[str] = ()) -> bool:
    """Whether its end cannot be there before the rest: of one file by its kind, of a folder by what is written last."""
    try:
        if checkpoint.is_folder and complete:
            return _has_last(checkpoint, folder, complete)
        return len(checkpoint.files) == 1 and _has_end(folder / checkpoint.files[0][0]) is not None
    except (FileNotFoundError, PermissionError):
        return False


def _has_last(checkpoint: Checkpoint, folder: Path, complete: Iterable[str]) -> bool:
    """Whether a folder has a file for each of the globs; one of JSON has to be whole."""
    names = {os.path.relpath(path, checkpoint.path): folder / path for path, _ in checkpoint.files}
    found = ([path for name, path in names.items() if fnmatch.fnmatchcase(name, pattern)] for pattern in complete)
    return all(paths and all(path.suffix != ".json" or _is_json(path) for path in paths) for paths in found)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _has_end(path: Path) -> bool | None:
    """Whether the end mark of the file's kind is there; None if it has none."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_ZIP_START):  # as PyTorch writes it: the zip file's directory comes last
            return _has_directory(path)
        if path.suffix == _SAFETENSORS:
            return len(start) == 8 and size_bytes == _safetensors_size(start, file.read(_LARGEST_HEADER_BYTES))
    return None


def _has_directory(path: Path) -> bool:
    """Whether a zip file has its directory, and not only that of another zip file within it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return min((entry.header_offset for entry in archive.infolist()), default=-1) == 0
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return False  # all of these are what zipfile makes of a directory that is none


def _safetensors_size(start: bytes, header: bytes) -> int | None:
    """Return the size that a safetensors file must have: 8 bytes, the header, and the data that it names.

    https://github.com/huggingface/safetensors, section Format: a little-endian length, JSON, `data_offsets`.
    """
    (length,) = struct.unpack("<Q", start)
    ends = [int(end) for end in _DATA_OFFSETS.findall(header[:length])]
    return 8 + length + max(ends, default=0) if len(header) >= length else None
