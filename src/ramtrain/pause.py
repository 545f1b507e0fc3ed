"""A trainer stopped, with all its processes, for as long as something is done that it must not run into."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

_STOP_WAIT_S = 1.0
_STOPPED_STATES = "TtZX"  # proc_pid_stat(5)


class Pause:
    """Stops the trainer and lets it go on; `why` says why it is stopped, None while it runs.

    Args:
        trainer: the process id of its first process.
        processes: all of them.
    """

    def __init__(self, trainer: int, processes: Callable[[], list[psutil.Process]]) -> None:
        self._trainer = os.pidfd_open(trainer)
        self._processes = processes
        self._stopped: list[psutil.Process] = []
        self._since_s = 0.0
        self._is_forbidden = False
        self._lock = threading.Lock()
        self.why: str | None = None

    def begin(self, why: str) -> int:
        """Stop all processes, again until there is none that one has just made; return how many. 0: it cannot be, since
        it has ended, is another user's, or is to end."""
        with self._lock:
            if self._is_forbidden or not self._signal(signal.SIGSTOP):
                return 0
            self.why, self._since_s = why, time.monotonic()
            known: set[int] = set()
            while running := [process for process in self._processes() if process.pid not in known]:
                for process in running:
                    known.add(process.pid)
                    with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
                        process.suspend()
                        self._stopped.append(process)
                _wait_until_stopped(running)
            return len(self._stopped)

    def end(self) -> float:
        """Let all go on; return for how long they were stopped, in seconds."""
        with self._lock:
            if self.why is None:
                return 0.0
            for process in reversed(self._stopped):
                with contextlib.suppress(psutil.Error):
                    process.resume()
            self._signal(signal.SIGCONT)
            self._stopped, self.why = [], None
            return time.monotonic() - self._since_s

    def forbid(self) -> float:
        """Let all go on, for good; return for how long they were stopped."""
        self._is_forbidden = True
        return self.end()

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Keep it from ending meanwhile; gives whether the trainer is stopped."""
        with self._lock:
            yield self.why is not None

    def close(self) -> None:
        """Let all go on, and be done with it."""
        self.forbid()
        os.close(self._trainer)

    def _signal(self, number: signal.Signals) -> bool:
        """Send the first process a signal, which takes no look at all processes; return whether it could be."""
        try:
            signal.pidfd_send_signal(self._trainer, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _wait_until_stopped(processes: list[psutil.Process]) -> None:
    """Wait until no thread is in the midst of a system call; one that waits for a disk may take longer than we do."""
    deadline = time.monotonic() + _STOP_WAIT_S
    while not all(_is_stopped(process.pid) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.001)


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended
        for status in Path(f"/proc/{pid}/task").glob("*/stat"):
            if status.read_text(errors="replace").rpartition(")")[2].split()[0] not in _STOPPED_STATES:
                return False
    return True
