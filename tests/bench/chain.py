"""Whole runs of `snakemake --cores 1 train`, the memory of RamTrain's processes meanwhile, and the example."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from figures import ENVIRONMENT, REPO, call, say

from ramtrain.errors import RamTrainError

# One thread: on a machine that is busy otherwise, threads that wait for each other make it many times slower.
EXAMPLE_ENVIRONMENT = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}


class Memory(threading.Thread):
    """The memory of what a process starts, less the trainer: all that is below a keeper.

    Sampled twice a second: `pss_bytes` is the most that all of it had together (/proc/PID/smaps_rollup, what is
    shared is divided), `rss_bytes` the sum of the train_run script's and the keeper's own peaks (VmHWM, which misses
    nothing between samples; what the two share counts twice).
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.main = psutil.Process(pid)
        self.ended = threading.Event()
        self.pss_bytes = 0
        self.peaks: dict[str, int] = {}

    @property
    def rss_bytes(self) -> int:
        """Sum of the peaks of the script and the keeper."""
        return sum(self.peaks.values())

    def run(self) -> None:
        """Sample until `ended` is set."""
        while not self.ended.wait(0.5):
            with contextlib.suppress(psutil.Error):
                self.sample()

    def sample(self) -> None:
        """Take one sample of each process."""
        total_bytes, keepers = 0, set()
        for process in self.main.children(recursive=True):  # a parent comes before its children
            with contextlib.suppress(psutil.Error, OSError):
                if process.ppid() in keepers:
                    keepers.add(process.pid)
                    continue
                command = " ".join(process.cmdline())
                total_bytes += proc_kb(process.pid, "smaps_rollup", "Pss:") * 1024
                if "ramtrain.keeper" in command:
                    keepers.add(process.pid)
                    self.note("keeper", process.pid)
                elif ".train_run.py" in command:
                    self.note("script", process.pid)
        self.pss_bytes = max(self.pss_bytes, total_bytes)

    def note(self, name: str, pid: int) -> None:
        """Take in a process's own peak."""
        self.peaks[name] = max(self.peaks.get(name, 0), proc_kb(pid, "status", "VmHWM:") * 1024)


def proc_kb(pid: int, file: str, field: str) -> int:
    """Return a field of a file in /proc/PID."""
    for line in Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


@dataclass(frozen=True)
class Chain:
    """A whole `snakemake --cores 1 train`: its seconds, its record, the memory of RamTrain's processes."""

    wall_s: float
    record: dict[str, Any]
    memory: Memory
    model: Path

    @property
    def train_s(self) -> float:
        """Seconds of the trainer, by the record."""
        return self.record["timings_s"]["train"]


def run_chain(bench: Path, config: Mapping[str, Any], env: Mapping[str, str] = ENVIRONMENT) -> Chain:
    """Run a config's only run in a new working directory, output to a file there.

    Raises:
        RamTrainError: it failed.
    """
    workdir = Path(tempfile.mkdtemp(prefix="work-", dir=bench))
    (workdir / "my.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    argv = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(REPO / "Snakefile")]
    with (workdir / "output.txt").open("wb") as output:
        started = time.monotonic()
        with subprocess.Popen(
            [*argv, "--configfile", "my.yaml", "--", "train"],
            cwd=workdir,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as snakemake:
            memory = Memory(snakemake.pid)
            memory.start()
            status = snakemake.wait()
            wall_s = time.monotonic() - started
    memory.ended.set()
    memory.join()
    if status != 0:
        raise RamTrainError(f"snakemake ended with status {status}:\n{(workdir / 'output.txt').read_text()[-3000:]}")
    [record] = workdir.glob("results/*/record.json")
    return Chain(wall_s, json.loads(record.read_text(encoding="utf-8")), memory, record.parent / "model")


def example_project(bench: Path) -> Path:
    """Return a copy of the example with its data set."""
    project = bench / "tiny_tts"
    if not project.exists():
        shutil.copytree(REPO / "examples/tiny_tts", project, ignore=shutil.ignore_patterns("output", "__pycache__"))
        say("  warm-up, not counted: an epoch of the example, bare")
        call(example_argv(1), project, bench / "bare.log", EXAMPLE_ENVIRONMENT)
        shutil.rmtree(project / "output")
    return project


def example_argv(epochs: int) -> list[str]:
    """Return the example's command."""
    return [sys.executable, "train.py", "--epochs", str(epochs), "--seed", "1"]


def example_config(project: Path, epochs: int) -> dict[str, Any]:
    """Return the example's own config for the copy of it, with other epochs."""
    config = yaml.safe_load((REPO / "config/config.yaml").read_text(encoding="utf-8"))
    runs = project.parent / f"runs-{epochs}.tsv"
    runs.write_text(f"run\tepochs\tseed\nexample\t{epochs}\t1\n", encoding="utf-8")
    config["project"]["path"] = str(project)
    config["runs"] = str(runs)
    return config
