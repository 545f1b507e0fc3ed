"""A trainer with bad manners: `python train.py MANNER...` does them in turn, below its folder `out`.

A file holds its own name, many times over, so that whoever finds it can tell what it should hold.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "venv" / "lib"))
OUT = Path("out").absolute()
MIB = 1 << 20
PR_SET_NAME = 15
NAMES = [
    b"new\nline",
    b" two  blanks ",
    b"-rf",
    b"*",
    b"?",
    b"[ab]",
    b"no \xff text",
    b"quo\"te's",
    b"back\\slash",
    b"esc\x1b[31m\x07",
    b"\xe2\x80\xaetxt.exe",
    b"l" * 255,
]
open_databases: list[sqlite3.Connection] = []


def write(path: Path) -> None:
    """Write a file that holds its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(path.name) * 1000)


def links() -> None:
    """Save two checkpoints, with links to the newer one, relative and absolute, and to nothing."""
    for step in (100, 200):
        write(OUT / f"step-{step}/weights-{step}")
    (OUT / "latest").symlink_to("step-200")
    (OUT / "newest").symlink_to(OUT / "step-200")
    (OUT / "model/of a link").symlink_to("../latest/weights-200")
    (OUT / "dangling").symlink_to("nowhere")


def hard_links() -> None:
    """Give a checkpoint a second name, and a third one as the model."""
    write(OUT / "ck-1")
    os.link(OUT / "ck-1", OUT / "ck-2")
    os.link(OUT / "ck-1", OUT / "model/hard link")


def sparse() -> None:
    """Write a file of 64 MiB that has a beginning and a middle, and holes else."""
    with (OUT / "model/sparse").open("wb") as file:
        file.write(b"beginning")
        file.seek(32 * MIB)
        file.write(b"middle")
        file.truncate(64 * MIB)


def read_only() -> None:
    """Write files that may only be read, in folders that may only be read."""
    write(OUT / "model/read-only/deep/weights")
    (OUT / "model/read-only/deep/weights").chmod(0o400)
    (OUT / "model/read-only/deep").chmod(0o555)
    (OUT / "model/read-only").chmod(0o555)


def deep() -> None:
    """Write a file whose path is longer than the system takes."""
    write(OUT / "deep/weights")
    os.chdir(OUT / "deep")
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    write(Path("weights"))
    os.chdir(OUT.parent)


def masks() -> None:
    """Write under an umask that allows all, and one that allows others nothing."""
    for mask in (0o000, 0o077):
        os.umask(mask)
        write(OUT / f"model/mask {mask:o}/file")
    os.umask(0o022)


def attributes() -> None:
    """Give a file an extended attribute, where that can be done."""
    write(OUT / "model/attributes")
    try:
        os.setxattr(OUT / "model/attributes", "user.note", b"note")
    except OSError as error:
        print(f"no attributes here: {error}")


def nodes() -> None:
    """Leave a pipe, a socket and, as root, a device beside the weights; and a file of 0 bytes."""
    write(OUT / "model/nodes/weights")
    (OUT / "model/nodes/empty").touch()
    os.mkfifo(OUT / "model/nodes/pipe")
    os.chdir(OUT / "model/nodes")  # the path of a socket must be short
    socket.socket(socket.AF_UNIX).bind("socket")
    os.chdir(OUT.parent)
    if os.geteuid() == 0:
        os.mknod("out/model/nodes/device", 0o020666, os.makedev(1, 5))  # /dev/zero


def names() -> None:
    """Use any name that a file, or a folder, can have."""
    for name in NAMES:
        write(OUT / "model/names" / os.fsdecode(name))
        write(OUT / "model/names" / os.fsdecode(b"d" + name[:254]) / os.fsdecode(name))


def odd_writes() -> None:
    """Make a file that has no name at first, one that is larger than what is written to it, and one again and again."""
    with open(os.open(OUT / "model", os.O_TMPFILE | os.O_RDWR, 0o600), "wb") as nameless:
        nameless.write(b"nameless" * 1000)
        nameless.flush()
        folder = os.open("/", os.O_PATH)
        os.link(f"/proc/self/fd/{nameless.fileno()}", OUT / "model/nameless", src_dir_fd=folder, follow_symlinks=True)
    with (OUT / "model/allocated").open("wb") as allocated:
        os.posix_fallocate(allocated.fileno(), 0, MIB)
        allocated.write(b"allocated")
    for number in range(200):
        (OUT / "model/again").unlink(missing_ok=True)
        (OUT / "model/again").write_bytes(f"{number}".encode() * 1000)


def databases() -> None:
    """Log to an SQLite database with WAL, and leave it open."""
    for name in ("log.db", "model/state.sqlite"):
        database = sqlite3.connect(OUT / name)
        database.execute("pragma journal_mode=wal")
        database.execute("create table steps (step)")
        database.executemany("insert into steps values (?)", [(step,) for step in range(100)])
        database.commit()
        open_databases.append(database)


def other_folders() -> None:
    """Go elsewhere, and write to the project from there."""
    os.chdir("/")
    write(OUT / "model/by its absolute path")
    os.chdir("/usr/lib")
    write(Path(os.path.relpath(OUT / "model/by its relative path")))
    os.chdir(OUT.parent)


def environment() -> None:
    """Import from the environment in the project, install something there, and change what is there."""
    import ill_behaved_package

    print(ill_behaved_package.NAME)
    write(Path("venv/lib/installed/__init__.py"))
    Path("venv/pyvenv.cfg").write_text("changed")


def others_name() -> None:
    """Take a name that is hard to read in /proc."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, b") R\n\xff 1 (", 0, 0, 0)


def start_anew() -> None:
    """Replace the process by another one, three times."""
    times = int(os.environ.get("TIMES", "0"))
    if times < 3:
        os.environ["TIMES"] = f"{times + 1}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    write(OUT / "model/of the third process")


def _leave(path: Path) -> None:
    """Leave a process in a session of its own behind, which writes to a file until it is ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with path.open("wb") as file:
                while True:
                    file.write(b"more")
                    file.flush()
                    time.sleep(0.02)
        os._exit(0)
    while not path.exists():
        time.sleep(0.01)


def leave_a_logger() -> None:
    """Leave something behind that is no part of the model."""
    _leave(OUT / "late.log")


def leave_a_trainer() -> None:
    """Leave the true trainer behind, and end well."""
    _leave(OUT / "model/late")


def heed_no_signal() -> None:
    """Ignore all that asks it to end, with a child in a session of its own that does likewise."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
    (OUT / f"deaf-{os.getpid()}").touch()
    time.sleep(600)


def babble() -> None:
    """Print what is no text, and a line that does not end."""
    for _ in range(8):
        os.write(1, os.urandom(MIB) + b"\0" * MIB)
    os.write(1, b"\x1b[2J\x07" + b"x" * 8 * MIB)


def be_silent() -> None:
    """Close all that it could print to."""
    os.closerange(0, 3)


def save() -> None:
    """Save checkpoints of odd names, and wait until the newest may be at home."""
    for name in NAMES:
        write(OUT / "checkpoints" / os.fsdecode(name))
        time.sleep(0.01)
    time.sleep(3)


def tidy_up() -> None:
    """Remove all that was written."""
    subprocess.run(["chmod", "-R", "u+rwX", str(OUT)], check=True)
    subprocess.run(["rm", "-r", str(OUT)], check=True)


def fail() -> None:
    """Fail."""
    os._exit(3)


def vanish() -> None:
    """End without closing anything."""
    os._exit(0)


MANNERS: dict[str, Callable[[], None]] = {
    manner.__name__: manner
    for manner in (
        links,
        hard_links,
        sparse,
        read_only,
        deep,
        masks,
        attributes,
        nodes,
        names,
        odd_writes,
        databases,
        other_folders,
        environment,
        others_name,
        start_anew,
        leave_a_logger,
        leave_a_trainer,
        heed_no_signal,
        babble,
        be_silent,
        save,
        tidy_up,
        fail,
        vanish,
    )
}

if __name__ == "__main__":
    (OUT / "model").mkdir(parents=True, exist_ok=True)
    for word in sys.argv[1:]:
        MANNERS[word]()
