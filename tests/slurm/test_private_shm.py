"""Nodes that give each job a /dev/shm and a /tmp of its own, with SLURM's job_container/tmpfs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import REPO

if TYPE_CHECKING:
    from onenode import Sweep

pytest_plugins = ["onenode"]


@pytest.fixture(scope="module")
def lines() -> Sequence[str]:
    if any(Path(place).is_relative_to("/tmp") for place in (REPO, sys.executable)):
        pytest.skip("needs a checkout outside /tmp: jobs have a /tmp of their own")
    return "JobContainerType=job_container/tmpfs", "PrologFlags=Alloc,Contain"


def test_a_sweep_needs_nothing_of_ram_that_others_see(sweep: Sweep) -> None:
    sweep.configure(["0.1", "0.2"])
    # One at a time: SLURM 22.05 may fail to make two such jobs their places at once.
    sweep.start("--jobs", "1", "--retries", "1", pause_s=0.8)
    first = sweep.until(lambda: [path.parents[2].name for path in sweep.checkpoints("*")])[0]
    subprocess.run(["scancel", sweep.job_of(first)], check=True)
    assert sweep.wait() == 0, sweep.said()
    records = {run: sweep.record(run) for run in ("lr=0.1", "lr=0.2")}
    assert {record["ramdisk"]["backend"] for record in records.values()} == {"tmpfs"}
    assert [run for run, record in records.items() if record["protection"]["resumed_from"]] == [first]
    sweep.check_node()
