"""Which runs there are: rows of the runs table, rows in the config itself, combinations of a sweep."""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ramtrain.errors import RamTrainError
from ramtrain.redact import is_secret, redact_text
from ramtrain.schema import complete

RUN, SEED, SEEDS = "run", "seed", "seeds"
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._+-]+")
_ID_LENGTH = 100
_MOST_COMBINATIONS = 10_000
_RESERVED = (
    "logs",
    "benchmark_io",
    *(f"benchmark_io.{suffix}" for suffix in ("json", "svg", "tsv")),
    *("summary.tsv", "sweep.svg", "ranking.svg", "parameters.svg"),
    "endurance.tsv",
    *("ro-crate-metadata.json", "workflow.smk"),
    "README.md",
)
_OWN_PLACEHOLDERS = ("ram", "python", "driver")
# What a run can have of its own: the sections of the config that are about one training.
_SECTIONS = ("project", "ramdisk", "train", "protect", "guard")

Value = str | int | float | bool


@dataclass(frozen=True)
class Row:
    """A run as it is asked for: `parameters` are its values for the command, as text; `settings` those of dotted config
    keys, which take the place of the config's own. `source` says where it stands, for messages."""

    run: str
    parameters: Mapping[str, str]
    settings: Mapping[str, Any]
    source: str


def read_table(path: Path, row_schema: dict[str, Any], config_schema: dict[str, Any]) -> list[Row]:
    """Read the runs table: tab-separated, a header, one row a run; blank and # lines do not count.

    Raises:
        RamTrainError: no such file, no rows, a bad column or cell, a bad or duplicate id; line and column are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise RamTrainError(f"runs: {path}: {error.strerror}; give the table's path.") from error
    except UnicodeDecodeError as error:
        raise RamTrainError(f"runs: {path}: is not text in UTF-8 ({error.reason}); save it as such.") from None
    rows: list[Row] = []
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip()[0] == "#":
            continue
        source = f"{path}: line {number}"
        fields = _split(line, source)
        if not header:
            header = fields
            _check_header(header, config_schema, source)
            continue
        if len(fields) != len(header):
            raise RamTrainError(
                f"{source}: {len(fields)} columns where the header has {len(header)}; columns are separated by one tab."
            )
        cells = dict(zip(header, fields, strict=True))
        _check_empty(cells, line, source)
        settings = {name: _as_yaml(text, name, source) for name, text in cells.items() if "." in name and text}
        rows.append(_row({name: text for name, text in cells.items() if "." not in name}, settings, row_schema, source))
    if not rows:
        raise RamTrainError(f"{path}: no runs in it; the first line names the columns, each other line is a run.")
    return rows


def read_list(
    entries: Sequence[Mapping[str, Any]], row_schema: dict[str, Any], config_schema: dict[str, Any], source: str
) -> list[Row]:
    """Return the runs that the config itself lists, each a mapping with the key `run`.

    Raises:
        RamTrainError: a bad key, a bad or duplicate id; the entry is named.
    """
    rows = []
    for number, entry in enumerate(entries):
        place = f"{source}: runs.{number}"
        _check_header(list(entry), config_schema, place)
        cells = {name: as_text(value, f"{place}: {name}") for name, value in entry.items() if "." not in name}
        settings = {name: value for name, value in entry.items() if "." in name}
        rows.append(_row(cells, settings, row_schema, place))
    return rows


def combine(
    sweep: Mapping[str, Any], first_seed: int, row_schema: dict[str, Any], config_schema: dict[str, Any], source: str
) -> list[Row]:
    """Return one run for each combination of the sweep's values, named by them: `lr=1e-4,seed=2`.

    Args:
        sweep: a list of values a parameter or dotted config key; `seeds: 5` stands for five seeds from `first_seed` on.

    Raises:
        RamTrainError: a bad name or value, one that appears twice, too many combinations.
    """
    values: dict[str, Sequence[Any]] = {name: listed for name, listed in sweep.items() if name != SEEDS}
    where = f"{source}: sweep"
    if SEEDS in sweep:
        if SEED in values:
            raise RamTrainError(f"{where}: seed and seeds say the same thing twice; give one of them.")
        values[SEED] = range(first_seed, first_seed + sweep[SEEDS])
    if RUN in values:
        raise RamTrainError(f"{where}.run: the ids are made of the values; name single runs in `runs`.")
    _check_header([RUN, *values], config_schema, where)
    count = math.prod(map(len, values.values()))
    if count > _MOST_COMBINATIONS:
        product = " x ".join(str(len(listed)) for listed in values.values())
        raise RamTrainError(
            f"{where}: {product} are {count:,} combinations, and {_MOST_COMBINATIONS:,} are the most; take fewer "
            "values, or list the runs that are wanted in a table (`runs`)."
        )
    texts = {name: [as_text(value, f"{where}.{name}") for value in listed] for name, listed in values.items()}
    for name, listed in texts.items():
        for text, times in Counter(listed).items():
            if times > 1:
                raise RamTrainError(f"{where}.{name}: {text!r} appears twice.")
            if is_secret(name, text) or redact_text(text) != text:
                raise RamTrainError(
                    f"{where}.{name}: a secret cannot be varied: it would be part of the run's id. Give the trainer "
                    "the name of a variable or file that holds it."
                )
    names = sorted(values, key=lambda name: (name == SEED, name))
    rows = []
    for picked in itertools.product(*(range(len(values[name])) for name in names)):
        place = dict(zip(names, picked, strict=True))
        parameters = {name: texts[name][index] for name, index in place.items() if "." not in name}
        settings = {name: values[name][index] for name, index in place.items() if "." in name}
        run = _id_of({name: texts[name][index] for name, index in place.items()})
        rows.append(_row({RUN: run, **parameters}, settings, row_schema, f"{where}: {run}"))
    return rows


def check_ids(rows: Iterable[Row]) -> None:
    """Check that no two runs have one id, wherever they are from.

    Raises:
        RamTrainError: two have.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        if row.run in seen:
            raise RamTrainError(
                f"{row.source}: run: {row.run!r} appears twice; run ids must differ. The other one: "
                f"{seen[row.run].source}."
            )
        seen[row.run] = row


def id_from(name: str) -> str:
    """Return a run id for a project's folder: other characters become _, and names of our own are kept free."""
    run = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", name).lstrip("._=,+-") or "run"
    return f"run-{run}" if run in _RESERVED else run


def next_id(run: str) -> str:
    """Return the id under which a run is done again: `x-again`, then `x-again-2` and so on."""
    again = re.fullmatch(r"(.+-again)(?:-([0-9]+))?", run)
    following = f"{again[1]}-{int(again[2] or 1) + 1}" if again else f"{run}-again"
    return following if len(following) <= _ID_LENGTH else f"{_digest(run)}-again"


def as_text(value: object, where: str) -> str:
    """Return a value of the config as a parameter's text: numbers at their shortest, true and false as in YAML.

    Raises:
        RamTrainError: it is no single value.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list | dict):
        return json.dumps(value)
    raise RamTrainError(
        f"{where}: {value!r} is no text and no number; put it in quotation marks if it is meant as text."
    )


def typed(text: str) -> Any:
    """Return what a parameter's text stands for in a file: a finite number, true, null, a list; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _row(cells: Mapping[str, str], settings: Mapping[str, Any], row_schema: dict[str, Any], source: str) -> Row:
    complete(cells, row_schema, source)
    parameters = {name: text for name, text in cells.items() if name != RUN}
    if cells[RUN] in _RESERVED:
        raise RamTrainError(f"{source}: run: {cells[RUN]!r} is something else's name in results; choose another.")
    return Row(cells[RUN], parameters, settings, source)


def _split(line: str, source: str) -> list[str]:
    try:
        (fields,) = csv.reader([line], delimiter="\t", strict=True)
    except csv.Error:
        raise RamTrainError(
            f"{source}: a quotation mark is not closed, or text follows it; a cell that begins with one ends with "
            "one, and those in between are doubled."
        ) from None
    return fields


def _check_empty(cells: Mapping[str, str], line: str, source: str) -> None:
    """Refuse a parameter that was left empty; with quotation marks it is meant so."""
    written = line.split("\t")
    if len(written) != len(cells):
        return  # a quoted cell has a tab in it: which is which is not known
    for name, text in zip(cells, written, strict=True):
        if not text and "." not in name and name != RUN:
            raise RamTrainError(f'{source}: {name}: is empty; give a value, or "" if an empty text is meant.')


def _as_yaml(text: str, name: str, source: str) -> Any:
    if name.startswith("train.environment."):
        return text  # a variable is text: 0.10 and `on` are to stay what they are
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise RamTrainError(f"{source}: {name}: {text!r} is not a value in YAML; put it in quotation marks.") from None


def _check_header(header: Sequence[str], config_schema: dict[str, Any], source: str) -> None:
    if RUN not in header:
        raise RamTrainError(
            f"{source}: no column `run`, the run's id, among {', '.join(map(repr, header))}; columns are separated by "
            "one tab."
        )
    keys = _config_keys({"properties": {name: config_schema["properties"][name] for name in _SECTIONS}}, config_schema)
    if SEED in header and "train.seed" in header:
        raise RamTrainError(f"{source}: seed and train.seed say the same thing twice; give one of them.")
    if SEEDS in header:
        raise RamTrainError(f"{source}: column 'seeds' is of sweeps; a run's own is named 'seed'.")
    for name in header:
        if header.count(name) > 1:
            raise RamTrainError(f"{source}: column {name!r} appears twice.")
        if "." in name:
            if name not in keys and name.rpartition(".")[0] not in [key for key, is_open in keys.items() if is_open]:
                close = difflib.get_close_matches(name, keys, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"those that a run can have are {', '.join(keys)}."
                raise RamTrainError(f"{source}: column {name!r} is no key of the config; {hint}")
        elif name in _OWN_PLACEHOLDERS or not _COLUMN.fullmatch(name):
            own = " and ".join(f"{{{each}}}" for each in _OWN_PLACEHOLDERS)
            raise RamTrainError(
                f"{source}: a column cannot be named {name!r}; a name is letters, digits and _, and stands in "
                f"project.command as {{name}}, where {own} are RamTrain's own; or it is a key of the config, with a "
                "dot."
            )


def _config_keys(part: dict[str, Any], root: dict[str, Any], prefix: str = "") -> dict[str, bool]:
    """Return the config's keys that have a value of their own, and whether names can be added below them."""
    found = {}
    for name, schema in part["properties"].items():
        if schema.get("properties"):
            found |= _config_keys(schema, root, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = isinstance(schema.get("additionalProperties"), dict)
    return found


def _id_of(texts: Mapping[str, str]) -> str:
    """Return a run id made of parameters and their values; what an id cannot hold is told apart by a digest."""
    parts = []
    for name, text in texts.items():
        plain = _NOT_IN_IDS.sub("_", text)
        parts.append(f"{name}={plain}" if plain == text else f"{name}={plain}-{_digest(text)}")
    run = ",".join(parts).lstrip("._=,+-")
    return run if len(run) <= _ID_LENGTH else f"{run[: _ID_LENGTH - 9]}-{_digest(run)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
