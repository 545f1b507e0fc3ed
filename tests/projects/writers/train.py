"""A trainer that writes in one of the ways that are hard to count: `python train.py WAY FOLDER`."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20


def fleeting(folder: Path) -> None:
    """Write 20 MiB and delete it within a second, ten times."""
    for number in range(10):
        path = folder / f"{number}.bin"
        path.write_bytes(os.urandom(20 * MIB))
        time.sleep(0.2)
        path.unlink()


def overwrite(folder: Path) -> None:
    """Write one file of 4 MiB fifty times."""
    for _ in range(50):
        (folder / "last.bin").write_bytes(os.urandom(4 * MIB))
        time.sleep(0.05)


def small(folder: Path) -> None:
    """Write a thousand files of one byte, each synced."""
    for number in range(1000):
        with (folder / f"{number}.txt").open("wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())


def brood(folder: Path) -> None:
    """Have children and grandchildren write 10 MiB each and end early."""
    write = "import os, sys; open(sys.argv[1], 'wb').write(os.urandom(10 << 20))"
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {write!r}, sys.argv[1] + '.grandchild']);"
        + write
    )
    children = [subprocess.Popen([sys.executable, "-c", parent, str(folder / str(number))]) for number in range(4)]
    for child in children:
        child.wait()
    time.sleep(1)


def mapped(folder: Path) -> None:
    """Write 50 MiB through a mapping."""
    with (folder / "mapped.bin").open("w+b") as file:
        file.truncate(50 * MIB)
        with mmap.mmap(file.fileno(), 50 * MIB) as memory:
            for start in range(0, 50 * MIB, MIB):
                memory[start : start + MIB] = os.urandom(MIB)


def daemon(folder: Path) -> None:
    """Leave a process in a session of its own behind that writes 20 MiB and goes on."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (folder / "daemon.bin").write_bytes(os.urandom(20 * MIB))
            time.sleep(60)
        os._exit(0)
    while not (folder / "daemon.bin").exists() or (folder / "daemon.bin").stat().st_size < 20 * MIB:
        time.sleep(0.05)


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__: way for way in (fleeting, overwrite, small, brood, mapped, daemon)
}

if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    WAYS[sys.argv[1]](target)
    (target / "model.bin").write_bytes(b"model")
