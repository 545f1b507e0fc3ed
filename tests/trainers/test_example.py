"""The shipped example, trained for real by the Coqui Trainer: killed, gone on with, rebooted, gone on with, at home."""

from __future__ import annotations

import json
import time
import wave
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import REPO
from workplace import Workplace

EXAMPLE = REPO / "examples" / "tiny_tts"
EPOCHS = 3

pytest.importorskip("trainer", reason="needs the Coqui Trainer: examples/tiny_tts/requirements.txt")


def test_the_example_is_killed_goes_on_and_comes_home(workdir: Path) -> None:
    config = yaml.safe_load((REPO / "config/config.yaml").read_text())
    config["project"]["path"] = str(EXAMPLE)
    config["protect"] = {"max_loss": "1 s"}
    config["train"] = {"threads": 1}  # beside other tests two would wait for each other
    config["project"]["metrics"] = {
        "eval_loss": {"events": "output/*/events.out.tfevents.*", "key": "EvalStats/avg_loss"}
    }
    (workdir / "config").mkdir()
    (workdir / "config/runs.tsv").write_text(f"run\tepochs\tseed\nexample\t{EPOCHS}\t1\n")
    before = {path: path.stat().st_mtime_ns for path in EXAMPLE.rglob("*")}
    place = Workplace(workdir, config, run="example")

    place.start()
    _kill_trainer(place, in_epoch=1, after="overlay/upper/output/*/best_model_32.pth")
    assert "killed by SIGKILL" in place.said()
    place.start()
    _kill_trainer(place, in_epoch=2, after="results/example/checkpoints/*best_model_6*.pth")
    assert "which is still in RAM" in place.said()
    place.reboot()
    place.start()
    assert place.wait(200) == 0, place.said()

    record = json.loads((workdir / "results/example/record.json").read_text())
    assert record["protection"]["resumed_from"].endswith(".pth")
    assert "the durable checkpoint" in record["protection"]["resumed_source"]
    assert record["command"][-2] == "--continue_path"
    assert record["progress"]["epoch"] == f"{EPOCHS - 1}/{EPOCHS - 1}"
    assert record["environment"]["packages"]["coqui-tts-trainer"] == "0.4.0"
    of_events, of_output = record["metrics"]["eval_loss"], record["metrics"]["avg_loss"]
    assert of_events["final"] == pytest.approx(of_output["final"], rel=1e-6)
    assert of_events["best"] == pytest.approx(of_output["best"], rel=1e-6)
    assert of_events["best"] < 2
    home = workdir / "results/example"
    assert zipfile.is_zipfile(home / "model/best_model.pth")
    assert (home / "model/best_model.pth").stat().st_size > 50 << 20
    assert json.loads((home / "model/config.json").read_text())["epochs"] == EPOCHS
    with wave.open(str(home / "model/sample.wav")) as sample:
        assert sample.getframerate() == 22050
        assert sample.getnframes() > 22050 // 5
    assert (home / "model/sample_mel.png").read_bytes().startswith(b"\x89PNG")
    assert list((home / "artifacts").glob("output/*/events.out.tfevents.*"))
    epochs = [line for line in (home / "train.log").read_text().splitlines() if "> EPOCH: " in line]
    numbers = [int(line.split("EPOCH: ")[1].split("/")[0]) for line in epochs]
    # The Trainer repeats the epoch in which a checkpoint was written; none is left out.
    assert numbers[:2] == [0, 1]
    assert numbers[-1] == EPOCHS - 1
    assert all(later - number in (1, 0, -1) for number, later in pairwise(numbers)), numbers
    assert {path: path.stat().st_mtime_ns for path in EXAMPLE.rglob("*")} == before


def _kill_trainer(place: Workplace, in_epoch: int, after: str) -> None:
    deadline = time.monotonic() + 300
    log = place.ram / "train.log"
    while not (log.exists() and f"EPOCH: {in_epoch}/" in log.read_text()):
        assert place.snakemake.poll() is None, place.said()
        assert time.monotonic() < deadline, f"epoch {in_epoch} was not reached"
        time.sleep(0.1)
    place.wait_for(after)
    place.process("train.py", "--epochs").kill()
    assert place.wait() != 0
    place.wait_for_nobody()
