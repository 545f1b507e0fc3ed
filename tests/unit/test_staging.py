"""Staging: a copy is as `cp -a` makes it, the overlay is found out by trying, preloaded files are in RAM."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO, needs_root, small_config

from ramtrain.config import Run, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import fingerprint
from ramtrain.namespace import ENTER
from ramtrain.ramdisk import Lease, acquire, release, remove_tree
from ramtrain.staging import Begun, foresee, stage_project
from ramtrain.system import run_command


def a_run(project: Path, **changes: object) -> Run:
    config = complete_config(small_config(project, **{"ramdisk.backend": "shm", **changes}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    return run


@pytest.fixture
def lease(project: Path, workdir: Path) -> Iterator[Lease]:
    lease = acquire(a_run(project), workdir)
    yield lease
    release(lease)


def describe(folder: Path) -> dict[str, tuple]:
    """Return what `cp -a` keeps of everything in `folder`."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        times = None if path.is_symlink() else status.st_mtime_ns
        attributes = {} if path.is_symlink() else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        links = status.st_nlink if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(folder))] = (status.st_mode, times, content, attributes, links)
    return found


def test_a_copy_is_as_cp_makes_it(project: Path, lease: Lease, tmp_path: Path) -> None:
    (project / "read-only").mkdir()
    (project / "read-only/weights ü \"quoted\" 'x'").write_bytes(os.urandom(100_000))
    (project / "read-only/weights ü \"quoted\" 'x'").chmod(0o400)
    (project / "-dash").touch(mode=0o755)
    os.link(project / "-dash", project / "hard link")
    os.setxattr(project / "-dash", "user.note", b"kept")
    (project / "read-only").chmod(0o555)
    (project / "outside").symlink_to("/etc/hostname")
    (project / "dangling").symlink_to("nowhere")
    with (project / "sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    for number in range(600):
        (project / "data" / f"{number}.txt").write_text(str(number))
    os.utime(project / "data", ns=(1, 1_000_000_001))

    stage = stage_project(a_run(project, staging="copy"), lease)

    copy = Path(stage.ram)
    assert describe(copy) == describe(project)
    assert (copy / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (copy / "-dash").stat().st_ino == (copy / "hard link").stat().st_ino
    assert stage.files == len([path for path in project.rglob("*") if path.is_file() and not path.is_symlink()])
    (project / "read-only").chmod(0o755)


def test_links_in_a_copy_lead_into_the_copy_or_to_where_they_led(project: Path, lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (project / "absolute").symlink_to(project / "data")
    (project / "data" / "up").symlink_to("../train.py")
    (project / "relative").symlink_to("../elsewhere")
    copy = Path(stage_project(a_run(project, staging="copy"), lease).ram)
    assert (copy / "absolute").resolve() == copy / "data"
    assert (copy / "data/up").resolve() == copy / "train.py"
    assert (copy / "relative").resolve() == tmp_path / "elsewhere"


def test_what_is_excluded_or_no_file_stays_out_of_the_copy(project: Path, lease: Lease, tmp_path: Path) -> None:
    (project / "cache" / "deep").mkdir(parents=True)
    (project / "cache" / "deep" / "x.tmp").touch()
    (project / "data" / "y.tmp").touch()
    os.mkfifo(project / "fifo")
    (tmp_path / "s").symlink_to(project)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s" / "socket"))
    changes = {"staging": "copy", "project.exclude": ["cache", "**/*.tmp"]}
    copy = Path(stage_project(a_run(project, **changes), lease).ram)
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == ["data", "data/words.txt", "train.py"]


def test_a_killed_copy_is_made_again_and_a_begun_training_is_kept(project: Path, lease: Lease) -> None:
    run = a_run(project, staging="copy")
    copy = Path(stage_project(run, lease).ram)
    (copy / "half").touch()
    assert not (Path(stage_project(run, lease).ram) / "half").exists()

    Begun(fingerprint(run, None), run.products).write(lease)
    (copy / "checkpoint").touch()
    assert (Path(stage_project(run, lease).ram) / "checkpoint").exists()


@pytest.mark.parametrize("method", ["auto", "copy", "none"])
def test_what_is_foreseen_is_how_it_is_staged(method: str, project: Path, lease: Lease, tmp_path: Path) -> None:
    changes = {"project.command": ["x", "{ram}"], "project.volatile": [str(tmp_path / "later")]}
    run = a_run(project, staging=method, **changes)
    before = [*project.rglob("*"), *Path(lease.folder).rglob("*")]
    foreseen = foresee(run, Path(lease.folder), Path(lease.folder))
    assert [*project.rglob("*"), *Path(lease.folder).rglob("*")] == before
    assert not (tmp_path / "later").exists()
    stage = stage_project(run, lease)
    assert foreseen == (stage.method, stage.why)


def test_preloaded_files_are_in_ram_and_look_the_same(project: Path, lease: Lease) -> None:
    os.utime(project / "data", ns=(1, 1_000_000_001))
    stage = stage_project(a_run(project, **{"project.preload": ["data/*.txt"]}), lease)
    if stage.method != "overlay":
        pytest.skip(f"no overlay here: {stage.why}")
    upper = Path(stage.layers[0])
    assert (stage.files, stage.bytes) == (1, 14)
    assert describe(upper / "data") == describe(project / "data")
    assert stat.S_IMODE(upper.stat().st_mode) == stat.S_IMODE(project.stat().st_mode)
    assert stage.view().written(project) == []


def test_preload_that_matches_nothing_is_an_error(project: Path, lease: Lease) -> None:
    with pytest.raises(RamTrainError, match=r"project.preload: wavs/\* matches no file"):
        stage_project(a_run(project, **{"project.preload": ["wavs/*"]}), lease)


@needs_root("mounts something inside the project")
@pytest.mark.parametrize("method", ["auto", "overlay"])
def test_a_mount_inside_the_project_is_not_hidden_by_an_overlay(method: str, project: Path, lease: Lease) -> None:
    inside = project / "data"
    run_command("mount", "-t", "tmpfs", "theirs", str(inside))
    try:
        (inside / "mounted.txt").touch()
        if method == "auto":
            stage = stage_project(a_run(project), lease)
            assert stage.method == "copy"
            assert f"{inside} is mounted inside" in stage.why
            assert (Path(stage.ram) / "data/mounted.txt").exists()
        else:
            with pytest.raises(RamTrainError, match=r"is mounted inside.*Choose `auto` or `copy`"):
                stage_project(a_run(project, staging="overlay"), lease)
    finally:
        run_command("umount", str(inside))


SEEN = """
import os, sys
from pathlib import Path
from ramtrain.namespace import Overlay, mount_overlays
project, scratch, spilled = map(Path, sys.argv[2:])
mount_overlays([Overlay(str(project), str(scratch / "upper"), str(scratch / "work"))], sys.argv[1], spilled)
print(os.listdir(spilled), flush=True)
sys.stdin.readline()
with (spilled / "file").open("r+") as file:
    print(file.read(), flush=True)
    file.write("; written by the trainer")
(project / "other").write_text("in RAM")
"""


def test_one_folder_is_seen_as_it_is_below_an_overlay(project: Path, lease: Lease) -> None:
    """What is put there from outside is found inside, and what is written inside is on the disk."""
    stage = stage_project(a_run(project), lease)
    if stage.namespace is None:
        pytest.skip(f"no overlay here: {stage.why}")
    scratch, spilled = Path(lease.folder), project / "results" / "spilled"
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    argv = [*ENTER[stage.namespace], sys.executable, "-c", SEEN, stage.namespace, project, scratch, spilled]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout.readline() == "[]\n"
        (spilled / "file").write_text("put there from outside")
        said, _ = inside.communicate("\n")
    assert said == "put there from outside\n"
    assert (spilled / "file").read_text() == "put there from outside; written by the trainer"
    assert not (project / "other").exists()
    remove_tree(scratch / "work")
