"""Pictures of how good the models of a sweep are: the runs in order, and a metric against what was varied."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from humanfriendly.text import pluralize
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ramtrain.drawing import DISK, LOG_FROM_RATIO, REST, STYLE, TRAINER, WIDTH_IN, figures_of, save_svg, write_title

_SEED = "seed"
_MOST_RUNS = 40
_MOST_NAMES = 5
_MOST_PANELS = 16
_MOST_VALUES = 24
_LEVEL_VALUES = 6
_LEVEL_WIDTH = 12
_UPRIGHT_WIDTH = 28
_LABEL_WIDTH = 32
_AXIS_POINTS = 260.0
_BAR_POINTS = 22.0
_NARROWEST_TICKS = 0.12
_PANEL_IN = 3.2
_NONE = "No metric was read of any run"
_NAME_ONE = (
    "The config names where metrics are read under project.metrics, an adapter under metrics; see config/README.md."
)


@dataclass(frozen=True)
class _Ranked:
    """The runs that have a metric, the best first, with their place in the table (`row`); `goal` is min or max."""

    name: str
    goal: str
    runs: pd.DataFrame
    without: list[str]

    @property
    def axis(self) -> str:
        """What stands at an axis of the metric."""
        return f"{self.name}, {'less' if self.goal == 'min' else 'more'} is better"


@dataclass(frozen=True)
class _Parameter:
    """A column of the runs table with more than one value; `numbers` None if any value is no number."""

    name: str
    texts: pd.Series
    numbers: pd.Series | None


@rc_context(STYLE)
def plot_ranking(table: pd.DataFrame, metrics: Sequence[str], path: Path) -> None:
    """Draw the runs by the first of the metrics that any of them has, the best first.

    Args:
        table: the table of the runs, a row each.
        metrics: names of metrics, the one that ranks first.
    """
    ranked = _rank(table, metrics)
    if ranked is None:
        _say_none(_NONE, _NAME_ONE, path)
        return
    shown, more = ranked.runs.head(_MOST_RUNS), len(ranked.runs) - _MOST_RUNS
    names = [_wrapped(run) for run in shown["run"]]
    if more > 0:
        names.append(f"and {more:,} more")
    lines = max(name.count("\n") + 1 for name in names)
    row_in = max(0.3, 0.16 * lines + 0.1)
    longest = max(len(line) for name in names for line in name.split("\n"))

    figure = Figure(figsize=(WIDTH_IN + 0.07 * longest, 1.7 + row_in * len(names)), layout="constrained")
    axes = figure.subplots()
    _draw_runs(axes, shown)
    if more > 0:
        worst = ranked.runs["best"].iloc[-1]
        axes.text(
            1.02, len(shown), f"down to {worst:.6g}", transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    axes.set_yticks(range(len(names)), names, fontsize=10 if lines == 1 else 8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="both")
    _scale(axes.xaxis, shown[["best", "final"]].to_numpy().ravel(), ranked.axis)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, reverse=True)
    write_title(figure, f"The runs by {ranked.name}, the best first", _in_figures(ranked))
    save_svg(figure, path)


@rc_context(STYLE)
def plot_parameters(table: pd.DataFrame, metrics: Sequence[str], path: Path) -> None:
    """Draw the same metric against each parameter that has more than one value; likewise."""
    ranked = _rank(table, metrics)
    if ranked is None:
        _say_none(_NONE, _NAME_ONE, path)
        return
    parameters = _varied(ranked.runs)
    if not parameters:
        _say_none(f"{ranked.name}: nothing to compare", "No parameter has more than one value.", path)
        return
    shown, columns = parameters[:_MOST_PANELS], min(2, len(parameters))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH_IN, 1.1 + _PANEL_IN * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, parameter in zip(grid, shown, strict=False):
        _draw_parameter(axes, parameter, ranked)
        axes.yaxis.set_tick_params(labelleft=True)
    _scale(grid[0].yaxis, ranked.runs["best"].to_numpy(), ranked.axis)
    handles = {}
    for axes in grid[: len(shown)]:
        axes.set_ylabel("\n".join(textwrap.wrap(grid[0].get_ylabel(), _LABEL_WIDTH)))
        drawn, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, drawn, strict=True))
    for axes in grid[len(shown) :]:
        axes.remove()
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=3)
    left_out = len(parameters) - len(shown)
    more = f"; {pluralize(left_out, 'more parameter')} not drawn" if left_out else ""
    write_title(figure, f"{ranked.name} against what was varied", _in_figures(ranked) + more)
    save_svg(figure, path)


def _say_none(title: str, below: str, path: Path) -> None:
    figure = Figure(figsize=(WIDTH_IN, 0.9), layout="constrained")
    write_title(figure, title, below)
    save_svg(figure, path)


def _rank(table: pd.DataFrame, metrics: Sequence[str]) -> _Ranked | None:
    in_table = [
        column[len("metrics.") : -len(".best")] for column in table if re.fullmatch(r"metrics\..+\.best", column)
    ]
    for name in dict.fromkeys([*metrics, *in_table]):
        best = figures_of(table, f"metrics.{name}.best")
        if best.notna().any():
            goals = table.get(f"metrics.{name}.goal", pd.Series(dtype=str)).dropna()
            goal = "min" if goals.empty else goals.iloc[0]
            final = figures_of(table, f"metrics.{name}.final")
            runs = table.assign(best=best, final=final, row=range(len(table)))[best.notna()]
            runs = runs.sort_values("best", ascending=goal == "min", kind="stable").reset_index(drop=True)
            return _Ranked(name, goal, runs, list(table["run"][best.isna()]))
    return None


def _in_figures(ranked: _Ranked) -> str:
    parts = [pluralize(len(ranked.runs), "run")]
    if ranked.without:
        names = ", ".join(ranked.without[:_MOST_NAMES])
        more = f" and {len(ranked.without) - _MOST_NAMES:,} more" if len(ranked.without) > _MOST_NAMES else ""
        parts.append(f"without a value: {names}{more}")
    return "; ".join(parts)


def _varied(runs: pd.DataFrame) -> list[_Parameter]:
    """Return what differs between the runs; the seed only if nothing else does, since it is for repeats."""
    found = []
    for column in runs:
        if not column.startswith("parameters."):
            continue
        texts = runs[column].dropna().astype(str)
        numbers = pd.to_numeric(texts, errors="coerce")
        is_numeric = bool(np.isfinite(numbers).all())
        if (numbers if is_numeric else texts).nunique() > 1:
            found.append(_Parameter(column.removeprefix("parameters."), texts, numbers if is_numeric else None))
    return [parameter for parameter in found if parameter.name != _SEED] or found


def _draw_runs(axes: Axes, runs: pd.DataFrame) -> None:
    y = np.arange(len(runs))
    both = runs["final"].notna()
    axes.hlines(y[both], runs["best"][both], runs["final"][both], color=REST, linewidth=1)
    axes.plot(runs["final"], y, "o", color="white", markeredgecolor=DISK, markersize=7, label="in the end", gid="final")
    axes.plot(runs["best"], y, "o", color=TRAINER, markersize=7, label="at best", gid="best")
    for row, (best, final) in enumerate(zip(runs["best"], runs["final"], strict=True)):
        ended = "no number" if math.isnan(final) else f"{final:.6g}"
        text = f"{best:.6g}" if final == best else f"{best:.6g}, in the end {ended}"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)


def _draw_parameter(axes: Axes, parameter: _Parameter, ranked: _Ranked) -> None:
    best, bar_points = ranked.runs["best"].loc[parameter.texts.index], _BAR_POINTS
    if parameter.numbers is None:
        values = _values_shown(parameter, ranked)
        if (count := parameter.texts.nunique()) > len(values):
            axes.set_title(f"the best {len(values)} of {count:,} values")
        kept = parameter.texts.isin(values)
        best, where = best[kept], parameter.texts[kept].map(values.index)
        bar_points = min(bar_points, _AXIS_POINTS / len(values))
        _name_values(axes, values)
        axes.set_xlabel(parameter.name)
    else:
        where = parameter.numbers
        _scale_numbers(axes, parameter)
    axes.plot(where, best, "o", color=TRAINER, alpha=0.6, markeredgewidth=0, markersize=7, label="a run", gid="run")
    if parameter.name != _SEED:
        medians = best.groupby(where).median()
        if parameter.numbers is not None:
            axes.plot(medians.index, medians, "-", color=REST, linewidth=1.5, zorder=1)
        bars = {"color": "black", "markersize": bar_points, "markeredgewidth": 2}
        axes.plot(medians.index, medians, "_", **bars, label="median", gid="median")
    if 0 in best.index:  # the best of all; the runs are in order
        ring = {"color": "none", "markeredgecolor": DISK, "markeredgewidth": 2, "markersize": 12}
        axes.plot(where[0], best[0], "o", **ring, label="the best run", gid="winner")
    axes.set_xlabel("\n".join(textwrap.wrap(axes.get_xlabel(), _LABEL_WIDTH * 3 // 2)))
    axes.grid(True, axis="y")


def _values_shown(parameter: _Parameter, ranked: _Ranked) -> list[str]:
    """Return the values of a parameter in the order of the table; of too many, those with the best medians."""
    values = list(parameter.texts.loc[ranked.runs["row"].loc[parameter.texts.index].sort_values().index].unique())
    if len(values) <= _MOST_VALUES:
        return values
    medians = ranked.runs["best"].groupby(parameter.texts).median()
    return list(medians.sort_values(ascending=ranked.goal == "min", kind="stable").index[:_MOST_VALUES])


def _name_values(axes: Axes, values: Sequence[str]) -> None:
    """Write the values of a parameter that are no numbers below its axis, as long as there is room for it."""
    if len(values) <= _LEVEL_VALUES and all(len(value) <= 3 * _LEVEL_WIDTH for value in values):
        axes.set_xticks(range(len(values)), ["\n".join(textwrap.wrap(value, _LEVEL_WIDTH)) for value in values])
    else:
        axes.set_xticks(range(len(values)), _shortened(values), rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(values) - 0.4)


def _scale_numbers(axes: Axes, parameter: _Parameter) -> None:
    """Scale the axis of a numeric parameter, with ticks at its values, as they were written, if there is room."""
    assert parameter.numbers is not None
    values = parameter.numbers.drop_duplicates().sort_values()
    positive = values[values > 0]
    wide = len(positive) > 1 and positive.max() / positive.min() >= LOG_FROM_RATIO
    if values.min() > 0:
        _scale(axes.xaxis, values.to_numpy(), parameter.name)
    elif values.min() == 0 and wide:
        axes.set_xscale("symlog", linthresh=positive.min())
        axes.set_xlabel(f"{parameter.name}, logarithmic from {positive.min():g} on")
        axes.set_xlim(-0.2 * positive.min(), positive.max() * (positive.max() / positive.min()) ** 0.1)
    else:
        _scale(axes.xaxis, values.to_numpy(), parameter.name)
    at = axes.transAxes.inverted().transform(axes.transData.transform([(value, 0) for value in values]))[:, 0]
    labels = [parameter.texts[index].strip() for index in values.index]
    room = np.diff(at).min() >= _NARROWEST_TICKS if len(at) > 1 else True
    if room and max(map(len, labels)) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(list(values)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: labels[place] if place is not None else ""))
        axes.xaxis.set_minor_locator(NullLocator())


def _scale(axis: Axis, values: np.ndarray, label: str) -> None:
    """Scale an axis to figures that need not begin at zero, by powers of ten where they span much."""
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low >= LOG_FROM_RATIO:
        ratio = high / low
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if ratio < 1000 else (1,)))
        axis.set_minor_locator(NullLocator())
        nothing, margins = 0.0, (low / ratio**0.06, high * ratio**0.06)
        label += ", logarithmic"
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axis.set_major_locator(MaxNLocator(6))
        nothing, margins = 1e-9 * margin, (low - margin, high + margin)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value if abs(value) > nothing else 0:.6g}"))
    axis.axes.set(**{f"{axis.axis_name}lim": margins})
    axis.set_label_text(label)


def _wrapped(name: str) -> str:
    """Return a run's id in lines, which end at its commas where they can."""
    lines = textwrap.wrap(name.replace(",", ", "), 50, break_on_hyphens=False)
    return "\n".join(line.replace(", ", ",") for line in lines)


def _shortened(values: Sequence[str]) -> list[str]:
    """Return values short enough for an axis: of long ones without most of what all begin and end with, and cut."""
    if max(map(len, values)) <= _UPRIGHT_WIDTH:
        return list(values)
    before = _alike(values)
    after = _alike([value[before:][::-1] for value in values])
    before -= min(before, max(0, _UPRIGHT_WIDTH - 2 - max(len(value) - before - after for value in values)))
    dots = "…" * bool(before), "…" * bool(after)
    return [_cut(dots[0] + value[before : len(value) - after] + dots[1]) for value in values]


def _alike(values: Sequence[str]) -> int:
    """Return how many characters all values begin with."""
    first, last = min(values), max(values)
    return next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def _cut(value: str) -> str:
    half = _UPRIGHT_WIDTH // 2
    return value if len(value) <= _UPRIGHT_WIDTH else f"{value[:half]}…{value[1 - half :]}"
