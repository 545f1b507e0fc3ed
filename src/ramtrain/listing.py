"""What lies in a folder of a user's, as far as looking is cheap: the top first, no links followed, no environments."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_MOST_ENTRIES = 50_000
_MOST_IN_A_FOLDER = 5_000
# What tools keep for themselves; of no interest to a training, and large.
_CLOSED = frozenset(
    (".git", ".hg", ".svn", "__pycache__", "node_modules", "site-packages", ".ipynb_checkpoints", ".snakemake")
)


@dataclass(frozen=True)
class Listing:
    """What was found, as paths in the folder, what is nearer to its top first.

    `environments` are folders with a Python of their own, which were not looked into. `is_whole` says whether all there
    is was seen.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    environments: tuple[str, ...]
    is_whole: bool


def list_folder(root: Path, most: int = _MOST_ENTRIES) -> Listing:
    """Return what lies in a folder; what cannot be read is left out.

    Args:
        most: after so many names it looks no further.
    """
    files: list[str] = []
    folders: list[str] = []
    environments: list[str] = []
    is_whole = True
    waiting = deque([""])
    while waiting:
        prefix = waiting.popleft()
        room = min(_MOST_IN_A_FOLDER, most - len(files) - len(folders))
        entries, is_all = _entries(root / prefix, room)
        is_whole = is_whole and is_all
        if prefix and _is_environment(entries):
            environments.append(prefix.rstrip("/"))
            continue
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if not entry.is_dir(follow_symlinks=False):
                files.append(path)
            elif entry.name not in _CLOSED:
                folders.append(path)
                waiting.append(f"{path}/")
        if room <= 0:
            break
    return Listing(tuple(files), tuple(folders), tuple(environments), is_whole)


def _entries(folder: Path, most: int) -> tuple[list[os.DirEntry[str]], bool]:
    """Return the first entries of a folder, by their names, and whether these are all."""
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(found) >= most:
                    return sorted(found, key=lambda entry: entry.name), False
                found.append(entry)
    except OSError:
        return [], False
    return sorted(found, key=lambda entry: entry.name), True


def _is_environment(entries: list[os.DirEntry[str]]) -> bool:
    return any(entry.name in ("pyvenv.cfg", "conda-meta") for entry in entries)
