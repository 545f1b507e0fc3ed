"""Hashes of a project's files: kept from run to run, never trusted when a file has changed; larger ones beside."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from ramtrain import inputs
from ramtrain.inputs import CACHE, HASHING_SHARE, HashCache, Inputs, LargerInputs, read_inputs


@pytest.fixture
def kept(workdir: Path) -> Path:
    """Return where hashes are kept, in a working directory that Snakemake has used."""
    (workdir / ".snakemake").mkdir()
    return workdir / ".snakemake" / CACHE


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project whose files count as not changed just now."""
    folder = tmp_path / "prôject"
    (folder / "data").mkdir(parents=True)
    for name, content in {"a.py": b"a", "data/b": b"bb" * 1000, "data/c": b"c" * 3000}.items():
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to("a.py")
    monkeypatch.setattr(inputs, "_SETTLED_S", 0.0)
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spoil(kept: Path) -> dict:
    """Have the kept hashes be wrong, so that it shows when they are used."""
    content = json.loads(kept.read_text())
    for entry in content["files"].values():
        entry[-1] = "0" * 64
    kept.write_text(json.dumps(content))
    return content["files"]


def test_a_hash_is_kept_until_the_file_changes(
    kept: Path, workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = read_inputs(project)
    assert read_inputs(project, HashCache(workdir)).digests == without.digests
    assert len(spoil(kept)) == 3
    again = read_inputs(project, HashCache(workdir))
    assert {entry["sha256"] for entry in again.files} == {"0" * 64}, "nothing is read again"

    status = (project / "data/b").stat()
    (project / "data/b").write_bytes(b"dd" * 1000)
    os.utime(project / "data/b", ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    after = {entry["path"]: entry["sha256"] for entry in read_inputs(project, HashCache(workdir)).files}
    assert after["data/b"] == sha256(b"dd" * 1000), "the same size and mtime, yet another ctime"
    assert after["a.py"] == "0" * 64
    assert json.loads(kept.read_text())["files"][str(project / "data/b")][-1] == "0" * 64, "it is too new to be kept"


def test_the_digests_are_what_they_always_were(project: Path) -> None:
    """State that an earlier version left is gone on with: the fingerprint must not change."""
    lines = [f"data/b\0{sha256(b'bb' * 1000)}", f"data/c\0{sha256(b'c' * 3000)}"]
    digests = read_inputs(project).digests
    assert digests["data"] == sha256("\n".join(lines).encode())[:16]
    assert digests["link"] == sha256(b"link\0a.py")[:16]


@pytest.mark.parametrize(
    ("only", "paths"),
    [
        (["**"], ["a.py", "data/b", "data/c", "link"]),
        (["data/**"], ["data/b", "data/c"]),
        (["*.py", "d*/c"], ["a.py", "data/c"]),
        (["link"], ["link"]),
        (["data"], []),
    ],
)
def test_only_what_is_named_counts(only: list[str], paths: list[str], project: Path) -> None:
    everything, named = read_inputs(project), read_inputs(project, only=only)
    assert named.files == [entry for entry in everything.files if entry["path"] in paths]
    assert named.digests.keys() == {path.split("/")[0] for path in paths}
    assert named.scope == "those of the project's files that its adapter names"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"format": 2, "files": {}}',
        b'{"format": 1, "files": [1]}',
        b'{"format": 1, "files": {"x": [1, 2, 3, 4, "no hash"], "y": 3}}',
    ],
)
def test_what_cannot_be_read_is_written_anew(content: bytes, kept: Path, workdir: Path, project: Path) -> None:
    kept.write_bytes(content)
    assert read_inputs(project, HashCache(workdir)).files == read_inputs(project).files
    assert len(json.loads(kept.read_text())["files"]) == 3


def test_without_snakemakes_folder_nothing_is_kept(workdir: Path, project: Path) -> None:
    read_inputs(project, HashCache(workdir))
    assert not any(workdir.iterdir())


def _save(workdir: Path, number: int) -> None:
    file = workdir / f"file{number}"
    for turn in range(20):
        cache = HashCache(workdir)
        cache.put(workdir / f"{number}-{turn}", file.stat(), sha256(b""))
        cache.save()


def test_runs_that_end_at_once_lose_nothing_of_each_other(
    kept: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_SETTLED_S", 0.0)
    for number in range(3):
        (workdir / f"file{number}").touch()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save, args=(workdir, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(json.loads(kept.read_text())["files"]) == 60
    assert os.listdir(kept.parent) == [CACHE]


def test_there_is_a_limit_to_what_is_kept(
    kept: Path, workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_MOST_CACHED", 2)
    read_inputs(project, HashCache(workdir))
    assert list(json.loads(kept.read_text())["files"]) == [str(project / "data/b"), str(project / "data/c")]


def only_small(project: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setattr(inputs, "_MOST_INPUT_BYTES", 1)
    return read_inputs(project)


def test_larger_files_are_hashed_beside_the_training(
    kept: Path, workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only_small(project, monkeypatch)
    assert (found.left_out, found.larger) == (2, [("data/b", 2000), ("data/c", 3000)])
    larger = LargerInputs(project, lambda: found, HashCache(workdir))
    larger.start()
    larger._thread.join(5)
    hashed = larger.finish()
    assert [entry["path"] for entry in hashed.files] == ["a.py", "data/b", "data/c"]
    assert hashed.files[1]["sha256"] == sha256(b"bb" * 1000)
    assert (hashed.left_out, hashed.why) == (0, "all of the project's files, 3")

    spoil(kept)
    again = LargerInputs(project, lambda: found, HashCache(workdir))
    again.start()
    again._thread.join(5)
    assert again.finish().files[1]["sha256"] == "0" * 64, "known from the run before"


def test_hashing_takes_no_more_than_its_share_and_ends_with_the_training(
    workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / "huge").open("wb") as file:
        file.truncate(4 << 30)
    found = only_small(project, monkeypatch)
    larger = LargerInputs(project, lambda: found, HashCache(workdir))
    began = time.monotonic()
    larger.start()
    time.sleep(1.5)
    ended = time.monotonic()
    hashed = larger.finish()
    assert time.monotonic() - ended < 0.5, "the end of a training does not wait for a file"
    assert 0 < larger.spent_s <= HASHING_SHARE * (ended - began) + 0.1
    assert hashed.left_out == 1
    assert hashed.why == (
        "of 4 files the 1 smallest, up to 10,000 of them and 1 byte, and 2 larger ones; 1 is left out: hashing may "
        "take 10 % of the training's time"
    )


def test_a_training_that_ends_at_once_leaves_out_what_is_larger(
    workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only_small(project, monkeypatch)
    late = threading.Event()
    larger = LargerInputs(project, lambda: (late.set(), found)[1], HashCache(workdir))
    larger._stop.set()
    larger.start()
    hashed = larger.finish()
    assert late.is_set()
    assert hashed.left_out == 2
    assert "2 are left out" in hashed.why


def test_a_file_that_cannot_be_read_is_named(
    workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = only_small(project, monkeypatch)
    (project / "data/b").unlink()
    larger = LargerInputs(project, lambda: found, HashCache(workdir))
    larger.start()
    larger._thread.join(5)
    hashed = larger.finish()
    assert "input data/b could not be read" in caplog.text
    assert hashed.left_out == 1
    assert hashed.why.endswith("1 is left out: 1 file could not be read")
