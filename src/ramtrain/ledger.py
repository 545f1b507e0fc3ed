"""The ledger of promises: no two runs of a user on this machine are promised the same memory, whoever called them.

It is a file in the folder of the user's RAM roots, replaced as a whole under a lock on that folder. A promise is made
to a call of Snakemake. It counts while that call works on the run, and then only as far as the RAM disk does not hold
it yet: what is in it is no longer free anyway. One whose RAM disk is gone is dead, and cleaned away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ramtrain.lease import MARK, short_name, used_in
from ramtrain.locks import folder_locked, tidy

log = logging.getLogger(__name__)

_LEDGER = "ledger.json"
# Between two jobs of a run nobody works on it; Snakemake starts the next one within a second or so.
_BETWEEN_JOBS_S = 30.0


@dataclass(frozen=True)
class Promise:
    """What a run may hold in memory; the first six are its lease's.

    `call` is the process id of the Snakemake that it was made to, `group` the cgroup's folder that is charged, `device`
    (st_dev) the file system that it shares with others, such as /dev/shm; None for a tmpfs of its own.
    """

    workdir: str
    run: str
    token: str
    state: str
    folder: str
    backend: str
    promised_bytes: int
    call: int
    group: str | None
    device: int | None


@dataclass(frozen=True)
class Standing:
    """A promise as it stands now: what its RAM disk holds, and whether somebody works on the run."""

    promise: Promise
    held_bytes: int
    is_at_work: bool

    @property
    def owed_bytes(self) -> int:
        """What the run may still take of what is free."""
        return max(0, self.promise.promised_bytes - self.held_bytes) if self.is_at_work else 0


@contextlib.contextmanager
def at_work(state: Path) -> Iterator[None]:
    """Let others see that a process works on the run, until it ends; the kernel notices that, however it ends."""
    with _busy_file(state).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(file.fileno())
        try:
            yield
        except BaseException:
            os.utime(file.fileno(), (0, 0))  # its next job is not to be waited for
            raise
        os.utime(file.fileno())


def is_at_work(state: Path) -> bool:
    """Whether a process works on the run, or did a moment ago."""
    try:
        with _busy_file(state).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return time.time() - os.fstat(file.fileno()).st_mtime < _BETWEEN_JOBS_S
    except OSError:
        return False


def forget_work(state: Path) -> None:
    """Remove what `at_work` leaves beside the run's state folder."""
    _busy_file(state).unlink(missing_ok=True)


def _busy_file(state: Path) -> Path:
    return state.with_name(f"busy-{short_name(state)}")


class Ledger:
    """The promises as they stand, to be changed by whoever holds the lock (`opened`)."""

    def __init__(self, standing: list[Standing]) -> None:
        self.standing = standing

    def of(self, state: Path) -> Standing | None:
        """Return the promise to the run with this state folder."""
        return next((entry for entry in self.standing if entry.promise.state == str(state)), None)

    def others(self, state: Path) -> list[Standing]:
        """Return the promises to all other runs."""
        return [entry for entry in self.standing if entry.promise.state != str(state)]

    def note(self, promise: Promise) -> None:
        """Make a promise; an earlier one to the same run is replaced."""
        self.standing = [*self.others(Path(promise.state)), Standing(promise, 0, is_at_work=True)]

    def strike(self, state: Path) -> None:
        """Take a promise back."""
        self.standing = self.others(state)


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Ledger]:
    """Give the ledger in `root`, made if need be, to read and to change; one process at a time."""
    with folder_locked(root):
        ledger = Ledger(_read(root))
        yield ledger
        file = root / _LEDGER
        if ledger.standing:
            new = root / f"{_LEDGER}.new"
            new.write_text(json.dumps([asdict(entry.promise) for entry in ledger.standing], indent=1), encoding="utf-8")
            new.replace(file)
        else:
            file.unlink(missing_ok=True)
            tidy(root)


def standing(root: Path) -> list[Standing]:
    """Return the promises in the ledger that are alive, as they stand now; [] where there is none."""
    if not (root / _LEDGER).exists():
        return []
    with folder_locked(root):
        return _read(root)


def _read(root: Path) -> list[Standing]:
    try:
        content = json.loads((root / _LEDGER).read_text(encoding="utf-8"))
        promises = [Promise(**entry) for entry in content]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s); what it said does not count", root / _LEDGER, error)
        return []
    return [entry for promise in promises if (entry := _stand(promise)) is not None]


def _stand(promise: Promise) -> Standing | None:
    """Return how a promise stands; None if it is dead."""
    state = Path(promise.state)
    working = is_at_work(state)
    if not (state / MARK).exists():
        return Standing(promise, 0, working) if working else None  # it is about to be mounted
    try:
        held_bytes = used_in(Path(promise.folder), promise.backend)
    except OSError:
        return None  # it has just been released
    if promise.backend == "tmpfs":  # just unmounted, it would be all that is in the file system below
        held_bytes = min(held_bytes, promise.promised_bytes)
    return Standing(promise, held_bytes, working)
