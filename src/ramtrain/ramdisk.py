"""RAM disks: found out by trying, mounted or made, adopted after a crash, released.

Every folder on the way to a run's data is 0700 and the user's own; nothing without a mark that proves it to be ours is
ever unmounted or deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from humanfriendly import format_size

from ramtrain import admission, caller, memory, remedy
from ramtrain.admission import DoesNotFit, Offer, admit, admit_more, is_promised, withdraw
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.errors import RamTrainError
from ramtrain.lease import MARK, SHM, Lease, is_full, lock_of, ram_root, short_name, used_bytes
from ramtrain.ledger import at_work, forget_work
from ramtrain.meter import disk_counters
from ramtrain.slurm import Job, this_job
from ramtrain.spill import moved_away, remove_spilled, spill_folder
from ramtrain.system import CommandError, Mount, mount_of, mounts, run_command

log = logging.getLogger(__name__)

_TMPFS_SOURCE = "ramtrain"
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
_MAKE_ATTEMPTS = 5
# Whoever only looks, as `status` does, keeps a RAM disk busy for a moment.
_BUSY_S = 2.0
_GROWN = "; enlarged by the guard"
_ELSE = "a smaller ramdisk.size, or ramdisk.fallback: disk"
_MEMORY_DEVICES = ("/dev/ram", "/dev/zram")

# How a backend gives a run what its lease says, or looks whether it could.
Way = Callable[[Run, Lease], Lease]


class Unavailable(RamTrainError):
    """A backend that does not work here; its text says why."""


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


def acquire(run: Run, workdir: Path) -> Lease:
    """Give `run` a RAM disk: a new one, or the one that an earlier, interrupted attempt left.

    Raises:
        RamTrainError: no backend that the config allows works here, the text says what was tried; or it does not fit.
    """
    state = ram_root(workdir) / run.run
    _make_private(state)
    try:
        with at_work(state):
            if (state / MARK).exists():
                return _adopt(run, Lease.read(state / MARK))
            return _make(run, workdir, state)
    except BaseException:
        if not (state / MARK).exists():
            withdraw(state)
            forget_work(state)
            _prune_empty(state)
        raise


def foresee(run: Run, workdir: Path) -> tuple[Lease, Offer | None]:
    """Return the lease that `acquire` would give the run now, and what memory there is for it; nothing is made.

    Raises:
        RamTrainError: as `acquire`.
    """
    state = ram_root(workdir) / run.run
    if (state / MARK).exists():
        lease = Lease.read(state / MARK)
        _check_backend(run, lease)
        return replace(lease, why="an earlier attempt left it"), None
    offers: list[Offer] = []

    def offered(lease: Lease, place: Path | None) -> Lease:
        offers.append(admission.foresee(run, lease, place))
        return replace(lease, size_bytes=min(run.size_bytes, offers[-1].fits_bytes))

    def as_tmpfs(run: Run, lease: Lease) -> Lease:
        _check_may_mount(run)
        lease = offered(lease, None)
        if os.geteuid() == 0:  # where nobody else sees it, and it is gone with the command
            _mount(replace(lease, folder=str(SHM)), "unshare", "--mount", "--")
        else:  # asks only whether it may
            _mount(lease, "sudo", "-n", "-l")
        return lease

    def in_shm(run: Run, lease: Lease) -> Lease:
        _check_shm(run)
        return offered(lease, SHM)

    def in_path(run: Run, lease: Lease) -> Lease:
        place = _check_path(run)
        return _check_free(place, offered(lease, place))

    def on_disk(run: Run, lease: Lease) -> Lease:
        return _check_free(_check_disk(run, lease), lease)

    lease = _new_lease(run, workdir, state)
    try:
        lease = _first_working(run, lease, {"tmpfs": as_tmpfs, "shm": in_shm, "path": in_path, "disk": on_disk})
    except (Unavailable, DoesNotFit) as error:
        return on_disk(run, _fallen_back(run, lease, error)), None
    return lease, offers[-1] if offers else None


def _make(run: Run, workdir: Path, state: Path) -> Lease:
    started = time.monotonic()
    ways: dict[str, Way] = {"tmpfs": _mount_tmpfs, "shm": _use_shm, "path": _use_path, "disk": _use_disk}
    lease = _new_lease(run, workdir, state)
    try:
        lease = _first_working(run, lease, ways)
    except (Unavailable, DoesNotFit) as error:
        lease = _fallen_back(run, lease, error)
        withdraw(state)
        log.warning("%s\nrun %s: IT IS TRAINED ON THE DISK, as ramdisk.fallback says.", error, run.run)
        lease = _use_disk(run, lease)
    lease = replace(lease, mount_s=round(time.monotonic() - started, 3), mounted=stamp())
    _write_marks(lease)
    _make_temporary(lease)
    if lease.may_swap:
        log.warning(
            "run %s: its RAM disk may be swapped out to a disk, past all counters of its writes; a tmpfs that root "
            "mounts on Linux 6.4 or newer never is",
            run.run,
        )
    return lease


def _new_lease(run: Run, workdir: Path, state: Path) -> Lease:
    return Lease(
        run=run.run,
        backend=run.backend,
        why="as configured",
        state=str(state),
        folder=str(state),
        size_bytes=run.size_bytes,
        may_swap=memory.swap_bytes() > 0,
        sudo=False,
        workdir=str(workdir.resolve()),
        token=secrets.token_hex(8),
        started=stamp(),
        mount_s=0.0,
        counters=disk_counters(workdir),
        size_from=run.size_from,
        job=_job(),
    )


def _job() -> Job | None:
    return caller.job() or this_job()


def _fallen_back(run: Run, lease: Lease, error: RamTrainError) -> Lease:
    """Return a lease of the disk, where the config says so; otherwise what went wrong remains."""
    if run.fallback != "disk":
        raise error
    reason = " ".join(str(error).split())
    return replace(lease, backend="disk", why=f"ramdisk.fallback: disk, since {reason}")


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
    return state.with_name(f"tmp-{short_name(state)}")


def _adopt(run: Run, lease: Lease) -> Lease:
    _check_backend(run, lease)
    check_own_folder(Path(lease.folder))
    _make_temporary(lease)
    if lease.job != _job():
        lease = replace(lease, job=_job())
        _write_marks(lease)
    lease = enlarge(run, lease)
    log.info("run %s: going on with the RAM disk of an earlier attempt at %s", lease.run, lease.folder)
    return lease


def _check_backend(run: Run, lease: Lease) -> None:
    """Check that the RAM disk of an earlier attempt is of the kind that the config now asks for."""
    fell_back = lease.backend == "disk" and run.fallback == "disk"
    if run.backend not in ("auto", lease.backend) and not fell_back:
        raise RamTrainError(
            f"run {run.run}: an earlier attempt left a RAM disk of backend {lease.backend!r}, and the config now asks "
            f"for {run.backend!r}. {remedy.still_in_ram(lease.folder)} To go on, {remedy.bring_home()}."
        )


def enlarge(run: Run, lease: Lease) -> Lease:
    """Have the memory of a RAM disk promised to this call, and give it the size that the run is to have now.

    One that an earlier attempt left grows if the config asks for more. Where that says `auto`, it grows when it was
    full, and shrinks to what there is, but not below what it holds.

    Raises:
        DoesNotFit: there is no memory for it; the RAM disk stays as it is.
    """
    if lease.backend == "disk":
        return lease
    stays = run.auto_size and not is_full(used_bytes(lease), lease.size_bytes)
    wanted_bytes = lease.size_bytes if stays else max(run.size_bytes, lease.size_bytes)
    if wanted_bytes == lease.size_bytes and is_promised(lease):
        return lease
    least_bytes = min(run.least_bytes, wanted_bytes) if run.auto_size else wanted_bytes
    place = None if lease.backend == "tmpfs" else Path(lease.folder)
    size_bytes = admit(replace(run, size_bytes=wanted_bytes, least_bytes=least_bytes), lease, place)
    if size_bytes == lease.size_bytes:
        return lease
    lease = replace(lease, size_bytes=size_bytes, size_from=run.size_from)
    if lease.backend == "tmpfs":
        _remount(lease)
    _write_marks(lease)
    return lease


def grow(run: Run, lease: Lease, wanted_bytes: int, least_bytes: int) -> Lease:
    """Enlarge the RAM disk of a run that is being trained to what is wanted, or what memory there is now; return its
    lease. It stays as it is where there is not at least `least_bytes`.
    """
    place = None if lease.backend == "tmpfs" else Path(lease.folder)
    size_bytes = admit_more(run, lease, wanted_bytes, least_bytes, place)
    if size_bytes == lease.size_bytes:
        return lease
    source = lease.size_from.removesuffix(_GROWN) + _GROWN
    lease = replace(lease, size_bytes=size_bytes, size_from=source)
    if lease.backend == "tmpfs":
        _remount(lease)
    _write_marks(lease)
    return lease


def _first_working(run: Run, lease: Lease, ways: Mapping[str, Way]) -> Lease:
    if run.backend != "auto":
        return ways[run.backend](run, lease)
    reasons = []
    scratch = _scratch_in_memory()
    for name in ("tmpfs", "shm", *(["path"] if scratch else [])):
        try:
            taken = ways[name](replace(run, ramdisk_path=scratch), replace(lease, backend=name))
        except Unavailable as reason:
            reasons.append(f"no {name}: {reason}")
        else:
            return replace(taken, why="; ".join(reasons) or "the first choice, and it works here")
    raise RamTrainError(
        f"run {run.run}: no RAM disk can be had here. "
        + "; ".join(reasons)
        + " Choose a smaller ramdisk.size, a RAM disk of your own (ramdisk.backend: path), or, to train on the disk "
        "where there is none, ramdisk.fallback: disk."
    )


def _scratch_in_memory() -> Path | None:
    """Return the folder that a cluster's job has for itself, if it is in memory; None where there is no such folder."""
    job = caller.job()
    place = Path(job.scratch) if job and job.scratch else None
    is_in_memory = place and place.is_dir() and mount_of(place.resolve()).fstype in MEMORY_FILESYSTEMS
    return place if is_in_memory else None


def _mount_tmpfs(run: Run, lease: Lease) -> Lease:
    """Mount a tmpfs of the run's own."""
    _check_may_mount(run)
    sudo = ("sudo", "-n") if os.geteuid() != 0 else ()
    lease = replace(lease, size_bytes=admit(run, lease), sudo=bool(sudo))
    if _own_mount(lease):  # an earlier attempt was killed between the mount and its mark
        _remount(lease)
        return lease
    return _mount(lease, *sudo)


def _check_may_mount(run: Run) -> None:
    if os.geteuid() != 0 and not run.sudo:
        raise Unavailable("mounting needs root (or ramdisk.sudo: true).")


def _mount(lease: Lease, *prefix: str) -> Lease:
    """Mount a tmpfs (tmpfs(5)), without swap and with huge pages where the kernel has them; `prefix` is put before the
    command."""
    always = f"size={lease.size_bytes},mode=0700,uid={os.geteuid()},gid={os.getegid()},nosuid,nodev"
    refusal: CommandError | None = None
    for more in (",huge=within_size,noswap", ",noswap", ",huge=within_size", ""):
        try:
            run_command(*prefix, "mount", "-t", "tmpfs", "-o", always + more, _TMPFS_SOURCE, lease.folder)
        except CommandError as error:
            refusal = refusal or error
        else:
            swap = lease.may_swap and "noswap" not in more
            return replace(lease, may_swap=swap)
    raise Unavailable(f"{refusal}.")


def _remount(lease: Lease) -> None:
    """Give a mounted tmpfs the size that its lease says."""
    sudo = ("sudo", "-n") if lease.sudo else ()
    # With both source and folder named, mount(8) drops what is not said again.
    options = f"remount,nosuid,nodev,size={lease.size_bytes}"
    run_command(*sudo, "mount", "-t", "tmpfs", "-o", options, _TMPFS_SOURCE, lease.folder)


def _use_shm(run: Run, lease: Lease) -> Lease:
    _check_shm(run)
    return replace(lease, size_bytes=admit(run, lease, SHM))


def _check_shm(run: Run) -> None:
    if mount_of(SHM).fstype not in MEMORY_FILESYSTEMS:
        raise Unavailable(f"{SHM} is not in memory.")
    _check_room(SHM, run.least_bytes, "in a container, start it with a larger --shm-size; else " + _ELSE)


def _use_path(run: Run, lease: Lease) -> Lease:
    path = _check_path(run)
    return _elsewhere(path, replace(lease, size_bytes=admit(run, lease, path)))


def _check_path(run: Run) -> Path:
    """Return the folder on the RAM disk that the config names."""
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
    _check_room(path, run.least_bytes, "a larger RAM disk; else " + _ELSE)
    return path.resolve()


def _use_disk(run: Run, lease: Lease) -> Lease:
    return replace(_elsewhere(_check_disk(run, lease), lease), may_swap=False)


def _check_disk(run: Run, lease: Lease) -> Path:
    """Return the folder on the disk that takes the place of a RAM disk."""
    path = run.ramdisk_path or Path(lease.workdir)
    if not path.is_dir():
        raise RamTrainError(f"ramdisk.path: {path}: no such folder.")
    _check_room(path, run.least_bytes, "free some room")
    return path.resolve()


def _elsewhere(path: Path, lease: Lease) -> Lease:
    lease = _check_free(path, lease)
    _make_private(Path(lease.folder))
    return lease


def _check_free(path: Path, lease: Lease) -> Lease:
    """Return the lease with its folder in `path`, in which nothing must be yet."""
    root = Path(lease.state).parent
    folder = path / root.parent.name / root.name / lease.run
    if folder.is_dir() and any(folder.iterdir()):
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


def release(lease: Lease) -> bool:
    """Unmount or delete the run's RAM disk, and what did not fit in it; return whether there was one.

    Raises:
        RamTrainError: it is busy, something else is mounted in it, or it is not provably ours.
    """
    state, folder = Path(lease.state), Path(lease.folder)
    if not os.path.lexists(state) and not os.path.lexists(folder):
        _clear_beside(state)
        _prune_empty(state)
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
    stays = moved_away(folder, spill_folder(lease))
    if stays:
        log.warning(
            "run %s: %s stays: the trainer may have moved its link elsewhere. Delete it if no link leads there.",
            lease.run,
            ", ".join(map(str, stays)),
        )
    if mounted:
        _unmount(lease)
    _clear_beside(state)
    for place in (folder, state):
        _empty_folder(place)
        _prune_empty(place)
    remove_spilled(spill_folder(lease), stays)
    return True


def _clear_beside(state: Path) -> None:
    """Remove what lies beside the run's state folder, and what was promised to it."""
    for beside in (_temporary_link(state), lock_of(state)):
        beside.unlink(missing_ok=True)
    forget_work(state)
    withdraw(state)


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
    _clear_beside(state)
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
    sudo = ("sudo", "-n") if lease.sudo else ()
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            check_free(lease)
            run_command(*sudo, "umount", lease.folder)
        except RamTrainError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


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
    for _, names, _, folder in os.fwalk(path):  # by descriptors: a path may be longer than the system takes
        for name in names:
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.chmod(name, stat.S_IRWXU, dir_fd=folder)
    shutil.rmtree(path)
