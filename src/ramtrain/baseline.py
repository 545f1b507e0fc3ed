"""What a project writes and takes without a RAM disk, as `benchmark_io` measured it, for the records of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramtrain.redact import redact_arguments

BASELINE = "benchmark_io.json"


@dataclass(frozen=True)
class Baseline:
    """What a run writes and takes without a RAM disk, medians of `pairs`, and the same with it beside.

    It holds for other runs of the same project and command, whatever the values in it.
    """

    run: str
    project: str
    command: list[str]
    measured: str
    pairs: int
    wall_s: float
    with_ram_wall_s: float
    logical_bytes: int
    disk_bytes: int
    device_bytes: int | None
    with_ram_device_bytes: int | None

    def holds_for(self, project: Path, command: Sequence[str]) -> bool:
        """Whether it was measured for the same project, an absolute path, and command, with its placeholders; a secret
        in that does not count."""
        return (self.project, self.command) == (str(project), redact_arguments(command))


def read_baseline(path: Path, project: Path, command: Sequence[str]) -> Baseline | None:
    """Return the baseline that a benchmark has left, if there is one and it holds for the project and command."""
    if not path.exists():
        return None
    content: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["baseline"]
    baseline = Baseline(**content) if content else None
    return baseline if baseline and baseline.holds_for(project, command) else None
