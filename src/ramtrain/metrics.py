"""How good a trained model is: final and best values of the metrics that an adapter or the config names, read in RAM.

They are read from what the training wrote, a file, TensorBoard's event files or the trainer's output, before the RAM is
released. A metric that cannot be read is null, and a warning says why: it is never worth a model that is at home.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ramtrain.errors import RamTrainError
from ramtrain.plain import without_colours
from ramtrain.view import Escapes, View, check_glob

log = logging.getLogger(__name__)

_KINDS = ("file", "events", "log")
_TABLES = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".json", ".jsonl", *_TABLES)
_STEPS = ("step", "global_step", "epoch")
_MOST_JSON_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16
# A regular expression may need the square of a line's length, or worse: then the time limit ends it.
_LONGEST_LOG_LINE_BYTES = 4096
_LONGEST_LINE_BYTES = 1 << 20
_LONGEST_S = 300.0
_MOST_NAMES = 10


@dataclass(frozen=True)
class MetricSource:
    """Where a metric is read: in files that the globs `where` name (`kind` file), in event files (events), or by the
    regular expression `where` in the trainer's output (log).

    `key` is a dotted key or a column of the file, or a tag of the event files; `goal` is min or max. `named_in` says
    where it is configured, for messages; `step` is a regular expression for the step in the output.
    """

    name: str
    kind: str
    where: str
    key: str | None
    goal: str
    named_in: str
    step: str | None

    def __str__(self) -> str:
        return self.where if self.key is None else f"{self.where}: {self.key}"


@dataclass(frozen=True)
class Metric:
    """The last and the best value of a metric, and the step of the best; None where there is none that is finite.

    `source` says where it was read, or should have been.
    """

    final: float | None
    best: float | None
    goal: str
    step_of_best: int | None
    source: str


def read_sources(
    metrics: Mapping[str, Mapping[str, str]], where: str, step: re.Pattern[str] | None
) -> tuple[MetricSource, ...]:
    """Return where metrics are read, from the part `metrics` of an adapter or a config.

    Args:
        where: what part it is, for the messages.
        step: what finds the step in the trainer's output, if the adapter knows.

    Raises:
        RamTrainError: not exactly one place, a file of another kind, a bad glob or regular expression.
    """
    return tuple(
        _read_source(name, entry, f"{where}.{name}", step.pattern if step else None) for name, entry in metrics.items()
    )


def _read_source(name: str, entry: Mapping[str, str], named_in: str, step: str | None) -> MetricSource:
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "nothing"
        raise RamTrainError(f"{named_in}: {given} where exactly one of file, events and log is expected.")
    (kind,) = kinds
    where, key = entry[kind], entry.get("key")
    if kind == "log":
        if key is not None:
            raise RamTrainError(f"{named_in}.key: is for file and events; the group of the expression is the value.")
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise RamTrainError(f"{named_in}.log: {where!r} is no regular expression: {error}.") from None
        if pattern.groups != 1:
            raise RamTrainError(f"{named_in}.log: {where!r} needs one group in parentheses, around the value.")
    else:
        check_glob(f"{named_in}.{kind}", where)
        if kind == "file" and Path(where).suffix not in _SUFFIXES:
            raise RamTrainError(f"{named_in}.file: {where!r} has to end in one of {', '.join(_SUFFIXES)}.")
        if key is None:
            what = "the tag" if kind == "events" else "the dotted key in JSON, or the column"
            raise RamTrainError(f"{named_in}.key: missing; give {what} of the metric.")
    return MetricSource(name, kind, where, key, entry.get("goal", "min"), named_in, step if kind == "log" else None)


def choose_sources(own: Iterable[MetricSource], adapter: Iterable[MetricSource]) -> tuple[MetricSource, ...]:
    """Return the config's own sources and then the adapter's, but for those of the same name."""
    chosen = {source.name: source for source in own}
    return (*chosen.values(), *(source for source in adapter if source.name not in chosen))


def read_metrics(
    run: str, sources: Iterable[MetricSource], view: View, original: Path, output: Path
) -> dict[str, Metric]:
    """Return each metric by its name, read from what the training wrote; one that is not to be found is told of.

    Args:
        view: the project as the trainer sees it.
        original: the project's own folder; what is there unchanged is of no training of ours.
        output: the trainer's output.
    """
    found = {}
    for source in sources:
        values = _Values(source.goal)
        name, why = str(source), ""
        try:
            with _time_limit(_LONGEST_S):
                name = _collect(source, view, original, output, values)
        except (OSError, ValueError, csv.Error, re.error, RecursionError, RamTrainError) as error:
            values, why = _Values(source.goal), str(error)
        metric = values.metric(name)
        if why := why or values.trouble():
            log.warning(
                "run %s: metric %s (%s): %s. In the record it is null",
                run,
                source.name,
                source.named_in,
                why.rstrip("."),
            )
        if metric.best is not None:
            log.info("run %s: %s", run, in_words(source.name, metric))
        found[source.name] = metric
    return found


def in_words(name: str, metric: Metric) -> str:
    """Return a metric in a few words, its best value first."""
    step = "" if metric.step_of_best is None else f", at step {metric.step_of_best}"
    final = "no number" if metric.final is None else f"{metric.final:.6g}"
    return f"{name}: {metric.best:.6g} at best{step}; {final} in the end"


class _Values:
    """The values of a metric as they come, of which the last and the best are kept."""

    def __init__(self, goal: str) -> None:
        self.goal = goal
        self.final: float | None = None
        self.best: float | None = None
        self.step_of_best: int | None = None
        self.odd: object = None
        self.why = ""

    def add(self, value: object, step: object) -> None:
        """Take in a value; what is no number does not count."""
        number = _number(value)
        if number is None:
            self.odd = value
            return
        self.final = number
        if not math.isfinite(number):
            return
        if self.best is None or (number < self.best if self.goal == "min" else number > self.best):
            self.best, self.step_of_best = number, _whole(step)

    def metric(self, source: str) -> Metric:
        """Return what came of them."""
        final = self.final if self.final is not None and math.isfinite(self.final) else None
        return Metric(final, self.best, self.goal, self.step_of_best, source)

    def trouble(self) -> str:
        """Return what is wrong with them; nothing if the last one is a finite number."""
        if self.final is None:
            return self.why if self.odd is None else f"{str(self.odd)[:80]!r} is no number"
        return "" if math.isfinite(self.final) else f"its last value is {self.final}"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _collect(source: MetricSource, view: View, original: Path, output: Path, values: _Values) -> str:
    """Add all values of a metric, oldest first; return where they were read.

    Raises:
        RamTrainError, OSError, ValueError, csv.Error, RecursionError: they cannot be read; the text says why.
    """
    if source.kind == "log":
        values.why = "nothing in the trainer's output fits its expression " + source.where
        for value, step in _in_output(output, source) if output.exists() else ():
            values.add(value, step)
        return f"{output.name}: {source.where}"
    assert source.key is not None  # else it was refused
    files = _written_files(source, view, original)
    known: dict[str, None] = {}
    for name, path in files:
        try:
            for value, step in _read(source, path, known):
                values.add(value, step)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            raise RamTrainError(f"{name}: {error}") from error
    newest, _ = files[-1]
    there = ", ".join(list(known)[:_MOST_NAMES]) + (", ..." if len(known) > _MOST_NAMES else "")
    values.why = f"{newest} has no {source.key!r}; it has {there or 'nothing'}"
    older = f" and {len(files) - 1} older" if len(files) > 1 else ""
    return f"{newest}{older}: {source.key}"


def _written_files(source: MetricSource, view: View, original: Path) -> list[tuple[str, Path]]:
    """Return the files that the training wrote and the globs name, by name, the oldest first.

    Raises:
        RamTrainError: there are none.
    """
    paths, found = view.glob([source.where]), []
    for path in paths:
        try:
            real = view.real(path)
            if real.is_file() and view.is_of_training(real, original):
                found.append((real.stat().st_mtime_ns, path, real))
        except (Escapes, FileNotFoundError) as error:
            log.warning("metric %s: %s is left out: %s", source.name, path, error)
    if not found:
        unchanged = ", or it was there before" if paths else ""
        raise RamTrainError(f"the training wrote no file that {source.where!r} names{unchanged}")
    return [(path, real) for _, path, real in sorted(found)]


def _read(source: MetricSource, path: Path, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    """Yield (value, step) of each entry of a file; the names that are there are added to `known`."""
    key = source.key or ""
    if source.kind == "events":
        yield from _in_events(path, key, known)
    elif Path(source.where).suffix == ".json":
        yield from _in_json(path, key, known)
    elif Path(source.where).suffix == ".jsonl":
        yield from _in_json_lines(path, key, known)
    else:
        yield from _in_table(path, key, _TABLES[Path(source.where).suffix], known)


def _in_json(path: Path, key: str, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError(f"is larger than {_MOST_JSON_BYTES >> 20} MiB; JSON lines (.jsonl) or a table may be")
    yield from _at(json.loads(path.read_text(encoding="utf-8-sig")), key.split("."), None, known)


def _in_json_lines(path: Path, key: str, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    broken = 0
    for line in _whole_lines(path):
        try:
            content = json.loads(line)
        except ValueError:
            broken += 1
            continue
        yield from _at(content, key.split("."), None, known)
    if broken:
        log.warning("%s: %d of its lines are no JSON, and are left out", path, broken)


def _at(node: object, keys: list[str], step: object, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    """Yield what lies at a dotted key, in each entry of a list on the way, with the step that stands beside it."""
    if isinstance(node, list):
        for entry in node:
            yield from _at(entry, keys, step, known)
    elif not keys:
        yield node, step
    elif isinstance(node, dict):
        if len(known) <= _MOST_NAMES:
            known.update(dict.fromkeys(node))
        step = next((node[name] for name in _STEPS if name in node), step)
        for length in range(len(keys), 0, -1):  # a key may itself have dots
            if (name := ".".join(keys[:length])) in node:
                yield from _at(node[name], keys[length:], step, known)
                return


def _in_table(path: Path, key: str, delimiter: str, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    rows = csv.reader(_whole_lines(path), delimiter=delimiter)
    header = [cell.strip() for cell in next(rows, [])]
    known.update(dict.fromkeys(header))
    if key not in header:
        return
    column = header.index(key)
    step_column = next((header.index(name) for name in _STEPS if name in header), None)
    for row in rows:
        # A trainer that resumes may write the header again; a column that a row has nothing for is left empty.
        if column < len(row) and (value := row[column].strip()) not in ("", key):
            yield value, row[step_column] if step_column is not None and step_column < len(row) else None


def _in_events(path: Path, tag: str, known: dict[str, None]) -> Iterator[tuple[object, object]]:
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray

        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                known[value.tag] = None
                if value.tag == tag:
                    array = make_ndarray(value.tensor)
                    yield array.item() if array.size == 1 else None, event.step
    except ImportError:
        raise RamTrainError(
            "event files are read with the package tensorboard, which RamTrain's Python does not have; type "
            f"`{shlex.quote(sys.executable)} -m pip install tensorboard`"
        ) from None
    except OSError:
        raise
    except Exception as error:  # of protobuf, numpy and TensorBoard, which share no other base
        raise ValueError(f"cannot be read as an event file: {error}") from error


def _in_output(path: Path, source: MetricSource) -> Iterator[tuple[object, object]]:
    pattern, step_pattern = re.compile(source.where), source.step and re.compile(source.step)
    step = None
    for line in _lines(path, _LONGEST_LOG_LINE_BYTES):
        plain = without_colours(line.decode(errors="replace"))
        if step_pattern and (said := step_pattern.search(plain)):
            step = said.group(1)
        if found := pattern.search(plain):
            yield found.group(1), step


def _whole_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text.

    Raises:
        ValueError: one is too long for a table.
    """
    for number, line in enumerate(_lines(path, _LONGEST_LINE_BYTES + 1), 1):
        if len(line) > _LONGEST_LINE_BYTES:
            raise ValueError(f"line {number} is longer than {_LONGEST_LINE_BYTES >> 20} MiB")
        if text := line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace"):
            yield text


def _lines(path: Path, longest_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a file, also those that a carriage return ends, each cut after `longest_bytes`."""
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk.replace(b"\r", b"\n")).split(b"\n")
            yield from (line[:longest_bytes] for line in lines)
            rest = rest[:longest_bytes]
    if rest:
        yield rest


@contextlib.contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; a regular expression too: CPython's _sre.c looks for signals."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"to read it takes longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
