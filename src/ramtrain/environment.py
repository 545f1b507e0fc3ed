"""What a training depends on beside its command: the project's files, its Python, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ramtrain import __version__
from ramtrain.config import Run
from ramtrain.ramdisk import ram_root
from ramtrain.system import CommandError, mount_of, run_command
from ramtrain.view import matcher

log = logging.getLogger(__name__)

_MOST_INPUT_FILES = 10_000
_MOST_INPUT_BYTES = 256 << 20
_NO_INPUTS = (".git", "__pycache__")
_PACKAGES = (
    "import importlib.metadata as m, json;print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Inputs:
    """The project's files as they were when the training began.

    `files` has a path and a SHA-256 each; of a large project its smallest files, up to 10,000 of them and 256 MiB;
    `left_out` counts the others. `digests` has, for each entry of the project's folder, a digest of all below it: of
    contents, of the targets of links, and of size and mtime of what was left out.
    """

    files: list[dict[str, str]]
    left_out: int
    digests: dict[str, str]


@dataclass(frozen=True)
class ProjectState:
    """The project as it was when the training began, and the Python that the command uses, if it is one."""

    git_commit: str | None
    dirty: bool | None
    inputs: list[dict[str, str]]
    inputs_left_out: int
    python: str | None
    packages: dict[str, str]


def describe_project(run: Run, program: str, inputs: Inputs) -> ProjectState:
    """Describe the project on the disk; meant to run beside the training, which waits for nothing of it."""
    project = run.project.resolve()
    python, packages = _packages(program, project)
    commit, dirty = _git_state(project)
    return ProjectState(commit, dirty, inputs.files, inputs.left_out, python, packages)


def read_inputs(project: Path) -> Inputs:
    """Hash the project's files; what Git, Python and RamTrain itself keep there does not count."""
    own = matcher(own_places(project))
    found: list[tuple[int, str, os.stat_result]] = []
    for folder, names, entries in os.walk(project):
        prefix = os.path.relpath(folder, project)
        names[:] = [name for name in names if name not in _NO_INPUTS and not own.fullmatch(_join(prefix, name))]
        for name in (*names, *entries):
            path = _join(prefix, name)
            try:
                status = (project / path).lstat()
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                found.append((status.st_size, path, status))
    found.sort(key=lambda entry: entry[:2])
    files: list[dict[str, str]] = []
    signatures: dict[str, list[str]] = {}
    left_out = total_bytes = 0
    for size_bytes, path, status in found:
        total_bytes += size_bytes
        signature = f"{size_bytes} {status.st_mtime_ns}"
        is_file = stat.S_ISREG(status.st_mode)
        try:
            if stat.S_ISLNK(status.st_mode):
                signature = os.readlink(project / path)
            elif is_file and len(files) < _MOST_INPUT_FILES and total_bytes <= _MOST_INPUT_BYTES:
                with (project / path).open("rb") as file:
                    signature = hashlib.file_digest(file, "sha256").hexdigest()
                files.append({"path": path, "sha256": signature})
            else:
                left_out += is_file
        except OSError as error:
            log.warning("input %s could not be read for the record: %s", path, error.strerror)
            left_out += is_file
        signatures.setdefault(path.split("/")[0], []).append(f"{path}\0{signature}")
    digests = {name: _digest(lines) for name, lines in sorted(signatures.items())}
    return Inputs(sorted(files, key=lambda entry: entry["path"]), left_out, digests)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256(os.fsencode("\n".join(sorted(lines)))).hexdigest()[:16]


def own_places(project: Path) -> list[str]:
    """Return globs for what RamTrain keeps in a project that is, or holds, Snakemake's working directory."""
    here = Path.cwd().resolve()
    if not here.is_relative_to(project):
        return []
    prefix = here.relative_to(project)
    return [str(prefix / name) for name in ("results", ".snakemake", ram_root(here).parent.name)]


def _join(prefix: str, name: str) -> str:
    return name if prefix == "." else f"{prefix}/{name}"


def _packages(program: str, project: Path) -> tuple[str | None, dict[str, str]]:
    found = str(project / program) if "/" in program else shutil.which(program)
    if not found or not Path(found).name.startswith("python"):
        return None, {}
    try:
        version = run_command(found, "-B", "-c", "import platform; print(platform.python_version())").strip()
        return version, dict(sorted(json.loads(run_command(found, "-B", "-c", _PACKAGES)).items()))
    except CommandError as error:
        log.warning("the packages of %s are not in the record: %s", found, error)
        return None, {}


def _git_state(project: Path) -> tuple[str | None, bool | None]:
    # Without optional locks `git status` does not refresh the index: the project is not written to.
    git = ("git", "--no-optional-locks", "-C", str(project))
    try:
        commit = run_command(*git, "rev-parse", "HEAD").strip()
        return commit, bool(run_command(*git, "status", "--porcelain", "--", ".").strip())
    except CommandError:
        return None, None  # no git, or no repository


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return kernel, CPU, memory, and the disk that holds `folder`."""
    holding = mount_of(folder.resolve())
    model = Path(f"/sys/dev/block/{holding.device}/device/model")
    return {
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk": {
            "source": holding.source,
            "filesystem": holding.fstype,
            "model": model.read_text(encoding="ascii").strip() if model.exists() else None,
        },
        "ramtrain": __version__,
        "snakemake": importlib.metadata.version("snakemake"),
        "ramtrain_python": platform.python_version(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
