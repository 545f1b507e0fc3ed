"""What happened in the course of a training: one line a second, kept in RAM until it comes home with the log."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ramtrain.ramdisk import Lease

log = logging.getLogger(__name__)

SERIES = "series.tsv"


def series_of(lease: Lease) -> Path:
    """Return where a run's series is kept: in RAM, also where its data is not."""
    return Path(lease.state) / SERIES


@dataclass(frozen=True)
class Sample:
    """A moment of a training, `t_s` seconds after its beginning.

    What the RAM disk holds, and the machine's memory that is in use; since the beginning, what the trainer gave to
    write calls and what of it went to the disk, what durable checkpoints wrote, what the disk's device was given by all
    processes (None: it has no counter), what the machine swapped out; how many complete checkpoints there were, and how
    many were brought home.
    """

    t_s: float
    ram_bytes: int
    memory_bytes: int
    logical_bytes: int
    disk_bytes: int
    drain_bytes: int
    device_bytes: int | None
    swap_bytes: int
    checkpoints: int
    drains: int


class Series:
    """A table of samples, tab-separated, each with what the trainer's output had said last (`progress.<name>`)."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path, self.names = path, list(names)
        header = [*(field.name for field in fields(Sample)), *(f"progress.{name}" for name in self.names)]
        self._add(header, "w")

    def add(self, sample: Sample, progress: Mapping[str, str]) -> None:
        """Add a moment; what a full RAM disk has no room for is left out."""
        self._add([*astuple(sample), *(progress.get(name, "") for name in self.names)], "a")

    def _add(self, row: list[object], mode: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t", lineterminator="\n").writerow(row)
        except OSError as error:
            log.debug("%s: %s", self.path, error)
