"""Every ending of a training, really caused: nothing is left over, the disk is whole, what is said finishes the run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import memory_group, needs_root
from workplace import EPOCHS, RUN, Workplace, expected_losses, expected_state, resuming_config, state_of

from ramtrain.baseline import BASELINE, Baseline
from ramtrain.ramdisk import SHM


def kill_snakemake(place: Workplace) -> None:
    place.snakemake.kill()


def kill_script(place: Workplace) -> None:
    place.process("train_run.py", "scripts").kill()


def kill_keeper(place: Workplace) -> None:
    place.process("ramtrain.keeper").kill()


def kill_trainer(place: Workplace) -> None:
    place.process("train.py", "--epochs").kill()


def signal_group(number: signal.Signals) -> Callable[[Workplace], None]:
    return lambda place: os.killpg(place.snakemake.pid, number)


def signal_snakemake(number: signal.Signals) -> Callable[[Workplace], None]:
    return lambda place: place.snakemake.send_signal(number)


KILLS = {
    "SIGKILL of the keeper": (kill_keeper, "the process that kept the trainer was killed"),
    "SIGKILL of the trainer": (kill_trainer, "the trainer was killed by SIGKILL"),
    "SIGTERM to the group": (signal_group(signal.SIGTERM), "the trainer was ended by "),
    "SIGHUP to the group": (signal_group(signal.SIGHUP), "the trainer was ended by SIGHUP"),
    "SIGTERM to Snakemake alone": (signal_snakemake(signal.SIGTERM), "the trainer was ended by a signal to Snakemake"),
    "SIGINT to Snakemake alone": (signal_snakemake(signal.SIGINT), "the trainer was ended by a signal to Snakemake"),
    "SIGKILL of Snakemake": (kill_snakemake, "the trainer was ended by the end of Snakemake"),
    "SIGKILL of the script": (kill_script, f"is in RAM, {SHM}/ramtrain-"),
    "Ctrl-C to the group": (signal_group(signal.SIGINT), "the trainer was ended by "),
}


@pytest.mark.parametrize("kills", [tuple(KILLS)[first::3] for first in range(3)], ids=", ".join)
def test_by_force_three_times_in_one_training(kills: tuple[str, ...], workplace: Workplace) -> None:
    epochs = (3, 6, 9, EPOCHS)
    workplace.start(FAULT=f"stall@{epochs[0] + 1}")
    for kill, epoch, until in zip(kills, epochs[:-1], epochs[1:], strict=True):
        kill_after_epoch(epoch, kill, workplace)
        before = workplace.said()
        workplace.start_what_is_said(before, FAULT=f"stall@{until + 1}")
        (went_on_from,) = re.findall(r"going on from output/run/checkpoint_(\d+)\.pth", wait_until_it_trains(workplace))
        assert int(went_on_from) >= epoch - 1, f"{kill}: {before}"
        assert "mount_ramdisk" not in workplace.said(), "what was mounted and staged is gone on with"
    assert workplace.wait() == 0, workplace.said()
    record = workplace.check_finished()
    assert record["protection"]["resumed_from"].startswith("output/run/checkpoint_")
    assert record["protection"]["lost_s"] < 3
    assert record["protection"]["lost_steps"] in ((0, 1, 2) if kill != "SIGKILL of the script" else (0, 1, 2, None))


def kill_after_epoch(epoch: int, kill: str, workplace: Workplace) -> None:
    """End a training by force once this checkpoint is there; check what is left and what is said."""
    cause, said = KILLS[kill]
    workplace.wait_for(f"overlay/upper/output/run/checkpoint_{epoch}.pth")
    cause(workplace)
    assert workplace.wait() != 0, kill
    workplace.wait_for_nobody()
    workplace.check_disk()
    assert said in workplace.said(), kill
    if kill != "SIGKILL of the script":  # it had no time to say where
        assert "Its newest checkpoint is output/run/checkpoint_" in workplace.said(), kill


def wait_until_it_trains(workplace: Workplace) -> str:
    """Wait until the trainer is started; return what was said until then."""
    deadline = time.monotonic() + workplace.patience_s
    while "training; its output" not in (said := workplace.said()):
        assert workplace.snakemake.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


@pytest.mark.parametrize("kill", ["SIGKILL of the script", "Ctrl-C to the group"])
def test_by_force_and_then_a_reboot(kill: str, workplace: Workplace) -> None:
    workplace.start(FAULT="stall@9")
    workplace.wait_for("results/resuming/checkpoints/attempt.json")
    KILLS[kill][0](workplace)
    workplace.wait()
    workplace.wait_for_nobody()
    workplace.reboot()
    workplace.check_disk()
    workplace.type_what_is_said(workplace.said())
    record = workplace.check_finished()
    assert "from the durable checkpoint" in record["protection"]["resumed_source"]
    assert record["protection"]["lost_s"] is not None
    epochs = [int(number) for number in re.findall(r"EPOCH: (\d+)/", (workplace.results / "train.log").read_text())]
    first = int(re.findall(r"_(\d+)\.pth", record["protection"]["resumed_from"])[0]) + 1
    before, after = epochs[: epochs.index(first, -(EPOCHS - first + 1))], list(range(first, EPOCHS + 1))
    assert epochs == before + after, "it goes on with the epoch after the checkpoint's"
    assert before == list(range(1, len(before) + 1)), "the log of before came back as well"
    assert len(before) >= first - 1
    metric, losses = record["metrics"]["avg_loss"], expected_losses()
    assert (metric["final"], metric["best"]) == (losses[-1], min(losses)), "of all attempts"
    assert metric["step_of_best"] == losses.index(min(losses)) + 1


@pytest.mark.parametrize("best", [2, 4])
def test_the_best_model_of_an_earlier_epoch_outlives_a_reboot(best: int, workplace: Workplace, resuming: Path) -> None:
    config = resuming_config(resuming, **{"protect.max_loss": "1 s"})
    config["project"]["command"] += ["--best", str(best)]
    workplace.configure(config)
    workplace.start(FAULT="exit@9")
    assert workplace.wait() != 0
    assert len(list(workplace.results.glob("checkpoints/best-*"))) == 1
    workplace.check_disk()
    workplace.reboot()
    workplace.type_what_is_said(workplace.said())
    record = workplace.check_finished(epochs=best)
    assert "from the durable checkpoint" in record["protection"]["resumed_source"]
    assert not (workplace.results / "checkpoints").exists()


@pytest.fixture
def baseline(workplace: Workplace) -> dict[str, Any]:
    """Put a baseline of the training where a benchmark leaves it; return it."""
    project = yaml.safe_load(workplace.configfile.read_text())["project"]
    measured = (1, 9, 9, 99, 99, 99, 9)
    found = asdict(Baseline(RUN, project["path"], project["command"], "2026-01-01T00:00:00+00:00", *measured))
    workplace.results.parent.mkdir()
    (workplace.results.parent / BASELINE).write_text(json.dumps({"baseline": found}))
    return found


def test_success_and_what_was_saved_by_the_baseline(workplace: Workplace, baseline: dict[str, Any]) -> None:
    workplace.start(pause_s=0.4)
    assert workplace.wait() == 0, workplace.said()
    workplace.wait_for_nobody()
    record = workplace.check_finished()
    drain, protection = record["writes"]["drain"], record["protection"]
    assert 1 <= drain["checkpoints"] < EPOCHS
    assert drain["skipped"] >= 1
    assert protection["resumed_from"] is None
    spacing_s = max(protection["max_loss_s"], protection["longest_spacing_s"])
    assert protection["worst_loss_s"] <= spacing_s + protection["longest_drain_s"] + 1
    assert "the model is at home; its durable checkpoints are removed: 2" in workplace.said()
    assert record["writes"]["baseline"] == baseline
    assert record["writes"]["saved_bytes"] == 99 - record["writes"]["written_bytes"]


@pytest.mark.usefixtures("baseline")
def test_the_trainer_fails_and_what_is_gone_on_with_is_not_compared_with_a_whole_run(workplace: Workplace) -> None:
    workplace.start(pause_s=0.1, FAULT="exit@6")
    assert workplace.wait() != 0
    workplace.wait_for_nobody()
    workplace.check_disk()
    assert "the trainer failed with exit status 1" in workplace.said()
    assert "Its newest checkpoint is output/run/checkpoint_5.pth, still in RAM" in workplace.said()
    assert "On the disk is output/run/checkpoint_5.pth" in workplace.said()
    workplace.type_what_is_said(workplace.said())
    record = workplace.check_finished()
    assert record["protection"]["resumed_from"] == "output/run/checkpoint_5.pth"
    assert record["writes"]["baseline"] is None
    assert record["writes"]["saved_bytes"] is None


def test_out_of_memory_in_a_cgroup(workplace: Workplace) -> None:
    with memory_group(64 << 20) as cgroup:
        workplace.start(pause_s=0.1, FAULT="memory@6", CGROUP=str(cgroup))
        assert workplace.wait() != 0
        workplace.wait_for_nobody()
    workplace.check_disk()
    assert "the trainer was killed by SIGKILL" in workplace.said()
    assert "ran out of memory" in workplace.said()
    workplace.type_what_is_said(workplace.said())
    workplace.check_finished()


@needs_root("only a tmpfs of its own can be filled without filling another's")
def test_the_ram_disk_is_full(workplace: Workplace, resuming: Path) -> None:
    """So fast, and by a file that cannot be moved, that it is a matter of luck whether the guard notices."""
    workplace.configure(resuming_config(resuming, **{"guard.grow": False}))
    workplace.start(pause_s=0.1, FAULT="full@6")
    assert workplace.wait() != 0
    workplace.check_disk()
    assert "Its RAM disk of 64 MiB is full: give ramdisk.size more" in workplace.said()
    workplace.configure(resuming_config(resuming, **{"ramdisk.size": "128M"}))
    again = workplace.type_what_is_said(workplace.said())
    assert "mount_ramdisk" not in again
    record = workplace.check_finished()
    assert record["ramdisk"]["size_bytes"] == 128 << 20
    assert record["protection"]["resumed_from"] == "output/run/checkpoint_5.pth"


def test_the_results_are_deleted_meanwhile(workplace: Workplace) -> None:
    workplace.start(pause_s=0.5)
    workplace.wait_for("results/resuming/checkpoints/[0-9]*/manifest.json")
    # At once: the drain may be writing there.
    (workplace.workdir / "results").rename(workplace.workdir / "gone")
    shutil.rmtree(workplace.workdir / "gone", ignore_errors=True)
    assert workplace.wait() == 0, workplace.said()
    workplace.check_finished()


def test_unmount_brings_the_newest_checkpoint_home_and_train_goes_on_from_it(workplace: Workplace) -> None:
    workplace.start(FAULT="stall@5")
    workplace.wait_for("overlay/upper/output/run/checkpoint_4.pth")
    kill_trainer(workplace)
    workplace.wait()
    said = workplace.type_what_is_said(workplace.said(), target="unmount")
    assert f"run {RUN}: its newest checkpoint, output/run/checkpoint_" in said
    assert not workplace.ram.parent.exists()
    workplace.check_disk()
    assert workplace.run("train", "--configfile", str(workplace.configfile)).returncode == 0
    assert "the durable checkpoint" in workplace.check_finished()["protection"]["resumed_source"]


def test_unmount_needs_neither_config_nor_run(workplace: Workplace) -> None:
    workplace.start(pause_s=0.05, FAULT="exit@6")
    workplace.wait()
    workplace.configfile.unlink()
    (workplace.ram.parent / "half").mkdir()
    (workplace.ram.parent / "not ours").mkdir()
    (workplace.ram.parent / "not ours/file").touch()
    ended = workplace.run("unmount", "--config", "nothing=known")
    assert ended.returncode != 0
    assert "not ours has no mark" in ended.stdout
    assert not (workplace.ram.parent / "half").exists()
    assert f"run {RUN}: its newest checkpoint, output/run/checkpoint_5.pth" in ended.stdout
    (durable,) = workplace.results.glob("checkpoints/[0-9]*")
    assert (durable / "project/output/run/config.json").is_file()
    assert (durable / "project/output/run/trainer_0_log.txt").read_text().endswith("epoch 5\n")
    workplace.check_disk()
    shutil.rmtree(workplace.ram.parent)


def test_unmount_goes_by_the_globs_that_the_training_began_with(workplace: Workplace, resuming: Path) -> None:
    workplace.configure(resuming_config(resuming, **{"project.model": ["output/run/*.pth", "no such"]}))
    workplace.start(pause_s=0)
    assert workplace.wait() != 0
    workplace.configure(resuming_config(resuming))
    said = workplace.run("unmount").stdout
    assert "'no such' matches nothing" in said, "it goes by the globs that the training began with"
    assert not workplace.ram.parent.exists()
    assert state_of(next(workplace.results.glob("checkpoints/[0-9]*/project/output/run/checkpoint_12.pth")))


def test_discard_throws_away_and_says_what(workplace: Workplace) -> None:
    workplace.start(pause_s=0.05, FAULT="exit@6")
    workplace.wait()
    said = workplace.run("unmount", "--config", "discard=true").stdout
    assert f"run {RUN}: thrown away as asked: all that it wrote, 4 files of 1 MiB" in said
    assert not workplace.ram.parent.exists()
    assert not list(workplace.results.glob("rescued-*"))


def test_a_changed_training_starts_clean_and_the_earlier_model_stays(workplace: Workplace, resuming: Path) -> None:
    workplace.start(pause_s=0)
    assert workplace.wait() == 0
    first = workplace.check_finished()
    changed = resuming_config(resuming)
    changed["project"]["command"] += ["--lr", "0.2"]
    workplace.configure(changed)
    workplace.start(FAULT="stall@4")
    workplace.wait_for("overlay/upper/output/run/checkpoint_3.pth")
    kill_trainer(workplace)
    workplace.wait()
    changed["project"]["command"][-1] = "0.3"
    workplace.configure(changed)
    said = workplace.run("train", "--configfile", str(workplace.configfile), FAULT="exit@2").stdout
    assert "the training was changed (command) and starts anew" in said
    assert state_of(workplace.results / "model/best_model.pth") == state_of_first(first, workplace)
    (aside,) = [
        folder
        for folder in workplace.results.glob("checkpoints/[0-9]*")
        if "0.2" in json.loads((folder / "manifest.json").read_text())["fingerprint"]["training"]["command"]
    ]
    assert str(aside.relative_to(workplace.workdir)) in said
    ended = workplace.run("train", "--configfile", str(workplace.configfile))
    assert ended.returncode == 0, ended.stdout
    assert f"there stay {aside.name}" in ended.stdout
    shutil.rmtree(aside)
    workplace.check_finished(lr="0.3")

    changed["project"]["command"][-1] = "0.2"
    (resuming / "notes.txt").write_text("an input")
    workplace.configure(changed)
    dry = workplace.run("train", "--configfile", str(workplace.configfile), "--dry-run").stdout
    assert "Params have changed" in dry


def state_of_first(record: dict, workplace: Workplace) -> str:
    (model,) = record["model"]
    assert model["path"] == "model/best_model.pth"
    return state_of(workplace.results / model["path"])


def test_an_interrupted_retraining_is_never_taken_for_done(workplace: Workplace, resuming: Path) -> None:
    changed = resuming_config(resuming, **{"protect.max_loss": "1 s"})
    changed["project"]["command"] += ["--lr", "0.1"]
    workplace.configure(changed)
    workplace.start(pause_s=0)
    assert workplace.wait() == 0
    for kill, rebooted, lr, earlier in (
        ("SIGKILL of Snakemake", True, "0.2", "0.1"),
        ("SIGKILL of the trainer", False, "0.3", "0.2"),
        ("SIGTERM to the group", True, "0.4", "0.3"),
    ):
        changed["project"]["command"][-1] = lr
        workplace.configure(changed)
        workplace.start(FAULT="stall@9")
        workplace.wait_for("results/resuming/checkpoints/[0-9]*/manifest.json")
        KILLS[kill][0](workplace)
        assert workplace.wait() != 0, kill
        workplace.wait_for_nobody()
        if rebooted:
            workplace.reboot()
        assert state_of(workplace.results / "model/best_model.pth") == expected_state(earlier), (
            "the earlier model stays"
        )
        workplace.type_what_is_said(workplace.said())
        assert workplace.check_finished(lr=lr)["protection"]["resumed_from"], kill


def test_changed_inputs_start_clean_unless_told_otherwise(workplace: Workplace, resuming: Path) -> None:
    workplace.start(pause_s=0.05, FAULT="exit@6")
    workplace.wait()
    (resuming / "train.py").write_text((resuming / "train.py").read_text() + "# mended\n")
    said = workplace.run("train", "--configfile", str(workplace.configfile), FAULT="exit@3").stdout
    assert "the training was changed (train.py) and starts anew" in said
    assert "--config resume=results/resuming/checkpoints/" in said
    ended = workplace.run("train", "--configfile", str(workplace.configfile), "--config", "resume=always")
    assert ended.returncode == 0, ended.stdout
    assert "going on from output/run/checkpoint_" in ended.stdout
    shutil.rmtree(workplace.results / "checkpoints", ignore_errors=True)
    workplace.check_finished()


@pytest.mark.parametrize("spoilt", ["cannot be loaded", "is not what was kept"])
def test_a_bad_checkpoint_is_marked_and_an_older_one_taken(spoilt: str, workplace: Workplace, resuming: Path) -> None:
    config = resuming_config(resuming, **{"protect.keep": 2})
    config["project"]["command"] += ["--keep", "2"]
    workplace.configure(config)
    workplace.start(pause_s=0.8, FAULT="exit@6")
    workplace.wait()
    older = "output/run/checkpoint_4.pth"
    if spoilt == "cannot be loaded":
        for newest in workplace.ram.glob("overlay/upper/output/run/checkpoint_5.pth"):
            with zipfile.ZipFile(newest, "w") as archive:
                archive.writestr("data.pkl", "{}")
        shutil.rmtree(workplace.results / "checkpoints")  # else the same is taken from there
    else:
        workplace.reboot()
        durable = sorted(workplace.results.glob("checkpoints/[0-9]*"))
        assert len(durable) == 2
        older = json.loads((durable[0] / "manifest.json").read_text())["checkpoint"]  # the bound needs not every one
        with (durable[-1] / "project/output/run/checkpoint_5.pth").open("r+b") as file:
            file.write(b"spoilt")
    ended = workplace.run("train", "--configfile", str(workplace.configfile))
    assert ended.returncode == 0, ended.stdout
    assert f"going on from {older}" in ended.stdout, ended.stdout
    assert "checkpoint_5.pth" in ended.stdout
    (failed,) = workplace.results.glob("checkpoints/failed-*")
    assert failed.name in ended.stdout
    shutil.rmtree(failed)
    record = workplace.check_finished()
    assert record["protection"]["resumed_from"] == older


def test_a_training_changed_after_a_reboot_says_so_and_can_go_on(workplace: Workplace, resuming: Path) -> None:
    workplace.start(pause_s=0.05, FAULT="exit@6")
    workplace.wait()
    workplace.reboot()
    (resuming / "train.py").write_text((resuming / "train.py").read_text() + "# mended\n")
    said = workplace.run("train", "--configfile", str(workplace.configfile), FAULT="exit@3").stdout
    assert "the training was changed (train.py) and starts anew. Of the earlier one there is results/" in said
    assert workplace.run("unmount").returncode == 0
    command = re.findall(r"`(snakemake .* --config resume=\S+)`", said)[0]
    ended = workplace.run(*shlex.split(command)[3:])
    assert ended.returncode == 0, ended.stdout
    shutil.rmtree(workplace.results / "checkpoints", ignore_errors=True)
    assert workplace.check_finished()["protection"]["resumed_from"] == "output/run/checkpoint_5.pth"


def test_one_run_that_fails_does_not_keep_another_from_coming_home(workplace: Workplace, resuming: Path) -> None:
    (workplace.workdir / "runs.tsv").write_text("run\tcommand\nbad\tfalse\ngood\ttrue\n")
    config = resuming_config(resuming, runs="runs.tsv")
    config["project"].update(
        {"command": ["bash", "-c", "{command} && touch model"], "model": ["model"], "trainer": "generic"}
    )
    workplace.configure(config)
    ended = workplace.run("train", "--configfile", str(workplace.configfile))
    assert ended.returncode != 0
    assert (workplace.workdir / "results/good/model/model").exists()
    assert "run bad: what it wrote is in RAM" in ended.stdout


def test_when_none_can_be_loaded_they_stay_and_it_is_said_how_to_start_anew(workplace: Workplace) -> None:
    workplace.start(pause_s=0.05, FAULT="exit@6")
    workplace.wait()
    (newest,) = workplace.ram.glob("overlay/upper/output/run/checkpoint_5.pth")
    with zipfile.ZipFile(newest, "w") as archive:
        archive.writestr("data.pkl", "{}")
    shutil.rmtree(workplace.results / "checkpoints")
    for _ in range(2):
        ended = workplace.run("train", "--configfile", str(workplace.configfile))
        assert ended.returncode != 0
        assert "It could not go on from any of its checkpoints (output/run/checkpoint_5.pth)" in ended.stdout
        assert newest.exists(), "it is not marked: the fault may be another's"
    line = next(line for line in ended.stdout.splitlines() if "resume=never" in line)
    again = workplace.run(*shlex.split(line)[3:])
    assert again.returncode == 0, again.stdout
    shutil.rmtree(workplace.results / "checkpoints", ignore_errors=True)  # what was set aside stays
    workplace.check_finished()


def test_status_tells_of_a_training_while_snakemake_holds_its_lock(workplace: Workplace) -> None:
    workplace.start(FAULT="stall@4")
    workplace.wait_for("results/resuming/checkpoints/[0-9]*/manifest.json")
    deadline = time.monotonic() + 60
    while True:
        entry = json.loads(status("--json", place=workplace))
        if entry["newest"] == "output/run/checkpoint_3.pth" and entry["durable"]:
            break
        assert time.monotonic() < deadline, entry
        time.sleep(0.5)
    assert entry["run"] == RUN
    assert entry["is_training"]
    assert entry["durable"].startswith("results/resuming/checkpoints/")
    assert 0 <= entry["at_stake_s"] < 60
    assert entry["max_loss_s"] == 2
    assert entry["kept_off_bytes"] >= 0
    assert entry["used_bytes"] <= entry["size_bytes"] == 64 << 20
    assert "checkpoint_3.pth" in status(place=workplace)


def status(*arguments: str, place: Workplace) -> str:
    """Return what `python -m ramtrain status` says of this workplace."""
    argv = [sys.executable, "-m", "ramtrain", "status", *arguments]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    if "--json" in arguments:
        return json.dumps(next(entry for entry in json.loads(said) if entry["workdir"] == str(place.workdir)))
    return said
