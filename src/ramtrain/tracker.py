"""A run's figures logged to MLflow as well, where the config asks for it: record.mlflow_uri."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ramtrain.crate import figures
from ramtrain.errors import RamTrainError
from ramtrain.system import alone_in

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# A run that is done does not wait minutes for a server that is down; and nobody is told of it but that server.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_STARTED = "ramtrain.started"


def check_tracker(uri: str | None) -> None:
    """Check, before anything is trained, that figures can be logged to MLflow if they are to be.

    Raises:
        RamTrainError: MLflow is not installed; or the address is none, or has a password in it, which so would stand in
            every record.
    """
    if uri is None:
        return
    try:
        has_password = urlsplit(uri).password is not None
    except ValueError as error:
        raise RamTrainError(
            f"record.mlflow_uri: is no address ({error}). Give that of a server, https://mlflow.example.org say, or of "
            "a file, sqlite:///FILE."
        ) from None
    if has_password:
        raise RamTrainError(
            "record.mlflow_uri: has a password in it, which would stand in every record. Leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
        )
    if importlib.util.find_spec("mlflow") is None:
        raise RamTrainError(
            "record.mlflow_uri: MLflow is not installed in RamTrain's Python. Type "
            f"`{shlex.quote(sys.executable)} -m pip install mlflow`, or leave the key out."
        )


def log_run(record: Mapping[str, Any], record_file: Path, experiment: str, uri: str) -> None:
    """Log a run that is done, once its record is written; where that fails, say so: the run is done all the same."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient

        with _alone(uri, record_file.parents[1] / "logs"):
            _log(MlflowClient(tracking_uri=uri), record, record_file, experiment)
    except Exception as error:  # whatever MLflow, its stores and their drivers raise: nothing of the run depends on it
        log.warning(
            "run %s: its figures are not in MLflow, record.mlflow_uri %s: %s. They are in %s.",
            record["run"],
            uri,
            str(error).splitlines()[0] if str(error) else type(error).__name__,
            record_file,
        )


@contextlib.contextmanager
def _alone(uri: str, folder: Path) -> Iterator[None]:
    """Let one run at a time use a store that has no server: MLflow (3.17) fails where two make its tables at once.

    Args:
        folder: one that nobody else locks: others do not wait for a store.
    """
    if urlsplit(uri).scheme in ("http", "https"):
        yield
        return
    folder.mkdir(exist_ok=True)
    with alone_in(folder):
        yield


def _log(client: MlflowClient, record: Mapping[str, Any], record_file: Path, experiment: str) -> None:
    from mlflow.entities import Metric, Param

    started_ms, ended_ms = (round(datetime.fromisoformat(record[at]).timestamp() * 1000) for at in ("started", "ended"))
    tags = {
        _STARTED: record["started"],
        "model_sha256": record["model"][0]["sha256"],
        "mlflow.source.git.commit": record["project"]["git_commit"],
        "ramtrain": record["environment"]["ramtrain"],
    }
    experiment_id = _experiment(client, experiment)
    run_id = (
        _logged(client, experiment_id, record)
        or client.create_run(
            experiment_id,
            start_time=started_ms,
            tags={name: value for name, value in tags.items() if value},
            run_name=record["run"],
        ).info.run_id
    )
    try:
        client.log_batch(
            run_id,
            metrics=[Metric(name, value, ended_ms, 0) for name, value in _metrics(record).items()],
            params=[Param(name, value) for name, value in record.get("parameters", {}).items()],
        )
        client.log_artifact(run_id, str(record_file))
    except Exception:
        client.set_terminated(run_id, status="FAILED", end_time=ended_ms)  # or else it would seem to be running
        raise
    client.set_terminated(run_id, end_time=ended_ms)


def _logged(client: MlflowClient, experiment_id: str, record: Mapping[str, Any]) -> str | None:
    """Return the run in MLflow that an unmounting which was cut short has begun; None if there is none."""
    found = client.search_runs(
        [experiment_id],
        f"attributes.run_name = '{record['run']}' and tags.`{_STARTED}` = '{record['started']}'",
        max_results=1,
    )
    return found[0].info.run_id if found else None


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the trainer's own metrics, final and best, under their names, and the figures under their paths."""
    trained = {
        name if which == "final" else f"{name}.{which}": metric[which]
        for name, metric in record.get("metrics", {}).items()
        for which in ("final", "best")
        if metric.get(which) is not None
    }
    return {**trained, **figures(record)}


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run was faster
            if found is None:
                raise
    return found.experiment_id
