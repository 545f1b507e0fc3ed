"""What differs between two runs, from their records alone; and between their models, where those are at hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from humanfriendly.text import concatenate, pluralize

from ramtrain.models import ModelFile, compare_models, verdict
from ramtrain.recorded import Record
from ramtrain.redact import MARK

_NUMBER = re.compile(r"[-+]?\.?[0-9]")
# What of the config says nothing of one run: other runs, the call, or what the record has as it was run.
_NOT_COMPARED = ("project.path", "project.command", "runs", "sweep", "resume", "benchmark", "discard")
_NO_MACHINE = (
    *("ramtrain", "ramtrain_commit", "ramtrain_dirty", "ramtrain_python", "snakemake"),
    *("python", "interpreter", "packages", "conda"),
)
_FIGURES = [
    *(f"timings_s.{step}" for step in ("mount", "stage", "train", "export", "unmount", "total")),
    "writes.trainer.logical_bytes",
    "writes.trainer.disk_bytes",
    "writes.drain.disk_bytes",
    "writes.export.disk_bytes",
    "writes.written_bytes",
    "writes.device.bytes",
    "ramdisk.peak_bytes",
]


@dataclass(frozen=True)
class Change:
    """Something that is not the same; None where it is not there."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Part:
    """One of the things that two records tell: what of it differs, and what is not known of it.

    `same` is how it is called where nothing differs and all of it is known.
    """

    section: str
    same: str
    changes: list[Change] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Two records, compared. `verdict` is one line on the models; `figures` differ between any two runs."""

    verdict: str
    a: Record
    b: Record
    parts: list[Part]
    model: list[ModelFile]
    figures: list[Change]


def compare(a: Record, b: Record) -> Comparison:
    """Compare two records, and the models as far as they lie beside the records."""
    model = compare_models(a, b)
    parts = [
        *_training(a, b),
        _config(a, b),
        *_code(a, b),
        _inputs(a, b),
        *_packages(a, b),
        *_machine(a, b),
        _ramtrain(a, b),
        *_metrics(a, b),
    ]
    figures = [Change(name, *(side.get(*name.split(".")) for side in (a, b))) for name in _FIGURES]
    return Comparison(verdict(a, b, model), a, b, parts, model, figures)


def _part(section: str, name: str, a: Any, b: Any, count: bool = False) -> Part:
    """Compare what two records have under a name: values, or nested mappings of them; None for what has no record."""
    missing = [side for side, found in (("A", a), ("B", b)) if found is None]
    if missing:
        return Part(section, name, unknown=[f"{name}: not recorded in {concatenate(missing)}"])
    first, second = ({name: side} if not isinstance(side, dict) else _flat(side) for side in (a, b))
    changes, unknown = [], []
    for key in dict.fromkeys((*first, *second)):
        one, other = first.get(key), second.get(key)
        if _has_secret(one) != _has_secret(other) or (_has_secret(one) and one == other):
            unknown.append(f"{key}: a secret was left out and cannot be compared")
        elif one != other and not (one != one and other != other):
            changes.append(Change(key, one, other))
    return Part(section, f"{name} ({len(first):,})" if count else name, changes, unknown)


def _has_secret(value: Any) -> bool:
    return MARK in (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; a list of mappings counts as a mapping by number."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _without(content: Mapping[str, Any] | None, keys: Sequence[str]) -> dict[str, Any] | None:
    return None if content is None else {key: value for key, value in content.items() if key not in keys}


def _training(a: Record, b: Record) -> Iterator[Part]:
    commands = [_command(side) for side in (a, b)]
    part = _part("training", "command", *(command and _arguments(command) for command in commands))
    if commands[0] != commands[1] and not part.changes and not part.unknown:
        part.changes.append(Change("order of the arguments", *(shlex.join(command or []) for command in commands)))
    yield part
    yield _part("training", "project", *(_project(side) for side in (a, b)))
    parameters = [_without(side.get("parameters"), ("seed",)) for side in (a, b)]
    if any(parameters):
        yield _part("training", "parameters", *parameters, count=True)
    yield _part("training", "seed", *map(_seed, (a, b)))
    rest = [_without(side.get("training"), ("project", "command")) for side in (a, b)]
    if any(rest):
        yield _part("training", "threads and environment", *rest)
    resumed = [side.get("protection", "resumed_from") or "the beginning" for side in (a, b)]
    if resumed[0] != resumed[1]:
        yield Part("training", "", [Change("its last attempt went on from", *resumed)])


def _project(record: Record) -> str | None:
    return record.get("training", "project") or record.get("project", "path")


def _seed(record: Record) -> str | None:
    """Return the run's seed; without its parameters it is not known: it may have been in the table of the runs."""
    if record.get("parameters") is None:
        return None
    seed = record.get("parameters", "seed") or record.get("config", "train", "seed")
    return None if seed is None else str(seed)


def _command(record: Record) -> list[str] | None:
    """Return the command with {ram} for the folder that lay in RAM, which is another in each run."""
    if command := record.get("training", "command"):
        return command
    command, template = record.get("command"), record.get("config", "project", "command")
    if command is None or template is None:
        return command
    words = template.split() if isinstance(template, str) else list(map(str, template))
    for argument, word in zip(command, words, strict=False):
        if "{ram}" in word:
            pattern = "".join(
                "(.+)" if part == "{ram}" else ".*" if part[:1] == "{" else re.escape(part)
                for part in re.split(r"(\{[A-Za-z_]\w*\})", word)
            )
            if found := re.fullmatch(pattern, argument, re.DOTALL):
                return [argument.replace(found.group(1), "{ram}") for argument in command]
    return command


def _arguments(command: Sequence[str]) -> dict[str, str]:
    """Return a command's arguments by the option that they follow; those before the first option by their place."""
    found: dict[str, list[str]] = {}
    option = None
    for place, argument in enumerate(command):
        if argument.startswith("-") and argument != "-" and not _NUMBER.match(argument):
            option, _, value = argument.partition("=")
            found.setdefault(option, []).extend([value] if "=" in argument else [])
        else:
            found.setdefault(option or (f"argument {place}" if place else "program"), []).append(argument)
    return {name: " ".join(values) or "given" for name, values in found.items()}


def _config(a: Record, b: Record) -> Part:
    def settings(record: Record) -> dict[str, Any] | None:
        config = record.get("config")
        return config and {
            key: value
            for key, value in _flat(config).items()
            if not any(key == left_out or key.startswith(f"{left_out}.") for left_out in _NOT_COMPARED)
        }

    return _part("config", "config", settings(a), settings(b))


def _code(a: Record, b: Record) -> Iterator[Part]:
    commits = [side.get("project", "git_commit") for side in (a, b)]
    if not any(commits):
        yield Part("code", "", unknown=["code: no git commit is recorded; the hashes of the inputs tell what differs"])
        return
    dirty = [side.get("project", "dirty") for side in (a, b)]
    commit = f"commit {(commits[0] or '')[:12]}"
    same = f"code ({commit}, no uncommitted changes)" if dirty == [False, False] else commit
    yield _part("code", same, *({"commit": commit} for commit in commits))
    if dirty[0] != dirty[1] or None in dirty:
        yield _part("code", "uncommitted changes", *({False: "no", True: "yes", None: None}[side] for side in dirty))
    if any(dirty):
        yield _uncommitted(a, b)


def _uncommitted(a: Record, b: Record) -> Part:
    """Compare the uncommitted changes, file by file, where what was changed is at hand."""
    first, second = _diff(a), _diff(b)
    if first is None or second is None:
        missing = concatenate([side for side, found in (("A", first), ("B", second)) if found is None])
        return Part("code", "", unknown=[f"uncommitted changes: which ones, in {missing}, is not at hand here"])
    changes, unknown = [], []
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name, ""), second.get(name, "")
        if one != other:
            counts = [pluralize(_count(text), "line") if text else None for text in (one, other)]
            if counts[0] == counts[1]:
                counts[1] = f"{counts[1]}, others"
            changes.append(Change(f"uncommitted changes of {name}", *counts))
        elif MARK in one:
            unknown.append(f"uncommitted changes of {name}: a secret was left out and cannot be compared")
    return Part("code", "uncommitted changes", changes, unknown)


def _diff(record: Record) -> dict[str, str] | None:
    """Return what Git says of the uncommitted changes, by file; None where it is not at hand."""
    if record.get("project", "dirty") is False:
        return {}
    name = record.get("project", "diff")
    path = record.beside(name) if name else None
    if path is None:
        return None
    parts = re.split(r"(?m)^diff --git ", path.read_text(encoding="utf-8", errors="surrogateescape"))
    return {part.partition("\n")[0].rpartition(" b/")[2]: part for part in parts[1:]}


def _count(diff: str) -> int:
    """Return how many lines the diff of one file takes out and puts in."""
    return len(re.findall(r"(?m)^[-+]", diff.partition("\n@@")[2]))


def _inputs(a: Record, b: Record) -> Part:
    sides = [side.get("project", "inputs") for side in (a, b)]
    if None in sides:
        return _part("inputs", "inputs", *sides)
    first, second = ({file["path"]: file["sha256"] for file in side} for side in sides)
    paths = sorted(first.keys() | second.keys())
    changes = [Change(path, first.get(path), second.get(path)) for path in paths if first.get(path) != second.get(path)]
    unknown = [text for side, record in (("A", a), ("B", b)) for text in _left_out(side, record)]
    if unknown and not changes:
        unknown.append(f"inputs: {pluralize(len(first), 'file')} hashed in both, and the same")
    return Part("inputs", f"inputs ({pluralize(len(first), 'file')})", changes, unknown)


def _left_out(side: str, record: Record) -> list[str]:
    count, why = (record.get("project", key) for key in ("inputs_left_out", "inputs_why"))
    if count == 0:
        return []
    if count is None:
        return [f"inputs: how many of {side} were left out of hashing is not recorded"]
    return [f"inputs: {count:,} of {side} were left out of hashing" + (f" ({why})" if why else "")]


def _packages(a: Record, b: Record) -> Iterator[Part]:
    pythons = [side.get("environment", "python") for side in (a, b)]
    if any(pythons):
        name = "Python" if None in pythons else f"Python {pythons[0]}"
        yield _part("packages", name, *(text and {"Python": text} for text in pythons))
    packages = (side.get("environment", "packages") or None for side in (a, b))
    yield _part("packages", "packages", *packages, count=True)
    conda = [side.get("environment", "conda") for side in (a, b)]
    if any(conda):
        yield _part("packages", "conda packages", *conda, count=True)


def _machine(a: Record, b: Record) -> Iterator[Part]:
    yield _part("machine", "machine", *(_without(side.get("environment"), _NO_MACHINE) or None for side in (a, b)))
    devices = [side.get("devices") for side in (a, b)]
    if any(devices):
        yield _part("machine", "devices", *devices)


def _ramtrain(a: Record, b: Record) -> Part:
    versions = [side.get("environment", "ramtrain") for side in (a, b)]

    def about(record: Record) -> dict[str, Any] | None:
        return record.get("environment", "ramtrain") and {
            "RamTrain": record.get("environment", "ramtrain"),
            "its commit": record.get("environment", "ramtrain_commit"),
            "its Python": record.get("environment", "ramtrain_python"),
            "Snakemake": record.get("environment", "snakemake"),
            "RAM disk": record.get("ramdisk", "backend"),
            "staging": record.get("staging", "method"),
        }

    return _part("RamTrain", "RamTrain" if None in versions else f"RamTrain ({versions[0]})", about(a), about(b))


def _metrics(a: Record, b: Record) -> Iterator[Part]:
    metrics = [side.get("metrics") for side in (a, b)]
    if any(metrics):
        yield _part("metrics", "metrics", *metrics, count=True)
    progress = [side.get("progress") for side in (a, b)]
    if any(progress):
        yield _part("metrics", "what the trainer said last", *progress)
