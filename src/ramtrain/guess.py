"""How a project is trained, guessed from its files without running any of it; each guess with what it is from."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from humanfriendly.text import concatenate

from ramtrain.config import Trainer, find_interpreter
from ramtrain.products import ALLTALK, COQUI, GENERIC, HUGGINGFACE, LIGHTNING, OUTPUT, Clue, Found, find_products
from ramtrain.project import Project
from ramtrain.runs import id_from
from ramtrain.source import Option, Source

_OTHER_LIBRARIES = ("xgboost", "lightgbm", "catboost", "sklearn", "torch", "tensorflow", "keras", "jax", "flax")
_TRAINS_IN_TRANSFORMERS = re.compile(r"(transformers|trl|setfit|sentence_transformers)\..*(Trainer|TrainingArguments)")
_DATA = re.compile(r"(data|dataset|train|training|input|corpus)s?(_?(dir|path|file|folder|root|set|data|csv))?")
_TRAINING_COMMANDS = ("train", "fit", "finetune", "fine-tune", "pretrain")
_ON_PATH = "python"
# Of a base model of AllTalk, as its driver wants it.
BASE_FILES = ("model.pth", "config.json", "vocab.json", "speakers_xtts.pth", "mel_stats.pth", "dvae.pth")
# What reads the command line, and refuses what it does not know: argparse, click, typer.
_STRICT = ("parse_args", "command", "Typer")


@dataclass(frozen=True)
class Guess:
    """What a config needs to say of a project, each with what it is from; `warnings` are for its user to look at.
    `install_to` is None but for trainers that keep their models, `run` where the run may be named after the project."""

    project: Path
    trainer: Clue
    adapter: Trainer
    command: str
    command_from: str
    python_from: str
    products: Found
    install_to: str | None
    run: Clue | None
    looked_at: str
    warnings: Sequence[str]


def guess(root: Path, load_trainer: Callable[[str], Trainer]) -> Guess:
    """Guess how a project is trained.

    Args:
        load_trainer: returns an adapter by its name.

    Raises:
        RamTrainError: the project is missing, no folder, may not be read, or is empty.
    """
    project = Project(root)
    main = project.source("finetune.py") if "finetune.py" in project.listing.files else None
    if main and {"train_gpt", "compact_custom_model"} <= main.defines.keys():
        return _guess_alltalk(project, main, load_trainer)
    entry = project.find_entry()
    reached = project.reached_from(entry) if entry else []
    trainer = _find_trainer(project, reached)
    adapter = load_trainer(trainer.value)
    arguments, command_from, warnings = _find_command(project, entry, reached)
    python, python_from = _find_python(project, adapter) if entry else ("", "")
    if python == _ON_PATH and (missing := _missing(project, reached)):
        warnings.append(
            f"this Python has no {_some(missing)}; put the one that you train with in its place, by its path"
        )
    products = find_products(project, reached, adapter, trainer.value)
    warnings += products.warnings
    if entry and adapter.resume:
        warnings += _resume_warnings(entry, reached, adapter, trainer.value)
    return Guess(
        project=root,
        trainer=trainer,
        adapter=adapter,
        command=f"{python} {_typed(arguments)}".lstrip(),
        command_from=command_from,
        python_from=python_from,
        products=products,
        install_to=None,
        run=None,
        looked_at=_looked_at(project),
        warnings=warnings,
    )


def _typed(arguments: Sequence[str]) -> str:
    """Return arguments as they stand in a command, in which braces are no placeholders."""
    return shlex.join(arguments).replace("{", "{{").replace("}", "}}")


def _looked_at(project: Project) -> str:
    listing = project.listing
    text = f"{len(listing.files):,} files"
    if not listing.is_whole:
        text += ", and no further"
    if project.unreadable:
        text += f"; not read, since they are too large, not to be opened or no Python: {_some(project.unreadable)}"
    return text


def _some(names: Sequence[str]) -> str:
    return concatenate(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _find_trainer(project: Project, reached: Sequence[Source]) -> Clue:
    """Return the adapter's name by what the entry, and what it imports of the project, import from libraries."""
    kinds: tuple[tuple[str, Callable[[Source, str], bool]], ...] = (
        (HUGGINGFACE, _is_of_transformers),
        (COQUI, lambda source, name: _is_of_coqui(project, source, name)),
        (LIGHTNING, lambda _, name: name.split(".")[0] in ("lightning", "pytorch_lightning")),
    )
    imports = [(source, name, line) for source in reached for name, line in source.imports.items()]
    for kind, is_of in kinds:
        # The name of a class tells more than that of its module.
        for source, name, line in sorted(imports, key=lambda item: -item[1].count(".")):
            if is_of(source, name):
                return Clue(kind, f"{source.path}:{line} imports {name}")
    for library in _OTHER_LIBRARIES:
        for source, name, line in imports:
            if name.split(".")[0] == library:
                return Clue(GENERIC, f"{source.path}:{line} imports {name}, which has no adapter of its own")
    return Clue(GENERIC, "no import of a trainer that there is an adapter for")


def _is_of_transformers(source: Source, name: str) -> bool:
    if _TRAINS_IN_TRANSFORMERS.fullmatch(name):
        return True
    return name in ("transformers", "trl") and any(call.endswith("Trainer") for call in source.calls)


def _is_of_coqui(project: Project, source: Source, name: str) -> bool:
    top = name.split(".")[0]
    if top == "trainer":
        is_whole = name != "trainer" or "Trainer" in source.calls
        return is_whole and not project.is_own("trainer", source.path)
    return top == "TTS" and "Trainer" in source.calls


def _find_command(
    project: Project, entry: Source | None, reached: Sequence[Source]
) -> tuple[list[str], str, list[str]]:
    """Return the command without its Python, from what it is guessed, and what its user should look at."""
    if entry is None:
        if script := project.find_script():
            shell = ["bash", script] if script.endswith(".sh") else [f"./{script}"]
            return shell, f"{script}, by its name", ["what the script starts was not looked at"]
        nothing = "no file looks like the start of a training: put your command there"
        return ["python", "train.py"], "nothing: no such file was found", [nothing]
    why = f"{entry.path}, by its name" + (" and its `__main__`" if entry.is_program else "")
    start = ["-m", entry.path.removesuffix(".py").replace("/", ".")] if entry.is_in_package else [entry.path]
    calls = _calls(reached)
    if "LightningCLI" in calls:
        start.append("fit")
    for source in reached:
        start += [name for name in _TRAINING_COMMANDS if name in source.commands][:1]
    given, warnings = [], []
    for option in _required(entry, reached):
        value, warning = _value_of(option, project)
        given += [value] if not option.name.startswith("-") else [option.name, value]
        warnings += [f"{entry.path} needs {option.name}: {warning}"] if warning else []
    if "HfArgumentParser" in calls and "--output_dir" not in given:
        given += ["--output_dir", OUTPUT]
    return [*start, *given], why, warnings


def _required(entry: Source, reached: Sequence[Source]) -> list[Option]:
    """Return the options that must be given; those of modules that are programs of their own are not the entry's."""
    mine = [source for source in reached if source is entry or not source.is_program]
    options = {name: option for source in mine for name, option in source.options.items()}
    wanted = [option for option in options.values() if option.is_required]
    return sorted(wanted, key=lambda option: option.name.startswith("-"))


def _value_of(option: Option, project: Project) -> tuple[str, str]:
    """Return a value for an option that must be given, and what is to be said of it."""
    name = option.name.lstrip("-").replace("-", "_").lower()
    if name.startswith(("out", "save", "result", "checkpoint", "ckpt", "work_dir", "log")):
        return OUTPUT, ""
    if _DATA.fullmatch(name):
        for place in (name, "data", "dataset", "datasets"):
            if place in project.listing.folders:
                return place, ""
    return name.upper(), f"put it in the place of {name.upper()}"


def _find_python(project: Project, adapter: Trainer) -> tuple[str, str]:
    """Return the Python of the project, as a command has it, and where it is."""
    if place := _place_of_python(project, adapter):
        return "{python}", f"{place}, in the project"
    found = project.listing.environments
    for environment in found:
        python = f"{environment}/bin/python"
        if os.access(project.root / python, os.X_OK):
            return _typed([python]), f"{environment}, an environment in the project"
    broken = f"; that of {found[0]} cannot be started" if found else ""
    program = shutil.which("python")
    whose = "RamTrain's own" if program and Path(program) == Path(sys.executable) else "on the PATH"
    where = f"{program}, {whose}" if program else "none on the PATH"
    return _ON_PATH, f"{where}, since the project has no environment{broken}"


def _place_of_python(project: Project, adapter: Trainer) -> str | None:
    """Return which Python of the project `{python}` stands for."""
    python = find_interpreter(project.root, None, adapter.python)
    return None if python == _ON_PATH else os.path.relpath(python, project.root)


def _missing(project: Project, reached: Sequence[Source]) -> list[str]:
    """Return what the sources import that RamTrain's own Python, which `python` is, does not have."""
    if shutil.which(_ON_PATH) != sys.executable:
        return []
    wanted: dict[str, None] = {}
    for source in reached:
        for name in source.imports:
            top = name.split(".")[0]
            if top and top not in sys.stdlib_module_names and not project.is_own(top, source.path):
                wanted[top] = None
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def _resume_warnings(entry: Source, reached: Sequence[Source], adapter: Trainer, kind: str) -> list[str]:
    """Return what is to be said where the script does not seem to know the arguments that have it resume."""
    assert adapter.resume is not None
    calls = _calls(reached)
    options = {name.replace("-", "_") for source in reached for name in source.options}
    names = [part.split("=")[0] for part in adapter.resume.arguments if part.startswith("--")]
    unknown = [name for name in names if f"__{name[2:].replace('-', '_')}" not in options]
    if not unknown or "LightningCLI" in calls or ("HfArgumentParser" in calls and kind == HUGGINGFACE):
        return []
    refuses = bool(options) and any(call in calls for call in _STRICT)
    if kind == COQUI and not refuses:
        return []  # the Coqui Trainer reads the command line itself
    told = f"{entry.path} has no option {unknown[0]}" if options else f"{entry.path} reads no arguments"
    if "get_last_checkpoint" in calls:
        return [f"{told} but looks for a checkpoint itself: take a copy of the adapter with `arguments: []`"]
    return [f"{told}, by which an interrupted training goes on: add it"]


def _guess_alltalk(project: Project, main: Source, load_trainer: Callable[[str], Trainer]) -> Guess:
    """Guess what is trained in an AllTalk folder: the newest of its data sets."""
    root = project.root
    tables = sorted(filter(os.path.isfile, root.glob("finetune/*/metadata_train.csv")))
    sets = [table.parent.name for table in sorted(tables, key=os.path.getmtime, reverse=True)]
    bases = sorted(folder.name for folder in root.glob("models/xtts/*") if _is_base(folder))
    warnings = []
    if not sets:
        warnings.append("finetune/ has no data set yet: make one on AllTalk's own page, and put its name for NAME")
    if not bases:
        warnings.append("models/xtts has no base model yet: let AllTalk download one")
    if len(bases) > 1:
        warnings.append(f"it starts from the base model {bases[0]}; there are {_some(bases)}")
    name = sets[0] if sets else "NAME"
    # A run is named after its data set, so that the next voice is one more run; not every name can be a run's.
    is_run = id_from(name) == name
    options = ["--epochs", "10"]
    options += ["--base-model", bases[0]] if len(bases) > 1 else []
    adapter = load_trainer(ALLTALK)
    python = _place_of_python(project, adapter)
    if not python:
        warnings.append("AllTalk's own Python was not found: name it in project.python")
    told = f"data sets in finetune/: {_some(sets) or 'none'}; base models: {_some(bases) or 'none'}"
    return Guess(
        project=root,
        trainer=Clue(ALLTALK, f"finetune.py:{main.defines['train_gpt']} defines train_gpt"),
        adapter=adapter,
        command=f"{{python}} {{driver}} --project {'{run}' if is_run else _typed([name])} {_typed(options)}",
        command_from=told,
        python_from=f"{python or 'not found'}; project.python names another",
        products=Found(),
        install_to="models/xtts/{run}",
        run=Clue(id_from(name), "another voice is one more, named as its data set" if is_run else "its name here"),
        looked_at=_looked_at(project),
        warnings=warnings,
    )


def _is_base(folder: Path) -> bool:
    """Whether a folder in models/xtts is a complete model that is no voice."""
    return all(os.path.isfile(folder / name) for name in BASE_FILES) and not os.path.exists(folder / "wavs")


def _calls(sources: Iterable[Source]) -> set[str]:
    return set().union(*(source.calls for source in sources))
