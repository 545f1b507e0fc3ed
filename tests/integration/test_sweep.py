"""Sweeps: interrupted and gone on with, extended, with runs that fail, with values in every form; a run done again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from conftest import REPO, Ended, expected_model, small_config
from workplace import PATIENCE_S, Workplace, changed, expected_state, snakemake_argv, state_of

from ramtrain.schema import complete, load_yaml

Snakemake = Callable[..., Ended]

# Shows what it was given, in whichever way: as arguments, as environment, in a file.
SHOW = """\
import json, os, sys, time
from pathlib import Path
stamp = time.strftime("%Y-%m-%d %H:%M")
out = Path("out") / stamp
out.mkdir(parents=True)
given = {"arguments": sys.argv[1:], "LR": os.environ.get("LR"), "file": None}
if Path("run.json").exists():
    given["file"] = json.loads(Path("run.json").read_text())
for _ in range(10):
    with open(out / "lines.txt", "a") as lines:
        lines.write(f"{sys.argv[1]}\\n")
    time.sleep(0.05)
(out / "model.json").write_text(json.dumps(given))
"""


def record(workdir: Path, run: str) -> dict[str, Any]:
    return json.loads((workdir / "results" / run / "record.json").read_text())


def table(workdir: Path) -> pd.DataFrame:
    return pd.read_csv(workdir / "results/summary.tsv", sep="\t", dtype=str, keep_default_na=False).set_index("run")


def trained(output: str) -> set[str]:
    """Return the runs whose trainers were started, by what was said."""
    return {
        line.split(": ")[0].removeprefix("run ") for line in output.splitlines() if ": training; its output" in line
    }


def test_a_sweep_that_is_killed_twice_is_finished_and_no_run_is_trained_twice(workplace: Workplace) -> None:
    workdir = workplace.workdir
    sweep = {"lr": ["0.1", "0.2"], "epochs": [3, 4], "seeds": 2}
    config = yaml.safe_load(workplace.configfile.read_text())
    command = [sys.executable, "train.py", "--epochs", "{epochs}", "--seed", "{seed}", "--lr", "{lr}"]
    workplace.configure(changed(config, {"sweep": sweep, "project.command": command, "ramdisk.size": "32M"}))
    runs = {
        f"epochs={epochs},lr={lr},seed={seed}": expected_state(lr, seed, epochs)
        for epochs, lr, seed in itertools.product(sweep["epochs"], sweep["lr"], (1, 2))
    }
    done: set[str] = set()
    for count in (2, 4):
        begun = _train_until(workdir, count)
        assert not done & begun, "trained once more"
        workplace.wait_for_nobody()
        done = {path.parent.name for path in (workdir / "results").glob("*/record.json")}
        assert len(done) < len(runs)

    unlocked = workplace.run("--unlock", "--configfile", str(workplace.configfile))
    assert unlocked.returncode == 0, unlocked.stdout
    finished = workplace.run("--cores", "2", "train", "--configfile", str(workplace.configfile))
    assert finished.returncode == 0, finished.stdout
    assert not done & trained(finished.stdout), "trained once more"

    schema = load_yaml(REPO / "workflow/schemas/record.schema.yaml")
    begun_again = 0
    for run, state in runs.items():
        results = workdir / "results" / run
        assert state_of(results / "model/best_model.pth") == state
        complete(record(workdir, run), schema, run)
        begun_again += (results / "train.log").read_text().count("EPOCH: 1/") - 1
    assert begun_again <= 4, "only what had no checkpoint yet, of two runs at a time, when it was killed"
    rows = table(workdir)
    assert list(rows.index) == list(runs)
    assert set(rows["status"]) == {"done"}
    assert list(rows["parameters.lr"]) == [record(workdir, run)["parameters"]["lr"] for run in runs]
    again = workplace.run("train", "--configfile", str(workplace.configfile))
    assert "Nothing to be done" in again.stdout


def _train_until(workdir: Path, count: int) -> set[str]:
    """Call `train` with two cores, and kill Snakemake, as `kill -9` does, when so many records are written; return the
    runs that were trained."""
    arguments = ["train", "--configfile", "my.yaml"]
    unlock = subprocess.run(
        [*snakemake_argv("--unlock"), *arguments[1:]], cwd=workdir, check=False, capture_output=True
    )
    assert unlock.returncode == 0, unlock.stderr
    with (workdir / "output.txt").open("w") as output:
        snakemake = psutil.Popen(
            snakemake_argv(*arguments, cores=2),
            cwd=workdir,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PAUSE_S": "0.15"},
        )
    deadline = time.monotonic() + 200
    while len(list((workdir / "results").glob("*/record.json"))) < count:
        assert snakemake.poll() is None, (workdir / "output.txt").read_text()
        assert time.monotonic() < deadline, f"no {count} records after 200 s"
        time.sleep(0.02)
    snakemake.send_signal(signal.SIGKILL)
    snakemake.wait(PATIENCE_S)
    return trained((workdir / "output.txt").read_text())


def test_what_is_added_is_trained_what_is_changed_is_trained_again_and_nothing_else(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    runs = workdir / "runs.tsv"
    config = small_config(project, runs="runs.tsv")
    config["project"]["command"] += ["--steps", "{steps}"]
    runs.write_text("run\tseed\tsteps\n# a comment\na\t1\t1\n\nb\t2\t2\n")
    first = snakemake(config, "train", cores=2)
    assert first.status == 0, first.output
    assert list(table(workdir).index) == ["a", "b"]
    for run, seed, steps in (("a", 1, 1), ("b", 2, 2)):
        assert (workdir / "results" / run / "model/model.bin").read_bytes() == expected_model(seed, steps)

    rows = ("x\t3\t1\tc\t65M", "", "y z\t2\t2\tb\t", "x\t1\t1\ta\t66M\n")
    runs.write_text("\n".join(("# three now", "note\tsteps\tseed\trun\tramdisk.size", *rows)))
    added = snakemake(config, "train")
    assert added.status == 0, added.output
    assert trained(added.output) == {"c"}
    assert list(table(workdir).index) == ["c", "b", "a"]
    assert record(workdir, "c")["config"]["ramdisk"]["size"] == "65M"

    runs.write_text("run\tseed\tsteps\na\t1\t1\nb\t2\t4\nc\t1\t3\n")
    changed = snakemake(config, "train")
    assert trained(changed.output) == {"b"}
    assert "Params have changed since last execution" in changed.output
    assert "run b: is trained again: steps was 2, is 4\n" in changed.output
    assert "Nothing to be done" in snakemake(config, "train").output


def test_failed_runs_are_in_the_table_with_their_reason_until_they_are_mended(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, sweep={"status": [0, 3], "steps": [1, 2]})
    config["project"]["command"] += ["--steps", "{steps}", "--status", "{status}"]
    ended = snakemake(config, "train", "--keep-going", cores=2)
    assert ended.status != 0
    reason = "the trainer failed with exit status 3 after 0 s: giving up"
    assert f"run status=3,steps=1: failed: {reason}\n" in ended.output
    assert "2 of 4 runs did not end well; the table of all is results/summary.tsv\n" in ended.output
    rows = table(workdir)
    assert list(rows["status"]) == ["done", "done", "failed", "failed"]
    assert list(rows["reason"]) == ["", "", reason, reason]
    assert list(rows["parameters.status"]) == ["0", "0", "3", "3"]
    assert list(rows["timings_s.train"] != "") == [True, True, False, False]

    fewer = changed(config, {"sweep.status": [0]})
    without = snakemake(fewer, "train")
    assert without.status == 0, without.output
    assert trained(without.output) == set()
    assert list(table(workdir)["status"]) == ["done", "done"], "the table is made again, although no record is new"
    assert snakemake(config, "unmount").status == 0

    (project / "train.py").write_text((project / "train.py").read_text().replace("if arguments.status:", "if False:"))
    mended = snakemake(changed(config, {"sweep.status": [0, 3]}), "train")
    assert mended.status == 0, mended.output
    assert trained(mended.output) == {"status=3,steps=1", "status=3,steps=2"}
    assert list(table(workdir)["reason"]) == [""] * 4


@pytest.mark.usefixtures("rebooted")
def test_a_broken_record_is_named_and_hides_neither_what_failed_nor_what_to_type(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, sweep={"status": [0]})
    config["project"]["command"] += ["--status", "{status}"]
    assert snakemake(config, "train").status == 0
    broken = workdir / "results/status=0/record.json"
    broken.write_text("{")
    named = "results/status=0/record.json is no record of a run ("

    ended = snakemake(config, "train")
    assert ended.status != 0
    assert named in ended.output
    assert "Traceback" not in ended.output

    failed = snakemake(changed(config, {"sweep.status": [0, 3]}), "train")
    said = failed.output.splitlines()
    assert "run status=3: failed: the trainer failed with exit status 3 after 0 s: giving up" in said
    unwritten = next(number for number, line in enumerate(said) if line.startswith("results/summary.tsv could not be"))
    assert named in said[unwritten]
    assert said[unwritten + 1].startswith("run status=3: ")
    assert said[unwritten + 2] == "To go on from there, type"
    assert "Traceback" not in failed.output

    broken.unlink()
    mended = snakemake(changed(config, {"sweep.status": [0]}), "train")
    assert mended.status == 0, mended.output
    assert trained(mended.output) == set()
    assert record(workdir, "status=0")["status"] == "done"


@pytest.mark.usefixtures("rebooted")
def test_a_run_that_is_refused_or_not_exported_has_its_reason_too(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, sweep={"project.model": [["out/model.bin"], ["out/no.bin"]]})
    assert snakemake(config, "train").status != 0
    (reason,) = set(table(workdir)["reason"]) - {""}
    assert reason.startswith("project.model: 'out/no.bin' matches nothing after training. The trainer wrote, in ")


def test_runs_with_the_trainer_s_own_names_do_not_meet_and_get_their_values_in_every_form(
    snakemake: Snakemake, workdir: Path, project: Path, tmp_path: Path
) -> None:
    (project / "show.py").write_text(SHOW)
    (project / "base.json").write_text('{"optimizer": {"name": "adam"}}')
    own = {"file": "run.json", "base": "base.json", "keys": {"lr": "optimizer.lr"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"description": "shows what it is given", "parameters": own}))
    config = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "show.py", "{run}", "{lr}"],
            "trainer": str(tmp_path / "own.yaml"),
            "model": ["out/*/model.json", "out/*/lines.txt"],
        },
        "ramdisk": {"size": "64M"},
        "train": {"environment": {"LR": "rate {lr}"}},
        "sweep": {"lr": ["1e-4", 0.5]},
    }
    ended = snakemake(config, "train", cores=2)
    assert ended.status == 0, ended.output
    for run, lr, number in (("lr=1e-4", "1e-4", 1e-4), ("lr=0.5", "0.5", 0.5)):
        model = workdir / "results" / run / "model"
        (shown,) = model.rglob("model.json")
        assert json.loads(shown.read_text()) == {
            "arguments": [run, lr],
            "LR": f"rate {lr}",
            "file": {"optimizer": {"name": "adam", "lr": number}},
        }
        assert (shown.parent / "lines.txt").read_text() == f"{run}\n" * 10
    assert not (project / "run.json").exists()
    assert "Nothing to be done" in snakemake(config, "train").output
    other = changed(config, {"train.environment.LR": "{lr}"})
    assert "Params have changed" in snakemake(other, "train", "--dry-run").output


def test_a_run_is_done_again_from_what_it_left_under_another_name(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, sweep={"steps": [2, 3], "protect.keep": [2]})
    config["project"]["command"] += ["--steps", "{steps}"]
    assert snakemake(config, "train").status == 0
    run = "protect.keep=2,steps=3"
    again = (workdir / "results" / run / "config.yaml").read_text()
    ended = snakemake(again, "train")
    assert ended.status == 0, ended.output
    assert trained(ended.output) == {f"{run}-again"}
    first, second = record(workdir, run), record(workdir, f"{run}-again")
    assert first["model"] == second["model"]
    assert first["training"] == second["training"]
    assert second["config"]["protect"]["keep"] == 2
    assert list(table(workdir).index) == [f"{run}-again", "protect.keep=2,steps=2", run], "the others stay in the table"
    assert "Nothing to be done" in snakemake(again, "train").output
