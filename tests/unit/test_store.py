"""Object storage: folders there are whole or none, whatever ends their upload."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import math
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fsspec import asyn

from ramtrain import store as store_module
from ramtrain.durable import DISK, Changed, Kept, as_json, read_manifest
from ramtrain.errors import RamTrainError
from ramtrain.store import Address, Store, check_library, read_address

if TYPE_CHECKING:
    from s3 import Bucket

pytest_plugins = ["s3"]


@pytest.fixture
def store(bucket: Bucket) -> Store:
    return Store(Address(**bucket.store, checkpoints=False))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A small file, an empty one, and one of several parts."""
    monkeypatch.setattr(store_module, "_PART_BYTES", 5 << 20)
    contents = {"a=1,b/small.txt": b"small", "empty": b"", "large.pth": os.urandom((12 << 20) + 7)}
    for number, content in enumerate(contents.values()):
        (tmp_path / str(number)).write_bytes(content)
    return {path: tmp_path / str(number) for number, path in enumerate(contents)}


def kept(path: str, source: Path) -> Kept:
    content = source.read_bytes()
    return Kept(path, len(content), hashlib.sha256(content).hexdigest())


def test_a_folder_goes_there_and_comes_back_the_same(
    store: Store, bucket: Bucket, sources: dict[str, Path], tmp_path: Path
) -> None:
    expected = [kept(path, source) for path, source in sources.items()]
    assert store.put_folder("run/one", sources, expected[:1], {"run": "run"}) == expected
    assert bucket.names() == sorted(f"run/one/{path}" for path in (*sources, "manifest.json"))
    content = store.read_manifest("run/one")
    assert content == {"run": "run", "files": expected}
    store.fetch_folder("run/one", expected, tmp_path / "back", {"run": "run"})
    assert read_manifest(tmp_path / "back") == content
    assert [kept(path, tmp_path / "back" / path) for path in sources] == expected
    assert store.folders("run") == ["one"] and store.folders("other") == []
    store.remove_folder("run/one")
    assert bucket.names() == []


def test_an_upload_that_is_cut_short_is_no_folder_and_goes_on_where_it_was(
    store: Store, bucket: Bucket, sources: dict[str, Path]
) -> None:
    class Cut(RamTrainError):
        pass

    sent = []

    def cut_in_the_third(files: int, size_bytes: int) -> None:
        sent.append(size_bytes)
        if sum(sent) > 8 << 20:
            raise Cut

    expected = [kept(path, source) for path, source in sources.items()]
    with pytest.raises(Cut):
        store.put_folder("run/one", sources, expected, {}, cut_in_the_third)
    assert store.read_manifest("run/one") is None
    assert bucket.names() == ["run/one/a=1,b/small.txt", "run/one/begun.json", "run/one/empty"]
    assert not bucket.fs.call_s3("list_multipart_uploads", Bucket=bucket.name).get("Uploads")
    sent.clear()
    store.put_folder("run/one", sources, expected, {}, lambda files, size: sent.append(size))
    assert sum(sent) == expected[2].bytes, "the other two were there"
    assert store.read_manifest("run/one")["files"] == expected


def test_the_manifest_is_last_and_goes_first(
    store: Store, bucket: Bucket, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    for name in ("pipe_file", "rm_file"):
        real = getattr(store._fs, name)

        def noted(key: str, *arguments: Any, name: str = name, real: Any = real) -> None:
            done.append((name, key.rpartition("/")[2]))
            real(key, *arguments)

        monkeypatch.setattr(store._fs, name, noted)
    store.put_folder("run/one", sources, [], {})
    names = [entry for entry in done if entry[0] == "pipe_file"]
    assert names[0][1] == "begun.json" and names[-1][1] == "manifest.json"
    done.clear()
    store.remove_folder("run/one")
    removed = [name for operation, name in done if operation == "rm_file"]
    assert removed[0] == "manifest.json" and removed[-1] == "begun.json" and done[0] == ("pipe_file", "begun.json")


@pytest.mark.parametrize("work", ["put", "remove"])
def test_whatever_operation_is_the_last_the_next_attempt_makes_it_good(
    work: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, names = (
        Store(Address(f"memory://{tmp_path.name}/x", {}, False)),
        ("pipe_file", "rm_file", "cat_file", "open"),
    )
    expected, before = [kept(path, source) for path, source in sources.items()], {"another": sources["empty"]}
    left, real = math.inf, {name: getattr(store._fs, name) for name in names}

    def counted(name: str, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return real[name](*arguments, **options)

    for name in names:
        monkeypatch.setattr(store._fs, name, functools.partial(counted, name))
    for operations in itertools.count():
        if work == "remove":
            store.put_folder("run/one", before, [], {})
        left = operations
        try:
            if work == "remove":
                store.remove_folder("run/one")
            else:
                store.put_folder("run/one", sources, expected, {})
            break
        except KeyboardInterrupt:
            left = math.inf
        content = store.read_manifest("run/one")
        if content:
            store.fetch_folder("run/one", content["files"], tmp_path / f"back{operations}", {})
        store.put_folder("run/one", sources, expected, {})
        store.fetch_folder("run/one", store.read_manifest("run/one")["files"], tmp_path / f"again{operations}", {})
        store.remove_folder("run/one")
        assert not store._fs.find(store._root)
    assert operations > 5


def test_a_file_may_have_any_name(store: Store, bucket: Bucket, tmp_path: Path) -> None:
    names = [
        "a?versionId=1",
        "a?versionId=2",
        "a%3F",
        "two\nlines",
        os.fsdecode(b"l\xe4tin"),
        "ü #[*] ",
        "..x/...",
        "a::b",
    ]
    sources = {name: tmp_path / str(number) for number, name in enumerate(names)}
    for name, source in sources.items():
        source.write_bytes(os.fsencode(name))
    store.put_folder("x?versionId=%/one", sources, [], {})
    assert store.folders("x?versionId=%") == ["one"]
    files = store.read_manifest("x?versionId=%/one")["files"]
    store.fetch_folder("x?versionId=%/one", files, tmp_path / "back", {})
    assert [(tmp_path / "back" / name).read_bytes() for name in names] == [os.fsencode(name) for name in names]
    assert "x%3FversionId=%25/one/ü #[*] " in bucket.names()
    store.remove_folder("x?versionId=%/one")
    assert bucket.names() == []


def test_the_names_of_folders_lead_nowhere_else(store: Store, bucket: Bucket) -> None:
    for name in ("..", "..%2F..%2Fx", "%2E%2E", "one"):
        bucket.fs.pipe_file(f"{bucket.name}/trainings/run/{name}/manifest.json", b"{}")
    assert store.folders("run") == ["one"]


def test_a_full_disk_is_no_fault_of_the_store(
    store: Store, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = store.put_folder("run/one", sources, [], {})
    monkeypatch.setattr(DISK, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        store.fetch_folder("run/one", files, tmp_path / "back", {})
    with pytest.raises(OSError, match="No space left on device"):
        store.fetch_file("run/one", files[0], tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


def test_what_a_store_does_not_allow_is_found_out_before_a_training(
    store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*arguments: Any) -> None:
        raise PermissionError("Access Denied")

    for name in ("pipe_file", "cat_file", "find", "rm_file"):
        with monkeypatch.context() as patched, pytest.raises(RamTrainError, match=r"a first try .* Access Denied"):
            patched.setattr(store._fs, name, denied)
            store.check()
        assert len(bucket.names()) == (name == "rm_file"), "nothing is left that may be removed"


def test_what_is_not_as_it_came_home_is_not_put_there(store: Store, bucket: Bucket, sources: dict[str, Path]) -> None:
    expected = [kept(path, source) for path, source in sources.items()]
    sources["large.pth"].write_bytes(b"another")
    with pytest.raises(Changed, match="is no longer as it came home"):
        store.put_folder("run/one", sources, expected, {})
    sources["large.pth"].unlink()
    with pytest.raises(Changed, match="is gone"):
        store.put_folder("run/one", sources, expected, {})
    assert "run/one/large.pth" not in bucket.names() and store.read_manifest("run/one") is None


def test_a_store_that_gives_back_something_else_is_found_out(
    store: Store, bucket: Bucket, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store._fs.pipe_file
    monkeypatch.setattr(store._fs, "pipe_file", lambda key, value: real(key, value.replace(b"small", b"smell")))
    with pytest.raises(RamTrainError, match="what is there is not what was sent"):
        store.put_folder("run/one", sources, [], {})
    with pytest.raises(RamTrainError, match="gave back something else"):
        monkeypatch.setattr(store._fs, "cat_file", lambda key: b"")
        store.check()
    monkeypatch.undo()
    files = store.put_folder("run/one", sources, [], {})
    bucket.put("run/one/empty", b"spoilt")
    with pytest.raises(RamTrainError, match="empty is not what was kept"):
        store.fetch_folder("run/one", files, tmp_path / "back", {})
    assert not list(tmp_path.glob("*back*"))


def test_only_what_was_begun_here_is_removed_half(
    store: Store, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workdir in ("mine", "theirs"):
        (tmp_path / workdir).mkdir()
        monkeypatch.chdir(tmp_path / workdir)
        with pytest.raises(Changed):
            store.put_folder(f"run/{workdir}", {"missing": tmp_path / "missing"}, [], {})
    monkeypatch.chdir(tmp_path / "mine")
    for workdir in ("mine", "theirs"):
        store.remove_folder(f"run/{workdir}")
    assert bucket.names() == ["run/theirs/begun.json"]


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_cannot_lead_out_of_its_folder(store: Store, bucket: Bucket, path: str) -> None:
    manifest = as_json({"files": [{"path": path, "bytes": 0, "sha256": ""}]})
    bucket.put("run/one/manifest.json", manifest)
    with pytest.raises(RamTrainError, match="names a file outside of its folder"):
        store.read_manifest("run/one")


def test_what_is_wrong_with_a_store_is_said(bucket: Bucket, tmp_path: Path) -> None:
    Store(Address(**bucket.store, checkpoints=False)).check()
    assert bucket.names() == []
    with pytest.raises(RamTrainError, match=r"^s3://no-such-bucket/x: a first try to write there.* failed: .*bucket"):
        Store(Address("s3://no-such-bucket/x", bucket.options, False)).check()
    nobody = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(RamTrainError, match="Could not connect to the endpoint URL"):
        Store(Address("s3://bucket/x", nobody, False)).check()


def test_a_store_that_never_answers_is_given_up(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(Address(**bucket.store, checkpoints=False))
    monkeypatch.setattr(asyn, "sync", asyn.sync.func)
    monkeypatch.setattr(store_module, "_LONGEST_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = {"endpoint_url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        with pytest.raises(RamTrainError, match="failed: it does not answer"):
            Store(Address("s3://bucket/x", options, False)).check()


def test_a_store_that_does_not_answer_is_told_of_while_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dead(*arguments: Any) -> None:
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        raise TimeoutError("nobody is there")

    store = Store(Address(f"memory://{tmp_path.name}/x", {}, False))
    store.check()
    assert not caplog.messages
    monkeypatch.setattr(store_module, "_ANSWERS_S", 0.01)
    monkeypatch.setattr(store._fs, "pipe_file", dead)
    with pytest.raises(RamTrainError, match="failed: nobody is there"):
        store.check()
    assert caplog.messages == [f"{store.url} does not answer so far; it is waited for"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"url": "bucket/folder"}, "'bucket/folder' is the address of no store"),
        ({"url": "file:///mnt/nas"}, "is the address of no store"),
        ({"url": "s3://"}, "is the address of no store"),
        ({"url": "s3://[bucket"}, "is the address of no store"),
        ({"url": "s3://me:secret@bucket/x"}, "has a password or key in it"),
        ({"url": "s3://bucket", "options": {"key": "AKIA"}}, "has a password or key in it"),
        (
            {"url": "s3://bucket", "options": {"client_kwargs": {"aws_secret_access_key": "wJalrXUt"}}},
            "has a password or key",
        ),
    ],
)
def test_an_address_that_is_none_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(RamTrainError, match=said) as refused:
        read_address({"options": {}, "checkpoints": False, **content})
    assert "AKIA" not in str(refused.value)


def test_a_missing_library_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_address({"url": None, "options": {}, "checkpoints": True}) is None
    check_library(None)
    with pytest.raises(RamTrainError, match=r"for gs:// gcsfs is needed.* -m pip install gcsfs"):
        check_library(Address("gs://bucket", {}, False))
    with pytest.raises(RamTrainError, match="nonsense:// is the address of no store that fsspec knows"):
        check_library(Address("nonsense://bucket", {}, False))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RamTrainError, match="fsspec is not installed"):
        check_library(Address("s3://bucket", {}, False))
