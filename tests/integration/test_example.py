"""The shipped example, trained for real by the Coqui Trainer: killed on the way, gone on with, and brought home."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import wave
import zipfile
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import REPO
from workplace import snakemake_argv

from ramtrain.ramdisk import ram_root

EXAMPLE = REPO / "examples" / "tiny_tts"
EPOCHS = 4

pytest.importorskip("trainer", reason="needs the Coqui Trainer: examples/tiny_tts/requirements.txt")


def test_the_example_is_killed_goes_on_and_comes_home(workdir: Path) -> None:
    config = yaml.safe_load((REPO / "config/config.yaml").read_text())
    config["project"]["path"] = str(EXAMPLE)
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    (workdir / "config").mkdir()
    (workdir / "config/runs.tsv").write_text(f"run\tepochs\tseed\nexample\t{EPOCHS}\t1\n")
    before = {path: path.stat().st_mtime_ns for path in EXAMPLE.rglob("*")}
    argv = snakemake_argv("train", "--configfile", "my.yaml")

    with (workdir / "first.txt").open("w") as output:
        first = subprocess.Popen(argv, cwd=workdir, stdout=output, stderr=subprocess.STDOUT)
        _kill_trainer_in_its_third_epoch(first, workdir)
        assert first.wait(timeout=30) != 0
    assert "killed by SIGKILL" in (workdir / "first.txt").read_text()

    second = subprocess.run(argv, cwd=workdir, capture_output=True, text=True, check=False, timeout=200)
    assert second.returncode == 0, second.stderr

    record = json.loads((workdir / "results/example/record.json").read_text())
    assert record["protection"]["resumed_from"].endswith(".pth")
    assert record["command"][-2] == "--continue_path"
    assert record["progress"]["epoch"] == f"{EPOCHS - 1}/{EPOCHS - 1}"
    assert record["environment"]["packages"]["coqui-tts-trainer"] == "0.4.0"
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
    before_kill, after = numbers[:3], numbers[3:]
    assert before_kill == [0, 1, 2]
    assert after in ([1, 2, 3], [2, 3]), "the epoch that the newest whole checkpoint was written in is repeated"
    assert {path: path.stat().st_mtime_ns for path in EXAMPLE.rglob("*")} == before


def _kill_trainer_in_its_third_epoch(snakemake: subprocess.Popen, workdir: Path) -> None:
    deadline = time.monotonic() + 300
    while not _is_in_third_epoch(workdir):
        assert snakemake.poll() is None, (workdir / "first.txt").read_text()
        assert time.monotonic() < deadline, "the third epoch was not reached"
        time.sleep(0.1)
    for process in psutil.Process(snakemake.pid).children(recursive=True):
        if "train.py" in process.cmdline():
            process.send_signal(signal.SIGKILL)


def _is_in_third_epoch(workdir: Path) -> bool:
    folder = ram_root(workdir) / "example"
    log = folder / "train.log"
    return (
        log.exists() and "EPOCH: 2/" in log.read_text() and any(folder.glob("overlay/upper/output/*/best_model_64.pth"))
    )
