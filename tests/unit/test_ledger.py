"""The ledger: what is promised is seen by every process, counts as far as it should, and dies with its RAM disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from ramtrain.durable import write_json
from ramtrain.lease import MARK, Lease
from ramtrain.ledger import Promise, at_work, is_at_work, opened, standing
from ramtrain.meter import disk_counters

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder as that of a user's RAM roots."""
    return tmp_path / "ramtrain-0"


def a_promise(root: Path, run: str, promised_bytes: int = 64 * MIB, token: str = "1") -> Promise:
    state = root / "workdir" / run
    state.mkdir(parents=True, exist_ok=True)
    return Promise("/workdir", run, token, str(state), str(state), "shm", promised_bytes, os.getpid(), None, None)


def mount(promise: Promise, held_bytes: int) -> None:
    """Make a RAM disk, in a folder, and put something into it."""
    lease = Lease(
        run=promise.run,
        backend="shm",
        why="",
        state=promise.state,
        folder=promise.state,
        size_bytes=promise.promised_bytes,
        may_swap=False,
        sudo=False,
        workdir=promise.workdir,
        token=promise.token,
        started="",
        mount_s=0.0,
        counters=disk_counters(Path.cwd()),
    )
    write_json(Path(promise.state) / MARK, asdict(lease))
    (Path(promise.state) / "data").write_bytes(bytes(held_bytes))


def note(root: Path, promise: Promise) -> None:
    with opened(root) as ledger:
        ledger.note(promise)


def test_what_a_ram_disk_does_not_hold_yet_is_owed_while_somebody_works_on_it(root: Path) -> None:
    promise = a_promise(root, "a")
    with at_work(Path(promise.state)):
        note(root, promise)
        (entry,) = standing(root)
        assert (entry.promise, entry.owed_bytes) == (promise, 64 * MIB), "it is about to be mounted"
        mount(promise, 10 * MIB)
        (entry,) = standing(root)
        assert entry.is_at_work
        assert 10 * MIB <= entry.held_bytes < 11 * MIB
        assert entry.owed_bytes == 64 * MIB - entry.held_bytes
        mount(promise, 70 * MIB)
        assert standing(root)[0].owed_bytes == 0


def test_between_two_jobs_it_is_owed_and_later_no_more(root: Path) -> None:
    promise = a_promise(root, "a")
    mount(promise, MIB)
    note(root, promise)
    assert not standing(root)[0].is_at_work, "nobody has worked on it"
    with at_work(Path(promise.state)):
        pass
    assert standing(root)[0].owed_bytes > 0
    (busy,) = (root / "workdir").glob("busy-*")
    os.utime(busy, (time.time() - 60,) * 2)
    (entry,) = standing(root)
    assert (entry.is_at_work, entry.owed_bytes) == (False, 0)
    assert entry.held_bytes > MIB, "what it holds, it holds"


def test_a_job_that_failed_is_not_waited_for(root: Path) -> None:
    state = Path(a_promise(root, "a").state)
    with pytest.raises(ValueError, match="oh"), at_work(state):
        raise ValueError("oh")
    assert not is_at_work(state)


WORK = """
import pathlib, sys, time
from ramtrain.ledger import at_work
with at_work(pathlib.Path(sys.argv[1])):
    print("working", flush=True)
    time.sleep(600)
"""


def test_a_job_that_was_killed_does_not_count_for_long(root: Path) -> None:
    state = Path(a_promise(root, "a").state)
    job = subprocess.Popen([sys.executable, "-c", WORK, str(state)], stdout=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stdout.readline() == b"working\n"
    (busy,) = (root / "workdir").glob("busy-*")
    os.utime(busy, (0, 0))
    assert is_at_work(state), "however long it takes"
    job.kill()
    job.communicate()
    assert not is_at_work(state)


def gone(promise: Promise) -> None:
    for path in Path(promise.state).iterdir():
        path.unlink()
    Path(promise.state).rmdir()


def without_mark(promise: Promise) -> None:
    (Path(promise.state) / MARK).unlink()


@pytest.mark.parametrize("change", [gone, without_mark])
def test_a_dead_entry_is_cleaned_away(change: Callable[[Promise], None], root: Path) -> None:
    dead, alive = a_promise(root, "dead"), a_promise(root, "alive")
    for promise in (dead, alive):
        mount(promise, 0)
        note(root, promise)
    change(dead)
    assert [entry.promise for entry in standing(root)] == [alive]
    with opened(root) as ledger:
        ledger.strike(Path(alive.state))
    assert not (root / "ledger.json").exists(), "an empty ledger is no file"


def test_a_later_promise_to_the_same_run_replaces_the_earlier_one(root: Path) -> None:
    mount(a_promise(root, "a"), 0)
    for promised_bytes in (64 * MIB, 80 * MIB):
        note(root, a_promise(root, "a", promised_bytes))
    (entry,) = standing(root)
    assert entry.promise.promised_bytes == 80 * MIB


def test_a_ledger_that_cannot_be_read_does_not_stop_anything(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.mkdir()
    (root / "ledger.json").write_text('[{"run": ')
    assert standing(root) == []
    assert "what it said does not count" in caplog.text
    mount(promise := a_promise(root, "a"), 0)
    note(root, promise)
    assert [entry.promise for entry in standing(root)] == [promise]


NOTE_MANY = """
import pathlib, sys
from ramtrain.ledger import Promise, opened
root = pathlib.Path(sys.argv[1])
for number in range(25):
    with opened(root) as ledger:
        ledger.strike(root / "nobody")
        (entry,) = [e for e in ledger.standing if e.promise.run == "sum"]
        more = Promise(**{**vars(entry.promise), "promised_bytes": entry.promise.promised_bytes + 1})
        ledger.note(more)
"""


def test_no_change_is_lost_when_several_processes_write(root: Path) -> None:
    mount(a_promise(root, "sum", 0), 0)
    note(root, a_promise(root, "sum", 0))
    writers = [subprocess.Popen([sys.executable, "-c", NOTE_MANY, str(root)]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert standing(root)[0].promise.promised_bytes == 100


def test_a_lock_on_a_folder_that_went_meanwhile_is_none(root: Path, tmp_path: Path) -> None:
    promise = a_promise(tmp_path / "elsewhere", "a")
    mount(promise, 0)
    waiting = threading.Thread(target=note, args=(root, promise))
    with opened(root):
        waiting.start()
        time.sleep(0.3)
    waiting.join()
    assert [entry.promise for entry in standing(root)] == [promise]


def test_the_folder_may_come_and_go_meanwhile(root: Path) -> None:
    churn = "import pathlib, sys\nfrom ramtrain.ledger import opened\nfor _ in range(200):\n    "
    churn += "with opened(pathlib.Path(sys.argv[1])): pass"
    writers = [subprocess.Popen([sys.executable, "-c", churn, str(root)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 3
    assert not root.exists()
