"""What a training depends on beside its command: the project's code, its Python, the machine."""

from __future__ import annotations

import csv
import importlib.metadata
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from humanfriendly.text import pluralize

from ramtrain import __version__
from ramtrain.git import DIFF, Code, read_code, read_commit
from ramtrain.inputs import HashCache, Inputs, LargerInputs
from ramtrain.lease import Lease
from ramtrain.meter import device_of, physical_devices
from ramtrain.packages import Python, python_of
from ramtrain.system import CommandError, mount_of, run_beside

log = logging.getLogger(__name__)

# What of RamTrain's checkout makes a difference to a run.
_OWN_CODE = ("src", "scripts", "workflow", "Snakefile", "config/trainers")
_BLOCK = Path("/sys/class/block")
_NICE = 10
_CANCELLED_S = 1.0
# After the training's end; what is not found by then is missing.
_LONGEST_END_S = 10.0
_NVIDIA_SMI_S = 10.0


@dataclass(frozen=True)
class ProjectState:
    """The project as it was when the training began, and the Python that the command uses, if it is one.

    `diff` is the name of the file that has what is not committed, beside the record; None where there is nothing.
    """

    git_commit: str | None
    dirty: bool | None
    diff: str | None
    inputs: list[dict[str, str]]
    inputs_left_out: int
    inputs_why: str
    python: Python

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ProjectState:
        """Return the state that `asdict` made `content` of, also an older one, which had less."""
        known = {"diff": None, "inputs_why": "", **content}
        packages, python = known.pop("packages", {}), known.pop("python")
        return cls(**known, python=Python(**python) if isinstance(python, dict) else Python(None, python, packages))


class Description:
    """Describes the project beside the training, in threads of low priority; the training waits for nothing of it.

    What is not committed is written to the RAM disk, from where it comes home with the log. `hashes` are those that
    earlier runs have left.
    """

    def __init__(self, run: str, project: Path, lease: Lease) -> None:
        self.run, self.project, self.lease = run, project, lease
        self.hashes = HashCache(Path(lease.workdir))
        self._code, self._python = Code(None, None), Python()
        self._larger: LargerInputs | None = None
        self._stop = threading.Event()
        self._deciding = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Description:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have it end at once: nobody wants to know any more."""
        self._stop.set()
        if self._larger:
            self._larger.cancel()
        if self._thread:
            self._thread.join(_CANCELLED_S)

    def start(self, argv: Sequence[str], env: Mapping[str, str], inputs: Callable[[], Inputs]) -> None:
        """Begin, with the training, unless it has begun before.

        Args:
            argv: the trainer's command, as it is started with `env` in the project's folder.
            inputs: waits until the project's files have been read, and returns them.
        """
        if self._thread is None:
            self._larger = LargerInputs(self.project, inputs, self.hashes)
            self._larger.start()
            self._thread = threading.Thread(target=self._work, args=(argv, env), name="description", daemon=True)
            self._thread.start()

    def finish(self) -> ProjectState:
        """Return what it found, now that the training has ended, or finds within some seconds; a warning says what is
        missing then."""
        assert self._thread is not None and self._larger is not None
        deadline_s = time.monotonic() + _LONGEST_END_S
        hashed = self._larger.finish()
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            log.warning(
                "run %s: the project's code or its Python is not described as a whole: that took more than %g s after "
                "the training's end",
                self.run,
                _LONGEST_END_S,
            )
            self._stop.set()
            self._thread.join(_CANCELLED_S)
        with self._deciding:
            code = self._code
        return ProjectState(
            git_commit=code.commit,
            dirty=code.dirty,
            diff=DIFF if code.diff else None,
            inputs=hashed.files,
            inputs_left_out=hashed.left_out,
            inputs_why=hashed.why,
            python=self._python,
        )

    def _work(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        # It holds for this thread, and for the programs that it starts.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        target = diff_of(self.lease)
        try:
            target.unlink(missing_ok=True)  # of an earlier attempt
            with tempfile.TemporaryDirectory(prefix="code-", dir=self.lease.state) as scratch:
                code = read_code(self.project, Path(scratch), self._stop)
            self._keep(code, target)
        except OSError as error:
            log.warning("run %s: what is not committed is not in the record: %s", self.run, error)
        if self._code.diff and self._code.left_out:
            count = pluralize(self._code.left_out, "changed file is", "changed files are")
            log.info("run %s: %s not in %s; it says which, and why", self.run, count, DIFF)
        self._python = python_of(argv, env, self.project, self._stop)

    def _keep(self, code: Code, target: Path) -> None:
        """Note the code and write its diff, unless it is too late for that: then neither comes home without the other.

        Raises:
            OSError: the diff could not be written; the rest is noted.
        """
        with self._deciding:
            self._code = replace(code, diff=None)
            if code.diff and not self._stop.is_set():
                try:
                    target.write_bytes(code.diff)
                except OSError:
                    target.unlink(missing_ok=True)
                    raise
                self._code = code


def diff_of(lease: Lease) -> Path:
    """Return where what is not committed lies until it comes home."""
    return Path(lease.folder) / DIFF


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return kernel, CPU, memory, GPUs, RamTrain's own version, and the disk that holds `folder`."""
    holding = mount_of(folder.resolve())
    own = _own_code()
    return {
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": describe_gpus(),
        "disk": {
            "source": holding.source,
            "filesystem": holding.fstype,
            "model": disk_model(folder),
        },
        "ramtrain": __version__,
        "ramtrain_commit": own.commit,
        "ramtrain_dirty": own.dirty,
        "snakemake": importlib.metadata.version("snakemake"),
        "ramtrain_python": platform.python_version(),
    }


def disk_model(folder: Path) -> str | None:
    """Return the models of the physical disks that hold `folder`, below partitions, LVM, dm-crypt, md and loop; None
    where they do not tell."""
    device = device_of(folder)
    places = [_BLOCK / name / "device/model" for name in (physical_devices(device) if device else [])]
    models = [place.read_text(encoding="ascii", errors="replace").strip() for place in places if place.exists()]
    return ", ".join(dict.fromkeys(filter(None, models))) or None


def describe_gpus() -> list[dict[str, Any]]:
    """Return name, driver, memory and UUID of each GPU that `nvidia-smi` shows; nothing where it is missing or fails.

    What a GPU does not tell, such as `[N/A]` of memory that is the machine's, is None.
    """
    fields = ("name", "driver_version", "memory.total", "uuid")
    query = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    try:
        answer = run_beside(*query, env=os.environ, stop=threading.Event(), timeout_s=_NVIDIA_SMI_S).decode()
    except CommandError as error:
        log.debug("no GPU is described: %s", error)
        return []
    found = []
    for row in csv.reader(answer.splitlines(), skipinitialspace=True):
        if len(row) == len(fields):
            name, driver, memory_mib, uuid = (None if value.startswith("[") else value.strip() for value in row)
            memory_bytes = int(memory_mib) << 20 if memory_mib and memory_mib.isdigit() else None
            found.append({"name": name, "driver": driver, "memory_bytes": memory_bytes, "uuid": uuid})
    return found


def _own_code() -> Code:
    """Return the commit of RamTrain's checkout, and whether it has changes; nothing where it was installed."""
    try:
        with tempfile.TemporaryDirectory(prefix="ramtrain-") as scratch:
            return read_commit(Path(__file__).resolve().parents[2], _OWN_CODE, Path(scratch))
    except (CommandError, OSError) as error:
        log.debug("RamTrain's commit is not known: %s", error)
        return Code(None, None)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
