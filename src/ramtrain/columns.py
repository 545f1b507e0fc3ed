"""Lines of text whose parts stand one below the other."""

from __future__ import annotations

from collections.abc import Sequence

# What is longer pushes only its own line to the right.
_WIDEST = 44


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its cells in columns; the last one, which may be long, is not filled up."""
    count = max(map(len, rows), default=0) - 1
    cells = [[*row, *[""] * (count + 1 - len(row))] for row in rows]
    widths = [max((len(row[i]) for row in cells if len(row[i]) <= _WIDEST), default=0) for i in range(count)]
    return [
        "  ".join(["", *(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in cells
    ]
