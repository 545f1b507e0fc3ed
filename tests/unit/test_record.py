"""Records and rescues stay true when something under them has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config
from samples import whole_record

from ramtrain.config import complete_config, load_runs
from ramtrain.fingerprint import fingerprint
from ramtrain.ramdisk import MARK, acquire, ram_root, release
from ramtrain.redact import redact
from ramtrain.rescue import leftovers, rescue
from ramtrain.schema import complete, load_yaml
from ramtrain.staging import Begun, stage_project


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


@pytest.mark.parametrize("name", ["password_f1", "secret_recall", "api_key_f1", "token", "credentials", "HF_TOKEN"])
def test_a_name_that_a_user_chose_makes_no_record_unfit(name: str) -> None:
    record: dict[str, Any] = whole_record()
    metric = record["metrics"]["loss"]
    record["metrics"] = {name: metric}
    for texts in ("parameters", "progress"):
        record[texts] = {name: "Zq81ab92"}
    for free in ("training", "config"):
        record[free] = {"project": {"metrics": {name: {"file": "a.csv", "key": name, "goal": "max"}}}, name: 5}
    record["guard"]["counts"] = {"go on": 1}
    redacted = redact(record)
    complete(redacted, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")
    assert redacted["metrics"] == {name: metric}
    assert redacted["config"]["project"] == record["config"]["project"]


@pytest.mark.parametrize("key", ["model", "checkpoints"])
def test_of_a_run_with_a_glob_that_is_none_all_that_was_written_is_rescued(
    key: str, project: Path, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(project, **{"ramdisk.backend": "shm", "staging": "copy"})
    (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
    lease = acquire(run, workdir)
    stage = stage_project(run, lease)
    Begun(fingerprint(run, None), replace(run.products, **{key: ("[z-a].pth",)}), finished=True).write(lease)
    (Path(stage.ram) / "weights.pth").write_text("weights")
    (saved,) = rescue(lease, discard=False)
    assert (saved.what, saved.files) == ("all that it wrote", 1)
    assert saved.folder is not None
    assert (saved.folder / "weights.pth").read_text() == "weights"
    assert "a glob of its config cannot be used: bad character range z-a" in caplog.text
    assert not Path(lease.folder).exists()
