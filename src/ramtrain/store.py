"""Object storage as a second home: whole folders of files there, each with its manifest last.

Whatever fsspec has a library for will do (https://filesystem-spec.readthedocs.io), S3 above all. A folder is a prefix
of keys. First comes a note of who writes it, then the files, each read back and compared, and last the manifest: what
has none is no folder, whatever lies there. What goes loses its manifest first. Nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ramtrain.durable import MANIFEST, Changed, Kept, as_json, receive_file, receive_folder
from ramtrain.errors import RamTrainError
from ramtrain.redact import redact

log = logging.getLogger(__name__)

_BEGUN = "begun.json"
# A store that answers at all does it sooner. No request takes longer, with all its retries: a part of an upload at
# 56 KiB/s.
_ANSWERS_S, _LONGEST_S = 10.0, 300.0
_CHUNK_BYTES = 4 << 20
# What fsspec's libraries call theirs; others are known by their names anyway.
_CREDENTIALS = {"key", "secret", "token", "username"}
# Parts of an upload: 10,000 of them at most, and each but the last 5 MiB at least
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
_PART_BYTES, _MOST_PARTS = 16 << 20, 9_000
# What is escaped in a key: what none can have, what no listing can tell, and `?versionId=`, which s3fs cuts off.
_ODD = re.compile(r"[%?\x00-\x1f\x7f\udc80-\udcff]")


@dataclass(frozen=True)
class Address:
    """Where the store is: its URL, options for fsspec, and whether durable checkpoints are to be there too."""

    url: str
    options: Mapping[str, Any]
    checkpoints: bool


def read_address(content: Mapping[str, Any]) -> Address | None:
    """Return the config's part `store`, checked; None if it names no store.

    Raises:
        RamTrainError: no address of a store, or a password in it.
    """
    url = content["url"]
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError:
        parts = None
    if parts is None or not parts.netloc or parts.scheme in ("", "file", "local"):
        raise RamTrainError(f"store.url: {url!r} is the address of no store; give one such as s3://bucket/folder.")
    options = content["options"]
    if has_password or not _CREDENTIALS.isdisjoint(map(str.lower, options)) or redact(options) != options:
        raise RamTrainError(
            "store: has a password or key in it, which would stand in every record. Leave it out: the libraries find "
            "theirs in the environment or in files of your own, such as AWS_PROFILE and ~/.aws/credentials."
        )
    return Address(url.rstrip("/"), options, content["checkpoints"])


def check_library(address: Address | None) -> None:
    """Check that the library for a store is installed; it is not loaded.

    Raises:
        RamTrainError: it is not, or fsspec knows of none.
    """
    if address is None:
        return
    scheme, pip = urlsplit(address.url).scheme, f"{shlex.quote(sys.executable)} -m pip install"
    if importlib.util.find_spec("fsspec") is None:
        raise RamTrainError(f"store.url: fsspec is not installed in RamTrain's Python. Type `{pip} fsspec s3fs`.")
    from fsspec.registry import known_implementations

    if scheme not in known_implementations:
        raise RamTrainError(f"store.url: {scheme}:// is the address of no store that fsspec knows, as s3:// is.")
    library = known_implementations[scheme]["class"].split(".")[0]
    if importlib.util.find_spec(library) is None:
        raise RamTrainError(
            f"store.url: for {scheme}:// {library} is needed, which is not installed in RamTrain's Python. Type "
            f"`{pip} {library}`."
        )


class Store:
    """A place in object storage; `url` is its address."""

    def __init__(self, address: Address) -> None:
        import fsspec

        _limit_waiting()
        self.url = address.url
        logging.getLogger("aiobotocore").setLevel(logging.WARNING)  # it tells of every store where its keys are from
        with self._told("cannot be used, with what store.options says"):
            options = {"use_listings_cache": False, **address.options}
            self._fs, self._root = fsspec.core.url_to_fs(address.url, **options)

    def check(self) -> None:
        """Check that it can be written to, read, listed and deleted from, before anything is trained.

        Raises:
            RamTrainError: it cannot.
        """
        key, content = self._key(f".ramtrain-{secrets.token_hex(4)}"), os.urandom(16)
        with self._waited_for(), self._told("a first try to write there, read it, list it and delete it failed"):
            self._fs.pipe_file(key, content)
            try:
                same = self._fs.cat_file(key) == content
                self._fs.find(key)
            finally:
                self._fs.rm_file(key)
        if not same:
            raise RamTrainError(f"{self.url}: gave back something else than what was written there.")

    def put_folder(
        self,
        name: str,
        sources: Mapping[str, Path],
        expected: Sequence[Kept],
        about: Mapping[str, Any],
        report: Callable[[int, int], None] = lambda files, size: None,
    ) -> list[Kept]:
        """Put files there as the folder `name`; what an attempt before has left there whole is not sent again.

        Args:
            sources: the file for each path in the folder.
            expected: what those files are known to be, as far as that is known.
            about: what the manifest says beside the files.
            report: called with the files and bytes that came on since the last call; what it raises ends it.

        Raises:
            Changed: a file is not what was expected, or gone.
            RamTrainError: the store failed, or gave back something else.
        """
        known = {file.path: file for file in expected}
        with self._told(f"{name} could not be put there"):
            there = {key: entry["size"] for key, entry in self._fs.find(self._key(name), detail=True).items()}
            self._begin(name)
            kept = []
            for path, source in sources.items():
                key, file = self._key(name, path), known.get(path)
                if not (file and there.get(key) == file.bytes and self._gives(key, file, report)):
                    file = self._put(key, path, source, file, report)
                kept.append(file)
                report(1, 0)
            self._fs.pipe_file(self._key(name, MANIFEST), as_json({**about, "files": [asdict(file) for file in kept]}))
            self._fs.rm_file(self._key(name, _BEGUN))
        return kept

    def folders(self, name: str) -> list[str]:
        """Return the names of the folders in `name`, in their order, whole or not."""
        with self._told("cannot be listed"):
            try:
                entries = self._fs.ls(self._key(name), detail=True)
            except FileNotFoundError:
                return []
        keys = (PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")
        names = (unquote(key, errors="surrogateescape") for key in keys)
        return sorted(name for name in names if "/" not in name and _is_inside(name))

    def read_manifest(self, name: str) -> dict[str, Any] | None:
        """Return a folder's manifest, its `files` as `Kept`; None if it has none and so is not whole.

        Raises:
            RamTrainError: it cannot be read, or names files outside of its folder.
        """
        with self._told("cannot be read"):
            try:
                raw = self._fs.cat_file(self._key(name, MANIFEST))
            except FileNotFoundError:
                return None
        try:
            content = json.loads(raw)
            content["files"] = [Kept(**file) for file in content["files"]]
            is_inside = all(_is_inside(file.path) for file in content["files"])
        except (ValueError, TypeError, KeyError) as error:
            raise RamTrainError(f"{self.url}/{name}/{MANIFEST} is none of RamTrain: {error}") from None
        if not is_inside:
            raise RamTrainError(f"{self.url}/{name}/{MANIFEST} names a file outside of its folder; it is not used.")
        return content

    def fetch_folder(
        self,
        name: str,
        files: Sequence[Kept],
        folder: Path,
        about: Mapping[str, Any],
        report: Callable[[int, int], None] = lambda files, size: None,
    ) -> None:
        """Bring files of a folder there home as `folder`, whole and verified, with a manifest.

        Args:
            files: those that are wanted, by their paths in it.
            folder: the new folder; the files are in it by the same paths.
            about: what its manifest says beside the files.

        Raises:
            RamTrainError: the store failed, or gave back something else than was put there; nothing is left of it.
            OSError: whatever the disk says.
        """

        def read(file: Kept) -> Iterator[bytes]:
            for chunk in self._fetched(name, file):
                report(0, len(chunk))
                yield chunk
            report(1, 0)

        receive_folder(files, read, folder, about)

    def fetch_file(self, name: str, file: Kept, target: Path) -> None:
        """Bring one file of a folder there home, whole and verified; it raises as `fetch_folder` does."""
        receive_file(file, self._fetched(name, file), target)

    def remove_folder(self, name: str) -> None:
        """Remove a folder, its manifest first; one that is not whole only if it was begun in this working directory."""
        content, begun = self.read_manifest(name), self._key(name, _BEGUN)
        with self._told(f"{name} could not be removed"):
            if content:
                self._begin(name)  # or nobody would know whose it is, should this be cut short
                self._fs.rm_file(self._key(name, MANIFEST))
            elif not self._is_begun_by_me(name):
                return
            for key in self._fs.find(self._key(name)):
                if key != begun:
                    self._fs.rm_file(key)
            self._fs.rm_file(begun)

    def _begin(self, name: str) -> None:
        self._fs.pipe_file(self._key(name, _BEGUN), as_json({"by": _me()}))

    def _is_begun_by_me(self, name: str) -> bool:
        try:
            return json.loads(self._fs.cat_file(self._key(name, _BEGUN)))["by"] == _me()
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return False

    def _put(
        self, key: str, path: str, source: Path, expected: Kept | None, report: Callable[[int, int], None]
    ) -> Kept:
        written = Kept(path, *self._write(key, source, report))
        if expected and written != expected:
            self._fs.rm_file(key)
            raise Changed(f"{source.resolve()} is no longer as it came home")
        if not self._gives(key, written, report):
            raise RamTrainError(f"{key}: what is there is not what was sent")
        return written

    def _write(self, key: str, source: Path, report: Callable[[int, int], None]) -> tuple[int, str]:
        digest = hashlib.sha256()
        try:
            reader = source.open("rb")
        except FileNotFoundError:
            raise Changed(f"{source} is gone") from None
        with reader:
            size_bytes = os.fstat(reader.fileno()).st_size
            if size_bytes <= _PART_BYTES:
                content = reader.read()
                digest.update(content)
                self._fs.pipe_file(key, content)
                report(0, len(content))
                return len(content), digest.hexdigest()
            part_bytes, sent_bytes = max(_PART_BYTES, -(-size_bytes // _MOST_PARTS)), 0
            writer = self._fs.open(key, "wb", block_size=part_bytes, autocommit=False)
            try:
                while chunk := reader.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    writer.write(chunk)
                    sent_bytes += len(chunk)
                    report(0, len(chunk))
                writer.close()
                writer.commit()
            except BaseException:
                with contextlib.suppress(Exception):  # why it ended is what counts
                    writer.discard()
                raise
        return sent_bytes, digest.hexdigest()

    def _gives(self, key: str, file: Kept, report: Callable[[int, int], None]) -> bool:
        """Whether what is there under a key is a file, to the last byte."""
        digest, size_bytes = hashlib.sha256(), 0
        try:
            for chunk in self._read(key, file.bytes):
                digest.update(chunk)
                size_bytes += len(chunk)
                report(0, 0)
        except FileNotFoundError:
            return False
        return (size_bytes, digest.hexdigest()) == (file.bytes, file.sha256)

    def _fetched(self, name: str, file: Kept) -> Iterator[bytes]:
        with self._told(f"{name}/{file.path} could not be fetched"):
            yield from self._read(self._key(name, file.path), file.bytes)

    def _read(self, key: str, size_bytes: int) -> Iterator[bytes]:
        if size_bytes <= _PART_BYTES:  # opening it would ask once more
            yield self._fs.cat_file(key)
            return
        with self._fs.open(key, "rb", block_size=_PART_BYTES, cache_type="readahead") as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                yield chunk

    def _key(self, *parts: str) -> str:
        names = (_ODD.sub(lambda odd: quote(os.fsencode(odd[0])), part) for part in parts)
        return "/".join((self._root.rstrip("/"), *names))

    @contextlib.contextmanager
    def _waited_for(self) -> Iterator[None]:
        """Say that the store does not answer, if that takes long."""
        timer = threading.Timer(_ANSWERS_S, log.warning, ("%s does not answer so far; it is waited for", self.url))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say of which store it is that something failed: its library raises what it likes."""
        try:
            yield
        except RamTrainError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.filename:
                raise  # the disk here
            nothing = "it does not answer" if isinstance(error, TimeoutError) else type(error).__name__
            reason = str(error).strip() or nothing
            raise RamTrainError(f"{self.url}: {what}: {reason.splitlines()[0]}") from error


def _limit_waiting() -> None:
    """Have fsspec give up after a while: s3fs (2026.9) waits without end for leave to send (`Expect: 100-continue`)."""
    from fsspec import asyn

    if not isinstance(asyn.sync, functools.partial):
        asyn.sync = functools.partial(asyn.sync, timeout=_LONGEST_S)


def _me() -> dict[str, str]:
    return {"host": socket.gethostname(), "workdir": str(Path.cwd())}


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
