"""A metric comes from what a real trainer wrote into the record, the table and the pictures, however the run ended."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import yaml
from conftest import REPO, Ended, small_config
from workplace import Workplace, expected_losses, resuming_config

from ramtrain.record import Steps
from ramtrain.schema import complete, load_yaml

Snakemake = Callable[..., Ended]


def test_metrics_are_in_the_record_and_in_the_table(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    (workdir / "runs.tsv").write_text("run\tseed\nsecond\t2\nfirst\t1\n")
    (project / "out").mkdir()
    (project / "out/earlier.csv").write_text("step,accuracy\n1,99\n")
    config = small_config(project, runs="runs.tsv")
    config["project"]["command"] += ["--metrics"]
    config["project"]["metrics"] = {
        "zeta": {"log": "loss: ([0-9.]+)"},
        "accuracy": {"file": "out/*.csv", "key": "accuracy", "goal": "max"},
        "missing": {"file": "out/*.json", "key": "x"},
        "password_f1": {"log": "loss: ([0-9.]+)"},
    }

    ended = snakemake(yaml.safe_dump(config, sort_keys=False), "train", "plot_ranking", cores=2)

    assert ended.status == 0, ended.output
    assert "run first: zeta: 1.25 at best; 3.25 in the end" in ended.output
    record = json.loads((workdir / "results/first/record.json").read_text())
    assert list(record["metrics"]) == ["zeta", "accuracy", "missing", "password_f1"], "in the order of the config"
    assert record["metrics"]["zeta"] == {
        "final": 3.25,
        "best": 1.25,
        "goal": "min",
        "step_of_best": None,
        "source": "train.log: loss: ([0-9.]+)",
    }
    assert record["metrics"]["accuracy"] == {
        "final": 1 / 3,
        "best": 1.0,
        "goal": "max",
        "step_of_best": 3,
        "source": "out/metrics.csv: accuracy",
    }
    assert record["metrics"]["missing"]["best"] is None
    assert record["metrics"]["password_f1"] == record["metrics"]["zeta"], "the name of a metric makes no secret of it"
    log = (workdir / "results/first/logs/export_model.log").read_text()
    assert "WARNING run first: metric missing (project.metrics.missing): the training wrote no file that" in log
    complete(record, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")
    with (workdir / "results/summary.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert [(row["run"], row["metrics.zeta.best"], row["metrics.accuracy.final"]) for row in rows] == [
        ("second", "2.25", "0.25"),
        ("first", "1.25", "0.3333333333333333"),
    ]
    assert [row["metrics.missing.final"] for row in rows] == ["", ""]
    assert ">first<" in (workdir / "results/ranking.svg").read_text()
    config["project"]["metrics"] = {"other": {"log": "(.)"}}
    assert "Nothing to be done" in snakemake(config, "train").output, "other metrics train nothing again"
    export = workdir / "results/first/export.json"
    export.write_text(
        json.dumps({key: part for key, part in json.loads(export.read_text()).items() if key != "metrics"})
    )
    assert Steps.read(export).metrics == {}, "as an older version wrote it"


def test_a_changed_training_has_none_of_the_earlier_one(workplace: Workplace, resuming: Path) -> None:
    earlier, losses = expected_losses(), expected_losses("0.2")
    assert min(earlier) < min(losses), "else this tests nothing"
    workplace.start(pause_s=0, FAULT="exit@12")
    assert workplace.wait() != 0
    config = resuming_config(resuming)
    config["project"]["command"] += ["--lr", "0.2"]
    workplace.configure(config)
    ended = workplace.run("train", "--configfile", str(workplace.configfile))
    assert ended.returncode == 0, ended.stdout
    metric = json.loads((workplace.results / "record.json").read_text())["metrics"]["avg_loss"]
    assert (metric["final"], metric["best"]) == (losses[-1], min(losses))
    assert f"{earlier[0]}" not in (workplace.results / "train.log").read_text()
    (kept,) = workplace.results.glob("checkpoints/[0-9]*/train.log")
    assert f"{earlier[0]}" in kept.read_text(), "it is beside the checkpoint of that training"
