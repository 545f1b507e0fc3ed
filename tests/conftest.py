"""What the tests share: a small project, an awkward working directory, Snakemake, and a look for leftovers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.register_assert_rewrite("trained", "workplace")

from trained import Trained  # noqa: E402
from workplace import PATIENCE_S, Workplace, changed, resuming_config, snakemake_argv  # noqa: E402

from ramtrain import memory  # noqa: E402
from ramtrain.lease import ram_root, user_root  # noqa: E402
from ramtrain.ledger import standing  # noqa: E402
from ramtrain.system import mounts  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
SMALL_PROJECT = REPO / "tests" / "projects" / "small"
RESUMING_PROJECT = REPO / "tests" / "projects" / "resuming"
WORKDIR = "ram train"

# Users do not have it set; every process that a test starts would compile all of ramtrain anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# PyTorch's threads, beside those of other tests, would spend most of their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def needs_root(reason: str) -> pytest.MarkDecorator:
    """Skip a test unless it runs as root, and say what root is needed for."""
    return pytest.mark.skipif(os.geteuid() != 0, reason=f"needs root: {reason}")


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Give a memory cgroup with a limit, below our own; skip the test where that cannot be made."""
    own = memory.own_group()
    if own is None or os.geteuid() != 0:
        pytest.skip("needs root and a memory cgroup")
    folder = own / f"ramtrain-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if (own / "memory.limit_in_bytes").exists() else "memory.max"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs a memory cgroup that may be written to: {error}")
    try:
        if not (folder / limit).exists():
            pytest.skip("needs a cgroup whose memory controller is given to those below it")
        (folder / limit).write_text(str(limit_bytes))
        yield folder
    finally:
        deadline = time.monotonic() + 5
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.rmdir()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a RAM disk, a mount, a process or a variable of ours behind."""
    yield
    deadline = time.monotonic() + PATIENCE_S
    while (left := _left_behind(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)  # a process that was ended is still on its way out
    assert not left, f"left behind: {left}"
    assert not [name for name in os.environ if name.startswith("RAMTRAIN_")], "tests after it would heed a call"


def _left_behind(folder: Path) -> list[str]:
    roots = [folder, ram_root(folder / WORKDIR)]
    left = [str(root) for root in roots[1:] if root.exists()]
    left += [str(entry.point) for entry in mounts() if any(entry.point.is_relative_to(root) for root in roots)]
    left += [str(entry.promise) for entry in standing(user_root()) if str(folder) in entry.promise.workdir]
    return left + [str(process) for process in psutil.process_iter() if _is_in(process, folder)]


def _is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory whose name has a space, and go there."""
    folder = tmp_path / WORKDIR
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the small project in a folder with a space and an umlaut in its name."""
    folder = tmp_path / "my prôject ü"
    shutil.copytree(SMALL_PROJECT, folder)
    return folder


def small_config(project: Path, **changes: Any) -> dict[str, Any]:
    """Return a config for the small project; dotted keys change it: `**{"ramdisk.size": "1G"}`."""
    config: dict[str, Any] = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", "--out", "{ram}/out", "--seed", "{seed}"],
            "model": ["out/model.bin"],
            "checkpoints": ["out/checkpoint_*.bin"],
            "artifacts": ["out/log.txt"],
        },
        "ramdisk": {"size": "64M"},
    }
    return changed(config, changes)


def expected_model(seed: int, steps: int) -> bytes:
    """Return the model that the small project's trainer makes, worked out apart from it."""
    weights = random.Random(seed)
    for _ in range(steps):
        model = weights.randbytes(1 << 20)
    return model + b"one\ntwo\nthree\n"


@dataclass(frozen=True)
class Ended:
    """How a call of Snakemake ended; `output` is all that it and its jobs printed."""

    status: int
    output: str

    def lines(self, start: str) -> list[str]:
        """Return the lines that begin with `start`."""
        return [line for line in self.output.splitlines() if line.startswith(start)]


def ran(argv: Sequence[str], folder: Path, **variables: str) -> Ended:
    """Run what a user types in a folder, with variables of the environment besides; return how it ended."""
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=300,
    )
    return Ended(done.returncode, done.stdout)


@pytest.fixture
def snakemake(workdir: Path) -> Callable[..., Ended]:
    """Return a function that writes a config, runs Snakemake on it in `workdir`, and returns how that ended.

    `prefix` is put before the call, to make it in a user namespace, say.
    """

    def run(config: dict[str, Any] | str, *arguments: str, cores: int = 1, prefix: Sequence[str] = ()) -> Ended:
        path = workdir / "my.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config), encoding="utf-8")
        return ran([*prefix, *snakemake_argv(*arguments, "--configfile", str(path), cores=cores)], workdir)

    return run


@pytest.fixture
def rebooted(workdir: Path) -> Iterator[None]:
    """Release at the end what a training that failed has left in RAM, as a reboot does."""
    yield
    Workplace(workdir, {}).reboot()


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts an nvidia-smi on the PATH: what it lists, and the processes on those; or why it
    fails. Until then there is none that works, whatever this machine has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def put(listed: str = "", apps: str = "", fails: str = "") -> None:
        says = f'echo "{fails}" >&2; exit 9' if fails else f'[ "$1" = --list-gpus ] && cat <<E\n{listed}E'
        program = folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n{says}\n[ "$1" = --list-gpus ] || cat <<E\n{apps}E\n')
        program.chmod(0o755)

    put(fails="no driver")
    return put


@pytest.fixture
def resuming(tmp_path: Path) -> Path:
    """Return a copy of the project that resumes."""
    folder = tmp_path / "resuming"
    shutil.copytree(RESUMING_PROJECT, folder)
    return folder


@pytest.fixture
def workplace(workdir: Path, resuming: Path) -> Iterator[Workplace]:
    """Return a workplace for the project that resumes; whatever is left of it at the end is ended and released."""
    place = Workplace(workdir, resuming_config(resuming))
    yield place
    place.reboot()


@pytest.fixture
def trained(workdir: Path, tmp_path: Path) -> Iterator[Callable[..., Trained]]:
    """Return a function that makes the workplace of a project; what is left of it at the end is ended and released."""
    places = []

    def make(name: str, *packages: str, **changes: Any) -> Trained:
        missing = [package for package in packages if find_spec(package) is None]
        assert not missing, f"{', '.join(missing)} cannot be imported; type `make test-trainers`"
        places.append(Trained(workdir, name, tmp_path, **changes))
        return places[-1]

    yield make
    for place in places:
        place.reboot()
