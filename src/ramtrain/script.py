"""What the workflow's scripts share: logging in one place, and errors that a user can read."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ramtrain import caller, progress, remedy
from ramtrain.config import Run, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.failure import forget_failure, note_failure
from ramtrain.lease import ram_root
from ramtrain.ledger import at_work
from ramtrain.plain import printable
from ramtrain.redact import redact_text
from ramtrain.sizing import all_sized

log = logging.getLogger(__name__)


@contextmanager
def script(snakemake: Any) -> Iterator[Run]:
    """Give a script the settings of its run; messages go to its log file and to the terminal.

    A `RamTrainError`, or what the system says of a file, ends the script with its text and status 1. Anything else is
    a defect and shows its traceback.
    """
    run = snakemake.wildcards.run
    comfort = "" if snakemake.rule == "unmount_run" else f"{remedy.kept()} "
    if caller.job() and snakemake.rule in ("export_model", "unmount_run"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job that is told to end lets the model come home first
    with messages(snakemake, f"run {run}", "train", comfort, partial(note_failure, run, snakemake.rule)):
        runs = load_runs(snakemake.config, workflow_home(snakemake), run)
        if run not in runs:
            raise RamTrainError(
                f"run {run}: is no longer in the runs table. {remedy.kept('Its RAM disk stays.')} Put the row back, "
                f"and type `{caller.command('train')}`."
            )
        forget_failure(run)
        state = ram_root(Path.cwd()) / run
        with at_work(state) if state.is_dir() else nullcontext():
            yield all_sized(runs, Path.cwd(), snakemake.resources.ramdisk_mb)[run]


@contextmanager
def script_of_all(snakemake: Any, target: str) -> Iterator[dict[str, Run]]:
    """Give a script that is no single run's the settings of all; likewise.

    Args:
        target: what is typed to run it again.
    """
    with messages(snakemake, target, target):
        runs = load_runs(snakemake.config, workflow_home(snakemake))
        yield all_sized(runs, Path.cwd(), snakemake.resources.ramdisk_mb)


@contextmanager
def messages(
    snakemake: Any,
    what: str,
    target: str,
    comfort: str = "",
    note: Callable[[BaseException], None] = lambda error: None,
) -> Iterator[None]:
    """Have a script say in one message what is wrong, and end with status 1; it needs no settings.

    Args:
        what: whose message it is.
        target: what is typed to run it again.
        comfort: what is not lost.
        note: keeps what was wrong, once it is said.
    """
    log_to(Path(snakemake.log[0]))
    try:
        yield
    except RamTrainError as error:
        log.error("%s", error)
        note(error)
        sys.exit(1)
    except OSError as error:
        log.error("%s: %s. %sWhen the cause is mended, type `%s`.", what, error, comfort, caller.command(target))
        note(error)
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("%s: interrupted. To go on, type `%s`.", what, caller.command(target))
        note(KeyboardInterrupt("it was interrupted"))
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        note(error)
        raise


def workflow_home(snakemake: Any) -> Path:
    """Return the folder that holds the Snakefile, from a script in its folder `scripts`."""
    return Path(snakemake.scriptdir).resolve().parent


class _Formatter(logging.Formatter):
    """A message may quote a command, what a trainer said, or how it named a file: secrets are left out, and nothing of
    it moves a terminal's cursor."""

    def __init__(self, form: str, start: str = "") -> None:
        super().__init__(form)
        self.start = start

    def format(self, record: logging.LogRecord) -> str:
        return self.start + printable(redact_text(super().format(record), code=True))


def log_to(path: Path) -> None:
    """Send messages to the terminal, and to `path` with time and level, those of progress left out; without secrets.

    A training says every few seconds where it is; on the disk that would be what a RAM disk is there to spare.
    """
    terminal = logging.StreamHandler()
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a live line may stand there
    terminal.setFormatter(_Formatter("%(message)s", clear))
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    file.addFilter(lambda record: record.name != progress.log.name)
    logging.basicConfig(level=logging.INFO, handlers=[terminal, file])
