"""Ask a trainer that can look, before anything is mounted, whether it could train."""

from __future__ import annotations

import shlex
import subprocess

from ramtrain import caller
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.redact import redact_arguments

_LOOK_S = 120.0


def check(run: Run) -> None:
    """Run the command with what the adapter adds for it to look only, in the project; nothing, if it adds nothing.

    Raises:
        RamTrainError: it says that it cannot train, cannot be started, or takes more than two minutes.
    """
    if not run.trainer.check:
        return
    place = str(run.project)
    argv = [*run.arguments(ram=place), *run.trainer.check]
    env = caller.environment() | run.trainer.environment | run.variables(ram=place)
    said = f"run {run.run}: `{shlex.join(redact_arguments(argv))}`"
    try:
        done = subprocess.run(
            argv,
            cwd=place,
            env={**env, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LOOK_S,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise RamTrainError(f"{said} cannot be started: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise RamTrainError(f"{said} has not ended within {_LOOK_S:g} s.") from None
    if done.returncode != 0:
        raise RamTrainError(
            f"run {run.run}: {done.stdout.strip() or f'{said} ended with status {done.returncode} and said nothing.'}"
        )
