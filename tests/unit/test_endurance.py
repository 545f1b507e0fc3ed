"""What a run takes of a drive's life: by the drive's own words, by the maker's, and over all runs."""

from __future__ import annotations

import csv
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ramtrain.endurance import Drive, add_to_total, ask_drive, life_days, life_percent, rated_bytes, read_smart, wear
from ramtrain.errors import RamTrainError

# Cut down from what smartctl 7.4 prints for an NVMe and a SATA drive.
NVME = {
    "model_name": "Samsung SSD 980 PRO 1TB",
    "nvme_smart_health_information_log": {"percentage_used": 8, "data_units_written": 103_000_000},
}
SATA = {
    "model_name": "CT1000MX500SSD1",
    "logical_block_size": 512,
    "ata_device_statistics": {
        "pages": [
            {"number": 1, "table": [{"name": "Logical Sectors Written", "value": 48_000_000_000}]},
            {"number": 7, "table": [{"name": "Percentage Used Endurance Indicator", "value": 6}]},
        ]
    },
}


def test_drives_are_read_in_bytes() -> None:
    assert read_smart("nvme0n1", NVME) == Drive("nvme0n1", "Samsung SSD 980 PRO 1TB", 52_736_000_000_000, 8)
    assert read_smart("sda", SATA) == Drive("sda", "CT1000MX500SSD1", 24_576_000_000_000, 6)
    assert read_smart("vda", {}) == Drive("vda", None, None, None)


def _fake_smartctl(folder: Path, prints: str, status: int) -> None:
    program = folder / "smartctl"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\nexit {status}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("prints", "status", "is_read"),
    [(json.dumps(NVME), 0, True), (json.dumps(NVME), 64, True), (json.dumps({}), 2, False), ("Permission", 2, False)],
    ids=["healthy", "errors in its log", "not a drive", "no JSON"],
)
def test_only_what_smartctl_really_says_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, status: int, is_read: bool
) -> None:
    _fake_smartctl(tmp_path, prints, status)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (ask_drive("nvme0n1") is not None) == is_read


def test_without_smartctl_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_drive("nvme0n1") is None


def test_the_config_counts_before_the_drive_and_a_new_drive_tells_too_little() -> None:
    assert rated_bytes(600, None) == (600e12, "disk.tbw")
    assert rated_bytes(600, read_smart("nvme0n1", NVME))[0] == 600e12
    rated, source = rated_bytes(None, read_smart("nvme0n1", NVME))
    assert rated == pytest.approx(52.736e12 / 0.08)
    assert "8 %" in str(source)
    assert rated_bytes(None, Drive("nvme0n1", None, 10**12, 1)) == (None, None)
    assert rated_bytes(None, None) == (None, None)


def test_a_gigabyte_a_minute_uses_up_600_tbw_in_417_days() -> None:
    assert life_days(1e9, 60, 600e12) == pytest.approx(416.7, abs=0.1)
    assert life_percent(6e12, 600e12) == 1.0
    assert life_days(0, 60, 600e12) is None
    assert wear(-5, 60, 600e12) == {"written_bytes": 0, "percent": 0.0, "life_days": None}


def _record(run: str, written_bytes: int, without_bytes: int | None) -> dict[str, Any]:
    return {
        "run": run,
        "started": f"2026-01-01T00:00:00 {run}",
        "ended": "2026-01-01T01:00:00",
        "writes": {
            "written_bytes": written_bytes,
            "baseline": None if without_bytes is None else {"device_bytes": without_bytes},
        },
        "endurance": {
            "rated_bytes": 1e12,
            "with_ram": wear(written_bytes, 3600, 1e12),
            "without": None if without_bytes is None else wear(without_bytes, 3600, 1e12),
        },
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_totals_run_on_and_no_run_counts_twice(tmp_path: Path) -> None:
    path = tmp_path / "endurance.tsv"
    records = [_record("a", 10**9, 9 * 10**9), _record("b", 2 * 10**9, None), _record("c", 10**9, 10**10)]
    for record in [*records, records[0], records[2]]:
        add_to_total(path, record)
    rows = _rows(path)
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert [row["total_written_bytes"] for row in rows] == ["1000000000", "3000000000", "4000000000"]
    assert [float(row["total_percent"]) for row in rows] == pytest.approx([0.1, 0.3, 0.4])
    # Only runs with a baseline are compared.
    assert (rows[-1]["total_compared_bytes"], rows[-1]["total_without_bytes"]) == ("2000000000", "19000000000")
    assert (rows[1]["without_bytes"], rows[1]["without_percent"]) == ("", "")


def test_runs_that_end_at_once_are_all_in_the_total(tmp_path: Path) -> None:
    path = tmp_path / "endurance.tsv"
    runs = [threading.Thread(target=add_to_total, args=(path, _record(f"r{n}", 10**6, None))) for n in range(12)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(_rows(path)) == 12
    assert _rows(path)[-1]["total_written_bytes"] == str(12 * 10**6)


def test_what_is_no_running_total_is_named_and_left(tmp_path: Path) -> None:
    path = tmp_path / "endurance.tsv"
    for content in ("something else\n1\n", "run\tstarted\ttotal_written_bytes\nx\ty\tmany\n"):
        path.write_text(content)
        with pytest.raises(RamTrainError, match=r"endurance\.tsv is not the running total"):
            add_to_total(path, _record("a", 1, None))
        assert path.read_text() == content
