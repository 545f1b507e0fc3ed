"""Make a folder that is laid out as AllTalk_TTS version 2 is, with a base model and a project to fine-tune it on.

    python make_alltalk.py FOLDER

It needs the Coqui Trainer, as `make .venv/example` installs it.
What is in it is RamTrain's own: `finetune.py` beside this file has the names of AllTalk's and its way of writing, on
the real Coqui Trainer; the base model is 2 MB of random numbers, the clips are sine waves.
"""

import argparse
import array
import json
import math
import random
import shutil
import sys
import sysconfig
import venv
import wave
from pathlib import Path

HERE = Path(__file__).resolve().parent
BASE = "models/xtts/xttsv2_2.0.3"
PROJECT = "finetune/anna"
RATE = 22050
PARAMETERS = 500_000


def make_alltalk(folder: Path) -> Path:
    """Make the folder; return it."""
    folder.mkdir(parents=True)
    shutil.copy(HERE / "finetune.py", folder)
    shutil.copytree(HERE / "trainer_alltalk", folder / "trainer_alltalk")
    (folder / "confignew.json").write_text("{}\n")
    _make_environment(folder / "alltalk_environment/env")
    _make_base_model(folder / BASE)
    _make_project(folder / PROJECT)
    return folder


def _make_environment(folder: Path) -> None:
    """Make a Python with the packages of this one and, by name, those that AllTalk has beside them."""
    venv.create(folder, symlinks=True)
    (folder / "conda-meta").mkdir()
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder}))
    for name in ("TTS", "gradio"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
    places = [place for place in sys.path if place.endswith("-packages")]
    (packages / "these.pth").write_text("\n".join(places))


def _make_base_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    numbers = random.Random(1)
    weights = array.array("f", (numbers.random() for _ in range(PARAMETERS)))
    (folder / "model.pth").write_bytes(weights.tobytes())
    for name in ("dvae.pth", "mel_stats.pth", "speakers_xtts.pth"):
        (folder / name).write_bytes(numbers.randbytes(200_000))
    (folder / "vocab.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (folder / "config.json").write_text(json.dumps({"model": "xtts", "run_name": "run", "epochs": 1000}, indent=4))


def _make_project(folder: Path) -> None:
    (folder / "wavs").mkdir(parents=True)
    (folder / "lang.txt").write_text("en")
    clips = [(f"wavs/clip_{number:08}.wav", 7.0 if number == 0 else 0.5) for number in range(12)]
    for number, (name, seconds) in enumerate(clips):
        _write_sine(folder / name, seconds, 200 + 20 * number)
    for table, part in (("metadata_train.csv", clips[:9]), ("metadata_eval.csv", clips[9:])):
        lines = [f"{name}|the words of {name}|anna" for name, _ in part]
        (folder / table).write_text("\n".join(["audio_file|text|speaker_name", *lines, ""]))


def _write_sine(path: Path, seconds: float, hertz: int) -> None:
    samples = (int(8000 * math.sin(2 * math.pi * hertz * n / RATE)) for n in range(int(seconds * RATE)))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(array.array("h", samples).tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(make_alltalk(parser.parse_args().folder))
