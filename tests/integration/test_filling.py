"""Trainers that fill their RAM disk, or their memory: whole runs, with what the guard did in their records."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, Ended, memory_group, needs_root
from workplace import EPOCHS, Workplace, changed, check_folder, expected_state, resuming_config, state_of

MIB = 1 << 20
LIMIT_BYTES = 1 << 30
RUN = "filling"

Snakemake = Callable[..., Ended]

LIMITED = needs_root("only a tmpfs of its own has a limit that the kernel keeps")


@pytest.fixture
def filling(tmp_path: Path) -> Path:
    """Return a copy of the project that fills its RAM disk."""
    folder = tmp_path / RUN
    shutil.copytree(REPO / "tests" / "projects" / "filling", folder)
    return folder


def filling_config(project: Path, *arguments: str, **changes: Any) -> dict[str, Any]:
    """Return a config for it: a RAM disk of 64 MiB, and checkpoints that come to three times as much."""
    config: dict[str, Any] = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", *arguments],
            "model": ["out/model.bin"],
            "checkpoints": ["out/checkpoint_*.bin"],
        },
        "ramdisk": {"size": "64M"},
        "protect": {"max_loss": "never"},
    }
    return changed(config, changes)


def model_of(checkpoints: range, mb: int = 8) -> bytes:
    """Return the model of a training that kept these checkpoints, worked out apart from the trainer."""
    model = hashlib.sha256()
    for number in checkpoints:
        content = hashlib.sha256(str(number).encode()).digest() * (MIB // 32) * mb
        model.update(hashlib.sha256(content).digest())
    return model.digest()


def check(workdir: Path, checkpoints: range = range(1, 25), mb: int = 8) -> dict[str, Any]:
    """Check that the model is right and that the trainer never saw a full disk; return the record."""
    home = workdir / "results" / RUN
    assert (home / "model" / "model.bin").read_bytes() == model_of(checkpoints, mb)
    assert "No space left" not in (home / "train.log").read_text()
    assert not (home / "spilled").exists(), "what was spilled goes with the RAM disk"
    return json.loads((home / "record.json").read_text())


def told(record: dict[str, Any], action: str) -> list[dict[str, Any]]:
    """Return the actions of one kind, in their order."""
    return [entry for entry in record["guard"]["actions"] if entry["action"] == action]


@pytest.mark.parametrize("backend", ["auto", "disk"])
def test_it_grows(backend: str, snakemake: Snakemake, workdir: Path, filling: Path) -> None:
    """The same model as on the disk, and on the disk there is nothing to guard."""
    ended = snakemake(filling_config(filling, **{"ramdisk.backend": backend}), "train")
    assert ended.status == 0, ended.output
    record = check(workdir)
    if backend == "disk":
        assert record["guard"] == {"actions": [], "counts": {}, "paused_s": 0, "spilled_bytes": 0}
        return
    sizes = [64 * MIB]
    for entry in told(record, "grow"):
        sizes.append(sizes[-1] + entry["bytes"])
        assert f"run {RUN}: guard: grow: {entry['what']}, " in ended.output
    assert len(sizes) > 2
    assert record["ramdisk"]["size_bytes"] == sizes[-1] > 192 * MIB
    assert record["ramdisk"]["size_from"] == "ramdisk.size; enlarged by the guard"
    assert record["guard"]["counts"] == {"grow": len(sizes) - 1}
    assert record["writes"]["guard"]["disk_bytes"] < MIB


def test_it_may_not_grow_and_prunes(workplace: Workplace, resuming: Path) -> None:
    """Neither the newest nor the best, nor what is to come home; nothing is moved to the disk for that."""
    changes = {
        "guard.grow": False,
        "project.model": ["output/run/checkpoint_16.pth"],
        "project.artifacts": ["output/run/checkpoint_2.pth"],
        "project.prunable": ["output/run/*.pth"],
        "project.command": [sys.executable, "train.py", "--epochs", "16", "--mb", "8", "--keep", "99", "--best", "3"],
        "protect.max_loss": "1 h",
    }
    workplace.configure(resuming_config(resuming, **changes))
    ended = workplace.run("train", "--configfile", str(workplace.configfile), PAUSE_S="0.15")
    assert ended.returncode == 0, ended.stdout
    assert state_of(workplace.results / "model/checkpoint_16.pth") == expected_state(epochs=16)
    assert (workplace.results / "artifacts/output/run/checkpoint_2.pth").exists()
    record = json.loads((workplace.results / "record.json").read_text())
    pruned = [entry["what"] for entry in told(record, "prune")]
    numbers = [1, *range(3, len(pruned) + 2)]
    assert pruned == [f"output/run/checkpoint_{number}.pth" for number in numbers], "the oldest first"
    assert len(pruned) > 6
    assert record["guard"]["spilled_bytes"] == 0
    assert "grow" not in record["guard"]["counts"]


@pytest.mark.parametrize("staging", ["overlay over the results", "copy", "none"])
def test_it_may_not_grow_and_spills(staging: str, snakemake: Snakemake, workdir: Path, filling: Path) -> None:
    config = filling_config(filling, **{"guard.grow": False, "staging": staging.split()[0]})
    if staging == "overlay over the results":
        shutil.copy(filling / "train.py", workdir)
        config["project"]["path"], config["runs"] = ".", "runs.tsv"
        (workdir / "runs.tsv").write_text(f"run\n{RUN}\n")
    if staging == "none":
        config["project"]["command"] += ["--out", "{ram}/out"]
    if staging == "copy":  # what was spilled is among what comes home
        config["project"]["model"] = ["out/*.bin"]
    ended = snakemake(config, "train")
    assert ended.status == 0, ended.output
    record = check(workdir)
    assert len(record["model"]) == (25 if staging == "copy" else 1)
    assert not any(path.is_symlink() for path in (workdir / "results" / RUN / "model").iterdir())
    spilled = [entry["what"] for entry in told(record, "spill")]
    assert spilled == [f"out/checkpoint_{number}.bin" for number in range(1, len(spilled) + 1)], "the oldest first"
    assert len(spilled) > 15
    assert record["guard"]["spilled_bytes"] == len(spilled) * 8 * MIB
    assert len(spilled) * 8 * MIB <= record["writes"]["guard"]["disk_bytes"] < (len(spilled) + 1) * 8 * MIB
    assert record["writes"]["written_bytes"] >= record["writes"]["guard"]["disk_bytes"]
    counts = record["guard"]["counts"]
    assert counts["pause"] == counts["go on"] > 3
    assert record["guard"]["paused_s"] > 0
    assert all("its RAM disk of 64 MiB has" in entry["why"] for entry in told(record, "pause"))
    assert "grow" not in counts and "give way" not in counts
    assert (
        f"run {RUN}: memory ran short; the guard acted: pause {counts['pause']}, spill {len(spilled)}" in ended.output
    )


@LIMITED
def test_what_cannot_be_helped_ends_with_the_newest_checkpoint_at_home(
    snakemake: Snakemake, workdir: Path, filling: Path
) -> None:
    """The last checkpoint is larger than the RAM disk."""
    arguments = ("--checkpoints", "3", "--last-mb", "100", "--pause-s", "2.5", "--mb-s", "40")
    config = filling_config(filling, *arguments, **{"guard.grow": False, "protect.max_loss": "1 h"})
    ended = snakemake(config, "train")
    assert ended.status != 0
    said = ["guard: drain: out/checkpoint_2.bin", "durable checkpoint results", "guard: give way: nothing more can be"]
    found = [ended.output.index(part) for part in [*said, "the trainer failed with exit status 1"]]
    assert found == sorted(found)
    (home,) = (workdir / "results" / RUN / "checkpoints").glob("*-checkpoint_2.bin")
    check_folder(home)
    assert "Its RAM disk of 64 MiB is full: give ramdisk.size more before you go on." in ended.output
    assert snakemake(config, "unmount").status == 0


@LIMITED
@pytest.mark.usefixtures("rebooted")
def test_without_the_guard_the_drain_keeps_its_promise(snakemake: Snakemake, workdir: Path, filling: Path) -> None:
    arguments = ("--checkpoints", "24", "--pause-s", "0.2")
    config = filling_config(filling, *arguments, **{"guard.enabled": False, "protect.max_loss": "2 s"})
    ended = snakemake(config, "train")
    assert ended.status != 0
    assert "guard:" not in ended.output
    assert "No space left on device" in ended.output
    check_home(workdir)


def check_home(workdir: Path) -> None:
    """Check that of the eight checkpoints that fit into the RAM disk one of the newest is at home."""
    homes = sorted((workdir / "results" / RUN / "checkpoints").glob("*-checkpoint_[5678].bin"))
    assert homes
    check_folder(homes[-1])


@LIMITED
@pytest.mark.usefixtures("rebooted")
def test_a_guard_that_dies_lets_the_trainer_go_on(
    snakemake: Snakemake, workdir: Path, filling: Path, tmp_path: Path
) -> None:
    """It is made to fail when it moves the first file, the trainer being stopped."""
    (tmp_path / "sitecustomize.py").write_text(
        "import ramtrain.guard\n"
        "def fail(*_): raise ZeroDivisionError('on purpose')\n"
        "ramtrain.guard.Guard._spill = fail\n"
    )
    arguments = ("--checkpoints", "24", "--pause-s", "0.2")
    config = filling_config(filling, *arguments, **{"guard.grow": False, "protect.max_loss": "2 s"})
    ended = snakemake(config, "train", prefix=["env", f"PYTHONPATH={tmp_path}"])
    assert ended.status != 0
    found = [
        ended.output.index(part)
        for part in ("guard: pause", "nothing guards its memory any more", "guard: go on", "No space left on device")
    ]
    assert found[0] < min(found[1:3])
    check_home(workdir)


@pytest.fixture
def spilling(workplace: Workplace, resuming: Path) -> Workplace:
    """Return a workplace with a training whose checkpoints all come home and do not fit into its RAM disk; started, and
    some of them are spilled."""
    changes = {
        "guard.grow": False,
        "project.artifacts": ["output/run/checkpoint_*.pth"],
        "project.command": [sys.executable, "train.py", "--epochs", str(EPOCHS), "--mb", "8", "--keep", "99"],
    }
    workplace.configure(resuming_config(resuming, **changes))
    workplace.start(pause_s=0.3, FAULT="stall@10")
    workplace.wait_for("results/resuming/spilled/*-checkpoint_1.pth")
    workplace.wait_for("overlay/upper/output/run/checkpoint_8.pth")
    return workplace


def test_what_was_spilled_is_there_when_a_killed_training_goes_on(spilling: Workplace) -> None:
    spilling.process("train_run.py", "scripts").kill()
    assert spilling.wait() != 0
    spilling.wait_for_nobody()
    spilling.type_what_is_said(spilling.said(), PAUSE_S="0.3")
    spilling.check_finished()
    artifacts = spilling.results / "artifacts/output/run"
    for epoch in range(1, EPOCHS + 1):
        path = artifacts / f"checkpoint_{epoch}.pth"
        assert not path.is_symlink()
        assert state_of(path) == expected_state(epochs=epoch)
    assert not (spilling.results / "spilled").exists()


def test_unmount_brings_home_what_was_spilled(spilling: Workplace) -> None:
    spilling.process("train_run.py", "scripts").kill()
    assert spilling.wait() != 0
    shutil.rmtree(spilling.results / "checkpoints")
    spilling.type_what_is_said(spilling.said(), "unmount")
    (home,) = (spilling.results / "checkpoints").glob("*-checkpoint_*.pth")
    check_folder(home)
    assert not (spilling.results / "spilled").exists()
    assert not spilling.ram.parent.exists()


def test_after_a_reboot_what_was_spilled_is_cleared_away(spilling: Workplace) -> None:
    spilling.wait_for("results/resuming/checkpoints/*-checkpoint_*.pth")
    spilling.reboot()
    assert list((spilling.results / "spilled").iterdir())
    spilling.run("--unlock", "--configfile", str(spilling.configfile))
    ended = spilling.run("train", "--configfile", str(spilling.configfile), PAUSE_S="0.3")
    assert ended.returncode == 0, ended.stdout
    assert "from the durable checkpoint" in ended.stdout
    assert state_of(spilling.results / "model/best_model.pth") == expected_state()
    assert not (spilling.results / "spilled").exists()


@dataclass
class Group:
    """A memory cgroup, and what is put before a command to run it in there."""

    folder: Path
    enter: list[str]

    def start(self, place: Workplace) -> None:
        """Start a training in there."""
        place.start(pause_s=0.7)
        (self.folder / "cgroup.procs").write_text(str(place.snakemake.pid))


HOG = """
import pathlib, sys, time
group, limit, leave = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) << 20
hog = []
def left():
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = next(path for name in ("memory.usage_in_bytes", "memory.current") if (path := group / name).exists())
    return limit - int(used.read_text()) + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
hog.append(b"x" * max(0, left() - leave - (100 << 20)))
while left() > leave:
    hog.append(b"x" * (2 << 20))
    time.sleep(0.005)
time.sleep(float(sys.argv[4]))
"""


@contextlib.contextmanager
def eaten(group: Group, leave_mb: int, for_s: float) -> Iterator[None]:
    """Have another process take the cgroup's memory but for so much, for so long at most."""
    argv = [sys.executable, "-c", HOG, str(group.folder), str(LIMIT_BYTES), str(leave_mb), str(for_s)]
    with subprocess.Popen([*group.enter, *argv], cwd="/") as hog:
        try:
            yield
        finally:
            hog.kill()


@pytest.fixture
def group() -> Iterator[Group]:
    """Give a memory cgroup of 1 GiB."""
    with memory_group(LIMIT_BYTES) as folder:
        yield Group(folder, ["sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh"])
        told = next(path for name in ("memory.oom_control", "memory.events") if (path := folder / name).exists())
        assert "oom_kill 0\n" in told.read_text(), "the kernel has killed nothing"


def test_in_a_cgroup_that_is_too_small_it_spills(
    group: Group, snakemake: Snakemake, workdir: Path, filling: Path
) -> None:
    """1.2 GB of checkpoints and, in the end, 300 MB of the trainer's own in 1 GiB: both estimates were wrong."""
    arguments = ("--checkpoints", "10", "--mb", "120", "--mb-s", "1000", "--heap-mb", "30")
    config = filling_config(filling, *arguments, **{"ramdisk.size": "500M", "guard.reserve": "1M"})
    ended = snakemake(config, "train", prefix=group.enter)
    assert ended.status == 0, ended.output
    record = check(workdir, range(1, 11), mb=120)
    assert record["guard"]["spilled_bytes"] > 400 * MIB


def test_it_waits_while_another_process_eats_the_memory(group: Group, filling: Path, workdir: Path) -> None:
    arguments = ("--checkpoints", "12", "--mb", "1", "--pause-s", "0.5")
    place = Workplace(workdir, filling_config(filling, *arguments, **{"guard.reserve": "1M"}), RUN)
    group.start(place)
    place.wait_for("overlay/upper/out/checkpoint_3.bin")
    with eaten(group, leave_mb=40, for_s=60):
        wait_until_it_says(place, "guard: pause: 1 process (the cgroup ")
        time.sleep(3)
        assert not list(place.ram.glob("overlay/upper/out/checkpoint_1[12].bin"))
    assert place.wait() == 0, place.said()
    record = check(workdir, range(1, 13), mb=1)
    assert record["guard"]["paused_s"] > 3
    assert f"the cgroup {group.folder}, limited to 1 GiB has " in told(record, "pause")[0]["why"]


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGKILL of the script"])
def test_a_training_that_is_paused_can_be_ended(how: str, group: Group, workplace: Workplace) -> None:
    workplace.configure(resuming_config(workplace.workdir.parent / "resuming", **{"guard.reserve": "1M"}))
    group.start(workplace)
    workplace.wait_for("overlay/upper/output/run/checkpoint_[3-9].pth")
    with eaten(group, leave_mb=40, for_s=60):
        wait_until_it_says(workplace, "guard: pause")
        if how == "Ctrl-C":
            os.killpg(workplace.snakemake.pid, signal.SIGINT)
        else:
            workplace.process("train_run.py", "scripts").kill()
        assert workplace.wait(within_s=50) != 0, "before the other process ends"
        workplace.wait_for_nobody()
    workplace.type_what_is_said(workplace.said())
    workplace.check_finished()


def test_the_youngest_run_is_paused_first(group: Group, workplace: Workplace, resuming: Path, tmp_path: Path) -> None:
    config = resuming_config(resuming, **{"guard.reserve": "1M"})
    workplace.configure(config)
    (tmp_path / "second").mkdir()
    second = Workplace(tmp_path / "second", config)
    for place in (workplace, second):
        group.start(place)
        place.wait_for("overlay/upper/output/run/checkpoint_[1-9].pth")
    with eaten(group, leave_mb=48, for_s=60):
        wait_until_it_says(second, "guard: pause")
        assert workplace.wait() == 0
    assert second.wait() == 0
    assert "guard: pause" not in workplace.said()
    for place in (workplace, second):
        place.check_finished()


def wait_until_it_says(place: Workplace, text: str) -> None:
    deadline = time.monotonic() + place.patience_s
    while text not in place.said():
        assert time.monotonic() < deadline, place.said()
        time.sleep(0.05)
