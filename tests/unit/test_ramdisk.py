"""RAM disks: private, provably ours before anything is undone, adopted after a crash, measured."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import REPO, needs_root, small_config
from workplace import snakemake_argv, spill_at_rest

from ramtrain import ramdisk
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.lease import SHM, current, user_root
from ramtrain.ledger import standing
from ramtrain.namespace import ENTER
from ramtrain.ramdisk import MARK, Lease, acquire, foresee, grow, ram_root, release, temporary_folder, used_bytes
from ramtrain.spill import remove_spilled, spill_folder
from ramtrain.staging import Begun, stage_project
from ramtrain.system import mounts, run_command


def a_run(project: Path, backend: str, **changes: object) -> Run:
    config = complete_config(small_config(project, **{"ramdisk.backend": backend, **changes}), REPO, "test")
    (run,) = load_runs(config, REPO).values()
    return run


BACKENDS = [pytest.param("tmpfs", marks=needs_root("mounts a tmpfs")), "shm", "disk"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ram_disk_from_beginning_to_end(backend: str, project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, backend), workdir)

    for folder in (Path(lease.state), Path(lease.folder), *Path(lease.state).parents[:2]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.geteuid()
    assert Path(lease.state) == ram_root(workdir) / "my_pr_ject_"
    empty_bytes = used_bytes(lease)
    (Path(lease.folder) / "checkpoint").write_bytes(bytes(5 << 20))
    assert 5 << 20 <= used_bytes(lease) - empty_bytes <= (5 << 20) + (64 << 10)

    temporary = temporary_folder(lease)
    assert len(str(temporary)) < 60
    (temporary / "socket").touch()
    assert (Path(lease.folder) / "tmp/socket").exists()

    again = acquire(a_run(project, backend), workdir)
    assert again == lease, "an earlier attempt's RAM disk is gone on with"

    assert release(lease)
    assert not release(lease), "the second time there is nothing"
    assert not ram_root(workdir).exists()
    assert not Path(lease.folder).exists()


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_what_is_foreseen_is_what_is_acquired_and_nothing_is_made(backend: str, project: Path, workdir: Path) -> None:
    run = a_run(project, backend)
    foreseen, offer = foresee(run, workdir)
    assert not ram_root(workdir).exists()
    assert list(workdir.iterdir()) == []
    assert (offer is None) == (backend == "disk")
    lease = acquire(run, workdir)
    for name in ("backend", "why", "state", "folder", "size_bytes", "workdir"):
        assert getattr(foreseen, name) == getattr(lease, name), name
    assert foresee(run, workdir)[0] == replace(lease, why="an earlier attempt left it")
    with pytest.raises(RamTrainError, match="type `snakemake --cores 1 unmount`: it brings home"):
        foresee(a_run(project, "path", **{"ramdisk.path": "/nowhere"}), workdir)
    release(lease)


@needs_root("mounts a tmpfs")
def test_a_tmpfs_has_its_size_and_does_not_swap(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, "tmpfs"), workdir)
    (ours,) = [entry for entry in mounts() if str(entry.point) == lease.folder]
    assert {"noswap", "nosuid", "nodev", "size=65536k", "mode=700"} <= set(ours.options)
    assert not lease.may_swap
    with pytest.raises(OSError, match="No space left"):
        (Path(lease.folder) / "big").write_bytes(bytes(65 << 20))
    release(lease)


def test_another_backend_than_an_earlier_attempt_s_is_refused(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, "shm"), workdir)
    with pytest.raises(RamTrainError, match=r"backend 'shm'.*'disk'.*unmount"):
        acquire(a_run(project, "disk"), workdir)
    release(lease)


def test_two_working_directories_never_meet(project: Path, tmp_path: Path) -> None:
    leases = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        leases.append(acquire(a_run(project, "shm"), tmp_path / name))
    assert leases[0].state != leases[1].state
    release(leases[0])
    assert Path(leases[1].folder).exists()
    release(leases[1])


GROWING = [pytest.param("tmpfs", marks=needs_root("mounts a tmpfs")), "shm"]


@pytest.mark.parametrize("backend", [*GROWING, "path"])
def test_one_that_is_enlarged_says_so_wherever_its_size_is_noted(backend: str, project: Path, workdir: Path) -> None:
    own = SHM / f"ramdisk test {os.getpid()}"
    own.mkdir()
    run = a_run(project, backend, **({"ramdisk.path": str(own)} if backend == "path" else {}))
    lease = acquire(run, workdir)
    for wanted_mib in (80, 96):
        grown = grow(run, lease, wanted_mib << 20, least_bytes=0)
        assert grown == replace(lease, size_bytes=wanted_mib << 20, size_from="ramdisk.size; enlarged by the guard")
        assert current(grown) == Lease.read(Path(grown.folder) / MARK) == grown
        assert promised_mib(grown) == wanted_mib
        lease = grown
    if backend == "tmpfs":
        usage = os.statvfs(lease.folder)
        assert usage.f_blocks * usage.f_frsize == 96 << 20
        (ours,) = [entry for entry in mounts() if str(entry.point) == lease.folder]
        assert {"noswap", "nosuid", "nodev", "size=98304k", "mode=700"} <= set(ours.options)
        (Path(lease.folder) / "big").write_bytes(bytes(90 << 20))
    assert acquire(run, workdir) == lease, "it stays as large"
    assert release(lease)
    own.rmdir()


@pytest.mark.parametrize("backend", GROWING)
@pytest.mark.parametrize("wanted_mib", [0, 32, 64])
def test_it_is_never_made_smaller(wanted_mib: int, backend: str, project: Path, workdir: Path) -> None:
    run = a_run(project, backend)
    lease = acquire(run, workdir)
    assert grow(run, lease, wanted_mib << 20, least_bytes=0) == lease == current(lease)
    assert promised_mib(lease) == 64
    release(lease)


def promised_mib(lease: Lease) -> float:
    (promised,) = [entry.promise for entry in standing(user_root()) if entry.promise.state == lease.state]
    assert promised.token == lease.token
    return promised.promised_bytes / (1 << 20)


def test_what_was_spilled_goes_with_its_ram_disk(lease: Lease, workdir: Path) -> None:
    folder = spill_folder(lease)
    assert folder == workdir / "results" / lease.run / "spilled"
    file = Path(lease.folder) / "model.pth"
    file.write_bytes(b"weights")
    (folder.parent / "model").mkdir(parents=True)
    spill_at_rest(file, file, folder)
    assert list(folder.iterdir())
    release(lease)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_was_spilled_of_a_ram_disk_that_a_reboot_took_goes_with_the_next(project: Path, workdir: Path) -> None:
    run = a_run(project, "shm", staging="copy")
    lease = acquire(run, workdir)
    stage = stage_project(run, lease)
    file = Path(stage.ram) / "model.pth"
    file.write_bytes(b"weights")
    spill_at_rest(file, file, Path(stage.spilled))
    (spilled,) = Path(stage.spilled).iterdir()
    begun = Begun(Fingerprint({}, {}), run.products)

    begun.write(lease)
    assert stage_project(run, acquire(run, workdir)).spilled == stage.spilled
    assert file.read_bytes() == b"weights", "what a trainer has begun to write to is kept"

    ramdisk.remove_tree(Path(lease.state))
    lease = acquire(run, workdir)
    assert spilled.exists()
    stage_project(run, lease)
    assert not Path(stage.spilled).exists()
    release(lease)


def test_what_is_no_checkpoint_and_was_moved_away_stays_and_is_named(
    lease: Lease, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trainer that moves it to another disk moves the link."""
    folder = spill_folder(lease)
    for name in ("moved.bin", "deleted checkpoint.pth", "there.bin"):
        file = Path(lease.folder) / name
        file.write_bytes(b"weights")
        spill_at_rest(file, file, folder, is_checkpoint=name.endswith(".pth"))
    target = os.readlink(Path(lease.folder) / "moved.bin")
    (Path(lease.folder) / "moved.bin").unlink()
    (tmp_path / "elsewhere").symlink_to(target)
    (Path(lease.folder) / "deleted checkpoint.pth").unlink()
    release(lease)
    assert (tmp_path / "elsewhere").read_bytes() == b"weights"
    assert f"{target} stays: the trainer may have moved its link elsewhere" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == sorted([Path(target).name, "stays.txt"])
    remove_spilled(folder)
    assert (tmp_path / "elsewhere").exists(), "nor does the next run delete it"
    Path(target).unlink()
    remove_spilled(folder)
    assert not folder.exists()


@pytest.fixture
def lease(project: Path, workdir: Path) -> Iterator[Lease]:
    lease = acquire(a_run(project, "shm"), workdir)
    yield lease
    release(lease)


def test_without_its_mark_nothing_is_deleted(lease: Lease, tmp_path: Path) -> None:
    mark = Path(lease.state) / MARK
    (Path(lease.folder) / "precious").touch()
    shutil.copy(mark, tmp_path / "mark")
    mark.unlink()
    with pytest.raises(RamTrainError, match="no readable mark"):
        release(lease)
    mark.write_text((tmp_path / "mark").read_text().replace(lease.token, "0123456789abcdef"))
    with pytest.raises(RamTrainError, match="belongs to a later attempt"):
        release(lease)
    assert (Path(lease.folder) / "precious").exists()
    shutil.copy(tmp_path / "mark", mark)


def test_links_are_deleted_and_not_followed(lease: Lease, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "precious").touch()
    (Path(lease.folder) / "link").symlink_to(outside)
    closed = Path(lease.folder) / "closed"
    (closed / "more").mkdir(parents=True)
    (closed / "more").chmod(0o555)
    closed.chmod(0)
    release(lease)
    assert (outside / "precious").exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
    assert not Path(lease.folder).exists()


@needs_root("mounts a tmpfs")
def test_what_somebody_mounted_inside_is_left(lease: Lease) -> None:
    inside = Path(lease.folder) / "theirs"
    inside.mkdir()
    run_command("mount", "-t", "tmpfs", "theirs", str(inside))
    (inside / "precious").touch()
    try:
        with pytest.raises(RamTrainError, match="mounted inside its RAM disk"):
            release(lease)
        assert (inside / "precious").exists()
    finally:
        run_command("umount", str(inside))


@needs_root("mounts a tmpfs")
def test_a_busy_ram_disk_names_who_keeps_it(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, "tmpfs"), workdir)
    holder = subprocess.Popen(["sleep", "60"], cwd=lease.folder)
    try:
        with pytest.raises(RamTrainError, match=rf"in use by sleep \({holder.pid}\)"):
            release(lease)
    finally:
        holder.kill()
        holder.wait()
    release(lease)


@needs_root("mounts a tmpfs")
def test_a_mount_that_was_cut_short_before_its_mark_is_taken_up(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, "tmpfs"), workdir)
    for path in Path(lease.folder).iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    ramdisk._temporary_link(Path(lease.state)).unlink()
    again = acquire(a_run(project, "tmpfs"), workdir)
    assert len([entry for entry in mounts() if str(entry.point) == lease.folder]) == 1
    release(again)


def test_auto_says_why(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project, "auto"), workdir)
    if os.geteuid() == 0:
        assert lease.backend == "tmpfs"
    else:
        assert lease.backend == "shm"
        assert lease.why.startswith("no tmpfs: mounting needs root")
    release(lease)


@needs_root("a /dev/shm of its own, as a container has it")
@pytest.mark.parametrize(("backend", "said"), [("shm", "--shm-size"), ("path", "a smaller ramdisk.size")])
def test_a_size_that_does_not_fit_is_refused_with_the_figures(
    backend: str, said: str, project: Path, workdir: Path
) -> None:
    config = small_config(project, **{"ramdisk.backend": backend, "ramdisk.size": "1G"})
    if backend == "path":
        config["ramdisk"]["path"] = "/dev/shm"
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    small_shm = 'mount -t tmpfs -o size=64m shm /dev/shm && exec "$@"'
    argv = [*ENTER["mount"], "sh", "-c", small_shm, "sh", *snakemake_argv("train", "--configfile", "my.yaml")]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "/dev/shm has 64 MiB free, ramdisk.size is 1 GiB" in ended.stderr
    assert said in ended.stderr


def test_a_folder_of_somebody_else_s_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(RamTrainError, match="was not made by you"):
            ramdisk.check_own_folder(tmp_path / name)
    other = Path("/proc")
    if os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        os.chown(other, 64321, 64321)
    with pytest.raises(RamTrainError, match="was not made by you"):
        ramdisk.check_own_folder(other)


def sudo_mounts() -> bool:
    try:
        run_command("sudo", "-n", "-l", "mount", "-t", "tmpfs", "ramtrain")
    except RamTrainError:
        return False
    return os.geteuid() != 0


@pytest.mark.skipif(not sudo_mounts(), reason="needs a plain user whom sudo lets mount without a password")
def test_sudo_mounts_a_tmpfs_where_the_config_allows_it(project: Path, workdir: Path) -> None:
    assert foresee(a_run(project, "auto", **{"ramdisk.sudo": True}), workdir)[0].backend == "tmpfs"
    lease = acquire(a_run(project, "auto", **{"ramdisk.sudo": True}), workdir)
    assert (lease.backend, lease.sudo) == ("tmpfs", True)
    (Path(lease.folder) / "mine").touch()
    release(lease)
