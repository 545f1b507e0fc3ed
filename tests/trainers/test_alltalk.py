"""AllTalk, with a stand-in for its folder: from the config to the voice, and through all that can come between."""

from __future__ import annotations

import array
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workplace import Workplace, changed

from ramtrain.config import complete_config, load_runs, load_trainer
from ramtrain.inputs import INSTALLED
from ramtrain.progress import TrainingProgress
from ramtrain.sizing import plan_for

REPO = Path(__file__).resolve().parents[2]
STAND_IN = REPO / "tests/projects/alltalk"
BASE = "models/xtts/xttsv2_2.0.3"
VOICE = "models/xtts/anna"
VOICE_FILES = ("model.pth", "config.json", "vocab.json", "speakers_xtts.pth", "mel_stats.pth", "dvae.pth", "wavs")
TRAINING = "overlay/upper/finetune/anna/training/*"
EPOCHS = 6
EPOCH = [0, 1, 2]  # its batches, a step each
RATE = 5e-6

torch = pytest.importorskip("torch", reason="needs PyTorch: examples/tiny_tts/requirements.txt")
pytest.importorskip("trainer", reason="needs the Coqui Trainer: examples/tiny_tts/requirements.txt")


@pytest.fixture
def alltalk(tmp_path: Path) -> Path:
    folder = tmp_path / "alltalk_tts"
    subprocess.run([sys.executable, str(STAND_IN / "make_alltalk.py"), str(folder)], check=True)
    return folder


@pytest.fixture
def place(workdir: Path, alltalk: Path) -> Iterator[Workplace]:
    made = Workplace(workdir, config_of(alltalk), run="alltalk_tts")
    yield made
    made.reboot()


def config_of(alltalk: Path, **changes: Any) -> dict[str, Any]:
    command = f"{{python}} {{driver}} --project anna --epochs {EPOCHS} --workers 0 --scheduler None"
    config: dict[str, Any] = {
        "project": {"path": str(alltalk), "trainer": "alltalk", "command": command},
        "train": {"threads": 1},
        "protect": {"max_loss": "1 s"},
    }
    return changed(config, changes)


def contents(folder: Path) -> dict[str, tuple[float, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): (path.stat().st_mtime, path.read_bytes()) for path in files}


def record_of(place: Workplace) -> dict[str, Any]:
    return json.loads((place.results / "record.json").read_text())


def epochs_in(log: str) -> list[list[int]]:
    """Return the epochs that each attempt began, as the trainer counts them."""
    attempts: list[list[int]] = []
    for number in map(int, re.findall(r"> EPOCH: (\d+)/", log)):
        if number == 0:
            attempts.append([])
        attempts[-1].append(number)
    return attempts


def loudness(path: Path) -> float:
    with wave.open(str(path)) as clip:
        samples = array.array("h", clip.readframes(clip.getnframes()))
    return sum(map(abs, samples)) / len(samples) / 8000


def expected_weights(alltalk: Path, batches: Iterable[int]) -> Any:
    """Return the weights that AdamW comes to on these batches, worked out apart from the trainer and PyTorch's."""
    clips = [torch.tensor(loudness(alltalk / f"finetune/anna/wavs/clip_{n:08}.wav")) for n in range(9)]
    means = [torch.stack(clips[first : first + 4]).mean() for first in range(0, len(clips), 4)]
    weights = torch.frombuffer(bytearray((alltalk / BASE / "model.pth").read_bytes()), dtype=torch.float32)
    mean, variance = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, number in enumerate(batches, start=1):
        gradient = 2 * (weights - means[number]) / len(weights)
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * gradient.square()
        change = mean / (1 - 0.9**step) / ((variance / (1 - 0.999**step)).sqrt() + 1e-8)
        weights = weights * (1 - RATE * 0.01) - RATE * change
    return weights


def assert_same_voice(place: Workplace, alltalk: Path, batches: Iterable[int] = EPOCHS * EPOCH) -> None:
    """Check that the voice is complete, and its weights those of a training on these batches, but for rounding."""
    assert {path.name for path in (place.results / "model").iterdir()} == {*VOICE_FILES, "manifest.json"}
    model = torch.load(place.results / "model/model.pth", map_location="cpu", weights_only=False)
    assert torch.allclose(model["model"]["weights"], expected_weights(alltalk, batches), rtol=0, atol=2e-7)


def hold_at(place: Workplace, step: int) -> None:
    """Start, and wait until the trainer is within this step, which does not end."""
    log = place.ram / "train.log"
    held = log.read_text().count("holding") if log.exists() else 0
    place.start(pause_s=0, HOLD_AT=str(step))
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("holding") == held:
        assert time.monotonic() < deadline and place.snakemake.poll() is None, place.said()
        time.sleep(0.02)


def interrupt(place: Workplace) -> Path:
    """Press Ctrl-C; return the checkpoint that was saved at that."""
    before = set(place.ram.glob(f"{TRAINING}/checkpoint_*.pth"))
    os.killpg(place.snakemake.pid, signal.SIGINT)
    assert place.wait() != 0
    place.wait_for_nobody()
    (saved,) = set(place.ram.glob(f"{TRAINING}/checkpoint_*.pth")) - before
    return saved


def test_a_voice_is_fine_tuned_comes_home_and_is_listed_by_alltalk(place: Workplace, alltalk: Path) -> None:
    place.configure(config_of(alltalk, **{"project.install_to": VOICE}))
    before = contents(alltalk)

    ended = place.run("train", "--configfile", str(place.configfile), PAUSE_S="0.1")

    assert ended.returncode == 0, ended.stdout
    home, record = place.results, record_of(place)
    assert [path.name for path in (home / "model/wavs/suitable").iterdir()] == ["clip_00000000.wav"]
    assert len(record["model"]) == 6 + 12
    assert (home / "artifacts" / VOICE / "wavs/audio_report.txt").exists()
    for name in ("config.json", "vocab.json", "dvae.pth"):
        assert (home / "model" / name).read_bytes() == (alltalk / BASE / name).read_bytes()
    assert_same_voice(place, alltalk)

    after = contents(alltalk)
    installed = {name: after.pop(name) for name in list(after) if name.startswith(f"{VOICE}/")}
    assert after == before, "nothing else of AllTalk's folder was touched"
    assert {name.removeprefix(f"{VOICE}/").split("/")[0] for name in installed} == {*VOICE_FILES, INSTALLED}
    there, writes = record["installed"], record["writes"]
    assert (there["path"], there["files"]) == (str(alltalk / VOICE), len(record["model"]))
    assert there["disk_bytes"] >= there["bytes"] == sum(file["bytes"] for file in record["model"])
    assert writes["written_bytes"] >= writes["export"]["disk_bytes"] + there["disk_bytes"]

    log = (home / "train.log").read_text()
    environment = alltalk / "alltalk_environment/env"
    assert f"sys.argv ['finetune.py'], CONDA_PREFIX {environment}, python {environment}/bin/python" in log
    assert epochs_in(log) == [[0, 1, 2, 3, 4, 5]]
    assert record["progress"]["epoch"] == "5/6"
    assert record["progress"]["step"] == str(EPOCHS * len(EPOCH))
    assert record["metrics"]["eval_loss"]["best"] == record["metrics"]["eval_loss"]["final"] < 0.2
    assert list((home / "artifacts").rglob("trainer_0_log.txt"))
    assert list((home / "artifacts").rglob("events.out.tfevents.*"))
    assert record["writes"]["trainer"]["disk_bytes"] <= 1 << 20
    drained = [entry["checkpoint"] for entry in record["checkpoints"]["durable"]]
    assert drained
    assert all(re.search(r"/best_model_\d+\.pth$", name) for name in drained), "not best_model.pth, its copy, too"
    assert record["project"]["inputs_why"].startswith("all of those of the project's files that its adapter names")
    assert "4 checkpoints" in ended.stdout
    assert f"each 3 times {BASE}/model.pth" in ended.stdout


def test_killed_when_it_pleases_and_rebooted_it_comes_to_the_same_voice(place: Workplace, alltalk: Path) -> None:
    place.start(pause_s=0.15)
    place.wait_for(f"{TRAINING}/best_model_*.pth")
    time.sleep(random.uniform(0, 1))
    place.process("alltalk.py", "--project").kill()
    assert place.wait() != 0
    assert "killed by SIGKILL" in place.said()
    (alltalk / "finetune.log").write_text("AllTalk was used meanwhile")

    place.start(pause_s=0.3)
    place.wait_for("results/alltalk_tts/checkpoints/[0-9]*-best_model_1*/manifest.json")
    assert "which is still in RAM" in place.said()
    place.reboot()

    assert place.run("--unlock", "--configfile", str(place.configfile)).returncode == 0
    ended = place.run("train", "--configfile", str(place.configfile))
    assert ended.returncode == 0, ended.stdout
    assert "from the durable checkpoint" in ended.stdout
    assert_same_voice(place, alltalk)
    log = (place.results / "train.log").read_text()
    left = list(map(int, re.findall(r"(\d+) epochs? remain", log)))
    assert epochs_in(log)[-1] == list(range(left[-1]))
    assert EPOCHS > left[0] > left[1] > 0


def test_ctrl_c_saves_and_a_checkpoint_that_is_cut_short_is_passed_over(place: Workplace, alltalk: Path) -> None:
    place.configure(config_of(alltalk, **{"protect.max_loss": "never"}))
    hold_at(place, 5)
    first = interrupt(place)
    assert "the trainer is sent SIGINT and has 300 s to end" in place.said()
    assert f"Its newest checkpoint is {first.relative_to(place.ram / 'overlay/upper')}, still in RAM" in place.said()

    hold_at(place, 9)  # the third step of that epoch's second time is the eighth
    os.truncate(interrupt(place), 1 << 20)

    ended = place.run("train", "--configfile", str(place.configfile))
    assert ended.returncode == 0, ended.stdout
    assert "was cut short; it is renamed" in ended.stdout
    log = (place.results / "train.log").read_text()
    assert re.findall(r"Going on from (\w+\.pth): (\d) epochs", log) == [(first.name, "5"), ("best_model_8.pth", "4")]
    assert epochs_in(log) == [[0, 1], [0, 1], [0, 1, 2, 3]]
    # Of the epochs that were cut short, the first had made a step, which counts; the second was gone with its file.
    assert_same_voice(place, alltalk, [*EPOCH, 0, *5 * EPOCH])


# As AllTalk prints it, colours included.
OUTPUT = """\
\x1b[4m\x1b[1m > EPOCH: 3/10\x1b[0m
\x1b[1m   --> TIME: 2026-01-01 12:14:38 -- STEP: 10/31 -- GLOBAL_STEP: 150\x1b[0m
     | > loss: 7.147397518157959  (7.147397518157959)
  \x1b[1m--> EVAL PERFORMANCE\x1b[0m
     | > avg_loss:\x1b[92m 7.08770751953125 \x1b[0m(-0.0052)
     | > avg_loss_text_ce:\x1b[92m 0.5 \x1b[0m(-0.1)
 > BEST MODEL : /home/anna/alltalk_tts/finetune/anna/training/XTTS_FT-January-01-2026_12+10PM-0000000/best_model_168.pth
 > Restoring from checkpoint_9.pth ...
"""


def test_progress_is_read_from_what_alltalk_prints() -> None:
    progress = TrainingProgress("run x", load_trainer("alltalk", REPO).progress)
    progress.feed(OUTPUT)
    assert progress.latest == {"epoch": "3/10", "step": "168", "loss": "7.08770751953125"}


@pytest.mark.parametrize(
    "line", [" > Restoring from checkpoint_9.pth ...", "Going on from best_model_30.pth: 7 epochs"]
)
def test_loading_a_checkpoint_is_no_progress(line: str) -> None:
    progress = TrainingProgress("run x", load_trainer("alltalk", REPO).progress)
    progress.feed(f"{line}\n")
    assert progress.latest == {}


def test_the_plan_has_room_for_four_checkpoints_and_the_voice(workdir: Path, alltalk: Path) -> None:
    os.truncate(alltalk / BASE / "model.pth", 1_857_883_871)  # what XTTS 2 has; of no more than 2 MB on the disk
    (run,) = load_runs(complete_config(config_of(alltalk), REPO, "test"), REPO).values()
    plan = plan_for(run, workdir, [])
    needed_bytes = 4 * 5_576_729_566 + 2_070_000_000 + 210_000_000  # as measured; the voice; the copied base files
    assert needed_bytes <= plan.least_bytes <= plan.size_bytes < 1.01 * needed_bytes


def test_a_voice_that_is_alltalk_s_own_is_not_replaced(place: Workplace, alltalk: Path) -> None:
    (alltalk / VOICE).mkdir()
    (alltalk / VOICE / "model.pth").write_text("exported by AllTalk")
    place.configure(config_of(alltalk, **{"project.install_to": VOICE}))
    ended = place.run("train", "--configfile", str(place.configfile))
    assert ended.returncode != 0
    assert f"project.install_to: {alltalk / VOICE}: is there already" in ended.stdout
    assert (alltalk / VOICE / "model.pth").read_text() == "exported by AllTalk"
    assert not place.ram.exists(), "nothing was begun"


def test_what_the_driver_finds_is_said_before_anything_is_mounted(place: Workplace, alltalk: Path) -> None:
    (alltalk / BASE / "dvae.pth").unlink()
    ended = place.run("train", "--configfile", str(place.configfile))
    assert ended.returncode != 0
    assert "run alltalk_tts: models/xtts: no complete base model: xttsv2_2.0.3 lacks dvae.pth." in ended.stdout
    assert not place.ram.exists(), "nothing was mounted"
