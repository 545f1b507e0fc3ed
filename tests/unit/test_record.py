"""Records and rescues stay true when something under them has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPO, small_config

from ramtrain import record
from ramtrain.config import complete_config, load_runs
from ramtrain.meter import DiskCounters
from ramtrain.ramdisk import MARK, acquire, ram_root, release
from ramtrain.rescue import leftovers


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (DiskCounters("sda", "ext4", 100, 10), DiskCounters("sda", "ext4", 150, 10), 50),
        (DiskCounters("sda", "ext4", 100, 10), DiskCounters("sda", "ext4", 7, 0), None),
        (DiskCounters("sda", "ext4", 100, 10), DiskCounters("sdb", "ext4", 150, 10), None),
        (DiskCounters(None, "nfs", None, None), DiskCounters(None, "nfs", None, None), None),
    ],
    ids=["written", "rebooted", "another disk", "no counter"],
)
def test_counters_that_cannot_be_compared_give_no_figure(
    before: DiskCounters, after: DiskCounters, expected: int | None
) -> None:
    assert record._difference(after, before, "device_bytes") == expected


def test_one_bad_mark_does_not_hide_the_others(project: Path, workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = complete_config(small_config(project, **{"ramdisk.backend": "shm"}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    lease = acquire(run, workdir)
    bad = ram_root(workdir) / "bad"
    bad.mkdir()
    (bad / MARK).write_text("{}")
    assert list(leftovers(workdir)) == [lease]
    assert "cannot be read; it is left as it is" in caplog.text
    (bad / MARK).unlink()
    bad.rmdir()
    release(lease)
