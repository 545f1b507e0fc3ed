"""Why a run failed, kept in its results until it is tried again: for the table of the runs."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ramtrain.clock import stamp
from ramtrain.durable import make_folders, write_json
from ramtrain.redact import redact_text
from ramtrain.shelf import home

log = logging.getLogger(__name__)

_FAILURE = "failure.json"


@dataclass(frozen=True)
class Failure:
    """How a run failed, or was interrupted (`status`): in which step, when (ISO, UTC), and why, in one line."""

    step: str
    ended: str
    reason: str
    status: str = "failed"


def note_failure(run: str, step: str, error: BaseException) -> None:
    """Keep why a step of a run failed. A disk that does not take the note changes nothing: the log has it as well."""
    text = str(getattr(error, "reason", error)) or type(error).__name__
    reason = " ".join(text.splitlines()[0].split()).removeprefix(f"run {run}: ")
    was_told = isinstance(error, KeyboardInterrupt) or getattr(error, "was_told", False)
    failure = Failure(step, stamp(), redact_text(reason), "interrupted" if was_told else "failed")
    try:
        make_folders(home(run))
        write_json(_path(run), asdict(failure))
    except OSError as trouble:
        log.warning("run %s: why it failed is not in the table of the runs: %s", run, trouble)


def forget_failure(run: str) -> None:
    """Remove the note: the run is tried again."""
    with suppress(FileNotFoundError):
        _path(run).unlink()


def read_failure(run: str) -> Failure | None:
    """Return why the run failed when it was last tried; None if it did not."""
    try:
        return Failure(**json.loads(_path(run).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s: cannot be read: %s", _path(run), error)
        return None


def _path(run: str) -> Path:
    return home(run) / _FAILURE
