"""Figures, the table's rows, and what every measurement needs: turns, commands, files, leases."""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramtrain.config import Run, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.ramdisk import Lease, acquire, release

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
MB, GB, MIB, GIB = 10**6, 10**9, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of the table; `ours` and `theirs` are one figure for each round, in `unit`."""

    what: str
    unit: str
    ours: Sequence[float]
    against: str
    theirs: Sequence[float]
    measured: str
    passed: bool
    notes: Sequence[str] = ()

    def cells(self) -> list[str]:
        """Return the row as text."""
        ours, theirs = (in_brief(values, self.unit) for values in (self.ours, self.theirs))
        verdict = "pass" if self.passed else "FAIL"
        return [self.what, str(len(self.ours)), ours, self.against, theirs, self.measured, verdict]


HEADER = ["what", "n", "RamTrain: median (min..max)", "against", "median (min..max)", "measured, limit", ""]


def in_brief(values: Sequence[float], unit: str) -> str:
    """Return median and range."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.3f}"
    return f"{middle} {unit}" if len(values) == 1 else f"{middle} {unit} ({min(values):.3f}..{max(values):.3f})"


def say(text: str) -> None:
    """Show progress."""
    print(text, flush=True)


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let the contenders take turns; return the figures of each, all of them."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figures[name].append(contenders[name]())
        turn = ", ".join(f"{name} {figures[name][-1]:.3f}" for name in names)
        say(f"  round {number + 1}: {turn} (load {os.getloadavg()[0]:.1f})")
    return figures


def call(
    argv: Sequence[str | Path], folder: Path, output: Path | None = None, env: Mapping[str, str] = ENVIRONMENT
) -> float:
    """Run a command in `folder`; return its seconds.

    Raises:
        RamTrainError: it failed.
    """
    with open(output or os.devnull, "ab") as file:
        started = time.monotonic()
        done = subprocess.run(
            argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        )
        took_s = time.monotonic() - started
    if done.returncode != 0:
        raise RamTrainError(f"{argv[0]} ended with status {done.returncode}" + (f", see {output}" if output else ""))
    return took_s


def settle(folder: Path) -> None:
    """Bring the file system of `folder` to rest, so that no contender pays for what was written or deleted before."""
    call(["sync", "-f", folder], folder)


def claim_memory() -> None:
    """Use 3 GiB and free them: a hypervisor may have taken free memory back, which the first to ask for it pays for."""
    memory = mmap.mmap(-1, 3 * GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    memory.close()


def fill(path: Path, size_bytes: int) -> None:
    """Write a file of random bytes."""
    with path.open("wb") as file:
        for start in range(0, size_bytes, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, size_bytes - start)))


def fill_small(folder: Path, count: int, size_bytes: int) -> None:
    """Write `count` small files, a hundred to a folder."""
    for number in range(count):
        if number % 100 == 0:
            (folder / f"{number // 100:04}").mkdir(parents=True)
        (folder / f"{number // 100:04}" / f"{number:06}.bin").write_bytes(os.urandom(size_bytes))


def set_cached(folder: Path, cached: bool) -> None:
    """Bring all files of `folder` into the page cache, or drop their (clean) pages from it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb", buffering=0) as file:
                if not cached:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while cached and file.read(8 * MIB):
                    pass


@contextlib.contextmanager
def leased(project: Path, staging: str) -> Iterator[tuple[Run, Lease]]:
    """Give a run of `project` and its RAM disk of 4 GiB."""
    config = {
        "project": {"path": str(project), "command": [sys.executable], "model": ["*"]},
        "ramdisk": {"size": "4G"},
        "staging": staging,
    }
    [run] = load_runs(complete_config(config, REPO, "bench"), REPO).values()
    lease = acquire(run, project.parent)
    claim_memory()
    try:
        yield run, lease
    finally:
        release(lease)


def versus(
    what: str, ours_s: Sequence[float], against: str, theirs_s: Sequence[float], limit: float, notes: Sequence[str]
) -> Row:
    """Return a row that is judged by the ratio of the medians."""
    ratio = statistics.median(ours_s) / statistics.median(theirs_s)
    measured = f"{ratio:.3f} x its time, limit {limit:.2f} x"
    return Row(what, "s", ours_s, against, theirs_s, measured, ratio <= limit, notes)
