"""The project's files as inputs of a training: their hashes, kept from one run to the next, and what is left out."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.durable import read_manifest, write_bytes
from ramtrain.errors import RamTrainError
from ramtrain.lease import ram_root
from ramtrain.view import matcher

log = logging.getLogger(__name__)

# What a model that RamTrain has put somewhere is known by, and where it is made in a project.
INSTALLED, WORKPLACE = ".ramtrain-installed.json", ".ramtrain"
CACHE = "ramtrain-hashes.json"
_MOST_INPUT_FILES = 10_000
_MOST_INPUT_BYTES = 256 << 20
_NO_INPUTS = (".git", "__pycache__", WORKPLACE)
# Of the training's time so far; larger files are hashed beside it.
HASHING_SHARE = 0.1
_CHUNK_BYTES = 1 << 20
# A file that was changed so short a time ago may change once more without its times telling.
_SETTLED_S = 2.0
_MOST_CACHED = 50_000
_CACHE_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NICE = 10
# A read from a disk that hangs is not waited for.
_LONGEST_END_S = 1.0


@dataclass(frozen=True)
class Inputs:
    """The project's files as they were when the training began.

    `files` has a path and a SHA-256 each; of a large project its smallest files, up to 10,000 of them and 256 MiB;
    `left_out` counts the others, of which `larger` has those that could be hashed, with their sizes, the smallest
    first. `digests` has, for each entry of the project's folder, a digest of all below it: of contents, of the targets
    of links, and of size and mtime of what was left out. `took_s` is how long it took, `scope` what was looked at.
    """

    files: list[dict[str, str]]
    left_out: int
    digests: dict[str, str]
    larger: list[tuple[str, int]] = field(default_factory=list)
    took_s: float = 0.0
    scope: str = "the project's files"


@dataclass(frozen=True)
class Hashed:
    """The files of the project whose hashes are known, how many are left out, and which and why, in a sentence."""

    files: list[dict[str, str]]
    left_out: int
    why: str


class HashCache:
    """SHA-256 of files by path, size, mtime, ctime and inode, in Snakemake's folder `.snakemake`.

    What cannot be read counts for nothing and is written anew; without that folder nothing is kept.
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / ".snakemake" / CACHE
        self._new: dict[str, list[Any]] = {}

    @functools.cached_property
    def _known(self) -> dict[str, list[Any]]:
        return self._read()

    def get(self, path: Path, status: os.stat_result) -> str | None:
        """Return the hash of a file that is as it was when it was hashed; None if that is not known."""
        *seen, sha256 = self._known.get(str(path), [None])
        return sha256 if seen == _identity(status) else None

    def put(self, path: Path, status: os.stat_result, sha256: str) -> None:
        """Note a file's hash, unless it has been changed just now."""
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S:
            self._new[str(path)] = self._known[str(path)] = [*_identity(status), sha256]

    def save(self) -> None:
        """Write down what is new, beside what other runs have written meanwhile; without it the next run hashes anew.

        Files that are gone stay in it until there are too many; the newest entries are kept.
        """
        if not self._new or not self.path.parent.is_dir():
            return
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                known = self._read()
                files = {path: entry for path, entry in known.items() if path not in self._new} | self._new
                kept = dict(list(files.items())[-_MOST_CACHED:])
                write_bytes(self.path, json.dumps({"format": _CACHE_FORMAT, "files": kept}).encode())
            finally:
                os.close(folder)
        except OSError as error:
            log.debug("%s could not be written: %s", self.path, error)
        self._new = {}

    def _read(self) -> dict[str, list[Any]]:
        try:
            content = json.loads(self.path.read_bytes())
            files = content["files"] if content["format"] == _CACHE_FORMAT else {}
            return {path: entry for path, entry in files.items() if _is_entry(entry)}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    *identity, sha256 = entry
    return all(type(part) is int for part in identity) and bool(_SHA256.fullmatch(str(sha256)))


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def read_inputs(project: Path, cache: HashCache | None = None, only: Sequence[str] = ()) -> Inputs:
    """Hash the project's files; what Git, Python and RamTrain itself keep there does not count.

    Args:
        only: globs of the files that count, where not all do.
    """
    began = time.monotonic()
    own = matcher(own_places(project))
    wanted = matcher(only or ["**"])
    entered = matcher(pattern.split("/")[0] for pattern in only or ["*"])
    found: list[tuple[int, str, os.stat_result]] = []
    for folder, names, entries in os.walk(project):
        if INSTALLED in entries and is_installed(Path(folder)):
            # Our runs' models are no inputs of each other: what one installs does not end another's training.
            names[:] = []
            continue
        prefix = os.path.relpath(folder, project)
        names[:] = [name for name in names if name not in _NO_INPUTS and not own.fullmatch(_join(prefix, name))]
        if prefix == ".":
            names[:] = [name for name in names if entered.fullmatch(name)]
        for name in (*names, *entries):
            path = _join(prefix, name)
            try:
                status = (project / path).lstat()
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode) and wanted.fullmatch(path):
                found.append((status.st_size, path, status))
    found.sort(key=lambda entry: entry[:2])
    files: list[dict[str, str]] = []
    larger: list[tuple[str, int]] = []
    signatures: dict[str, list[str]] = {}
    left_out = total_bytes = 0
    for size_bytes, path, status in found:
        total_bytes += size_bytes
        signature = f"{size_bytes} {status.st_mtime_ns}"
        is_file = stat.S_ISREG(status.st_mode)
        try:
            if stat.S_ISLNK(status.st_mode):
                signature = os.readlink(project / path)
            elif is_file and len(files) < _MOST_INPUT_FILES and total_bytes <= _MOST_INPUT_BYTES:
                signature = _hash_small(project / path, status, cache)
                files.append({"path": path, "sha256": signature})
            elif is_file:
                left_out += 1
                larger.append((path, size_bytes))
        except OSError as error:
            log.warning("input %s could not be read for the record: %s", path, error.strerror)
            left_out += is_file
        signatures.setdefault(path.split("/")[0], []).append(f"{path}\0{signature}")
    digests = {name: _digest(lines) for name, lines in sorted(signatures.items())}
    if cache:
        cache.save()
    took_s = time.monotonic() - began
    scope = "those of the project's files that its adapter names" if only else Inputs.scope
    return Inputs(sorted(files, key=lambda entry: entry["path"]), left_out, digests, larger, took_s, scope)


def _hash_small(path: Path, status: os.stat_result, cache: HashCache | None) -> str:
    if cache and (known := cache.get(path, status)):
        return known
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if cache and _identity(os.fstat(file.fileno())) == _identity(before):
            cache.put(path, before, sha256)
    return sha256


def _digest(lines: list[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(sorted(lines)))).hexdigest()[:16]


def own_places(project: Path) -> list[str]:
    """Return globs for what RamTrain keeps in a project that is, or holds, Snakemake's working directory."""
    here = Path.cwd().resolve()
    if not here.is_relative_to(project):
        return []
    prefix = here.relative_to(project)
    return [str(prefix / name) for name in ("results", ".snakemake", ram_root(here).parent.name)]


def is_installed(folder: Path) -> bool:
    """Whether the folder is a model of this working directory's runs that RamTrain has put there (`install`)."""
    try:
        content = read_manifest(folder, INSTALLED)
    except RamTrainError:
        return False
    return content.get("workdir") == str(Path.cwd())


def _join(prefix: str, name: str) -> str:
    return name if prefix == "." else f"{prefix}/{name}"


class LargerInputs:
    """Hashes what `read_inputs` has left out, the smallest first, beside the training and until it ends.

    All hashing together takes at most a tenth of the time since the training began; what is known from an earlier run
    takes none.

    Args:
        inputs: waits until the others are hashed, and returns them.
    """

    def __init__(self, project: Path, inputs: Callable[[], Inputs], cache: HashCache) -> None:
        self.project, self.inputs, self.cache = project, inputs, cache
        self.spent_s = 0.0
        self._began = time.monotonic()
        self._files: list[dict[str, str]] = []
        self._unreadable = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hashes", daemon=True)

    def start(self) -> None:
        """Begin, with the training."""
        self._began = time.monotonic()
        self._thread.start()

    def cancel(self) -> None:
        """Have it end at once; what is hashed by now is kept for the next run."""
        self._stop.set()

    def finish(self) -> Hashed:
        """Stop, now that the training has ended, and return what is hashed by now."""
        self._stop.set()
        self._thread.join(_LONGEST_END_S)
        inputs, files, unreadable = self.inputs(), list(self._files), self._unreadable
        left_out = inputs.left_out - len(files)
        every = sorted([*inputs.files, *files], key=lambda entry: entry["path"])
        return Hashed(every, left_out, _explain(inputs, len(files), left_out, unreadable))

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_IDLE)
        try:
            inputs = self.inputs()
        except OSError:  # whoever trains meets it, too
            return
        self.spent_s = inputs.took_s
        for path, _ in inputs.larger[:_MOST_INPUT_FILES]:
            if self._stop.is_set():
                break
            try:
                sha256 = self._hash(self.project / path)
            except OSError as error:
                log.warning("input %s could not be read for the record: %s", path, error.strerror)
                self._unreadable += 1
                continue
            if sha256:
                self._files.append({"path": path, "sha256": sha256})
        self.cache.save()

    def _hash(self, path: Path) -> str | None:
        """Return the hash of a file; None if the training ended before that was done, or it is being written to."""
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if known := self.cache.get(path, before):
                return known
            digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
            while self._may_go_on():
                started = time.monotonic()
                count = file.readinto(buffer)
                digest.update(buffer[:count])
                self.spent_s += time.monotonic() - started
                if not count:
                    if _identity(os.fstat(file.fileno())) != _identity(before):
                        return None
                    self.cache.put(path, before, digest.hexdigest())
                    return digest.hexdigest()
        return None

    def _may_go_on(self) -> bool:
        """Wait until hashing has taken no more than its share; return whether the training still runs."""
        while (wait_s := self.spent_s / HASHING_SHARE - (time.monotonic() - self._began)) > 0:
            if self._stop.wait(wait_s):
                return False
        return not self._stop.is_set()


def _explain(inputs: Inputs, larger: int, left_out: int, unreadable: int) -> str:
    total = len(inputs.files) + inputs.left_out
    if left_out == 0:
        return f"all of {inputs.scope}, {total}"
    unread = inputs.left_out - len(inputs.larger) + unreadable
    reasons = []
    if left_out > unread:
        reasons.append(f"hashing may take {HASHING_SHARE * 100:g} % of the training's time")
    if unread:
        reasons.append(f"{pluralize(unread, 'file')} could not be read")
    most = f"{_MOST_INPUT_FILES:,} of them and {format_size(_MOST_INPUT_BYTES, binary=True)}"
    more = f", and {pluralize(larger, 'larger one')}" if larger else ""
    return (
        f"of {pluralize(total, 'file')} the {len(inputs.files)} smallest, up to {most}{more}; "
        f"{pluralize(left_out, 'is', 'are')} left out: {', and '.join(reasons)}"
    )
