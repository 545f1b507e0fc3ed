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
from ramtrain.system import CommandError, mount_of, run_command

log = logging.getLogger(__name__)

_MOST_INPUT_FILES = 10_000
_MOST_INPUT_BYTES = 256 << 20
_PACKAGES = (
    "import importlib.metadata as m, json;print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


@dataclass(frozen=True)
class ProjectState:
    """The project as it was when the training began, and the Python that the command uses, if it is one.

    `inputs` has a path and a SHA-256 for each file; of a large project for its smallest files, up to 10,000 of them
    and 256 MiB; `inputs_left_out` counts the others.
    """

    git_commit: str | None
    dirty: bool | None
    inputs: list[dict[str, str]]
    inputs_left_out: int
    python: str | None
    packages: dict[str, str]


def describe_project(run: Run, program: str) -> ProjectState:
    """Describe the project on the disk; meant to run beside the training, which waits for nothing of it."""
    project = run.project.resolve()
    inputs, left_out = _hash_inputs(project)
    python, packages = _packages(program, project)
    commit, dirty = _git_state(project)
    return ProjectState(commit, dirty, inputs, left_out, python, packages)


def _hash_inputs(project: Path) -> tuple[list[dict[str, str]], int]:
    files: list[tuple[int, str]] = []
    for folder, names, entries in os.walk(project):
        names[:] = [name for name in names if name != ".git"]
        for name in entries:
            path = Path(folder) / name
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                files.append((status.st_size, str(path.relative_to(project))))
    inputs: list[dict[str, str]] = []
    total_bytes = 0
    for size_bytes, path in sorted(files)[:_MOST_INPUT_FILES]:
        total_bytes += size_bytes
        if total_bytes > _MOST_INPUT_BYTES:
            break
        try:
            with (project / path).open("rb") as file:
                inputs.append({"path": path, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
        except OSError as error:
            log.warning("input %s could not be read for the record: %s", path, error.strerror)
    return sorted(inputs, key=lambda entry: entry["path"]), len(files) - len(inputs)


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
