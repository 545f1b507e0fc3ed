"""Admission: what does not fit is refused beforehand with the arithmetic, or waited for, or trained on the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import caller, memory, waiting
from ramtrain import lease as lease_module
from ramtrain.admission import DoesNotFit, Line, check_disk, room_bytes
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.lease import SHM, Lease, ram_root, used_bytes, user_root
from ramtrain.ledger import Promise, at_work, opened, standing
from ramtrain.memory import Bound
from ramtrain.ramdisk import acquire, enlarge, foresee, grow, release

MIB = 1 << 20


def a_run(project: Path, size: str = "64M", **changes: Any) -> Run:
    changes = {"ramdisk.backend": "shm", "ramdisk.size": size, "guard.reserve": "100M", **changes}
    (run,) = load_runs(complete_config(small_config(project, **changes), REPO, "test"), REPO).values()
    return run


@pytest.fixture(autouse=True)
def own_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep what is promised here apart from what is promised to other runs of this machine."""
    folder = SHM / f"ramtrain test {os.getpid()}"
    folder.mkdir()
    monkeypatch.setattr(lease_module, "SHM", folder)
    monkeypatch.setattr(waiting.time, "sleep", lambda _: pytest.fail("it waits"))
    yield
    left = list(folder.rglob("*"))
    shutil.rmtree(folder)
    assert not left


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets how much of a machine of 1000 MiB is available."""

    def set_available(mib: int, *more: Bound) -> None:
        monkeypatch.setattr(memory, "bounds", lambda *_: [Bound("this machine", 1000 * MIB, mib * MIB), *more])

    return set_available


@pytest.fixture
def another(workdir: Path) -> Iterator[Callable[..., Promise]]:
    """Return a function that has memory promised to another run, on which somebody works until the test ends, or until
    its state folder is gone."""
    made: list[Path] = []
    with contextlib.ExitStack() as working:

        def promise(mib: int, is_worked_on: bool = True, **changes: Any) -> Promise:
            state = ram_root(workdir.parent) / f"other {len(made)}"
            state.mkdir(parents=True, mode=0o700)
            made.append(state)
            if is_worked_on:
                working.enter_context(at_work(state))
            noted = Promise(
                "/other", state.name, "1", str(state), str(state), "shm", mib * MIB, os.getpid(), None, None
            )
            with opened(user_root()) as ledger:
                ledger.note(replace(noted, **changes))
            return noted

        yield promise
    for state in made:
        shutil.rmtree(state.parent, ignore_errors=True)
    with opened(user_root()):
        pass


def amounts(text: str) -> list[float]:
    """Return the amounts of a calculation in MiB."""
    factors = {"bytes": 1 / MIB, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
    found = re.findall(r"^ +(-?)([0-9.]+) (bytes|KiB|MiB|GiB)  ", text, re.MULTILINE)
    return [float(sign + number) * factors[unit] for sign, number, unit in found]


def test_what_fits_is_promised_until_it_is_released(
    project: Path, workdir: Path, available: Callable[..., None]
) -> None:
    available(164 + 1)
    lease = acquire(a_run(project), workdir)
    (entry,) = [entry for entry in standing(user_root()) if entry.promise.state == lease.state]
    assert (entry.promise.promised_bytes, entry.promise.token) == (64 * MIB, lease.token)
    assert entry.is_at_work, "its next job will start at once"
    release(lease)
    assert not [entry for entry in standing(user_root()) if entry.promise.state == lease.state]


def test_what_does_not_fit_is_refused_with_the_arithmetic(
    project: Path, workdir: Path, available: Callable[..., None], another: Callable[..., Promise]
) -> None:
    available(150)
    another(30)
    with pytest.raises(DoesNotFit) as refused:
        acquire(a_run(project, "300M"), workdir)
    said = str(refused.value)
    assert amounts(said) == [150, -100, -30, -300, -280]
    for part in (
        "free of this machine",
        "kept free (guard.reserve)",
        "still promised: run other 0 in /other has been promised 30 MiB and holds 0 bytes",
        "run my_pr_ject_ (ramdisk.size)",
        "is missing",
        "a smaller ramdisk.size, here and now at most 20 MiB",
        "fewer runs at a time",
        "ramdisk.fallback: disk",
    ):
        assert part in said
    assert not ram_root(workdir).exists(), "nothing was mounted"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cgroup_counts_and_what_is_promised_in_it(
    elsewhere: bool, project: Path, workdir: Path, available: Callable[..., None], another: Callable[..., Promise]
) -> None:
    group = Path("/sys/fs/cgroup/job")
    available(900, Bound("the cgroup job", 200 * MIB, 180 * MIB, group))
    another(40, group=str(group.with_name("other") if elsewhere else group / "step"))
    if elsewhere:
        release(acquire(a_run(project), workdir))
    else:
        with pytest.raises(DoesNotFit, match="free of the cgroup job"):
            acquire(a_run(project, **{"ramdisk.size": "81M"}), workdir)


def test_dev_shm_is_shared_too(
    project: Path,
    workdir: Path,
    available: Callable[..., None],
    another: Callable[..., Promise],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available(900)
    usage = type("usage", (), {"free": 100 * MIB})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    another(30, device=os.stat(SHM).st_dev)
    another(300, device=None)
    lease = acquire(a_run(project, "70M"), workdir)
    release(lease)
    lease = acquire(a_run(project, "71M", **{"ramdisk.fallback": "disk"}), workdir)
    assert "100 MiB free in /dev/shm" in lease.why
    release(lease)


def test_what_another_call_was_promised_is_waited_for(
    project: Path,
    workdir: Path,
    available: Callable[..., None],
    another: Callable[..., Promise],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    available(200)
    other = another(80)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            with opened(user_root()) as ledger:
                ledger.strike(Path(other.state))

    monkeypatch.setattr(waiting.time, "sleep", sleep)
    _, offer = foresee(a_run(project), workdir)
    assert offer is not None
    assert (offer.fits, offer.waiting_for()) == (
        False,
        "it needs 64 MiB, and 20 MiB can be promised. run other 0 in /other has been promised 80 MiB and holds 0 bytes",
    )
    with caplog.at_level(logging.INFO):
        lease = acquire(a_run(project), workdir)
    assert len(slept) == 3
    (said,) = [record.getMessage() for record in caplog.records if "waiting for memory" in record.getMessage()]
    assert said == (
        "run my_pr_ject_: waiting for memory: it needs 64 MiB, and 20 MiB can be promised. run other 0 in /other has "
        "been promised 80 MiB and holds 0 bytes. Ctrl-C ends the wait."
    )
    release(lease)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, caller.TOLD_TO_END], ids=lambda number: number.name)
def test_a_signal_ends_the_wait(
    number: signal.Signals,
    project: Path,
    workdir: Path,
    available: Callable[..., None],
    another: Callable[..., Promise],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available(200)
    another(80)
    handlers = [signal.getsignal(each) for each in signal.Signals]
    monkeypatch.setattr(waiting.time, "sleep", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(RamTrainError, match="while it waited for memory; nothing was started"):
        acquire(a_run(project), workdir)
    assert not ram_root(workdir).exists()
    assert [signal.getsignal(each) for each in signal.Signals] == handlers


def test_a_signal_that_comes_while_a_message_is_written_ends_the_wait() -> None:
    """`logging` takes any `Exception` that its handlers meet for their own, prints it and goes on."""

    class Sent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), caller.TOLD_TO_END)
            except Exception:
                self.handleError(record)

    logger = logging.Logger("waits")
    logger.addHandler(Sent())
    with (
        pytest.raises(RamTrainError, match="run example: SIGINT while it waited for memory; nothing was started"),
        waiting.ended_promptly("example", "memory"),
    ):
        logger.info("waiting for memory")
        pytest.fail("the signal was lost")


def test_what_will_never_fit_and_what_nobody_works_on_is_not_waited_for(
    project: Path, workdir: Path, available: Callable[..., None], another: Callable[..., Promise]
) -> None:
    available(200)
    another(80)
    with pytest.raises(DoesNotFit):
        acquire(a_run(project, "101M"), workdir)
    lease = acquire(a_run(project, "20M"), workdir)
    (Path(lease.folder) / "data").write_bytes(bytes(5 * MIB))
    with contextlib.suppress(ValueError), at_work(Path(lease.state)):
        raise ValueError
    available(130)
    run = replace(a_run(project, "40M"), run="next")
    with pytest.raises(DoesNotFit, match=r"run my_pr_ject_ in .* is not being trained and holds 5.* `unmount` brings"):
        acquire(run, workdir)
    release(lease)


def test_fallback_trains_on_the_disk_and_does_not_wait(
    project: Path,
    workdir: Path,
    available: Callable[..., None],
    another: Callable[..., Promise],
    caplog: pytest.LogCaptureFixture,
) -> None:
    available(200)
    another(80)
    run = a_run(project, **{"ramdisk.fallback": "disk"})
    foreseen, offer = foresee(run, workdir)
    lease = acquire(run, workdir)
    assert (foreseen.folder, foreseen.why, offer) == (lease.folder, lease.why, None)
    assert lease.backend == "disk"
    assert Path(lease.folder).is_relative_to(workdir)
    assert lease.why.startswith("ramdisk.fallback: disk, since run my_pr_ject_: its RAM disk does not fit in memory")
    assert "IT IS TRAINED ON THE DISK, as ramdisk.fallback says" in caplog.text
    assert not [entry for entry in standing(user_root()) if entry.promise.state == lease.state]
    assert acquire(run, workdir) == lease, "it goes on there"
    release(lease)


def test_the_budget_of_a_call_holds_for_what_its_failed_runs_hold_too(
    project: Path, workdir: Path, available: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    available(900)
    monkeypatch.setattr(caller, "budget_bytes", lambda: 100 * MIB)
    lease = acquire(a_run(project), workdir)
    (Path(lease.folder) / "data").write_bytes(bytes(40 * MIB))
    with contextlib.suppress(ValueError), at_work(Path(lease.state)):
        raise ValueError
    run = replace(a_run(project), run="next")
    with pytest.raises(DoesNotFit, match="the budget of this call") as refused:
        acquire(run, workdir)
    assert amounts(str(refused.value)) == pytest.approx([100, -40, -64, -4], abs=0.1)
    release(acquire(replace(run, size_bytes=59 * MIB, least_bytes=59 * MIB), workdir))
    release(lease)


def auto(run: Run, size_mib: int, least_mib: int) -> Run:
    return replace(run, auto_size=True, size_bytes=size_mib * MIB, least_bytes=least_mib * MIB)


def test_where_the_size_is_open_it_takes_what_there_is(
    project: Path, workdir: Path, available: Callable[..., None]
) -> None:
    available(180)
    lease = acquire(auto(a_run(project), size_mib=90, least_mib=30), workdir)
    assert lease.size_bytes == 80 * MIB
    release(lease)
    with pytest.raises(DoesNotFit):
        acquire(auto(a_run(project), size_mib=90, least_mib=81), workdir)


def test_a_ram_disk_of_an_earlier_attempt_is_promised_anew(
    project: Path, workdir: Path, available: Callable[..., None], another: Callable[..., Promise]
) -> None:
    available(200)
    lease = acquire(a_run(project), workdir)
    (Path(lease.folder) / "data").write_bytes(bytes(30 * MIB))
    rest_mib = -(-(lease.size_bytes - used_bytes(lease)) // MIB)
    with opened(user_root()) as ledger:
        ledger.strike(Path(lease.state))
    another(10)
    available(100 + 10 + rest_mib - 2)
    with opened(user_root()) as ledger:  # the other one holds what it has and is not at work
        for entry in ledger.others(Path(lease.state)):
            ledger.note(replace(entry.promise, promised_bytes=10 * MIB))
    run = replace(a_run(project), fallback="disk")
    with pytest.raises(DoesNotFit, match="held by its RAM disk already"):
        enlarge(run, lease)
    available(100 + 10 + rest_mib)
    assert enlarge(run, lease) == lease
    available(0)
    assert enlarge(run, lease) == lease, "promised to this call it needs no more"
    release(lease)


def test_a_full_one_whose_size_is_open_grows_and_one_that_is_not_full_stays(
    project: Path, workdir: Path, available: Callable[..., None]
) -> None:
    available(300)
    lease = acquire(auto(a_run(project), size_mib=32, least_mib=32), workdir)
    assert enlarge(auto(a_run(project), size_mib=64, least_mib=40), lease) == lease
    (Path(lease.folder) / "data").write_bytes(bytes(32 * MIB))
    grown = enlarge(auto(a_run(project), size_mib=64, least_mib=40), lease)
    assert grown.size_bytes == 64 * MIB
    release(grown)


@pytest.mark.parametrize(
    ("free_mib", "wanted_mib", "expected_mib"), [(400, 96, 96), (150, 96, 74), (110, 96, 64), (50, 96, 64)]
)
def test_one_that_is_being_trained_is_enlarged_as_far_as_there_is_memory_now(
    free_mib: int,
    wanted_mib: int,
    expected_mib: int,
    project: Path,
    workdir: Path,
    available: Callable[..., None],
    another: Callable[..., Promise],
) -> None:
    """Of what is free, 100 MiB stay so, and 30 MiB have been promised to another; it holds 54 MiB."""
    available(400)
    lease = acquire(a_run(project), workdir)
    (Path(lease.folder) / "data").write_bytes(bytes(54 * MIB))
    another(30)
    available(free_mib)
    grown = grow(a_run(project), lease, wanted_mib * MIB, least_bytes=0)
    assert grown.size_bytes == pytest.approx(expected_mib * MIB, abs=MIB / 8)
    promised = {entry.promise.run: entry.promise.promised_bytes for entry in standing(user_root())}
    assert promised == {lease.run: grown.size_bytes, "other 0": 30 * MIB}
    release(grown)


def test_what_there_is_to_plan_with(
    project: Path, workdir: Path, available: Callable[..., None], another: Callable[..., Promise]
) -> None:
    available(300)
    lease = acquire(a_run(project), workdir)
    (Path(lease.folder) / "data").write_bytes(bytes(10 * MIB))
    another(50)
    room = room_bytes(None, workdir, 100 * MIB)
    assert 210 * MIB <= room < 211 * MIB, "its own runs' memory is there to plan with, whatever is promised"
    release(lease)


def test_a_swappable_ram_disk_is_warned_of(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "swap_bytes", lambda: 1 << 30)
    lease = acquire(a_run(project), workdir)
    assert lease.may_swap
    assert "run my_pr_ject_: its RAM disk may be swapped out to a disk" in caplog.text
    release(lease)


def test_the_disk_must_have_room_for_what_comes_home(project: Path, workdir: Path) -> None:
    free_bytes = shutil.disk_usage(workdir).free
    run = a_run(project)
    check_disk(run, workdir, [])
    check_disk(run, workdir, [Line(MIB, "the model")])
    with pytest.raises(RamTrainError) as refused:
        check_disk(run, workdir, [Line(MIB, "the model"), Line(free_bytes, "2 durable checkpoints", "as in run a")])
    said = str(refused.value)
    assert f"free on the disk of {workdir}" in said
    assert "2 durable checkpoints (as in run a)" in said
    assert "lower protect.keep" in said


def test_of_two_that_ask_at_once_one_is_refused(
    project: Path, workdir: Path, tmp_path: Path, available: Callable[..., None]
) -> None:
    available(200)
    leases: list[Lease] = []
    (tmp_path / "second").mkdir()
    run = replace(a_run(project), fallback="disk")
    for folder in (workdir, tmp_path / "second"):
        leases.append(acquire(run, folder))
    assert [lease.backend for lease in leases] == ["shm", "disk"]
    for lease in leases:
        release(lease)
