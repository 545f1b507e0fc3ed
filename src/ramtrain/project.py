"""A user's project as far as it can be read without running it: its files, its Python sources, where it begins."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from posixpath import dirname, join

from ramtrain.errors import RamTrainError
from ramtrain.listing import list_folder
from ramtrain.source import Source, read_source

_MOST_SOURCES = 200
_MOST_BYTES = 8 << 20
_DEEPEST = 4
_TRAINS = re.compile(r"(.*[_ -])?(pre-?train|train|trainer|training|fine[_-]?tune|finetuning|fit)([_ -].*)?")
_BEGINS = re.compile(r"main|run|app|cli|experiment|__main__|run[_-].*")
_OTHERWISE = re.compile(
    r"(.*[_-])?(tests?|conftest|setup|utils?|eval|evaluate|infer|inference|predict|demo|data)([_-].*)?"
)
_ASIDE = re.compile(r"(.*/)?(tests?|docs?|examples?|notebooks|third_party|build|dist)/.*")
_TRAINING_CALLS = ("fit", "train", "backward", "partial_fit", "train_step", "train_one_epoch")
_LEAST_POINTS = 4


class Project:
    """A project's folder, what lies in it, and its sources; those are read when they are asked for.

    Raises:
        RamTrainError: it is missing, no folder, may not be read, or is empty.
    """

    def __init__(self, root: Path) -> None:
        try:
            if not root.exists():
                raise RamTrainError(f"{root}: no such folder; give the folder that you train in.")
            if not root.is_dir():
                raise RamTrainError(f"{root}: is a file; give the folder that you train in.")
            if next(root.iterdir(), None) is None:
                raise RamTrainError(f"{root}: the folder is empty; there is nothing to train.")
        except OSError as error:
            raise RamTrainError(f"{root}: {error.strerror}; check its owner and mode.") from None
        self.root = root
        found = list_folder(root)
        # A config is text, of lines.
        self.listing = replace(found, files=_texts(found.files), environments=_texts(found.environments))
        self._files, self._folders = frozenset(self.listing.files), frozenset(self.listing.folders)
        self._read: dict[str, Source | None] = {}
        self._left_bytes = _MOST_BYTES

    def source(self, path: str) -> Source | None:
        """Return a Python file; None if it cannot be read, or too many were read already."""
        if path not in self._read:
            if len(self._read) >= _MOST_SOURCES or self._left_bytes <= 0:
                return None
            with contextlib.suppress(OSError):
                self._left_bytes -= (self.root / path).stat().st_size
            self._read[path] = read_source(self.root, path)
        return self._read[path]

    @property
    def unreadable(self) -> list[str]:
        """The Python files that could not be read, or are none."""
        return [path for path, source in self._read.items() if source is None]

    def find_entry(self) -> Source | None:
        """Return the Python file by which a training seems to be started; of several the nearest to the top."""
        names = [path for path in self.listing.files if path.endswith(".py") and path.count("/") < _DEEPEST]
        names.sort(key=lambda path: (path.count("/"), not _TRAINS.fullmatch(_stem(path))))
        found = [source for path in names if (source := self.source(path))]
        best = max(found, key=_points, default=None)
        return best if best and _points(best) >= _LEAST_POINTS else None

    def find_script(self) -> str | None:
        """Return a shell script, or another program, that by its name trains."""
        for path in self.listing.files:
            name = PurePosixPath(path).name
            if path.count("/") > 1 or not _TRAINS.fullmatch(name.removesuffix(".sh")):
                continue
            if name.endswith(".sh") or ("." not in name and os.access(self.root / path, os.X_OK)):
                return path
        return None

    def reached_from(self, entry: Source) -> list[Source]:
        """Return a Python file, and those of the project that it imports, directly or not."""
        found = {entry.path: entry}
        waiting = [entry]
        while waiting:
            source = waiting.pop(0)
            for name in source.imports:
                path = self._file_of(name, source.path)
                if path and path not in found and (imported := self.source(path)):
                    found[path] = imported
                    waiting.append(imported)
        return list(found.values())

    def is_own(self, module: str, importer: str) -> bool:
        """Whether a module is a file or a folder of the project."""
        paths = [join(place, module) for place in _places(module, importer)]
        return any(f"{path}.py" in self._files or path in self._folders for path in paths)

    def _file_of(self, module: str, importer: str) -> str | None:
        """Return the project's file that an import leads to; None if it leads elsewhere."""
        name = module.lstrip(".").replace(".", "/")
        tries = (join(place, name + end) for place in _places(module, importer) for end in (".py", "/__init__.py"))
        return next((path for path in tries if path in self._files), None)


def _places(module: str, importer: str) -> tuple[str, ...]:
    """Return where an import is looked for: where its dots lead, else beside the file, in the project, in its `src`."""
    folder = dirname(importer)
    if not module.startswith("."):
        return (folder, "", "src")
    for _ in range(len(module) - len(module.lstrip(".")) - 1):
        folder = dirname(folder)
    return (folder,)


def _texts(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if path.isprintable())


def _stem(path: str) -> str:
    return PurePosixPath(path).stem.lower()


def _points(source: Source) -> int:
    """Return how much a file looks like the one that is started to train."""
    name = _stem(source.path)
    points = 4 if _TRAINS.fullmatch(name) else 2 if _BEGINS.fullmatch(name) else 0
    points += {"train": 1, "finetune": 1, "trainer": -1}.get(name, 0)
    points -= 4 if _OTHERWISE.fullmatch(name) else 0
    points += 2 if source.is_program else 0
    points += 0 if source.calls.isdisjoint(_TRAINING_CALLS) else 2
    points -= 3 if _ASIDE.fullmatch(source.path) else 0
    return points - source.path.count("/")
