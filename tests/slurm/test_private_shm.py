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
    sweep.configure(["0.1", "0.2", "0.3"])
    sweep.start(pause_s=0.8)
    cut_off = sweep.job_of("lr=0.1")
    subprocess.run(["scancel", cut_off], check=True)
    assert sweep.wait() != 0
    for lr in ("0.2", "0.3"):
        assert sweep.record(f"lr={lr}")["ramdisk"]["backend"] == "tmpfs"
    sweep.start()
    assert sweep.wait() == 0, sweep.said()
    assert sweep.record("lr=0.1")["protection"]["resumed_from"]
    sweep.check_node()
