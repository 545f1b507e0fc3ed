"""A power cut at any moment: no half-written file has a final name, nothing that was promised is gone, it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import needs_root
from power_cut import KINDS, power_cuts

SNAPSHOTS = 30


@needs_root("mounts loop devices")
@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="needs xfsprogs")
def test_after_a_power_cut_all_is_whole_and_goes_on(tmp_path: Path, resuming: Path) -> None:
    with power_cuts(tmp_path, resuming, SNAPSHOTS, seed=1) as proof:
        proof.run()
        for line in proof.look_over(resumes=len(KINDS)):
            print(line)
    assert len(proof.cuts) >= SNAPSHOTS
    assert not list(tmp_path.glob("store*"))
