"""Durable checkpoints in the store: which are taken there, what goes there, and what is said when that fails."""

from __future__ import annotations

import errno
import logging
import os
import runpy
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from conftest import REPO, small_config

from ramtrain import courier as couriers
from ramtrain import shelf
from ramtrain.__main__ import main
from ramtrain.archive import fetch_run
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.courier import Courier
from ramtrain.durable import DISK, Changed, as_json, commit_folder, remove
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.lease import Lease
from ramtrain.shelf import DurableCheckpoint, read_durable
from ramtrain.store import Store
from ramtrain.stored import drop_checkpoints, fetch_checkpoint, newest_in, store_checkpoint
from ramtrain.supervise import _warn_unprotected

MINE = Fingerprint({"command": ["train"]}, None)
ANOTHER = Fingerprint({"command": ["train", "--lr", "1"]}, None)
RUN, CONTENT = "one", b"the state of a training"


def nothing(files: int, size_bytes: int) -> None:
    """Take no note of what comes on."""


@pytest.fixture
def run(workdir: Path, project: Path) -> Run:
    address = {"url": f"memory://{os.urandom(4).hex()}/x", "checkpoints": True}
    config = small_config(project, runs=[{"run": RUN}], store=address)
    (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
    return run


@pytest.fixture
def store(run: Run) -> Store:
    return Store(run.store)


def came_home(run: Run, saved_s: float, fingerprint: Fingerprint = MINE, best: str | None = None) -> DurableCheckpoint:
    """Return a durable checkpoint as the drain leaves it, after the best model that it names, as saved when it was."""
    path = f"checkpoint_{saved_s:.0f}.bin"
    about = shelf.about(path, saved_s, {"step": "1"}, fingerprint)
    source = Path("source.bin")
    source.write_bytes(CONTENT)
    if best:
        folder = shelf.shelf(run.run) / best
        commit_folder({f"project/{best}.bin": source}, folder, about=lambda: about)
        about["best"] = [best]
    folder = shelf.shelf(run.run) / shelf.name_of(path, saved_s)
    commit_folder({f"project/{path}": source}, folder, about=lambda: about)
    return read_durable(folder)


def there(run: Run, store: Store) -> list[str]:
    """Return the names of the whole checkpoints in the store."""
    names = store.folders(f"{run.run}/checkpoints")
    return [name for name in names if store.read_manifest(f"{run.run}/checkpoints/{name}")]


def test_the_newest_are_kept_with_the_best_models_that_they_name(run: Run, store: Store) -> None:
    run = replace(run, protect=replace(run.protect, keep=2))
    other = came_home(run, 50, ANOTHER)
    store_checkpoint(other, run, store, nothing)
    made = [came_home(run, saved_s, best=f"best-{saved_s}") for saved_s in (100, 200, 300)]
    for durable in made:
        store_checkpoint(durable, run, store, nothing)
    assert there(run, store) == [other.folder.name, *(one.folder.name for one in made[1:]), "best-200", "best-300"]

    before = {one.folder.name: one for one in [*made, read_durable(shelf.shelf(run.run) / "best-300")]}
    for folder in shelf.shelf(run.run).iterdir():
        remove(folder)
    fetch_checkpoint(run.run, store, newest_in(run.run, store, MINE))
    for name in (made[-1].folder.name, "best-300"):
        assert read_durable(shelf.shelf(run.run) / name) == before[name]
    drop_checkpoints(run.run, store, MINE)
    assert there(run, store) == [other.folder.name], "another training's are not ours to remove"


def test_one_that_is_replaced_at_home_while_its_best_model_is_sent_arrives_all_the_same(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable = came_home(run, 100, best="best-100")
    real = store.put_folder

    def replaced_meanwhile(*arguments: Any) -> Any:
        for folder in shelf.shelf(run.run).iterdir():
            remove(folder)
        return real(*arguments)

    monkeypatch.setattr(store, "put_folder", replaced_meanwhile)
    store_checkpoint(durable, run, store, nothing)
    assert there(run, store) == [durable.folder.name, "best-100"]


def test_what_an_upload_that_was_cut_short_has_left_goes_with_the_next(run: Run, store: Store) -> None:
    class Cut(RamTrainError):
        pass

    def cut(files: int, size_bytes: int) -> None:
        raise Cut

    with pytest.raises(Cut):
        store_checkpoint(came_home(run, 100), run, store, cut)
    assert len(store.folders(f"{RUN}/checkpoints")) == 1 and not there(run, store)
    newer = came_home(run, 200)
    store_checkpoint(newer, run, store, nothing)
    assert store.folders(f"{RUN}/checkpoints") == [newer.folder.name]


def test_what_something_else_has_put_there_is_left(run: Run, store: Store) -> None:
    key = store._key(RUN, "checkpoints", "theirs", "manifest.json")
    store._fs.pipe_file(key, as_json({"saved_s": 1e12, "files": []}))
    durable = came_home(run, 100)
    store_checkpoint(durable, run, store, nothing)
    assert newest_in(RUN, store, MINE) == durable
    drop_checkpoints(RUN, store, MINE)
    assert store.folders(f"{RUN}/checkpoints") == ["theirs"]


def put_version(store: Store, ended_s: float, fingerprint: Fingerprint) -> str:
    """Put a run into the store that has ended; return its name there."""
    record = Path("record.json")
    record.write_text("{}", encoding="utf-8")
    name = f"{RUN}/20260101T12000{ended_s // 100:.0f}.000Z"
    store.put_folder(name, {"record.json": record}, [], {"ended_s": ended_s, "fingerprint": asdict(fingerprint)})
    return name


def test_fetch_leaves_what_is_here_as_it_is(run: Run, store: Store, workdir: Path) -> None:
    mine = Fingerprint(run.training, None)
    versions = [put_version(store, ended_s, mine) for ended_s in (100.0, 200.0)]
    durable = came_home(run, 100)
    assert fetch_run(run, store, workdir) == (True, f"has durable checkpoints here already, in {shelf.shelf(RUN)}")
    remove(durable.folder)
    assert fetch_run(run, store, workdir) == (True, f"has ended; it came home from {store.url}/{versions[1]}")
    assert fetch_run(run, store, workdir) == (True, f"is here already, in {shelf.home(RUN)}")


def stored_away(run: Run, store: Store, saved_s: float, fingerprint: Fingerprint) -> DurableCheckpoint:
    """Return a durable checkpoint that is in the store, and here no more."""
    durable = came_home(run, saved_s, fingerprint)
    store_checkpoint(durable, run, store, nothing)
    remove(durable.folder)
    return durable


def test_what_is_fetched_is_of_the_training_that_the_config_asks_for(run: Run, store: Store, workdir: Path) -> None:
    mine = Fingerprint(run.training, {"data": "1"})
    assert fetch_run(run, store, workdir) == (False, f"is not in {store.url}")
    other = put_version(store, 100.0, ANOTHER)
    is_here, what = fetch_run(run, store, workdir)
    assert not is_here
    assert what == f"is there as another training alone (project, command), {store.url}/{other}"
    foreign = stored_away(run, store, 300, ANOTHER)
    is_here, what = fetch_run(run, store, workdir)
    assert is_here and f"add `--config resume={foreign.folder}`" in what and foreign.folder.exists()
    remove(foreign.folder)
    ended = stored_away(run, store, 150, mine)
    came = f"its durable checkpoint {ended.folder.name} came home from {store.url}"
    assert fetch_run(run, store, workdir) == (True, came)
    remove(ended.folder)
    put_version(store, 200.0, mine)
    assert fetch_run(run, store, workdir)[1].startswith("has ended; ")
    remove(shelf.home(RUN))
    again = stored_away(run, store, 250, mine)
    assert f"checkpoint {again.folder.name} came home" in fetch_run(run, store, workdir)[1], "it was trained again"


def test_what_the_disk_says_to_a_run_that_is_fetched_is_told_with_its_place(
    run: Run, store: Store, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store_checkpoint(came_home(run, 100), run, store, nothing)
    shutil.rmtree("results")
    monkeypatch.setattr(DISK, "write", full)
    Path("my.yaml").write_text(yaml.safe_dump(run.config), encoding="utf-8")
    monkeypatch.setattr("ramtrain.caller.remember", lambda *_: None)  # in the environment, for all tests after this one
    monkeypatch.setattr("sys.argv", ["ramtrain", "fetch", "--configfile", "my.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value) == f"run {RUN}: cannot come home to results/{RUN}: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("checkpoints", "is_sent", "is_tried"), [(False, True, False), (True, True, True), (False, False, True)]
)
def test_a_node_that_needs_no_store_need_reach_none(
    run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: bool, is_sent: bool, is_tried: bool
) -> None:
    class Enough(RamTrainError):
        pass

    def enough(*arguments: object) -> None:
        raise Enough

    def noted(store: Store) -> None:
        tried.append(store)

    tried: list[Store] = []
    monkeypatch.setattr(Store, "check", noted)
    mount = runpy.run_path(str(REPO / "scripts/mount_ramdisk.py"))["mount_ramdisk"]
    monkeypatch.setitem(mount.__globals__, "changes_since", enough)
    monkeypatch.setattr("ramtrain.caller.job", lambda: "a job" if is_sent else None)
    with pytest.raises(Enough):
        mount(replace(run, store=replace(run.store, checkpoints=checkpoints)), workdir, workdir / "lease.json")
    assert bool(tried) == is_tried


def test_checkpoints_that_will_never_come_home_are_told_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    on_disk = cast(Lease, SimpleNamespace(backend="disk"))
    _warn_unprotected(run, on_disk)
    assert not caplog.messages
    _warn_unprotected(replace(run, protect=replace(run.protect, max_loss_s=None)), on_disk)
    assert caplog.messages == [f"run {RUN}: protect.max_loss is never: no checkpoints go to the store while it trains"]


@pytest.fixture
def courier(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Courier]:
    """Give a courier that is at work, and looks often."""
    monkeypatch.setattr(couriers, "_TICK_S", 0.005)
    monkeypatch.setattr(couriers, "_RETRY_S", 0.02)
    caplog.set_level(logging.INFO)
    courier = Courier(run, lambda: MINE)
    courier.start()
    yield courier
    courier.finish(with_newest=False)
    assert courier.has_ended(10)
    assert not [record for record in caplog.get_records("call") if record.exc_info], "a defect"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_store_that_fails_is_told_of_once_and_tried_again(
    run: Run, store: Store, courier: Courier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def down(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) < 5:
            raise RamTrainError(f"the store is down, try {len(tries)}") from ConnectionError()
        store_checkpoint(*arguments)

    monkeypatch.setattr(couriers, "store_checkpoint", down)
    durable = came_home(run, 100)
    wait_until(lambda: there(run, store) == [durable.folder.name])
    wait_until(lambda: "is in memory://" in caplog.text)
    assert caplog.text.count("The training goes on, and it is tried again") == 1


def test_at_the_end_it_is_said_what_is_not_in_the_store(
    run: Run, courier: Courier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*arguments: Any) -> None:
        raise RamTrainError("the store is down")

    monkeypatch.setattr(couriers, "store_checkpoint", down)
    durable = came_home(run, 100)
    wait_until(lambda: "it is tried again" in caplog.text)
    courier.finish(with_newest=True)
    assert courier.has_ended(10)
    assert caplog.messages[-1] == (
        f"run {RUN}: the store is down. The durable checkpoint {durable.folder.name} is at home alone"
    )


def test_one_that_is_spoilt_at_home_is_told_of_and_not_sent_time_and_again(
    run: Run, store: Store, courier: Courier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began, tries = threading.Event(), []

    def spoilt(durable: DurableCheckpoint, *arguments: Any) -> None:
        tries.append(durable.folder)
        with (durable.folder / durable.files[0].path).open("r+b") as file:  # of the same size all the time
            file.write(CONTENT.upper())
        try:
            store_checkpoint(durable, *arguments)
        finally:
            began.set()

    monkeypatch.setattr(couriers, "store_checkpoint", spoilt)
    came_home(run, 100)
    assert began.wait(20)
    time.sleep(0.2)
    (folder,) = tries
    assert f"{folder.absolute()}/project/checkpoint_100.bin is no longer as it came home" in caplog.text
    monkeypatch.setattr(couriers, "store_checkpoint", store_checkpoint)
    newer = came_home(run, 200)
    wait_until(lambda: there(run, store) == [newer.folder.name])


def test_one_that_a_newer_one_has_replaced_is_no_trouble(
    run: Run, store: Store, courier: Courier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(durable: DurableCheckpoint, *arguments: Any) -> None:
        monkeypatch.setattr(couriers, "store_checkpoint", store_checkpoint)
        came_home(run, 200)
        remove(durable.folder)
        raise Changed("is gone")

    monkeypatch.setattr(couriers, "store_checkpoint", gone)
    came_home(run, 100)
    wait_until(lambda: len(there(run, store)) == 1)
    assert there(run, store)[0].endswith("checkpoint_200.bin")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_its_end_does_not_wait_for_what_is_read_back(
    run: Run, store: Store, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    real = Store._read

    def slow(store: Store, *arguments: Any) -> Iterator[bytes]:
        for chunk in real(store, *arguments):
            reading.set()
            go_on.wait(20)
            yield chunk

    monkeypatch.setattr(Store, "_read", slow)
    came_home(run, 100)
    assert reading.wait(20)
    courier.cancel()
    go_on.set()
    courier.finish(with_newest=True)
    assert courier.has_ended(10) and not there(run, store)
