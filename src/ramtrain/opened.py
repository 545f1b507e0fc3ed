"""Which files processes have open or mapped, and which of them for writing (proc(5))."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

# file descriptor flags: proc_pid_fdinfo(5) shows them in octal
_FLAGS = re.compile(r"^flags:\s*([0-7]+)", re.MULTILINE)


def written_to(processes: Iterable[psutil.Process], root: str) -> set[str]:
    """Return the files below `root`, as the processes see it, that they have open or mapped for writing.

    Args:
        root: an absolute path; the result is relative to it.
    """
    return {
        os.path.relpath(path, root)
        for process in processes
        for path in written_by(process.pid)
        if path.startswith(f"{root}/")
    }


def written_by(pid: int) -> Iterator[str]:
    """Yield the paths, as the process sees them, of what it has open or mapped for writing; pipes and such as well."""
    for path, descriptor in _opened(pid):
        with contextlib.suppress(OSError):
            flags = _FLAGS.search(Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text(encoding="ascii"))
            if flags and int(flags.group(1), 8) & os.O_ACCMODE != os.O_RDONLY:
                yield path
    yield from (path for path, mode in _mapped(pid) if mode[1] == "w" and mode[3] == "s")


def held_by(pid: int) -> Iterator[str]:
    """Yield the paths, as the process sees them, of all that it has open or mapped."""
    yield from (path for path, _ in _opened(pid))
    yield from (path for path, _ in _mapped(pid))


def _opened(pid: int) -> Iterator[tuple[str, str]]:
    """Yield the path of each file that a process has open, and the descriptor's number."""
    # A process that ends meanwhile, or of another user, has nothing to tell.
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{number}"), number


def _mapped(pid: int) -> Iterator[tuple[str, str]]:
    """Yield the path of each file that a process has mapped, and how, such as rw-s."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                yield fields[5], fields[1]
