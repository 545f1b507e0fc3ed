"""Runs are ranked by what was read, and drawn against what was varied; every label can be read."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from samples import LONG, sample_ranked, sample_record, write_table

from ramtrain import drawing, ranking
from ramtrain.pictures import read_summary
from ramtrain.ranking import plot_parameters, plot_ranking
from ramtrain.summary import Asked, summarize, write_summary

SVG = "{http://www.w3.org/2000/svg}"
LRS, BATCHES, SEEDS = ["1e-4", "3e-4", "1e-3"], ["8", "16", "32", "64"], ["1", "2"]
GRID = {"lr": LRS, "batch": BATCHES, "seed": SEEDS}


def texts(picture: Path) -> list[str]:
    """Return the lines of text of a picture."""
    return ["".join(text.itertext()).strip() for text in ElementTree.parse(picture).iter(f"{SVG}text")]


def marks(picture: Path, name: str) -> list[int]:
    """Return how many marks each panel has of a kind."""
    groups = [group for group in ElementTree.parse(picture).iter(f"{SVG}g") if group.get("id") == name]
    return [sum(1 for _ in group.iter(f"{SVG}use")) for group in groups]


def drawn(table: pd.DataFrame, folder: Path, metrics: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write and read the table as the workflow does, and draw both pictures."""
    read = read_summary(write_table(table, folder / "summary.tsv"))
    plot_ranking(read, metrics, folder / "ranking.svg")
    plot_parameters(read, metrics, folder / "parameters.svg")
    return folder / "ranking.svg", folder / "parameters.svg"


def names_in(picture: Path, table: pd.DataFrame) -> list[str]:
    return [text for text in texts(picture) if text in set(table["run"])]


def test_the_best_run_comes_first(tmp_path: Path) -> None:
    table = sample_ranked(GRID)
    picture, _ = drawn(table, tmp_path)
    best_first = list(table.sort_values("metrics.loss.best")["run"])
    assert names_in(picture, table) == best_first
    assert best_first[0] == "lr=3e-4,batch=32,seed=2" or best_first[0] == "lr=3e-4,batch=32,seed=1"
    said = texts(picture)
    assert {"The runs by loss, the best first", "24 runs", "loss, less is better", "at best", "in the end"} <= set(said)
    figure = table["metrics.loss.best"].min()
    assert f"{figure:.6g}, in the end {figure * 1.05:.6g}" in said
    assert (marks(picture, "best"), marks(picture, "final")) == ([24], [24])

    more = sample_ranked(GRID, goal="max")
    picture, _ = drawn(more, tmp_path)
    assert names_in(picture, more) == best_first[::-1]
    assert "loss, more is better" in texts(picture)


def test_the_metric_that_ranks_is_the_first_of_the_config_that_any_run_has(tmp_path: Path) -> None:
    table = sample_ranked(GRID).merge(sample_ranked(GRID, metric="acc", goal="max"))
    table["metrics.mos.best"] = None
    for metrics, expected in [((), "loss"), (("mos", "acc", "loss"), "acc"), (("mos",), "loss")]:
        picture, parameters = drawn(table, tmp_path, metrics)
        assert f"The runs by {expected}, the best first" in texts(picture)
        assert f"{expected} against what was varied" in texts(parameters)


def test_runs_without_a_value_are_named_and_not_drawn(tmp_path: Path) -> None:
    table = sample_ranked(GRID)
    table.loc[[1, 5], ["metrics.loss.best", "metrics.loss.final"]] = None
    table.loc[7, "metrics.loss.final"] = None
    picture, parameters = drawn(table, tmp_path)
    said = " ".join(texts(picture))
    assert f"22 runs; without a value: {table['run'][1]}, {table['run'][5]}" in said
    assert f"{table['metrics.loss.best'][7]:.6g}, in the end no number" in said
    assert (marks(picture, "best"), marks(parameters, "run")) == ([22], [22, 22])
    assert table["run"][1] not in names_in(picture, table)


def test_of_many_runs_the_best_forty_are_shown(tmp_path: Path) -> None:
    table = sample_ranked({**GRID, "seed": [str(seed) for seed in range(17)]})
    picture, _ = drawn(table, tmp_path)
    assert names_in(picture, table) == list(table.sort_values("metrics.loss.best")["run"][:40])
    assert {"and 164 more", f"down to {table['metrics.loss.best'].max():.6g}"} <= set(texts(picture))


def test_each_parameter_that_was_varied_has_a_panel_and_seeds_are_repeats(tmp_path: Path) -> None:
    table = sample_ranked({**GRID, "schedule": ["cosine", "none"], "fixed": ["a"], "same": ["1"]})
    table["parameters.same"] = ["1", "1.0"] * 24
    _, picture = drawn(table, tmp_path)
    said = texts(picture)
    assert {"lr", "batch", "schedule", "cosine", "none", "1e-4", "3e-4", "1e-3", "median"} <= set(said)
    assert not {"seed", "fixed", "same"} & set(said)
    assert marks(picture, "run") == [48, 48, 48]
    assert marks(picture, "median") == [3, 4, 2]
    assert marks(picture, "winner") == [1, 1, 1]


def test_seeds_are_drawn_where_nothing_else_was_varied(tmp_path: Path) -> None:
    _, picture = drawn(sample_ranked({"lr": ["1"], "seed": ["1", "2", "3"]}), tmp_path)
    assert "seed" in texts(picture)
    assert marks(picture, "run") == [3]
    assert marks(picture, "median") == [], "of one run there is none"


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (["1", "2", "19"], "lr"),
        (["1", "2", "20"], "lr, logarithmic"),
        (["-1", "2", "20"], "lr"),
        (["0", "1e-4", "1e-2"], "lr, logarithmic from 0.0001 on"),
        (["0", "1", "2"], "lr"),
        (["1e-4", "auto"], "lr"),
    ],
)
def test_wide_ranges_have_a_logarithmic_axis(values: list[str], label: str, tmp_path: Path) -> None:
    _, picture = drawn(sample_ranked({"lr": values}), tmp_path)
    assert label in texts(picture)
    assert marks(picture, "run") == [len(values)]


def test_a_wide_metric_has_a_logarithmic_axis(tmp_path: Path) -> None:
    table = sample_ranked(GRID)
    table["metrics.loss.best"] **= 12
    for picture in drawn(table, tmp_path):
        assert "loss, less is better, logarithmic" in " ".join(texts(picture))


def test_without_a_metric_the_pictures_say_so(tmp_path: Path) -> None:
    table = sample_ranked(GRID)
    for missing in (table[["run", "status", "timings_s.total"]], table.assign(**{"metrics.loss.best": None})):
        for picture in drawn(missing, tmp_path, ("loss",)):
            assert texts(picture)[0] == "No metric was read of any run"
            assert "project.metrics" in texts(picture)[1]


def test_one_run_is_ranked_and_compared_with_nothing(tmp_path: Path) -> None:
    picture, parameters = drawn(sample_ranked({}), tmp_path)
    assert {"example", "1 run"} <= set(texts(picture))
    assert texts(parameters) == ["loss: nothing to compare", "No parameter has more than one value."]


def test_many_parameters_are_not_all_drawn(tmp_path: Path) -> None:
    table = sample_ranked({"lr": LRS})
    for number in range(19):
        table[f"parameters.p{number}"] = ["a", "b", "c"]
    _, picture = drawn(table, tmp_path)
    assert len(marks(picture, "run")) == 16
    assert "3 runs; 4 more parameters not drawn" in texts(picture)


def test_the_same_table_gives_the_same_files(tmp_path: Path) -> None:
    first = [picture.read_bytes() for picture in drawn(sample_ranked(GRID), tmp_path)]
    assert [picture.read_bytes() for picture in drawn(sample_ranked(GRID), tmp_path)] == first


TABLES = {
    "one": sample_ranked({}),
    "24": sample_ranked(GRID),
    "204 with long names": sample_ranked({**GRID, "seed": [str(n) for n in range(17)]}, names="{id}" + "," + LONG),
    "long metric": sample_ranked(GRID, metric="a_metric_of_sixty_characters-as-long-as-it-may-be/evaluation_"),
    "tiny": sample_ranked(GRID).assign(**{"metrics.loss.best": lambda t: t["metrics.loss.best"] * -1e-12}),
    "wide": sample_ranked({"n": ["16", "17", "18", "1700"]}).assign(
        **{"metrics.loss.best": lambda t: t["metrics.loss.best"] ** 20}
    ),
    "all the same": sample_ranked({"a": ["x", "y"]}).assign(**{"metrics.loss.best": 0.0, "metrics.loss.final": 0.0}),
    "long key": sample_ranked({"project.a_key_that_somebody_sweeps_over_in_the_config_" * 2: ["yes", "no"], "lr": LRS}),
    "long values": sample_ranked(
        {
            "data": [f"/data/sets/very/long/path/to/corpus-{n}/metadata.csv" for n in range(30)],
            "lr": [str(n * 0.0123456789) for n in range(1, 4)],
        }
    ),
    "words": sample_ranked({"schedule": ["cosine with warm restarts", "linear", "a b c"], "x": list("abcdefghij")}),
}


@pytest.mark.parametrize("name", TABLES)
def test_no_label_is_cut_or_covers_another(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[str, Bbox]] = []
    draw = Text.draw

    def note(text: Text, renderer: RendererBase) -> None:
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))

    def look(figure: Figure, path: Path) -> None:
        drawing.save_svg(figure, path)
        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", note)
            figure.draw_without_rendering()
        assert boxes
        for text, box in boxes:
            assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, text
        for (one, box), (other, its) in itertools.combinations(boxes, 2):
            apart = box.x1 < its.x0 + 1 or its.x1 < box.x0 + 1 or box.y1 < its.y0 + 1.5 or its.y1 < box.y0 + 1.5
            assert apart, f"{one!r} covers {other!r}"
        boxes.clear()

    monkeypatch.setattr(ranking, "save_svg", look)
    drawn(TABLES[name], tmp_path)


def test_values_of_a_parameter_can_be_told_apart_when_they_are_cut() -> None:
    values = [f"/data/{'sets/' * 9}corpus-{n}/metadata.csv" for n in range(30)]
    cut = ranking._shortened(values)
    assert len(set(cut)) == 30
    assert max(map(len, cut)) <= 28
    assert "corpus-7" in cut[7]
    assert max(map(len, ranking._shortened(["x" * 99, "y" * 99]))) == 28
    assert ranking._shortened(["a", "b"]) == ["a", "b"]


def test_the_table_of_the_runs_has_parameters_and_metrics_of_any_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = sample_record("other")
    other["parameters"] = {"ramdisk.size": '1G "or" so'}
    other["metrics"] = {"mos": {"final": None, "best": None, "goal": "max", "step_of_best": None, "source": ""}}
    older = {key: part for key, part in sample_record("older").items() if key not in ("parameters", "metrics")}
    for record in (sample_record("first"), other, older):
        folder = Path("results", record["run"])
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
    runs = dict.fromkeys(["first", "other", "older"], Asked({}, None))
    assert list(summarize(runs)[0])[:15] == [
        *("run", "status", "reason", "started", "parameters.seed", "parameters.ramdisk.size"),
        *(f"metrics.loss.{part}" for part in ("final", "best", "goal", "step_of_best")),
        *(f"metrics.mos.{part}" for part in ("final", "best", "goal", "step_of_best")),
        "timings_s.mount",
    ]
    write_summary(tmp_path / "summary.tsv", runs)
    read = read_summary(tmp_path / "summary.tsv")
    assert list(read["run"]) == ["first", "other", "older"]
    assert list(read["metrics.loss.best"].fillna("")) == ["0.25", "", ""]
    assert read["parameters.ramdisk.size"][1] == '1G "or" so'
    rows = summarize({"other": Asked({}, None)})
    assert [row["run"] for row in rows] == ["other", "first", "older"], "those of old come last"
    shutil.rmtree("results/first")
    shutil.rmtree("results/other")
    (older_only,) = summarize({"older": Asked({}, None)})
    assert not [column for column in older_only if column.startswith(("metrics", "parameters"))]
