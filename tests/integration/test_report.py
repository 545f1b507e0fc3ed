"""Snakemake's report of runs that are done: every picture drawn, in its category, with its caption."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from conftest import Ended, small_config
from samples import sample_benchmark, write_results, write_table


def test_a_report_shows_every_picture_and_nothing_is_drawn_twice(
    snakemake: Callable[..., Ended], workdir: Path, project: Path
) -> None:
    (workdir / "runs.tsv").write_text("run\na_\n")
    config = {**small_config(project), "runs": str(workdir / "runs.tsv")}
    write_results("a_", workdir / "results/a_")
    write_table(sample_benchmark(), workdir / "results/benchmark_io.tsv")
    (workdir / "results/benchmark_io.json").write_text('{"baseline": null}')

    reported = snakemake(config, "all", "--report", "report.html", "--report-after-run")

    assert reported.status == 0, reported.output
    page = (workdir / "report.html").read_text(encoding="utf-8")
    (categories,) = re.findall(r"var categories = (\{.*\});", page)
    assert {
        name: sorted(path for paths in parts.values() for path in paths)
        for name, parts in json.loads(categories).items()
    } == {
        "Runs": ["results/a_/timeline.svg", "results/a_/timings.svg"],
        "Sweep": ["results/parameters.svg", "results/ranking.svg", "results/summary.tsv", "results/sweep.svg"],
        "Benchmark": ["results/benchmark_io.svg", "results/benchmark_io.tsv"],
    }
    (results,) = re.findall(r"var results = (\{.*\});", page)
    assert all(result["caption"] and result["labels"]["figure"] for result in json.loads(results).values())
    assert "align-items: safe center" in page
    assert "Nothing to be done" in snakemake(config, "all").output
