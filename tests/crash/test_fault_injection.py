"""What `durable` promises, after a power cut, a kill and a disk's error at every single operation it does."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeAlias

import pytest
from forgetful_disk import ForgetfulDisk, PowerCut, Tree, build, scan

from ramtrain import durable
from ramtrain.durable import Disk
from ramtrain.errors import RamTrainError
from ramtrain.ramdisk import SHM

Call: TypeAlias = Callable[[Path, Path, Disk], object]  # on the sources in RAM, and the folder on the disk
Outcome: TypeAlias = tuple[str | None, ...]  # which version each name has, None where there is none

FOLDERS = {
    "old": {"model.pth": b"the older weights" * 16, "sub/two": b"2" * 90},
    "new": {"model.pth": b"the newer weights" * 17, "sub/two": b"II" * 50, "sub/empty": b""},
}
TEXTS = {version: {"text": f"{version} words " * 20} for version in FOLDERS}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SPARSE = {"old": b"older", "new": bytes(PAGE_BYTES) + b"after a hole"}
FILES = {version: json.dumps(text, indent=2).encode() + b"\n" for version, text in TEXTS.items()}


@dataclass(frozen=True)
class Promise:
    """What a reader may find.

    Args:
        names: the paths that are looked at, all in one folder.
        before: which version each of them has before.
        calls: what is done, one after the other.
        found: what may be found during each call, and once all have returned.
        versions: what may be in a file or folder with such a name.
        again: what a process does that finds a call not done; without it, the same call.
        can_exchange: False for a disk that cannot swap names, whose readers sweep first.
    """

    names: tuple[str, ...]
    before: Outcome
    calls: tuple[Call, ...]
    found: tuple[set[Outcome], ...]
    versions: Mapping[str, bytes | Mapping[str, bytes]]
    again: tuple[Call, ...] = ()
    can_exchange: bool = True


def commit(name: str) -> Call:
    def call(ram: Path, home: Path, disk: Disk) -> None:
        durable.commit_folder({path: ram / path for path in FOLDERS["new"]}, home / name, disk=disk)

    return call


def remove_if_there(_ram: Path, home: Path, disk: Disk) -> None:
    durable.sweep(home / "step_1", disk)
    if (home / "step_1").exists():
        durable.remove(home / "step_1", disk)


def set_aside_if_there(_ram: Path, home: Path, disk: Disk) -> None:
    if (home / "step_1").exists():
        durable.set_aside(home / "step_1", "failed", disk)
    disk.sync_folder(home)


def commit_sparse(ram: Path, home: Path, disk: Disk) -> None:
    with (ram / "sparse").open("wb") as file:
        file.seek(PAGE_BYTES)
        file.write(b"after a hole")
    durable.commit_file(ram / "sparse", home / "sparse", disk=disk)


OLD_OR_NEW: tuple[set[Outcome], ...] = ({("old",), ("new",)}, {("new",)})
EXPORT = Promise(("results/run/model",), ("old",), (commit("results/run/model"),), OLD_OR_NEW, FOLDERS)
PROMISES = {
    "drain": Promise(
        ("step_1", "step_2"),
        ("old", None),
        (commit("step_2"), lambda _ram, home, disk: durable.remove(home / "step_1", disk)),
        ({("old", None), ("old", "new")}, {("old", "new"), (None, "new")}, {(None, "new")}),
        FOLDERS,
        again=(commit("step_2"), remove_if_there),
    ),
    "export": EXPORT,
    "export without exchange": Promise(
        EXPORT.names, EXPORT.before, EXPORT.calls, EXPORT.found, FOLDERS, can_exchange=False
    ),
    "first export": Promise(EXPORT.names, (None,), EXPORT.calls, ({(None,), ("new",)}, {("new",)}), FOLDERS),
    "write_json": Promise(
        ("record.json",),
        ("old",),
        (lambda _ram, home, disk: durable.write_json(home / "record.json", TEXTS["new"], disk),),
        OLD_OR_NEW,
        FILES,
    ),
    "commit_file": Promise(
        ("train.log",),
        ("old",),
        (lambda ram, home, disk: durable.commit_file(ram / "log", home / "train.log", disk=disk),),
        OLD_OR_NEW,
        FILES,
    ),
    "commit_file with holes": Promise(("sparse",), ("old",), (commit_sparse,), OLD_OR_NEW, SPARSE),
    "set_aside": Promise(
        ("step_1", "failed-step_1"),
        ("old", None),
        (lambda _ram, home, disk: durable.set_aside(home / "step_1", "failed", disk),),
        ({("old", None), (None, "old")}, {(None, "old")}),
        FOLDERS,
        again=(set_aside_if_there,),
    ),
}


class Broken(AssertionError):
    """A promise was not kept."""


class Proof:
    """Puts a promise to the proof on a disk; each method raises `Broken` where it is not kept."""

    def __init__(self, promise: Promise, folder: Path, patch: pytest.MonkeyPatch, disk: type[ForgetfulDisk]) -> None:
        self.promise = promise
        self.disk = disk
        self.folder = folder
        self.ram = folder / "ram"
        self._patch = patch
        self._numbers = itertools.count()
        self._kept: set[tuple[Tree, frozenset[Outcome]]] = set()
        _put(self.ram, FOLDERS["new"])
        _put(self.ram / "log", FILES["new"])
        with self._built(()) as root:
            for name, version in zip(promise.names, promise.before, strict=True):
                content = promise.versions[version] if version else {}
                if isinstance(content, bytes):
                    _put(root / name, content)
                elif content:
                    _put(folder / name, content)
                    sources = {path: folder / name / path for path in content}
                    durable.commit_folder(sources, root / name, disk=ForgetfulDisk(root))
            self.before = scan(root)

    def cut_everywhere(self) -> None:
        """Cut the power at every step; then let a new process do the call again."""
        with self._begun(watched=True) as disk:
            seen = list(self._calls(disk))
            self._check_done(disk)
        for number, trees in enumerate(seen):
            self._check(trees, number)
            for tree in trees:
                with self._begun(tree) as disk:
                    for _ in self._calls(disk, number, again=True):
                        pass
                    self._check_done(disk)

    def kill_everywhere(self) -> None:
        """Kill the process at every step; cut the power at every step of the one that does the call again."""
        for step in self._steps():
            with self._begun(cut_at=step) as disk:
                number = self._interrupted(disk)
                disk.restart()
                disk.watched = True
                self._do_again(disk, number)

    def fail_everywhere(self, error: int) -> None:
        """Let every step fail; what a reader finds then, also after a power cut; let a new process do it again."""
        for step in self._steps():
            with self._begun(fail_at=step, error=error) as disk:
                number = self._interrupted(disk)
                assert not disk.fail_at, "the fault was met"
                self._check({scan(disk.root): f"{step}, which failed", **dict.fromkeys(disk.outcomes(), step)}, number)
                if step.startswith(("create", "write", "flush", "sync ")):
                    self._check_clean(disk)
                self._do_again(disk, number)

    @contextmanager
    def _built(self, tree: Tree) -> Iterator[Path]:
        root = self.folder / f"disk-{next(self._numbers)}"
        build(tree, root)
        yield root
        shutil.rmtree(root)

    @contextmanager
    def _begun(self, tree: Tree | None = None, **options: Any) -> Iterator[ForgetfulDisk]:
        # What a commit draws at random is the same in each run, so that the steps have the same names.
        tokens = itertools.count(0 if tree is None else 1 << 16)
        self._patch.setattr(durable.secrets, "token_hex", lambda _bytes: f"{next(tokens):08x}")
        with self._built(self.before if tree is None else tree) as root:
            yield self.disk(root, can_exchange=self.promise.can_exchange, **options)

    def _steps(self) -> list[str]:
        with self._begun() as disk:
            for _ in self._calls(disk):
                pass
            return list(disk.steps)

    def _calls(self, disk: ForgetfulDisk, start: int = 0, again: bool = False) -> Iterator[dict[Tree, str]]:
        """Do the calls from `start` on, the first maybe again; yield what each lets a reader find."""
        for number, call in enumerate(self.promise.calls[start:], start):
            disk.seen = {}
            if again and number == start and self.promise.again:
                call = self.promise.again[number]
            call(self.ram, disk.root, disk)
            yield disk.seen

    def _interrupted(self, disk: ForgetfulDisk) -> int:
        """Do the calls until one fails; return how many returned, which is all of them if none minds the fault."""
        number = 0
        with suppress(PowerCut, OSError):
            for number, trees in enumerate(self._calls(disk), 1):
                self._check(trees, number - 1)
            return number
        self._check(disk.seen, number)
        return number

    def _do_again(self, disk: ForgetfulDisk, start: int) -> None:
        for number, trees in enumerate(self._calls(disk, start, again=True), start):
            self._check(trees, number)
        self._check_done(disk)

    def _check_done(self, disk: ForgetfulDisk) -> None:
        """Check what is found once all has returned, also after a power cut, and that nothing else is left."""
        tree = scan(disk.root)
        self._check({tree: "nothing", **dict.fromkeys(disk.outcomes(), "the end")}, len(self.promise.calls))
        self._check_clean(disk)

    def _check_clean(self, disk: ForgetfulDisk) -> None:
        if left := list(disk.root.rglob(".*")):
            raise Broken(f"left behind: {left}")

    def _check(self, trees: Mapping[Tree, str], number: int) -> None:
        may_be = self.promise.found[number]
        for tree, step in trees.items():
            if (tree, frozenset(may_be)) in self._kept:
                continue
            with self._built(tree) as root:
                there = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
                try:
                    found = self._read(root)
                except (Broken, RamTrainError) as error:
                    raise Broken(f"cut at {step!r}: {error}; there is {there}") from error
            if found not in may_be:
                raise Broken(f"cut at {step!r}: {found} is found, not one of {may_be}; there is {there}")
            self._kept.add((tree, frozenset(may_be)))

    def _read(self, root: Path) -> Outcome:
        paths = [root / name for name in self.promise.names]
        if not self.promise.can_exchange:
            for path in paths:
                durable.sweep(path, ForgetfulDisk(root))
        if paths[0].parent.exists():
            others = {path.name for path in paths[0].parent.iterdir() if not path.name.startswith(".")}
            if others := others - {path.name for path in paths}:
                raise Broken(f"{others} should not be there")
        return tuple(_version(path, self.promise.versions) for path in paths)


def _put(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    files = {path / name: part for name, part in content.items()} if isinstance(content, Mapping) else {path: content}
    for file, part in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part)


def _version(path: Path, versions: Mapping[str, bytes | Mapping[str, bytes]]) -> str | None:
    """Return which version a path has, whole and as its manifest says."""
    if not path.exists():
        return None
    content: object = path.read_bytes() if path.is_file() else _read_folder(path)
    for version, expected in versions.items():
        if content == expected:
            return version
    raise Broken(f"{path} is no version: {content}")


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hashes = {file.path: file.sha256 for file in durable.read_manifest(folder)["files"]}
    del files[durable.MANIFEST]
    if hashes != {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}:
        raise Broken(f"{folder}: the files are not those of its manifest")
    return files


Prover: TypeAlias = Callable[..., Proof]


@pytest.fixture
def prove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prover]:
    """Return a function that takes the name of a promise and a kind of disk."""
    monkeypatch.setattr(durable, "_CHUNK_BYTES", 128)
    monkeypatch.setattr(durable, "_FLUSH_BYTES", 128)
    monkeypatch.setattr(os, "O_DIRECT", 0)  # which takes no such small pieces
    with TemporaryDirectory(dir=SHM if os.access(SHM, os.W_OK) else tmp_path) as folder:
        yield lambda name, disk=ForgetfulDisk: Proof(PROMISES[name], Path(folder), monkeypatch, disk)


@pytest.mark.parametrize("name", PROMISES)
def test_a_power_cut_at_any_step(name: str, prove: Prover) -> None:
    prove(name).cut_everywhere()


@pytest.mark.parametrize("name", PROMISES)
def test_a_kill_at_any_step_and_then_a_power_cut(name: str, prove: Prover) -> None:
    prove(name).kill_everywhere()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", PROMISES)
def test_an_error_at_any_step(name: str, error: int, prove: Prover) -> None:
    prove(name).fail_everywhere(error)


class SyncsNoFile(ForgetfulDisk):
    def sync(self, file: BinaryIO) -> None:
        pass


class SyncsAfterRename(ForgetfulDisk):
    last: BinaryIO

    def sync(self, file: BinaryIO) -> None:
        self.last = file

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        super().sync(self.last)


class TakesNoNoticeOfErrors(ForgetfulDisk):
    def sync(self, file: BinaryIO) -> None:
        with suppress(OSError):
            super().sync(file)
        super().sync(file)


class TakesNoNoticeOfFlushErrors(ForgetfulDisk):
    def flush(self, file: BinaryIO) -> None:
        with suppress(OSError):
            super().flush(file)


class SyncsNoNewFolder(ForgetfulDisk):
    def sync_folder(self, path: Path) -> None:
        if not is_partial(path):
            super().sync_folder(path)


class SyncsNoName(ForgetfulDisk):
    def sync_folder(self, path: Path) -> None:
        if is_partial(path):
            super().sync_folder(path)


class SyncsNoParents(ForgetfulDisk):
    """Forgets the names of new folders above the one that is committed."""

    def sync_folder(self, path: Path) -> None:
        if is_partial(path) or path.name == "run":
            super().sync_folder(path)


class SyncsNoSweep(ForgetfulDisk):
    """Leaves out the first sync after a kill of a folder that has leftovers."""

    is_swept = True

    def restart(self) -> None:
        super().restart()
        self.is_swept = False

    def sync_folder(self, path: Path) -> None:
        if self.is_swept or not [*path.glob(".*.partial"), *path.glob(".*.aside")]:
            super().sync_folder(path)
        else:
            self.is_swept = True


class DeletesBeforeExchange(ForgetfulDisk):
    def exchange(self, first: Path, second: Path) -> None:
        delete_files(second, self)
        super().exchange(first, second)


class DeletesAfterExchange(ForgetfulDisk):
    def exchange(self, first: Path, second: Path) -> None:
        super().exchange(first, second)
        delete_files(first, self)


class DeletesBeforeRename(ForgetfulDisk):
    def rename(self, source: Path, target: Path) -> None:
        if is_partial(target):
            delete_files(source, self)
        super().rename(source, target)


class DeletesAfterRename(ForgetfulDisk):
    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if is_partial(target):
            delete_files(target, self)


class DeletesAfterError(ForgetfulDisk):
    """Gives up what has no final name, although it may be what has it on the disk."""

    def sync_folder(self, path: Path) -> None:
        try:
            super().sync_folder(path)
        except OSError:
            for partial in path.glob(".*.partial"):
                delete_files(partial, self)
            raise


def is_partial(path: Path) -> bool:
    return any(part.endswith(".partial") for part in path.parts)


def delete_files(folder: Path, disk: Disk) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            disk.unlink(path)


@pytest.mark.parametrize(
    ("disk", "name", "put_to_proof"),
    [
        (SyncsNoFile, "export", Proof.cut_everywhere),
        (SyncsNoFile, "commit_file", Proof.cut_everywhere),
        (SyncsNoFile, "write_json", Proof.cut_everywhere),
        (SyncsAfterRename, "write_json", Proof.cut_everywhere),
        (TakesNoNoticeOfErrors, "commit_file", lambda proof: proof.fail_everywhere(errno.EIO)),
        (TakesNoNoticeOfFlushErrors, "commit_file", lambda proof: proof.fail_everywhere(errno.EIO)),
        (SyncsNoNewFolder, "export", Proof.cut_everywhere),
        (SyncsNoName, "export", Proof.cut_everywhere),
        (SyncsNoName, "export without exchange", Proof.cut_everywhere),
        (SyncsNoName, "drain", Proof.cut_everywhere),
        (SyncsNoName, "write_json", Proof.cut_everywhere),
        (SyncsNoName, "commit_file", Proof.cut_everywhere),
        (SyncsNoName, "set_aside", Proof.cut_everywhere),
        (SyncsNoParents, "first export", Proof.cut_everywhere),
        (SyncsNoSweep, "export", Proof.kill_everywhere),
        (SyncsNoSweep, "export without exchange", Proof.kill_everywhere),
        (DeletesBeforeExchange, "export", Proof.cut_everywhere),
        (DeletesAfterExchange, "export", Proof.cut_everywhere),
        (DeletesBeforeRename, "drain", Proof.cut_everywhere),
        (DeletesAfterRename, "drain", Proof.cut_everywhere),
        (DeletesAfterError, "export", lambda proof: proof.fail_everywhere(errno.EIO)),
    ],
)
def test_the_proof_notices(
    disk: type[ForgetfulDisk], name: str, put_to_proof: Callable[[Proof], None], prove: Prover
) -> None:
    """Each of these disks leaves out, or changes, one thing that the protocol does for a reason."""
    with pytest.raises(Broken, match="cut at"):
        put_to_proof(prove(name, disk))
