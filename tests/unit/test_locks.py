"""Locks in the user's folder: one holder at a time, free when the last of its processes is gone, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ramtrain.ledger import opened
from ramtrain.locks import folder_locked, holder, take, tidy

HOLD = """
import pathlib, subprocess, sys, time
from ramtrain.locks import folder_locked, take
root = pathlib.Path(sys.argv[1])
with folder_locked(root):
    descriptor = take(root, "it", "the child")
child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[descriptor], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder as that of a user's RAM roots."""
    return tmp_path / "ramtrain-0"


def tried(root: Path, name: str = "it") -> int | None:
    with folder_locked(root):
        return take(root, name, "this test")


def tidied(root: Path) -> None:
    with folder_locked(root):
        tidy(root)


def test_one_has_it_at_a_time_and_says_who(root: Path) -> None:
    first, other = tried(root), tried(root, "another")
    assert first is not None
    assert other is not None
    assert tried(root) is None
    with folder_locked(root):
        assert holder(root, "it") == "this test"
    assert not os.get_inheritable(first)
    os.close(first)
    again = tried(root)
    assert again is not None, "closed is free"
    for descriptor in (again, other):
        os.close(descriptor)
    tidied(root)
    assert not root.exists()


def test_it_is_held_until_the_last_process_that_inherited_it_is_gone(root: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root), "600"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert tried(root) is None
    process.kill()
    process.communicate()
    assert Path(f"/proc/{child}").exists()
    assert tried(root) is None, "its child lives"
    tidied(root)
    with folder_locked(root):
        assert holder(root, "it") == "the child", "what is held is not tidied away"
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (descriptor := tried(root)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.close(descriptor)
    tidied(root)


def test_what_a_killed_process_leaves_goes_with_the_ledger(root: Path) -> None:
    descriptor = tried(root)
    assert descriptor is not None
    with opened(root):
        pass
    assert [path.name for path in root.iterdir()] == ["held-it"]
    os.close(descriptor)
    with opened(root):
        pass
    assert not root.exists()


CHURN = """
import os, pathlib, sys
from ramtrain.ledger import opened
from ramtrain.locks import folder_locked, take, tidy
root, seen = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
for _ in range(150):
    with folder_locked(root):
        descriptor = take(root, "it", "one of them")
    if descriptor is not None:
        seen.mkdir()
        seen.rmdir()
        os.close(descriptor)
    with opened(root):
        pass
"""


def test_it_may_come_and_go_meanwhile(root: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", CHURN, str(root), str(tmp_path / "seen")]
    assert [process.wait() for process in [subprocess.Popen(argv) for _ in range(3)]] == [0] * 3
    assert not root.exists()
