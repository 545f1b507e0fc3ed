"""Durable checkpoints on their way to the store, beside a training: the newest one, never a queue of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from humanfriendly import format_size

from ramtrain import shelf
from ramtrain.beside import Beside, Cancelled
from ramtrain.config import Run
from ramtrain.durable import Changed
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.shelf import DurableCheckpoint
from ramtrain.store import Store
from ramtrain.stored import store_checkpoint

log = logging.getLogger(__name__)

_TICK_S = 0.5
_RETRY_S = 30.0


class Courier(Beside):
    """Takes each durable checkpoint to the store that is the newest when the one before has arrived; first what an
    earlier attempt has left, if that is not there.

    `arrived` is the name of the last one that did.

    Args:
        fingerprint: waits until it is known, and returns it.
    """

    def __init__(self, run: Run, fingerprint: Callable[[], Fingerprint]) -> None:
        super().__init__("courier")
        self.run, self.fingerprint = run, fingerprint
        self.arrived: str | None = None
        self._done: str | None = None
        self._retry_s = 0.0
        self._told: type[BaseException] | None = None

    def _work(self) -> None:
        try:
            while not self._stop.wait(_TICK_S):
                if time.monotonic() >= self._retry_s:
                    self._take_newest()
            if self._with_newest:
                self._take_newest(is_last=True)
        except Exception:
            log.exception(
                "run %s: no more checkpoints are copied to the store, a defect of RamTrain; the training goes on",
                self.run.run,
            )

    def _take_newest(self, is_last: bool = False) -> None:
        newest = max(shelf.shelf(self.run.run).glob("[0-9]*"), default=None)
        if newest is None or newest.name == self._done:
            return
        try:
            durable = shelf.read_durable(newest)
        except RamTrainError:
            return  # a newer one has come home in its place
        try:
            if not self.fingerprint().changes(durable.fingerprint):
                self._take(durable)
            self._done, self._told = newest.name, None
        except Cancelled:
            pass
        except Changed as error:
            if newest.exists():  # likewise
                self._done = newest.name
                self._tell(error, newest.name, "the next one is tried", is_last)
        except (OSError, RamTrainError) as error:
            self._tell(error, newest.name, "it is tried again", is_last)

    def _take(self, durable: DurableCheckpoint) -> None:
        began_s, address = time.monotonic(), self.run.store
        store_checkpoint(durable, self.run, Store(address), lambda *_: self._stop_if_cancelled())
        self.arrived = durable.folder.name
        log.info(
            "run %s: the durable checkpoint %s, %s, is in %s too, in %.1f s",
            self.run.run,
            durable.folder.name,
            format_size(durable.size_bytes, binary=True),
            address.url,
            time.monotonic() - began_s,
        )

    def _tell(self, error: Exception, name: str, then: str, is_last: bool) -> None:
        """Warn once of what keeps failing: which object it was at may change each time."""
        self._retry_s = time.monotonic() + _RETRY_S
        kind = type(error.__cause__ or error)
        if is_last:
            log.warning("run %s: %s. The durable checkpoint %s is at home alone", self.run.run, error, name)
        elif kind is not self._told and not self._stop.is_set():
            log.warning("run %s: %s. The training goes on, and %s", self.run.run, error, then)
        self._told = kind
