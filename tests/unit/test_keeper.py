"""Whom a trainer's signal to end reaches."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ramtrain.keeper import Stop, send

# As PyTorch's loader: it takes the death of a worker for a failure.
TRAINER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
worker = os.fork()
if worker == 0:
    time.sleep(60)
    os._exit(0)
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("training", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    died, deadline = 0, time.monotonic() + 2
    while not died and time.monotonic() < deadline:
        time.sleep(0.02)
        died, _ = os.waitpid(worker, os.WNOHANG)
    print("the worker died" if died else "saved", flush=True)
    if not died:
        os.kill(worker, signal.SIGKILL)
"""


@pytest.fixture(params=[[], ["sh", "-c", '"$@"; exit 3', "sh"]], ids=["python", "shell"])
def trainer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    argv = [*request.param, sys.executable, str(script)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    yield process
    for left in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # the signal has just ended it
            left.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(("to", "said"), [("python", "saved\n"), ("group", "the worker died\n")])
def test_a_signal_goes_to_the_python_program_alone_or_to_all(
    to: str, said: str, trainer: subprocess.Popen[str]
) -> None:
    send(trainer.pid, Stop(signal.SIGINT, 10.0, to))
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == said


def test_where_there_is_no_python_all_get_it() -> None:
    with subprocess.Popen(["sleep", "60"], process_group=0) as process:
        send(process.pid, Stop(signal.SIGTERM, 10.0, "python"))
        assert process.wait() == -signal.SIGTERM
