"""Ask a trainer that can look, before anything is mounted, whether it could train."""

from __future__ import annotations

import os
import shlex
import signal
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
        status, output = _look(argv, place, {**env, "PYTHONDONTWRITEBYTECODE": "1"})
    except OSError as error:
        raise RamTrainError(f"{said} cannot be started: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise RamTrainError(f"{said} has not ended within {_LOOK_S:g} s.") from None
    if status != 0:
        raise RamTrainError(
            f"run {run.run}: {output.strip()}"
            if output.strip()
            else f"{said} ended with status {status} and said nothing."
        )


def _look(argv: list[str], folder: str, env: dict[str, str]) -> tuple[int, str]:
    """Return how the command ended, and what it said; nothing of it stays if it takes too long, or is interrupted."""
    with subprocess.Popen(
        argv,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        try:
            output, _ = process.communicate(timeout=_LOOK_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output
