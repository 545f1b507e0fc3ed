"""The description of machine and project: what is there is told, what is not is empty, and nothing waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import REPO, small_config

from ramtrain import environment
from ramtrain.config import complete_config, load_runs
from ramtrain.environment import Description, ProjectState, describe_gpus, describe_machine, diff_of, disk_model
from ramtrain.export import keep_log
from ramtrain.git import DIFF, Code
from ramtrain.inputs import read_inputs
from ramtrain.lease import Lease
from ramtrain.packages import Python
from ramtrain.ramdisk import acquire, release
from ramtrain.shelf import TRAINER_LOG, home


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on the PATH, before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}/programs:{os.environ['PATH']}")
    return tmp_path / "programs"


def test_gpus_are_what_nvidia_smi_shows(programs: Path) -> None:
    answer = (
        "NVIDIA H100 80GB HBM3, 550.54.15, 81559, GPU-6f4b\\n"
        "NVIDIA GH200, 550.54.15, [N/A], GPU-77aa\\n"
        '"Odd, name", [Not Supported], 1024, GPU-88bb\\n'
    )
    query = "--query-gpu=name,driver_version,memory.total,uuid --format=csv,noheader,nounits"
    program(programs, "nvidia-smi", f"[ \"$*\" = '{query}' ] || exit 2\nprintf '{answer}'\n")
    assert describe_gpus() == [
        {"name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory_bytes": 81559 << 20, "uuid": "GPU-6f4b"},
        {"name": "NVIDIA GH200", "driver": "550.54.15", "memory_bytes": None, "uuid": "GPU-77aa"},
        {"name": "Odd, name", "driver": None, "memory_bytes": 1 << 30, "uuid": "GPU-88bb"},
    ]


@pytest.mark.parametrize("text", ["echo no driver; exit 9\n", "echo 'No devices were found'\n", "exec sleep 9\n"])
def test_a_machine_without_gpus_has_none(text: str, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_NVIDIA_SMI_S", 0.3)
    program(programs, "nvidia-smi", text)
    assert describe_gpus() == []
    assert describe_machine(Path.cwd())["gpus"] == []


def test_the_disks_model_is_that_of_the_devices_below(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert disk_model(Path("/dev/shm")) is None
    for name, model in (
        ("nvme0n1", "Samsung SSD 990 PRO 2TB   "),
        ("nvme1n1", "Samsung SSD 990 PRO 2TB"),
        ("sda", "WDC"),
    ):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device/model").write_text(f"{model}\n")
    monkeypatch.setattr(environment, "_BLOCK", tmp_path)
    monkeypatch.setattr(environment, "device_of", lambda folder: "dm-0")
    monkeypatch.setattr(environment, "physical_devices", lambda device: ["nvme0n1", "nvme1n1", "sda", "vda"])
    assert disk_model(tmp_path) == "Samsung SSD 990 PRO 2TB, WDC"


def test_ramtrains_own_commit_is_that_of_its_checkout() -> None:
    if not (REPO / ".git").exists():
        pytest.skip("needs a Git checkout")
    head = subprocess.run(["git", "-C", str(REPO), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        pytest.skip("needs a Git checkout that its user may read")
    assert describe_machine(Path.cwd())["ramtrain_commit"] == head.stdout.strip()


@pytest.fixture
def lease(project: Path, workdir: Path) -> Iterator[Lease]:
    config = complete_config(small_config(project, **{"ramdisk.backend": "shm"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    found = acquire(run, workdir)
    yield found
    release(found)


def test_a_project_is_described_beside_its_training(project: Path, lease: Lease) -> None:
    diff_of(lease).write_text("of an earlier attempt")
    found = read_inputs(project)
    with Description("test", project, lease) as description:
        description.start([sys.executable, "train.py"], os.environ, lambda: found)
        description.start(["nowhere"], os.environ, lambda: found)
        state = description.finish()
    assert (state.git_commit, state.dirty, state.diff) == (None, None, None)
    assert not diff_of(lease).exists()
    assert state.python.executable == sys.executable
    assert "psutil" in state.python.packages
    assert state.inputs == found.files
    assert ProjectState.from_dict(json.loads(json.dumps(asdict(state)))) == state
    assert not list(Path(lease.state).glob("code-*"))


def test_of_a_training_that_fails_the_log_comes_home_and_the_diff_does_not(lease: Lease) -> None:
    home("test").mkdir(parents=True)
    (home("test") / DIFF).write_text("of the training that is recorded")
    diff_of(lease).write_text("of this one")
    (Path(lease.folder) / TRAINER_LOG).write_text("it failed")
    assert keep_log("test", lease).read_text() == "it failed"
    assert (home("test") / DIFF).read_text() == "of the training that is recorded"


def test_a_state_of_an_older_version_is_read() -> None:
    old = {"git_commit": None, "dirty": None, "inputs": [], "inputs_left_out": 3}
    state = ProjectState.from_dict({**old, "python": "3.11.2", "packages": {"torch": "2.4"}})
    assert (state.python.version, state.python.packages, state.inputs_left_out) == ("3.11.2", {"torch": "2.4"}, 3)
    assert ProjectState.from_dict({**old, "python": None, "packages": {}}).python == Python()


def test_a_training_that_fails_does_not_wait_for_its_description(project: Path, lease: Lease, tmp_path: Path) -> None:
    program(tmp_path / "slow", "python", "exec sleep 60\n")
    found = read_inputs(project)
    began = time.monotonic()
    with Description("test", project, lease) as description:
        description.start([str(tmp_path / "slow/python"), "train.py"], os.environ, lambda: found)
        time.sleep(0.5)
    assert time.monotonic() - began < 3
    assert description._thread is not None
    assert not description._thread.is_alive(), "and leaves no process behind"


def test_what_takes_too_long_after_the_training_is_missing_and_the_rest_is_there(
    project: Path, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(environment, "_LONGEST_END_S", 1.0)
    program(tmp_path / "slow", "python", "exec sleep 60\n")
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(project), *identity, *arguments], check=True)
    (project / "train.py").write_text("changed\n")
    found = read_inputs(project)
    began = time.monotonic()
    with Description("test", project, lease) as description:
        description.start([str(tmp_path / "slow/python"), "train.py"], os.environ, lambda: found)
        state = description.finish()
    assert time.monotonic() - began < 4
    assert "its Python is not described as a whole: that took more than 1 s after the training's end" in caplog.text
    assert "the packages of" in caplog.text
    assert state.python == Python(str(tmp_path / "slow/python"))
    assert (state.dirty, state.diff, len(state.inputs)) == (True, DIFF, len(found.files))
    assert diff_of(lease).exists()


def test_a_diff_that_comes_too_late_is_not_there_without_its_record(
    project: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def hangs(*_: object) -> Code:
        goes_on.wait()
        return Code("c" * 40, True, b"diff")

    monkeypatch.setattr(environment, "_LONGEST_END_S", 0.1)
    monkeypatch.setattr(environment, "_CANCELLED_S", 0.1)
    monkeypatch.setattr(environment, "read_code", hangs)
    found = read_inputs(project)
    with Description("test", project, lease) as description:
        description.start(["nowhere"], os.environ, lambda: found)
        assert description.finish().diff is None
        goes_on.set()
        assert description._thread is not None
        description._thread.join(5)
        assert not description._thread.is_alive()
    assert not diff_of(lease).exists()
