"""How much of a drive's life a run takes, and what the drive itself says of it."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramtrain.durable import write_bytes
from ramtrain.errors import RamTrainError
from ramtrain.system import alone_in

log = logging.getLogger(__name__)

TB_BYTES = 10**12
_DAY_S = 86400.0
# NVM Express Base Specification, SMART / Health Information: "in thousands" of units of 512 bytes.
_NVME_UNIT_BYTES = 512_000
# The drive gives whole percents: with fewer, an estimate from them could be wrong by half and more.
_LEAST_PERCENT = 5
_SMARTCTL_S = 10.0
# Each run in the order in which they ended; `total_...` are the sums up to it, `without_...` empty without a baseline.
COLUMNS = (
    "run",
    "started",
    "ended",
    "written_bytes",
    "without_bytes",
    "percent",
    "without_percent",
    "life_days",
    "without_life_days",
    "total_written_bytes",
    "total_percent",
    "total_compared_bytes",
    "total_without_bytes",
)


@dataclass(frozen=True)
class Drive:
    """What a drive says of itself: all that hosts have written to it in its life, the share of its rated life that it
    has used up (percent, may pass 100); None where it does not say."""

    name: str
    model: str | None
    lifetime_bytes: int | None
    used_percent: float | None


def ask_drive(name: str) -> Drive | None:
    """Return what `smartctl` reads from a drive; None if it is not installed, needs root, or is not understood."""
    program = shutil.which("smartctl")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--json=c", "--info", "--attributes", "--log=devstat", f"/dev/{name}"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SMARTCTL_S,
        )
        content = json.loads(done.stdout)  # its exit status is a set of bits, of which most do not mean failure
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        log.debug("smartctl of %s: %s", name, error)
        return None
    drive = read_smart(name, content)
    return None if (drive.lifetime_bytes, drive.used_percent) == (None, None) else drive


def read_smart(name: str, content: Mapping[str, Any]) -> Drive:
    """Return what the JSON of smartctl 7 says: of NVMe the health log, of SATA the device statistics (ACS-3).

    SATA's attributes 241 and 242 are not taken: their unit is each vendor's own.
    """
    health = content.get("nvme_smart_health_information_log", {})
    statistics = {entry.get("name"): entry.get("value") for entry in _statistics(content)}
    units, sectors = health.get("data_units_written"), statistics.get("Logical Sectors Written")
    lifetime_bytes = None
    if units is not None:
        lifetime_bytes = units * _NVME_UNIT_BYTES
    elif sectors is not None:
        lifetime_bytes = sectors * content.get("logical_block_size", 512)
    used_percent = health.get("percentage_used", statistics.get("Percentage Used Endurance Indicator"))
    return Drive(name, content.get("model_name"), lifetime_bytes, used_percent)


def _statistics(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for page in content.get("ata_device_statistics", {}).get("pages", []):
        yield from page.get("table", [])


def rated_bytes(tbw: float | None, drive: Drive | None) -> tuple[float | None, str | None]:
    """Return what a drive is rated to have written to it in its life, and from where that is known.

    Args:
        tbw: the maker's TBW, in TB of 10^12 bytes (JEDEC JESD218), if the config names it.
    """
    if tbw is not None:
        return tbw * TB_BYTES, "disk.tbw"
    if drive and drive.lifetime_bytes and drive.used_percent and drive.used_percent >= _LEAST_PERCENT:
        rated = drive.lifetime_bytes / drive.used_percent * 100
        return rated, f"estimated: the drive says that {drive.used_percent:g} % of its life are used up"
    return None, None


def life_percent(written_bytes: float, rated: float) -> float:
    """Return the share of a drive's rated writes, in percent: 100 x written / TBW (JESD218)."""
    return 100 * max(0.0, written_bytes) / rated


def life_days(written_bytes: float, over_s: float, rated: float) -> float | None:
    """Return in how many days a new drive's rated writes are used up at this rate; None if nothing was written.

    TBW / (bytes a day), which is DWPD = TBW / (capacity x days) solved for the days (SNIA, SSD endurance).
    """
    if written_bytes <= 0 or over_s <= 0:
        return None
    return rated / (written_bytes / over_s * _DAY_S)


def wear(written_bytes: float, over_s: float, rated: float) -> dict[str, float | None]:
    """Return bytes, percent of the drive's life, and days that it would last at that rate."""
    days = life_days(written_bytes, over_s, rated)
    return {
        "written_bytes": max(0, written_bytes),
        "percent": life_percent(written_bytes, rated),
        "life_days": None if days is None else round(days, 1),
    }


def add_to_total(path: Path, record: Mapping[str, Any]) -> None:
    """Add a run to the running total of all runs that ended here; one that is there already is not added again.

    `total_compared_bytes` sums up what those runs wrote that have a baseline, `total_without_bytes` their baselines.

    Raises:
        RamTrainError: what is there is no such table.
    """
    with alone_in(path.parent):  # several runs may end at once
        try:
            rows = _read(path)
            if any((row["run"], row["started"]) == (record["run"], record["started"]) for row in rows):
                return
            rows.append(_row(record, rows[-1] if rows else {}))
        except (KeyError, ValueError, csv.Error) as error:
            raise RamTrainError(
                f"{path} is not the running total that it was ({error!r}); move it away, and a new one is begun."
            ) from None
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows)
        write_bytes(path, text.getvalue().encode())


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _row(record: Mapping[str, Any], last: Mapping[str, str]) -> dict[str, Any]:
    writes, endurance = record["writes"], record["endurance"] or {}
    with_ram, without = endurance.get("with_ram") or {}, endurance.get("without") or {}
    written_bytes = writes["written_bytes"]
    without_bytes = writes["baseline"] and writes["baseline"]["device_bytes"]
    is_compared = without_bytes is not None

    def total(column: str, more: float | None) -> float:
        return float(last.get(column) or 0) + (more or 0)

    return {
        "run": record["run"],
        "started": record["started"],
        "ended": record["ended"],
        "written_bytes": written_bytes,
        "without_bytes": without_bytes,
        "percent": with_ram.get("percent"),
        "without_percent": without.get("percent"),
        "life_days": with_ram.get("life_days"),
        "without_life_days": without.get("life_days"),
        "total_written_bytes": int(total("total_written_bytes", written_bytes)),
        "total_percent": total("total_percent", with_ram.get("percent")) if endurance else None,
        "total_compared_bytes": int(total("total_compared_bytes", written_bytes if is_compared else 0)),
        "total_without_bytes": int(total("total_without_bytes", without_bytes)),
    }
