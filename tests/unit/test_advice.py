"""Whether a RAM disk pays: what is said, and that nothing is called saved that was not measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramtrain.advice import advise

BASELINE = {"pairs": 1, "device_bytes": 500 * 10**9, "wall_s": 1000.0, "with_ram_wall_s": 1020.0}


def _record(baseline: dict[str, Any] | None = None, logical_bytes: int = 10**12, **changes: Any) -> dict[str, Any]:
    return {
        "run": "example",
        "timings_s": {"total": 86400.0},
        "ramdisk": {"backend": "tmpfs"},
        "writes": {"trainer": {"logical_bytes": logical_bytes}, "written_bytes": 10**9, "baseline": baseline},
        "endurance": None,
        "config": {"project": {"path": "project", "command": "python train.py"}},
        **changes,
    }


def test_a_run_with_a_baseline_is_told_what_was_saved() -> None:
    first, second = advise(_record(BASELINE))
    assert "it pays, for the drive: 953.67 MiB written instead of 465.66 GiB" in first
    assert "saved" in first
    assert "takes as long as without" in second


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device_bytes": 2 * 10**9}, "it hardly pays, for the drive"),
        ({"with_ram_wall_s": 2000.0}, "takes 2.00 times as long"),
        ({"with_ram_wall_s": 500.0}, "takes 0.50 times as long"),
    ],
)
def test_what_does_not_pay_is_told_as_well(changes: dict[str, Any], said: str) -> None:
    assert said in "\n".join(advise(_record({**BASELINE, **changes})))


def test_a_run_without_a_baseline_saved_nothing_that_is_known() -> None:
    for baseline in (None, {**BASELINE, "device_bytes": None}):
        text = "\n".join(advise(_record(baseline)))
        assert "it may pay" in text
        assert "kept in RAM" in text
        assert "saved" not in text
        assert "benchmark_io" in text
    assert "it hardly pays" in advise(_record(None, logical_bytes=10**9))[0]


def test_endurance_is_told_in_days() -> None:
    endurance = {"with_ram": {"life_days": None}, "without": {"life_days": 1234.5}}
    assert "the drive lasts for ever instead of 1,234 days" in advise(_record(BASELINE, endurance=endurance))[0]


def test_a_run_on_the_disk_has_nothing_to_be_praised_for() -> None:
    assert "it had no RAM disk" in advise(_record(BASELINE, ramdisk={"backend": "disk"}))[0]


def _call(workdir: Path, *runs: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ramtrain", "advise", *runs]
    return subprocess.run(argv, cwd=workdir, capture_output=True, text=True, check=False)


def test_the_command_reads_records_and_names_what_it_cannot_read(workdir: Path) -> None:
    assert "no run has ended yet" in _call(workdir).stderr
    for run in ("a", "b"):
        (workdir / "results" / run).mkdir(parents=True)
        (workdir / "results" / run / "record.json").write_text(json.dumps(_record()))
    assert len(_call(workdir).stdout.splitlines()) == 4
    assert len(_call(workdir, "a").stdout.splitlines()) == 2
    missing = _call(workdir, "c")
    assert (missing.returncode, "results/c/record.json" in missing.stderr) == (1, True)
    (workdir / "results/b/record.json").write_text("{}")
    broken = _call(workdir)
    assert broken.returncode == 1
    assert "is no record of this version" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_a_benchmark_that_was_made_later_counts_as_well(workdir: Path) -> None:
    (workdir / "results/a").mkdir(parents=True)
    (workdir / "results/a/record.json").write_text(json.dumps(_record()))
    measured = {"run": "a", "measured": "2026-01-01", "logical_bytes": 1, "disk_bytes": 1, "with_ram_device_bytes": 1}
    baseline = {**BASELINE, **measured, "project": str(workdir / "project"), "command": ["python", "train.py"]}
    (workdir / "results/benchmark_io.json").write_text(json.dumps({"baseline": baseline}))
    assert "saved" in _call(workdir).stdout
    baseline["command"] = ["python", "other.py"]
    (workdir / "results/benchmark_io.json").write_text(json.dumps({"baseline": baseline}))
    assert "saved" not in _call(workdir).stdout
