"""Metrics are read from what the training wrote, whatever it wrote; what cannot be read is null, with the reason."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config
from test_trainers import COQUI_OUTPUT

from ramtrain import metrics
from ramtrain.config import Products, complete_config, load_runs, load_trainer
from ramtrain.errors import RamTrainError
from ramtrain.metrics import Metric, MetricSource, choose_sources, read_metrics, read_sources
from ramtrain.view import View


class Place:
    """A project in two layers, and the output of its trainer."""

    def __init__(self, folder: Path) -> None:
        self.upper, self.lower, self.output = folder / "upper", folder / "lower", folder / "train.log"
        for layer in (self.upper, self.lower):
            (layer / "out").mkdir(parents=True)

    def write(self, name: str, content: str | bytes, at_s: float = 1000.0, layer: Path | None = None) -> Path:
        path = (layer or self.upper) / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (at_s, at_s))
        return path

    def read(self, step: str | None = None, **entry: str) -> Metric:
        sources = read_sources({"loss": entry}, "project.metrics", step and re.compile(step))
        view = View([self.upper, self.lower], [Path("/project")], self.upper.parent / "spilled")
        return read_metrics("x", sources, view, self.lower, self.output)["loss"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


HISTORY = [
    {"step": 10, "loss": 3.0},
    {"step": 10, "eval_loss": 0.5},
    {"step": 20, "eval_loss": 0.4},
    {"step": 30, "eval_loss": 0.45},
    {"step": 30, "train_runtime": 5},
]


@pytest.mark.parametrize(
    ("name", "content", "key", "final", "best", "step"),
    [
        ("out/m.json", '{"loss": 0.25}', "loss", 0.25, 0.25, None),
        ("out/m.json", '\ufeff{"step": 7, "test": {"loss": 1}}', "test.loss", 1.0, 1.0, 7),
        ("out/m.json", '{"test.loss": 2, "test": {"loss": 1}}', "test.loss", 2.0, 2.0, None),
        ("out/m.json", '[{"loss": 3, "epoch": 1}, {"loss": "2", "epoch": 2}, {"loss": 4}]', "loss", 4.0, 2.0, 2),
        ("out/m.json", '{"history": {"loss": [3, 1, 2]}}', "history.loss", 2.0, 1.0, None),
        ("out/m.json", json.dumps({"log_history": HISTORY, "step": 99}), "log_history.eval_loss", 0.45, 0.4, 20),
        ("out/m.json", '{"loss": [3, 1, Infinity, -Infinity, NaN, 2]}', "loss", 2.0, 1.0, None),
        ("out/m.jsonl", '{"loss": 3}\n\n{"loss": 1, "global_step": 5}\n{"loss": 2}\n{"lo', "loss", 2.0, 1.0, 5),
        ("out/m.csv", "epoch,step,loss\n1,10,0.5\n1,,\n2,20,0.3\nepoch,step,loss\n3,30,4e-1\n", "loss", 0.4, 0.3, 20),
        ("out/m.csv", '  epoch,  "a, b"\r\n  1,  0.5\r\n  2,  nan\r\n 3, 0.6\r\n', "epoch", 3.0, 1.0, 1),
        ("out/m.tsv", "loss\tnote\n0.5\ta,b\n0.4\t", "loss", 0.4, 0.4, None),
    ],
)
def test_a_file_is_read(
    name: str, content: str, key: str, final: float, best: float, step: int | None, place: Place
) -> None:
    place.write(name, content)
    metric = place.read(file=f"out/*{Path(name).suffix}", key=key)
    assert metric == Metric(final, best, "min", step, f"{name}: {key}")


def test_the_goal_says_which_value_is_best_and_the_first_of_equals_counts(place: Place) -> None:
    place.write("out/m.csv", "step,acc\n1,0.5\n2,0.9\n3,0.9\n4,0.7\n")
    metric = place.read(file="out/m.csv", key="acc", goal="max")
    assert (metric.final, metric.best, metric.step_of_best) == (0.7, 0.9, 2)


def test_only_what_the_training_wrote_counts(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.write("out/earlier.json", '{"loss": 0.1}', layer=place.lower)
    assert place.read(file="out/*.json", key="loss").best is None
    assert "the training wrote no file that 'out/*.json' names, or it was there before" in caplog.text
    place.write("out/copied.json", '{"loss": 0.1}', layer=place.lower)
    place.write("out/copied.json", '{"loss": 0.1}')
    assert place.read(file="out/*.json", key="loss").best is None, "as staging by copy, or a preload, puts it there"
    place.write("out/mine.json", '{"loss": 0.2}')
    assert place.read(file="out/*.json", key="loss").best == 0.2


def test_of_several_files_the_newest_comes_last(place: Place) -> None:
    place.write("out/a.csv", "step,loss\n5,0.3\n", at_s=3000)
    place.write("out/b.csv", "step,loss\n1,0.2\n", at_s=2000)
    assert place.read(file="out/*.csv", key="loss") == Metric(0.3, 0.2, "min", 1, "out/a.csv and 1 older: loss")


def test_links_are_followed_in_the_project_and_to_what_was_spilled_but_not_out_of_it(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spilled").mkdir()
    (tmp_path / "spilled/1-m.csv").write_text("loss\n0.5\n")
    (place.upper / "out/m.csv").symlink_to(tmp_path / "spilled/1-m.csv")
    assert place.read(file="out/m.csv", key="loss").final == 0.5
    (place.upper / "latest").symlink_to("/project/out")
    assert place.read(file="latest/m.csv", key="loss").final == 0.5
    (place.upper / "out/m.csv").unlink()
    (tmp_path / "secret.csv").write_text("loss\n0.5\n")
    (place.upper / "out/m.csv").symlink_to(tmp_path / "secret.csv")
    assert place.read(file="out/m.csv", key="loss").final is None
    assert "outside the project" in caplog.text
    os.mkfifo(place.upper / "out/pipe.csv")
    assert place.read(file="out/pipe.csv", key="loss").final is None


def test_the_trainer_s_output_is_read_without_colours_and_with_its_steps(place: Place) -> None:
    adapter = load_trainer("coqui", REPO)
    place.output.write_text(COQUI_OUTPUT + COQUI_OUTPUT.replace("0.835", "0.9").replace("STEP: 110", "STEP: 120"))
    found = read_metrics("x", adapter.metrics, View([place.upper]), place.lower, place.output)
    (metric,) = found.values()
    assert (list(found), metric.final, metric.best, metric.step_of_best) == (
        ["avg_loss"],
        0.91554274559021,
        0.8351554274559021,
        110,
    )
    assert metric.source.startswith("train.log: ")


def test_a_progress_bar_is_many_lines(place: Place) -> None:
    bar = "".join(f"\r{number}%|###  | loss={1 / number:.3f}" for number in range(1, 10_000))
    place.output.write_text(bar + "\nvalue loss=7\n")
    metric = place.read(log=r"^\d+%.*loss=(\S+)")
    assert metric.final == 0.0
    assert place.read(log="%.*loss=(5|0.500)").best == 0.5


def test_a_long_output_takes_little_memory_and_a_hostile_line_little_time(place: Place) -> None:
    with place.output.open("wb") as output:
        output.write(b"x" * (64 << 20) + b" loss 9\n")
        for _ in range(16):
            output.write(b"loss 1.5 step\n" * 75_000)
        output.write(b"loss 2")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    metric = place.read(log=r"loss ([0-9.]+)")
    took_s = time.monotonic() - started
    place.output.unlink()
    assert (metric.final, metric.best) == (2.0, 1.5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10, "KiB"
    assert took_s < 15, "2 s on a machine that does nothing else"


def test_an_expression_that_never_ends_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "_LONGEST_S", 0.2)
    place.output.write_text("loss 1\n" + "a" * 4000)
    assert place.read(log="(?:a+)+b|loss (.)") == Metric(None, None, "min", None, "(?:a+)+b|loss (.)")
    assert "to read it takes longer than 0.2 s" in caplog.text


@pytest.mark.parametrize(
    ("files", "entry", "why"),
    [
        ({}, {"file": "out/*.csv", "key": "loss"}, "the training wrote no file that 'out/*.csv' names"),
        ({"out/m.csv": ""}, {"file": "out/m.csv", "key": "loss"}, "out/m.csv has no 'loss'; it has nothing"),
        ({"out/m.csv": "a,b\n1,2\n"}, {"file": "out/m.csv", "key": "loss"}, "out/m.csv has no 'loss'; it has a, b"),
        ({"out/m.csv": "loss\nhigh\n"}, {"file": "out/m.csv", "key": "loss"}, "'high' is no number"),
        (
            {"out/m.csv": "loss\n" + "1" * (2 << 20)},
            {"file": "out/m.csv", "key": "loss"},
            "line 2 is longer than 1 MiB",
        ),
        ({"out/m.csv": 'loss\n"' + "1,\n" * 99_999}, {"file": "out/m.csv", "key": "loss"}, "field larger than"),
        ({"out/m.json": "{"}, {"file": "out/m.json", "key": "loss"}, "out/m.json: Expecting property name"),
        ({"out/m.json": b"\xff\xfe\x00"}, {"file": "out/m.json", "key": "loss"}, "out/m.json: 'utf-8' codec"),
        ({"out/m.json": "[" * 99_999}, {"file": "out/m.json", "key": "loss"}, "out/m.json: maximum recursion"),
        ({"out/m.json": '{"a": 1}'}, {"file": "out/m.json", "key": "a.b"}, "out/m.json has no 'a.b'; it has a"),
        ({"out/m.json": '{"a": true}'}, {"file": "out/m.json", "key": "a"}, "'True' is no number"),
        ({"out/m.json": '{"a": 1' + "0" * 999 + "}"}, {"file": "out/m.json", "key": "a"}, "is no number"),
        ({"out/m.json": '{"a": [1, NaN]}'}, {"file": "out/m.json", "key": "a"}, "its last value is nan"),
        ({}, {"log": "loss (.)"}, "nothing in the trainer's output fits its expression loss (.)"),
    ],
)
def test_what_is_not_found_is_null_and_told_of(
    files: dict[str, Any], entry: dict[str, str], why: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in files.items():
        place.write(name, content)
    metric = place.read(**entry)
    assert metric.final is None
    assert metric.source
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("run x: metric loss (project.metrics.loss): ")
    assert why in warning
    assert "\n" not in warning
    assert json.dumps(vars(metric), allow_nan=False)


def test_a_json_file_that_is_too_large_is_not_read(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.write("out/m.json", "").open("wb") as large:
        large.truncate((64 << 20) + 1)
    assert place.read(file="out/m.json", key="loss").final is None
    assert "out/m.json: is larger than 64 MiB" in caplog.text


def write_events(folder: Path, values: dict[int, float], tag: str = "eval/loss") -> Path:
    """Write an event file as TensorBoard's own writer does; return it."""
    proto = pytest.importorskip("tensorboard.compat.proto.event_pb2", reason="reads event files with tensorboard")
    summary = pytest.importorskip("tensorboard.compat.proto.summary_pb2")
    writers = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    writer = writers.EventFileWriter(str(folder))
    for step, number in values.items():
        scalar = summary.Summary.Value(tag=tag, simple_value=number)
        writer.add_event(proto.Event(step=step, wall_time=step, summary=summary.Summary(value=[scalar])))
    writer.close()
    return max(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns)


def test_event_files_are_read(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    first = write_events(place.upper / "out", {10: 0.5, 20: 0.25, 30: 0.75})
    os.utime(first, (1, 1))
    metric = place.read(events="**/events.out.tfevents.*", key="eval/loss")
    assert (metric.final, metric.best, metric.step_of_best) == (0.75, 0.25, 20)
    (place.upper / "later").mkdir()
    write_events(place.upper / "later", {40: 0.5})
    metric = place.read(events="**/events.out.tfevents.*", key="eval/loss")
    assert (metric.final, metric.best, metric.step_of_best) == (0.5, 0.25, 20)
    assert place.read(events="**/events*", key="loss").final is None
    assert "has no 'loss'; it has eval/loss" in caplog.text


def test_an_event_file_that_was_cut_short_is_read_as_far_as_it_goes(place: Place) -> None:
    events = write_events(place.upper / "out", {10: 0.5, 20: 0.25})
    events.write_bytes(events.read_bytes()[:-5])
    assert place.read(events="out/events*", key="eval/loss").final == 0.5


@pytest.mark.parametrize(
    "content",
    [b"", b"no event file, but a text of some length" * 9, bytes(4096), random.Random(1).randbytes(999)],
    ids=["empty", "text", "zeros", "random"],
)
def test_what_is_no_event_file_has_no_values(content: bytes, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    place.write("out/events.x", content)
    assert place.read(events="out/events*", key="loss").final is None
    assert "run x: metric loss (project.metrics.loss): out/events.x" in caplog.text


def test_without_tensorboard_a_message_says_what_to_install(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    place.write("out/events.x", "")
    assert place.read(events="out/events*", key="loss").final is None
    assert "-m pip install tensorboard`. In the record it is null" in caplog.text


def test_a_reader_that_breaks_is_no_failure_of_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    monkeypatch.setattr(loader.EventFileLoader, "Load", lambda self: 1 / 0)
    place.write("out/events.x", "")
    assert place.read(events="out/events*", key="loss").final is None
    assert "cannot be read as an event file: division by zero" in caplog.text


def test_tensorboard_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, ramtrain.config, ramtrain.export; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "my.yaml: project.metrics: [] where a mapping of keys is expected."),
        ({"a.b": {"log": "(.)"}}, "my.yaml: project.metrics: 'a.b' does not fit. A metric's name is up to 60 letters"),
        ({"a": "loss"}, "my.yaml: project.metrics.a: 'loss' where a mapping of keys is expected."),
        ({"a": {"fil": "x"}}, "my.yaml: project.metrics.a.fil: unknown key, did you mean 'file'?"),
        (
            {"a": {"log": "(.)", "goal": "most"}},
            "my.yaml: project.metrics.a.goal: 'most' is not known, known are: min, max",
        ),
        ({"a": {"log": ""}}, "my.yaml: project.metrics.a.log: is empty."),
        ({"a": {}}, "project.metrics.a: nothing where exactly one of file, events and log is expected."),
        (
            {"a": {"file": "m.csv", "log": "(.)"}},
            "project.metrics.a: file and log where exactly one of file, events and log is expected.",
        ),
        ({"a": {"log": "loss"}}, "project.metrics.a.log: 'loss' needs one group in parentheses"),
        ({"a": {"log": "(loss"}}, "project.metrics.a.log: '(loss' is no regular expression: missing )"),
        ({"a": {"log": "(.)", "key": "x"}}, "project.metrics.a.key: is for file and events"),
        ({"a": {"file": "m.csv"}}, "project.metrics.a.key: missing; give the dotted key in JSON, or the column"),
        ({"a": {"events": "events*"}}, "project.metrics.a.key: missing; give the tag"),
        (
            {"a": {"file": "m.txt", "key": "x"}},
            "project.metrics.a.file: 'm.txt' has to end in one of .json, .jsonl, .csv, .tsv",
        ),
        ({"a": {"file": "/m.csv", "key": "x"}}, "project.metrics.a.file: '/m.csv': globs are relative"),
        ({"a": {"events": "../*", "key": "x"}}, "project.metrics.a.events: '../*': globs are relative"),
        (
            {"a": {"file": "out/[z-a]*.csv", "key": "x"}},
            "project.metrics.a.file: 'out/[z-a]*.csv' is no glob: bad character range z-a.",
        ),
        ({"a": {"events": "[z-a]*", "key": "x"}}, "project.metrics.a.events: '[z-a]*' is no glob: "),
    ],
)
def test_a_bad_metric_has_one_message_that_names_it(value: Any, expected: str, project: Path) -> None:
    with pytest.raises(RamTrainError) as refused:
        load_runs(complete_config(small_config(project, **{"project.metrics": value}), REPO, "my.yaml"), REPO)
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


def test_a_bad_glob_that_an_older_version_let_pass_is_a_metric_that_is_not_found(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    source = MetricSource("loss", "file", "out/[z-a]*.csv", "loss", "min", "project.metrics.loss", None)
    found = read_metrics("x", [source], View([place.upper, place.lower]), place.lower, place.output)
    assert found["loss"].final is None
    assert "bad character range z-a" in caplog.text


def test_the_config_s_metrics_come_first_and_replace_the_adapter_s(project: Path) -> None:
    config = small_config(project, **{"project.trainer": "coqui", "project.metrics": {"mos": {"log": "MOS (.*)"}}})
    (run,) = load_runs(complete_config(config, REPO, "my.yaml"), REPO).values()
    assert [source.name for source in run.products.metrics] == ["mos", "avg_loss"]
    assert run.products.metrics[0].step == "GLOBAL_STEP: ([0-9]+)"
    own = read_sources({"avg_loss": {"log": "own (.)"}}, "project.metrics", None)
    assert choose_sources(own, run.trainer.metrics) == own


def test_where_metrics_are_read_survives_a_note_on_the_ram_disk() -> None:
    sources = read_sources({"loss": {"log": "(.)"}}, "project.metrics", None)
    products = Products(("m",), (), (), (), (), (), metrics=sources)
    assert Products.from_dict(json.loads(json.dumps(asdict(products)))) == products
    older = {key: value for key, value in asdict(products).items() if key != "metrics"}
    assert Products.from_dict(older).metrics == ()


def test_the_manual_names_every_key() -> None:
    manual = (REPO / "config/README.md").read_text()
    assert all(f"`{key}`" in manual for key in ("project.metrics", "metrics", "file", "events", "log", "key", "goal"))
