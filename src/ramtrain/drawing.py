"""What all pictures have in common: style, colours, titles, and how they are written."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure, FigureBase

STYLE = {
    "svg.fonttype": "none",  # text that can be selected, in whatever font of the list the reader has
    "svg.hashsalt": "ramtrain",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 9,
}

# Okabe and Ito's colours, which colour-blind readers can tell apart; one thing has one colour in all pictures.
RAM = "#56b4e9"
DISK = "#d55e00"
TRAINER = "#0072b2"
DRAIN = "#e69f00"
EXPORT = "#009e73"
MEMORY = "#cc79a7"
STAGE = "#f0e442"
DEVICE = "#000000"
REST = "#999999"

WIDTH_IN = 11.0
LOG_FROM_RATIO = 20.0


def figures_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column of figures, empty where the table has none."""
    if name not in table:
        return pd.Series(math.nan, index=table.index)
    return pd.to_numeric(table[name], errors="coerce")


def write_title(figure: FigureBase, title: str, below: str) -> None:
    """Write a title over a figure, and below it, a line or more of what it shows."""
    lines = [*textwrap.wrap(title, 95), *textwrap.wrap(below, 120)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure; the same one gives the same file."""
    figure.savefig(path, format="svg", metadata={"Date": None})
