"""Whether a run's RAM disk fits in memory, before anything is mounted; the promise that it is given; the refusal."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from humanfriendly import format_size

from ramtrain import caller, memory, remedy
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.lease import MARK, Lease, used_bytes, user_root
from ramtrain.ledger import Ledger, Promise, Standing, opened, standing
from ramtrain.waiting import wait_for

log = logging.getLogger(__name__)


class DoesNotFit(RamTrainError):
    """A RAM disk that there is no memory for; its text has the arithmetic, and what would help."""


@dataclass(frozen=True)
class Line:
    """A line of a calculation: an amount, negative for what is taken away, what it is, and where it is from."""

    amount_bytes: int
    what: str
    source: str = ""


@dataclass(frozen=True)
class Account:
    """What one bound leaves to a run: `free_bytes` now, the sum of the lines, `later_bytes` when the runs that are
    being worked on have ended."""

    lines: tuple[Line, ...]
    later_bytes: int

    @property
    def free_bytes(self) -> int:
        """What may be promised now."""
        return sum(line.amount_bytes for line in self.lines)


@dataclass(frozen=True)
class Offer:
    """What there is for a run: its RAM disk could have `fits_bytes`, and must have `enough_bytes`; in both is what it
    holds already. `tightest` is the bound that leaves the least; `holders` are what it could wait for."""

    fits_bytes: int
    enough_bytes: int
    tightest: Account
    holders: tuple[Standing, ...]

    @property
    def fits(self) -> bool:
        """Whether that suffices now."""
        return self.fits_bytes >= self.enough_bytes

    def waiting_for(self) -> str:
        """Return whom the run would wait for, and how much it needs."""
        holders = "; ".join(_told(entry) for entry in self.holders)
        return f"it needs {_size(self.enough_bytes)}, and {_size(self.fits_bytes)} can be promised. {holders}"


def admit(run: Run, lease: Lease, place: Path | None = None) -> int:
    """Promise the run the memory for its RAM disk, and return how large it may be.

    Where runs that are being worked on have been promised the memory, it is waited for, unless the run may fall back to
    the disk.

    Args:
        place: a folder on the file system in memory that the RAM disk shares with others; None for a tmpfs of its own.

    Raises:
        DoesNotFit: it never will, or is not to be waited for.
        RamTrainError: it was told to end while it waited.
    """
    granted_bytes = _try(run, lease, place, is_first=True)
    if granted_bytes is None:
        granted_bytes = wait_for(run.run, "memory", lambda: _try(run, lease, place))
        log.info("run %s: there is memory now", run.run)
    return granted_bytes


def foresee(run: Run, lease: Lease, place: Path | None = None) -> Offer:
    """Return what `admit` would find now, without promising anything.

    Raises:
        DoesNotFit: as there.
    """
    return _offer(run, lease, place, Ledger(standing(user_root())))


def _try(run: Run, lease: Lease, place: Path | None, is_first: bool = False) -> int | None:
    """Make the promise if the RAM disk fits now; None if it is to be waited for."""
    with opened(user_root()) as ledger:
        offer = _offer(run, lease, place, ledger)
        if offer.fits:
            granted_bytes = min(run.size_bytes, offer.fits_bytes)
            ledger.note(_promise(lease, granted_bytes, place))
            return granted_bytes
    if is_first:
        log.warning("run %s: waiting for memory: %s. %s", run.run, offer.waiting_for(), remedy.end_of_wait())
    return None


def _offer(run: Run, lease: Lease, place: Path | None, ledger: Ledger) -> Offer:
    """Return what there is for the run.

    Raises:
        DoesNotFit: not enough, and it is of no use to wait.
    """
    state = Path(lease.state)
    held_bytes = used_bytes(lease) if (state / MARK).exists() else 0
    accounts = _accounts(run, lease, place, ledger)
    tightest = min(accounts, key=lambda account: account.free_bytes)
    later_bytes = held_bytes + min(account.later_bytes for account in accounts)
    offer = Offer(
        fits_bytes=max(0, held_bytes + tightest.free_bytes),
        # Where its size is only what there is, half of what there will be is better than to wait.
        enough_bytes=max(run.least_bytes, min(run.size_bytes, later_bytes) // 2),
        tightest=tightest,
        holders=tuple(entry for entry in ledger.others(state) if entry.is_at_work),
    )
    is_hopeless = later_bytes < offer.enough_bytes or run.fallback == "disk" or not offer.holders
    if not offer.fits and is_hopeless:
        raise DoesNotFit(_refusal(run, tightest, held_bytes, ledger))
    return offer


def admit_more(run: Run, lease: Lease, wanted_bytes: int, least_bytes: int, place: Path | None) -> int:
    """Promise a run that is being trained as much more memory as there is now; return how large its RAM disk may be.

    Args:
        wanted_bytes: how large it would be.
        least_bytes: what is worth the while; if there is not as much, it stays as it is.
        place: as for `admit`.
    """
    with opened(user_root()) as ledger:
        free_bytes = min(account.free_bytes for account in _accounts(run, lease, place, ledger))
        granted_bytes = min(wanted_bytes, used_bytes(lease) + free_bytes)
        if granted_bytes < max(least_bytes, lease.size_bytes):
            return lease.size_bytes
        ledger.note(_promise(lease, granted_bytes, place))
    return granted_bytes


def _promise(lease: Lease, promised_bytes: int, place: Path | None) -> Promise:
    group = memory.own_group()
    return Promise(
        workdir=lease.workdir,
        run=lease.run,
        token=lease.token,
        state=lease.state,
        folder=lease.folder,
        backend=lease.backend,
        promised_bytes=promised_bytes,
        call=caller.pid() or os.getpid(),
        group=str(group) if group else None,
        device=os.stat(place).st_dev if place else None,
    )


def is_promised(lease: Lease) -> bool:
    """Whether this call has been promised the memory of the RAM disk as it is."""
    own = next((entry.promise for entry in standing(user_root()) if entry.promise.state == lease.state), None)
    if own is None or own.token != lease.token:
        return False
    return own.call == (caller.pid() or os.getpid()) and own.promised_bytes >= lease.size_bytes


def withdraw(state: Path) -> None:
    """Take back what was promised to the run with this state folder."""
    with opened(user_root()) as ledger:
        ledger.strike(state)


def room_bytes(run: Run | None, workdir: Path, reserve_bytes: int | None, place: Path | None = None) -> int:
    """Return the most that could be promised if the runs of this working directory, and all that are being worked on,
    were over: what there is to plan with.

    Args:
        run: whose RAM disk it is; it is held by the budget of this call too. None for that budget itself.
        reserve_bytes: what is kept free, None for the default.
        place: as for `admit`.
    """
    entries = [e for e in standing(user_root()) if e.is_at_work or e.promise.workdir == str(workdir.resolve())]
    rooms = [
        bound.available_bytes - bound.reserve_bytes(reserve_bytes) + _held_of(entries, bound)
        for bound in memory.bounds()
    ]
    if place:
        device = os.stat(place).st_dev
        shared_bytes = sum(entry.held_bytes for entry in entries if entry.promise.device == device)
        rooms.append(shutil.disk_usage(place).free + shared_bytes)
    budget_bytes = caller.budget_bytes()
    if run and budget_bytes is not None:
        rooms.append(budget_bytes)
    return max(0, min(rooms))


def _held_of(entries: Sequence[Standing], bound: memory.Bound) -> int:
    return sum(entry.held_bytes for entry in entries if bound.covers(_group(entry)))


def _accounts(run: Run, lease: Lease, place: Path | None, ledger: Ledger) -> list[Account]:
    """Return what the machine, each cgroup, a shared file system and this call's budget leave to the run."""
    others = ledger.others(Path(lease.state))
    found = []
    for bound in memory.bounds():
        start = Line(bound.available_bytes, f"free of {bound.name}", "what runs hold already is not in it")
        reserve = Line(-bound.reserve_bytes(run.reserve_bytes), "kept free", "guard.reserve")
        found.append(_account([start, reserve], [entry for entry in others if bound.covers(_group(entry))]))
    if place:
        device = os.stat(place).st_dev
        start = Line(shutil.disk_usage(place).free, f"free in {place}")
        found.append(_account([start], [entry for entry in others if entry.promise.device == device]))
    budget_bytes = caller.budget_bytes()
    if budget_bytes is not None:
        mine = [entry for entry in ledger.standing if entry.promise.workdir == lease.workdir]
        held = [Line(-entry.held_bytes, f"held by run {entry.promise.run}") for entry in mine if entry.held_bytes]
        start = Line(budget_bytes, "the budget of this call", "--resources ramdisk_mb; by default what is free")
        found.append(_account([start, *held], [entry for entry in mine if entry in others]))
    return found


def _account(lines: list[Line], others: list[Standing]) -> Account:
    owed = [Line(-entry.owed_bytes, f"still promised: {_told(entry)}") for entry in others if entry.owed_bytes]
    ends_bytes = sum(entry.owed_bytes + entry.held_bytes for entry in others if entry.is_at_work)
    account = Account((*lines, *owed), 0)
    return Account(account.lines, account.free_bytes + ends_bytes)


def _group(entry: Standing) -> Path | None:
    return Path(entry.promise.group) if entry.promise.group else None


def _told(entry: Standing) -> str:
    promise = entry.promise
    return (
        f"run {promise.run} in {promise.workdir} has been promised {_size(promise.promised_bytes)} and holds "
        f"{_size(entry.held_bytes)}"
    )


def _refusal(run: Run, account: Account, held_bytes: int, ledger: Ledger) -> str:
    """Return the arithmetic, line by line, and what would help."""
    own = [Line(held_bytes, "held by its RAM disk already")] if held_bytes else []
    wanted = Line(-run.least_bytes, f"run {run.run}", run.size_from)
    lines = [*account.lines, *own, wanted]
    missing_bytes = -sum(line.amount_bytes for line in lines)
    most_bytes = max(0, account.free_bytes + held_bytes)
    at_work = [entry for entry in ledger.standing if entry.is_at_work and entry.promise.run != run.run]
    left = [entry for entry in ledger.standing if entry.held_bytes and not entry.is_at_work]
    ended = "the runs in this list" if at_work else "other programs"
    helps = [
        f"a smaller ramdisk.size, here and now at most {_size(most_bytes)}; or a smaller guard.reserve",
        remedy.more_memory(ended),
        "ramdisk.fallback: disk, which trains it on the disk where memory does not suffice",
    ]
    helps += [
        f"run {entry.promise.run} in {entry.promise.workdir} is not being trained and holds {_size(entry.held_bytes)}: "
        f"{remedy.of_another()}"
        for entry in left
        if entry.promise.run != run.run
    ]
    return "\n".join(
        [
            f"run {run.run}: its RAM disk does not fit in memory, nothing was started:",
            *table([*lines, Line(-missing_bytes, "is missing")]),
            "What would help:",
            *(f"  - {text}" for text in helps),
        ]
    )


def table(lines: Sequence[Line]) -> list[str]:
    """Return the lines of a calculation, one below the other."""
    return [f"  {amount}  {what}" for amount, what in cells(lines)]


def cells(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return the lines of a calculation as amounts, all as wide as the widest, and what they are."""
    amounts = [("-" if line.amount_bytes < 0 else "") + _size(abs(line.amount_bytes)) for line in lines]
    width = max(map(len, amounts), default=0)
    return [
        (f"{amount:>{width}}", line.what + (f" ({line.source})" if line.source else ""))
        for amount, line in zip(amounts, lines, strict=True)
    ]


def check_disk(run: Run, workdir: Path, lines: Sequence[Line]) -> None:
    """Check that the disk has room for what is to come home, as far as its size is known.

    Args:
        lines: what will be written there.

    Raises:
        RamTrainError: it has not; with the arithmetic.
    """
    calculation = room_on_disk(workdir, lines)
    missing_bytes = -sum(line.amount_bytes for line in calculation)
    if lines and missing_bytes > 0:
        raise RamTrainError(
            "\n".join(
                [
                    f"run {run.run}: the disk has no room for what is to come home, nothing was started:",
                    *table([*calculation, Line(-missing_bytes, "is missing")]),
                    "Make room, or lower protect.keep; protect.max_loss: never writes no checkpoints to the disk.",
                ]
            )
        )


def room_on_disk(workdir: Path, lines: Sequence[Line]) -> list[Line]:
    """Return what is free on the disk of the working directory, and what is taken from it by what will be written."""
    free = Line(shutil.disk_usage(workdir).free, f"free on the disk of {workdir}")
    return [free, *(Line(-line.amount_bytes, line.what, line.source) for line in lines)]


def _size(size_bytes: int) -> str:
    return format_size(size_bytes, binary=True)
