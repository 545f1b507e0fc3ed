"""Typed, resolved settings of one run, from the config, the runs table and the trainer's adapter."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import humanfriendly

from ramtrain import memory, runs
from ramtrain.errors import RamTrainError
from ramtrain.metrics import MetricSource, choose_sources, read_sources
from ramtrain.parameters import ParametersFile, base_names, check_place, read_base
from ramtrain.redact import MARK, redact
from ramtrain.runs import SEED, SEEDS, Row, as_text, typed
from ramtrain.schema import complete, load_yaml
from ramtrain.store import Address, read_address
from ramtrain.view import check_glob

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:(%)|([KMGT]?)(?:i?B)?)", re.IGNORECASE)
_MIB_BYTES = 1 << 20


@dataclass(frozen=True)
class BestNamed:
    """Where a checkpoint names the best one so far: under `key`, at the top of the JSON `file` in its folder, or, where
    that is empty, in the pickle of a checkpoint that PyTorch wrote."""

    file: str
    key: str


@dataclass(frozen=True)
class Resume:
    """How a trainer goes on from a checkpoint: arguments with {folder} and {checkpoint}; the files it needs beside the
    checkpoint, and the best model so far, as globs in its folder or as the checkpoint names it."""

    arguments: tuple[str, ...]
    companions: tuple[str, ...]
    best: tuple[str, ...]
    best_named: BestNamed | None = None


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
    """What an adapter in config/trainers says of a kind of trainer. Globs, and the places where its own `python` may
    be, are relative to the project; `driver` is a program that stands beside the adapter, `check` what is added to the
    command to have it only look whether it can train."""

    name: str
    driver: Path | None
    python: tuple[str, ...]
    check: tuple[str, ...]
    exclude: tuple[str, ...]
    inputs: tuple[str, ...]
    model: tuple[str, ...]
    checkpoints: tuple[str, ...]
    complete: tuple[str, ...]
    artifacts: tuple[str, ...]
    prunable: tuple[str, ...]
    environment: Mapping[str, str]
    parameters: ParametersFile | None
    stop_signal: signal.Signals
    stop_to: str
    grace_s: float
    progress: Mapping[str, re.Pattern[str]]
    resume: Resume | None
    memory: MemoryNeed | None
    metrics: tuple[MetricSource, ...]


@dataclass(frozen=True)
class Products:
    """What a training makes, as globs: relative to the project, `companions` and `best` to a checkpoint's folder,
    `complete` to a checkpoint that is a folder; and where it says how good that is."""

    model: tuple[str, ...]
    artifacts: tuple[str, ...]
    checkpoints: tuple[str, ...]
    companions: tuple[str, ...]
    best: tuple[str, ...]
    logs: tuple[str, ...]
    prunable: tuple[str, ...] = ()
    complete: tuple[str, ...] = ()
    best_named: BestNamed | None = None
    metrics: tuple[MetricSource, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Products:
        """Return the products that `asdict` made `content` of."""
        metrics = tuple(MetricSource(**source) for source in content.get("metrics", ()))
        named = content.get("best_named")
        globs = {key: tuple(globs) for key, globs in content.items() if key not in ("metrics", "best_named")}
        return cls(**globs, best_named=named and BestNamed(**named), metrics=metrics)


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
    `parameters` are its values for the command, the seed among them, `listed` those that it was given in its row,
    `settings` the config's keys that its row sets; `config` has them in their place. `base_names` are those that the
    base of the trainer's parameters file has, None for any.
    `python` is the interpreter that {python} stands for, `install_pattern` a folder that gets the model too,
    with its placeholders.
    The trainer sees `gpus` devices of its own, None for those that it finds; `devices` are those that it may have. On a
    cluster its job asks for `memory_bytes` beside the RAM disk, and for `time_s`; None if the config does not say.
    `store` is where what comes home is copied to as well.
    """

    run: str
    parameters: Mapping[str, str]
    listed: tuple[str, ...]
    settings: Mapping[str, Any]
    base_names: frozenset[str] | None
    config: Mapping[str, Any]
    python: str
    install_pattern: str | None
    environment: Mapping[str, str]
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
    gpus: int | None
    devices: tuple[str, ...]
    memory_bytes: int | None
    time_s: float | None
    protect: Protect
    resume: str
    store: Address | None

    @property
    def ramdisk_mb(self) -> int:
        """The size as Snakemake's resource `ramdisk_mb`, rounded up; on the disk nothing of it is memory."""
        return 0 if self.backend == "disk" else -(-self.size_bytes // _MIB_BYTES)

    @property
    def used(self) -> set[str]:
        """The names of the parameters that reach the trainer."""
        texts = (*self.command, *self.environment.values())
        used = {name for text in texts for name in _PLACEHOLDER.findall(text) if name}
        return used | {name for name in self.parameters if self._is_in_file(name)}

    @property
    def values(self) -> dict[str, str]:
        """What tells the run from others: its parameters, and its own settings by their dotted keys, as text."""
        return {
            **self.parameters,
            **{key: "null" if value is None else as_text(value, key) for key, value in self.settings.items()},
        }

    @property
    def training(self) -> dict[str, Any]:
        """What defines the training: after a change of it the run is trained again. Secrets are left out."""
        # A driver is the same one wherever RamTrain is.
        command = fill_placeholders(self.command, {**self._values(ram="{ram}"), "driver": "{driver}"})
        training = {"project": str(self.project), "command": command, "threads": self.threads}
        if self.environment:
            training["environment"] = self.variables(ram="{ram}")
        if self.trainer.parameters:
            training["parameters"] = self.file_parameters()
        return redact(training)

    def arguments(self, ram: str) -> list[str]:
        """Return the command with every placeholder filled; `ram` is what {ram} stands for."""
        return fill_placeholders(self.command, self._values(ram))

    def variables(self, ram: str) -> dict[str, str]:
        """Return the environment variables that the config gives the trainer, likewise."""
        filled = fill_placeholders(self.environment.values(), self._values(ram), "train.environment")
        return dict(zip(self.environment, filled, strict=True))

    @property
    def install_to(self) -> Path | None:
        """Return the folder that gets the model too, once it is at home; None if there is none."""
        if self.install_pattern is None:
            return None
        values = {**self.parameters, "run": self.run}
        (folder,) = fill_placeholders([self.install_pattern], values, "project.install_to")
        return _absolute(str(self.project / Path(folder).expanduser()))

    def _values(self, ram: str) -> dict[str, str]:
        """Return what the placeholders of the command stand for."""
        driver = {"driver": str(self.trainer.driver)} if self.trainer.driver else {}
        return {**self.parameters, **driver, "python": self.python, "run": self.run, "ram": ram}

    def file_parameters(self) -> dict[str, Any]:
        """Return what the trainer's parameters file is given, by dotted key."""
        keys = self.trainer.parameters.keys if self.trainer.parameters else {}
        return {keys.get(name, name): typed(text) for name, text in self.parameters.items() if self._is_in_file(name)}

    def _is_in_file(self, name: str) -> bool:
        """Whether a parameter is in the trainer's parameters file: the adapter says under which key; or the run's row
        has it, and so has the base, if there is one."""
        if self.trainer.parameters is None:
            return False
        is_known = self.base_names is None or name in self.base_names
        return name in self.trainer.parameters.keys or (name in self.listed and is_known)


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


def read_memory(memory: str | int | None) -> int | None:
    """Return `train.memory` in bytes; None if it is not said.

    Raises:
        RamTrainError: not a size.
    """
    hint = "give what the trainer itself takes at most, such as 12G"
    return None if memory is None else _parse_bytes("train.memory", memory, hint)


def _read_time(time: str | float | None) -> float | None:
    hint = "give a time such as 12 h or 3 days"
    return None if time is None else _parse_time("train.time", time, hint)


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
    return None if text == "never" else _parse_time("protect.max_loss", text, hint)


def _parse_time(key: str, text: str | float, hint: str) -> float:
    try:
        time_s = float(humanfriendly.parse_timespan(str(text)))
    except (humanfriendly.InvalidTimespan, OverflowError):
        raise RamTrainError(f"{key}: {text!r} is not a time; {hint}.") from None
    if not 1 <= time_s < math.inf:
        raise RamTrainError(f"{key}: {text!r} is less than a second, or no end of time; {hint}.")
    return time_s


def load_trainer(name: str, home: Path) -> Trainer:
    """Read the adapter `name` from `home`/config/trainers, or from a file if the name ends in .yaml.

    Raises:
        RamTrainError: no such adapter, or one that its schema or a regular expression refuses.
    """
    folder = home / "config" / "trainers"
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    is_file = name.endswith(".yaml")
    if name not in known and not is_file:
        raise RamTrainError(
            f"project.trainer: {name!r} is not known; known are: {', '.join(known)}. A file of your own ends in .yaml."
        )
    path = _absolute(name) if is_file else folder / f"{name}.yaml"
    if not path.is_file():
        raise RamTrainError(f"project.trainer: {path}: no such file; known adapters are: {', '.join(known)}.")
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
        driver=_read_driver(adapter["driver"], path),
        python=tuple(adapter["python"]),
        check=tuple(adapter["check"]),
        exclude=tuple(adapter["exclude"]),
        inputs=tuple(adapter["inputs"]),
        model=tuple(adapter["model"]),
        checkpoints=tuple(adapter["checkpoints"]),
        complete=tuple(adapter["complete"]),
        artifacts=tuple(adapter["artifacts"]),
        prunable=tuple(adapter["prunable"]),
        environment=adapter["environment"],
        parameters=_read_parameters_file(adapter["parameters"], path),
        stop_signal=signal.Signals[adapter["stop"]["signal"]],
        stop_to=adapter["stop"]["to"],
        grace_s=adapter["stop"]["grace_s"],
        progress=progress,
        resume=_read_resume_of(resume),
        memory=_read_need(adapter["memory"]),
        metrics=read_sources(adapter["metrics"], f"{path}: metrics", progress.get("step")),
    )


def _read_resume_of(resume: Mapping[str, Any] | None) -> Resume | None:
    if resume is None:
        return None
    named = resume["best_named"]
    return Resume(
        arguments=tuple(resume["arguments"]),
        companions=tuple(resume["companions"]),
        best=tuple(resume["best"]),
        best_named=named and BestNamed(named["file"], named["key"]),
    )


def _read_need(need: Mapping[str, Any] | None) -> MemoryNeed | None:
    if need is None:
        return None
    return MemoryNeed(tuple(need["base"]), need["checkpoint"], need["checkpoints"], need["beside"])


def _read_driver(name: str | None, path: Path) -> Path | None:
    driver = path.parent.resolve() / name if name else None
    if driver and not driver.is_file():
        raise RamTrainError(f"{path}: driver: {driver}: no such file; it stands beside the adapter.")
    return driver


def _read_parameters_file(content: Mapping[str, Any] | None, path: Path) -> ParametersFile | None:
    if content is None:
        return None
    for key in ("file", "base"):
        parts = (content[key] or "").split("/")
        if parts[0] == "~" or ".." in parts or (content[key] or "").startswith("/"):
            raise RamTrainError(f"{path}: parameters.{key}: {content[key]!r}: give a path in the project.")
    return ParametersFile(content["file"], content["base"], content["keys"])


def complete_config(config: Mapping[str, Any], home: Path, source: str) -> dict[str, Any]:
    """Check the config against its schema and return it with the schema's defaults filled in.

    Args:
        config: the config as it was read.
        home: the folder of the workflow, which holds `workflow/schemas` and `config/trainers`.
        source: the config's file name, for the messages.

    Raises:
        RamTrainError: one line for each thing that is wrong.
    """
    _check_secrets(config, source)
    return complete(config, _schema(home, "config"), source)


def _check_secrets(part: Any, source: str, key: str = "") -> None:
    """Refuse a config made from a record where a secret was left out."""
    entries = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else ()
    for name, value in entries:
        _check_secrets(value, source, f"{key}.{name}" if key else str(name))
    if isinstance(part, str) and MARK in part:
        raise RamTrainError(f"{source}: {key}: a secret was left out here when the run was recorded; put it in again.")


def project_of(config: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]]:
    """Return a complete config's project, as an absolute path, and its command, with its placeholders.

    Raises:
        RamTrainError: the command is empty, or a quotation mark in it is not closed.
    """
    return _absolute(config["project"]["path"]), _split(config["project"]["command"])


def load_runs(config: Mapping[str, Any], home: Path, only: str | None = None) -> dict[str, Run]:
    """Return every run of a complete config by its id, in the order of the runs table, then of the sweep.

    Args:
        only: the one run that is wanted, if it is not all of them.

    Raises:
        RamTrainError: whatever is wrong with the runs table, the sweep, the adapter, or the values in the config.
    """
    found: dict[str, Run] = {}
    alike: dict[str, Run] = {}
    trainer_of = functools.cache(functools.partial(load_trainer, home=home))
    machine_bytes = functools.cache(lambda: memory.bounds()[0].total_bytes)
    for row in _rows(config, home):
        if only is not None and row.run != only:
            continue
        settings = json.dumps(row.settings, sort_keys=True, default=str)
        if settings not in alike:
            with _named(row.source if row.settings else ""):
                own = _with_settings(config, row, _schema(home, "config"))
                alike[settings] = _resolve(own, trainer_of, machine_bytes)
        with _named(row.source):
            found[row.run] = _run_of(row, alike[settings])
    if config["sweep"] and only is None:
        _check_sweep(config["sweep"], found.values())
    _check_installs(found.values())
    return found


def _rows(config: Mapping[str, Any], home: Path) -> list[Row]:
    """Return the rows of all runs; of one, named after the project's folder, where the config says nothing of them."""
    schemas = _schema(home, "runs"), _schema(home, "config")
    listed, sweep = config["runs"], config["sweep"]
    rows: list[Row] = []
    if isinstance(listed, str):
        rows += runs.read_table(_absolute(listed), *schemas)
    elif listed:
        rows += runs.read_list(listed, *schemas, "config")
    if sweep:
        rows += runs.combine(sweep, config["train"]["seed"], *schemas, "config")
    runs.check_ids(rows)
    return rows or [Row(runs.id_from(_absolute(config["project"]["path"]).name), {}, {}, "")]


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Name the row that an error is about."""
    try:
        yield
    except RamTrainError as error:
        if not source or str(error).startswith(source):
            raise
        raise RamTrainError(f"{source}: {error}") from None


def _with_settings(config: Mapping[str, Any], row: Row, schema: dict[str, Any]) -> Mapping[str, Any]:
    """Return the config with a row's own settings in the place of the config's, each checked by its part of the schema:
    a thousand whole configs would take seconds."""
    own = dict(config)
    for key, value in row.settings.items():
        *path, last = key.split(".")
        part, wanted, checked = own, schema, value
        for name in path:
            part[name] = dict(part[name])
            part, wanted = part[name], wanted["properties"][name]
        part[last] = value
        wanted = wanted.get("properties", {}).get(last) or wanted["additionalProperties"]
        for name in (last, *reversed(path)):
            wanted, checked = {"type": "object", "properties": {name: wanted}}, {name: checked}
        complete(checked, {**wanted, "$defs": schema["$defs"]}, row.source)
    return own


def _resolve(config: Mapping[str, Any], trainer_of: Callable[[str], Trainer], machine_bytes: Callable[[], int]) -> Run:
    """Return a run with all that the config says of it; what its row says is still missing."""
    project, ramdisk, train = config["project"], config["ramdisk"], config["train"]
    folder, command = project_of(config)
    trainer = trainer_of(project["trainer"])
    model = tuple(_globs("model", project["model"])) or trainer.model
    if not model:
        raise RamTrainError(
            f"project.model: missing, and the adapter {trainer.name!r} knows no default; "
            "give the globs of the files that are the final model."
        )
    auto_size = str(ramdisk["size"]).strip() == "auto"
    size_bytes = 0 if auto_size else parse_size(ramdisk["size"], memory.total_bytes(), machine_bytes())
    if ramdisk["backend"] == "path" and not ramdisk["path"]:
        raise RamTrainError("ramdisk.path: missing; the backend `path` uses the RAM disk that it names.")
    if config["staging"] == "none" and not any("{ram}" in argument for argument in command):
        raise RamTrainError("project.command: staging `none` needs {ram} in it, the folder in RAM to write into.")
    if train["gpus"] is not None and "CUDA_VISIBLE_DEVICES" in train["environment"]:
        raise RamTrainError("train.environment.CUDA_VISIBLE_DEVICES: train.gpus decides that; take one of them out.")
    products = Products(
        model=model,
        artifacts=(*trainer.artifacts, *_globs("artifacts", project["artifacts"])),
        checkpoints=(*trainer.checkpoints, *_globs("checkpoints", project["checkpoints"])),
        companions=trainer.resume.companions if trainer.resume else (),
        best=trainer.resume.best if trainer.resume else (),
        best_named=trainer.resume.best_named if trainer.resume else None,
        complete=trainer.complete,
        logs=trainer.artifacts,
        prunable=(*trainer.prunable, *_globs("prunable", project["prunable"])),
        metrics=choose_sources(
            read_sources(project["metrics"], "project.metrics", trainer.progress.get("step")), trainer.metrics
        ),
    )
    return Run(
        run="",
        parameters={},
        listed=(),
        settings={},
        base_names=base_names(folder, trainer.parameters) if trainer.parameters else None,
        config=config,
        python=find_interpreter(folder, project["python"], trainer.python),
        install_pattern=project["install_to"],
        environment={name: as_text(value, f"train.environment.{name}") for name, value in train["environment"].items()},
        project=folder,
        command=command,
        trainer=trainer,
        products=products,
        exclude=(*trainer.exclude, *_globs("exclude", project["exclude"])),
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
        gpus=train["gpus"],
        devices=tuple(map(str, train["devices"] or ())),
        memory_bytes=read_memory(train["memory"]),
        time_s=_read_time(train["time"]),
        protect=_read_protect(config["protect"]),
        resume=config["resume"],
        store=read_address(config["store"]),
    )


def find_interpreter(project: Path, python: str | None, places: Iterable[str]) -> str:
    """Return the interpreter that the config names, by its path or on the PATH; else the project's own, at the first of
    the places where there is one; else whichever is on the PATH. A link to an interpreter, as an environment has it,
    stays one: it tells Python where its packages are."""
    if python is not None:
        return str(project / Path(python).expanduser()) if "/" in python else python
    return next((str(project / place) for place in places if _is_program(project / place)), "python")


def _is_program(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)  # Path.is_file fails where it may not look


def _run_of(row: Row, alike: Run) -> Run:
    """Return the run of a row; `alike` is what `_resolve` made of the config with the row's settings."""
    config = alike.config
    if row.source:  # of the runs, a run's own config has this one alone
        config = {**config, "runs": [{"run": row.run, **row.parameters, **row.settings}], "sweep": None}
    run = replace(
        alike,
        run=row.run,
        config=config,
        parameters={SEED: str(alike.config["train"]["seed"]), **row.parameters},
        listed=tuple(row.parameters),
        settings=row.settings,
        resume=_read_resume(alike.resume, row.run),
    )
    if any("\0" in argument for argument in (*run.arguments(ram=""), *run.variables(ram="").values())):
        raise RamTrainError("project.command: the character NUL is not possible in a command, nor in its environment.")
    return run


def _check_sweep(sweep: Mapping[str, Any], found: Iterable[Run]) -> None:
    """Refuse a sweep over something that nothing uses: all its runs would be the same."""
    used = set().union(*(run.used for run in found))
    for name in sweep:
        parameter = SEED if name == SEEDS else name
        if "." not in name and parameter not in used:
            raise RamTrainError(
                f"config: sweep.{name}: nothing uses it: {{{parameter}}} is neither in project.command nor in "
                "train.environment, nor is it in the adapter's parameters file."
            )


def _check_installs(found: Iterable[Run]) -> None:
    """Refuse two runs whose models would be put into the same folder."""
    takers: dict[Path, str] = {}
    for run in found:
        if folder := run.install_to:
            if folder in takers:
                raise RamTrainError(
                    f"project.install_to: runs {takers[folder]} and {run.run} would both be put into {folder}; "
                    "{run}, or a parameter, in it tells them apart."
                )
            takers[folder] = run.run


def benchmark_run(config: Mapping[str, Any], runs: Mapping[str, Run]) -> Run | None:
    """Return the run that `benchmark_io` trains without a RAM disk and with one; None if the config names none.

    Raises:
        RamTrainError: there is no such run.
    """
    name = config["benchmark"]["run"]
    if name is not None and name not in runs:
        raise RamTrainError(f"benchmark.run: {name!r} is no run; the runs are {', '.join(runs)}.")
    return None if name is None else runs[name]


def check_projects(runs: Iterable[Run]) -> None:
    """Check the projects of several runs; what they have in common is looked at once.

    Raises:
        RamTrainError: as `check_project`.
    """
    seen = set()
    for run in runs:
        place = str(run.project)
        alike = (place, run.arguments(ram=place)[0], run.variables(ram=place).get("PATH"), run.trainer.name)
        if alike not in seen:
            check_project(run)
            seen.add(alike)


def check_project(run: Run) -> None:
    """Check that the project can be trained: its folder, the command's program, the base of its parameters file.

    Raises:
        RamTrainError: the folder is missing, a file, unreadable or empty; the program or the base is not there.
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
    if run.trainer.parameters:
        check_place(folder, run.trainer.parameters)
        read_base(folder, run.trainer.parameters)
    program = run.arguments(ram=str(folder))[0]
    if "/" not in program:
        if not shutil.which(program, path=run.variables(ram=str(folder)).get("PATH")):
            if "=" in program:
                raise RamTrainError(
                    f"project.command: {program!r} is no program; variables stand in train.environment."
                )
            raise RamTrainError(
                f"project.command: program {program!r} not found on the PATH; is its environment active?"
            )
    elif not os.path.isfile(folder / program):  # nor one that may not be seen
        raise RamTrainError(
            f"project.command: program {program!r}: no such file; a path with / in it is relative to {folder}."
        )
    elif not os.access(folder / program, os.X_OK):
        raise RamTrainError(
            f"project.command: program {program!r} is not executable; chmod +x it, or put its interpreter before it."
        )


@functools.cache
def _schema(home: Path, name: str) -> dict[str, Any]:
    return load_yaml(home / "workflow" / "schemas" / f"{name}.schema.yaml")


def _absolute(path: str) -> Path:
    # A name after ~ that is no user's stays as it is, as in a shell, and is then not found.
    return Path(os.path.abspath(os.path.expanduser(path)))


def _globs(key: str, patterns: Iterable[str]) -> Iterable[str]:
    for pattern in patterns:
        check_glob(f"project.{key}", pattern)
        yield pattern


def _split(command: str | list[str | int | float]) -> tuple[str, ...]:
    try:
        arguments = shlex.split(command) if isinstance(command, str) else [str(part) for part in command]
    except ValueError as error:
        raise RamTrainError(f"project.command: {error}: {command!r}.") from None
    if not arguments or not arguments[0]:
        raise RamTrainError("project.command: is empty; give the program that trains, and its arguments.")
    return tuple(arguments)
