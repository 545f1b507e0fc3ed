"""What is written for keeps is whole, verified from the disk, and replaces the older version at once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs_root

from ramtrain import durable
from ramtrain.errors import RamTrainError
from ramtrain.system import run_command


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "ram"
    folder.mkdir()
    (folder / "model.pth").write_bytes(os.urandom(9 << 20))
    (folder / "empty").touch()
    (folder / "odd").write_bytes(os.urandom(4097))
    return folder


@pytest.fixture
def sources(source: Path) -> dict[str, Path]:
    return {"model.pth": source / "model.pth", "sub/empty": source / "empty", "sub/odd": source / "odd"}


def test_a_folder_comes_home_with_its_manifest(sources: dict[str, Path], tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    home = tmp_path / "results" / "model"
    kept = durable.commit_folder(sources, home, lambda files, size: reported.append((files, size)))

    for file in kept:
        content = (home / file.path).read_bytes()
        assert content == sources[file.path].read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (home / file.path).stat().st_mtime_ns == sources[file.path].stat().st_mtime_ns
    manifest = json.loads((home / "manifest.json").read_text())
    assert [entry["path"] for entry in manifest["files"]] == list(sources)
    assert names(home.parent) == ["model"]
    assert sum(files for files, _ in reported) == 3
    assert sum(size for _, size in reported) == sum(file.bytes for file in kept)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_version_replaces_the_old_one_as_a_whole(
    can_exchange: bool, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "model"
    durable.commit_folder({"old.pth": sources["sub/odd"]}, home)
    if not can_exchange:

        def refuse(*_: Path) -> None:
            raise OSError(errno.EINVAL, "as NFS does")

        monkeypatch.setattr(durable.DISK, "exchange", refuse)
    durable.commit_folder(sources, home)
    assert names(home) == ["manifest.json", "model.pth", "sub"]
    assert names(tmp_path) == ["model", "ram"]


@pytest.mark.parametrize("moment", ["partial", "aside"])
def test_what_a_killed_commit_left_is_swept(moment: str, sources: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "model"
    durable.commit_folder({"old.pth": sources["sub/odd"]}, home)
    (tmp_path / ".model.0123abcd.partial").mkdir()
    if moment == "aside":
        home.rename(tmp_path / ".model.aside")
    durable.sweep(home)
    assert names(home) == ["manifest.json", "old.pth"]
    assert names(tmp_path) == ["model", "ram"]


def test_an_error_leaves_the_old_version_and_nothing_half_done(sources: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "model"
    durable.commit_folder({"old.pth": sources["sub/odd"]}, home)
    with pytest.raises(FileNotFoundError):
        durable.commit_folder({**sources, "gone": tmp_path / "gone"}, home)
    assert names(home) == ["manifest.json", "old.pth"]
    assert names(tmp_path) == ["model", "ram"]


def test_a_disk_that_gives_back_something_else_is_noticed(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = durable._copy

    def copy_and_spoil(source: Path, target: Path, *more: object) -> tuple[int, str]:
        result = copy(source, target, *more)
        with target.open("r+b") as file:
            file.seek(4 << 20)
            file.write(b"spoilt")
        return result

    monkeypatch.setattr(durable, "_copy", copy_and_spoil)
    with pytest.raises(RamTrainError, match="the disk gave back"):
        durable.commit_folder({"model.pth": sources["model.pth"]}, tmp_path / "model")
    assert names(tmp_path) == ["ram"]


def test_a_source_that_changes_meanwhile_is_noticed(sources: dict[str, Path], tmp_path: Path) -> None:
    def grow(_files: int, size: int) -> None:
        if size:
            with sources["model.pth"].open("ab") as file:
                file.write(b"more")

    with pytest.raises(RamTrainError, match="changed while it was copied"):
        durable.commit_folder({"model.pth": sources["model.pth"]}, tmp_path / "model", grow)
    assert names(tmp_path) == ["ram"]


def test_one_file_and_json(sources: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "results" / "train.log"
    durable.commit_file(sources["sub/odd"], target)
    durable.commit_file(sources["model.pth"], target)
    assert target.read_bytes() == sources["model.pth"].read_bytes()
    durable.write_json(target.with_name("record.json"), {"ü": 1})
    assert json.loads(target.with_name("record.json").read_text()) == {"ü": 1}
    assert names(target.parent) == ["record.json", "train.log"]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return the image of a small ext4 disk and where it is mounted."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run_command("mkfs.ext4", "-q", "-F", str(image))
    run_command("mount", "-o", "loop", str(image), str(point))
    yield image, point
    run_command("umount", str(point))


@needs_root("a loop device")
def test_reading_back_goes_past_the_page_cache(loop_device: tuple[Path, Path]) -> None:
    image, point = loop_device
    content = os.urandom(1 << 20)
    path = point / "model.pth"
    path.write_bytes(content)
    run_command("sync", "-f", str(point))
    assert path.read_bytes() == content, "it is in the page cache"
    with image.open("r+b") as disk:
        at = disk.read().index(content[:4096])
        disk.seek(at)
        disk.write(b"rotten")
        os.fsync(disk.fileno())
    assert path.read_bytes() == content, "the page cache hides what has become of it"
    assert durable.hash_from_disk(path)[1] == hashlib.sha256(b"rotten" + content[6:]).hexdigest()


@needs_root("a loop device")
def test_a_full_disk_keeps_the_old_version(loop_device: tuple[Path, Path], sources: dict[str, Path]) -> None:
    _, point = loop_device
    home = point / "model"
    durable.commit_folder({"old.pth": sources["sub/odd"]}, home)
    (point / "filler").write_bytes(bytes(shutil.disk_usage(point).free - (4 << 20)))
    with pytest.raises(OSError, match="No space left"):
        durable.commit_folder(sources, home)
    assert names(home) == ["manifest.json", "old.pth"]
    assert names(point) == ["filler", "lost+found", "model"]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0, b"start")],
        [(16 << 20, b"end")],
        [(0, b"start"), (9 << 20, b"middle" * 1000), ((24 << 20) - 1, b"!")],
    ],
    ids=["nothing", "a start", "an end", "three parts"],
)
def test_holes_stay_holes_and_count_as_zeros(parts: list[tuple[int, bytes]], tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(24 << 20)
        for start, part in parts:
            file.seek(start)
            file.write(part)
    reported: list[int] = []
    (kept,) = durable.commit_folder({"sparse": sparse}, tmp_path / "home", lambda files, size: reported.append(size))
    assert kept.sha256 == hashlib.sha256(sparse.read_bytes()).hexdigest()
    assert (tmp_path / "home/sparse").read_bytes() == sparse.read_bytes()
    assert durable.room_bytes(tmp_path / "home/sparse") <= durable.room_bytes(sparse) + (128 << 10)
    assert sum(reported) == 24 << 20


@pytest.mark.parametrize(
    "name", ["l" * 255, "ü" * 127, os.fsdecode(b"\xff" * 255)], ids=["ascii", "umlauts", "no text"]
)
def test_a_name_may_be_as_long_as_any(name: str, source: Path, tmp_path: Path) -> None:
    other = name[:-1] + "m"
    for version in (b"old", b"new"):
        (source / "odd").write_bytes(version)
        durable.commit_folder({name: source / "odd"}, tmp_path / name)
        durable.commit_file(source / "odd", tmp_path / other)
        assert (tmp_path / name / name).read_bytes() == (tmp_path / other).read_bytes() == version
    (left,) = {durable._partial(tmp_path / name)}
    left.mkdir()
    durable._partial(tmp_path / other).touch()
    durable.sweep(tmp_path / name)
    assert not left.exists()
    assert len(list(tmp_path.glob(".*.partial"))) == 1, "that of another name stays, alike as they are"
    durable.remove(tmp_path / name)
    durable.remove(tmp_path / other)
    assert names(tmp_path) == ["ram"]
