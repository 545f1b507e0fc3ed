"""Waiting for what other runs hold, until it is there, or until somebody asks to end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from ramtrain import caller
from ramtrain.errors import RamTrainError

_POLL_S = 1.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, caller.TOLD_TO_END)

Found = TypeVar("Found")


class _ToldToEnd(BaseException):
    """No `Exception`: what happens to be at work must not take it for its own, as a handler of `logging` would."""


def wait_for(run: str, what: str, attempt: Callable[[], Found | None]) -> Found:
    """Try again and again until there is something; return it.

    Args:
        run: who waits, for the message.
        what: for what.
        attempt: returns None if it is not there yet.

    Raises:
        RamTrainError: it was told to end while it waited.
    """
    with ended_promptly(run, what):
        while (found := attempt()) is None:
            if caller.has_ended():
                raise RamTrainError(f"run {run}: Snakemake ended while it waited for {what}.")
            time.sleep(_POLL_S)
        return found


@contextlib.contextmanager
def ended_promptly(run: str, what: str) -> Iterator[None]:
    """Have the first signal to end raise a RamTrainError, which ends the wait; a second, of the same Ctrl-C, does not.

    Raises:
        RamTrainError: it was told to end.
    """
    told: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:
            raise _ToldToEnd

    heeded = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    except _ToldToEnd:
        by = "a signal to Snakemake" if told[0] == caller.TOLD_TO_END else signal.Signals(told[0]).name
        raise RamTrainError(
            f"run {run}: {by} while it waited for {what}; nothing was started. To go on, type "
            f"`{caller.command('train')}`."
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
