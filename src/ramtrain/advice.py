"""Does it pay? Said of a run that has ended, in two lines, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humanfriendly import format_size, format_timespan
from humanfriendly.text import pluralize

# A week of work on a laptop writes as much: less a day does not wear out a drive.
_LITTLE_A_DAY_BYTES = 20 * 10**9
_DAY_S = 86400.0
# Times of one pair of runs differ by as much for no reason.
_SAME_SHARE = 0.05


def advise(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return whether a RAM disk pays for runs like this one, and why.

    With a measured baseline (`benchmark_io`) by what it saves the disk and the time; else by what the trainer gave to
    write calls, an upper limit to what could be saved, since the page cache absorbs some of it.
    """
    writes, baseline = record["writes"], record["writes"]["baseline"]
    if record["ramdisk"]["backend"] == "disk":
        return (
            f"run {record['run']}: it had no RAM disk.",
            f"{_size(writes['written_bytes'])} went to the disk; benchmark_io measures what a RAM disk would save.",
        )
    if baseline is None or baseline["device_bytes"] is None:
        return _by_volume(record)
    saved_bytes = baseline["device_bytes"] - writes["written_bytes"]
    a_day_bytes = saved_bytes * _DAY_S / record["timings_s"]["total"]
    times = baseline["with_ram_wall_s"] / baseline["wall_s"]
    speed = "takes as long as without" if abs(times - 1) <= _SAME_SHARE else f"takes {times:.2f} times as long"
    verdict = "it pays, for the drive" if a_day_bytes >= _LITTLE_A_DAY_BYTES else "it hardly pays, for the drive"
    life = ""
    if record["endurance"] and record["endurance"]["without"]:
        with_ram, without = (record["endurance"][key]["life_days"] for key in ("with_ram", "without"))
        life = f"; at this rate the drive lasts {_days(with_ram)} instead of {_days(without)}"
    return (
        f"run {record['run']}: {verdict}: {_size(writes['written_bytes'])} written instead of "
        f"{_size(baseline['device_bytes'])}, {_size(max(0, a_day_bytes))} a day saved{life}.",
        f"As benchmark_io measured ({pluralize(baseline['pairs'], 'pair')}), with a RAM disk the run {speed} "
        f"({format_timespan(baseline['with_ram_wall_s'])}, {format_timespan(baseline['wall_s'])}).",
    )


def _by_volume(record: Mapping[str, Any]) -> tuple[str, str]:
    writes = record["writes"]
    kept_bytes = max(0, writes["trainer"]["logical_bytes"] - writes["written_bytes"])
    a_day_bytes = kept_bytes * _DAY_S / record["timings_s"]["total"]
    is_little = a_day_bytes < _LITTLE_A_DAY_BYTES
    verdict = "it hardly pays: the trainer writes little" if is_little else "it may pay"
    return (
        f"run {record['run']}: {verdict}: {_size(kept_bytes)} were kept in RAM, {_size(a_day_bytes)} a day, "
        f"{_size(writes['written_bytes'])} went to the disk.",
        "How much of that the page cache would have absorbed is not known: name the run in benchmark.run and type "
        "`snakemake --cores 1 benchmark_io`.",
    )


def _size(size_bytes: float) -> str:
    return format_size(size_bytes, binary=True)


def _days(days: float | None) -> str:
    return "for ever" if days is None else f"{days:,.0f} days"
