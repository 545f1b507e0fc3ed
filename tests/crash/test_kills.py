"""Endings by force while a run trains: no orphan, the RAM disk with its files stays, the named commands finish it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import Ended, small_config, snakemake_argv

from ramtrain.ramdisk import ram_root

STEPS = 30  # at half a second each: longer than it takes to see that nothing is left
ORPHANS_GONE_S = 5.0


class Training:
    """A call of Snakemake in a session of its own, as a terminal would start it, while its trainer trains."""

    def __init__(self, config: dict[str, Any], workdir: Path, project: Path) -> None:
        self.workdir = workdir
        self.project = project
        path = workdir / "my.yaml"
        path.write_text(yaml.safe_dump(config))
        self.output = workdir / "output.txt"
        with self.output.open("w") as output:
            self.snakemake = psutil.Popen(
                snakemake_argv("train", "--configfile", str(path)),
                cwd=workdir,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_signals,
                env={**os.environ, "PAUSE_S": "0.5"},
            )
        self.checkpoint = self._wait_for("overlay/upper/out/checkpoint_3.bin")

    def _wait_for(self, pattern: str) -> Path:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := list(ram_root(self.workdir).glob(f"*/{pattern}")):
                return found[0]
            assert self.snakemake.poll() is None, self.output.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no checkpoint in RAM: {self.output.read_text()}")

    def process(self, *words: str) -> psutil.Process:
        """Return the first process below Snakemake whose command line has all of `words`."""
        return next(
            process
            for process in self.snakemake.children(recursive=True)
            if all(any(word in part for part in process.cmdline()) for word in words)
        )

    def ours(self) -> list[psutil.Process]:
        """Return every process that has to do with this run: Snakemake, script, keeper, trainer, and what it left."""
        found = []
        for process in psutil.process_iter():
            try:
                places = [*process.cmdline(), process.cwd()]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and any(str(self.workdir.parent) in place for place in places):
                found.append(process)
        return found

    def end(self) -> None:
        for process in self.ours():
            process.kill()


def _heed_signals() -> None:
    # Tests started under nohup, or in a shell's background, would pass on that SIGHUP or SIGINT is ignored.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def training(workdir: Path, project: Path) -> Iterator[Training]:
    config = small_config(project)
    config["project"]["command"] += ["--steps", str(STEPS), "--leave"]
    started = Training(config, workdir, project)
    yield started
    started.end()


def kill_snakemake(training: Training) -> None:
    training.snakemake.kill()


def kill_script(training: Training) -> None:
    training.process("train_run.py", "scripts").kill()


def kill_keeper(training: Training) -> None:
    training.process("ramtrain.keeper").kill()


def kill_trainer(training: Training) -> None:
    training.process("train.py", "--steps").kill()


def interrupt_group(training: Training) -> None:
    os.killpg(training.snakemake.pid, signal.SIGINT)


def terminate_group(training: Training) -> None:
    os.killpg(training.snakemake.pid, signal.SIGTERM)


def hang_up_group(training: Training) -> None:
    os.killpg(training.snakemake.pid, signal.SIGHUP)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (kill_snakemake, None),
        (kill_script, None),
        (kill_keeper, "the process that kept the trainer was killed"),
        (kill_trainer, "the trainer was killed by SIGKILL"),
        (interrupt_group, "the trainer was ended by SIGINT"),
        (terminate_group, "the trainer was ended by SIGTERM"),
        (hang_up_group, "the trainer was ended by SIGHUP"),
    ],
)
def test_no_orphan_and_the_named_commands_finish_the_run(
    ending: Callable[[Training], None], said: str | None, training: Training, snakemake: Callable[..., Ended]
) -> None:
    folder = training.checkpoint.parent
    ending(training)
    deadline = time.monotonic() + ORPHANS_GONE_S
    while (left := training.ours()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"still there after {ORPHANS_GONE_S} s: {left}"

    assert list(folder.glob("checkpoint_*.bin")), "the RAM disk is there with its files"
    output = training.output.read_text()
    if said:
        assert said in output
        assert "still in RAM" in output

    config = yaml.safe_load((training.workdir / "my.yaml").read_text())
    again = snakemake(config, "train")
    if "--unlock" in again.output:
        assert snakemake(config, "train", "--unlock").status == 0
        again = snakemake(config, "train")
    if "--rerun-incomplete" in again.output:
        again = snakemake(config, "train", "--rerun-incomplete")
    assert again.status == 0, again.output
    assert "mount_ramdisk" not in again.output, "what was mounted and staged is gone on with"
    (record,) = training.workdir.glob("results/*/record.json")
    model = (record.parent / "model/model.bin").read_bytes()
    assert json.loads(record.read_text())["model"][0]["sha256"] == hashlib.sha256(model).hexdigest()
    assert json.loads(record.read_text())["command"][:2] == [sys.executable, "train.py"]
