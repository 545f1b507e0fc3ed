"""Pictures of a run, of a sweep of runs and of the benchmark: tables in, SVG files out."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from humanfriendly import format_size
from humanfriendly.text import concatenate, pluralize
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from ramtrain.drawing import (
    DEVICE,
    DISK,
    DRAIN,
    EXPORT,
    LOG_FROM_RATIO,
    MEMORY,
    RAM,
    REST,
    STAGE,
    STYLE,
    TRAINER,
    WIDTH_IN,
    figures_of,
    save_svg,
    write_title,
)
from ramtrain.errors import RamTrainError
from ramtrain.summary import NOT_CONFIGURED

_STEPS = {"mount": RAM, "stage": STAGE, "train": TRAINER, "export": EXPORT, "unmount": MEMORY}

_SERIES = [
    "t_s",
    "ram_bytes",
    "memory_bytes",
    "logical_bytes",
    "disk_bytes",
    "drain_bytes",
    "device_bytes",
    "swap_bytes",
    "checkpoints",
    "drains",
]
# Little is spilled in most sweeps: it is in the legend only where it is to be seen.
_MUCH_BYTES = 1 << 20
_NOT_EVERYWHERE = ["memory_bytes", "device_bytes", "swap_bytes"]
_BENCHMARK = ["what", "place", "unit", "tool", "size_bytes", "n", "median", "min", "max"]
_FIGURES = ["size_bytes", "n", "median", "min", "max"]
_UNITS = {
    "B/s": "size per second, more is better",
    "B": "size, less is better",
    "s": "time, less is better",
}

_TIMES = [("ms", 1e-3, 1), ("s", 1, 300), ("min", 60, 4 * 3600), ("h", 3600, 4 * 86400), ("days", 86400, math.inf)]

_POINTS = 1000
_MARKS = 700


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's record."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_series(path: Path) -> pd.DataFrame | None:
    """Read what was sampled while training, `results/<run>/series.tsv`; None where there is no such file.

    Raises:
        RamTrainError: the file is not what a training writes.
    """
    if not path.exists():
        return None
    series = _read_table(path, _SERIES, _SERIES)[_SERIES]
    if not np.isfinite(series.drop(columns=_NOT_EVERYWHERE)).all(axis=None):
        raise RamTrainError(_broken(path, "a figure is missing"))
    return series


def read_summary(path: Path) -> pd.DataFrame:
    """Read the table of the runs, `results/summary.tsv`, less those that are no longer configured.

    Raises:
        RamTrainError: it is no such table.
    """
    table = _read_table(path, ["run", "status", "timings_s.total"], ["timings_s.total"], csv.QUOTE_MINIMAL)
    return table[table["status"] != NOT_CONFIGURED].reset_index(drop=True)


def read_benchmark(path: Path) -> pd.DataFrame:
    """Read what the benchmark measured, `results/benchmark_io.tsv`.

    Raises:
        RamTrainError: it is no such table.
    """
    table = _read_table(path, _BENCHMARK, _FIGURES)
    table = table[table["median"].notna()]
    if table.empty:
        raise RamTrainError(_broken(path, "nothing was measured"))
    return table


@rc_context(STYLE)
def plot_timeline(record: Mapping[str, Any], series: pd.DataFrame | None, path: Path) -> None:
    """Draw what a training held in RAM and wrote, over its time; without samples, the totals of its record."""
    sampled, series = series is not None, _with_totals(record, series)
    panels: list[tuple[float, Callable[[Axes], None]]] = [(2.0, lambda axes: _draw_ram(axes, record, points))]
    if series["checkpoints"].max() > 0:
        panels.append((0.6, lambda axes: _draw_marks(axes, series)))
    if series["logical_bytes"].max() > 0:
        panels.append((1.8, lambda axes: _draw_given(axes, points)))
    panels.append((1.8, lambda axes: _draw_written(axes, record, points)))
    if series["memory_bytes"].notna().any():
        panels.append((1.5, lambda axes: _draw_memory(axes, record, points)))
    points = _thinned(series)

    heights_in = [height for height, _ in panels]
    figure = Figure(figsize=(WIDTH_IN, 1.3 + sum(heights_in)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights_in)[:, 0]
    for axes, (_, draw) in zip(all_axes, panels, strict=True):
        axes.grid(True, axis="both")
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.04), borderaxespad=0)
    end_s = max(series["t_s"].max(), record["timings_s"]["train"])
    _scale_time(all_axes[-1].xaxis, end_s, "time since the training began")
    all_axes[-1].set_xlim(-0.01 * end_s, 1.01 * (end_s or 1.0))
    write_title(figure, f"run {record['run']}: time line of the training", _of_training(record, series, sampled))
    save_svg(figure, path)


@rc_context(STYLE)
def plot_timings(record: Mapping[str, Any], path: Path) -> None:
    """Draw where a run's time went; what is not the training again by itself, since it is short."""
    timings = record["timings_s"]
    rest_s = max(0.0, timings["total"] - sum(timings[step] for step in _STEPS))
    steps = {**{step: (timings[step], colour) for step, colour in _STEPS.items()}, "the rest": (rest_s, REST)}
    others = {step: took for step, took in steps.items() if step != "train"}
    bars = [("the whole run", steps)]
    if sum(took_s for took_s, _ in others.values()) > 0:
        bars.append(("all but the training", others))

    figure = Figure(figsize=(WIDTH_IN, 1.0 + 1.7 * len(bars)), layout="constrained")
    for axes, (title, parts) in zip(figure.subplots(len(bars), 1, squeeze=False)[:, 0], bars, strict=True):
        _draw_parts(axes, parts)
        axes.set_title(title)
    labels = [
        f"{step}: {_duration(took_s)} ({_percent(took_s, timings['total'])})" for step, (took_s, _) in steps.items()
    ]
    patches = [Patch(color=colour) for _, colour in steps.values()]
    figure.legend(patches, labels, loc="outside right upper")
    write_title(figure, f"run {record['run']}: where the time went", f"{_duration(timings['total'])} in all")
    save_svg(figure, path)


@rc_context(STYLE)
def plot_sweep(table: pd.DataFrame, path: Path) -> None:
    """Draw what each run wrote to the disk and how long it took, beside the same without a RAM disk where measured."""
    names = ["\n".join(textwrap.wrap(run, 50)) for run in table["run"]]
    baseline_bytes = figures_of(table, "writes.baseline.device_bytes")
    baseline_s = figures_of(table, "writes.baseline.wall_s")
    measured = baseline_bytes.notna() | baseline_s.notna()
    compared = measured.any()
    lines = max(name.count("\n") + 1 for name in names)
    row_in = max(0.42 if compared else 0.3, 0.15 * lines + 0.1)
    longest = max(len(line) for name in names for line in name.split("\n"))

    figure = Figure(figsize=(WIDTH_IN + 0.07 * longest, 1.9 + row_in * len(names)), layout="constrained")
    writes, times = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _draw_sweep_writes(writes, table, baseline_bytes, measured)
    _draw_sweep_times(times, table, baseline_s, compared)
    writes.set_yticks(range(len(names)), names, fontsize=10 if lines == 1 else 8)
    writes.set_ylim(len(names) - 0.4, -0.6)
    for axes in (writes, times):
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        handles = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: isinstance(handle, Line2D))
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1, borderaxespad=0.3
        )
    beside = f"{measured.sum()} of them" if compared else "none"
    figures = f"{pluralize(len(names), 'run')}, {beside} measured without a RAM disk as well"
    write_title(figure, "What the runs wrote to the disk, and how long they took", figures)
    save_svg(figure, path)


@rc_context(STYLE)
def plot_benchmark(table: pd.DataFrame, path: Path) -> None:
    """Draw the disk beside RAM disks, one panel for each measure; whole runs below."""
    owner = table["what"].str.extract(r"^run (\S+): ")[0].fillna("")
    sections = [
        (f"run {run}, whole, with and without a RAM disk" if run else "the places by themselves", rows)
        for run, rows in table.groupby(owner, sort=False)
    ]
    columns = 2
    counts = [math.ceil(rows.groupby(["what", "unit"]).ngroups / columns) for _, rows in sections]
    heights_in = [0.4 + 1.95 * count for count in counts]
    figure = Figure(figsize=(WIDTH_IN + 1, 0.8 + sum(heights_in)), layout="constrained")
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights_in)[:, 0]
    for part, (title, rows), count in zip(parts, sections, counts, strict=True):
        part.suptitle("\n".join(textwrap.wrap(title, 110)), x=0.01, ha="left", fontsize=11)
        grid = part.subplots(count, columns, squeeze=False).ravel()
        measures = list(rows.groupby(["what", "unit"], sort=False))
        for axes, ((what, unit), measure) in zip(grid, measures, strict=False):
            _draw_measure(axes, what.split(": ", 1)[-1] if what.startswith("run ") else what, unit, measure)
        for axes in grid[len(measures) :]:
            axes.remove()
    write_title(figure, "Disk and RAM disks of this machine", "dots: medians; lines: from the smallest to the largest")
    save_svg(figure, path)


def _read_table(
    path: Path, needed: Sequence[str], numbers: Sequence[str], quoting: int = csv.QUOTE_NONE
) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=[""], quoting=quoting)
        missing = [name for name in needed if name not in table.columns]
        if missing:
            raise RamTrainError(_broken(path, f"it has no column {concatenate(missing)}"))
        table = table.astype(dict.fromkeys(numbers, float))
    except (ValueError, UnicodeDecodeError) as error:
        raise RamTrainError(_broken(path, str(error))) from error
    if table.empty:
        raise RamTrainError(_broken(path, "it has no rows"))
    return table


def _broken(path: Path, why: str) -> str:
    why = " ".join(why.split()).rstrip(".")
    return f"{path}: nothing can be drawn from it: {why}. Delete it and call Snakemake again."


def _with_totals(record: Mapping[str, Any], series: pd.DataFrame | None) -> pd.DataFrame:
    """Return the samples, and after them what the record says of the training's end."""
    writes, ended_s = record["writes"], record["timings_s"]["train"]
    totals = {
        "t_s": ended_s if series is None else max(ended_s, series["t_s"].max()),
        "logical_bytes": writes["trainer"]["logical_bytes"],
        "disk_bytes": writes["trainer"]["disk_bytes"],
        "drain_bytes": (writes["drain"] or {}).get("disk_bytes"),
    }
    last = pd.DataFrame([totals], columns=_SERIES, dtype=float)
    return last if series is None else pd.concat([series, last], ignore_index=True)


def _thinned(series: pd.DataFrame) -> pd.DataFrame:
    """Return no more rows than a picture can show: of neighbours the one in which the RAM disk was fullest."""
    if len(series) <= 2 * _POINTS:
        return series
    groups = np.arange(len(series)) * _POINTS // len(series)
    kept = series["ram_bytes"].groupby(groups).idxmax()
    return series.loc[sorted({0, *kept, *series.index[-2:]})]


def _rises_s(series: pd.DataFrame, name: str) -> np.ndarray:
    """Return when a count rose, in seconds; of rises too close to be told apart in the picture, the first."""
    rose = series[name].diff().fillna(series[name]) > 0
    times_s = series["t_s"][rose].to_numpy()
    _, first = np.unique(np.round(times_s / (series["t_s"].max() or 1.0) * _MARKS), return_index=True)
    return times_s[first]


def _of_training(record: Mapping[str, Any], series: pd.DataFrame, sampled: bool) -> str:
    ramdisk = record["ramdisk"]
    parts = [
        f"{ramdisk['backend']} of {_size(ramdisk['size_bytes'])}",
        f"trained for {_duration(record['timings_s']['train'])}",
    ]
    if sampled:
        complete = pluralize(_last(series, "checkpoints"), "complete checkpoint")
        parts.append(f"{complete}, {_last(series, 'drains')} brought home")
    else:
        parts.append("no samples, only the totals of its record")
    return "; ".join(parts)


def _last(series: pd.DataFrame, name: str) -> int:
    return int(series[name].dropna().iloc[-1])


def _draw_ram(axes: Axes, record: Mapping[str, Any], series: pd.DataFrame) -> None:
    size_bytes = record["ramdisk"]["size_bytes"]
    peak_bytes = max(record["ramdisk"]["peak_bytes"], series["ram_bytes"].fillna(0).max())
    if series["ram_bytes"].notna().any():
        axes.fill_between(series["t_s"], series["ram_bytes"], color=RAM, alpha=0.4, linewidth=0)
        _line(axes, series, "ram_bytes", RAM, "held, in the end", gid="ram")
    axes.axhline(peak_bytes, color=RAM, linestyle=":", label=f"at most: {_size(peak_bytes)}")
    top_bytes = peak_bytes * 1.3
    if size_bytes <= 12 * peak_bytes:
        grown = _actions(record, "grow")
        seconds = [0.0, *(entry["t_s"] for entry in grown), record["timings_s"]["train"]]
        steps_bytes = [entry["bytes"] for entry in grown]
        sizes = np.cumsum([size_bytes - sum(steps_bytes), *steps_bytes, 0])
        label = f"its size{', in the end' if grown else ''}: {_size(size_bytes)}"
        axes.step(seconds, sizes, where="post", color=REST, linestyle="--", label=label, gid="size")
        top_bytes = max(top_bytes, size_bytes)
    else:
        axes.plot([], [], color=REST, linestyle="--", label=f"its size: {_size(size_bytes)},\nfar above the picture")
    pauses = _actions(record, "go on")
    for number, entry in enumerate(pauses):
        label = f"trainer stopped: {_duration(record['guard']['paused_s'])}" if number == 0 else None
        axes.axvspan(entry["t_s"] - entry["took_s"], entry["t_s"], color=DISK, alpha=0.3, linewidth=0.5, label=label)
    _scale_size(axes.yaxis, top_bytes, "RAM disk")


def _actions(record: Mapping[str, Any], action: str) -> list[dict[str, Any]]:
    """Return what the guard did of one kind; in records of older versions there is none."""
    return [entry for entry in record.get("guard", {}).get("actions", []) if entry["action"] == action]


def _draw_marks(axes: Axes, series: pd.DataFrame) -> None:
    rows = [("drains", DRAIN, "brought home"), ("checkpoints", TRAINER, "complete")]
    for y, (name, colour, _) in enumerate(rows):
        times_s = _rises_s(series, name)
        axes.plot(times_s, np.full(len(times_s), y), "|", color=colour, markersize=11, markeredgewidth=2, gid=name)
    axes.set_yticks(range(len(rows)), [f"{_last(series, name)} {label}" for name, _, label in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(-0.6, 1.6)
    axes.set_ylabel("check-\npoints")


def _draw_given(axes: Axes, series: pd.DataFrame) -> None:
    axes.fill_between(series["t_s"], series["logical_bytes"], color=TRAINER, alpha=0.15, linewidth=0)
    _line(axes, series, "logical_bytes", TRAINER, "by the trainer", gid="logical")
    _scale_size(axes.yaxis, series["logical_bytes"].max(), "given to\nwrite calls")


def _draw_written(axes: Axes, record: Mapping[str, Any], series: pd.DataFrame) -> None:
    if series["device_bytes"].notna().any():
        _line(axes, series, "device_bytes", DEVICE, "the whole device,\nall processes", gid="device", linestyle="--")
    if series["drain_bytes"].notna().any():
        _line(axes, series, "drain_bytes", DRAIN, "durable checkpoints", gid="drain")
    _line(axes, series, "disk_bytes", TRAINER, "by the trainer", gid="disk")
    if spilled := _actions(record, "spill"):
        seconds = [0.0, *(entry["t_s"] for entry in spilled), record["timings_s"]["train"]]
        totals = np.cumsum([0, *(entry["bytes"] for entry in spilled), 0])
        axes.step(seconds, totals, where="post", color=MEMORY, label=f"spilled: {_size(totals[-1])}", gid="spilled")
    top_bytes = series[["device_bytes", "drain_bytes", "disk_bytes"]].max(axis=None, skipna=True)
    top_bytes = max(top_bytes, sum(entry["bytes"] for entry in spilled))
    _scale_size(axes.yaxis, top_bytes, "written\nto the disk")


def _draw_memory(axes: Axes, record: Mapping[str, Any], series: pd.DataFrame) -> None:
    memory_bytes = record["environment"]["memory_bytes"]
    _line(axes, series, "memory_bytes", MEMORY, "in use", gid="memory")
    if series["swap_bytes"].max() > 0:
        _line(axes, series, "swap_bytes", EXPORT, "swap", gid="swap")
    axes.axhline(memory_bytes, color=REST, linestyle="--", label=f"there is: {_size(memory_bytes)}")
    _scale_size(axes.yaxis, max(memory_bytes, series["memory_bytes"].max()), "memory of\nthe machine")


def _line(axes: Axes, series: pd.DataFrame, name: str, colour: str, label: str, gid: str, linestyle: str = "-") -> None:
    """Draw a column in bytes; its last figure stands in the legend."""
    axes.plot(
        series["t_s"],
        series[name].clip(lower=0),
        color=colour,
        linestyle=linestyle,
        marker="o" if len(series) < 4 else "",
        clip_on=False,
        label=f"{label}: {_size(_last(series, name))}",
        gid=gid,
    )


def _draw_parts(axes: Axes, parts: Mapping[str, tuple[float, str]]) -> None:
    whole_s = sum(took_s for took_s, _ in parts.values())
    left_s = 0.0
    for step, (took_s, colour) in parts.items():
        axes.barh(0, took_s, left=left_s, color=colour, edgecolor="white", linewidth=0.5)
        if took_s > 0.1 * whole_s:
            ink = "white" if colour == TRAINER else "black"
            text = f"{step}\n{_duration(took_s)}"
            axes.text(left_s + took_s / 2, 0, text, ha="center", va="center", color=ink)
        left_s += took_s
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    _scale_time(axes.xaxis, whole_s, "time")
    if whole_s:
        axes.set_xlim(0, whole_s)


def _bars(rows: int, compared: bool) -> tuple[np.ndarray, float, float]:
    """Return where rows of bars lie, how high a bar is, and how far from its row's middle."""
    return np.arange(rows), *((0.36, 0.18) if compared else (0.6, 0.0))


def _draw_sweep_writes(axes: Axes, table: pd.DataFrame, baseline_bytes: pd.Series, measured: pd.Series) -> None:
    y, height, shift = _bars(len(table), measured.any())
    left = np.zeros(len(table))
    parts = [
        ("writes.trainer.disk_bytes", TRAINER, "trainer"),
        ("writes.drain.disk_bytes", DRAIN, "durable checkpoints"),
        ("writes.export.disk_bytes", EXPORT, "export"),
    ]
    if figures_of(table, "writes.guard.disk_bytes").max() >= _MUCH_BYTES:
        parts.append(("writes.guard.disk_bytes", MEMORY, "spilled"))
    for name, colour, label in parts:
        part = figures_of(table, name).fillna(0).clip(lower=0).to_numpy()
        axes.barh(y - shift, part, height, left=left, color=colour, label=label)
        left += part
    device_bytes = figures_of(table, "writes.device.bytes")
    if device_bytes.notna().any():
        axes.plot(
            device_bytes, y - shift, "|", color=DEVICE, markersize=9, markeredgewidth=1.5, label="the whole device"
        )
    if baseline_bytes.notna().any():
        axes.barh(y + shift, baseline_bytes.fillna(0), height, color=DISK, label="the whole device, without a RAM disk")
    for row, text in enumerate(_kept(table, left, measured)):
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    top_bytes = max(left.max(), device_bytes.fillna(0).max(), baseline_bytes.fillna(0).max())
    _scale_size(axes.xaxis, top_bytes, "written to the disk")


def _kept(table: pd.DataFrame, disk_bytes: np.ndarray, measured: pd.Series) -> list[str]:
    """Return each run's figures in words: what was saved only where it was measured."""
    given = figures_of(table, "writes.trainer.logical_bytes")
    kept_bytes = (given - figures_of(table, "writes.trainer.disk_bytes").clip(lower=0)).clip(lower=0)
    saved_bytes = figures_of(table, "writes.saved_bytes").where(measured)
    texts = []
    for written, kept, saved in zip(disk_bytes, kept_bytes, saved_bytes, strict=True):
        words = [_size(written)]
        if saved >= 0:
            words.append(f"saved {_size(saved)}")
        elif saved < 0:
            words.append(f"{_size(-saved)} more")
        elif kept >= 0:
            words.append(f"kept in RAM {_size(kept)}")
        texts.append(", ".join(words))
    return texts


def _draw_sweep_times(axes: Axes, table: pd.DataFrame, baseline_s: pd.Series, compared: bool) -> None:
    y, height, shift = _bars(len(table), compared)
    total_s = table["timings_s.total"].fillna(0)
    axes.barh(y - shift, total_s, height, color=RAM, label="with a RAM disk")
    if baseline_s.notna().any():
        axes.barh(y + shift, baseline_s.fillna(0), height, color=DISK, label="without")
    for row, (with_s, without_s) in enumerate(zip(total_s, baseline_s, strict=True)):
        beside = "" if math.isnan(without_s) else f", without {_duration(without_s)}"
        axes.text(1.02, row, _duration(with_s) + beside, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    _scale_time(axes.xaxis, max(total_s.max(), baseline_s.fillna(0).max()), "wall time", most_ticks=4)


def _draw_measure(axes: Axes, what: str, unit: str, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    for row, (_, measured) in zip(y, rows.iterrows(), strict=True):
        colour = DISK if measured["place"] == "disk" else RAM
        axes.plot([measured["min"], measured["max"]], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(measured["median"], row, "o", color=colour, markeredgecolor="black", markersize=8)
        text = _amount(measured["median"], unit)
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(y, _places(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_title(what, fontweight="bold")
    _scale_measure(axes, unit, rows)


def _places(rows: pd.DataFrame) -> list[str]:
    """Return what tells the rows of one measure apart."""
    labels = rows["place"]
    if rows["tool"].nunique() > 1:
        labels = labels + ", " + rows["tool"].fillna("")
    if rows["size_bytes"].nunique() > 1:
        labels = labels + ", " + rows["size_bytes"].map(lambda size_bytes: _size(size_bytes or 0))
    return list(labels)


def _scale_measure(axes: Axes, unit: str, rows: pd.DataFrame) -> None:
    smallest = rows[["min", "median"]].min(axis=None)
    largest = rows[["max", "median"]].max(axis=None)
    label = _UNITS.get(unit, f"{unit}, more is better")
    tools = concatenate(list(rows["tool"].dropna().unique()))
    rounds = pluralize(int(rows["n"].max()), "round")
    if smallest > 0 and largest / smallest >= LOG_FROM_RATIO:
        axes.set_xscale("log")
        ratio = largest / smallest
        base = 2.0 ** max(1, round(math.log2(ratio) / 3)) if unit.startswith("B") else 10.0
        axes.xaxis.set_major_locator(LogLocator(base=base))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(smallest / ratio**0.1, largest * ratio**0.1)
        label += ", logarithmic"
    elif unit == "s":
        _scale_time(axes.xaxis, largest, "")
    elif unit.startswith("B"):
        _scale_size(axes.xaxis, largest, "")
    else:
        axes.set_xlim(0, largest * 1.08 or 1.0)
    if unit != "s" or axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value, unit)))
    axes.set_xlabel(f"{label} ({tools}, {rounds})" if tools else f"{label} ({rounds})", fontsize=9)


def _scale_size(axis: Axis, top_bytes: float, label: str) -> None:
    """Scale an axis in bytes from zero, with ticks at round binary sizes."""
    top_bytes = max(top_bytes if top_bytes == top_bytes else 0, 1024)
    axis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(top_bytes / 5))))
    axis.set_major_formatter(FuncFormatter(lambda size_bytes, _: _size(size_bytes)))
    axis.axes.set(**{f"{axis.axis_name}lim": (0, top_bytes * 1.08)})
    axis.set_label_text(label)


def _scale_time(axis: Axis, top_s: float, label: str, most_ticks: int = 8) -> None:
    """Scale an axis in seconds from zero, with ticks in the unit that suits its length."""
    unit, unit_s = next((unit, unit_s) for unit, unit_s, up_to_s in _TIMES if top_s <= up_to_s)
    top_s = max(top_s, 1e-4)
    step = 10.0 ** math.floor(math.log10(top_s / unit_s / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if top_s / unit_s / (step * factor) <= most_ticks)
    axis.set_major_locator(MultipleLocator(step * unit_s))
    axis.set_major_formatter(FuncFormatter(lambda value_s, _: f"{round(value_s / unit_s, 9):,g} {unit}"))
    axis.axes.set(**{f"{axis.axis_name}lim": (0, top_s * 1.08)})
    axis.set_label_text(label)


def _size(size_bytes: float) -> str:
    return format_size(max(0, round(size_bytes)), binary=True)


def _duration(duration_s: float) -> str:
    if 0 < duration_s < 1:
        return f"{duration_s * 1000:.3g} ms"
    if duration_s < 120:
        return f"{duration_s:.3g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def _amount(value: float, unit: str) -> str:
    if unit == "B/s":
        return f"{_size(value)}/s"
    if unit == "B":
        return _size(value)
    if unit == "s":
        return _duration(value)
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _percent(part: float, whole: float) -> str:
    share = part / (whole or 1.0)
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
