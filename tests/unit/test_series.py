"""The samples of a training: a line each, and no room for one is no reason to stop."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ramtrain.series import Sample, Series

SAMPLE = Sample(1.5, 10, 20, 30, 40, 50, None, 0, 2, 1)


def test_samples_can_be_read_back(tmp_path: Path) -> None:
    series = Series(tmp_path / "series.tsv", ["epoch", "step"])
    series.add(SAMPLE, {})
    series.add(SAMPLE, {"epoch": "1/12", "step": "7", "loss": "not asked for"})
    table = pd.read_csv(tmp_path / "series.tsv", sep="\t")
    assert list(table.columns)[:2] == ["t_s", "ram_bytes"]
    assert list(table.columns)[-2:] == ["progress.epoch", "progress.step"]
    assert table["t_s"].tolist() == [1.5, 1.5]
    assert table["device_bytes"].isna().all()
    assert table["progress.epoch"].fillna("").tolist() == ["", "1/12"]


def test_a_new_attempt_begins_a_new_series(tmp_path: Path) -> None:
    Series(tmp_path / "series.tsv", []).add(SAMPLE, {})
    Series(tmp_path / "series.tsv", []).add(SAMPLE, {})
    assert len((tmp_path / "series.tsv").read_text().splitlines()) == 2


def test_where_nothing_can_be_written_the_training_goes_on(tmp_path: Path) -> None:
    Series(tmp_path / "gone" / "series.tsv", []).add(SAMPLE, {})
    assert not (tmp_path / "gone").exists()
