"""Fine-tune XTTS in an AllTalk_TTS folder (version 2) without its web page: train, export, check the voice.

Run it with AllTalk's own Python, in AllTalk's folder. It calls what the buttons of AllTalk's fine-tuning page call,
with the page's defaults. What is wrong is said before AllTalk is loaded, which takes a while. RamTrain adds `--check`,
to have only that said, and `--resume` with a run folder that was cut short, for the epochs that remain.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SUPPORT_FILES = ("speakers_xtts.pth", "mel_stats.pth", "dvae.pth")
BASE_FILES = ("model.pth", "config.json", "vocab.json", *SUPPORT_FILES)
TABLES = ("metadata_train.csv", "metadata_eval.csv")
OWN_PYTHON = Path("alltalk_environment/env/bin/python")
PACKAGES = ("torch", "trainer", "TTS", "gradio")
SCHEDULERS = (
    "None",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "MultiStepLR",
    "ReduceLROnPlateau",
    "StepLR",
)
OPTIMIZERS = ("AdamW", "SGD", "RMSprop", "Adagrad", "Adam", "RAdam")
WARM_RESTARTS = 4
MULTI_STEP_RATES = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
SAMPLES_A_SECOND = 22050
BOM = "\ufeff"
CHECKPOINT = re.compile(r"(checkpoint|best_model)_([1-9][0-9]*)\.pth")


class Refused(Exception):
    """What is wrong, in words for whoever typed the command."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong without saying all that there is."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise Refused(f"{message}. `python {shlex.quote(__file__)} --help` lists the arguments.")


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says; the defaults are those of AllTalk's page.

    Raises:
        Refused: it says what there is not.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--project", required=True, type=_name, help="AllTalk's Project Name: the folder in finetune/")
    add("--voice", type=_name, help="the folder in models/xtts/ to export to (default: the project's name)")
    add("--language", help="such as en (default: what the project's lang.txt says, or else en)")
    add("--base-model", type=_name, help="the folder in models/xtts/ to start from (default: the only base model)")
    add("--epochs", type=_count, default=10)
    add("--batch-size", type=_count, default=4)
    add("--grad-accumulation", type=_count, default=1)
    add("--learning-rate", type=_positive, default=5e-6)
    add("--scheduler", choices=SCHEDULERS, default="CosineAnnealingWarmRestarts")
    add("--optimizer", choices=OPTIMIZERS, default="AdamW")
    add("--workers", type=int, choices=range(65), metavar="N", default=8, help="processes that load data (default: 8)")
    add("--max-audio-length", type=_positive, metavar="SECONDS", default=11, help="longer clips are left out")
    add("--warm-up", action="store_true", help="AllTalk's Perform Warmup Learning")
    add("--resume", type=Path, help=argparse.SUPPRESS)
    add("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.voice = options.voice or options.project
    return options


def _name(text: str) -> str:
    if not text or text.startswith(".") or "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder; give the name alone, no path")
    if " - " in text:
        raise argparse.ArgumentTypeError(f"{text!r}: AllTalk cannot load a model whose name has ' - ' in it")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def check(options: argparse.Namespace) -> None:
    """Check all that can be checked without AllTalk, and settle its base model and language.

    Raises:
        Refused: a line for each thing that is wrong.
    """
    check_folder()
    problems = [*_problems_of_python(), *_problems_of_settings(options), *_problems_of_project(options.project)]
    for settle in (_settle_base_model, _settle_language):
        try:
            settle(options)
        except Refused as problem:
            problems.append(str(problem))
    if problems:
        raise Refused("\n".join(problems))


def check_folder() -> None:
    """Check that the working folder is AllTalk's, in the version that can be trained from here.

    Raises:
        Refused: it is not.
    """
    here = Path.cwd()
    if not Path("finetune.py").is_file():
        raise Refused(f"{here} is not AllTalk's folder: there is no finetune.py in it.")
    if not Path("trainer_alltalk").is_dir():
        raise Refused(
            f"{here} is AllTalk version 1, which can be trained on its own page only. Set up version 2 beside it, and "
            "copy your project, the folder in finetune/, there:\n"
            "  git clone -b alltalkbeta https://github.com/erew123/alltalk_tts alltalk_v2\n"
            "  cd alltalk_v2 && ./atsetup.sh"
        )


def _problems_of_python() -> Iterator[str]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        absent = "" if OWN_PYTHON.exists() else f"There is no {OWN_PYTHON}, which AllTalk's setup makes, and "
        yield (
            f"{absent}{sys.executable} is not the Python that AllTalk runs in: it has no {', '.join(missing)}. If "
            "AllTalk's is elsewhere, name it in project.python."
        )


def _problems_of_settings(options: argparse.Namespace) -> Iterator[str]:
    """Yield what AllTalk, or PyTorch beneath it, would fail at later."""
    scheduler = options.scheduler
    if scheduler == "CosineAnnealingWarmRestarts" and options.epochs < WARM_RESTARTS:
        yield (
            f"--scheduler {scheduler}, AllTalk's default, needs --epochs {WARM_RESTARTS} or more. Train longer, or "
            "with another scheduler, such as --scheduler None."
        )
    if scheduler == "MultiStepLR" and options.learning_rate not in MULTI_STEP_RATES:
        yield f"--scheduler {scheduler} needs a --learning-rate of {', '.join(f'{r:g}' for r in MULTI_STEP_RATES)}."
    if scheduler == "CyclicLR" and options.optimizer == "Adagrad":
        yield f"--scheduler {scheduler} needs an --optimizer with momentum; Adagrad has none."
    if scheduler == "ReduceLROnPlateau":
        yield (
            f"--scheduler {scheduler} fails in AllTalk after the first epoch, where it asks for an evaluation that "
            "has not been made yet. Choose another one."
        )


def _problems_of_project(name: str) -> Iterator[str]:
    folder = Path("finetune", name)
    if not folder.is_dir():
        others = sorted(table.parent.name for table in folder.parent.glob(f"*/{TABLES[0]}"))
        yield f"--project {name}: there is no {folder}; the projects are: {', '.join(others) or 'none yet'}."
        return
    for table in TABLES:
        try:
            clips, missing = find_clips(folder / table)
        except FileNotFoundError:
            yield f"{folder / table} is missing. AllTalk makes it on its page, Step 1."
            continue
        except (OSError, ValueError) as error:
            yield f"{folder / table} cannot be read: {error}. AllTalk makes it on its page, Step 1."
            continue
        if not clips:
            yield f"{folder / table} names no clips. AllTalk makes it on its page, Step 1."
        elif clips == missing:
            yield f"{folder / table}: none of the {len(clips)} clips that it names is in {folder}."


def find_clips(table: Path) -> tuple[list[str], list[str]]:
    """Return the clips that a table names, and those of them that are not there.

    It is read as the training reads it, which knows quotation marks and no byte order mark.

    Raises:
        OSError, ValueError: it is not there, or not such a table.
    """
    with table.open(encoding="utf-8", newline="") as lines:
        try:
            rows = list(csv.DictReader(lines, delimiter="|"))
        except csv.Error as error:
            raise ValueError(f"{error}; maybe a quotation mark is not closed") from None
    if rows and next(iter(rows[0])).startswith(BOM):
        raise ValueError(f"it begins with a byte order mark; `{without_bom(table)}` takes it away")
    if rows and not {"audio_file", "text"} <= rows[0].keys():
        raise ValueError("its first line is not audio_file|text|speaker_name")
    for row in rows:
        swallowed = [field for field in row.values() if isinstance(field, str) and "|" in field and "\n" in field]
        if swallowed:
            raise ValueError(f"the quotation mark before {swallowed[0].splitlines()[0]!r} is not closed; take it out")
    clips = [row["audio_file"] or "" for row in rows]
    return clips, [clip for clip in clips if not (table.parent / clip).is_file()]


def without_bom(file: Path) -> str:
    """Return the command that takes away what Windows may write before a text, and AllTalk cannot read."""
    return rf"sed -i '1s/^\xEF\xBB\xBF//' {shlex.quote(str(file.absolute()))}"


def _settle_base_model(options: argparse.Namespace) -> None:
    """Take the only base model where none is named: a complete folder that is not a voice, which has wavs/.

    Raises:
        Refused: there is none or several; the named one is not complete; the voice would replace one.
    """
    models = Path("models/xtts")
    missing = {folder.name: _missing_in(folder) for folder in sorted(models.glob("*")) if folder.is_dir()}
    bases = [name for name in missing if not missing[name] and not (models / name / "wavs").exists()]
    if options.base_model is None and len(bases) == 1:
        options.base_model = bases[0]
    elif options.base_model is None and bases:
        raise Refused(f"{models} has several base models; name one with --base-model: {', '.join(bases)}.")
    elif options.base_model is None or missing.get(options.base_model, BASE_FILES):
        if options.base_model:
            missing = {options.base_model: missing.get(options.base_model, list(BASE_FILES))}
        lacking = "; ".join(f"{name} lacks {', '.join(files)}" for name, files in missing.items() if files)
        raise Refused(
            f"{models}: no complete base model{f': {lacking}' if lacking else ''}. Download it in AllTalk: TTS Engine "
            "Settings, XTTS, Model/Voices Download."
        )
    if options.voice in (options.base_model, *bases):
        raise Refused(f"--voice {options.voice} is a base model; give the voice a name of its own.")


def _missing_in(folder: Path) -> list[str]:
    return [name for name in BASE_FILES if not (folder / name).is_file()]


def _settle_language(options: argparse.Namespace) -> None:
    """Take what the project says, as AllTalk does.

    Raises:
        Refused: the command says something else, or AllTalk could not read it.
    """
    file = Path("finetune", options.project, "lang.txt")
    try:
        said = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be read: {error}. It says the language, such as en, in plain text.") from None
    if said.startswith(BOM):
        raise Refused(f"{file} begins with a byte order mark; `{without_bom(file)}` takes it away.")
    if said and options.language not in (None, said):
        raise Refused(
            f"--language {options.language}: {file} says {said}, and AllTalk goes by that. Correct one of them."
        )
    options.language = said or options.language or "en"


def load_alltalk() -> types.ModuleType:
    """Import AllTalk's fine-tuning, as if its environment were activated and its page started without arguments."""
    bin_folder = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join([str(bin_folder), os.environ.get("PATH", os.defpath)])
    if Path(sys.prefix, "conda-meta").is_dir():
        os.environ["CONDA_PREFIX"] = sys.prefix
    if importlib.util.find_spec("whisper") is None:
        sys.modules["whisper"] = types.ModuleType("whisper")  # only to make data sets; AllTalk would install it now
    sys.path[0] = str(Path.cwd())
    sys.argv = ["finetune.py"]  # the Trainer reads it, too
    return importlib.import_module("finetune")


def train(alltalk: types.ModuleType, options: argparse.Namespace) -> Path:
    """Train as AllTalk's page does, Step 2; return the run folder.

    Raises:
        Refused: AllTalk gave up, or went on with another run folder.
    """
    project = Path.cwd() / "finetune" / options.project
    alltalk.out_path = project
    alltalk.DebugLevels.DATA_PROCESS = True  # else it does not say what is wrong with a data set
    made = alltalk.train_gpt(
        language=options.language,
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        grad_acumm=options.grad_accumulation,
        train_csv=str(project / TABLES[0]),
        eval_csv=str(project / TABLES[1]),
        learning_rate=options.learning_rate,
        model_to_train=options.base_model,
        continue_run=options.resume is not None,
        disable_shared_memory=False,
        learning_rate_scheduler=options.scheduler,
        optimizer=options.optimizer,
        num_workers=options.workers,
        warm_up=options.warm_up,
        max_audio_length=int(options.max_audio_length * SAMPLES_A_SECOND),
        progress=lambda *_, **__: None,
    )
    if not made:
        raise Refused("AllTalk did not train; it said why above.")
    folder = Path(made[3])
    if options.resume and not folder.samefile(options.resume):
        raise Refused(f"AllTalk went on with {folder} and not with {options.resume}.")
    return folder


def prepare_resuming(alltalk: types.ModuleType, folder: Path) -> bool:
    """Prepare a run folder that was cut short for AllTalk to go on with; return whether any epochs remain.

    AllTalk goes on in the newest folder that has a `best_model_*.pth`, with the checkpoint of the highest step, for the
    epochs that the folder's config.json says, counted from 0 again.

    Raises:
        Refused: there is no checkpoint, or one that cannot be loaded.
    """
    newest, best = find_newest(folder), find_newest(folder, ("best_model",))
    if newest is None:
        raise Refused(f"{folder} has no checkpoint to go on from.")
    left = epochs_left(newest)
    if left < 1:
        return False
    print(f"Going on from {newest.name}: {left} epochs remain.", flush=True)
    config = json.loads((folder / "config.json").read_bytes())
    replace_file(folder / "config.json", json.dumps({**config, "epochs": left}, indent=4).encode())
    if best is None:
        placeholder = folder / "best_model_0.pth"  # what it is there for is its name
        placeholder.unlink(missing_ok=True)
        placeholder.hardlink_to(newest)
    latest_s = max(other.stat().st_mtime for other in folder.parent.iterdir() if other.is_dir())
    os.utime(folder, (latest_s + 1, latest_s + 1))
    compare_with(alltalk, read_checkpoint(best)["model_loss"] if best else None)
    return True


def find_newest(folder: Path, kinds: tuple[str, ...] = ("checkpoint", "best_model")) -> Path | None:
    """Return the checkpoint of the highest step, of two the best model; None if there is none."""
    found = {}
    for path in folder.glob("*.pth"):
        name = CHECKPOINT.fullmatch(path.name)
        if name and name[1] in kinds:
            found[int(name[2]), kinds.index(name[1])] = path
    return found[max(found)] if found else None


def epochs_left(checkpoint: Path) -> int:
    """Return how many epochs a training had still to do when it saved a checkpoint.

    A best model is saved when its epoch is over, any other checkpoint within an epoch, which is trained again.

    Raises:
        Refused: it cannot be loaded.
    """
    saved = read_checkpoint(checkpoint)
    return saved["config"]["epochs"] - saved["epoch"] - checkpoint.name.startswith("best_model")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, the weights of which are read only when they are used.

    Raises:
        Refused: it cannot be loaded.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:
        raise Refused(f"{path} cannot be loaded: {error}") from None


def compare_with(alltalk: types.ModuleType, best_loss: Any) -> None:
    """Have what is trained now replace the best model only where it is better; None: there is none so far.

    AllTalk by itself compares with the checkpoint that it goes on from, which may be worse than the best.
    """

    class Trainer(alltalk.Trainer):  # type: ignore[name-defined]
        def _restore_best_loss(self) -> None:
            self.best_loss = best_loss or self.best_loss

    alltalk.Trainer = Trainer


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, whenever this process is killed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def is_trained(folder: Path, base: Path) -> bool:
    """Whether a run folder's training is over: then its config.json is the base model's."""
    config = folder / "config.json"
    return config.is_file() and filecmp.cmp(config, base / "config.json", shallow=False)


def export(alltalk: types.ModuleType, options: argparse.Namespace, folder: Path) -> Path:
    """Export the best model as AllTalk's page does, Step 4; return the voice's folder.

    Raises:
        Refused: AllTalk gave up, or the voice is not complete.
    """
    base, voice = Path("models/xtts", options.base_model), Path("models/xtts", options.voice)
    best = find_newest(folder, ("best_model",))  # not best_model.pth, its copy, which may have been cut short
    if best is None:
        raise Refused(f"{folder} has no best model: in no epoch was the evaluation's avg_loss a number.")
    for name in ("vocab.json", "config.json"):
        replace_file(folder / name, (base / name).read_bytes())
    support = folder.parent.parent / "chkptandnorm"
    support.mkdir(exist_ok=True)
    for name in SUPPORT_FILES:  # after a power cut only the run folder is back
        if not ((support / name).is_file() and filecmp.cmp(base / name, support / name)):
            shutil.copy2(base / name, support / name)
    before = _stamp(voice / "model.pth")
    said = alltalk.compact_custom_model(str(best), options.voice, "Overwrite existing files")
    if _stamp(voice / "model.pth") == before:
        raise Refused(f"AllTalk did not export the voice: {said}")
    mine = {path.name for path in (folder.parent.parent / "wavs").glob("*")}  # beside those of an older voice
    clips = [path for path in voice.glob("wavs/*/*") if path.name in mine]
    if lacking := [*_missing_in(voice), *([] if clips else ["wavs/"])]:
        raise Refused(f"The voice that AllTalk exported, {voice}, lacks {', '.join(lacking)}.")
    for path in (*clips, *(voice / name for name in BASE_FILES)):
        os.utime(path)  # copies keep the times of what they were made of, and would not look new
    return voice


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def main() -> None:
    """Do what the command line says.

    Raises:
        Refused: it cannot be done.
    """
    options = read_arguments(sys.argv[1:])
    check(options)
    base, project = Path("models/xtts", options.base_model), Path("finetune", options.project)
    print(f"AllTalk's project {options.project}: language {options.language}; base model {base}.")
    for table in TABLES:
        clips, missing = find_clips(project / table)
        example = f"; the others are left out: there is no {missing[0]}, say" if missing else ""
        print(f"  {table}: {len(clips) - len(missing)} of {len(clips)} clips{example}.", flush=True)
    if options.check:
        return
    alltalk = load_alltalk()
    folder = options.resume
    if folder is None or (not is_trained(folder, base) and prepare_resuming(alltalk, folder)):
        folder = train(alltalk, options)
    voice = export(alltalk, options, folder)
    print(f"The voice is complete: {voice}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Refused as reason:
        sys.exit(str(reason))
    except KeyboardInterrupt:
        sys.exit(130)
