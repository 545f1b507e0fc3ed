"""Typed, resolved settings of one run, from the config, the runs table and the trainer's adapter."""

from __future__ import annotations

import csv
import math
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import humanfriendly

from ramtrain import memory
from ramtrain.errors import RamTrainError
from ramtrain.redact import redact
from ramtrain.schema import complete, load_yaml

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:(%)|([KMGT]?)(?:i?B)?)", re.IGNORECASE)
_RESERVED = ("logs", "benchmark_io", "summary.tsv", "README.md")
_MIB_BYTES = 1 << 20


@dataclass(frozen=True)
class Resume:
    """How a trainer goes on from a checkpoint: arguments with {folder} and {checkpoint}; the files it needs beside the
    checkpoint, and the best model so far, as globs in its folder."""

    arguments: tuple[str, ...]
    companions: tuple[str, ...]
    best: tuple[str, ...]


@dataclass(frozen=True)
class MemoryNeed:
    """What a trainer keeps at one time, at most: `checkpoints` of them, each `checkpoint` times the base model, which
    the globs `base` find in the project; and, once, `beside` times the base model."""

    base: tuple[str, ...]
    checkpoint: float
    checkpoints: int
    beside: float


@dataclass(frozen=True)
class Trainer:
    """What an adapter in config/trainers says of a kind of trainer; globs relative to the project."""

    name: str
    model: tuple[str, ...]
    checkpoints: tuple[str, ...]
    artifacts: tuple[str, ...]
    prunable: tuple[str, ...]
    environment: Mapping[str, str]
    stop_signal: signal.Signals
    grace_s: float
    progress: Mapping[str, re.Pattern[str]]
    resume: Resume | None
    memory: MemoryNeed | None


@dataclass(frozen=True)
class Products:
    """What a training makes, as globs: relative to the project, `companions` and `best` to a checkpoint's folder."""

    model: tuple[str, ...]
    artifacts: tuple[str, ...]
    checkpoints: tuple[str, ...]
    companions: tuple[str, ...]
    best: tuple[str, ...]
    logs: tuple[str, ...]
    prunable: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Iterable[str]]) -> Products:
        """Return the products that `asdict` made `content` of."""
        return cls(**{key: tuple(globs) for key, globs in content.items()})


@dataclass(frozen=True)
class Protect:
    """How the training is protected: at most `max_loss_s` of it may be lost (None: no durable checkpoints), for at most
    `write_budget_bytes` a day (None: as many as that takes); how many are kept, and how many after success."""

    max_loss_s: float | None
    write_budget_bytes: int | None
    keep: int
    keep_after_success: int


@dataclass(frozen=True)
class Run:
    """The resolved settings of one run. Paths are absolute, globs relative to the project.

    Its RAM disk is to have `size_bytes`, and at least `least_bytes`; with `auto_size` both are 0 until `sizing` has
    found them. `size_from` says from where they are. `reserve_bytes` of memory is kept free, None for the default.
    `guard` says whether the training's memory is watched, `grow` whether its RAM disk may be enlarged meanwhile.
    """

    run: str
    parameters: Mapping[str, str]
    project: Path
    command: tuple[str, ...]
    trainer: Trainer
    products: Products
    exclude: tuple[str, ...]
    preload: tuple[str, ...]
    volatile: tuple[Path, ...]
    backend: str
    size_bytes: int
    least_bytes: int
    auto_size: bool
    size_from: str
    ramdisk_path: Path | None
    sudo: bool
    fallback: str
    reserve_bytes: int | None
    guard: bool
    grow: bool
    staging: str
    threads: int | None
    protect: Protect
    resume: str

    @property
    def ramdisk_mb(self) -> int:
        """The size as Snakemake's resource `ramdisk_mb`, rounded up; on the disk nothing of it is memory."""
        return 0 if self.backend == "disk" else -(-self.size_bytes // _MIB_BYTES)

    @property
    def training(self) -> dict[str, Any]:
        """What defines the training: after a change of it the run is trained again. Secrets are left out."""
        return redact({"project": str(self.project), "command": self.arguments(ram="{ram}"), "threads": self.threads})

    def arguments(self, ram: str) -> list[str]:
        """Return the command with every placeholder filled; `ram` is what {ram} stands for."""
        return fill_placeholders(self.command, {**self.parameters, "ram": ram})


def fill_placeholders(arguments: Iterable[str], values: Mapping[str, str], key: str = "project.command") -> list[str]:
    """Replace {name} in every argument; {{ and }} stand for the braces themselves.

    Args:
        key: where the arguments come from, for the message.

    Raises:
        RamTrainError: a name that `values` does not have.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group(0)[0]
        if name not in values:
            raise RamTrainError(
                f"{key}: {{{name}}} is not known; known are {', '.join(sorted(values))}. "
                "A column of the runs table adds one; literal braces are written {{ and }}."
            )
        return values[name]

    return [_PLACEHOLDER.sub(value, argument) for argument in arguments]


def parse_size(text: str | int, total_bytes: int, most_bytes: int | None = None) -> int:
    """Return a size in bytes: 16G and 500MB (powers of 1024), a number of bytes, or 50% and such of `total_bytes`.

    Raises:
        RamTrainError: not a size, less than 1 MiB, or more than `most_bytes`, the machine's memory (`total_bytes`).
    """
    hint = "give a size such as 16G, 500M or 50% (of this machine's memory), or auto"
    most_bytes = most_bytes or total_bytes
    size_bytes = _parse_bytes("ramdisk.size", text, hint, total_bytes)
    if size_bytes > most_bytes:
        raise RamTrainError(
            f"ramdisk.size: {text!r} is more than this machine's memory of "
            f"{humanfriendly.format_size(most_bytes, binary=True)}; {hint}."
        )
    return size_bytes


def _parse_bytes(key: str, text: str | int, hint: str, total_bytes: int | None = None) -> int:
    parts = _SIZE.fullmatch(str(text).strip())
    if not parts or (parts.group(2) and total_bytes is None):
        raise RamTrainError(f"{key}: {text!r} is not a size; {hint}.")
    number, percent, unit = parts.groups()
    size = float(number) * ((total_bytes or 0) / 100 if percent else 1024 ** " KMGT".index(unit.upper() or " "))
    if math.isinf(size):
        raise RamTrainError(f"{key}: {text!r} is more than any machine has; {hint}.")
    if size < _MIB_BYTES:
        raise RamTrainError(f"{key}: {text!r} is less than 1 MiB (a number alone is bytes); {hint}.")
    return int(size)


def _read_protect(protect: Mapping[str, Any]) -> Protect:
    budget = protect["write_budget"]
    return Protect(
        max_loss_s=_parse_max_loss(protect["max_loss"]),
        write_budget_bytes=(
            None
            if budget is None
            else _parse_bytes("protect.write_budget", budget, "give the bytes a day, such as 100G")
        ),
        keep=protect["keep"],
        keep_after_success=protect["keep_after_success"],
    )


def read_reserve(reserve: str | int | None) -> int | None:
    """Return `guard.reserve` in bytes; None for the default.

    Raises:
        RamTrainError: not a size.
    """
    hint = "give a size such as 4G, or a share such as 20% (of this machine's memory)"
    return None if reserve is None else _parse_bytes("guard.reserve", reserve, hint, memory.total_bytes())


def _read_resume(resume: str, run: str) -> str:
    """Return same, always, never, or the path of a durable checkpoint's folder, if it is one of this run."""
    if resume in ("same", "always", "never"):
        return resume
    folder = _absolute(resume)
    if not (folder / "manifest.json").is_file():
        raise RamTrainError(
            f"resume: {resume!r} is not known; same, always and never are, and the folder of a durable checkpoint, "
            f"such as results/{run}/checkpoints/..."
        )
    return str(folder) if folder.parent == _absolute(f"results/{run}/checkpoints") else "same"


def _parse_max_loss(text: str | float) -> float | None:
    """Return seconds; None for `never`."""
    hint = "give a time such as 10 min, 30 s or 1 h, or never for no durable checkpoints"
    if text == "never":
        return None
    try:
        max_loss_s = float(humanfriendly.parse_timespan(str(text)))
    except (humanfriendly.InvalidTimespan, OverflowError):
        raise RamTrainError(f"protect.max_loss: {text!r} is not a time; {hint}.") from None
    if not 1 <= max_loss_s < math.inf:
        raise RamTrainError(f"protect.max_loss: {text!r} is less than a second, or no end of time; {hint}.")
    return max_loss_s


def read_runs(path: Path, schema: dict[str, Any]) -> list[dict[str, str]]:
    """Read the runs table: tab-separated, a header, one row a run; blank and # lines do not count.

    Raises:
        RamTrainError: no such file, no rows, a bad or duplicate run id; row and column are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise RamTrainError(f"runs: {path}: {error.strerror}; give the table's path.") from error
    except UnicodeDecodeError as error:
        raise RamTrainError(f"runs: {path}: is not text in UTF-8 ({error.reason}); save it as such.") from None
    rows: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip()[0] == "#":
            continue
        source = f"{path}: line {number}"
        try:
            (fields,) = csv.reader([line], delimiter="\t", strict=True)
        except csv.Error:
            raise RamTrainError(
                f"{source}: a quotation mark is not closed, or text follows it; a cell that begins with one ends with "
                "one, and those in between are doubled."
            ) from None
        if not header:
            header = fields
            _check_header(header, source)
            continue
        if len(fields) != len(header):
            raise RamTrainError(
                f"{source}: {len(fields)} columns where the header has {len(header)}; columns are separated by one tab."
            )
        row = dict(zip(header, fields, strict=True))
        complete(row, schema, source)
        if row["run"] in _RESERVED:
            raise RamTrainError(f"{source}: run: {row['run']!r} is something else's name in results; choose another.")
        if row["run"] in rows:
            raise RamTrainError(f"{source}: run: {row['run']!r} appears twice; run ids must differ.")
        rows[row["run"]] = row
    if not rows:
        raise RamTrainError(f"{path}: no runs in it; the first line names the columns, each other line is a run.")
    return list(rows.values())


def _check_header(header: list[str], source: str) -> None:
    if "run" not in header:
        raise RamTrainError(
            f"{source}: no column `run`, the run's id, among {', '.join(map(repr, header))}; columns are separated by "
            "one tab."
        )
    for name in header:
        if header.count(name) > 1:
            raise RamTrainError(f"{source}: column {name!r} appears twice.")
        if name == "ram" or not _COLUMN.fullmatch(name):
            raise RamTrainError(
                f"{source}: a column cannot be named {name!r}; a name is letters, digits and _, and stands in "
                "project.command as {name}, where {ram} is RamTrain's own."
            )


def load_trainer(name: str, home: Path) -> Trainer:
    """Read the adapter `name` from `home`/config/trainers.

    Raises:
        RamTrainError: no such adapter, or one that its schema or a regular expression refuses.
    """
    folder = home / "config" / "trainers"
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    if name not in known:
        raise RamTrainError(f"project.trainer: {name!r} is not known; known are: {', '.join(known)}.")
    path = folder / f"{name}.yaml"
    adapter = complete(load_yaml(path), _schema(home, "trainer"), str(path))
    try:
        progress = {key: re.compile(pattern) for key, pattern in adapter["progress"].items()}
    except re.error as error:
        raise RamTrainError(f"{path}: progress: {error}.") from error
    for key, pattern in progress.items():
        if pattern.groups != 1:
            raise RamTrainError(f"{path}: progress.{key}: {pattern.pattern!r} needs one group in parentheses.")
    resume = adapter["resume"]
    if resume:
        fill_placeholders(resume["arguments"], {"folder": "", "checkpoint": ""}, f"{path}: resume.arguments")
    return Trainer(
        name=name,
        model=tuple(adapter["model"]),
        checkpoints=tuple(adapter["checkpoints"]),
        artifacts=tuple(adapter["artifacts"]),
        prunable=tuple(adapter["prunable"]),
        environment=adapter["environment"],
        stop_signal=signal.Signals[adapter["stop"]["signal"]],
        grace_s=adapter["stop"]["grace_s"],
        progress=progress,
        resume=resume and Resume(tuple(resume["arguments"]), tuple(resume["companions"]), tuple(resume["best"])),
        memory=_read_need(adapter["memory"]),
    )


def _read_need(need: Mapping[str, Any] | None) -> MemoryNeed | None:
    if need is None:
        return None
    return MemoryNeed(tuple(need["base"]), need["checkpoint"], need["checkpoints"], need["beside"])


def complete_config(config: Mapping[str, Any], home: Path, source: str) -> dict[str, Any]:
    """Check the config against its schema and return it with the schema's defaults filled in.

    Args:
        config: the config as it was read.
        home: the folder of the workflow, which holds `workflow/schemas` and `config/trainers`.
        source: the config's file name, for the messages.

    Raises:
        RamTrainError: one line for each thing that is wrong.
    """
    return complete(config, _schema(home, "config"), source)


def project_of(config: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]]:
    """Return a complete config's project, as an absolute path, and its command, with its placeholders.

    Raises:
        RamTrainError: the command is empty, or a quotation mark in it is not closed.
    """
    return _absolute(config["project"]["path"]), _split(config["project"]["command"])


def load_runs(config: Mapping[str, Any], home: Path) -> dict[str, Run]:
    """Return every run of a complete config by its id, in the order of the runs table.

    Raises:
        RamTrainError: whatever is wrong with the runs table, the adapter, or the values in the config.
    """
    project, ramdisk, train = config["project"], config["ramdisk"], config["train"]
    folder, command = project_of(config)
    rows = (
        read_runs(_absolute(config["runs"]), _schema(home, "runs"))
        if config["runs"]
        else [{"run": _id_from(folder.name)}]
    )
    trainer = load_trainer(project["trainer"], home)
    model = tuple(_globs("model", project["model"])) or trainer.model
    if not model:
        raise RamTrainError(
            f"project.model: missing, and the adapter {trainer.name!r} knows no default; "
            "give the globs of the files that are the final model."
        )
    auto_size = str(ramdisk["size"]).strip() == "auto"
    machine, *_ = memory.bounds()
    size_bytes = 0 if auto_size else parse_size(ramdisk["size"], memory.total_bytes(), machine.total_bytes)
    if ramdisk["backend"] == "path" and not ramdisk["path"]:
        raise RamTrainError("ramdisk.path: missing; the backend `path` uses the RAM disk that it names.")
    if config["staging"] == "none" and not any("{ram}" in argument for argument in command):
        raise RamTrainError("project.command: staging `none` needs {ram} in it, the folder in RAM to write into.")
    products = Products(
        model=model,
        artifacts=(*trainer.artifacts, *_globs("artifacts", project["artifacts"])),
        checkpoints=(*trainer.checkpoints, *_globs("checkpoints", project["checkpoints"])),
        companions=trainer.resume.companions if trainer.resume else (),
        best=trainer.resume.best if trainer.resume else (),
        logs=trainer.artifacts,
        prunable=(*trainer.prunable, *_globs("prunable", project["prunable"])),
    )
    protect = _read_protect(config["protect"])
    runs = {}
    for row in rows:
        parameters = {"seed": str(train["seed"]), **row}
        run = Run(
            run=row["run"],
            parameters=parameters,
            project=folder,
            command=command,
            trainer=trainer,
            products=products,
            exclude=tuple(_globs("exclude", project["exclude"])),
            preload=tuple(_globs("preload", project["preload"])),
            volatile=tuple(_absolute(path) for path in project["volatile"]),
            backend=ramdisk["backend"],
            size_bytes=size_bytes,
            least_bytes=size_bytes,
            auto_size=auto_size,
            size_from="ramdisk.size",
            ramdisk_path=_absolute(ramdisk["path"]) if ramdisk["path"] else None,
            sudo=ramdisk["sudo"],
            fallback=ramdisk["fallback"],
            reserve_bytes=read_reserve(config["guard"]["reserve"]),
            guard=config["guard"]["enabled"],
            grow=config["guard"]["grow"],
            staging=config["staging"],
            threads=train["threads"],
            protect=protect,
            resume=_read_resume(config["resume"], row["run"]),
        )
        if any("\0" in argument for argument in run.arguments(ram="")):
            raise RamTrainError(f"project.command: run {run.run}: the character NUL is not possible in a command.")
        runs[run.run] = run
    return runs


def benchmark_run(config: Mapping[str, Any], runs: Mapping[str, Run]) -> Run | None:
    """Return the run that `benchmark_io` trains without a RAM disk and with one; None if the config names none.

    Raises:
        RamTrainError: there is no such run.
    """
    name = config["benchmark"]["run"]
    if name is not None and name not in runs:
        raise RamTrainError(f"benchmark.run: {name!r} is no run; the runs are {', '.join(runs)}.")
    return None if name is None else runs[name]


def check_project(run: Run) -> None:
    """Check that the project can be trained: its folder, and the command's program.

    Raises:
        RamTrainError: the folder is missing, a file, unreadable or empty; the program is not there.
    """
    folder = run.project
    where = f"project.path: {folder}"
    try:
        if not folder.exists():
            raise RamTrainError(f"{where}: no such folder. It is relative to {Path.cwd()} unless it starts with /.")
        if not folder.is_dir():
            raise RamTrainError(f"{where}: is a file; give the folder that the training starts in.")
        if next(folder.iterdir(), None) is None:
            raise RamTrainError(f"{where}: the folder is empty; nothing to train.")
    except PermissionError:
        raise RamTrainError(f"{where}: may not be read; check its owner and mode.") from None
    program = run.arguments(ram=str(folder))[0]
    if "/" not in program:
        if not shutil.which(program):
            raise RamTrainError(
                f"project.command: program {program!r} not found on the PATH; is its environment active?"
            )
    elif not (folder / program).is_file():
        raise RamTrainError(
            f"project.command: program {program!r}: no such file; a path with / in it is relative to {folder}."
        )
    elif not os.access(folder / program, os.X_OK):
        raise RamTrainError(
            f"project.command: program {program!r} is not executable; chmod +x it, or put its interpreter before it."
        )


def _id_from(name: str) -> str:
    """Return a run id for a project's folder: other characters become _, and names of our own are kept free."""
    run = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", name).lstrip("._=,+-") or "run"
    return f"run-{run}" if run in _RESERVED else run


def _schema(home: Path, name: str) -> dict[str, Any]:
    return load_yaml(home / "workflow" / "schemas" / f"{name}.schema.yaml")


def _absolute(path: str) -> Path:
    # A name after ~ that is no user's stays as it is, as in a shell, and is then not found.
    return Path(os.path.abspath(os.path.expanduser(path)))


def _globs(key: str, patterns: Iterable[str]) -> Iterable[str]:
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise RamTrainError(f"project.{key}: {pattern!r}: globs are relative to the project and stay in it.")
        yield pattern


def _split(command: str | list[str | int | float]) -> tuple[str, ...]:
    try:
        arguments = shlex.split(command) if isinstance(command, str) else [str(part) for part in command]
    except ValueError as error:
        raise RamTrainError(f"project.command: {error}: {command!r}.") from None
    if not arguments or not arguments[0]:
        raise RamTrainError("project.command: is empty; give the program that trains, and its arguments.")
    return tuple(arguments)
