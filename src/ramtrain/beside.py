"""What is done in a thread of its own beside a training, and how it is told that the training has ended."""

from __future__ import annotations

import threading

from ramtrain.errors import RamTrainError


class Cancelled(RamTrainError):
    """It is to end at once."""


class Beside:
    """Work with the newest checkpoint beside a trainer, from `start` to `finish`: what `_work` does."""

    def __init__(self, name: str) -> None:
        self._with_newest = False
        self._stop, self._cancel, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, with_newest: bool) -> None:
        """Have it end, now that the trainer has; with what it does for the newest checkpoint, if that is wanted."""
        self._with_newest = with_newest
        if not with_newest:
            self._cancel.set()
        self._stop.set()
        self._wake.set()

    def cancel(self) -> None:
        """Have it end at once."""
        self._cancel.set()

    def has_ended(self, wait_s: float) -> bool:
        """Wait up to `wait_s` for its end; return whether it came."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled

    def _work(self) -> None:
        raise NotImplementedError
