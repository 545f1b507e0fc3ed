"""What differs between two model files: which tensors, by how much, and which other values.

The libraries that wrote such files read them here, PyTorch and safetensors; both are optional. A pickle is never loaded
in a way that could run what it holds (`weights_only`): it may come from elsewhere.
"""

from __future__ import annotations

import importlib
import math
import re
import reprlib
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ramtrain.errors import RamTrainError

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
SAFETENSORS = ".safetensors"
# What is held of a tensor at any one time, in elements: a checkpoint may be larger than the memory.
_CHUNK = 1 << 18
_CHUNK_BYTES = 4 << 20
_REFUSED = re.compile(r"GLOBAL (\S+)")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same; `a` and `b` are its types and shapes.

    `largest` is the largest absolute difference, `relative` that divided by the largest absolute value in A, of values
    that are numbers on both sides; None where the shapes differ, or, of `relative`, where A is all zeros. `differing`
    of `values` differ, `nans` of them are no number on one side alone; a NaN on both sides is the same.
    """

    name: str
    a: str
    b: str
    largest: float | None = None
    relative: float | None = None
    differing: int | None = None
    values: int | None = None
    nans: int = 0


@dataclass(frozen=True)
class Value:
    """Something beside the tensors that is not the same, such as a step or a date; None where it is not there."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Contents:
    """Two model files, looked into.

    `unit` is what `count` counts and `changed` names: tensors; or storages, where PyTorch could not load the files and
    their stored bytes were compared (`why` says so). The largest differences come first.
    """

    unit: str
    count: int
    changed: list[Difference]
    only_a: list[str]
    only_b: list[str]
    values: list[Value]
    why: str | None = None

    @property
    def differing(self) -> int:
        """How many of `count` are not the same."""
        return len(self.changed) + len(self.only_a) + len(self.only_b)


class _Unreadable(RamTrainError):
    """PyTorch is missing, or will not load the file."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor whose values are read when they are asked for, as flat NumPy arrays of at most `_CHUNK` elements."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


_Name = tuple[Any, ...]


def is_known(path: str) -> bool:
    """Return whether a file of this name can be looked into."""
    return path.lower().endswith((*PICKLED, SAFETENSORS))


def compare_contents(a: Path, b: Path) -> Contents:
    """Compare two model files, tensor by tensor; little of them is held in memory at any one time.

    Raises:
        RamTrainError: a library is missing (the message says which), or a file is not what its name says.
        OSError: a file cannot be read.
    """
    with ExitStack() as files:
        if a.suffix.lower() == SAFETENSORS:
            return _compare(_safetensors(a, files), _safetensors(b, files))
        try:
            return _compare(_pickled(a), _pickled(b))
        except _Unreadable as error:
            if not zipfile.is_zipfile(a) or not zipfile.is_zipfile(b):
                raise
            return _compare_storages(a, b, str(error))


def _compare(a: dict[_Name, Any], b: dict[_Name, Any]) -> Contents:
    names = dict.fromkeys((*a, *b))
    tensors = {name: None for name in names if isinstance(a.get(name), _Tensor) or isinstance(b.get(name), _Tensor)}
    changed = []
    only: tuple[list[str], list[str]] = ([], [])
    for name in tensors:
        first, second = a.get(name), b.get(name)
        if isinstance(first, _Tensor) and isinstance(second, _Tensor):
            changed += [found] if (found := _difference(_dotted(name), first, second)) else []
        else:
            only[0 if isinstance(first, _Tensor) else 1].append(_dotted(name))
    values = [
        Value(_dotted(name), *(None if isinstance(side, _Tensor) else _text(side, name) for side in (a, b)))
        for name in names
        if name not in tensors and not _is_same(a, b, name)
    ]
    changed.sort(key=_size, reverse=True)
    return Contents("tensor", len(tensors), changed, *only, values)


def _dotted(name: _Name) -> str:
    return ".".join(map(str, name))


def _text(side: dict[_Name, Any], name: _Name) -> str | None:
    return _short.repr(side[name]) if name in side else None


def _is_same(a: dict[_Name, Any], b: dict[_Name, Any], name: _Name) -> bool:
    if name not in a or name not in b:
        return False
    first, second = a[name], b[name]
    return bool(first == second or (first != first and second != second))  # a NaN is the same as a NaN


def _size(difference: Difference) -> float:
    return math.inf if difference.largest is None or difference.nans else difference.largest


def _difference(name: str, a: _Tensor, b: _Tensor) -> Difference | None:
    """Return how two tensors differ; None if they do not."""
    if a.shape != b.shape:
        return Difference(name, str(a), str(b))
    if all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a.chunks(), b.chunks(), strict=True)):
        return None if a.dtype == b.dtype else Difference(name, str(a), str(b), 0.0, 0.0, 0, math.prod(a.shape))
    largest = scale = 0.0
    differing = nans = 0
    for x, y in zip(a.chunks(), b.chunks(), strict=True):
        no_number = np.isnan(x), np.isnan(y)
        differs = (x != y) & ~(no_number[0] & no_number[1])
        differing += int(differs.sum())
        nans += int((no_number[0] ^ no_number[1]).sum())
        both = differs & ~no_number[0] & ~no_number[1]
        with np.errstate(over="ignore"):
            largest = max(largest, float(np.abs(_wide(x[both]) - _wide(y[both])).max(initial=0)))
        scale = max(scale, float(np.abs(_wide(x[np.isfinite(x)])).max(initial=0)))
    return Difference(
        name, str(a), str(b), largest, largest / scale if scale else None, differing, math.prod(a.shape), nans
    )


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _library(name: str) -> ModuleType:
    """Import an optional library.

    Raises:
        _Unreadable: it is not there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _Unreadable(f"{name} is needed to see which tensors differ: {_install(name)} ({error})") from error


def _safetensors(path: Path, files: ExitStack) -> dict[_Name, Any]:
    """Return what a safetensors file holds; it stays open in `files`."""
    library = _library("safetensors")
    try:
        torch = _library("torch")
    except _Unreadable:
        torch = None  # NumPy does, for all types that it knows
    try:
        opened = files.enter_context(library.safe_open(path, "pt" if torch else "np"))
    except library.SafetensorError as error:
        raise RamTrainError(f"{path} is no safetensors file that can be read: {error}") from error

    def tensor(name: str) -> _Tensor:
        about = opened.get_slice(name)

        def chunks() -> Iterator[np.ndarray]:
            try:
                values = opened.get_tensor(name)
            except TypeError as error:  # NumPy has no bfloat16
                raise _Unreadable(
                    f"torch is needed for tensors of type {about.get_dtype()}: {_install('torch')}"
                ) from error
            return _torch_chunks(torch, values) if torch else _numpy_chunks(values)

        return _Tensor(about.get_dtype(), tuple(about.get_shape()), chunks)

    about_file = {("metadata", key): value for key, value in (opened.metadata() or {}).items()}
    return {**about_file, **{(name,): tensor(name) for name in sorted(opened.keys())}}


def _pickled(path: Path) -> dict[_Name, Any]:
    """Return what a file of `torch.save` holds, mapped into memory where its form allows it."""
    torch = _library("torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        leaves = list(_leaves(content, (), ()))
    except OSError:
        raise
    except Exception as error:  # on what is no pickle at all the unpickler fails in any way
        refused = _REFUSED.search(str(error))  # the rest of its message says how to load it all the same
        why = f"it refers to {refused.group(1)}" if refused else type(error).__name__
        raise _Unreadable(f"PyTorch does not load {path} as weights only: {why}") from error
    return {
        name: _Tensor(
            str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape), lambda leaf=leaf: _torch_chunks(torch, leaf)
        )
        if isinstance(leaf, torch.Tensor)
        else leaf
        for name, leaf in leaves
    }


def _leaves(content: Any, name: _Name, above: tuple[int, ...]) -> Iterator[tuple[_Name, Any]]:
    """Yield what nested mappings and lists hold, each with the keys that lead to it."""
    if not isinstance(content, dict | list | tuple) or not content or id(content) in above:
        yield name, content
        return
    for key, part in content.items() if isinstance(content, dict) else enumerate(content):
        yield from _leaves(part, (*name, key), (*above, id(content)))


def _torch_chunks(torch: ModuleType, tensor: Any) -> Iterator[np.ndarray]:
    try:
        tensor = tensor.detach()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK]
            if chunk.is_floating_point():
                chunk = chunk.double()  # NumPy knows neither bfloat16 nor float8
            yield chunk.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise _Unreadable(f"tensors of type {tensor.dtype} cannot be compared here: {error}") from error


def _numpy_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _compare_storages(a: Path, b: Path, why: str) -> Contents:
    """Compare the entries of two zip archives, as `torch.save` makes them, byte by byte."""
    try:
        with zipfile.ZipFile(a) as first, zipfile.ZipFile(b) as second:
            entries = [_entries(archive) for archive in (first, second)]
            names = sorted(entries[0].keys() | entries[1].keys(), key=_by_number)
            changed = [
                Difference(name, *(f"{side[name].file_size} bytes" for side in entries))
                for name in names
                if all(name in side for side in entries) and not _same_entry(first, second, *(s[name] for s in entries))
            ]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise RamTrainError(f"{a} and {b} cannot be compared: {error}; {why}") from error
    only = ([name for name in side if name not in other] for side, other in (entries, entries[::-1]))
    return Contents("storage", len(names), changed, *only, [], why)


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, without the folder that all lie in, which has the name that the file had first.

    Those with a dot before their name hold nothing of the content, such as an identity of the whole.
    """
    entries = {entry.filename: entry for entry in archive.infolist()}
    folders = {name.partition("/")[0] for name in entries}
    shared = f"{folders.pop()}/" if len(folders) == 1 else ""
    named = {name.removeprefix(shared): entry for name, entry in entries.items()}
    return {name: entry for name, entry in named.items() if not name.startswith(".")}


def _by_number(name: str) -> tuple[str, int]:
    folder, _, last = name.rpartition("/")
    return (folder, int(last)) if last.isdecimal() else (name, 0)


def _same_entry(first: zipfile.ZipFile, second: zipfile.ZipFile, a: zipfile.ZipInfo, b: zipfile.ZipInfo) -> bool:
    if (a.file_size, a.CRC) != (b.file_size, b.CRC):
        return False
    with first.open(a) as one, second.open(b) as other:
        while part := one.read(_CHUNK_BYTES):
            if part != other.read(_CHUNK_BYTES):
                return False
    return True


def _install(package: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {package}"
