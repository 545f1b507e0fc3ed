"""Figures logged to MLflow: a real store, one that is not there, and what is refused before anything is trained."""

from __future__ import annotations

import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from samples import whole_record

from ramtrain.crate import figures
from ramtrain.durable import write_json
from ramtrain.errors import RamTrainError
from ramtrain.tracker import check_tracker, log_run

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow, which is optional")


@pytest.fixture
def record(workdir: Path) -> dict[str, Any]:
    """Return a record that is in its place."""
    (workdir / "results/example").mkdir(parents=True)
    record = {
        **whole_record(),
        "parameters": {"lr": "1e-4"},
        "metrics": {"loss": {"final": 0.5, "best": 0.4, "goal": "min"}, "accuracy": {"final": None, "best": None}},
    }
    write_json(workdir / "results/example/record.json", record)
    return record


@needs_mlflow
def test_a_run_is_in_a_real_store(record: dict[str, Any], workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    for _ in range(2):
        log_run(record, Path("results/example/record.json"), "my prôject", "sqlite:///runs.db")
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    client = MlflowClient("sqlite:///runs.db")
    experiment = client.get_experiment_by_name("my prôject")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert runs[0].info.run_name == "example"
    assert runs[0].info.status == "FINISHED"
    assert runs[0].info.end_time - runs[0].info.start_time == 53000
    assert runs[0].data.params == {"lr": "1e-4"}
    assert runs[0].data.metrics == {**figures(record), "loss": 0.5, "loss.best": 0.4}
    assert runs[0].data.metrics["writes.trainer.logical_bytes"] == 1654829381
    assert runs[0].data.tags["model_sha256"] == "0" * 64
    assert runs[0].data.tags["mlflow.source.git.commit"] == "c" * 40
    (artifact,) = client.list_artifacts(runs[0].info.run_id)
    assert artifact.path == "record.json"


@needs_mlflow
def test_a_server_that_is_down_costs_a_warning_and_little_time(
    record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    began_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        log_run(record, Path("results/example/record.json"), "project", "http://127.0.0.1:9")
    assert "run example: its figures are not in MLflow, record.mlflow_uri http://127.0.0.1:9: " in caplog.text
    assert "They are in results/example/record.json." in caplog.text
    assert time.monotonic() - began_s < 20


def test_without_mlflow_a_config_that_asks_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tracker(None)
    with pytest.raises(RamTrainError, match=r"record\.mlflow_uri: MLflow is not installed in RamTrain's Python"):
        check_tracker("sqlite:///runs.db")


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(RamTrainError, match=r"record\.mlflow_uri: has a password in it") as refused:
        check_tracker("https://me:hunter2@mlflow.example.org")
    assert "hunter2" not in str(refused.value)
