"""The Python that a command uses, found without running the command, and the packages that are installed for it."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from ramtrain.system import CommandError, run_beside

log = logging.getLogger(__name__)

_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*(?:-dbg|t)?")
# They run the first of their arguments that is a program.
_WRAPPERS = ("env", "nice", "ionice", "nohup", "setsid", "stdbuf", "time", "timeout", "taskset", "numactl", "chrt")
_CONDAS = ("conda", "mamba", "micromamba")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_UV_ELSEWHERE = ("--with", "--isolated", "--no-project", "--python", "-p", "--script", "--active", "--from")
# What pip writes where a path is too long for `#!`, or has a space.
_SHELL_EXEC = re.compile(rb"'''exec' (\"[^\"]+\"|\S+) ")
_MOST_WRAPPED = 5
_LIST_S = 60.0
# The folder that it is run in is none of the trainer's, whose modules might shadow the library's.
_LIST = """\
import sys
sys.path = [path for path in sys.path if path]
import json, platform
try:
    from importlib.metadata import distributions
    # What is left of an install that failed may have no name or no version; of two the first is imported.
    about = [d.metadata or {} for d in distributions()]
    known = [(a.get("Name"), a.get("Version")) for a in reversed(about)]
    found = {name: version for name, version in known if name and version}
except ImportError:
    found = None
print(json.dumps([platform.python_version(), sys.executable, sys.base_prefix, found]))
"""


@dataclass(frozen=True)
class Python:
    """A Python: its executable, its version, its packages with their versions, and those of its conda environment with
    version and build. All of it is empty where a command uses none, or none that can be told."""

    executable: str | None = None
    version: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    conda: dict[str, str] = field(default_factory=dict)


def python_of(argv: Sequence[str], env: Mapping[str, str], cwd: Path, stop: Event) -> Python:
    """Return the Python that a command uses in its environment and folder; for it a Python is run, not the command."""
    found = find_python(argv, env, cwd)
    if found is None:
        return Python()
    try:
        answer = run_beside(str(found), "-B", "-c", _LIST, env=env, cwd=cwd, stop=stop, timeout_s=_LIST_S)
        version, executable, prefix, packages = json.loads(answer.splitlines()[-1])
    except (CommandError, ValueError, IndexError) as error:
        log.warning("the packages of %s are not in the record: %s", found, error)
        return Python(str(found))
    if packages is None:
        log.warning("%s, Python %s, cannot list its packages: they are not in the record", found, version)
    sorted_packages = dict(sorted((packages or {}).items(), key=lambda item: item[0].lower()))
    return Python(executable, version, sorted_packages, conda_packages(Path(prefix)))


def conda_packages(prefix: Path) -> dict[str, str]:
    """Return version and build of each package of a conda environment, as its `conda-meta` names them (CEP 32)."""
    found = {}
    for path in sorted(prefix.glob("conda-meta/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[content["name"]] = f"{content['version']} {content.get('build', '')}".rstrip()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, and is not in the record: %s", path, error)
    return found


def is_python(program: Path) -> bool:
    """Whether a program is a Python, by its name."""
    return bool(_PYTHON.fullmatch(program.name))


def find_python(argv: Sequence[str], env: Mapping[str, str], cwd: Path, depth: int = 0) -> Path | None:
    """Return the Python that a command is run with, as far as its words and files tell.

    That is the program itself; the one that a console script names in its first line, such as torchrun's; that of
    `conda run` and `uv run`; or that of the program which `env`, `nice` and their kin are given.
    """
    program = _program(argv[0], env, cwd) if argv else None
    if program is None or depth > _MOST_WRAPPED:
        return None
    name = program.name
    if is_python(program):
        return program
    if name in _CONDAS and "run" in argv[1:3]:
        return _of_conda(argv[argv.index("run") + 1 :], program, env, cwd)
    if name == "uv" and argv[1:2] == ["run"]:
        return _of_uv(argv[2:], env, cwd)
    if name in _WRAPPERS:
        return _wrapped(argv[1:], env, cwd, depth)
    return _of_script(program, env, cwd, depth)


def _program(word: str, env: Mapping[str, str], cwd: Path) -> Path | None:
    if "/" not in word:
        found = shutil.which(word, path=env.get("PATH", os.defpath))
        return cwd / found if found else None
    path = cwd / word
    return path if path.is_file() and os.access(path, os.X_OK) else None


def _wrapped(arguments: Sequence[str], env: Mapping[str, str], cwd: Path, depth: int) -> Path | None:
    """Return the Python of the first argument that is a program; variables before it count, as `env` sets them."""
    variables = dict(env)
    for position, argument in enumerate(arguments):
        if _VARIABLE.fullmatch(argument):
            variables.update([argument.split("=", 1)])
        elif not argument.startswith("-") and _program(argument, variables, cwd):
            return find_python(arguments[position:], variables, cwd, depth + 1)
    return None


def _of_script(program: Path, env: Mapping[str, str], cwd: Path, depth: int) -> Path | None:
    """Return the Python that the first line of a script names (execve(2), interpreter scripts)."""
    try:
        with program.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return None
    if not start.startswith(b"#!"):
        return None
    first, _, rest = start[2:].partition(b"\n")
    interpreter, _, argument = os.fsdecode(first).strip().partition(" ")
    if Path(interpreter).name == "sh" and (match := _SHELL_EXEC.match(rest)):
        return find_python([os.fsdecode(match[1].strip(b'"'))], env, cwd, depth + 1)
    if Path(interpreter).name == "env":
        return find_python([interpreter, *shlex.split(argument)], env, cwd, depth + 1)
    return find_python([interpreter], env, cwd, depth + 1) if is_python(Path(interpreter)) else None


def _of_conda(arguments: Sequence[str], program: Path, env: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the Python of the environment that `conda run` names with -n or -p; without, of the active one."""
    prefixes = [Path(env["CONDA_PREFIX"])] if "CONDA_PREFIX" in env else []
    words = iter(arguments)
    for word in words:
        option, _, value = word.partition("=")
        if option in ("-p", "--prefix"):
            prefixes = [cwd / Path(value or next(words, "")).expanduser()]
            break
        if option in ("-n", "--name"):
            prefixes = _named_environments(value or next(words, ""), program, env)
            break
        if word in ("--cwd", "-r", "--root-prefix"):
            next(words, None)
        elif not word.startswith("-"):
            break
    return next((path for prefix in prefixes if (path := prefix / "bin/python").exists()), None)


def _named_environments(name: str, program: Path, env: Mapping[str, str]) -> list[Path]:
    """Return where conda looks for an environment of this name, the base installation among them."""
    roots = [Path(env[key]) for key in ("MAMBA_ROOT_PREFIX",) if key in env]
    roots += [Path(env[key]).parents[1] for key in ("CONDA_EXE", "MAMBA_EXE") if env.get(key, "").count("/") > 2]
    roots.append(program.resolve().parents[1])
    if name == "base":
        return roots
    home = Path(env.get("HOME", "~")).expanduser()
    named = [Path(folder) / name for folder in env.get("CONDA_ENVS_PATH", "").split(os.pathsep) if folder]
    named += [root / "envs" / name for root in roots] + [home / ".conda/envs" / name]
    try:
        known = (home / ".conda/environments.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        known = []
    return named + [Path(line) for line in known if Path(line).name == name]


def _of_uv(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the Python of the project's own environment; None where the options ask for another one."""
    for argument in arguments:
        if not argument.startswith("-"):
            break
        if argument.split("=")[0] in _UV_ELSEWHERE:
            return None
    named = env.get("UV_PROJECT_ENVIRONMENT", ".venv")
    folder = next((parent for parent in (cwd, *cwd.parents) if (parent / "pyproject.toml").exists()), cwd)
    python = folder / named / "bin/python"
    return python if python.exists() else None
