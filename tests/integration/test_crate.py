"""The crates of a real run and of a sweep, before the community's validator, offline."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from conftest import REPO, Ended, small_config
from requests_cache import CachedSession
from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.services import validate
from urllib3 import HTTPResponse

from ramtrain.config import Run
from ramtrain.crate import CRATE
from ramtrain.record import Steps, compose
from ramtrain.schema import complete, load_yaml

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
SCHEMA_ORG = """
    ActivateAction Collection ComputerLanguage ControlAction CreateAction CreativeWork Dataset HowTo HowToStep
    OrganizeAction PropertyValue SoftwareApplication SoftwareSourceCode
    about actionStatus additionalType contentSize datePublished description encodingFormat endTime exampleOfWork hasPart
    identifier instrument license mainEntity mentions name object position programmingLanguage propertyID result
    softwareRequirements softwareVersion startTime step subjectOf unitCode unitText url value version workExample
"""
# As RO-Crate 1.1 has them; the validator fails a crate that uses any other word.
WORDS = {
    **{word: f"http://schema.org/{word}" for word in SCHEMA_ORG.split()},
    "File": "http://schema.org/MediaObject",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
}

# What the validator recommends and is not done; docs/records.md says why.
EXCEPTIONS = {
    ("ro-crate-1.1_22.2", "./"),  # author
    ("ro-crate-1.1_22.3", "./"),  # publisher
    ("process-run-crate-0.5_3.2", "workflow.smk"),  # url
    ("process-run-crate-0.5_3.2", "#ramtrain-VERSION"),
    ("process-run-crate-0.5_5.1", "SoftwareApplication"),  # ids that are addresses on the web
    ("process-run-crate-0.5_5.1", "SoftwareSourceCode"),
    ("process-run-crate-0.5_5.1", "ComputationalWorkflow"),
    ("workflow-ro-crate-1.0_6.1", "README.md"),
    ("workflow-ro-crate-1.0_6.2", "README.md"),
}
NO_AGENT, NO_URL, NO_VERSION = "process-run-crate-0.5_8.6", "process-run-crate-0.5_3.2", "process-run-crate-0.5_4.1"
EXCEPTIONS_OF_RUN = {
    *EXCEPTIONS,
    *((NO_AGENT, f"#{action}") for action in ("run", "mount", "stage", "train", "export", "unmount")),
    (NO_URL, "#trainer"),
    (NO_VERSION, "#trainer"),  # the project is in no repository
}
EXCEPTIONS_OF_SWEEP = {*EXCEPTIONS, (NO_AGENT, "#sweep"), (NO_AGENT, "#run/one"), (NO_AGENT, "#run/two")}

SPOILT = {
    "process-run-crate-0.5_1.1",  # an action without its tool
    "provenance-run-crate-0.5_3.2",  # a tool that no action uses
    "provenance-run-crate-0.5_10.1",  # a figure without propertyID
    "ro-crate-1.1_3.1",  # a word that is not known
    "ro-crate-1.1_12.1",  # a file that is not there
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache that holds what the validator would fetch: RO-Crate's words."""
    body = json.dumps({"@context": WORDS}).encode()
    response = requests.Response()
    response.status_code, response.url, response._content = 200, CONTEXT, body
    response.headers["Content-Type"] = "application/ld+json"
    response.request = requests.Request("GET", CONTEXT).prepare()
    response.raw = HTTPResponse(io.BytesIO(body), dict(response.headers), preload_content=False, request_url=CONTEXT)
    with CachedSession(str(tmp_path / "cache"), backend="sqlite", expire_after=-1) as session:
        session.cache.save_response(response)
    return tmp_path / "cache"


def findings(crate: Path, cache: Path) -> dict[Severity, set[tuple[str, str]]]:
    """Return what the validator finds, by severity: the check, and the entity."""
    settings = ValidationSettings(
        rocrate_uri=crate,
        profile_identifier="provenance-run-crate",
        requirement_severity=Severity.RECOMMENDED,
        offline=True,
        cache_path=cache,
    )
    found: dict[Severity, set[tuple[str, str]]] = {Severity.REQUIRED: set(), Severity.RECOMMENDED: set()}
    for issue in validate(settings).get_issues():
        found[issue.severity].add((issue.check.identifier, _short(issue.violatingEntity)))
    return found


def _short(entity: str | None) -> str:
    name = (entity or "").removeprefix("./") or "./"
    name = name.rsplit("/", 1)[-1] if name.startswith("http") else name
    return "#ramtrain-VERSION" if name.startswith("#ramtrain-") else name


def test_the_validator_finds_nothing_but_what_the_docs_list(
    snakemake: Callable[..., Ended], workdir: Path, project: Path, cache: Path, tmp_path: Path
) -> None:
    (workdir / "runs.tsv").write_text("run\tseed\none\t1\ntwo\t2\n")
    config = {**small_config(project), "runs": str(workdir / "runs.tsv")}
    ended = snakemake(config, "train", f"results/{CRATE}", cores=2)
    assert ended.status == 0, ended.output
    _check_times(json.loads((workdir / "results/one/record.json").read_text()))
    _check_old_notes(workdir / "results/one", tmp_path / "export.json")
    # The validator (0.13) cannot read a crate in a folder with a space in its path.
    sweep = Path(shutil.copytree(workdir / "results", tmp_path / "results"))
    run = sweep / "one"

    assert findings(run, cache) == {Severity.REQUIRED: set(), Severity.RECOMMENDED: EXCEPTIONS_OF_RUN}
    assert findings(sweep, cache) == {Severity.REQUIRED: set(), Severity.RECOMMENDED: EXCEPTIONS_OF_SWEEP}

    crate = json.loads((run / CRATE).read_text())
    del _entity(crate, "#train")["instrument"]
    del _entity(crate, "#usage/writes.trainer.logical_bytes")["propertyID"]
    _entity(crate, "#export")["bytesWritten"] = 1  # no word of RO-Crate's
    (run / CRATE).write_text(json.dumps(crate))
    (run / "model/model.bin").unlink()
    assert {check for check, _ in findings(run, cache)[Severity.REQUIRED]} == SPOILT


def _check_times(record: dict[str, Any]) -> None:
    steps = record["steps"]
    assert list(steps) == ["mount", "stage", "train", "export", "unmount"]
    moments = [steps[step][when] for step in steps for when in ("started", "ended")]
    assert moments == sorted(moments)
    assert record["started"] == moments[0]
    assert moments[-1] <= record["ended"]


def _check_old_notes(home: Path, old: Path) -> None:
    """Check that what the steps of an older version noted gives a record, without the times that they did not note."""
    notes = json.loads((home / "export.json").read_text())
    for step, fields in (
        ("lease", ["mounted"]),
        *((step, ["started", "ended"]) for step in ("stage", "training", "export")),
    ):
        for field in fields:
            del notes[step][field]
    old.write_text(json.dumps(notes))
    unmount = {"started": "2026-01-01T12:00:00.000+00:00", "ended": "2026-01-01T12:00:00.100+00:00"}
    record = json.loads((home / "record.json").read_text())
    run = cast(Run, SimpleNamespace(config=record["config"], values=record["parameters"]))
    composed = compose(Steps.read(old), run, home, None, unmount_s=0.1, unmount=unmount)
    assert composed["steps"] == {"mount": {"started": record["started"]}, "unmount": unmount}
    complete(composed, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")


def _entity(crate: dict[str, Any], identifier: str) -> dict[str, Any]:
    return next(entity for entity in crate["@graph"] if entity["@id"] == identifier)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow, which is optional")
def test_mlflow_is_asked_for_by_the_config_and_not_waited_for(
    snakemake: Callable[..., Ended], workdir: Path, project: Path
) -> None:
    refused = snakemake(small_config(project, **{"record.mlflow_uri": "http://me:secret@127.0.0.1:9"}), "train")
    assert refused.status != 0
    assert "record.mlflow_uri: has a password in it" in refused.output

    ended = snakemake(small_config(project, **{"record.mlflow_uri": "http://127.0.0.1:9"}), "train")

    assert ended.status == 0, ended.output
    assert "its figures are not in MLflow, record.mlflow_uri http://127.0.0.1:9: " in ended.output
    assert list((workdir / "results").glob("*/record.json"))
    assert "Nothing to be done" in snakemake(small_config(project), "train").output, "where figures go trains nothing"
