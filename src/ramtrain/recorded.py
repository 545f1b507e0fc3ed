"""A run's record as it is found later: by any version of RamTrain, on any machine, with what still lies beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramtrain.errors import RamTrainError
from ramtrain.schema import complete
from ramtrain.shelf import RESULTS

RECORD = "record.json"
_MOST_RUNS = 20
_MAPPING = {"type": ["object", "null"]}
_TEXT = {"type": ["string", "null"]}
_FILES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["path", "sha256"],
        "properties": {"path": {"type": "string", "pattern": r"\A[^\0]+\Z"}, "sha256": {"type": "string"}},
    },
}
_WORDS = {"type": "array", "items": {"type": "string"}}
# The types of what is read here, of records of any version; what is missing is not recorded.
_READ = {
    "type": "object",
    "properties": {
        "run": {"type": "string"},
        "ended": _TEXT,
        "command": _WORDS,
        "config": {
            "type": "object",
            "properties": {"project": {"type": "object", "properties": {"command": {"type": ["string", "array"]}}}},
        },
        "parameters": _MAPPING,
        "training": {**_MAPPING, "properties": {"command": _WORDS}},
        "timings_s": _MAPPING,
        "writes": _MAPPING,
        "model": _FILES,
        "metrics": _MAPPING,
        "progress": _MAPPING,
        "environment": {**_MAPPING, "properties": {"packages": _MAPPING}},
        "project": {
            "type": "object",
            "properties": {
                "git_commit": _TEXT,
                "dirty": {"type": ["boolean", "null"]},
                "diff": _TEXT,
                "inputs": _FILES,
                "inputs_left_out": {"type": "integer"},
                "inputs_why": _TEXT,
            },
        },
    },
}


@dataclass(frozen=True)
class Record:
    """A record as it was found: in which file, and what it says."""

    path: Path
    content: dict[str, Any]

    def get(self, *keys: str) -> Any:
        """Return what the record has there; None where it has nothing."""
        found: Any = self.content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def beside(self, name: str) -> Path | None:
        """Return the file of that path in the record's folder; None where it is not at hand, or would lie elsewhere."""
        is_within = not name.startswith("/") and ".." not in name.split("/")
        path = self.path.parent / name
        return path if is_within and path.is_file() else None


def find_record(name: str) -> Record:
    """Read the record of a run in the working directory, by its id; of a folder; or of a file.

    Raises:
        RamTrainError: there is none, or what is there is no record.
    """
    path = next((path for path in _places(name) if path.is_file()), None)
    if path is None:
        raise RamTrainError(_not_found(name))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RamTrainError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RamTrainError(f"{path} is no record of a run: it is not valid JSON ({error})") from error
    if not isinstance(content, dict) or "run" not in content or not content.keys() & {"config", "command", "model"}:
        raise RamTrainError(f"{path} is no record of a run: name a run, or the {RECORD} that a run has left")
    return Record(path, complete(content, _READ, str(path)))


def _places(name: str) -> Iterator[Path]:
    if "/" not in name and name not in (".", ".."):
        yield RESULTS / name / RECORD
    yield Path(name) / RECORD
    yield Path(name)


def _not_found(name: str) -> str:
    folder = next((folder for folder in (RESULTS / name, Path(name)) if folder.is_dir()), None)
    what = f"{folder} has no {RECORD}: a run has one when it has ended well" if folder else f"there is no run {name!r}"
    there = sorted(path.parent.name for path in RESULTS.glob(f"*/{RECORD}"))
    more = f" and {len(there) - _MOST_RUNS:,} more" if len(there) > _MOST_RUNS else ""
    listed = ", ".join(there[:_MOST_RUNS]) + more or "none"
    return f"{what}. Name a run, a folder with a {RECORD}, or that file. Runs in {RESULTS.absolute()}: {listed}"
