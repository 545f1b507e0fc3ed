"""To do a run again: a config made from its record, and what of it has changed since it was trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ramtrain.config import Run
from ramtrain.durable import write_bytes
from ramtrain.errors import RamTrainError
from ramtrain.redact import redact
from ramtrain.runs import next_id
from ramtrain.shelf import home

_COMMENT = """\
# Trains run {run} again, as run {again}, with the settings that its record holds:
#   snakemake --cores 1 train --configfile {path}
# What the project's files were then stands in {record}; `python -m ramtrain compare {run} {again}` says what differs.
"""
# What is about the call and other runs, not about this one.
_NOT_OF_A_RUN = ("sweep", "benchmark", "resume", "discard")


def write_config(run: Run, folder: Path) -> None:
    """Write results/<run>/config.yaml, a config of its own that trains the same under the next free id."""
    path, again = folder / "config.yaml", next_id(run.run)
    while home(again).exists():
        again = next_id(again)
    config = {key: value for key, value in run.config.items() if key not in _NOT_OF_A_RUN}
    trainer = run.config["project"]["trainer"]
    config["project"] = {
        **{key: value for key, value in run.config["project"].items() if key != "install_to"},
        "path": str(run.project),
        "trainer": str(Path(trainer).absolute()) if trainer.endswith(".yaml") else trainer,
    }
    (row,) = run.config["runs"] or [{}]
    config["runs"] = [{**row, "run": again}]
    comment = _COMMENT.format(run=run.run, again=again, path=shlex.quote(str(path)), record=folder / "record.json")
    write_bytes(path, (comment + yaml.safe_dump(redact(config), sort_keys=False, allow_unicode=True)).encode())


def check_same_project(run: Run, record_file: Path) -> None:
    """Check that the results of a run's name are of its own project: another's model is not to be replaced.

    Raises:
        RamTrainError: they are another project's.
    """
    recorded = _read(record_file)
    project = recorded and recorded["training"].get("project")
    if project and project != str(run.project):
        raise RamTrainError(
            f"run {run.run}: {record_file.parent} holds the model of another project, {project}, which would be "
            "replaced. Call Snakemake in a folder of its own for each project (`--directory`), name the run otherwise, "
            f"or move {record_file.parent} away."
        )


def changes_since(run: Run, record_file: Path) -> str | None:
    """Return what of a training was changed since it has been recorded; None if nothing was, or it was not recorded."""
    record = _read(record_file)
    if record is None:
        return None
    before, old = record["training"], record["parameters"]
    values = {name: text for name, text in redact(run.values).items() if name in run.used}
    parameters = _changes({name: old[name] for name in old if name in run.used}, values)
    changed = _changes(before, run.training)
    return "; ".join(parameters or changed) if changed else None


def _read(record_file: Path) -> dict[str, Any] | None:
    """Return a record that says what was trained; None if there is none, or it is of a version that did not."""
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        return record if {"training", "parameters"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    return [_change(key, before.get(key), now.get(key)) for key in keys]


def _change(name: str, before: object, now: object) -> str:
    return f"{name} was {_shown(before)}, is {_shown(now)}"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"`{shlex.join(map(str, value))}`"
    return "not given" if value is None else str(value)
