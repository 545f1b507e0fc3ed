"""The first config of a user's project, made of what was guessed, with a comment for what may have to be changed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ramtrain.columns import aligned
from ramtrain.config import complete_config, load_trainer
from ramtrain.durable import write_bytes
from ramtrain.errors import RamTrainError
from ramtrain.guess import Guess, guess
from ramtrain.products import Clue
from ramtrain.redact import MARK, redact_text
from ramtrain.runs import id_from

_MOST_WARNINGS = 4
_INSTALLED = "the model is put there, too, where its project lists it"
_LONGEST_COMMENT = 150


def initialize(project: Path, output: Path | None, home: Path) -> str:
    """Write a config for a project, and return what was guessed and what to type next.

    Args:
        project: its folder.
        output: the config to write; None for one named after the project, in the working directory.
        home: the folder of the workflow.

    Raises:
        RamTrainError: the project cannot be looked at, the config is there already or cannot be written.
    """
    root = Path(os.path.abspath(project.expanduser()))
    path = output or Path(f"{id_from(root.name)}.yaml")
    if os.path.lexists(path):
        raise RamTrainError(f"{path}: is there already, and stays as it is; --output names another file.")
    guessed = guess(root, lambda name: load_trainer(name, home))
    text = config_text(guessed, _from_here(root))
    complete_config(yaml.safe_load(text), home, str(path))
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise RamTrainError(f"{path}: {error.strerror}; --output names another file.") from None
    return "\n".join(_account(guessed, path))


def _from_here(root: Path) -> str:
    """Return the project's path as a config has it: relative where it lies in the working directory."""
    here = Path.cwd()
    return str(root.relative_to(here)) if root.is_relative_to(here) and root != here else str(root)


def config_text(guessed: Guess, path: str) -> str:
    """Return the config, at most 20 lines of YAML.

    Args:
        path: the project's, as the config is to have it.
    """
    products = guessed.products
    lines = [
        _line("", f"Trains {path}; guessed from its files. Every key is explained in config/README.md."),
        "project:",
        _line(f"  path: {_value(path)}"),
        _line("  ", f"Started in that folder; its Python: {guessed.python_from}." if guessed.python_from else ""),
        _line(f"  command: {_value(guessed.command)}"),
        _line(f"  trainer: {guessed.trainer.value} ", guessed.trainer.source),
        _line(f"  install_to: {_value(guessed.install_to)} ", _INSTALLED) if guessed.install_to else "",
        _globs("model", products.model, "the files to keep"),
        _globs("checkpoints", products.checkpoints, "what it can go on from"),
        _globs("artifacts", products.artifacts, "what comes home beside the model"),
        *(_line("  ", f"LOOK: {warning}.") for warning in guessed.warnings[:_MOST_WARNINGS]),
        _line(f"runs: {_value([{'run': guessed.run.value}])} ", guessed.run.source) if guessed.run else "",
        "ramdisk:",
        _line("  size: auto ", "room for all that is written at one time; 24G, say, if you know it"),
        "protect:",
        _line("  max_loss: 10 min ", "the most training that a power cut may cost"),
    ]
    return "".join(f"{line}\n" for line in lines if line.strip())


def _globs(key: str, clues: Sequence[Clue], what: str) -> str:
    values = [redact_text(clue.value, code=True).replace(MARK, "*") for clue in clues]
    return _line(f"  {key}: {_value(values)} ", f"{what}; {clues[0].source}") if clues else ""


def _line(text: str, comment: str = "") -> str:
    """Return a line with a comment, in which nothing can end it; a long one is cut."""
    plain = "".join(character if character.isprintable() else "?" for character in redact_text(comment, code=True))
    plain = plain if len(plain) <= _LONGEST_COMMENT else f"{plain[: _LONGEST_COMMENT - 4]} ..."
    return f"{text}# {plain}" if plain else text


def _value(value: Any) -> str:
    """Return a value as YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20)
    return text.removesuffix("...\n").strip()


def _account(guessed: Guess, path: Path) -> Iterator[str]:
    """Yield what was guessed and from what, what to look at, and what to type next."""
    name = guessed.trainer.value
    rows = [("trainer", guessed.trainer), ("command", Clue(guessed.command, guessed.command_from))]
    if guessed.python_from:
        rows.append(("Python", Clue("", guessed.python_from)))
    for key in ("model", "checkpoints", "artifacts"):
        told = [Clue(pattern, f"the adapter {name}") for pattern in getattr(guessed.adapter, key)]
        clues = [*told, *getattr(guessed.products, key)] or [Clue("none", "")]
        rows += [("" if number else key, clue) for number, clue in enumerate(clues)]
    if guessed.run:
        rows.append(("run", guessed.run))
    if guessed.install_to:
        rows.append(("install_to", Clue(guessed.install_to, _INSTALLED)))
    yield f"Looked at {guessed.looked_at} in {guessed.project}, ran none of it, and guessed"
    yield from aligned([(name, clue.value, clue.source) for name, clue in rows])
    if guessed.warnings:
        yield "Look at"
        yield from (f"  - {warning}" for warning in guessed.warnings)
    typed = shlex.quote(str(path))
    yield f"Written: {path}. Look it over, then type"
    yield f"  python -m ramtrain check --configfile {typed}"
    yield f"  snakemake --cores 1 train --configfile {typed}"
