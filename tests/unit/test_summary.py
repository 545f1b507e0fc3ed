"""The table of the runs tells the truth of each, whatever was tried in between and whatever lies in results."""

from __future__ import annotations

import json
import logging
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import REPO, small_config
from samples import sample_record, whole_record, write_results

from ramtrain.config import complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.failure import note_failure
from ramtrain.pictures import read_summary
from ramtrain.redact import MARK
from ramtrain.summary import Asked, account, asked, done, summarize, write_summary
from ramtrain.supervise import Failed

TRAINING = whole_record()["training"]
NOTHING = Asked({}, None)


def put(run: str, **changes: Any) -> Path:
    """Put the record of a run in its place; return its path."""
    write_results(run, Path("results", run))
    path = Path("results", run, "record.json")
    path.write_text(json.dumps({**whole_record(run), **changes}))
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).set_index("run")


def test_a_failure_counts_only_as_long_as_what_failed_is_asked_for(workdir: Path) -> None:
    put("a")
    note_failure("a", "mount_ramdisk", RamTrainError("run a: no room"))
    other = {**TRAINING, "command": ["python", "train.py", "--lr", "1e-3"]}
    (failed,) = summarize({"a": Asked({"lr": "1e-3"}, other)})
    assert (failed["status"], failed["reason"], failed["parameters.lr"]) == ("failed", "no room", "1e-3")
    assert pd.isna(failed["timings_s.total"]), "those were of another training"
    assert account({"a": Asked({}, other)})[0] == "run a: failed: no room"

    put_back = {"a": Asked({"seed": "1"}, TRAINING)}
    (done,) = summarize(put_back)
    assert (done["status"], done["timings_s.total"]) == ("done", 53.0)
    assert account(put_back) == []
    Path("results/a/export.json").unlink()
    assert summarize(put_back)[0]["status"] == "failed", "Snakemake would have it exported again"


def test_of_a_run_without_a_record_the_row_says_what_tells_it_from_others_and_no_secret(
    workdir: Path, project: Path
) -> None:
    row = {"run": "one", "hf_token": "abcdef0123456789abcdef", "ramdisk.size": "65M"}
    config = small_config(project, runs=[row])
    config["project"]["command"] += ["--token", "{hf_token}"]
    runs = asked(load_runs(complete_config(config, REPO, "my.yaml"), REPO))
    note_failure("one", "train_run", RamTrainError("no"))
    assert account(runs)[-1] == "1 of 1 run did not end well; the table of all is results/summary.tsv"
    (found,) = read(Path("results/summary.tsv")).to_dict("records")
    assert (found["status"], found["parameters.hf_token"], found["parameters.ramdisk.size"]) == ("failed", MARK, "65M")
    assert runs["one"].training["command"][-1] == MARK


def test_a_name_that_is_no_text_does_not_keep_the_table_from_being_written(workdir: Path) -> None:
    note_failure("a", "train_run", RamTrainError("run a: " + os.fsdecode(b"caf\xe9.bin is missing")))
    assert len(account({"a": NOTHING})) == 2
    assert read(Path("results/summary.tsv"))["reason"].item() == r"caf\udce9.bin is missing"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run": "a", "status": "done", "model": []}', '{"model": 5}'])
def test_a_broken_record_is_named_if_it_is_asked_for_and_left_out_if_not(
    content: str, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("a")
    put("b").write_text(content)
    write_summary(Path("results/summary.tsv"), {"a": NOTHING})
    assert list(read(Path("results/summary.tsv")).index) == ["a"]
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert warning.startswith("results/b/record.json is no record of a run (")
    assert warning.endswith("The run is no longer configured, and left out of the table.")
    with pytest.raises(RamTrainError, match=r"results/b/record\.json is no record of a run .*Delete it; .* train`"):
        write_summary(Path("results/summary.tsv"), {"a": NOTHING, "b": NOTHING})
    note_failure("a", "train_run", RamTrainError("no"))
    lines = account({"a": NOTHING, "b": NOTHING})
    assert lines[0] == "run a: failed: no"
    assert lines[1].startswith("results/summary.tsv could not be written: results/b/record.json is no record of a run")


def test_parameters_and_metrics_may_have_any_name(workdir: Path) -> None:
    metric = sample_record()["metrics"]["loss"]
    put("a", parameters={"source": "x", "a.source": "y"}, metrics={"my.source": metric})
    row = summarize({"a": NOTHING})[0]
    assert (row["parameters.source"], row["parameters.a.source"]) == ("x", "y")
    assert row["metrics.my.source.best"] == 0.25
    assert "metrics.my.source.source" not in row


def test_records_of_many_files_do_not_pile_up(workdir: Path) -> None:
    inputs = [{"path": f"wavs/{number}.wav", "sha256": "3" * 64} for number in range(3000)]
    runs = [f"r{number}" for number in range(12)]
    for run in runs:
        put(run, project={**whole_record()["project"], "inputs": inputs})
    summarize({"r0": NOTHING})
    one_bytes = Path("results/r0/record.json").stat().st_size
    tracemalloc.start()
    summarize(dict.fromkeys(runs, NOTHING))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * one_bytes, "those of 12 runs take 12 times as much, and more"


def test_a_run_that_somebody_ended_is_interrupted_and_did_not_fail(workdir: Path) -> None:
    failed = Failed("run a: it ended", "go on", reason="the trainer was ended by SIGINT after 5 s", was_told=True)
    note_failure("a", "train_run", failed)
    note_failure("b", "mount_ramdisk", KeyboardInterrupt("it was interrupted"))
    assert account({"a": NOTHING, "b": NOTHING})[:2] == [
        "run a: interrupted: the trainer was ended by SIGINT after 5 s",
        "run b: interrupted: it was interrupted",
    ]


def test_pictures_are_of_the_configured_runs_alone(workdir: Path) -> None:
    put("a")
    put("of_old")
    write_summary(Path("results/summary.tsv"), {"a": NOTHING})
    assert "of_old\tno longer configured\t" in Path("results/summary.tsv").read_text()
    assert list(read_summary(Path("results/summary.tsv"))["run"]) == ["a"]


def test_the_last_words_of_a_call_are_where_the_models_are(workdir: Path) -> None:
    assert done(["a"]) == []
    for run in "ab":
        put(run)
    assert done(["b", "c"]) == ["run b: done; its model is in results/b/model"]
    for run in "cd":
        put(run)
    assert done("abcde") == ["4 runs are done, each with its model in results/<run>/model: results/summary.tsv"]
