"""What a job of a cluster says of its run where others see it: results/<run>/job.json, at most once a minute."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramtrain import caller, slurm
from ramtrain.durable import make_folders, write_json
from ramtrain.errors import RamTrainError
from ramtrain.lease import Lease
from ramtrain.shelf import RESULTS, home
from ramtrain.sighting import Sighting
from ramtrain.slurm import Job

log = logging.getLogger(__name__)

EVERY_S = 60.0
_NOTE = "job.json"


@dataclass(frozen=True)
class Note:
    """What was said last: of which job, the RAM disk's lease, and what was seen of the training, if it has begun."""

    job: Job
    lease: Lease
    sighting: Sighting | None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Note:
        """Return the note that `asdict` made `content` of."""
        sighting = content["sighting"]
        return cls(Job(**content["job"]), Lease.from_dict(content["lease"]), sighting and Sighting(**sighting))


class Teller:
    """Tells of a run now and then; does nothing where it is in no job."""

    def __init__(self, run: str, lease: Lease) -> None:
        self.run, self.lease = run, lease
        self._next_s = 0.0

    def tell(self, sighting: Sighting | None, at_once: bool = False) -> None:
        """Note what was seen, if that is due. A file system that does not take it changes nothing."""
        now = time.monotonic()
        if self.lease.job is None or not (at_once or now >= self._next_s):
            return
        self._next_s = now + EVERY_S
        try:
            make_folders(home(self.run))
            write_json(_path(self.run), asdict(Note(self.lease.job, self.lease, sighting)))
        except OSError as error:
            log.warning("run %s: where it is could not be noted: %s", self.run, error)


def check_alone(run: str) -> None:
    """Check that no other job works on the run: after a `kill -9` of the Snakemake that sent it, it goes on.

    Raises:
        RamTrainError: one does.
    """
    note, job = read(_path(run)), caller.job() or slurm.this_job()
    if note and (job is None or note.job.id != job.id) and slurm.is_alive(note.job.id):
        raise RamTrainError(
            f"run {run}: job {note.job.id} on node {note.job.node} still works on it; wait until it has ended, or end "
            f"it with `scancel {note.job.id}`, then type `{caller.command('train')}`."
        )


def forget(run: str) -> None:
    """Remove the note: the run has ended, and its record says the rest."""
    _path(run).unlink(missing_ok=True)


def notes() -> list[Note]:
    """Return what the jobs of this working directory have said last."""
    return [note for path in sorted(RESULTS.glob(f"*/{_NOTE}")) if (note := read(path))]


def read(path: Path) -> Note | None:
    """Return a note; None if nothing that can be read is there."""
    try:
        return Note.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _path(run: str) -> Path:
    return home(run) / _NOTE
