"""A disk that forgets what was not synced, fails on demand, and loses its power: `durable`'s, for tests.

After LevelDB's db/fault_injection_test.cc. Each operation is done for real in a folder, so that the protocol reads
what it wrote, and noted beside it, as POSIX lets a disk have it: a file has its content and what of that is synced, a
folder its names and which of them are synced. Syncing a file does not sync its name, nor syncing a folder what is in
its files or its subfolders; what is not synced lands in any order, or not at all, or torn. Only one thing is whole on
any disk: a rename, or an exchange, within a folder. A folder that was renamed takes along what is noted of its names,
so they may be gone from the disk while it still has its older name.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ramtrain import durable

Tree: TypeAlias = "tuple[tuple[str, bytes | Tree], ...]"  # what is in a folder: names with contents, sorted
_MOST_EXHAUSTED = 5  # so many pending name changes land in every combination; of more, in a choice of them
_RANDOM = 6
_GRAIN_BYTES = 64


class PowerCut(BaseException):
    """The power is gone, or the process was killed: no clean-up gets anything done any more."""


@dataclass(eq=False)
class _File:
    content: bytearray = field(default_factory=bytearray)  # the protocol only ever appends
    synced_bytes: int = 0
    spoilt: bool = False  # a sync failed: the kernel drops those pages, and later syncs say all is well ("fsyncgate")


@dataclass(eq=False)
class _Change:
    """What becomes of one or two names of a folder in one step."""

    names: dict[str, _File | _Folder | None]


@dataclass(eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)

    def change(self, names: dict[str, _File | _Folder | None]) -> None:
        change = _Change(names)
        self.pending.append(change)
        self.names = _changed(self.names, change)


class ForgetfulDisk(durable.Disk):
    """What is in `root` is on the disk for good, and what is done there from now on is noted.

    Args:
        root: the folder in which all is done.
        cut_at: the step before which the power goes; after a step is before the next one, or when all is done.
        fail_at: the step that fails, once; from then on it is watched.
        error: with what it fails. After ENOSPC half of a write is there; a sync that fails has made nothing durable.
        watched: keep in `seen` what a reader may find after a power cut at any step, with the first such step.
        can_exchange: False for a disk on which two names cannot be swapped.
    """

    def __init__(
        self,
        root: Path,
        cut_at: str = "",
        fail_at: str = "",
        error: int = errno.ENOSPC,
        watched: bool = False,
        can_exchange: bool = True,
    ) -> None:
        self.root = root
        self.cut_at = cut_at
        self.fail_at = fail_at
        self.error = error
        self.watched = watched
        self.can_exchange = can_exchange
        self.steps: Counter[str] = Counter()
        self.seen: dict[Tree, str] = {}
        self._is_off = False
        self._lock = threading.RLock()
        self._top = _load(scan(root))
        self._files: dict[BinaryIO, _File] = {}

    def restart(self) -> None:
        """Let a new process go on after a kill, with all that is in the page cache."""
        self.cut_at, self._is_off = "", False

    def outcomes(self) -> Iterator[Tree]:
        """Yield what a reader may find if the power goes now: all that may land, in a wide choice of combinations."""
        changes, unsynced = _unsynced(self._top)
        chance = random.Random(len(self.steps))
        for landed in _subsets(changes, chance):
            yield _after(self._top, landed, _nothing)
        if unsynced:
            for content in (_everything, _half, _zeros):
                yield _after(self._top, {*changes}, content)
            for _ in range(_RANDOM):
                landed = {change for change in changes if chance.random() < 0.8}
                yield _after(self._top, landed, lambda file: _grains(file, chance))

    def make_folder(self, path: Path) -> None:
        with self._step("make_folder", path):
            super().make_folder(path)
            self._folder(path.parent).change({path.name: _Folder()})

    def create(self, path: Path) -> BinaryIO:
        with self._step("create", path):
            file = super().create(path)
            self._files[file] = _File()
            self._folder(path.parent).change({path.name: self._files[file]})
            return file

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        noted = self._files[file]
        try:
            with self._step("write", Path(file.name)):
                super().write(file, data)
                noted.content += data
        except OSError as error:
            if error.errno == errno.ENOSPC:
                super().write(file, data[: len(data) // 2])
                noted.content += data[: len(data) // 2]
            raise

    def skip(self, file: BinaryIO, count: int) -> None:
        with self._step("skip", Path(file.name)):
            super().skip(file, count)
            self._files[file].content += bytes(count)

    def flush(self, file: BinaryIO) -> None:
        self._sync("flush", file)

    def sync(self, file: BinaryIO) -> None:
        self._sync("sync", file)

    def sync_folder(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return  # it was there before
        with self._step("sync_folder", path):
            folder = self._folder(path)
            folder.synced, folder.pending = dict(folder.names), []

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "of renames between folders nothing is known here"
        with self._step("rename", source, target):
            super().rename(source, target)
            folder = self._folder(source.parent)
            folder.change({source.name: None, target.name: folder.names[source.name]})

    def exchange(self, first: Path, second: Path) -> None:
        assert first.parent == second.parent, "of renames between folders nothing is known here"
        with self._step("exchange", first, second):
            if not self.can_exchange:
                raise OSError(errno.EINVAL, "as NFS does")
            super().exchange(first, second)
            folder = self._folder(first.parent)
            folder.change({first.name: folder.names[second.name], second.name: folder.names[first.name]})

    def unlink(self, path: Path) -> None:
        with self._step("unlink", path):
            super().unlink(path)
            self._folder(path.parent).change({path.name: None})

    def remove_folder(self, path: Path) -> None:
        with self._step("remove_folder", path):
            super().remove_folder(path)
            self._folder(path.parent).change({path.name: None})

    @contextmanager
    def _step(self, *what: str | Path) -> Iterator[None]:
        """Name a step, which is the same in each run, and see whether the power is there and the step succeeds."""
        with self._lock:
            step = " ".join(part if isinstance(part, str) else str(part.relative_to(self.root)) for part in what)
            self.steps[step] += 1
            if self.steps[step] > 1:
                step = f"{step} ({self.steps[step]})"
                self.steps[step] = 1
            if self._is_off or step == self.cut_at:
                self._is_off = True
                raise PowerCut(step)
            if self.watched:
                for tree in self.outcomes():
                    self.seen.setdefault(tree, step)
            if step == self.fail_at:
                self.fail_at, self.watched = "", True
                raise OSError(self.error, os.strerror(self.error), step)
            yield

    def _sync(self, kind: str, file: BinaryIO) -> None:
        # The device is not asked: what a sync makes of the file is noted, and nothing else is seen of it.
        noted = self._files[file]
        try:
            with self._step(kind, Path(file.name)):
                if not noted.spoilt:
                    noted.synced_bytes = len(noted.content)
        except OSError:
            noted.spoilt = True
            raise

    def _folder(self, path: Path) -> _Folder:
        folder = self._top
        for name in path.relative_to(self.root).parts:
            folder = folder.names[name]
        return folder


def scan(folder: Path) -> Tree:
    """Return what is in a folder."""
    return tuple(
        (path.name, scan(path) if path.is_dir() else path.read_bytes())
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
    )


def build(tree: Tree, folder: Path) -> None:
    """Put into a new folder what `scan` finds there then."""
    folder.mkdir()
    for name, content in tree:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            build(content, folder / name)


def _load(tree: Tree) -> _Folder:
    names = {
        name: _File(bytearray(content), len(content)) if isinstance(content, bytes) else _load(content)
        for name, content in tree
    }
    return _Folder(names, dict(names))


def _changed(names: dict[str, _File | _Folder], change: _Change) -> dict[str, _File | _Folder]:
    # A rename lands as a whole also where one before it did not: nothing ever has two names.
    stay = {name: node for name, node in names.items() if node not in change.names.values()}
    return {name: node for name, node in {**stay, **change.names}.items() if node is not None}


def _unsynced(folder: _Folder) -> tuple[list[_Change], bool]:
    """Return what changes of names are pending in what a reader may reach, and whether contents are."""
    changes, has_contents = list(folder.pending), False
    renamed = [node for change in changes for node in change.names.values()]
    for node in dict.fromkeys([*folder.synced.values(), *renamed]):
        if isinstance(node, _Folder):
            below, contents = _unsynced(node)
            changes += below
            has_contents |= contents
        elif node:
            has_contents |= node.synced_bytes < len(node.content)
    return changes, has_contents


def _subsets(changes: list[_Change], chance: random.Random) -> Iterator[set[_Change]]:
    if len(changes) <= _MOST_EXHAUSTED:
        for count in range(len(changes) + 1):
            yield from map(set, itertools.combinations(changes, count))
        return
    yield set()
    for number, change in enumerate(changes):
        yield {change}
        yield {*changes} - {change}
        yield {*changes[: number + 1]}
    for _ in range(_RANDOM):
        yield {change for change in changes if chance.random() < 0.5}


def _after(folder: _Folder, landed: set[_Change], content: Callable[[_File], bytes]) -> Tree:
    names = folder.synced
    for change in folder.pending:
        if change in landed:
            names = _changed(names, change)
    return tuple(
        (name, content(node) if isinstance(node, _File) else _after(node, landed, content))
        for name, node in sorted(names.items())
    )


def _nothing(file: _File) -> bytes:
    return bytes(file.content[: file.synced_bytes])


def _everything(file: _File) -> bytes:
    return bytes(file.content)


def _half(file: _File) -> bytes:
    return bytes(file.content[: (file.synced_bytes + len(file.content)) // 2])


def _zeros(file: _File) -> bytes:
    return _nothing(file).ljust(len(file.content), b"\0")


def _grains(file: _File, chance: random.Random) -> bytes:
    content = bytearray(_zeros(file))
    for start in range(file.synced_bytes, len(content), _GRAIN_BYTES):
        if chance.random() < 0.5:
            content[start : start + _GRAIN_BYTES] = file.content[start : start + _GRAIN_BYTES]
    return bytes(content)
