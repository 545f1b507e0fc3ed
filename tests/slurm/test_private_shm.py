"""Nodes that give each job a /dev/shm and a /tmp of its own, with SLURM's job_container/tmpfs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
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


def release_held(sweep: Sweep) -> None:
    """Let go on what SLURM 22.05 holds: it may fail to make a job its place while it clears away another's."""
    while sweep.submitter and sweep.submitter.poll() is None:
        for line in sweep.cluster.ask("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines():
            if "held" in line:
                subprocess.run(["scontrol", "release", line.split()[0]], check=False)
        time.sleep(1)


def test_a_sweep_needs_nothing_of_ram_that_others_see(sweep: Sweep) -> None:
    sweep.configure(["0.1", "0.2"])
    # On a busy machine SLURM 22.05 may start a job before its place is made, and the job fails at once.
    sweep.start("--jobs", "1", "--retries", "5", pause_s=0.8)
    releasing = threading.Thread(target=release_held, args=(sweep,))
    releasing.start()
    try:
        first = sweep.until(lambda: [path.parents[2].name for path in sweep.checkpoints("*")], within_s=150)[0]
        subprocess.run(["scancel", sweep.job_of(first)], check=True)
        assert sweep.wait(within_s=300) == 0, sweep.said()
    except AssertionError:
        if "container_p_join" in (sweep.cluster.root / "slurmd.log").read_text(errors="replace"):
            pytest.skip("SLURM itself has failed to make jobs their place (container_p_join), time and again")
        raise
    releasing.join()
    records = {run: sweep.record(run) for run in ("lr=0.1", "lr=0.2")}
    assert {record["ramdisk"]["backend"] for record in records.values()} == {"tmpfs"}
    assert [run for run, record in records.items() if record["protection"]["resumed_from"]] == [first]
    sweep.check_node()
