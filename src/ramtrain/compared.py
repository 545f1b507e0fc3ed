"""A comparison of two runs in words for people, and as JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from humanfriendly import format_size, format_timespan
from humanfriendly.tables import format_smart_table

from ramtrain.compare import Change, Comparison, Part
from ramtrain.models import NOT_AT_HAND, ModelFile, clause, in_brief
from ramtrain.recorded import Record
from ramtrain.tensors import Difference

_MOST_LINES = 20
_MOST_TENSORS = 10
_MOST_WIDTH = 160


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return all of it for machines; sizes in bytes, times in seconds, what is not there null."""
    differences: dict[str, list[dict[str, Any]]] = {}
    for part in comparison.parts:
        if part.changes:
            differences.setdefault(part.section, []).extend(map(asdict, part.changes))
    return _finite(
        {
            "verdict": comparison.verdict,
            "a": _about(comparison.a),
            "b": _about(comparison.b),
            "model": [{**asdict(file), "same": file.is_same} for file in comparison.model],
            "differences": differences,
            "same": [part.same for part in comparison.parts if not part.changes and not part.unknown],
            "not_known": [unknown for part in comparison.parts for unknown in part.unknown],
            "figures": [asdict(figure) for figure in comparison.figures],
        }
    )


def as_text(comparison: Comparison) -> str:
    """Return a comparison for people: the verdict, what differs, what is the same, what is not known, the figures."""
    lines = [_printable(comparison.verdict), ""]
    for side, record in (("A", comparison.a), ("B", comparison.b)):
        lines.append(_shown(f"{side}: run {record.get('run')}, {record.path}, ended {record.get('ended')}"))
    sections: dict[str, list[str]] = {}
    for part in comparison.parts:
        sections.setdefault(part.section, []).extend(_lines(part))
    for section, said in sections.items():
        if said:
            lines += ["", section, *(f"  {line}" for line in said)]
    if model := [line for file in comparison.model if not file.is_same or file.spoilt for line in _model_lines(file)]:
        lines += ["", "model", *(f"  {line}" for line in model)]
    if same := [part.same for part in comparison.parts if not part.changes and not part.unknown]:
        lines += ["", f"the same: {', '.join(map(_shown, same))}"]
    if unknown := [unknown for part in comparison.parts for unknown in part.unknown]:
        lines += ["", "not known", *(f"  {_shown(line)}" for line in _bounded(unknown))]
    rows = [
        [figure.what, *(_figure(figure.what, value) for value in (figure.a, figure.b))] for figure in comparison.figures
    ]
    return "\n".join([*lines, "", format_smart_table(rows, ["timings and writes", "A", "B"])])


def _line(change: Change) -> str:
    a, b = (_value(change.what, value) for value in (change.a, change.b))
    return f"{_shown(change.what)}: {a} -> {b}"


def _lines(part: Part) -> list[str]:
    """Return what of a part differs; files and packages by what became of them, each kind bounded by itself."""
    if part.section not in ("inputs", "packages"):
        return _bounded(list(map(_line, part.changes)))
    where = "only hashed in" if part.section == "inputs" and part.unknown else "only in"
    changed = [change for change in part.changes if change.a and change.b]
    kinds = {
        "changed": [change.what if part.section == "inputs" else _line(change) for change in changed],
        f"{where} A": [_name(part, change.what, change.a) for change in part.changes if not change.b],
        f"{where} B": [_name(part, change.what, change.b) for change in part.changes if not change.a],
    }
    return [f"{kind}: {_shown(text)}" for kind, texts in kinds.items() for text in _bounded(texts)]


def _name(part: Part, what: str, version: Any) -> str:
    return what if part.section == "inputs" else f"{what} {version}"


def _model_lines(file: ModelFile) -> list[str]:
    name = _shown(file.name if file.a == file.b or not (file.a and file.b) else f"{file.a} -> {file.b}")
    if file.contents is None:
        why = "" if file.why in (None, NOT_AT_HAND) else f" ({_shown(file.why)})"
        return [f"{name}: {clause(file)}{why}"]
    contents = file.contents
    tensors = _bounded(list(map(_tensor_line, contents.changed)), _MOST_TENSORS)
    only = [
        f"only in {side}: {_shown(tensor)}"
        for side, names in (("A", contents.only_a), ("B", contents.only_b))
        for tensor in _bounded(names, _MOST_TENSORS)
    ]
    values = _bounded([_line(Change(value.name, value.a, value.b)) for value in contents.values], _MOST_TENSORS)
    why = [_shown(contents.why)] if contents.why else []
    return [f"{name}: {_printable(in_brief(contents))}", *(f"  {line}" for line in (*why, *tensors, *only, *values))]


def _tensor_line(difference: Difference) -> str:
    form = difference.a if difference.a == difference.b else f"{difference.a} -> {difference.b}"
    if difference.largest is None:
        return f"{_shown(difference.name)}: {form}"
    relative = "" if difference.relative is None else f" (relative {difference.relative:.2g})"
    nans = f", {difference.nans:,} not a number on one side" if difference.nans else ""
    return (
        f"{_shown(difference.name)}: at most {difference.largest:.2g}{relative}, in {difference.differing:,} of "
        f"{difference.values:,} values{nans}, {form}"
    )


def _bounded(lines: Sequence[str], most: int = _MOST_LINES) -> list[str]:
    return list(lines) if len(lines) <= most else [*lines[:most], f"and {len(lines) - most:,} more"]


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return format_size(value, binary=True)
    return _shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _figure(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "not recorded" if value is None else _shown(str(value))
    if name.startswith("timings_s."):
        return format_timespan(value)
    return f"-{format_size(-value, binary=True)}" if value < 0 else format_size(value, binary=True)


def _printable(text: str) -> str:
    """Return a text of a record or model as it can be printed: on one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shown(text: str) -> str:
    """Return it likewise, and not too long."""
    text = _printable(text)
    half = _MOST_WIDTH // 2
    return text if len(text) <= _MOST_WIDTH else f"{text[:half]} ... {text[-half:]}"


def _about(record: Record) -> dict[str, Any]:
    return {"record": str(record.path), "run": record.get("run"), "ended": record.get("ended")}


def _finite(content: Any) -> Any:
    """Return the content with text for what JSON has no number for."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
