"""The guard: while a trainer trains, neither its RAM disk nor the memory of the machine, or of a cgroup, runs full.

Room is made in this order, each step told and noted: prune what the trainer would not use again; enlarge the RAM disk;
have the newest checkpoint brought home; stop the trainer's processes while that is done, and spill files to the disk;
let them go on. Where none of it helps, the trainer runs into its full RAM disk, or is left to the kernel, with its
newest checkpoint at home.

What is deleted or moved goes through the trainer's own mounts, /proc/<pid>/root of its keeper: an overlay must not be
changed underneath (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain import memory
from ramtrain.best import globs_of_best
from ramtrain.checkpoints import (
    Checkpoint,
    find_checkpoints,
    in_folder_of,
    is_unchanged,
    is_whole,
    tells_its_end,
)
from ramtrain.config import Run
from ramtrain.drain import Drain
from ramtrain.errors import RamTrainError
from ramtrain.lease import MARK, Lease, used_in, user_root
from ramtrain.ledger import standing
from ramtrain.meter import NO_WRITES, ProcessWrites, thread_writes
from ramtrain.namespace import OVERLAY_SOURCE
from ramtrain.opened import held_by
from ramtrain.pause import Pause
from ramtrain.ramdisk import grow, remove_tree
from ramtrain.spill import remove_orphans, spill
from ramtrain.staging import Stage
from ramtrain.system import mount_of, mounts
from ramtrain.view import Escapes, View, matcher

log = logging.getLogger(__name__)

# No trainer is taken to fill memory faster: as one core writes to a tmpfs with huge pages.
_FASTEST_BYTES_S = 8 << 30
_SHORTEST_S, _LONGEST_S = 0.01, 0.5
# Below this much room, or this share of the RAM disk, the trainer is stopped; below half as much more room is made.
_CUSHION_BYTES, _CUSHION_SHARE = 256 << 20, 1 / 8
# What is never taken of a machine's memory, or a cgroup's: the kernel kills where nothing is left.
_FLOOR_BYTES, _FLOOR_SHARE = 64 << 20, 0.02
# In so many percent of the last 10 seconds every task waited for memory: then all that is kept free is the floor.
_STALLED_PERCENT = 20.0
_LEAST_SPILL_BYTES = 256 << 10
_GROWTH = 0.5
# After a step that did not help it is not tried again for so long.
_AGAIN_S, _DISK_AGAIN_S = 1.0, 30.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
# Of a shortage that others make, it is waited for its end before anything is spilled, and for how long at most.
_EASES_S, _PATIENCE_S = 2.0, 600.0
_LONGEST_BACK_OFF_S = 300.0
_PAUSED_TICK_S = 0.1
# Looking for what to prune means walking folders; it may take this share of the time.
_LOOKING_SHARE = 0.02
# The share of a core that walking a folder may take, and may where room is short.
_WALKING_SHARE, _WALKING_SHARE_IF_SHORT = 0.005, 0.1
_MOST_ACTIONS = 1000
_FILLS = "its RAM disk fills"


@dataclass(frozen=True)
class Action:
    """One thing that the guard did: when, in seconds since the trainer's start, why, and what it came to."""

    t_s: float
    action: str
    why: str
    what: str
    bytes: int
    took_s: float


@dataclass
class Guarded:
    """What the guard did: its last actions, how many of each kind there were in all, how long the trainer was stopped,
    in seconds, and what was written to the disk."""

    actions: list[Action] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    paused_s: float = 0.0
    spilled_bytes: int = 0
    writes: ProcessWrites = NO_WRITES

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Guarded:
        """Return the account that `asdict` made `content` of."""
        parts = {"actions": [Action(**entry) for entry in content["actions"]]}
        return cls(**{**content, **parts, "writes": ProcessWrites(**content["writes"])})


@dataclass(frozen=True)
class Shortage:
    """How much room is missing, until the trainer has to be stopped (<= 0: it need not be), and for it to go on.

    `is_of_memory` says whether it is the machine's memory, or a cgroup's, and not the RAM disk's size.
    """

    stop_bytes: int
    go_on_bytes: int
    why: str
    is_of_memory: bool


class Fill:
    """How much of a RAM disk is free."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend = folder, backend
        self._walk_s = self._walk_if_short_s = 0.0
        self._held_bytes = self._free_then_bytes = 0

    def forget(self) -> None:
        """Have the folder walked the next time: something in it has been deleted."""
        self._walk_s = 0.0

    def free_bytes(self, size_bytes: int, cushion_bytes: int) -> int:
        """Return what may still be written.

        A folder that shares a file system has to be walked to know what it holds; in between it is taken to have grown
        by all that the file system has.
        """
        usage = os.statvfs(self.folder)
        free_bytes = usage.f_bavail * usage.f_frsize
        if self.backend == "tmpfs":
            return free_bytes
        room_bytes = size_bytes - self._held_bytes - max(0, self._free_then_bytes - free_bytes)
        began_s = time.monotonic()
        if began_s >= self._walk_s or (room_bytes < 2 * cushion_bytes and began_s >= self._walk_if_short_s):
            self._held_bytes, self._free_then_bytes = used_in(self.folder, self.backend), free_bytes
            now = time.monotonic()
            self._walk_s = now + max(_LONGEST_S, (now - began_s) / _WALKING_SHARE)
            self._walk_if_short_s = now + (now - began_s) / _WALKING_SHARE_IF_SHORT
            room_bytes = size_bytes - self._held_bytes
        return min(room_bytes, free_bytes)


class Guard:
    """Watches one trainer from `start` to `finish`, in a thread of its own; `lease` is the RAM disk's as it is now.

    Args:
        keeper: the process id of the trainer's keeper.
        processes: the trainer's.
    """

    def __init__(
        self,
        run: Run,
        lease: Lease,
        stage: Stage,
        keeper: int,
        drain: Drain,
        processes: Callable[[], list[psutil.Process]],
    ) -> None:
        self.run, self.lease, self.stage, self.drain, self.processes = run, lease, stage, drain, processes
        self.keeper = keeper
        self.result = Guarded()
        self.least_free_bytes = lease.size_bytes
        self._started_s = time.time()
        self._upper, self._spilled = Path(stage.layers[0]), Path(stage.spilled)
        self._place = Path(f"/proc/{keeper}/root") / stage.ram.lstrip("/")
        self._groups = memory.groups()
        self._fill = Fill(Path(lease.folder), lease.backend)
        self._pause: Pause | None = None
        self._memory_s = self._prune_s = self._grow_s = self._spill_s = 0.0  # when each is to be looked at again
        self._back_off = {False: BackOff(), True: BackOff()}  # of a full RAM disk, and of memory
        self._younger_runs, self._younger_s = 0, 0.0
        self._hurried: Checkpoint | None = None
        self._told: set[str] = set()
        self._is_to_end = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="guard", daemon=True)

    @property
    def pausing(self) -> str | None:
        """Why the trainer is stopped; None while it runs."""
        return self._pause.why if self._pause else None

    @property
    def cushion_bytes(self) -> int:
        """The room below which the trainer is stopped."""
        return min(_CUSHION_BYTES, int(self.lease.size_bytes * _CUSHION_SHARE))

    def start(self, trainer: int) -> None:
        """Begin to watch the trainer with this process id, which sees its project by now."""
        if self.run.guard and self.lease.backend != "disk":
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                self._pause = Pause(trainer, self.processes)
                self._thread.start()

    def let_go(self) -> None:
        """Have the trainer go on, and stop it no more: it is to end, and may save something first."""
        self._is_to_end = True
        if self._pause:
            self._note_pause(self._pause.forbid())

    def finish(self) -> None:
        """End: the trainer has."""
        self._end.set()
        self.let_go()
        if self._pause:
            self._thread.join()
            self._pause.close()

    def _work(self) -> None:
        wait_s = 0.0
        try:
            while not self._end.wait(wait_s):
                try:
                    wait_s = self._look()
                except (OSError, RamTrainError, psutil.Error) as error:
                    self._tell_once(f"the guard could not do its work: {error}")
                    wait_s = _AGAIN_S
        except Exception:
            log.exception("run %s: nothing guards its memory any more, a defect of RamTrain", self.run.run)
        finally:
            self._go_on()
            self.result.writes = thread_writes()

    def _look(self) -> float:
        """See how much room there is, and make some if need be; return how long to wait, in seconds."""
        free_bytes = self._free_bytes()
        if free_bytes < self._alert_bytes:
            free_bytes = self._make_room()
        wait_s = disk_s = (free_bytes - self.cushion_bytes) / _FASTEST_BYTES_S
        if time.monotonic() >= self._memory_s:
            spare_s = min(-shortage.stop_bytes for shortage in self._memory()) / _FASTEST_BYTES_S
            self._memory_s = time.monotonic() + max(_SHORTEST_S, min(_LONGEST_S, spare_s))
            wait_s = min(disk_s, spare_s)
        if wait_s < 0 and not self._is_to_end and self._back_off[disk_s >= 0].is_over(free_bytes, self.cushion_bytes):
            self._pause_until_it_eases(free_bytes)
        return max(_SHORTEST_S, min(wait_s, self._memory_s - time.monotonic()))

    # What there is

    @property
    def _alert_bytes(self) -> int:
        return self.cushion_bytes * 3 // 2

    @property
    def _target_bytes(self) -> int:
        """How much room is made: for one more checkpoint, as far as the RAM disk is large enough for that."""
        return max(2 * self.cushion_bytes, min(self._checkpoint_bytes(), self.lease.size_bytes // 2))

    def _checkpoint_bytes(self) -> int:
        return max((saved.size_bytes for saved in self.drain.saved[-10:]), default=0)

    def _free_bytes(self) -> int:
        free_bytes = self._fill.free_bytes(self.lease.size_bytes, self.cushion_bytes)
        self.least_free_bytes = min(self.least_free_bytes, free_bytes)
        return free_bytes

    def _shortages(self, free_bytes: int) -> list[Shortage]:
        """Return what keeps the trainer from going on, the most pressing first."""
        size, left = (format_size(amount, binary=True) for amount in (self.lease.size_bytes, max(0, free_bytes)))
        why = f"its RAM disk of {size} has {left} left"
        disk = Shortage(self.cushion_bytes - free_bytes, self._target_bytes - free_bytes, why, False)
        found = [shortage for shortage in (disk, *self._memory()) if shortage.go_on_bytes > 0]
        return sorted(found, key=lambda shortage: -shortage.stop_bytes)

    def _memory(self) -> Iterator[Shortage]:
        """Yield how short of memory the machine is, and each cgroup."""
        for bound in memory.bounds(among=self._groups):
            free_bytes = bound.available_bytes
            floor_bytes = max(_FLOOR_BYTES, int(bound.total_bytes * _FLOOR_SHARE))
            if free_bytes < bound.reserve_bytes(self.run.reserve_bytes) and _is_stalled():
                floor_bytes = max(floor_bytes, free_bytes + 1)
            if free_bytes < 2 * floor_bytes:
                floor_bytes //= 2 ** self._younger(bound)
            why = f"{bound.name} has {format_size(free_bytes, binary=True)} of memory left"
            yield Shortage(floor_bytes - free_bytes, 2 * floor_bytes - free_bytes, why, True)

    def _younger(self, bound: memory.Bound) -> int:
        """Return how many runs that share the memory and are being trained began after this one: they stop first."""
        if time.monotonic() < self._younger_s:
            return self._younger_runs
        self._younger_runs = 0
        for entry in standing(user_root()):
            group = Path(entry.promise.group) if entry.promise.group else None
            if entry.is_at_work and entry.promise.state != self.lease.state and bound.covers(group):
                # It may not be mounted yet, or just be released.
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    other = Lease.read(Path(entry.promise.state) / MARK)
                    self._younger_runs += other.started > self.lease.started
        self._younger_s = time.monotonic() + _AGAIN_S
        return self._younger_runs

    # What helps without the trainer's noticing

    def _make_room(self) -> int:
        """Prune, and enlarge the RAM disk; return the room that there is then. Where one fails the other may help."""
        now, free_bytes = time.monotonic(), self._free_bytes()
        if free_bytes < self._alert_bytes and not self.pausing and now >= self._prune_s:
            self._prune(self._target_bytes - free_bytes, _FILLS)
            self._prune_s = time.monotonic() + max(_AGAIN_S / 4, (time.monotonic() - now) / _LOOKING_SHARE)
        if self._free_bytes() < self._alert_bytes and self.run.grow and now >= self._grow_s:
            self._grow_s = time.monotonic() + _AGAIN_S
            with self._trying("its RAM disk could not be enlarged"):
                self._grow()
        return self._free_bytes()

    @contextlib.contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RamTrainError) as error:
            self._tell_once(f"{what}: {error}")

    def _prune(self, missing_bytes: int, why: str) -> bool:
        """Delete what the trainer would not use again, the oldest first, until so much is; return whether any was."""
        has_pruned = False
        with self._trying("nothing could be pruned"):
            for checkpoint in self._prunable():
                began_s, place = time.monotonic(), self._through(checkpoint.path)
                if missing_bytes <= 0:
                    break
                if not is_unchanged(checkpoint, self._upper, self._spilled):
                    continue
                with contextlib.suppress(FileNotFoundError):  # the trainer has just deleted it
                    if place.is_dir() and not place.is_symlink():
                        remove_tree(place)
                    else:
                        place.unlink()
                    has_pruned = True
                    missing_bytes -= checkpoint.size_bytes
                    self._fill.forget()
                    self._note("prune", why, checkpoint.path, checkpoint.size_bytes, began_s)
        return has_pruned

    def _prunable(self) -> Iterator[Checkpoint]:
        """Yield what the trainer would not use again, the oldest first.

        Not what an earlier attempt left, until the trainer itself has written a newer one: it may have to go on from
        that; nor what is to come home, the newest whole one, the best, and what these need, whatever it is named.
        """
        products = self.run.products
        newest = self._newest() if products.prunable else None
        if newest is None or newest.saved_s <= self._started_s:
            return
        beside = (*in_folder_of(newest, products.companions), *globs_of_best(newest, products, self._upper))
        wanted = self._real([*products.model, *products.artifacts, *beside])
        wanted |= {self._upper / path for path, _ in newest.files}
        for checkpoint in reversed(find_checkpoints(self.stage, products.prunable)):
            files = {self._upper / path for path, _ in checkpoint.files}
            is_in_ram = not any(path.is_symlink() for path in files)
            if checkpoint.saved_s < newest.saved_s and is_in_ram and files.isdisjoint(wanted):
                yield checkpoint

    def _real(self, patterns: list[str]) -> set[Path]:
        """Return the files that the globs name, links followed."""
        view, found = self.stage.view(), set()
        for path in view.glob(patterns):
            with contextlib.suppress(Escapes, FileNotFoundError):  # a link out of the project, or to nothing
                found.add(view.real(path))
        return found

    def _newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint: one that the drain knows to be, or that tells it itself."""
        held, complete = self._held(), self.run.products.complete
        for checkpoint in find_checkpoints(self.stage, self.run.products.checkpoints):
            is_closed = held.isdisjoint(f"{self.stage.ram}/{path}" for path, _ in checkpoint.files)
            if checkpoint == self.drain.newest or (
                is_closed
                and tells_its_end(checkpoint, self._upper, complete)
                and is_whole(checkpoint, self._upper, complete)
            ):
                return checkpoint
        return None

    def _held(self) -> set[str]:
        """Return what the trainer's processes have open or mapped, by its path as they see it."""
        return {path for process in self.processes() for path in held_by(process.pid)}

    def _grow(self) -> None:
        """Enlarge the RAM disk, as far as there is memory for it."""
        began_s, before_bytes = time.monotonic(), self.lease.size_bytes
        more_bytes = max(int(before_bytes * _GROWTH), 2 * self._checkpoint_bytes())
        self.lease = grow(self.run, self.lease, before_bytes + more_bytes, before_bytes + self.cushion_bytes)
        if grown_bytes := self.lease.size_bytes - before_bytes:
            size = format_size(self.lease.size_bytes, binary=True)
            self._note("grow", _FILLS, f"to {size}", grown_bytes, began_s)
        if grown_bytes == more_bytes:
            self._grow_s = 0.0

    # What the trainer has to be stopped for

    def _pause_until_it_eases(self, free_bytes: int) -> None:
        """Stop the trainer, make room, and let it go on when there is some, or when nothing more can be done."""
        assert self._pause is not None
        began_s = time.monotonic()
        worst, *_ = self._shortages(free_bytes) or [None]
        if worst is None:
            return
        is_of_memory = worst.is_of_memory
        hurried = self._hurry()
        try:
            if not (stopped := self._pause.begin(worst.why)):
                return
            if hurried:
                self._note("drain", worst.why, hurried.path, hurried.size_bytes, began_s)
            self._note("pause", worst.why, pluralize(stopped, "process", "processes"), 0, began_s)
            while not self._is_to_end:
                shortages = self._shortages(self._make_room())
                is_of_memory |= any(each.is_of_memory and each.stop_bytes > 0 for each in shortages)
                left = [each for each in shortages if is_of_memory or not each.is_of_memory]
                if not left:
                    self._back_off[is_of_memory].reset()
                    return
                if not self._relieve(left[0], time.monotonic() - began_s):
                    return
        finally:
            self._go_on()

    def _hurry(self) -> Checkpoint | None:
        """Have the newest checkpoint brought home, once; return it, unless it is at home or not to come there."""
        newest = self.drain.newest
        if newest and newest != self._hurried and newest.saved_s > self.drain.schedule.safe_s and self.drain.hurry():
            self._hurried = newest
            return newest
        return None

    def _relieve(self, shortage: Shortage, waited_s: float) -> bool:
        """Do something about a shortage, the trainer being stopped; return False if it is to go on as it is."""
        may_ease = shortage.is_of_memory and waited_s < _EASES_S
        if not may_ease and time.monotonic() >= self._spill_s:
            self._spill_s = time.monotonic() + _AGAIN_S
            if self._prune(shortage.go_on_bytes, shortage.why) or self._spill(shortage):
                self._spill_s = 0.0
                return True
        if not shortage.is_of_memory and shortage.stop_bytes <= 0:
            return False  # it is not as much room as was wished for
        may_help = shortage.is_of_memory or self.drain.is_hurrying
        if may_help and waited_s < _PATIENCE_S:
            self._end.wait(_PAUSED_TICK_S)
            return True
        self._back_off[shortage.is_of_memory].extend(self._free_bytes())
        self._note("give way", shortage.why, "nothing more can be moved out of RAM", 0, time.monotonic() - waited_s)
        return False

    def _go_on(self) -> None:
        if self._pause:
            self._note_pause(self._pause.end())

    def _note_pause(self, paused_s: float) -> None:
        if paused_s:
            self.result.paused_s = round(self.result.paused_s + paused_s, 3)
            self._note("go on", "", "", 0, time.monotonic() - paused_s)

    def _spill(self, shortage: Shortage) -> bool:
        """Move files to the disk, the oldest first, until there is room; return whether any was."""
        assert self._pause is not None
        missing_bytes, has_spilled = shortage.go_on_bytes, False
        remove_orphans(Path(self.lease.folder), self._spilled)
        checkpoints = matcher(self.run.products.checkpoints)
        for path, size_bytes in self._spillable():
            if missing_bytes <= 0 or self._is_to_end:
                break
            began_s, place = time.monotonic(), self._through(path)
            try:
                self._check_disk(size_bytes)
                is_checkpoint = any(checkpoints.fullmatch(str(name)) for name in (path, *Path(path).parents))
                source = self._upper / path
                if not spill(source, place, self._spilled, is_checkpoint, self._pause.held, self._go_on_copying):
                    continue
            except (OSError, RamTrainError) as error:
                if self._is_to_end or not self.processes():
                    break  # the trainer has ended meanwhile, or is to
                self._tell_once(f"{path} could not be moved to the disk: {error}")
                if isinstance(error, DiskIsFull) or getattr(error, "errno", None) in _DISK_ERRORS:
                    self._spill_s = time.monotonic() + _DISK_AGAIN_S
                    break
                continue
            missing_bytes -= size_bytes
            has_spilled = True
            self._fill.forget()
            self.result.spilled_bytes += size_bytes
            self._note("spill", shortage.why, path, size_bytes, began_s)
        return has_spilled

    def _check_disk(self, size_bytes: int) -> None:
        """Check that the disk takes a file, and then the newest checkpoint as well.

        Raises:
            DiskIsFull: it does not.
        """
        free_bytes = shutil.disk_usage(self.lease.workdir).free
        if free_bytes < size_bytes + self._checkpoint_bytes():
            raise DiskIsFull(f"the disk has {format_size(free_bytes, binary=True)} free")

    def _go_on_copying(self, _files: int, _size_bytes: int) -> None:
        if self._is_to_end:
            raise RamTrainError("the trainer is to end")

    def _spillable(self) -> Iterator[tuple[str, int]]:
        """Yield the files in RAM that the trainer wrote and nobody has open, the oldest first, with the bytes that they
        take; not those with holes in them, which the disk would be given whole."""
        held, found = self._held(), []
        for path in View([self._upper]).written(Path(self.stage.project)):
            with contextlib.suppress(FileNotFoundError):
                status = (self._upper / path).lstat()
                size_bytes = status.st_blocks * 512
                is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and size_bytes >= status.st_size
                if is_plain and size_bytes >= _LEAST_SPILL_BYTES:
                    found.append((status.st_mtime, path, size_bytes))
        for _, path, size_bytes in sorted(found):
            if f"{self.stage.ram}/{path}" not in held:
                yield path, size_bytes

    def _through(self, path: str) -> Path:
        """Return a file's path through the trainer's own mounts.

        Raises:
            RamTrainError: they are not there, and it would be another file.
        """
        if self.stage.overlays:
            seen = mount_of(Path(self.stage.ram), mounts(self.keeper))
            if (seen.fstype, seen.source, seen.point) != ("overlay", OVERLAY_SOURCE, Path(self.stage.ram)):
                raise RamTrainError("the trainer's overlay is gone")
        return self._place / path

    def _note(self, action: str, why: str, what: str, size_bytes: int, began_s: float) -> None:
        took_s = round(time.monotonic() - began_s, 3)
        entry = Action(round(time.time() - self._started_s, 1), action, why, what, size_bytes, took_s)
        self.result.counts[action] = self.result.counts.get(action, 0) + 1
        self.result.actions = [*self.result.actions[-_MOST_ACTIONS + 1 :], entry]
        size = f", {format_size(size_bytes, binary=True)}" if size_bytes else ""
        told = action + (f": {what}" if what else "") + size + (f", {took_s:.1f} s" if took_s >= 0.1 else "")
        log.warning("run %s: guard: %s%s", self.run.run, told, f" ({why})" if why else "")

    def _tell_once(self, message: str) -> None:
        """Warn, unless that has been said already."""
        if message not in self._told:
            log.warning("run %s: %s", self.run.run, message)
            self._told = {*list(self._told)[-_MOST_ACTIONS:], message}


class DiskIsFull(RamTrainError):
    """The disk that would take what does not fit in RAM has no room either."""


@dataclass
class BackOff:
    """When the trainer is to be stopped again after that did not help: later each time, unless it has got worse."""

    until_s: float = 0.0
    wait_s: float = 0.0
    free_bytes: int = 0

    def is_over(self, free_bytes: int, cushion_bytes: int) -> bool:
        """Whether it may help now."""
        return time.monotonic() >= self.until_s or free_bytes < self.free_bytes - cushion_bytes // 4

    def extend(self, free_bytes: int) -> None:
        """Take note that it did not help."""
        self.wait_s = min(_LONGEST_BACK_OFF_S, max(_AGAIN_S, 2 * self.wait_s))
        self.until_s, self.free_bytes = time.monotonic() + self.wait_s, free_bytes

    def reset(self) -> None:
        """Take note that it helped."""
        self.wait_s = 0.0


def _is_stalled() -> bool:
    now = memory.pressure()
    return now is not None and now.full_percent > _STALLED_PERCENT
