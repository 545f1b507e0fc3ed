"""`python -m ramtrain status`: every RAM disk of the user, where its training is, what a power cut would cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import status
from ramtrain.config import complete_config, load_runs
from ramtrain.ramdisk import MARK, Lease, acquire, ram_root, release
from ramtrain.sighting import SIGHTING, Sighting

MIB = 1 << 20


@pytest.fixture
def lease(project: Path, workdir: Path) -> Iterator[Lease]:
    config = complete_config(small_config(project, **{"ramdisk.backend": "shm"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    lease = acquire(run, workdir)
    (Path(lease.folder) / "checkpoint").write_bytes(bytes(2 * MIB))
    yield lease
    release(lease)


def see(lease: Lease, **changes: Any) -> None:
    """Note what was seen of the training: 100 s after its beginning, 30 s after its newest checkpoint, just now."""
    now_s = time.time()
    seen: dict[str, Any] = {
        "seen_s": now_s,
        "started_s": now_s - 100,
        "has_ended": False,
        "progress": {"epoch": "3/12", "step": "30"},
        "checkpoints": {},
        "newest": "output/run/checkpoint_30.pth",
        "newest_s": now_s - 30,
        "durable": "results/x/checkpoints/20260101T000000.000-checkpoint_20.pth",
        "safe_s": now_s - 60,
        "max_loss_s": 600.0,
        "worst_loss_s": 61.0,
        "used_bytes": 5,
        "kept_off_bytes": 3 << 30,
    }
    Sighting(**{**seen, **changes}).write(Path(lease.state) / SIGHTING)


def call(*arguments: str) -> str:
    argv = [sys.executable, "-m", "ramtrain", "status", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def entry(workdir: Path) -> dict[str, Any]:
    """Return what is said of the RAM disk of this working directory; there may be others on the machine."""
    (mine,) = [entry for entry in status.read_status() if entry["workdir"] == str(workdir)]
    return mine


def cells(workdir: Path) -> dict[str, str]:
    """Return what the table says of it, by column; on a narrow terminal each has a line of its own."""
    mine = [entry for entry in status.read_status() if entry["workdir"] == str(workdir)]
    lines = [line for line in status.table(mine).splitlines() if set(line) != {"-"}]
    if lines[0].startswith("|"):
        names, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        return dict(zip(names, values, strict=True))
    return dict(line.split(": ", 1) for line in lines)


UNSEEN = {"newest": None, "newest_s": None, "durable": None, "max_loss_s": None, "progress": {}}


def live(lease: Lease) -> None:
    see(lease)


def ended(lease: Lease) -> None:
    see(lease, has_ended=True)


def killed(lease: Lease) -> None:
    now_s = time.time()
    see(lease, seen_s=now_s - 3600, started_s=now_s - 3700, newest_s=now_s - 3630, safe_s=now_s - 3660)


def just_begun(lease: Lease) -> None:
    see(lease, **UNSEEN, kept_off_bytes=0, safe_s=time.time() - 100)


def unseen(lease: Lease) -> None:
    """A RAM disk whose training has not begun, or was never seen."""


@pytest.mark.parametrize(
    ("seen", "expected", "about"),
    [
        (
            unseen,
            {
                "is_training": False,
                "progress": {},
                "newest": None,
                "durable": None,
                "max_loss_s": None,
                "kept_off_bytes": None,
            },
            {"seen_age_s": None, "elapsed_s": None, "newest_age_s": None, "at_stake_s": None},
        ),
        (
            live,
            {
                "is_training": True,
                "progress": {"epoch": "3/12", "step": "30"},
                "newest": "output/run/checkpoint_30.pth",
                "durable": "results/x/checkpoints/20260101T000000.000-checkpoint_20.pth",
                "max_loss_s": 600,
                "worst_loss_s": 61,
                "kept_off_bytes": 3 << 30,
            },
            {"seen_age_s": 0, "elapsed_s": 100, "newest_age_s": 30, "at_stake_s": 60},
        ),
        (
            ended,
            {"is_training": False, "newest": "output/run/checkpoint_30.pth"},
            {"seen_age_s": 0, "elapsed_s": 100, "newest_age_s": 30, "at_stake_s": 60},
        ),
        (
            killed,
            {"is_training": False},
            {"seen_age_s": 3600, "elapsed_s": 100, "newest_age_s": 3630, "at_stake_s": 60},
        ),
        (
            just_begun,
            {"is_training": True, "progress": {}, "newest": None, "durable": None, "max_loss_s": None},
            {"elapsed_s": 100, "newest_age_s": None, "at_stake_s": 100},
        ),
    ],
)
def test_an_entry_for_machines(
    seen: Callable[[Lease], None],
    expected: dict[str, Any],
    about: dict[str, float | None],
    lease: Lease,
    workdir: Path,
) -> None:
    seen(lease)
    found = entry(workdir)
    assert {key: found[key] for key in expected} == expected
    for key, seconds in about.items():
        assert found[key] == (None if seconds is None else pytest.approx(seconds, abs=15)), key
    assert (found["run"], found["folder"], found["backend"]) == (lease.run, lease.folder, "shm")
    assert 2 * MIB <= found["used_bytes"] <= 3 * MIB
    assert found["size_bytes"] == 64 * MIB


@pytest.mark.parametrize(
    ("seen", "training", "progress", "newest", "durable", "at_stake", "kept_off"),
    [
        (unseen, "not training", "-", "none yet", "none yet", "-", "-"),
        (
            live,
            "training",
            "epoch 3/12, step 30",
            r"checkpoint_30.pth, 00:\d\d ago",
            r".*\d\d ago, .*20260101T000000.000-checkpoint_20.pth",
            r"01:\d\d of 10:00",
            "3 GiB",
        ),
        (
            ended,
            "not training",
            "epoch 3/12, step 30",
            r"checkpoint_30.pth, 00:\d\d ago",
            r".*\d\d ago, .*20260101T000000.000-checkpoint_20.pth",
            r"01:\d\d of 10:00",
            "3 GiB",
        ),
        (
            killed,
            "not training",
            "epoch 3/12, step 30",
            r"checkpoint_30.pth, 1:00:\d\d ago",
            r".*\d\d ago, .*20260101T000000.000-checkpoint_20.pth",
            "01:00 of 10:00",
            "3 GiB",
        ),
        (just_begun, "training", "-", "none yet", "none yet", r"01:\d\d no bound", "0 bytes"),
    ],
)
def test_a_row_for_people(
    seen: Callable[[Lease], None],
    training: str,
    progress: str,
    newest: str,
    durable: str,
    at_stake: str,
    kept_off: str,
    lease: Lease,
    workdir: Path,
) -> None:
    seen(lease)
    expected = {
        "run": lease.run,
        "state": training,
        "progress": progress,
        "newest checkpoint": newest,
        "at home": durable,
        "at stake": at_stake,
        "RAM": r"2(\.\d+)? MiB of 64 MiB \(shm\)",
        "kept off the disk": kept_off,
    }
    found = cells(workdir)
    assert list(found) == list(expected)
    for column, pattern in expected.items():
        assert re.fullmatch(pattern, found[column]), column


def test_the_command_prints_both(lease: Lease, workdir: Path) -> None:
    see(lease)
    said = call()
    for part in ("at stake", "kept off the disk", lease.run, "epoch 3/12, step 30", "checkpoint_30.pth"):
        assert part in said
    (mine,) = [found for found in json.loads(call("--json")) if found["workdir"] == str(workdir)]
    expected = entry(workdir)
    assert list(mine) == list(expected)
    assert all(mine[key] == value for key, value in expected.items() if not key.endswith("_s"))


def test_nothing_there(workdir: Path) -> None:
    assert status.table([]) == "No RAM disk of yours is there."
    assert [found for found in status.read_status() if found["workdir"] == str(workdir)] == []


@pytest.mark.parametrize("spoil", ["a mark", "a sighting", "a folder without a mark"])
def test_what_cannot_be_read_does_not_hide_the_others(spoil: str, lease: Lease, workdir: Path) -> None:
    other = ram_root(workdir) / "other"
    other.mkdir()
    if spoil == "a mark":
        (other / MARK).write_text("{")
    elif spoil == "a sighting":
        (Path(lease.state) / SIGHTING).write_text("{")
    found = entry(workdir)
    assert (found["run"], found["seen_age_s"]) == (lease.run, None)
    (other / MARK).unlink(missing_ok=True)
    other.rmdir()


CHURN = """
import os, shutil, sys
os.chdir(sys.argv[1])
mark = open(sys.argv[2]).read()
print("begun", flush=True)
while True:
    for number in range(10):
        os.makedirs(f"root-{number}/run/tmp")
        folder = os.path.abspath(f"root-{number}/run")
        open(f"{folder}/.ramtrain.json", "w").write(mark.replace("FOLDER", folder))
    for number in range(10):
        shutil.rmtree(f"root-{number}")
"""


@pytest.mark.parametrize("backend", ["tmpfs", "shm"])
def test_ram_disks_that_come_and_go_meanwhile_are_no_trouble(
    backend: str, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"ramtrain-{os.geteuid()}").mkdir()
    mark = tmp_path / "mark.json"
    mark.write_text(json.dumps(asdict(replace(lease, backend=backend, folder="FOLDER"))))
    monkeypatch.setattr(status, "SHM", tmp_path)
    argv = [sys.executable, "-I", "-c", CHURN, str(tmp_path / f"ramtrain-{os.geteuid()}"), str(mark)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as churn:
        try:
            assert churn.stdout.readline()
            deadline, looks, has_seen = time.monotonic() + 30, 0, False
            while looks < 500 or not has_seen:
                assert time.monotonic() < deadline, "there was nothing to be seen"
                has_seen |= bool(status.read_status())
                looks += 1
        finally:
            churn.kill()
