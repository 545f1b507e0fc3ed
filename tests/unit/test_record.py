"""Records and rescues stay true when something under them has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPO, small_config

from ramtrain.config import complete_config, load_runs
from ramtrain.ramdisk import MARK, acquire, ram_root, release
from ramtrain.rescue import leftovers


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
