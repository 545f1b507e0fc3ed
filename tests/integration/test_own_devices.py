"""Devices, for whole calls: each run has its own, within a call and between calls, however a run ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Ended, small_config
from workplace import Workplace, changed

from ramtrain.lease import user_root
from ramtrain.ledger import opened
from ramtrain.supervise import Training

RUN = "my_pr_ject_"

Snakemake = Callable[..., Ended]

# It says what it sees, and when it began and ended; where a file is named it waits for that.
TRAINER = """
import json, os, pathlib, sys, time
began_s = time.time()
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(0.7)
while not all(map(os.path.exists, sys.argv[2:])):
    time.sleep(0.05)
seen = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "began_s": began_s, "ended_s": time.time()}
pathlib.Path(sys.argv[1], "seen.json").write_text(json.dumps(seen))
"""
# It does not end when it is asked to.
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(600)
"""


@pytest.fixture
def fakes(tmp_path: Path, nvidia_smi: Callable[..., None]) -> list[str]:
    """Return two devices that no other test has."""
    return [f"GPU-{name}-{hashlib.sha256(bytes(tmp_path)).hexdigest()[:12]}" for name in "ab"]


@pytest.fixture(autouse=True)
def no_lock_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a device's lock behind."""
    yield
    with opened(user_root()):  # another test may run beside this one, and keep the folder
        locks = user_root().glob("held-device-*")
        left = [path.name for path in locks if str(tmp_path) in path.read_text()]
    assert not left


def config_for(project: Path, program: str, **changes: Any) -> dict[str, Any]:
    config = small_config(project, **{"ramdisk.size": "16M", "protect.max_loss": "never"})
    config["project"] |= {
        "command": [sys.executable, "-c", program, "{ram}"],
        "model": ["seen.json"],
        "checkpoints": [],
        "artifacts": [],
    }
    return changed(config, changes)


def seen_by(workdir: Path, run: str) -> dict[str, Any]:
    return json.loads((workdir / "results" / run / "model/seen.json").read_text())


def record_of(workdir: Path, run: str) -> dict[str, Any]:
    return json.loads((workdir / "results" / run / "record.json").read_text())


def test_no_two_runs_of_a_call_have_the_same_device(
    fakes: list[str], snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    runs = [f"r{number}" for number in range(1, 5)]
    (workdir / "runs.tsv").write_text("\n".join(["run", *runs]) + "\n")
    config = config_for(project, TRAINER, runs="runs.tsv", **{"train.gpus": 1, "train.devices": fakes})
    ended = snakemake(config, "train", cores=4)
    assert ended.status == 0, ended.output
    seen = [seen_by(workdir, run) for run in runs]
    for number, one in enumerate(seen):
        beside = [two for two in seen[:number] if one["began_s"] < two["ended_s"] and two["began_s"] < one["ended_s"]]
        assert one["devices"] not in [two["devices"] for two in beside], seen
    assert {one["devices"] for one in seen} == set(fakes), "both are used"
    assert [record_of(workdir, run)["devices"] for run in runs] == [[one["devices"]] for one in seen]
    for run, one in zip(runs, seen, strict=True):
        assert f"run {run}: device {one['devices']}\n" in ended.output
    assert "waiting for" not in ended.output, "Snakemake starts no more runs than there are devices"
    training = json.loads((workdir / "results/r1/export.json").read_text())["training"]
    assert Training.from_dict(training).devices == [seen[0]["devices"]]
    del training["devices"]
    assert Training.from_dict(training).devices == [], "as an older version left it in RAM"


def test_what_asks_for_too_many_is_not_started(
    fakes: list[str], snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    ended = snakemake(config_for(project, TRAINER, **{"train.gpus": 3, "train.devices": fakes}), "train")
    assert ended.status != 0
    assert f"train.gpus: 3 devices wanted, and train.devices allows 2 ({', '.join(fakes)}); ask" in ended.output
    assert "Traceback" not in ended.output
    assert not (workdir / "results").exists()


@pytest.fixture
def calls(workplace: Workplace, project: Path, tmp_path: Path, fakes: list[str]) -> Iterator[list[Workplace]]:
    """Return two workplaces for one device, each with a trainer that goes on when there is a file `go`."""
    second = tmp_path / "second"
    second.mkdir()
    config = config_for(project, TRAINER, **{"train.gpus": 1, "train.devices": fakes[:1]})
    config["project"]["command"].append(str(tmp_path / "go"))
    places = [Workplace(folder, config, RUN) for folder in (workplace.workdir, second)]
    yield places
    for place in places:
        place.reboot()


def start_and_wait(place: Workplace) -> None:
    """Start a call that has to wait for a device, until it does."""
    place.start()
    deadline = time.monotonic() + place.patience_s
    while "waiting for 1 device" not in place.said():
        assert time.monotonic() < deadline, place.said()
        time.sleep(0.05)


def test_two_calls_have_one_device_in_turns(calls: list[Workplace], fakes: list[str], tmp_path: Path) -> None:
    first, second = calls
    first.start()
    first.wait_for("**/started")
    start_and_wait(second)
    assert f"run {RUN} in {first.workdir} has device {fakes[0]}. Ctrl-C ends the wait." in second.said()
    os.killpg(second.snakemake.pid, signal.SIGINT)
    assert second.wait() != 0
    assert "while it waited for 1 device; nothing was started. To go on, type `snakemake" in second.said()

    start_and_wait(second)
    (tmp_path / "go").touch()
    for place in calls:
        assert place.wait() == 0, place.said()
    assert second.said().count("waiting for") == 1
    before, after = (seen_by(place.workdir, RUN) for place in calls)
    assert before["devices"] == after["devices"] == fakes[0]
    assert before["ended_s"] < after["began_s"]


def holders(lock: Path) -> list[psutil.Process]:
    """Return the processes that have a device's lock open."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(os.readlink(entry) == str(lock) for entry in Path(f"/proc/{process.pid}/fd").iterdir()):
                found.append(process)
        except OSError:  # it has ended, or is another user's
            continue
    return found


def test_a_device_is_free_when_the_trainer_is_gone_not_when_ramtrain_is(
    calls: list[Workplace], project: Path, fakes: list[str], tmp_path: Path
) -> None:
    first, second = calls
    first.configure(config_for(project, STUBBORN, **{"train.gpus": 1, "train.devices": fakes[:1]}))
    first.start()
    first.wait_for("**/started")
    (lock,) = [path for path in user_root().glob("held-device-*") if str(tmp_path) in path.read_text()]
    script, keeper = first.process("train_run.py", "scripts"), first.process("ramtrain.keeper")
    (trainer,) = keeper.children()
    assert {process.pid for process in holders(lock)} == {script.pid, keeper.pid}, "not the trainer"

    (tmp_path / "go").touch()
    start_and_wait(second)
    script.kill()
    script.wait(30)
    assert trainer.is_running()
    assert [process.pid for process in holders(lock)] == [keeper.pid]
    assert f"run {RUN}: device" not in second.said()
    keeper.wait(30)
    assert not trainer.is_running()
    assert first.wait() != 0
    assert second.wait() == 0, second.said()
    assert seen_by(second.workdir, RUN)["devices"] == fakes[0]
