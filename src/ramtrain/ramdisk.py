"""RAM disks: found out by trying, mounted or made, adopted after a crash, measured, released.

The RAM root, /dev/shm/ramtrain-<uid>/<hash of the working directory>, holds one state folder a run. With `tmpfs` and
`shm` the run's data lies in that folder too; with `path` and `disk` it lies in a folder of the same name elsewhere.
Every folder on the way is 0700 and the user's own. A mark in the state folder and in the data folder (a copy of the
lease) proves what is ours; nothing else is ever unmounted or deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from humanfriendly import format_size

from ramtrain import caller
from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.errors import RamTrainError
from ramtrain.meter import DiskCounters, disk_counters
from ramtrain.system import CommandError, Mount, mount_of, mounts, run_command

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
MARK = ".ramtrain.json"
_TMPFS_SOURCE = "ramtrain"
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
_MAKE_ATTEMPTS = 5
_MEMORY_DEVICES = ("/dev/ram", "/dev/zram")


class Unavailable(RamTrainError):
    """A backend that does not work here; its text says why."""


@dataclass(frozen=True)
class Lease:
    """What a run holds from mount to unmount; paths are absolute.

    `state` is the run's folder under the RAM root, `folder` the one with its data. `counters` are the disk's at the
    start, for the record. `may_swap` says whether the kernel may move it to a swap device, uncounted.
    """

    run: str
    backend: str
    why: str
    state: str
    folder: str
    size_bytes: int
    may_swap: bool
    sudo: bool
    workdir: str
    token: str
    started: str
    mount_s: float
    counters: DiskCounters

    @classmethod
    def read(cls, path: Path) -> Lease:
        """Read a lease or a mark."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Lease:
        """Return the lease that `asdict` made `content` of."""
        return cls(**{**content, "counters": DiskCounters(**content["counters"])})


def ram_root(workdir: Path) -> Path:
    """Return the folder under which the runs of this working directory keep their state."""
    digest = hashlib.sha256(os.fsencode(workdir.resolve())).hexdigest()[:8]
    return SHM / f"ramtrain-{os.geteuid()}" / digest


def check_root(root: Path) -> None:
    """Check that what is there of the RAM root is the user's own.

    Raises:
        RamTrainError: somebody else made it, or it is a link.
    """
    for folder in (root.parent, root):
        if os.path.lexists(folder):
            check_own_folder(folder)
    if not os.access(SHM, os.W_OK):
        raise RamTrainError(f"{SHM} is missing or may not be written to; RamTrain keeps the state of its runs there.")


def check_own_folder(folder: Path) -> None:
    """Check that `folder` is a real folder and the user's own; close it to others.

    Raises:
        RamTrainError: it is something else, or somebody else's.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RamTrainError(
            f"{folder} was not made by you (owner uid {status.st_uid}, {stat.filemode(status.st_mode)}); it is not "
            "used. Ask its owner or an administrator to remove it."
        )
    if stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)


def current(lease: Lease) -> Lease:
    """Return the lease as it is now: its RAM disk may have been enlarged."""
    return Lease.read(Path(lease.state) / MARK)


def acquire(run: Run, workdir: Path) -> Lease:
    """Give `run` a RAM disk: a new one, or the one that an earlier, interrupted attempt left.

    Raises:
        RamTrainError: no backend that the config allows works here; the text says what was tried.
    """
    started = time.monotonic()
    state = ram_root(workdir) / run.run
    _make_private(state)
    mark = state / MARK
    if mark.exists():
        return _adopt(run, Lease.read(mark))
    lease = Lease(
        run=run.run,
        backend=run.backend,
        why="as configured",
        state=str(state),
        folder=str(state),
        size_bytes=run.size_bytes,
        may_swap=psutil.swap_memory().total > 0,
        sudo=False,
        workdir=str(workdir.resolve()),
        token=secrets.token_hex(8),
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        mount_s=0.0,
        counters=disk_counters(workdir),
    )
    try:
        lease = _first_working(run, lease)
    except RamTrainError:
        _prune_empty(state)
        raise
    lease = replace(lease, mount_s=round(time.monotonic() - started, 3))
    _write_marks(lease)
    _make_temporary(lease)
    return lease


def _write_marks(lease: Lease) -> None:
    for folder in dict.fromkeys((lease.folder, lease.state)):
        write_json(Path(folder) / MARK, asdict(lease))


def _make_temporary(lease: Lease) -> None:
    temporary, link = Path(lease.folder) / "tmp", temporary_folder(lease)
    temporary.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(temporary)


def temporary_folder(lease: Lease) -> Path:
    """Return the run's TMPDIR: in RAM, and always under 60 characters.

    A socket's path ends at 108 characters (unix(7)), and multiprocessing puts sockets there; run ids and the paths of
    RAM disks can be long, hence a link beside the run's folder.
    """
    return _temporary_link(Path(lease.state))


def lock_of(state: Path) -> Path:
    """Return the file that a process locks while it works on the run; beside the RAM disk, which it would keep busy."""
    return state.with_name(f"lock-{_short(state)}")


@contextlib.contextmanager
def only_one(run: str, state: Path) -> Iterator[None]:
    """Hold the run's lock, which the kernel drops with the process.

    Raises:
        RamTrainError: another process is training this run.
    """
    with lock_of(state).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RamTrainError(
                f"run {run}: is being trained by another process; wait for it, or end it with Ctrl-C there"
            ) from None
        yield


def _temporary_link(state: Path) -> Path:
    return state.with_name(f"tmp-{_short(state)}")


def _short(state: Path) -> str:
    return hashlib.sha256(state.name.encode()).hexdigest()[:8]


def _adopt(run: Run, lease: Lease) -> Lease:
    if run.backend not in ("auto", lease.backend):
        raise RamTrainError(
            f"run {run.run}: an earlier attempt left a RAM disk of backend {lease.backend!r} at {lease.folder}, and "
            f"the config now asks for {run.backend!r}. Type `{caller.command('unmount')}` first."
        )
    check_own_folder(Path(lease.folder))
    _make_temporary(lease)
    lease = enlarge(run, lease)
    log.info("run %s: going on with the RAM disk of an earlier attempt at %s", lease.run, lease.folder)
    return lease


def enlarge(run: Run, lease: Lease) -> Lease:
    """Give a RAM disk of an earlier attempt the size that the config asks for now, if that is more."""
    if run.size_bytes <= lease.size_bytes:
        return lease
    if lease.backend == "tmpfs":
        sudo = ("sudo", "-n") if lease.sudo else ()
        run_command(*sudo, "mount", "-o", f"remount,size={run.size_bytes}", lease.folder)
    lease = replace(lease, size_bytes=run.size_bytes)
    _write_marks(lease)
    return lease


def _first_working(run: Run, lease: Lease) -> Lease:
    backends: dict[str, Callable[[Run, Lease], Lease]] = {
        "tmpfs": _mount_tmpfs,
        "shm": _use_shm,
        "path": _use_path,
        "disk": _use_disk,
    }
    if run.backend != "auto":
        return backends[run.backend](run, lease)
    reasons = []
    for name in ("tmpfs", "shm"):
        try:
            taken = backends[name](run, replace(lease, backend=name))
        except Unavailable as reason:
            reasons.append(f"no {name}: {reason}")
        else:
            return replace(taken, why="; ".join(reasons) or "the first choice, and it works here")
    raise RamTrainError(
        f"run {run.run}: no RAM disk can be had here. "
        + "; ".join(reasons)
        + " Choose a smaller ramdisk.size, a RAM disk of your own (ramdisk.backend: path), or ramdisk.backend: disk."
    )


def _mount_tmpfs(run: Run, lease: Lease) -> Lease:
    """Mount a tmpfs of the run's own (tmpfs(5)), without swap and with huge pages where the kernel has them."""
    if os.geteuid() != 0 and not run.sudo:
        raise Unavailable("mounting needs root (or ramdisk.sudo: true).")
    if _own_mount(lease):
        return lease  # an earlier attempt was killed between the mount and its mark
    sudo = ("sudo", "-n") if os.geteuid() != 0 else ()
    always = f"size={lease.size_bytes},mode=0700,uid={os.geteuid()},gid={os.getegid()},nosuid,nodev"
    refusal: CommandError | None = None
    for more in (",huge=within_size,noswap", ",noswap", ",huge=within_size", ""):
        try:
            run_command(*sudo, "mount", "-t", "tmpfs", "-o", always + more, _TMPFS_SOURCE, lease.folder)
        except CommandError as error:
            refusal = refusal or error
        else:
            swap = lease.may_swap and "noswap" not in more
            return replace(lease, may_swap=swap, sudo=bool(sudo))
    raise Unavailable(f"{refusal}.")


def _use_shm(run: Run, lease: Lease) -> Lease:
    if mount_of(SHM).fstype not in MEMORY_FILESYSTEMS:
        raise Unavailable(f"{SHM} is not in memory.")
    _check_room(SHM, lease.size_bytes, "in a container, start it with --shm-size")
    return lease


def _use_path(run: Run, lease: Lease) -> Lease:
    path = run.ramdisk_path
    assert path is not None  # the config has been checked
    if not path.is_dir():
        raise RamTrainError(f"ramdisk.path: {path}: no such folder; mount the RAM disk first.")
    holding = mount_of(path.resolve())
    if holding.fstype not in MEMORY_FILESYSTEMS and not holding.source.startswith(_MEMORY_DEVICES):
        raise RamTrainError(
            f"ramdisk.path: {path} is on {holding.source} ({holding.fstype}), which is not memory. Name a folder on a "
            "RAM disk, or say ramdisk.backend: disk if the disk is meant."
        )
    return _elsewhere(path.resolve(), lease, "a smaller ramdisk.size, or a larger RAM disk")


def _use_disk(run: Run, lease: Lease) -> Lease:
    path = run.ramdisk_path or Path(lease.workdir)
    if not path.is_dir():
        raise RamTrainError(f"ramdisk.path: {path}: no such folder.")
    return replace(_elsewhere(path.resolve(), lease, "free some room"), may_swap=False)


def _elsewhere(path: Path, lease: Lease, remedy: str) -> Lease:
    root = Path(lease.state).parent
    folder = path / root.parent.name / root.name / lease.run
    _check_room(path, lease.size_bytes, remedy)
    _make_private(folder)
    if any(folder.iterdir()):
        raise RamTrainError(
            f"run {lease.run}: {folder} is there already and its state in {lease.state} is gone (a reboot?). "
            "Look at what it holds, then move or delete it."
        )
    return replace(lease, folder=str(folder))


def _check_room(path: Path, size_bytes: int, remedy: str) -> None:
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < size_bytes:
        raise Unavailable(
            f"{path} has {format_size(free_bytes, binary=True)} free, ramdisk.size is "
            f"{format_size(size_bytes, binary=True)} ({remedy})."
        )


def _make_private(folder: Path) -> None:
    """Make the run's folder and the two above it, each 0700, each the user's own."""
    for attempt in range(_MAKE_ATTEMPTS):
        try:
            for part in (folder.parent.parent, folder.parent, folder):
                part.mkdir(mode=stat.S_IRWXU, exist_ok=True)
                check_own_folder(part)
        except (FileNotFoundError, FileExistsError):
            # Another workflow, which has just ended, removed one that was empty.
            if attempt == _MAKE_ATTEMPTS - 1:
                raise
        else:
            return


def used_bytes(lease: Lease) -> int:
    """Return what the run's data takes on its RAM disk."""
    folder = Path(lease.folder)
    if lease.backend == "tmpfs":
        usage = os.statvfs(folder)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    seen: set[int] = set()
    total_blocks = 0
    for status in _walk_status(folder):
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
        total_blocks += status.st_blocks
    return total_blocks * 512


def _walk_status(folder: Path) -> Iterator[os.stat_result]:
    # The trainer makes and deletes files meanwhile, and an overlay's work folder is closed to everybody.
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield status
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_status(Path(entry.path))


def release(lease: Lease) -> bool:
    """Unmount or delete the run's RAM disk; return whether there was one.

    Raises:
        RamTrainError: it is busy, something else is mounted in it, or it is not provably ours.
    """
    state, folder = Path(lease.state), Path(lease.folder)
    if not os.path.lexists(state) and not os.path.lexists(folder):
        return False
    for place in {state, folder}:
        if os.path.lexists(place):
            check_own_folder(place)
            _check_mark(place, lease)
    mounted = _own_mount(lease)
    inside = [str(entry.point) for entry in mounts() if _within(entry.point, (state, folder)) and entry != mounted]
    if inside:
        raise RamTrainError(
            f"run {lease.run}: {', '.join(inside)} is mounted inside its RAM disk, not by RamTrain; unmount it first."
        )
    if mounted:
        _unmount(lease)
    for beside in (_temporary_link(state), lock_of(state)):
        beside.unlink(missing_ok=True)
    for place in (folder, state):
        _empty_folder(place)
        _prune_empty(place)
    return True


def release_half(state: Path) -> None:
    """Remove a run's folder under the RAM root that has no mark, and our tmpfs on it: only if nothing is in it.

    Raises:
        RamTrainError: there is something in it, or it is not ours.
    """
    check_own_folder(state)
    if any(state.iterdir()):
        raise RamTrainError(
            f"{state} has no mark {MARK} that proves what it is, and is not empty; look at what it holds."
        )
    if _own_tmpfs(state):
        run_command(*(() if os.geteuid() == 0 else ("sudo", "-n")), "umount", str(state))
    for beside in (_temporary_link(state), lock_of(state)):
        beside.unlink(missing_ok=True)
    _prune_empty(state)


def _prune_empty(folder: Path) -> None:
    """Remove the run's folder and the two above it as far as they are empty."""
    for part in (folder, folder.parent, folder.parent.parent):
        try:
            part.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break  # not empty


def _own_mount(lease: Lease) -> Mount | None:
    """Return our tmpfs at the lease's folder: the right place, type and name."""
    return _own_tmpfs(Path(lease.folder)) if lease.backend == "tmpfs" else None


def _own_tmpfs(folder: Path) -> Mount | None:
    at_folder = [entry for entry in mounts() if entry.point == folder]
    ours = [entry for entry in at_folder if entry.fstype == "tmpfs" and entry.source == _TMPFS_SOURCE]
    return ours[0] if ours else None


def _within(point: Path, folders: tuple[Path, ...]) -> bool:
    return any(point.is_relative_to(folder) for folder in folders)


def _check_mark(place: Path, lease: Lease) -> None:
    if not any(place.iterdir()):
        return
    try:
        token = Lease.read(place / MARK).token
    except (OSError, ValueError, TypeError, KeyError):
        raise RamTrainError(
            f"run {lease.run}: {place} has no readable mark {MARK}: nothing proves it to be this run's; it is left."
        ) from None
    if token != lease.token:
        raise RamTrainError(f"run {lease.run}: {place} belongs to a later attempt of this run; it is left.")


def check_free(lease: Lease) -> None:
    """Check that no process keeps the RAM disk busy.

    Raises:
        RamTrainError: with the processes' names.
    """
    holders = ", ".join(f"{process.name()} ({process.pid})" for process in _holders(Path(lease.folder)))
    if holders:
        raise RamTrainError(
            f"run {lease.run}: its RAM disk {lease.folder} is in use by {holders}. End that, then type the same again."
        )


def _unmount(lease: Lease) -> None:
    check_free(lease)
    sudo = ("sudo", "-n") if lease.sudo else ()
    run_command(*sudo, "umount", lease.folder)


def _holders(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            places = [process.cwd(), *(opened.path for opened in process.open_files())]
        except psutil.Error:
            continue
        if any(Path(place).is_relative_to(folder) for place in places):
            yield process


def _empty_folder(folder: Path) -> None:
    """Delete what is in a folder of ours, the mark last, so that a deletion cut short can be taken up again."""
    if os.path.lexists(folder):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name == MARK):
            remove_tree(Path(entry.path))


def remove_tree(path: Path) -> None:
    """Delete a file or folder of ours, if it is there; closed folders in it (0555, or an overlay's 0000) are opened."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    path.chmod(stat.S_IRWXU)
    for parent, names, _ in os.walk(path):
        for name in names:
            folder = Path(parent) / name
            if not folder.is_symlink():
                folder.chmod(stat.S_IRWXU)
    shutil.rmtree(path)
