"""The best model so far, which may be older than the newest checkpoint: where the adapter's globs, or the checkpoint
itself, say that it is."""

from __future__ import annotations

import contextlib
import glob
import json
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ramtrain.checkpoints import Checkpoint, in_folder_of
from ramtrain.config import BestNamed, Products

_REMEMBERED = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_RECALLED = ("GET", "BINGET", "LONG_BINGET")


def globs_of_best(checkpoint: Checkpoint, products: Products, upper: Path) -> list[str]:
    """Return globs, in the project, of the best model so far; where a checkpoint names it, it lies beside that."""
    names = _named(upper / checkpoint.path, products.best_named) if products.best_named else []
    return in_folder_of(checkpoint, [*products.best, *map(glob.escape, names)])


def _named(path: Path, named: BestNamed) -> list[str]:
    """Return the names that a checkpoint has for the best one; none, if it cannot be read or says none."""
    said: Iterable[Any] = ()
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if named.file:
            state = json.loads((path / named.file).read_bytes())
            said = [state.get(named.key)] if isinstance(state, dict) else []
        else:
            said = list(texts_after(_pickle_of(path), named.key))
    return [name for text in said if isinstance(text, str) and (name := PurePosixPath(text).name)]


def _pickle_of(path: Path) -> bytes:
    """Return what PyTorch keeps beside the tensors of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))


def texts_after(pickle: bytes, key: str) -> Iterator[str]:
    """Yield the texts after the text `key` in a pickle, as the values in a dictionary are; nothing of it is run."""
    remembered: dict[int, Any] = {}
    value, follows = None, False
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name in _REMEMBERED:
            remembered[len(remembered) if argument is None else argument] = value
            continue
        value = remembered.get(argument) if operation.name in _RECALLED else argument
        if follows and isinstance(value, str):
            yield value
        follows = value == key
