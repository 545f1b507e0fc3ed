"""Once the RAM is released the record is written, whatever becomes of what goes with it."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import REPO, small_config
from samples import whole_record

from ramtrain.config import Run, complete_config, load_runs
from ramtrain.crate import CRATE
from ramtrain.script import script

RESULTS = Path("results/example")


@pytest.fixture
def unmounting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module, for a run whose RAM is released."""
    spec = importlib.util.spec_from_file_location("unmount_run", REPO / "scripts/unmount_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    training, export = SimpleNamespace(fingerprint=None), SimpleNamespace(model=[])
    steps = SimpleNamespace(read=lambda path: SimpleNamespace(lease=None, export=export, training=training))
    monkeypatch.setattr(module, "Steps", steps)
    for name in ("check_home", "close", "release"):
        monkeypatch.setattr(module, name, lambda *arguments: None)
    monkeypatch.setattr(module, "compose", lambda *arguments, **more: whole_record())
    return module


@pytest.fixture
def run(workdir: Path, project: Path) -> Run:
    """Return the run, which has results of an earlier time."""
    RESULTS.mkdir(parents=True)
    for name in (CRATE, "config.yaml"):
        (RESULTS / name).write_text("of an earlier run")
    config = complete_config(small_config(project, runs=[{"run": "example"}]), REPO, "my.yaml")
    return load_runs(config, REPO)["example"]


def unmounted(module: ModuleType, run: Run) -> dict[str, Any]:
    """Unmount; return the record."""
    schema = REPO / "workflow/schemas/record.schema.yaml"
    module.unmount_run(run, RESULTS / "export.json", RESULTS / "record.json", schema, b"rule train:\n")
    return json.loads((RESULTS / "record.json").read_text())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_all_of_it_is_written_where_nothing_fails(
    unmounting: ModuleType, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert unmounted(unmounting, run)["run"] == "example"
    assert warnings(caplog) == []
    crate = json.loads((RESULTS / CRATE).read_text())["@graph"]
    assert {"record.json", "config.yaml"} <= {entity["@id"] for entity in crate}
    assert "example-again" in (RESULTS / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ImportError("No module named 'rocrate'"), "ImportError: No module named 'rocrate'"),
        (KeyError("x"), "KeyError: 'x'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
@pytest.mark.parametrize(("function", "name"), [("describe_run", CRATE), ("write_config", "config.yaml")])
def test_without_a_crate_or_config_there_is_a_record_and_none_of_an_earlier_run(
    error: Exception,
    why: str,
    function: str,
    name: str,
    unmounting: ModuleType,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(unmounting, function, fail)
    assert unmounted(unmounting, run)["status"] == "done"
    assert warnings(caplog) == [
        f"run example: results/example/{name} could not be written: {why}. The run is done all the same."
    ]
    assert not (RESULTS / name).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation")])
def test_a_running_total_that_cannot_be_written_fails_no_run(
    error: Exception,
    unmounting: ModuleType,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("ramtrain.endurance.write_bytes", fail)
    unmounted(unmounting, run)
    assert warnings(caplog) == [f"run example: it is not in the running total of all runs: {error}"]


@pytest.mark.parametrize(("rule", "says"), [("export_model", True), ("unmount_run", False)])
def test_nothing_is_said_to_be_in_ram_once_it_is_released(
    rule: str, says: bool, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snakemake = SimpleNamespace(
        rule=rule,
        wildcards=SimpleNamespace(run="example"),
        config=run.config,
        scriptdir=str(REPO / "scripts"),
        resources=SimpleNamespace(ramdisk_mb=64),
        log=[str(tmp_path / "log")],
    )
    with pytest.raises(SystemExit), script(snakemake):
        raise OSError(28, "No space left on device")
    (error,) = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert ("What is in RAM stays there." in error) is says
    assert "type `snakemake --cores 1 train" in error
