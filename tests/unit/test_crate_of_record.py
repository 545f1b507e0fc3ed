"""Crates made of records: what is known is in them, what is not is left out, whatever the files are called."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from samples import whole_record

from ramtrain.crate import CRATE, MOST_INPUTS, RECORD, WORKFLOW, describe_run, describe_sweep, figures, workflow_text
from ramtrain.durable import write_json
from ramtrain.schema import complete, load_yaml

TEXT = b"rule train:\n"


def crate(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entities of the crate in a folder by their ids; no two have the same."""
    graph = json.loads((folder / CRATE).read_text(encoding="utf-8"))["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    return entities


def described(record: dict[str, Any], home: Path) -> dict[str, dict[str, Any]]:
    """Return the entities of a run's crate, made anew from a record."""
    complete(record, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")
    describe_run(record, home, TEXT)
    return crate(home)


def referred(value: Any) -> set[str]:
    """Return the ids that a property refers to."""
    return {entry["@id"] for entry in (value if isinstance(value, list) else [value])}


def test_every_step_is_an_action_with_its_times_inputs_outputs_and_figures(tmp_path: Path) -> None:
    record = whole_record()
    (tmp_path / "train.log").write_text("step 1\n")
    found = described(record, tmp_path)
    for step, times in record["steps"].items():
        action, control = found[f"#{step}"], found[f"#control/{step}"]
        assert (action["startTime"], action["endTime"]) == (times["started"], times["ended"])
        assert referred(control["object"]) == {f"#{step}"}
        assert f"#usage/timings_s.{step}" in referred(action["resourceUsage"])
    assert referred(found["#train"]["object"]) == {"#project", "#value/seed"}
    products = {"model/best_model.pth", "artifacts/log.txt", "train.log"}
    assert referred(found["#train"]["result"]) == referred(found["#export"]["result"]) == products
    assert referred(found["#run"]["result"]) == {*products, RECORD}
    assert found["#mount"]["@type"] == "ActivateAction", "it leaves nothing at home"
    assert found["model/best_model.pth"]["sha256"] == "0" * 64
    assert found["train.log"]["sha256"] == hashlib.sha256(b"step 1\n").hexdigest()
    assert found[WORKFLOW]["sha256"] == hashlib.sha256((tmp_path / WORKFLOW).read_bytes()).hexdigest()
    wrote = found["#usage/writes.trainer.logical_bytes"]
    assert wrote["value"] == 1654829381
    assert wrote["unitCode"].endswith("/BYTE")
    assert wrote["description"] == "/proc/PID/io"


def test_the_record_beside_it_is_known_by_the_hash_that_it_will_have(tmp_path: Path) -> None:
    record = whole_record()
    found = described(record, tmp_path)
    write_json(tmp_path / RECORD, record)
    assert found[RECORD]["sha256"] == hashlib.sha256((tmp_path / RECORD).read_bytes()).hexdigest()
    describe_run(json.loads((tmp_path / RECORD).read_text()), tmp_path, TEXT)
    assert crate(tmp_path) == found, "it can be made again from the record alone"


def test_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    record = whole_record()
    record["steps"] = {}  # begun by an older version
    record["environment"]["python"] = None
    record["project"].update(git_commit=None, dirty=None, inputs=[])
    found = described(record, tmp_path)
    assert "startTime" not in found["#train"]
    assert "endTime" not in found["#train"]
    assert "softwareVersion" not in found["#trainer"]
    assert "https://www.python.org" not in found
    assert not {"hasPart", "mainEntity", "version"} & found["#project"].keys()
    assert "#usage/writes.filesystem.bytes" not in found
    assert not [entity for entity in found.values() if "agent" in entity or "author" in entity]
    assert None not in figures(record).values()
    del record["steps"], record["writes"]["guard"], record["ramdisk"]["swapped_out_bytes"]
    describe_run(record, tmp_path, TEXT)
    assert found.keys() - crate(tmp_path).keys() == {
        "#usage/writes.guard.logical_bytes",
        "#usage/writes.guard.disk_bytes",
        "#usage/ramdisk.swapped_out_bytes",
    }


def test_parameters_are_inputs_of_the_workflow(tmp_path: Path) -> None:
    describe_run({**whole_record(), "parameters": {"lr": "1e-4", "a b": "x", "project": "y"}}, tmp_path, TEXT)
    found = crate(tmp_path)
    slots = {f"#input/parameters/{name}": name for name in ("lr", "a%20b", "project")}
    assert referred(found[WORKFLOW]["input"]) == {*slots, "#input/project"}
    for slot, name in slots.items():
        assert (found[slot]["additionalType"], found[slot]["name"]) == ("Text", name.replace("%20", " "))
        assert found[f"#value/{name}"]["exampleOfWork"] == {"@id": slot}
    assert found["#input/project"]["additionalType"] == "Collection"
    assert found["#project"]["exampleOfWork"] == {"@id": "#input/project"}
    assert found["#value/lr"]["value"] == "1e-4"
    assert "#value/lr" in referred(found["#train"]["object"])


@pytest.mark.parametrize(
    "name", ["my m\u00f6del #1?.bin", "100%25.bin", "a\nb.bin", os.fsdecode(b"\xff.bin"), "a:b.bin"]
)
def test_any_file_name_becomes_an_address(name: str, tmp_path: Path) -> None:
    record = whole_record()
    record["model"][0]["path"] = f"model/{name}"
    record["project"]["inputs"][0]["path"] = name
    found = described(record, tmp_path)
    (model,) = [entity for entity in found.values() if entity.get("exampleOfWork") == {"@id": "#output/model"}]
    assert model["name"] == f"model/{name}"
    assert model["@id"].isascii()
    assert not set(model["@id"]) & set(" #?\n")
    assert model["@id"] in referred(found["./"]["hasPart"])


def test_many_inputs_do_not_bloat_it(tmp_path: Path) -> None:
    record = whole_record()
    record["project"]["inputs"] = [{"path": f"{i}.wav", "sha256": "3" * 64} for i in range(MOST_INPUTS + 9)]
    project = described(record, tmp_path)["#project"]
    assert len(project["hasPart"]) == MOST_INPUTS
    assert f"9 more, with their hashes, in {RECORD}" in project["description"]


def test_the_sweep_refers_to_its_runs(tmp_path: Path) -> None:
    for run, version in (("a", "1.0.0"), ("lr=1,seed=2", "2.0.0")):
        record = {**whole_record(run, version), "ended": f"2026-01-0{version[0]}T13:00:00.000+00:00"}
        (tmp_path / run).mkdir()
        write_json(tmp_path / run / RECORD, record)
    describe_run(record, tmp_path / run, TEXT)  # the other is an older version's
    describe_sweep(sorted(tmp_path.glob("*/record.json")), tmp_path, TEXT)
    found = crate(tmp_path)
    assert referred(found["#sweep"]["result"]) == {"a/", "lr=1,seed=2/"}
    assert found["#sweep"]["startTime"] == record["started"]
    assert found["#sweep"]["endTime"] == "2026-01-02T13:00:00.000+00:00"
    assert found["lr=1,seed=2/"]["subjectOf"] == {"@id": f"lr=1,seed=2/{CRATE}"}
    assert "subjectOf" not in found["a/"]
    assert found["#run/a"]["instrument"] == {"@id": "#ramtrain-1.0.0"}
    assert found["#run/lr=1,seed=2"]["instrument"] == {"@id": "#ramtrain-2.0.0"}
    assert found["a/record.json"]["sha256"] == hashlib.sha256((tmp_path / "a/record.json").read_bytes()).hexdigest()
    assert found["a/model/best_model.pth"]["sha256"] == "0" * 64
    assert found["#usage/a/writes.written_bytes"]["value"] == 238388224


def test_what_the_sweep_does_not_need_of_its_records_does_not_pile_up(tmp_path: Path) -> None:
    record = whole_record()
    record["project"]["inputs"] = [{"path": f"wavs/{number}.wav", "sha256": "3" * 64} for number in range(3000)]
    for number in range(12):
        (tmp_path / f"r{number}").mkdir()
        write_json(tmp_path / f"r{number}" / RECORD, {**record, "run": f"r{number}"})
    records = sorted(tmp_path.glob(f"*/{RECORD}"))
    describe_sweep(records[:1], tmp_path, TEXT)
    tracemalloc.start()
    describe_sweep(records, tmp_path, TEXT)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * records[0].stat().st_size, "those of 12 runs take 12 times as much, and more"


def test_the_workflow_is_all_of_its_rules() -> None:
    text = workflow_text(REPO).decode()
    for rule in ("mount_ramdisk", "train_run", "unmount_run", "describe_sweep", "all"):
        assert f"rule {rule}:" in text
