"""What Linux offers and Python's library does not: commands, mounts, process attributes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import select
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from ramtrain.errors import RamTrainError

log = logging.getLogger(__name__)

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
# linux/fs.h
AT_FDCWD = -100
RENAME_EXCHANGE = 2
# linux/mount.h
MS_BIND = 0x1000
# linux/stat.h, struct statx
STATX_BTIME = 0x800
_STATX_BYTES, _STATX_BTIME_OFFSET = 256, 80

# How soon a command is killed that is not wanted any more.
_LOOK_S = 0.2

_libc = ctypes.CDLL(None, use_errno=True)


class CommandError(RamTrainError):
    """A system command that did not end with 0; its text carries what the command said."""


def run_command(*argv: str, timeout_s: float | None = None) -> str:
    """Run a system command and return what it printed.

    Raises:
        CommandError: the program is missing, ended with another status than 0, or took longer than `timeout_s`.
    """
    log.debug("running: %s", shlex.join(argv))
    try:
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s
        )
    except OSError as error:
        raise CommandError(f"{argv[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise CommandError(f"{shlex.join(argv)}: has not ended within {timeout_s:g} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise CommandError(f"{shlex.join(argv)}: {said}")
    return done.stdout


def run_beside(
    *argv: str,
    env: Mapping[str, str],
    stop: Event,
    timeout_s: float,
    cwd: Path | None = None,
    given: bytes = b"",
    most_bytes: int = 16 << 20,
) -> bytes:
    """Run a command of which nothing else waits, and return what it printed.

    Args:
        stop: once it is set, the command is killed.
        given: what it reads from its standard input.
        most_bytes: a longer answer is an error.

    Raises:
        CommandError: it is missing, ended with another status than 0, took too long, said too much, or was stopped.
    """
    with open(os.memfd_create("given"), "w+b") as given_file, open(os.memfd_create("said"), "w+b") as said:
        given_file.write(given)
        given_file.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=given_file,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                process_group=0,  # a Ctrl-C is not meant for it
            )
        except OSError as error:
            raise CommandError(f"{argv[0]}: {error.strerror}") from error
        trouble, answer, deadline = None, bytearray(), time.monotonic() + timeout_s
        assert process.stdout is not None
        with process:
            while not trouble:
                ready, _, _ = select.select([process.stdout], [], [], _LOOK_S)
                if ready and not (part := process.stdout.read(1 << 16)):
                    break
                answer += part if ready else b""
                if stop.is_set() or time.monotonic() > deadline:
                    trouble = "it was stopped" if stop.is_set() else f"it took more than {timeout_s:g} s"
                elif len(answer) > most_bytes:
                    trouble = f"it said more than {most_bytes} bytes"
            if trouble:
                process.kill()
        if trouble is None and process.returncode != 0:
            said.seek(0)
            trouble = " ".join(said.read().decode(errors="replace").split()) or f"exit status {process.returncode}"
    if trouble:
        raise CommandError(f"{shlex.join(argv[:1])}: {trouble}")
    return bytes(answer)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, fstype: str = "", options: str = "", flags: int = 0) -> None:
    """Call mount(2), which needs no parsing of `options` by a program in between."""
    _check(
        _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), flags, os.fsencode(options)),
        target,
    )


def set_process_attribute(option: int, value: int) -> None:
    """Call prctl(2)."""
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl({option})")


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one step: renameat2(2) with RENAME_EXCHANGE.

    Raises:
        OSError: EINVAL or ENOSYS where the file system cannot (NFS, for one).
    """
    _check(
        _libc.renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE),
        str(second),
    )


def sync_filesystem(folder: Path) -> None:
    """Write all that is dirty in the file system of `folder` to its device (syncfs(2)), whoever wrote it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _check(_libc.syncfs(descriptor), str(folder))
    finally:
        os.close(descriptor)


def is_sparse(status: os.stat_result) -> bool:
    """Whether a file takes less room than its size, as one with holes does."""
    return status.st_blocks * 512 < status.st_size


def data_ranges(descriptor: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield where a file has data, from and up to; what lies between is holes (lseek(2), SEEK_DATA)."""
    if not is_sparse(status):
        yield 0, status.st_size
        return
    end = 0
    while end < status.st_size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else who asks for it is at work in a folder, and be the only one (flock(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def born_s(path: Path) -> float | None:
    """Return when a file was made, in seconds since the epoch (statx(2), stx_btime); None where that is not kept.

    Raises:
        OSError: it is not there.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_BTIME, buffer), str(path))
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BTIME_OFFSET)
    return seconds + nanoseconds / 1e9 if mask & STATX_BTIME else None


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    device: str
    point: Path
    fstype: str
    source: str
    options: tuple[str, ...]


def _unescape(field: str) -> str:
    return os.fsdecode(os.fsencode(field).decode("unicode_escape").encode("latin-1"))


def mounts(pid: int | str = "self") -> list[Mount]:
    """Return the mounts that a process sees, later ones on top of earlier ones.

    Raises:
        OSError: there is no such process, or it is another user's.
    """
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, right = line.split(" - ", 1)
        fields = left.split(" ")
        fstype, source, super_options = right.split(" ", 2)
        options = (*fields[5].split(","), *super_options.split(","))
        found.append(Mount(fields[2], Path(_unescape(fields[4])), fstype, _unescape(source), options))
    return found


def mount_of(path: Path, among: Sequence[Mount] | None = None) -> Mount:
    """Return the mount that holds `path`, which must be resolved; of those that this process sees, or among others."""
    holding = [entry for entry in (mounts() if among is None else among) if path.is_relative_to(entry.point)]
    deepest = max(len(entry.point.parts) for entry in holding)
    return [entry for entry in holding if len(entry.point.parts) == deepest][-1]
