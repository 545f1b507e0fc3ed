"""AllTalk's driver alone: what it checks, what it hands to AllTalk, what it makes of how AllTalk ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
DRIVER = REPO / "config/trainers/alltalk.py"
STAND_IN = REPO / "tests/projects/alltalk"
BASE = "models/xtts/xttsv2_2.0.3"
ENVIRONMENT = "alltalk_environment/env"

pytest.importorskip("trainer", reason="needs the Coqui Trainer: examples/tiny_tts/requirements.txt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as AllTalk's, which stays as it is."""
    folder = tmp_path_factory.mktemp("made") / "alltalk"
    subprocess.run([sys.executable, str(STAND_IN / "make_alltalk.py"), str(folder)], check=True)
    return folder


@pytest.fixture
def alltalk(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it without its environment."""
    return shutil.copytree(made, tmp_path / "alltalk", ignore=shutil.ignore_patterns("alltalk_environment"))


def drive(made: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the driver with the environment's Python, in the folder."""
    return subprocess.run(
        [str(made / ENVIRONMENT / "bin/python"), str(DRIVER), *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing(folder: Path) -> None:
    """Leave the folder as it is."""


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def with_text(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding) and None


def with_copy(source: str, name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(folder / source, folder / name) and None


TABLE, LANGUAGE = "finetune/anna/metadata_eval.csv", "finetune/anna/lang.txt"
HEADER = "audio_file|text|speaker_name\n"
CLIPS = [f"wavs/clip_{number:08}.wav|said|anna\n" for number in (9, 10, 11)]
NOT_CLOSED = "".join([HEADER, CLIPS[0], CLIPS[1].replace("said", '"Oh no, he said'), CLIPS[2]])
ANNA = ["--project", "anna"]


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (without("finetune.py"), ANNA, "is not AllTalk's folder: there is no finetune.py in it"),
        (without("trainer_alltalk"), ANNA, "is AllTalk version 1, which can be trained on its own page only"),
        (nothing, [], "required: --project"),
        (nothing, ["--project", "bob"], "there is no finetune/bob; the projects are: anna."),
        (nothing, ["--project", "../anna"], "'../anna' is not the name of a folder"),
        (nothing, [*ANNA, "--voice", "models/anna"], "'models/anna' is not the name of a folder"),
        (nothing, [*ANNA, "--voice", "anna - new"], "cannot load a model whose name has ' - ' in it"),
        (nothing, [*ANNA, "--voice", "xttsv2_2.0.3"], "--voice xttsv2_2.0.3 is a base model"),
        (nothing, [*ANNA, "--base-model", "other"], "no complete base model: other lacks model.pth, config.json"),
        (without(f"{BASE}/dvae.pth", f"{BASE}/vocab.json"), ANNA, "xttsv2_2.0.3 lacks vocab.json, dvae.pth."),
        (without("models"), ANNA, "models/xtts: no complete base model. Download it in AllTalk"),
        (with_copy(BASE, "models/xtts/other"), ANNA, "name one with --base-model: other, xttsv2_2.0.3."),
        (without(TABLE), ANNA, f"{TABLE} is missing. AllTalk makes it on its page, Step 1.\n"),
        (nothing, [*ANNA, "--epoch", "7"], "unrecognized arguments: --epoch 7. `python "),
        (with_text(TABLE, HEADER), ANNA, "metadata_eval.csv names no clips"),
        (with_text(TABLE, "a|b\n1|2\n"), ANNA, "its first line is not audio_file|text"),
        (
            with_text(TABLE, f"{HEADER}wavs/no.wav|no|anna\n"),
            ANNA,
            "metadata_eval.csv: none of the 1 clips that it names is in finetune/anna",
        ),
        (with_text(TABLE, NOT_CLOSED), ANNA, "the quotation mark before 'Oh no, he said|anna' is not closed"),
        (with_text(TABLE, NOT_CLOSED + CLIPS[2] * 5000), ANNA, "limit (131072); maybe a quotation mark is not closed"),
        (with_text(TABLE, HEADER + CLIPS[0], "utf-8-sig"), ANNA, f"{TABLE} cannot be read: it begins with a byte"),
        (with_text(TABLE, HEADER + CLIPS[0], "utf-16"), ANNA, f"{TABLE} cannot be read: 'utf-8' codec can't decode"),
        (with_text(LANGUAGE, "en", "utf-8-sig"), ANNA, f"{LANGUAGE} begins with a byte order mark; `sed -i '1s/"),
        (with_text(LANGUAGE, "en", "utf-16"), ANNA, f"{LANGUAGE} cannot be read: 'utf-8' codec can't decode"),
        (nothing, [*ANNA, "--language", "de"], "finetune/anna/lang.txt says en, and AllTalk goes by that"),
        (nothing, [*ANNA, "--epochs", "3"], "needs --epochs 4 or more"),
        (nothing, [*ANNA, "--epochs", "0"], "'0' is not a number from 1 on"),
        (nothing, [*ANNA, "--learning-rate", "-1"], "'-1' is not a number above 0"),
        (nothing, [*ANNA, "--scheduler", "Cosine"], "invalid choice: 'Cosine'"),
        (nothing, [*ANNA, "--optimizer", "noamlr"], "invalid choice: 'noamlr'"),
        (nothing, [*ANNA, "--scheduler", "ReduceLROnPlateau"], "fails in AllTalk after the first epoch"),
        (nothing, [*ANNA, "--scheduler", "CyclicLR", "--optimizer", "Adagrad"], "Adagrad has none"),
        (
            nothing,
            [*ANNA, "--scheduler", "MultiStepLR", "--learning-rate", "2e-5"],
            "needs a --learning-rate of 1e-06, 5e-06, 1e-05, 5e-05, 0.0001, 0.0005, 0.001.",
        ),
    ],
)
def test_what_is_wrong_is_said(
    spoil: Callable[[Path], None], arguments: list[str], says: str, made: Path, alltalk: Path
) -> None:
    spoil(alltalk)
    ended = drive(made, alltalk, *arguments, "--check")
    assert ended.returncode != 0
    assert says in ended.stdout
    assert "Traceback" not in ended.stdout


def test_all_that_is_wrong_is_said_at_once(made: Path, alltalk: Path) -> None:
    without(f"{BASE}/dvae.pth", "finetune/anna/wavs")(alltalk)
    ended = drive(made, alltalk, *ANNA, "--epochs", "1", "--language", "de", "--check")
    assert len(ended.stdout.splitlines()) == 5, ended.stdout


def test_another_python_is_refused(alltalk: Path) -> None:
    python = [sys.executable, "-I", "-S", str(DRIVER)]
    ended = subprocess.run([*python, *ANNA, "--check"], cwd=alltalk, capture_output=True, text=True, check=False)
    assert ended.stderr.startswith(f"There is no {ENVIRONMENT}/bin/python, which AllTalk's setup makes, and ")
    assert f"{sys.executable} is not the Python that AllTalk runs in: it has no torch, trainer, TTS" in ended.stderr
    assert ended.returncode == 1


def test_a_check_that_is_passed_says_what_there_is_and_writes_nothing(made: Path, alltalk: Path) -> None:
    (alltalk / "finetune/anna/wavs/clip_00000003.wav").unlink()
    before = contents(alltalk)
    ended = drive(made, alltalk, *ANNA, "--check", PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 0, ended.stdout
    assert (
        f"AllTalk's project anna: language en; base model {BASE}.\n  metadata_train.csv: 8 of 9 clips; the others are "
        "left out: there is no wavs/clip_00000003.wav, say.\n  metadata_eval.csv: 3 of 3 clips.\n" in ended.stdout
    )
    assert "| torch\n" not in ended.stdout
    assert contents(alltalk) == before


def test_what_it_says_to_type_takes_the_byte_order_mark_away(made: Path, alltalk: Path) -> None:
    before = (alltalk / TABLE).read_bytes()
    (alltalk / TABLE).write_bytes(b"\xef\xbb\xbf" + before)
    command = drive(made, alltalk, *ANNA, "--check").stdout.split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert (alltalk / TABLE).read_bytes() == before


def test_quotation_marks_that_are_closed_are_none_of_its_business(made: Path, alltalk: Path) -> None:
    said = ('"Oh no", he said', '"He said ""no"""', '"a | b"')
    lines = [clip.replace("said", text) for clip, text in zip(CLIPS, said, strict=True)]
    with_text(TABLE, "".join([HEADER, *lines]))(alltalk)
    assert "metadata_eval.csv: 3 of 3 clips." in drive(made, alltalk, *ANNA, "--check").stdout


def test_of_wrong_arguments_it_says_what_is_wrong_alone(made: Path, alltalk: Path) -> None:
    ended = drive(made, alltalk, *ANNA, "--epochs", "ten", "--check")
    why = "argument --epochs: 'ten' is not a number from 1 on."
    assert ended.stdout == f"{why} `python {shlex.quote(str(DRIVER))} --help` lists the arguments.\n"
    listed = subprocess.run([sys.executable, "-S", DRIVER, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--epochs" in listed
    assert "[--resume" not in listed, "which is RamTrain's business"


def test_a_voice_is_no_base_model_unless_it_is_named(made: Path, alltalk: Path) -> None:
    with_copy(BASE, "models/xtts/bob")(alltalk)
    (alltalk / "models/xtts/bob/wavs").mkdir()
    assert f"base model {BASE}." in drive(made, alltalk, *ANNA, "--check").stdout
    assert "base model models/xtts/bob." in drive(made, alltalk, *ANNA, "--base-model", "bob", "--check").stdout
    (alltalk / BASE / "dvae.pth").unlink()
    said = drive(made, alltalk, *ANNA, "--check").stdout
    assert "no complete base model: xttsv2_2.0.3 lacks dvae.pth. Download" in said, "bob lacks nothing"


FAKE = """
import os, pathlib, shutil, sys
print("argv", sys.argv, "conda", os.environ.get("CONDA_PREFIX"), "found", shutil.which("python"))
out_path, Trainer, DebugLevels = None, object, type("DebugLevels", (), {"DATA_PROCESS": False})
folder = pathlib.Path("finetune/anna/training/XTTS_FT-now")
base = pathlib.Path("models/xtts/xttsv2_2.0.3")

def train_gpt(**given):
    print("debug", DebugLevels.DATA_PROCESS, "given", sorted(given.items(), key=str))
    given["progress"](0, desc="as AllTalk calls it")
    folder.mkdir(parents=True)
    for number in (9, 10):
        (folder / f"best_model_{number}.pth").write_text(str(number))
    {TRAINED}
    return str(base / "config.json"), None, str(base / "vocab.json"), str(folder.resolve()), "clip.wav"

def compact_custom_model(checkpoint, voice, overwrite):
    {EXPORTED}
    to = base.with_name(voice)
    (to / "wavs/suitable").mkdir(parents=True, exist_ok=True)
    shutil.copy2("finetune/anna/wavs/clip_00000000.wav", to / "wavs/suitable")
    shutil.copy2(checkpoint, to / "model.pth")
    places = [folder / "config.json", folder / "vocab.json", *pathlib.Path("finetune/anna/chkptandnorm").iterdir()]
    for path in places:
        shutil.copy2(path, to)
    {DONE}
    return "processed"
"""


def fake(folder: Path, **parts: str) -> None:
    """Put a fine-tuning without PyTorch in the place of the stand-in's."""
    text = FAKE
    for part in ("TRAINED", "EXPORTED", "DONE"):
        text = text.replace(f"{{{part}}}", parts.get(part, "pass"))
    (folder / "finetune.py").write_text(text)


def test_alltalk_is_called_as_its_page_calls_it(made: Path, alltalk: Path) -> None:
    fake(alltalk)
    ended = drive(made, alltalk, *ANNA, "--voice", "annie", "--workers", "0", "--learning-rate", "1e-5")
    assert ended.returncode == 0, ended.stdout
    assert f"argv ['finetune.py'] conda {made / ENVIRONMENT} found {made / ENVIRONMENT / 'bin/python'}" in ended.stdout
    project = alltalk / "finetune/anna"
    for given in (
        "debug True",
        "('batch_size', 4)",
        "('continue_run', False)",
        f"('eval_csv', '{project / 'metadata_eval.csv'}')",
        "('grad_acumm', 1)",
        "('language', 'en')",
        "('learning_rate', 1e-05)",
        "('learning_rate_scheduler', 'CosineAnnealingWarmRestarts')",
        f"('max_audio_length', {11 * 22050})",
        "('model_to_train', 'xttsv2_2.0.3')",
        "('num_epochs', 10)",
        "('num_workers', 0)",
        "('optimizer', 'AdamW')",
        "('warm_up', False)",
    ):
        assert given in ended.stdout
    assert ended.stdout.endswith("The voice is complete: models/xtts/annie\n")
    voice = alltalk / "models/xtts/annie"
    assert (voice / "model.pth").read_text() == "10", "the best model of the highest step"
    for name in ("config.json", "vocab.json", "dvae.pth"):
        assert (voice / name).read_bytes() == (alltalk / BASE / name).read_bytes()
        assert (voice / name).stat().st_mtime > (alltalk / BASE / name).stat().st_mtime, "it looks new"


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"TRAINED": "return None"}, "AllTalk did not train; it said why above."),
        ({"TRAINED": "sys.exit(1)"}, ""),
        ({"TRAINED": "raise ValueError('no such loss')"}, "ValueError: no such loss"),
        ({"TRAINED": "[path.unlink() for path in folder.iterdir()]"}, "has no best model: in no epoch"),
        ({"EXPORTED": "return 'the disk is full'"}, "AllTalk did not export the voice: the disk is full"),
        ({"EXPORTED": "raise OSError('no room')"}, "OSError: no room"),
        ({"DONE": "(to / 'dvae.pth').unlink()"}, "models/xtts/anna, lacks dvae.pth."),
        ({"DONE": "shutil.rmtree(to / 'wavs')"}, "models/xtts/anna, lacks wavs/."),
    ],
)
def test_whatever_alltalk_fails_at_is_a_failure(parts: dict[str, str], says: str, made: Path, alltalk: Path) -> None:
    fake(alltalk, **parts)
    ended = drive(made, alltalk, *ANNA)
    assert ended.returncode == 1
    assert says in ended.stdout
    assert "The voice is complete" not in ended.stdout


def test_of_an_older_voice_nothing_looks_new(made: Path, alltalk: Path) -> None:
    fake(alltalk)
    for name in (".ramtrain-installed.json", "wavs/suitable/old.wav"):
        path = alltalk / "models/xtts/anna" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    assert drive(made, alltalk, *ANNA).returncode == 0
    old = {path.name for path in (alltalk / "models/xtts/anna").rglob("*.*") if path.stat().st_mtime == 1}
    assert old == {".ramtrain-installed.json", "old.wav"}


def test_an_older_voice_is_not_taken_for_the_new_one(made: Path, alltalk: Path) -> None:
    fake(alltalk, EXPORTED="return 'nothing was exported'")
    with_copy(BASE, "models/xtts/anna")(alltalk)
    (alltalk / "models/xtts/anna/wavs").mkdir()
    (alltalk / "models/xtts/anna/wavs/old.wav").touch()
    ended = drive(made, alltalk, *ANNA)
    assert ended.returncode == 1
    assert "AllTalk did not export the voice: nothing was exported" in ended.stdout


@pytest.fixture(scope="module")
def driver() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("alltalk_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(path: Path, epochs: int, epoch: int, loss: float) -> None:
    import torch

    state = {"config": {"epochs": epochs}, "epoch": epoch, "model_loss": {"train_loss": loss, "eval_loss": loss}}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("saved", "left", "best"),
    [
        # epoch 2 of 0 to 9 is over; the copy of it was cut short
        ({"best_model_30.pth": (10, 2), "best_model.pth": None}, 7, 30),
        # within epoch 4, which is trained again
        ({"best_model_30.pth": (10, 2), "checkpoint_45.pth": (10, 4)}, 6, 30),
        # within the first epoch of all
        ({"checkpoint_7.pth": (10, 0)}, 10, None),
        # a second time: 6 epochs were left at the first
        ({"best_model_61.pth": (6, 1), "checkpoint_45.pth": (10, 4)}, 4, 61),
        # interrupted after the epoch's last step
        ({"best_model_45.pth": (10, 4), "checkpoint_45.pth": (10, 4)}, 5, 45),
        # out of sight
        ({"best_model_30.pth": (10, 2), "checkpoint_45.pth.incomplete": None}, 7, 30),
        # a checkpoint of before the first step
        ({"best_model_0.pth": (10, 0), "checkpoint_7.pth": (10, 0)}, 10, None),
    ],
)
def test_what_remains_is_trained(
    driver: types.ModuleType, tmp_path: Path, saved: dict[str, Any], left: int, best: int | None
) -> None:
    folder, other = tmp_path / "XTTS_FT-first", tmp_path / "XTTS_FT-second"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"epochs": 10, "batch_size": 4}))
    for name, state in saved.items():
        if state:
            save(folder / name, *state, loss=float(name.split("_")[-1].split(".")[0]))
        else:
            (folder / name).write_bytes(b"PK\3\4")
    other.mkdir()
    os.utime(other, (time.time() + 3600,) * 2)
    (tmp_path / "a link to nowhere").symlink_to("nowhere")

    class Trainer:
        best_loss = "as AllTalk begins"

    alltalk = types.ModuleType("finetune")
    alltalk.Trainer = Trainer
    assert driver.prepare_resuming(alltalk, folder)

    assert json.loads((folder / "config.json").read_text()) == {"epochs": left, "batch_size": 4}
    assert max(filter(Path.is_dir, tmp_path.iterdir()), key=lambda path: path.stat().st_mtime) == folder
    assert list(folder.glob("best_model_*.pth")), "without one AllTalk starts anew"
    trainer = alltalk.Trainer()
    trainer._restore_best_loss()
    assert trainer.best_loss == ({"train_loss": best, "eval_loss": best} if best else "as AllTalk begins")


def test_an_epoch_that_is_no_better_than_the_best_does_not_replace_it(made: Path, alltalk: Path) -> None:
    command = [str(made / ENVIRONMENT / "bin/python"), str(DRIVER), *ANNA]
    command += ["--epochs", "3", "--scheduler", "None", "--workers", "0"]
    worse = {**os.environ, "WORSE_FROM": "4"}  # all but the first epoch; each of them better than the one before
    with subprocess.Popen(command, cwd=alltalk, env={**worse, "HOLD_AT": "8"}, stdout=subprocess.PIPE) as trainer:
        next(line for line in trainer.stdout if b"holding" in line)
        trainer.send_signal(signal.SIGINT)
    (folder,) = (alltalk / "finetune/anna/training").iterdir()
    assert {path.name for path in folder.glob("*_[0-9].pth")} == {"best_model_3.pth", "checkpoint_7.pth"}

    command += ["--resume", str(folder)]
    ended = subprocess.run(command, cwd=alltalk, env=worse, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "Going on from checkpoint_7.pth: 1 epochs remain." in ended.stdout
    assert [path.name for path in folder.glob("best_model_*.pth")] == ["best_model_3.pth"]


def test_a_training_that_is_over_is_only_exported(driver: types.ModuleType, tmp_path: Path) -> None:
    save(tmp_path / "best_model_30.pth", 3, 2, 0.5)
    assert not driver.prepare_resuming(types.ModuleType("finetune"), tmp_path)


def test_a_checkpoint_that_cannot_be_loaded_is_named(driver: types.ModuleType, tmp_path: Path) -> None:
    save(tmp_path / "best_model_30.pth", 3, 2, 0.5)
    whole = (tmp_path / "best_model_30.pth").read_bytes()
    (tmp_path / "best_model_30.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(driver.Refused, match=r"best_model_30\.pth cannot be loaded: "):
        driver.prepare_resuming(types.ModuleType("finetune"), tmp_path)


def test_an_export_that_was_cut_short_is_all_that_is_done_again(made: Path, alltalk: Path) -> None:
    fake(alltalk, TRAINED="sys.exit('trained again')")
    folder = alltalk / "finetune/anna/training/XTTS_FT-now"
    folder.mkdir(parents=True)
    (folder / "best_model_10.pth").write_text("10")
    shutil.copy(alltalk / BASE / "config.json", folder)
    moved = Path(shutil.copy2(alltalk / BASE / "mel_stats.pth", alltalk / "mel_stats.pth"))
    (alltalk / "finetune/anna/chkptandnorm").mkdir()
    (alltalk / "finetune/anna/chkptandnorm/mel_stats.pth").symlink_to(moved)
    changed_ns = moved.stat().st_ctime_ns
    ended = drive(made, alltalk, *ANNA, "--resume", "finetune/anna/training/XTTS_FT-now")
    assert ended.returncode == 0, ended.stdout
    assert (alltalk / "models/xtts/anna/dvae.pth").exists(), "though chkptandnorm/ lacked it"
    assert moved.stat().st_ctime_ns == changed_ns, "what was moved out of RAM is not written again"
