"""Progress of copies and trainings: one live line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from humanfriendly import format_size
from tqdm import tqdm

from ramtrain.plain import without_colours
from ramtrain.sighting import Sighting

log = logging.getLogger(__name__)

_LINE_EVERY_S = 5.0
_LINE_ENDS = re.compile(r"[\r\n]")  # a bar such as tqdm's is drawn again and again after a \r
# A line that is longer tells no progress; its end is looked at.
_LONGEST_LINE = 64 << 10


class CopyProgress:
    """Files, bytes, rate and time left of one copy."""

    def __init__(self, what: str, total_files: int, total_bytes: int) -> None:
        self.what = what
        self.total_files = total_files
        self.files = 0
        self.bar = tqdm(
            total=total_bytes,
            desc=what,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.total_bytes = total_bytes
        self.bytes = 0
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> CopyProgress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.bar.close()

    def add(self, files: int, size_bytes: int) -> None:
        """Count `files` and `size_bytes` more as copied."""
        self.files += files
        self.bytes += size_bytes
        if not self.bar.disable:
            self.bar.set_postfix_str(f"{self.files}/{self.total_files} files", refresh=False)
            self.bar.update(size_bytes)
        elif time.monotonic() - self.last_line >= _LINE_EVERY_S:
            self.last_line = time.monotonic()
            log.info("%s: %s", self.what, self._line())

    def _line(self) -> str:
        rate = self.bytes / (time.monotonic() - self.started)
        left = tqdm.format_interval((self.total_bytes - self.bytes) / rate) if rate else "?"
        return (
            f"{self.files}/{self.total_files} files, {format_size(self.bytes, binary=True)} of "
            f"{format_size(self.total_bytes, binary=True)}, {format_size(rate, binary=True)}/s, {left} left"
        )


class TrainingProgress:
    """What a trainer's output says of its progress, told in brief.

    Args:
        patterns: regular expressions with one group each, such as those of an adapter's `progress`.
    """

    def __init__(self, what: str, patterns: Mapping[str, re.Pattern[str]]) -> None:
        self.what = what
        self.patterns = patterns
        self.latest: dict[str, str] = {}
        self.told = ""
        self.rest = ""
        self.live = sys.stderr.isatty()
        self.last_line = time.monotonic()

    def feed(self, output: str) -> None:
        """Take in more of the trainer's output, not necessarily whole lines."""
        *lines, rest = _LINE_ENDS.split(self.rest + output)
        self.rest = rest[-_LONGEST_LINE:]
        for line in lines:
            plain = without_colours(line[-_LONGEST_LINE:])
            for name, pattern in self.patterns.items():
                if found := pattern.search(plain):
                    self.latest[name] = found.group(1)

    def tell(self, sighting: Sighting) -> None:
        """Say where the training is: at once on a terminal, else when there is news, every few seconds at most."""
        if self.live:
            self._show(f"{self.what}: {sighting.line()}")
        elif sighting.where != self.told and time.monotonic() - self.last_line >= _LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.told = sighting.where
            log.info("%s: %s", self.what, sighting.where)

    def close(self) -> None:
        """Clear the live line."""
        if self.live:
            self._show("")

    def _show(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be cleared
        try:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        except OSError:
            self.live = False  # the terminal is gone; the training is not
