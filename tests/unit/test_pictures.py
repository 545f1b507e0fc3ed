"""Pictures say what was measured, in text that can be read; nothing is drawn from a broken table."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from conftest import REPO
from docutils.core import publish_parts
from jinja2 import Environment
from samples import GIB, LONG, MIB, sample_benchmark, sample_record, sample_series, sample_summary, write_table

from ramtrain import pictures
from ramtrain.errors import RamTrainError

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: Path) -> list[str]:
    """Return the lines of text of a picture."""
    return ["".join(text.itertext()).strip() for text in ElementTree.parse(picture).iter(f"{SVG}text")]


def marks(picture: Path, name: str) -> int:
    """Return how many marks were drawn for a column of the samples."""
    groups = [group for group in ElementTree.parse(picture).iter(f"{SVG}g") if group.get("id") == name]
    return sum(len(list(group.iter(f"{SVG}use"))) for group in groups)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return tmp_path / "picture.svg"


def timeline(picture: Path, **changes: int) -> None:
    table = write_table(sample_series(**changes), picture.with_name("series.tsv"))
    pictures.plot_timeline(sample_record(), pictures.read_series(table), picture)


def test_a_time_line_says_what_was_held_and_written_and_when_checkpoints_came_home(picture: Path) -> None:
    timeline(picture)
    said = texts(picture)
    assert "run example: time line of the training" in said
    assert "tmpfs of 2 GiB; trained for 51.5 s; 12 complete checkpoints, 3 brought home" in said
    assert (marks(picture, "checkpoints"), marks(picture, "drains")) == (12, 3)
    for figure in [
        "its size: 2 GiB",
        "at most: 212.55 MiB",
        "by the trainer: 1.54 GiB",
        "by the trainer: 1.35 MiB",
        "durable checkpoints: 171 MiB",
        "there is: 24 GiB",
    ]:
        assert figure in said
    assert {"512 MiB", "2 GiB", "0 bytes"} <= set(said), "sizes at the axes"
    assert {"0 s", "50 s", "time since the training began"} <= set(said)


def test_a_time_line_shows_what_the_guard_did(picture: Path) -> None:
    table = write_table(sample_series(), picture.with_name("series.tsv"))
    record = sample_record()
    done = [
        ("grow", 10.0, GIB, 0.1),
        ("spill", 20.0, 100 * MIB, 1.0),
        ("go on", 21.0, 0, 3.0),
        ("spill", 30.0, 50 * MIB, 1),
    ]
    actions = [
        {"t_s": t_s, "action": action, "why": "", "what": "", "bytes": size_bytes, "took_s": took_s}
        for action, t_s, size_bytes, took_s in done
    ]
    record["guard"] = {"actions": actions, "paused_s": 3.0}
    pictures.plot_timeline(record, pictures.read_series(table), picture)
    said = texts(picture)
    for figure in ["its size, in the end: 2 GiB", "trainer stopped: 3 s", "spilled: 150 MiB"]:
        assert any(figure in text for text in said), said


def test_a_time_line_without_samples_shows_the_totals_of_the_record(picture: Path) -> None:
    assert pictures.read_series(picture.with_name("series.tsv")) is None
    pictures.plot_timeline(sample_record(), None, picture)
    said = texts(picture)
    assert "tmpfs of 2 GiB; trained for 51.5 s; no samples, only the totals of its record" in said
    assert {"by the trainer: 1.54 GiB", "durable checkpoints: 171 MiB", "at most: 212.55 MiB"} <= set(said)
    assert not any("whole device" in line or "complete" in line for line in said)


def test_a_time_line_of_one_sample_has_points_that_can_be_seen(picture: Path) -> None:
    timeline(picture, rows=1)
    assert marks(picture, "ram") == 1
    assert marks(picture, "logical") == 2, "the sample, and the record's total"


def test_a_day_of_samples_is_drawn_at_once_and_the_peak_stays(picture: Path) -> None:
    series = sample_series(100_000, 5000, 170)
    series.loc[54_321, "ram_bytes"] = 1 << 30
    table = write_table(series, picture.with_name("series.tsv"))
    started = time.monotonic()
    pictures.plot_timeline(sample_record(), pictures.read_series(table), picture)
    took_s = time.monotonic() - started
    assert "at most: 1 GiB" in texts(picture)
    assert pictures._thinned(series)["ram_bytes"].max() == 1 << 30
    assert marks(picture, "drains") == 170
    assert picture.stat().st_size < 1 << 20
    assert took_s < 4, "2 s on a machine that does nothing else"


def test_timings_name_every_step_with_its_figure(picture: Path) -> None:
    pictures.plot_timings(sample_record(LONG), picture)
    said = texts(picture)
    for figure in [
        "mount: 5 ms (under 0.1 %)",
        "stage: 59 ms (0.1 %)",
        "train: 51.5 s (97.2 %)",
        "export: 220 ms (0.4 %)",
        "unmount: 8 ms (under 0.1 %)",
        "the rest: 1.21 s (2.3 %)",
    ]:
        assert figure in said
    assert f"run {LONG}: where the time went" in " ".join(said).replace("- ", "-")
    assert {"53 s in all", "50 s", "all but the training"} <= set(said)


def test_a_sweep_without_baseline_never_says_saved(picture: Path) -> None:
    table = write_table(sample_summary(["001", "NA"], baseline=False), picture.with_name("summary.tsv"))
    pictures.plot_sweep(pictures.read_summary(table), picture)
    said = texts(picture)
    assert "saved" not in " ".join(said)
    assert "2 runs, none measured without a RAM disk as well" in said
    assert {"001", "NA", "169 MiB, kept in RAM 3 GiB", "170.35 MiB, kept in RAM 3 GiB"} <= set(said)


def test_a_sweep_says_saved_only_of_the_runs_that_were_measured(picture: Path) -> None:
    runs = [f"seed_{number}" for number in range(49)] + [LONG]
    summary = sample_summary(runs, baseline=True)
    summary["writes.saved_bytes"] = summary["writes.saved_bytes"].fillna(7)  # of a run that was not measured
    table = write_table(summary, picture.with_name("summary.tsv"))
    pictures.plot_sweep(pictures.read_summary(table), picture)
    said = texts(picture)
    assert set(runs[:-1]) <= set(said)
    assert LONG in "".join(said)
    assert sum("saved 2.25 GiB" in line for line in said) == 25
    assert sum("kept in RAM" in line for line in said) == 24
    assert "170.35 MiB, 12 MiB more" in said
    assert "53 s, without 61 s" in said
    assert "50 runs, 26 of them measured without a RAM disk as well" in said


def test_the_benchmark_has_a_panel_for_each_measure_with_its_unit(picture: Path) -> None:
    table = write_table(sample_benchmark(LONG), picture.with_name("benchmark_io.tsv"))
    pictures.plot_benchmark(pictures.read_benchmark(table), picture)
    said = texts(picture)
    for line in ["sequential write, fsync", "random 4 KiB write, fsync", "checkpoint pattern", "wall time"]:
        assert line in said
    assert {"disk", "tmpfs", "shm", "path", "RAM"} <= set(said)
    assert {"391.01 MiB/s", "310,000 fsyncs/s", "52,000 files/s", "410 ms", "55.1 s", "1.58 GiB"} <= set(said)
    assert "size per second, more is better (fio, 5 rounds)" in said
    assert "fsyncs/s, more is better, logarithmic (fio, 5 rounds)" in said
    assert "size, less is better, logarithmic (5 rounds)" in said
    assert f"run {LONG}, whole" in " ".join(said).replace("- ", "-")


def test_a_benchmark_without_a_pair_of_runs_has_no_section_for_it(picture: Path) -> None:
    table = sample_benchmark()
    pictures.plot_benchmark(table[~table["what"].str.startswith("run ")], picture)
    assert not any(line.startswith("run ") for line in texts(picture))


def test_the_same_figures_give_the_same_file(picture: Path) -> None:
    timeline(picture)
    first = picture.read_bytes()
    timeline(picture)
    assert picture.read_bytes() == first


HEADER = "\t".join(sample_series().columns)
ROW = "1.0\t1\t1\t1\t1\t1\t1\t0\t1\t1\t1/12\t0.4"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "No columns"),
        (f"{HEADER}\n", "it has no rows"),
        ("t_s\tram_bytes\n1\t2\n", "it has no column memory_bytes"),
        (f"{HEADER}\n{ROW}\n2.0\t1\t1\t1\tx\n", "could not convert"),
        (f"{HEADER}\n{ROW}\n2.0\t1\t1\n", "a figure is missing"),
        (f"{HEADER}\n{ROW}\textra\n{ROW}\textra\textra\n", "nothing can be drawn"),
        (b"\x00\xff\xfe\x80", "nothing can be drawn"),
    ],
    ids=["empty", "header alone", "another table", "no number", "cut off", "too long", "binary"],
)
def test_a_broken_series_has_one_message_that_names_the_file(content: str | bytes, why: str, tmp_path: Path) -> None:
    series = tmp_path / "series.tsv"
    series.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RamTrainError) as raised:
        pictures.read_series(series)
    message = str(raised.value)
    assert message.startswith(f"{series}: ")
    assert why in message
    assert message.endswith("Delete it and call Snakemake again.")
    assert "\n" not in message


def test_a_series_without_a_device_counter_is_whole(picture: Path) -> None:
    series = sample_series()
    series["device_bytes"] = None
    table = write_table(series, picture.with_name("series.tsv"))
    pictures.plot_timeline(sample_record(), pictures.read_series(table), picture)
    assert not any("whole device" in line for line in texts(picture))


def test_a_benchmark_that_measured_nothing_has_a_message(tmp_path: Path) -> None:
    table = sample_benchmark()
    table["median"] = None
    path = write_table(table, tmp_path / "benchmark_io.tsv")
    with pytest.raises(RamTrainError, match=r"benchmark_io\.tsv: .*nothing was measured"):
        pictures.read_benchmark(path)


@pytest.mark.parametrize("caption", sorted(REPO.glob("workflow/report/*.rst")), ids=lambda path: path.stem)
def test_a_caption_is_sound_whatever_the_run_is_called(caption: Path) -> None:
    run = SimpleNamespace(wildcards=SimpleNamespace(run="a_run_"))
    text = Environment().from_string(caption.read_text(encoding="utf-8")).render(snakemake=run)
    publish_parts(text, writer="html", settings_overrides={"halt_level": 2})
