"""Figures logged to MLflow: a real store, one that is not there, and what is refused before anything is trained."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import whole_record

from ramtrain.crate import figures
from ramtrain.durable import write_json
from ramtrain.endurance import add_to_total
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

    earlier = {**record, "started": "2026-01-01T11:00:00.000+00:00"}
    for logged in (earlier, record, record):  # the last time because its unmounting was cut short
        log_run(logged, Path("results/example/record.json"), "my prôject", "sqlite:///runs.db")
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    client = MlflowClient("sqlite:///runs.db")
    experiment = client.get_experiment_by_name("my prôject")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.data.tags["ramtrain.started"] for run in runs] == [record["started"], earlier["started"]]
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
def test_a_run_whose_figures_are_refused_does_not_seem_to_go_on_and_can_be_logged_again(
    record: dict[str, Any], workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    place, uri = Path("results/example/record.json"), "sqlite:///runs.db"
    log_run({**record, "metrics": {"50%": {"final": 0.5, "best": 0.5}}}, place, "project", uri)
    assert "run example: its figures are not in MLflow" in caplog.text
    client = MlflowClient(uri)
    experiments = [client.get_experiment_by_name("project").experiment_id]
    assert [run.info.status for run in client.search_runs(experiments)] == ["FAILED"]
    log_run(record, place, "project", uri)
    assert [run.info.status for run in client.search_runs(experiments)] == ["FINISHED"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///runs.db"])
def test_nobody_waits_for_a_store_who_has_nothing_to_do_with_it(
    uri: str, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []

    def log_slowly(*arguments: object) -> None:
        other = threading.Thread(target=add_to_total, args=(Path("results/endurance.tsv"), record), daemon=True)
        other.start()
        other.join(5)
        added.append(not other.is_alive())

    monkeypatch.setattr("ramtrain.tracker._log", log_slowly)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda tracking_uri: None))
    log_run(record, Path("results/example/record.json"), "project", uri)
    assert added == [True]


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


@pytest.mark.parametrize("uri", ["http://[bad", "http://me:hunter2@[::1"])
def test_what_is_no_address_is_refused_in_one_message(uri: str) -> None:
    with pytest.raises(RamTrainError, match=r"record\.mlflow_uri: is no address \(Invalid IPv6 URL\)") as refused:
        check_tracker(uri)
    assert "hunter2" not in str(refused.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(RamTrainError, match=r"record\.mlflow_uri: has a password in it") as refused:
        check_tracker("https://me:hunter2@mlflow.example.org")
    assert "hunter2" not in str(refused.value)
