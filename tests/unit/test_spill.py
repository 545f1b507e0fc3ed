"""Spilling: a file in RAM becomes a link to the same file on the disk, or stays as it is; none is left over."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config
from workplace import spill_at_rest

from ramtrain import durable
from ramtrain.config import complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.lease import SHM
from ramtrain.ramdisk import acquire, release
from ramtrain.salvage import whole_model
from ramtrain.spill import InUse, contents_of, remove_orphans, remove_spilled, spill
from ramtrain.staging import Begun, stage_project

WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    folder = tmp_path / "ram"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder on the disk; it is made when it is needed."""
    return tmp_path / "results" / "run" / "spilled"


def write(path: Path, content: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def all_of(folder: Path) -> dict[str, bytes | str]:
    """Return the contents of all files in a folder, the text of all links."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths
    }


def link_to_elsewhere(ram: Path, folder: Path) -> str:
    return str(write(ram.parent / "elsewhere/model.pth"))


def link_that_is_relative(ram: Path, folder: Path) -> str:
    write(folder / "1-model.pth")
    return os.path.relpath(folder / "1-model.pth", ram)


def link_with_the_same_text_from_below(ram: Path, folder: Path) -> str:
    return str(write(ram / str(folder).lstrip("/") / "1-model.pth").relative_to(ram))


def link_to_a_folder(ram: Path, folder: Path) -> str:
    (folder / "1-model.pth").mkdir(parents=True)
    return str(folder / "1-model.pth")


def link_to_a_file_in_a_folder(ram: Path, folder: Path) -> str:
    return str(write(folder / "sub/1-model.pth"))


def link_to_a_link(ram: Path, folder: Path) -> str:
    target = write(folder / "2-model.pth")
    (folder / "1-model.pth").symlink_to(target)
    return str(folder / "1-model.pth")


def link_to_what_is_gone(ram: Path, folder: Path) -> str:
    return str(folder / "1-model.pth")


def link_out_again(ram: Path, folder: Path) -> str:
    write(folder.parent / "model.pth")
    folder.mkdir()
    return f"{folder}/../model.pth"


LINKS = [
    link_to_elsewhere,
    link_that_is_relative,
    link_with_the_same_text_from_below,
    link_to_a_folder,
    link_to_a_file_in_a_folder,
    link_to_a_link,
    link_to_what_is_gone,
    link_out_again,
]


@pytest.mark.parametrize("make", LINKS, ids=lambda make: make.__name__)
def test_any_other_link_has_no_contents_of_ours(make: Callable[[Path, Path], str], ram: Path, folder: Path) -> None:
    (ram / "model.pth").symlink_to(make(ram, folder))
    assert contents_of(ram / "model.pth", folder) is None


def test_the_contents_are_the_file_s_own_or_those_that_were_spilled(ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth")
    assert contents_of(path, folder) == contents_of(path, None) == path
    spill_at_rest(path, path, folder)
    (spilled,) = folder.iterdir()
    assert contents_of(path, folder) == spilled
    assert contents_of(path, None) is None, "nothing has been spilled"
    assert contents_of(path, folder.parent) is None
    path.unlink()
    with pytest.raises(FileNotFoundError):
        contents_of(path, folder)


def test_a_trainer_may_put_a_file_in_the_link_s_place_at_any_moment(ram: Path, folder: Path, tmp_path: Path) -> None:
    path = write(ram / "model.pth")
    spill_at_rest(path, path, folder)
    (spilled,) = folder.iterdir()
    has_ended = threading.Event()

    def replace() -> None:
        while not has_ended.is_set():
            write(tmp_path / "new", b"new").replace(path)
            (tmp_path / "link").symlink_to(spilled)
            (tmp_path / "link").replace(path)

    trainer = threading.Thread(target=replace)
    trainer.start()
    try:
        began, found = time.monotonic(), set()
        while (elapsed_s := time.monotonic() - began) < 0.5 or (len(found) < 2 and elapsed_s < 30):
            found.add(contents_of(path, folder))
    finally:
        has_ended.set()
        trainer.join()
    assert found == {path, spilled}


def test_where_nothing_is_ever_spilled_no_link_leads_to_it(
    ram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage without a folder for it has the path "", which is that of a name alone."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.pth")
    (ram / "model.pth").symlink_to("model.pth")
    assert contents_of(ram / "model.pth", Path("")) is None


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_a_spilled_file_is_the_same_on_the_disk(mode: int, ram: Path, folder: Path) -> None:
    path = write(ram / "out/model [1] ü.pth")
    path.chmod(mode)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    spill_at_rest(path, path, folder)
    (spilled,) = folder.iterdir()
    assert os.readlink(path) == str(spilled)
    assert spilled.name.endswith("-model [1] ü.pth")
    assert spilled.read_bytes() == WEIGHTS
    assert stat.S_IMODE(spilled.stat().st_mode) == mode
    assert spilled.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.listdir(path.parent) == [path.name]


def test_files_of_the_same_name_do_not_meet(ram: Path, folder: Path) -> None:
    for name in ("a", "b"):
        path = write(ram / name / "model.pth", name.encode())
        spill_at_rest(path, path, folder)
    assert len(list(folder.iterdir())) == 2
    assert [(ram / name / "model.pth").read_bytes() for name in ("a", "b")] == [b"a", b"b"]


def test_the_link_is_made_where_the_trainer_sees_the_file(folder: Path, tmp_path: Path) -> None:
    """In an overlay that is another file system, and not all of the file need be read through it."""
    upper = SHM / f"spill test {os.getpid()}"
    try:
        source, place = write(upper / "model.pth"), write(tmp_path / "merged/model.pth", b"")
        spill_at_rest(source, place, folder)
        assert place.is_symlink()
        assert place.read_bytes() == WEIGHTS
        assert source.is_file()
        assert not source.is_symlink()
    finally:
        shutil.rmtree(upper)


def test_what_is_written_through_the_link_is_on_the_disk(ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth")
    spill_at_rest(path, path, folder)
    path.write_bytes(b"newer")
    (spilled,) = folder.iterdir()
    assert path.is_symlink()
    assert spilled.read_bytes() == b"newer"


def full_disk(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.DISK, "write", refuse)


def failing_disk(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "hash_from_disk", lambda _: (0, ""))


def file_in_the_way(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)


def file_further_up(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder.parent)


def folder_in_place(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.unlink()
    write(place / "file")


def no_folder_for_the_link(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.unlink()
    place.parent.rmdir()


FAILURES = [full_disk, failing_disk, file_in_the_way, file_further_up, folder_in_place, no_folder_for_the_link]


@pytest.mark.parametrize("spoil", FAILURES, ids=lambda spoil: spoil.__name__)
def test_one_that_cannot_be_spilled_is_as_it_was(
    spoil: Callable[[Path, Path, pytest.MonkeyPatch], None],
    ram: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, place = write(ram / "model.pth"), write(tmp_path / "merged/model.pth")
    spoil(place, folder, monkeypatch)
    before, inode = all_of(tmp_path), source.stat().st_ino
    with pytest.raises((OSError, RamTrainError)):
        spill_at_rest(source, place, folder)
    assert all_of(tmp_path) == before
    assert source.stat().st_ino == inode


def test_only_what_no_link_leads_to_is_an_orphan(ram: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("stays", "moved", "renamed", "hidden", "deleted", "overwritten", "only nearly"):
        path = write(ram / "out" / name, name.encode())
        spill_at_rest(path, path, folder)
    write(folder / ".12345678-cut.short.partial")
    (ram / "other/deep").mkdir(parents=True)
    (ram / "out/moved").rename(ram / "other/deep/moved")
    (ram / "out/renamed").rename(ram / "out/best.pth")
    (ram / "out/hidden").rename(ram / ".hidden")
    (ram / "out/deleted").unlink()
    write(tmp_path / "new", b"new").replace(ram / "out/overwritten")
    (ram / "out/only nearly").rename(tmp_path / "out of RAM")
    (ram / "out/link to a folder").symlink_to(tmp_path)
    remove_orphans(ram, folder)
    assert sorted(path.name[11:] for path in folder.iterdir()) == ["hidden", "moved", "renamed", "stays"]
    read = [ram / "out/stays", ram / "other/deep/moved", ram / "out/best.pth", ram / ".hidden"]
    assert [path.read_bytes() for path in read] == [b"stays", b"moved", b"renamed", b"hidden"]
    assert (ram / "out/overwritten").read_bytes() == b"new"


def test_where_nothing_was_spilled_there_are_no_orphans(ram: Path, folder: Path) -> None:
    write(ram / "model.pth")
    remove_orphans(ram, folder)
    remove_orphans(ram / "nowhere", folder)
    assert not folder.exists()
    assert list(ram.iterdir()) == [ram / "model.pth"]


def test_of_a_ram_disk_that_is_gone_all_are_orphans(ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth")
    spill_at_rest(path, path, folder)
    remove_orphans(ram / "nowhere", folder)
    assert list(folder.iterdir()) == []


def test_nothing_is_moved_of_a_trainer_that_goes_on_meanwhile(ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth", b"weights")
    assert not spill(path, path, folder, True, lambda: contextlib.nullcontext(False))
    assert not path.is_symlink()
    assert path.read_bytes() == b"weights"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_what_is_changed_after_it_was_copied_is_not_lost(how: str, ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth", b"weights")

    @contextlib.contextmanager
    def held() -> Iterator[bool]:
        if how == "replaced":
            write(ram / "new", b"newer!!").replace(path)
        else:
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        yield True

    assert not spill(path, path, folder, True, held)
    assert path.read_bytes() == (b"newer!!" if how == "replaced" else b"weights")
    assert list(folder.iterdir()) == []


def test_what_any_process_has_open_for_writing_is_not_moved(ram: Path, folder: Path) -> None:
    """Also one that is none of the trainer's; on a file system with leases, such as tmpfs."""
    path = write(ram / "model.pth", b"weights")
    with path.open("ab"), pytest.raises(InUse, match=r"model\.pth is open for writing"):
        spill(path, path, folder, True, lambda: contextlib.nullcontext(True))
    assert path.read_bytes() == b"weights"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_copy_that_is_called_off_leaves_all_as_it_was(ram: Path, folder: Path) -> None:
    path = write(ram / "model.pth", b"weights")

    def call_off(_files: int, _size_bytes: int) -> None:
        raise RamTrainError("the trainer is to end")

    with pytest.raises(RamTrainError, match="is to end"):
        spill(path, path, folder, True, lambda: contextlib.nullcontext(True), call_off)
    assert path.read_bytes() == b"weights"
    assert list(folder.iterdir()) == []


def test_a_model_that_was_spilled_counts_as_made_by_the_training(project: Path, workdir: Path) -> None:
    """It comes home with `unmount`, though nothing of it is in RAM."""
    config = small_config(project, **{"ramdisk.backend": "shm", "staging": "copy", "project.model": ["best.bin"]})
    (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
    lease = acquire(run, workdir)
    stage = stage_project(run, lease)
    path = write(Path(stage.ram) / "best.bin", b"weights")
    spill_at_rest(path, path, Path(stage.spilled), is_checkpoint=False)
    found = whole_model(lease, stage, Begun(Fingerprint({}, {}), run.products))
    assert [file.read_bytes() for file in found.values()] == [b"weights"]
    release(lease)


def test_another_folder_is_never_taken_for_that_of_spilled_files(ram: Path, workdir: Path) -> None:
    write(workdir / "c-my.yaml")
    for folder in (Path(), workdir, Path("spilled")):
        remove_orphans(ram, folder)
        remove_spilled(folder)
    assert (workdir / "c-my.yaml").exists()
