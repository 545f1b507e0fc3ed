"""The pair of runs: what is made of its figures, and that nothing of it is left."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, Ended, small_config

from ramtrain import benchmark
from ramtrain.baseline import Baseline, read_baseline
from ramtrain.benchmark import DISK, RAM, Leg, baseline_of, figures
from ramtrain.config import Run, complete_config, load_runs

STEPS = "t_s\tprogress.epoch\tprogress.step\n1.0\t1/2\t\n2.0\t1/2\t10\n3.0\t1/2\t10\n6.0\t2/2\t30\n7.0\t2/2\t30\n"
LEGS = [
    Leg(DISK, 10.0, 0.5, 0.2, 1000, 900, 1500),
    Leg(RAM, 11.0, None, 0.1, 1000, 0, 50),
    Leg(RAM, 9.0, None, 0.3, 1000, 0, 70),
    Leg(DISK, 14.0, 0.7, 0.4, 1000, 1100, 1700),
]


@pytest.fixture
def run(project: Path) -> Run:
    """Return the small project's run."""
    (run,) = load_runs(complete_config(small_config(project), REPO, "test"), REPO).values()
    return run


def test_a_step_takes_the_time_between_the_first_and_the_last_that_were_seen(tmp_path: Path) -> None:
    series = tmp_path / "series.tsv"
    series.write_text(STEPS)
    assert benchmark._step_s(series) == pytest.approx(4.0 / 20)
    series.write_text("t_s\tprogress.step\n1.0\t5\n")
    assert benchmark._step_s(series) is None
    series.write_text("t_s\tprogress.epoch\n1.0\t5\n")
    assert benchmark._step_s(series) is None


def test_medians_and_ranges_are_of_each_place(run: Run) -> None:
    found = {(figure.what.split(": ")[1], figure.place): figure for figure in figures(run, LEGS)}
    wall = found["wall time", "disk"]
    assert (wall.median, wall.min, wall.max, wall.n, wall.unit) == (12.0, 10.0, 14.0, 2, "s")
    assert found["device bytes", "RAM"].median == 60
    assert ("step time", "RAM") not in found


def test_a_baseline_holds_for_the_same_command_with_other_values_alone(run: Run, project: Path, tmp_path: Path) -> None:
    baseline = baseline_of(run, LEGS)
    assert (baseline.pairs, baseline.device_bytes, baseline.with_ram_device_bytes) == (2, 1600, 60)
    path = tmp_path / "benchmark_io.json"
    assert read_baseline(path, run.project, run.command) is None
    path.write_text(json.dumps({"baseline": baseline.__dict__}))
    assert read_baseline(path, run.project, run.command) == baseline

    def other(**changes: Any) -> Baseline | None:
        (found,) = load_runs(complete_config(small_config(project, **changes), REPO, "test"), REPO).values()
        return read_baseline(path, found.project, found.command)

    assert other(**{"train.seed": 7}) == baseline
    assert other(**{"project.command": "python train.py"}) is None

    secret = baseline_of(replace(run, command=("python", "train.py", "--hf-token", "Zq81")), LEGS)
    assert "Zq81" not in str(secret)
    assert secret.holds_for(run.project, ["python", "train.py", "--hf-token", "Zq82"])


def test_benchmark_io_compares_a_run_leaves_nothing_and_its_baseline_stands_in_the_record(
    snakemake: Callable[..., Ended], project: Path, workdir: Path
) -> None:
    config = small_config(project)
    config["project"]["command"] = [sys.executable, "train.py", "--steps", "6", "--mb", "4", "--sync"]
    config["benchmark"] = {"run": "my_pr_ject_"}
    config["project"]["model"] = ["out/model.bin"]
    ended = snakemake(config, "benchmark_io", "train")
    assert ended.status == 0, ended.output
    with (workdir / "results/benchmark_io.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    places = {row["place"] for row in rows}
    assert {"disk", "shm", "RAM"} <= places
    written = {row["place"]: float(row["median"]) for row in rows if row["what"] == "run my_pr_ject_: disk bytes"}
    assert written["disk"] >= 24 << 20
    assert written["RAM"] < 1 << 20
    left = sorted(path.name for path in (workdir / "results").iterdir())
    assert left == ["benchmark_io.json", "benchmark_io.tsv", "endurance.tsv", "logs", "my_pr_ject_", "summary.tsv"]
    assert not list(workdir.glob(".ramtrain-*"))
    again = snakemake(config, "benchmark_io")
    assert "Nothing to be done" in again.output
    record = json.loads((workdir / "results/my_pr_ject_/record.json").read_text())
    assert record["writes"]["baseline"]["run"] == "my_pr_ject_"
    saved_bytes = record["writes"]["saved_bytes"]
    assert saved_bytes == record["writes"]["baseline"]["device_bytes"] - record["writes"]["written_bytes"]


def test_a_trainer_that_fails_in_the_benchmark_is_told_and_leaves_nothing(
    snakemake: Callable[..., Ended], project: Path, workdir: Path
) -> None:
    config = small_config(project, **{"benchmark.run": "my_pr_ject_"})
    config["project"]["command"] = [sys.executable, "-c", "import sys; sys.exit('no such GPU')"]
    ended = snakemake(config, "benchmark_io")
    assert ended.status == 1
    assert "no such GPU" in ended.output
    assert "benchmark_io: run my_pr_ject_ on the disk: run benchmark_io: the trainer failed with exit status 1" in (
        ended.output
    )
    assert not list(workdir.glob(".ramtrain-*"))
    assert not (workdir / "results/benchmark_io").exists()


def test_a_run_that_is_not_there_cannot_be_compared(snakemake: Callable[..., Ended], project: Path) -> None:
    ended = snakemake(small_config(project, **{"benchmark.run": "typo"}), "train")
    assert ended.status == 1
    assert "benchmark.run: 'typo' is no run; the runs are my_pr_ject_." in ended.output
