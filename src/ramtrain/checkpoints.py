"""Which of a trainer's checkpoints are whole, and how it goes on from the newest."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path, PurePosixPath

from ramtrain.config import Run, fill_placeholders
from ramtrain.staging import Stage

log = logging.getLogger(__name__)

_ZIP_START = b"PK\3\4"


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's end is there: of a zip file, as PyTorch writes it, the directory comes last.

    Of other kinds of files nothing is known but that they are not empty.
    """
    with checkpoint.open("rb") as file:
        start = file.read(len(_ZIP_START))
    return zipfile.is_zipfile(checkpoint) if start == _ZIP_START else bool(start)


def find_resume(run: Run, stage: Stage) -> tuple[str | None, list[str]]:
    """Return the newest whole checkpoint of an earlier attempt and the arguments that resume it; (None, []) if none.

    One that was cut short is renamed to end in `.incomplete`, out of the trainer's sight: the Coqui Trainer takes the
    newest by name and dies of it.
    """
    if run.trainer.resume is None:
        return None, []
    whole = []
    for path in stage.written([run.trainer.resume.checkpoint]):
        real = Path(stage.layers[0]) / path
        if is_whole(real):
            whole.append((real.stat().st_mtime_ns, path))
        else:
            log.warning("run %s: %s was cut short; it is set aside as %s.incomplete", run.run, path, real.name)
            real.rename(real.with_name(f"{real.name}.incomplete"))
    if not whole:
        return None, []
    _, newest = max(whole)
    values = {"folder": str(PurePosixPath(newest).parent), "checkpoint": newest}
    return newest, fill_placeholders(run.trainer.resume.arguments, values)
