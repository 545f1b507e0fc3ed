"""Memory that does not suffice, for whole calls: refused, waited for, shared, or left alone for the disk."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import Ended, memory_group, needs_root, small_config
from workplace import Workplace, resuming_config, snakemake_argv

from ramtrain.lease import MARK, ram_root, used_in
from ramtrain.namespace import ENTER

MIB = 1 << 20
GIB = 1 << 30
RUN = "my_pr_ject_"

Snakemake = Callable[..., Ended]


def record(workdir: Path, run: str = RUN) -> dict[str, Any]:
    return json.loads((workdir / "results" / run / "record.json").read_text())


@pytest.fixture
def in_group() -> Iterator[list[str]]:
    """Return what is put before a command to run it in a memory cgroup of 1 GiB."""
    with memory_group(GIB) as folder:
        yield ["sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh"]


def test_in_a_cgroup_that_is_too_small_it_is_refused_beforehand(
    in_group: list[str], snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, **{"ramdisk.size": "2G"})
    ended = snakemake(config, "train", prefix=in_group)
    assert ended.status != 0
    for part in (
        "its RAM disk does not fit in memory, nothing was started:\n",
        "limited to 1 GiB (what runs hold already is not in it)",
        "-512 MiB  kept free (guard.reserve)\n",
        "  -2 GiB  run my_pr_ject_ (ramdisk.size)\n",
        "  is missing\n",
        "- a smaller ramdisk.size, here and now at most ",
        "- ramdisk.fallback: disk, which trains",
    ):
        assert part in ended.output, ended.output
    assert not ram_root(workdir).exists()

    config["ramdisk"]["fallback"] = "disk"
    ended = snakemake(config, "train", prefix=in_group)
    assert ended.status == 0, ended.output
    assert f"run {RUN}: IT IS TRAINED ON THE DISK, as ramdisk.fallback says." in ended.output
    written = record(workdir)["ramdisk"]
    assert written["backend"] == "disk"
    assert written["why"].startswith("ramdisk.fallback: disk, since run my_pr_ject_: its RAM disk does not fit")


def test_the_size_that_is_found_fits_into_the_cgroup(
    in_group: list[str], snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, **{"ramdisk.size": "auto", "guard.reserve": "100M"})
    refused = snakemake(config, "train", prefix=in_group)
    assert refused.status != 0, "of nothing known 1 GiB is the least, and some of it is taken"
    assert (
        "  -1 GiB  run my_pr_ject_ (RAM disk: all that guard.reserve leaves, since nothing is known" in refused.output
    )
    fitting = snakemake(small_config(project), "train", prefix=in_group)
    assert fitting.status == 0, fitting.output
    config["train"] = {"seed": 2}
    known = snakemake(config, "train", prefix=in_group)
    assert known.status == 0, known.output
    assert f"run {RUN}: planned for its RAM disk:\n" in known.output
    assert f"what it writes (the most that run {RUN} held)" in known.output
    written = record(workdir)["ramdisk"]
    assert 129 * MIB < written["size_bytes"] < 140 * MIB
    assert written["size_from"] == f"what it writes: the most that run {RUN} held; margin"


@needs_root("a /dev/shm of its own, as a container has it")
def test_dev_shm_of_a_container(workdir: Path, project: Path) -> None:
    """64 MB, as docker run has it without --shm-size: a message with what to do, and the disk where that is wanted."""
    small_shm = 'mount -t tmpfs -o size=64m shm /dev/shm && exec "$@"'
    argv = [*ENTER["mount"], "sh", "-c", small_shm, "sh", *snakemake_argv("train", "--configfile", "my.yaml")]

    def call(size: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        config = small_config(project, **{"ramdisk.backend": "shm", "ramdisk.size": size, **changes})
        (workdir / "my.yaml").write_text(yaml.safe_dump(config))
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    for size, needed in (("100M", "100 MiB"), ("auto", "1 GiB")):
        refused = call(size)
        assert refused.returncode != 0
        assert f"/dev/shm has 64 MiB free, ramdisk.size is {needed} (in a container, start it with" in refused.stderr
        assert "ramdisk.fallback: disk" in refused.stderr
    fell_back = call("auto", **{"ramdisk.fallback": "disk"})
    assert fell_back.returncode == 0, fell_back.stderr
    assert "IT IS TRAINED ON THE DISK" in fell_back.stderr
    assert record(workdir)["ramdisk"]["backend"] == "disk"


class Calls:
    """Two calls of one user, each in a working directory of its own, for which there is memory one after the other."""

    def __init__(self, first: Workplace, second: Workplace) -> None:
        self.first = first
        self.second = second

    def start(self, pause_s: float, **environment: str) -> None:
        """Start the first, and, once it trains, the second, which waits."""
        self.first.start(pause_s, **environment)
        self.first.wait_for("overlay/upper/output/run/checkpoint_[2-9].pth")
        self.start_second()

    def start_second(self) -> None:
        """Start the second, which waits."""
        self.second.start(pause_s=0.0)
        deadline = time.monotonic() + self.second.patience_s
        while "waiting for memory" not in self.second.said():
            assert time.monotonic() < deadline, self.second.said()
            time.sleep(0.05)


@pytest.fixture
def calls(workplace: Workplace, resuming: Path, tmp_path: Path) -> Iterator[Calls]:
    available_bytes = psutil.virtual_memory().available
    if available_bytes < 5 * GIB // 2:
        pytest.skip("needs 2.5 GiB of memory that is available")
    # 2 GiB may be promised, each wants 1.2: what other processes take and give back meanwhile changes nothing.
    config = {"ramdisk.size": "1200M", "guard.reserve": available_bytes - 2 * GIB}
    workplace.configure(resuming_config(resuming, **config))
    folder = tmp_path / "second"
    folder.mkdir()
    second = Workplace(folder, resuming_config(resuming, **config))
    yield Calls(workplace, second)
    second.reboot()


def test_two_calls_are_not_promised_the_same_memory(calls: Calls) -> None:
    calls.start(pause_s=0.3)
    assert not list(calls.second.ram.glob(MARK)), "nothing is mounted while it waits"
    assert calls.first.wait() == 0, calls.first.said()
    assert calls.second.wait() == 0, calls.second.said()
    said = calls.second.said()
    assert said.count("waiting for memory") == 1
    assert f"run resuming in {calls.first.workdir} has been promised 1.17 GiB and holds " in said
    assert "run resuming: there is memory now" in said
    ended_s, mounted_s = (
        json.loads((place.results / "record.json").read_text())[key]
        for place, key in ((calls.first, "ended"), (calls.second, "started"))
    )
    assert ended_s[:10] == mounted_s[:10]
    for place in (calls.first, calls.second):
        place.check_finished()


def test_a_call_that_waits_can_be_ended(calls: Calls) -> None:
    calls.start(pause_s=0.0, FAULT="stall@3")
    _ends(calls.second, lambda snakemake: os.killpg(snakemake.pid, signal.SIGINT))
    calls.start_second()
    _ends(calls.second, lambda snakemake: snakemake.send_signal(signal.SIGTERM))


def _ends(waiting: Workplace, end: Callable[[psutil.Popen], None]) -> None:
    """Check that a call ends although what it waits for does not."""
    assert waiting.snakemake is not None
    end(waiting.snakemake)
    assert waiting.wait(within_s=30) != 0
    assert "while it waited for memory; nothing was started. To go on, type `snakemake" in waiting.said()
    assert not waiting.ram.parent.exists()


TRAINER = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
(out / "large").write_bytes(bytes(60 << 20))
time.sleep(0.7)
if sys.argv[2] == "r3":
    sys.exit("oh")
(out / "model.bin").write_text(sys.argv[2])
"""


class Sampler(threading.Thread):
    """Looks all the time how much the runs of a working directory hold in RAM, and how many of them there are."""

    def __init__(self, workdir: Path) -> None:
        super().__init__(daemon=True)
        self.root = ram_root(workdir)
        self.most_bytes = self.most_runs = self.samples = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.02):
            held = []
            for mark in list(self.root.glob(f"*/{MARK}")):
                with contextlib.suppress(OSError):  # it is being released
                    held.append(self._held_bytes(mark.parent))
            self.samples += 1
            self.most_bytes, self.most_runs = max(self.most_bytes, sum(held)), max(self.most_runs, len(held))

    @staticmethod
    def _held_bytes(state: Path) -> int:
        if os.geteuid() != 0:
            return used_in(state, "shm")
        usage = os.statvfs(state)
        is_mounted = usage.f_blocks * usage.f_frsize == 64 * MIB
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize if is_mounted else 0


@pytest.mark.usefixtures("rebooted")
def test_a_sweep_stays_within_its_budget(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    """8 runs of one thread and of two, whose sizes come to 4 times the budget; one fails and keeps what it holds: no
    deadlock."""
    runs = [f"r{number}" for number in range(1, 9)]
    rows = [f"{run}\t{threads}" for run, threads in zip(runs, itertools.cycle(["", "2"]), strict=False)]
    (workdir / "runs.tsv").write_text("\n".join(["run\ttrain.threads", *rows]) + "\n")
    config = small_config(project, runs="runs.tsv", staging="none")
    command = [sys.executable, "-c", TRAINER, "{ram}", "{run}"]
    config["project"] |= {"command": command, "model": ["model.bin"], "checkpoints": []}
    sampler = Sampler(workdir)
    sampler.start()
    ended = snakemake(config, "train", "--resources", "ramdisk_mb=128", "--keep-going", cores=4)
    sampler.is_over.set()
    sampler.join()
    assert ended.status != 0, "one has failed"
    assert sorted(path.parent.name for path in (workdir / "results").glob("*/record.json")) == [
        run for run in runs if run != "r3"
    ], ended.output
    assert sampler.samples > 50
    assert sampler.most_runs == 2, "two at a time fit"
    assert 60 * MIB < sampler.most_bytes <= 128 * MIB
