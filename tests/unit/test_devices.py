"""Devices: those that a run may have, whatever they are called; some of them for it alone; the rest is waited for."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import caller, supervise, waiting
from ramtrain import lease as lease_module
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.devices import Device, allowed, ask_machine, count, given
from ramtrain.errors import RamTrainError
from ramtrain.lease import SHM, user_root
from ramtrain.ramdisk import acquire, release
from ramtrain.shelf import export_file
from ramtrain.staging import stage_project
from ramtrain.supervise import trainer_environment

A, B, C = "GPU-aaaa1111-0000", "GPU-aabb2222-0000", "GPU-cccc3333-0000"
PART_1, PART_2 = "MIG-1111-aaaa", "MIG-2222-bbbb"
TWO_ALIKE = f"GPU 0: NVIDIA A100 (UUID: {A})\nGPU 1: NVIDIA A100 (UUID: {B})\n"
TWO_KINDS = f"GPU 0: NVIDIA T400 (UUID: {A})\nGPU 1: NVIDIA A100 (UUID: {B})\n"
DIVIDED = (
    f"GPU 0: NVIDIA A100 (UUID: {A})\n"
    f"  MIG 3g.20gb     Device  0: (UUID: {PART_1})\n"
    f"  MIG 3g.20gb     Device  1: (UUID: {PART_2})\n"
    f"GPU 1: NVIDIA A100 (UUID: {B})\n"
)
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"

NvidiaSmi = Callable[..., None]


@pytest.fixture(autouse=True)
def own_root(monkeypatch: pytest.MonkeyPatch, nvidia_smi: NvidiaSmi) -> Iterator[Path]:
    """Keep the locks of these tests apart from those of the user's runs."""
    folder = SHM / f"ramtrain devices {os.getpid()}"
    folder.mkdir()
    monkeypatch.setattr(lease_module, "SHM", folder)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=lambda _: pytest.fail("it waits")))
    yield folder
    left = list(folder.rglob("*"))
    shutil.rmtree(folder)
    assert not left


@pytest.fixture
def a_run(project: Path) -> Callable[..., Run]:
    """Return a function for a run that asks for so many devices, of those that it may have."""

    def make(gpus: int | None, devices: list[Any] | None = None, name: str = "a") -> Run:
        config = small_config(project, **{"train.gpus": gpus, "train.devices": devices})
        (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
        return replace(run, run=name)

    return make


@pytest.mark.parametrize(
    ("listed", "devices", "visible", "order", "expected"),
    [
        # no nvidia-smi: as they are called
        ("", [0, "1", "MIG-x"], None, None, [("0", "0"), ("1", "1"), ("MIG-x", "MIG-x")]),
        ("", None, "2, 3", None, [("2", "2"), ("3", "3")]),
        ("", [0, 1], "2,3", None, [("0", "0"), ("1", "1")]),
        # what CUDA does not look at
        ("", None, "0,2,-1,1", None, [("0", "0"), ("2", "2")]),
        ("", None, "NoDevFiles", None, []),
        ("", None, "", None, []),
        # by the UUID
        (TWO_KINDS, None, None, None, [(A, A), (B, B)]),
        (TWO_KINDS, [1, A], None, None, [("1", B), (A, A)]),
        (TWO_ALIKE, None, "1", None, [("1", B)]),
        (TWO_KINDS, None, "1", "PCI_BUS_ID", [("1", B)]),
        (TWO_KINDS, None, "GPU-aab", None, [("GPU-aab", B)]),
        (DIVIDED, None, None, None, [(PART_1, PART_1), (PART_2, PART_2), (B, B)]),
        (DIVIDED, ["MIG-2", 1], None, None, [("MIG-2", PART_2), ("1", B)]),
        (TWO_ALIKE.replace(B, f"{A}0"), [A], None, None, [(A, A)]),
    ],
)
def test_what_a_run_may_have(
    listed: str,
    devices: list[Any] | None,
    visible: str | None,
    order: str | None,
    expected: list[tuple[str, str]],
    a_run: Callable[..., Run],
    nvidia_smi: NvidiaSmi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if listed:
        nvidia_smi(listed)
    for name, value in ((VISIBLE, visible), (ORDER, order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert allowed(a_run(0, devices), ask_machine()) == [Device(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("listed", "gpus", "devices", "visible", "message"),
    [
        (
            "",
            2,
            [5],
            None,
            "run a: train.gpus: 2 devices wanted, and train.devices allows 1 (5); ask for fewer, or name",
        ),
        ("", 1, None, "", "run a: train.gpus: 1 device wanted, and CUDA_VISIBLE_DEVICES allows 0; ask"),
        ("", 1, None, "-1", "CUDA_VISIBLE_DEVICES allows 0; ask"),
        (TWO_ALIKE, 3, None, None, f"3 devices wanted, and nvidia-smi allows 2 ({A}, {B}); ask"),
        ("", 1, None, None, "is not known (nvidia-smi --list-gpus: no driver); name them in train.devices, or leave"),
        ("No devices found.\n", 1, None, None, "is not known (nvidia-smi lists none); name them"),
        ("", 1, [0, 1, "0"], None, "train.devices: '0' and '0' are the same device; name each of them once."),
        (TWO_ALIKE, 1, [1, "GPU-aab"], None, "train.devices: '1' and 'GPU-aab' are the same device;"),
        ("", 1, None, "3,3", "CUDA_VISIBLE_DEVICES: '3' and '3' are the same device;"),
        (TWO_ALIKE, 1, [2], None, f"train.devices: '2' is no device of this machine; there are {A}, {B}."),
        (TWO_ALIKE, 1, None, "GPU-zz", f"CUDA_VISIBLE_DEVICES: 'GPU-zz' is no device of this machine; there are {A}"),
        (TWO_ALIKE, 1, ["GPU-aa"], None, "train.devices: 'GPU-aa' is several devices of this machine;"),
        (
            TWO_KINDS,
            1,
            None,
            "1",
            "CUDA_VISIBLE_DEVICES: which device '1' is depends on CUDA_DEVICE_ORDER, since those",
        ),
        (DIVIDED, 1, [0], None, f"train.devices: '0' is divided (MIG); name its parts. There are {PART_1}, {PART_2}, "),
    ],
)
def test_what_it_may_not_have_is_refused(
    listed: str,
    gpus: int,
    devices: list[Any] | None,
    visible: str | None,
    message: str,
    a_run: Callable[..., Run],
    nvidia_smi: NvidiaSmi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if listed:
        nvidia_smi(listed)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    run = a_run(gpus, devices)
    with pytest.raises(RamTrainError) as refused:
        count([run], ended=set())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(RamTrainError, match=re.escape(str(refused.value))), given(run, "/w"):
        pytest.fail("it is given devices")
    assert count([run], ended={"a"}) == 0, "a run that need not be trained is no matter"


def test_the_runs_of_a_call_have_so_many_together(a_run: Callable[..., Run], nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi(TWO_ALIKE)
    runs = [a_run(1, [0]), a_run(1, [B], "b"), a_run(None, [C], "c"), a_run(0, [C], "d")]
    assert count(runs, ended=set()) == 2
    assert count(runs[2:], ended=set()) == 0


@pytest.mark.parametrize(
    ("gpus", "devices", "visible", "listed", "expected"),
    [
        (None, [0], "7", "", {VISIBLE: "7"}),
        (0, [0], "7", "", {VISIBLE: ""}),
        (2, [2, 0, 1], None, "", {VISIBLE: "2,0", ORDER: "PCI_BUS_ID"}),
        (1, [1], None, TWO_KINDS, {VISIBLE: "1", ORDER: "PCI_BUS_ID"}),
        (2, [0, B], None, TWO_KINDS, {VISIBLE: f"{A},{B}"}),
        (1, None, "1", TWO_ALIKE, {VISIBLE: "1"}),
        (1, None, "GPU-aab", TWO_ALIKE, {VISIBLE: B}),
        (1, None, None, TWO_ALIKE, {VISIBLE: A}),
    ],
)
def test_what_the_trainer_is_told(
    gpus: int | None,
    devices: list[Any],
    visible: str | None,
    listed: str,
    expected: dict[str, str],
    a_run: Callable[..., Run],
    nvidia_smi: NvidiaSmi,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if listed:
        nvidia_smi(listed)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    run = a_run(gpus, devices)
    # An adapter's variable, or the config's, does not take the place of the device that is the run's.
    adapter = {VISIBLE: "9"} if gpus else {}
    lease = acquire(run, workdir)
    stage = stage_project(run, lease)
    with given(run, "/w") as own:
        run = replace(run, environment=adapter, trainer=replace(run.trainer, environment=adapter))
        environment = trainer_environment(run, lease, stage, own)
    release(lease)
    assert {name: environment[name] for name in (VISIBLE, ORDER) if name in environment} == expected


def test_each_run_has_its_own_whatever_it_is_called(
    a_run: Callable[..., Run], nvidia_smi: NvidiaSmi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    nvidia_smi(TWO_ALIKE)
    with given(a_run(1, [0, 1]), "/w") as first, given(a_run(1, [A, B], "b"), "/w") as second:
        assert [device.uuid for device in first.devices + second.devices] == [A, B]
        assert {os.fstat(lock).st_ino for lock in first.locks + second.locks} == {
            path.stat().st_ino for path in user_root().glob("held-*")
        }
    assert f"run a: device {A} (0)" in caplog.messages
    assert f"run b: device {B}" in caplog.messages
    assert not user_root().exists()


def test_no_other_way_to_train_is_another_training(a_run: Callable[..., Run]) -> None:
    assert a_run(1, [0]).training == a_run(None).training


def test_a_run_waits_for_all_that_it_needs_and_takes_none_before(
    a_run: Callable[..., Run], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = given(a_run(1, [0, 1, 2], "first"), "/one")
    second = given(a_run(1, [1], "second"), "/two")
    first.__enter__()
    second.__enter__()
    naps = []

    def sleep(_: float) -> None:
        naps.append(1)
        with given(a_run(1, [2], "third"), "/three") as third:
            assert third.devices[0].uuid == "2", "what does not suffice is left to others"
        if len(naps) == 2:
            second.__exit__(None, None, None)

    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=sleep))
    with given(a_run(2, [0, 1, 2], "large"), "/four") as large:
        assert [device.uuid for device in large.devices] == ["1", "2"]
    first.__exit__(None, None, None)
    assert len(naps) == 2
    said = [message for message in caplog.messages if "waiting" in message]
    assert said == [
        "run large: waiting for 2 devices: 1 of those that it may have is free. run first in /one has device 0; "
        "run second in /two has device 1. Ctrl-C ends the wait."
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, caller.TOLD_TO_END], ids=lambda number: number.name)
def test_a_signal_ends_the_wait(
    number: signal.Signals, a_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), number)))
    with given(a_run(1, [0]), "/w"):
        with (
            pytest.raises(RamTrainError, match=r"run b: .* while it waited for 1 device; nothing was started"),
            given(a_run(1, [0], "b"), "/w"),
        ):
            pytest.fail("both have it")
        assert len(list(user_root().glob("held-*"))) == 1


def test_a_training_that_was_not_to_be_is_not_forgotten(
    a_run: Callable[..., Run], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake would find an older export good enough after a wait that was cut short."""
    run = a_run(1, [0])
    lease = acquire(run, workdir)
    stage = stage_project(run, lease)
    export_file(run.run).parent.mkdir(parents=True)
    export_file(run.run).write_text(json.dumps({}))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGINT)))
    with given(a_run(1, [0], "other"), "/w"), pytest.raises(RamTrainError, match="while it waited for 1 device"):
        supervise.train(run, lease, stage)
    assert not export_file(run.run).exists()
    release(lease)


def test_processes_of_others_are_told_of(
    a_run: Callable[..., Run], nvidia_smi: NvidiaSmi, caplog: pytest.LogCaptureFixture
) -> None:
    nvidia_smi(TWO_ALIKE, apps=f"{A}, 12, /usr/bin/python3\n{B}, 13, other\n")
    with given(a_run(1, [0, 1]), "/w"):
        pass
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [f"run a: device {A} is also used by process 12 /usr/bin/python3, which RamTrain knows nothing of"]


def test_an_nvidia_smi_that_hangs_is_given_up(
    nvidia_smi: NvidiaSmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("ramtrain.devices._NVIDIA_SMI_S", 0.2)
    assert ask_machine().why_none == "nvidia-smi --list-gpus: has not ended within 0.2 s"


def test_a_signal_does_not_wait_for_nvidia_smi(a_run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nkill -USR1 $PPID\nexec sleep 60\n")
    with (
        pytest.raises(RamTrainError, match="a signal to Snakemake while it waited for 1 device; nothing was started"),
        given(a_run(1), "/w"),
    ):
        pytest.fail("it is given devices")
