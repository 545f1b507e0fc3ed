"""What was last seen of a training: noted in RAM every second, and beside its durable checkpoints now and then."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from humanfriendly import format_size
from tqdm import tqdm

from ramtrain.durable import write_json

SIGHTING = "sighting.json"


@dataclass(frozen=True)
class Sighting:
    """A training as it was seen at `seen_s`; times in seconds since the epoch.

    `progress` is what its output said last, `checkpoints` what it had said when each of them was complete. `newest` is
    the newest complete checkpoint, of `newest_s`; `durable` the newest durable one. `safe_s` is up to when the training
    is on the disk. `kept_off_bytes` were given to write calls and did not go to the disk, what was drained and spilled
    taken off. `paused` says why the guard has stopped the trainer for the moment.
    """

    seen_s: float
    started_s: float
    has_ended: bool
    progress: dict[str, str]
    checkpoints: dict[str, dict[str, str]]
    newest: str | None
    newest_s: float | None
    durable: str | None
    safe_s: float
    max_loss_s: float | None
    worst_loss_s: float
    used_bytes: int
    kept_off_bytes: int
    paused: str | None = None

    def write(self, path: Path) -> None:
        """Note it: the earlier one or this one, whole."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Sighting | None:
        """Return what was noted; None if nothing that can be read was."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def where(self) -> str:
        """Where the training is, in words; empty if its output does not tell."""
        return ", ".join(f"{name} {value}" for name, value in self.progress.items())

    def line(self) -> str:
        """Return what matters in one line, the most important first."""
        elapsed, lost = (tqdm.format_interval(seconds) for seconds in (self.seen_s - self.started_s, self.at_stake_s))
        bound = "no bound" if self.max_loss_s is None else f"of {tqdm.format_interval(self.max_loss_s)}"
        used, kept_off = (format_size(size, binary=True) for size in (self.used_bytes, self.kept_off_bytes))
        paused = f"PAUSED: {self.paused}" if self.paused else ""
        parts = [
            paused,
            f"{elapsed}, at stake {lost} {bound}",
            self.where,
            f"{used} in RAM, {kept_off} kept off the disk",
        ]
        return " | ".join(filter(None, parts))

    @property
    def at_stake_s(self) -> float:
        """How much training, in seconds, a power cut would have cost when it was seen."""
        return max(0.0, self.seen_s - self.safe_s)
