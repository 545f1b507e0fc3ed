"""What is guessed of a project: tables of small trees; and trees that are not to be believed."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPO

from ramtrain import guess as guess_module
from ramtrain.__main__ import main
from ramtrain.config import complete_config, load_runs, load_trainer
from ramtrain.errors import RamTrainError
from ramtrain.guess import Guess, guess
from ramtrain.initial import config_text, initialize
from ramtrain.listing import list_folder
from ramtrain.products import Clue

MAIN = 'if __name__ == "__main__":\n    main()\n'
ARGPARSE = "import argparse\nparser = argparse.ArgumentParser()\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.endswith("bin/python"):
            path.chmod(0o755)
    return root


@contextlib.contextmanager
def given_up_after(seconds: int) -> Iterator[None]:
    """Fail what takes longer, even where it waits for ever."""

    def fail(*_: object) -> None:
        pytest.fail(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def guessed(root: Path, files: dict[str, str]) -> Guess:
    return guess(tree(root, files), lambda name: load_trainer(name, REPO))


@pytest.mark.parametrize(
    ("files", "trainer", "source"),
    [
        ({"train.py": "from transformers import Trainer\n"}, "huggingface", "train.py:1 imports transformers.Trainer"),
        ({"train.py": "\nimport transformers\ntransformers.Trainer().train()\n"}, "huggingface", "train.py:2"),
        ({"train.py": "from trl import SFTTrainer\n"}, "huggingface", "trl.SFTTrainer"),
        ({"train.py": "from transformers import AutoModel\nimport torch\n"}, "generic", "train.py:2 imports torch"),
        ({"train.py": "def f():\n    import lightning as L\n"}, "lightning", "train.py:2 imports lightning"),
        ({"train.py": "import pytorch_lightning as pl\n"}, "lightning", "pytorch_lightning"),
        ({"train.py": "from transformers import AutoModel\nimport lightning\n"}, "lightning", "train.py:2"),
        ({"train.py": "from trainer import Trainer, TrainerArgs\n"}, "coqui", "train.py:1 imports trainer.Trainer"),
        ({"train.py": "from trainer import Trainer\n", "trainer.py": "import torch\n"}, "generic", "trainer.py:1"),
        ({"train.py": "from sklearn.svm import SVC\n"}, "generic", "train.py:1 imports sklearn.svm"),
        ({"train.py": "import xgboost, sklearn\n"}, "generic", "imports xgboost"),
        ({"train.py": "import json\n"}, "generic", "no import"),
        (
            {"main.py": "from src.fit import go\n" + MAIN, "src/fit.py": "import lightning\n"},
            "lightning",
            "src/fit.py:1",
        ),
        ({"pkg/train.py": "from .own import x\n", "pkg/own.py": "import lightning\n"}, "lightning", "pkg/own.py:1"),
        ({"a/b/train.py": "from ..own import x\n" + MAIN, "a/own.py": "import lightning\n"}, "lightning", "a/own.py:1"),
        ({"a/train.py": "from .....own import x\n", "own.txt": ""}, "generic", "no import"),
        ({"train.py": "import other\n", "unused.py": "import lightning\n"}, "generic", "no import"),
    ],
)
def test_the_trainer_is_told_by_what_the_entry_imports(
    files: dict[str, str], trainer: str, source: str, tmp_path: Path
) -> None:
    found = guessed(tmp_path / "p", files)
    assert found.trainer.value == trainer
    assert source in found.trainer.source


BASE_FILES = ("model.pth", "config.json", "vocab.json", "speakers_xtts.pth", "mel_stats.pth", "dvae.pth")


def xtts(name: str) -> dict[str, str]:
    return {f"models/xtts/{name}/{file}": "" for file in BASE_FILES}


ALLTALK = {
    **xtts("base"),
    "finetune.py": "def train_gpt(): ...\ndef compact_custom_model(): ...\n",
    "finetune/anna/metadata_train.csv": "",
    "finetune/anna/lang.txt": "de\n",
    "system/tts_engines/rvc/train/train.py": "import lightning\n",
}


def test_an_alltalk_folder_is_known(tmp_path: Path) -> None:
    found = guessed(tmp_path / "alltalk_tts", {**ALLTALK, "alltalk_environment/env/bin/python": ""})
    assert found.trainer.value == "alltalk"
    assert found.command == "{python} {driver} --project {run} --epochs 10"
    assert found.install_to == "models/xtts/{run}"
    assert found.run == Clue("anna", "another voice is one more, named as its data set")
    assert found.python_from.startswith("alltalk_environment/env/bin/python")
    assert found.warnings == []


def test_the_newest_data_set_of_alltalk_is_taken(tmp_path: Path) -> None:
    root = tree(tmp_path / "alltalk", {**ALLTALK, "finetune/zoe/metadata_train.csv": ""})
    os.utime(root / "finetune/zoe/metadata_train.csv", (1, 1))
    (root / "finetune/gone").mkdir()
    (root / "finetune/gone/metadata_train.csv").symlink_to("nowhere")
    found = guess(root, lambda name: load_trainer(name, REPO))
    assert found.run.value == "anna"
    assert "anna and zoe" in found.command_from


def test_of_several_base_models_of_alltalk_one_is_named(tmp_path: Path) -> None:
    voice = {**xtts("a_voice"), "models/xtts/a_voice/wavs/a.wav": ""}
    incomplete = {"models/xtts/a_part/dvae.pth": ""}
    assert "--base-model" not in guessed(tmp_path / "one", {**ALLTALK, **voice, **incomplete}).command
    found = guessed(tmp_path / "two", {**ALLTALK, **voice, **incomplete, **xtts("xttsv2")})
    assert "--base-model base" in found.command
    assert any("base and xttsv2" in warning for warning in found.warnings)


def test_a_base_model_of_alltalk_is_what_the_driver_takes_for_one() -> None:
    driver = runpy.run_path(str(REPO / "config/trainers/alltalk.py"))
    assert set(guess_module.BASE_FILES) == set(driver["BASE_FILES"]) == set(BASE_FILES)


def test_a_data_set_of_alltalk_whose_name_is_no_runs_is_named_in_the_command(tmp_path: Path) -> None:
    files = {name: text for name, text in ALLTALK.items() if not name.startswith("finetune/")}
    found = guessed(tmp_path / "alltalk", {**files, "finetune/my {x} voice/metadata_train.csv": ""})
    assert found.command == "{python} {driver} --project 'my {{x}} voice' --epochs 10"
    assert (found.install_to, found.run.value) == ("models/xtts/{run}", "my_x_voice")


def test_an_alltalk_folder_without_a_data_set_says_what_is_missing(tmp_path: Path) -> None:
    found = guessed(tmp_path / "alltalk", {"finetune.py": ALLTALK["finetune.py"]})
    assert found.run.value == "NAME"
    assert len(found.warnings) == 3


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"train.py": "", "main.py": MAIN}, "train.py"),
        ({"finetune.py": "", "utils.py": MAIN}, "finetune.py"),
        ({"fine_tune_gpt.py": "", "eval.py": MAIN}, "fine_tune_gpt.py"),
        ({"main.py": MAIN + "model.fit()\n", "model.py": "loss.backward()\n"}, "main.py"),
        ({"train.py": "", "tests/test_train.py": MAIN, "examples/train.py": MAIN}, "train.py"),
        ({"src/train.py": MAIN, "setup.py": MAIN}, "src/train.py"),
        ({"run_glue.py": MAIN + "trainer.train()\n"}, "run_glue.py"),
        ({"iris.py": MAIN + "svc.fit(x, y)\n"}, "iris.py"),
        ({"pkg/__init__.py": "", "pkg/train.py": "from .model import M\n" + MAIN}, "-m pkg.train"),
        ({"my train.py": MAIN}, "'my train.py'"),
        ({"train{x}.py": MAIN, "train_{x}.py": MAIN}, "'train_{{x}}.py'"),
        ({"cli.py": ARGPARSE + "s = parser.add_subparsers()\ns.add_parser('train')\ns.add_parser('eval')\n" + MAIN},
         "cli.py train"),
        ({"main.py": "from lightning.pytorch.cli import LightningCLI\nLightningCLI()\n" + MAIN}, "main.py fit"),
        ({"train.py": ARGPARSE + 'parser.add_argument("--out_dir", required=True)\n'}, "train.py --out_dir output"),
        ({"train.py": ARGPARSE + 'parser.add_argument("data")\n', "data/x.csv": ""}, "train.py data"),
        ({"train.py": ARGPARSE + 'parser.add_argument("--base", required=True)\n'}, "train.py --base BASE"),
        ({"train.py": ARGPARSE + 'parser.add_argument("x", nargs="?")\nparser.add_argument("--lr")\n'}, "train.py"),
        ({"train.py": "import click\n@click.option('--lr', required=True)\ndef main(): ...\n"}, "train.py --lr LR"),
        (
            {
                "train.py": "from transformers import HfArgumentParser, TrainingArguments, Trainer\n"
                "from dataclasses import dataclass\n@dataclass\nclass Data:\n    text: str\n    n: int = 1\n"
                "HfArgumentParser((Data, TrainingArguments))\n"
            },
            "train.py --text TEXT --output_dir output",
        ),
    ],
)  # fmt: skip
def test_the_command_starts_what_looks_like_a_training(files: dict[str, str], command: str, tmp_path: Path) -> None:
    assert guessed(tmp_path / "p", files).command == f"python {command}"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"train.sh": "#!/bin/sh\n"}, "bash train.sh"),
        ({"scripts/run_training.sh": "x"}, "bash scripts/run_training.sh"),
        ({"readme.md": "", "util.py": "x = 1\n"}, "python train.py"),
    ],
)
def test_without_a_python_script_others_are_looked_for(files: dict[str, str], command: str, tmp_path: Path) -> None:
    found = guessed(tmp_path / "p", files)
    assert found.command == command
    assert found.warnings


def test_what_stands_for_a_value_is_told(tmp_path: Path) -> None:
    source = ARGPARSE + 'parser.add_argument("--base", required=True)\n'
    warnings = guessed(tmp_path / "p", {"train.py": source}).warnings
    assert "train.py needs --base: put it in the place of BASE" in warnings


@pytest.mark.parametrize(
    ("places", "python"),
    [
        ([".venv"], "{python}"),
        (["venv", ".venv", "env"], "{python}"),
        (["env"], "env/bin/python"),
        (["tools/conda"], "tools/conda/bin/python"),
        ([], "python"),
    ],
)
def test_the_projects_own_python_is_taken(places: list[str], python: str, tmp_path: Path) -> None:
    files = {"train.py": ""}
    for place in places:
        mark = "conda-meta/history" if "conda" in place else "pyvenv.cfg"
        files |= {f"{place}/{mark}": "", f"{place}/bin/python": "", f"{place}/lib/site.py": "import lightning\n"}
    assert guessed(tmp_path / "p", files).command == f"{python} train.py"


@pytest.mark.parametrize("trainer", ["lightning", "transformers.Trainer", "trainer.Trainer", "torch"])
def test_the_python_of_the_config_is_the_one_that_the_guess_names(trainer: str, workdir: Path, tmp_path: Path) -> None:
    root = tree(tmp_path / "p", {"train.py": f"import {trainer}\n"})
    (root / "venv").symlink_to(Path(sys.prefix))
    said = initialize(root, workdir / "x.yaml", REPO)
    (run,) = load_runs(complete_config(yaml.safe_load((workdir / "x.yaml").read_text()), REPO, "x.yaml"), REPO).values()
    assert run.arguments(ram="")[0] == str(root / "venv/bin/python")
    assert "venv/bin/python, in the project" in said


def test_an_environment_that_cannot_be_started_is_told_of(tmp_path: Path) -> None:
    found = guessed(tmp_path / "p", {"train.py": "", ".venv/pyvenv.cfg": ""})
    assert found.command == "python train.py"
    assert "that of .venv cannot be started" in found.python_from


def test_what_ramtrains_own_python_does_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    source = "import json, yaml, no_such_library\nfrom own import x\n"
    found = guessed(tmp_path / "p", {"train.py": source, "own.py": ""})
    assert any("no no_such_library:" in warning or "no no_such_library;" in warning for warning in found.warnings)
    assert "RamTrain's own" in found.python_from


HUGGINGFACE = "from transformers import Trainer, TrainingArguments\n"
TORCH = "import torch\nfrom pathlib import Path\n"
PARSED = ARGPARSE + TORCH


@pytest.mark.parametrize(
    ("source", "model", "checkpoints"),
    [
        (TORCH + 'torch.save(m, "out/model.pt")\n', ["out/model.pt"], []),
        (TORCH + 'OUT = Path("out")\ntorch.save(m, OUT / f"step_{n}.pt")\n', ["out/step_*.pt"], ["out/step_*.pt"]),
        (TORCH + 'out = Path(__file__).resolve().parent / "o"\ntorch.save(m, out / "m.pth")\n', ["o/m.pth"], []),
        (TORCH + 'torch.save(m, "ckpt-%d.pt" % n)\ntorch.save(m, "final.pt")\n', ["final.pt"], ["ckpt-*.pt"]),
        (TORCH + 'import os\ntorch.save(m, os.path.join("a", "b", "c.pt"))\n', ["a/b/c.pt"], []),
        (TORCH + 'torch.save(m, "e{}.pt".format(n))\ntorch.save(m, "x.pt")\n', ["x.pt"], ["e*.pt"]),
        (
            PARSED + 'parser.add_argument("--save-dir", default="runs")\na = parser.parse_args()\n'
            'torch.save(m, f"{a.save_dir}/last.pt")\ntorch.save(m, a.save_dir + "/best.pt")\n',
            ["runs/best.pt"],
            ["runs/last.pt"],
        ),
        (TORCH + 'torch.save(m, where / "m.pt")\n', ["**/m.pt"], []),
        (TORCH + 'torch.save(m, f"{where}/m.pt")\n', ["**/m.pt"], []),
        (TORCH + 'o = "out"\ntorch.save(m, "%s/g_%d.pth" % (o, n))\n', ["out/g_*.pth"], ["out/g_*.pth"]),
        (
            TORCH + 'def save(is_best, to="checkpoint.pth.tar"):\n    torch.save(m, to)\n'
            '    if is_best:\n        shutil.copyfile(to, "model_best.pth.tar")\n',
            ["model_best.pth.tar"],
            ["checkpoint.pth.tar"],
        ),
        (TORCH + 'torch.load("base.pt")\ntorch.save(m, "/tmp/x.pt")\n', ["**/*.pt*"], []),
        (TORCH + 'torch.save(m, "../x.pt")\n', ["**/*.pt*"], []),
        ("import joblib\njoblib.dump(m, 'm.joblib')\n", ["m.joblib"], []),
        ("import pickle\nwith open('m.pkl', 'wb') as f:\n    pickle.dump(m, f)\n", ["m.pkl"], []),
        ("import xgboost\nbooster.save_model('model.json')\n", ["model.json"], []),
        ("from sklearn import svm\n", ["**/*.joblib"], []),
        ("m.save_pretrained('out/final')\n", ["out/final"], []),
        ("Path('w.bin').write_bytes(b'')\nPath('log.txt').write_text('')\n", ["w.bin"], []),
        ("open('a*b.pt', 'wb')\n", ["a[*]b.pt"], []),
        (TORCH + 'n = f"{n}_x"\ntorch.save(m, f"out/{n}.pt")\n', ["out/*_x.pt"], ["out/*_x.pt"]),
        (TORCH + 'a = b + "x"\nb = a + "y"\ntorch.save(m, a + ".pt")\n', ["*yx.pt"], ["*yx.pt"]),
        (TORCH + 'd = os.path.dirname(__file__)\ntorch.save(m, Path(d, "m.pt"))\n', ["m.pt"], []),
        (
            PARSED + 'out = a.out\nparser.add_argument("--to", default=out)\n'
            'parser.add_argument("--out", default="o")\ntorch.save(m, f"{a.to}/m.pt")\n',
            ["o/m.pt"],
            [],
        ),
    ],
)
def test_globs_are_told_by_what_the_source_writes(
    source: str, model: list[str], checkpoints: list[str], tmp_path: Path
) -> None:
    products = guessed(tmp_path / "p", {"train.py": source}).products
    assert [clue.value for clue in products.model] == model
    assert [clue.value for clue in products.checkpoints] == checkpoints


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ('from trainer import Trainer\nOUT = "run"\nTrainer(output_path=OUT)\n', "run/*/best_model.pth"),
        ("from trainer import Trainer\nTrainer(args, config)\n", "**/best_model.pth"),
        (HUGGINGFACE + 'TrainingArguments(output_dir="o")\ntrainer.save_model()\n', "o/*.safetensors"),
        (HUGGINGFACE + 'TrainingArguments("o2")\ntrainer.save_model("o2")\n', "o2/*.safetensors"),
        (HUGGINGFACE + 'TrainingArguments("o3")\n', "o3/checkpoint-*/*.safetensors"),
        (HUGGINGFACE + 'TrainingArguments("o4")\nmodel.save_pretrained("final")\n', "final"),
        ('import lightning as L\nL.Trainer(default_root_dir="w")\n', "w/**/*.ckpt"),
        ("import lightning as L\nL.Trainer()\n", "lightning_logs/**/*.ckpt"),
        ("import lightning as L\ntrainer.save_checkpoint('final.ckpt')\n", "final.ckpt"),
    ],
)
def test_globs_of_a_known_trainer_are_in_its_output_folder(source: str, model: str, tmp_path: Path) -> None:
    found = guessed(tmp_path / "p", {"train.py": source})
    if load_trainer(found.trainer.value, REPO).model:
        assert found.products.model == ()
    else:
        assert found.products.model[0].value == model


def test_what_earlier_trainings_left_tells_too(tmp_path: Path) -> None:
    files = {"train.py": "", "base.pt": "", "runs/exp12/best.pt": "", "runs/exp12/epoch3.pt": "", "runs/e/log": ""}
    products = guessed(tmp_path / "p", files).products
    assert [clue.value for clue in products.model] == ["runs/exp*/best.pt"]
    assert [clue.value for clue in products.checkpoints] == ["runs/exp*/epoch*.pt"]
    assert products.model[0].source == "runs/exp12/best.pt lies there"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import lightning\n" + ARGPARSE + 'parser.add_argument("--ckpt_path")\nparser.parse_args()\n', None),
        ("import lightning\n" + ARGPARSE + 'parser.add_argument("--ckpt-path")\nparser.parse_args()\n', None),
        ("from lightning.pytorch.cli import LightningCLI\nLightningCLI()\n", None),
        (
            "from transformers import Trainer, HfArgumentParser\nHfArgumentParser(T).parse_args_into_dataclasses()\n",
            None,
        ),
        ("import lightning\n" + ARGPARSE + 'parser.add_argument("--lr")\nparser.parse_args()\n', "has no option"),
        ("import lightning\n", "reads no arguments"),
        ("from trainer import Trainer\n", None),
        (
            "from trainer import Trainer\n" + ARGPARSE + 'parser.add_argument("--lr")\nparser.parse_args()\n',
            "--continue",
        ),
        ("from trainer import Trainer\n" + ARGPARSE + 'parser.add_argument("--lr")\nparser.parse_known_args()\n', None),
    ],
)
def test_a_script_that_cannot_be_told_to_go_on_is_told_of(source: str, said: str | None, tmp_path: Path) -> None:
    warnings = guessed(tmp_path / "p", {"train.py": source}).warnings
    told = [warning for warning in warnings if "interrupted" in warning]
    assert bool(told) == bool(said)
    assert not told or (said or "") in told[0]


def test_trees_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, said in {"missing": "no such folder", "file": "is a file", "empty": "the folder is empty"}.items():
        with pytest.raises(RamTrainError, match=said):
            guess(tmp_path / name, lambda name: load_trainer(name, REPO))


def test_sources_that_cannot_be_read_do_no_harm(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "p", {"train.py": "import lightning\n" + MAIN, "syntax.py": "def :\n", "nul.py": "x = '\0'\n"}
    )
    (root / "latin.py").write_bytes(b"# \xe9\nx = 1\n")
    (root / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (root / "nested.py").write_text("x = " + "-" * 50_000 + "1\n")
    (root / "large.py").write_text("x = 1\n" * 200_000)
    os.mkfifo(root / "finetune.py")
    (root / "loop").symlink_to(root)
    (root / "loop.py").symlink_to("loop.py")
    (root / "elsewhere.py").symlink_to("/etc/passwd")
    (root / b"\xff.py".decode(errors="surrogateescape")).touch()
    (root / "new\nline.py").touch()
    (root / "closed").mkdir(mode=0)
    found = guess(root, lambda name: load_trainer(name, REPO))
    assert found.trainer.value == "lightning"
    assert "not read" in found.looked_at
    yaml.safe_load(config_text(found, str(root)))


@pytest.mark.parametrize(
    "source",
    [
        'msg = f"' + "{msg}" * 60 + '"\n',
        "msg = " + "+".join(["msg"] * 60) + "\n",
        "msg = Path(" + ",".join(["msg"] * 60) + ")\n",
        "".join(f"x{n} = f'" + f"{{x{n + 1}}}" * 60 + "'\n" for n in range(40)),
    ],
)
def test_names_within_themselves_take_a_moment(source: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "p", {"train.py": source + "open(msg, 'w')\nopen(x0, 'w')\n" + MAIN})
    with given_up_after(10):
        guess(root, lambda name: load_trainer(name, REPO))


def test_names_of_names_stand_for_no_more_than_a_path_may_have(tmp_path: Path) -> None:
    source = "".join(f"x{n} = f'" + f"{{x{n + 1}}}" * 40 + "x.pt'\n" for n in range(40))
    root = tree(tmp_path / "p", {"train.py": source + "torch.save(m, x0)\ntorch.save(m, x9)\n" + MAIN})
    found = guess(root, lambda name: load_trainer(name, REPO))
    assert max(map(len, config_text(found, "p").splitlines())) < 3 * 4096


def test_a_huge_tree_is_looked_at_in_a_moment(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", {"train.py": "import lightning\n", ".venv/pyvenv.cfg": ""})
    for folder in ("data/a", "data/b", ".venv/lib"):
        (root / folder).mkdir(parents=True)
        for number in range(6_000):
            os.close(os.open(root / folder / f"{number}.wav", os.O_CREAT))
    started = time.monotonic()
    found = guess(root, lambda name: load_trainer(name, REPO))
    assert time.monotonic() - started < 3
    assert found.trainer.value == "lightning"
    assert "and no further" in found.looked_at
    listing = list_folder(root, most=100)
    assert len(listing.files) + len(listing.folders) <= 100
    assert not listing.is_whole


def test_links_out_of_the_project_are_not_followed(tmp_path: Path) -> None:
    tree(tmp_path / "other", {"train.py": "import lightning\n", "pyvenv.cfg": "", "bin/python": ""})
    root = tree(tmp_path / "p", {"main.py": MAIN})
    (root / "train.py").symlink_to(tmp_path / "other/train.py")
    (root / "more").symlink_to(tmp_path / "other")
    found = guess(root, lambda name: load_trainer(name, REPO))
    assert found.command == "python main.py"
    assert found.trainer.value == "generic"


def test_a_config_is_valid_short_and_written_once(workdir: Path, tmp_path: Path) -> None:
    source = ARGPARSE + TORCH + "".join(f'parser.add_argument("--x{n}", required=True)\n' for n in range(9))
    source += "".join(f'torch.save(m, "out/model{n}.pt")\ntorch.save(m, "ckpt{n}.pt")\n' for n in range(9))
    root = tree(tmp_path / "my prôject ü", {"train.py": source})
    said = initialize(root, None, REPO)
    path = workdir / "my_pr_ject_.yaml"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 20
    config = complete_config(yaml.safe_load(text), REPO, str(path))
    assert config["project"]["path"] == str(root)
    assert f"python -m ramtrain check --configfile {path.name}" in said
    assert "snakemake --cores 1 train --configfile my_pr_ject_.yaml" in said
    assert "train.py:3" in said
    path.write_text("mine\n")
    with pytest.raises(RamTrainError, match="is there already"):
        initialize(root, None, REPO)
    assert path.read_text() == "mine\n"


def test_names_cannot_end_a_comment_or_a_value(workdir: Path, tmp_path: Path) -> None:
    evil = "x: # '\"{}[]&*!|>%@`"
    root = tree(tmp_path / evil, {"train.py": f"import torch\ntorch.save(m, {evil + 'm.pt'!r})\n"})
    path = workdir / "x.yaml"
    initialize(root, path, REPO)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["project"]["path"] == str(root)
    assert config["project"]["model"] == [evil.replace("[", "[[]").replace("*", "[*]") + "m.pt"]
    assert sorted(config) == ["project", "protect", "ramdisk"]


def test_a_secret_in_a_source_is_neither_written_nor_printed(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "aB3dE6gH9j" * 4
    source = HUGGINGFACE + ARGPARSE + f'parser.add_argument("--output_dir", default="out-{secret}")\n'
    source += f'model.save_pretrained("final-{secret}")\n'
    tree(tmp_path / "written", {"train.py": source})
    tree(tmp_path / "lying", {"train.py": TORCH, f"out/{secret}.pt": ""})
    for name in ("written", "lying"):
        monkeypatch.setattr(sys, "argv", ["ramtrain", "init", str(tmp_path / name)])
        main()
        assert secret not in (workdir / f"{name}.yaml").read_text() + capsys.readouterr().out
    assert yaml.safe_load((workdir / "written.yaml").read_text())["project"]["model"] == ["final-*"]


def test_a_path_that_is_no_utf8_is_the_same_in_the_config(workdir: Path, tmp_path: Path) -> None:
    root = tree(Path(os.fsdecode(bytes(tmp_path) + b"/\xff")), {"train.py": ""})
    initialize(root, workdir / "x.yaml", REPO)
    assert yaml.safe_load((workdir / "x.yaml").read_text(encoding="utf-8"))["project"]["path"] == str(root)


def test_a_config_that_cannot_be_written_leaves_nothing(workdir: Path, tmp_path: Path) -> None:
    root = tree(tmp_path / "p", {"train.py": ""})
    with pytest.raises(RamTrainError, match="No such file"):
        initialize(root, workdir / "missing/x.yaml", REPO)
    assert list(workdir.iterdir()) == []


def test_a_project_in_the_working_directory_is_named_from_there(workdir: Path) -> None:
    initialize(tree(workdir / "p", {"train.py": ""}), None, REPO)
    assert yaml.safe_load((workdir / "p.yaml").read_text())["project"]["path"] == "p"
