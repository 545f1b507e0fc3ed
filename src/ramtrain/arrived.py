"""Which models came home although their job on a cluster ended badly: killed between the export and the record, say.

Snakemake would delete what such a job has made, the note of the export as well; then the training is gone on with, or
begun again, for a model that is at home.
"""

from __future__ import annotations

from collections.abc import Mapping

from ramtrain.config import Run
from ramtrain.export import spoilt_at_home
from ramtrain.fingerprint import fingerprint
from ramtrain.record import Steps
from ramtrain.shelf import export_file


class Arrivals:
    """The exports of some runs, from now on."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = runs
        self.before = {run: _written_ns(run) for run in runs}

    def has(self, run: str) -> bool:
        """Whether the run's model has come home since then, verified: of the training that is asked for, and whole."""
        try:
            steps = Steps.read(export_file(run))
        except (OSError, ValueError, TypeError, KeyError):
            return False
        is_new = _written_ns(run) != self.before[run]
        changes = fingerprint(self.runs[run], None).changes(steps.training.fingerprint)
        return is_new and not changes and not spoilt_at_home(run, steps.export)


def _written_ns(run: str) -> int | None:
    try:
        return export_file(run).stat().st_mtime_ns
    except FileNotFoundError:
        return None
