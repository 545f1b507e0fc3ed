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
import logging
import os
import shutil
import signal
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
from ramtrain.checkpoints import Checkpoint, find_checkpoints, held_by, is_whole, tells_its_end
from ramtrain.config import Products, Run
from ramtrain.drain import Drain
from ramtrain.errors import RamTrainError
from ramtrain.lease import MARK, Lease, used_in, user_root
from ramtrain.ledger import standing
from ramtrain.meter import NO_WRITES, ProcessWrites, thread_writes
from ramtrain.namespace import OVERLAY_SOURCE
from ramtrain.ramdisk import grow
from ramtrain.spill import contents_of, remove_orphans, spill
from ramtrain.staging import Stage
from ramtrain.system import mount_of, mounts
from ramtrain.view import View, matcher

log = logging.getLogger(__name__)

# No trainer is taken to fill memory faster: as one core writes to a tmpfs with huge pages.
_FASTEST_BYTES_S = 8 << 30
_SHORTEST_S, _LONGEST_S = 0.01, 0.5
# Below this much room, or this share of the RAM disk, the trainer is stopped; below twice as much room is made.
_CUSHION_BYTES, _CUSHION_SHARE = 256 << 20, 1 / 8
# What is never taken of a machine's memory, or a cgroup's: the kernel kills where nothing is left.
_FLOOR_BYTES, _FLOOR_SHARE = 64 << 20, 0.02
# In so many percent of the last 10 seconds every task waited for memory: then all that is kept free is the floor.
_STALLED_PERCENT = 20.0
_LEAST_SPILL_BYTES = 256 << 10
_GROWTH = 0.5
# After a step that did not help it is not tried again for so long.
_AGAIN_S, _DISK_AGAIN_S = 1.0, 30.0
# Of a shortage that others make, it is waited for its end before anything is spilled, and for how long at most.
_EASES_S, _PATIENCE_S = 2.0, 600.0
_PAUSED_TICK_S = 0.1
# The share of a core that walking a folder may take, and may where room is short.
_WALKING_SHARE, _WALKING_SHARE_IF_SHORT = 0.005, 0.1
_MOST_ACTIONS = 1000


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
    """Watches one trainer from `start` to `finish`, in a thread of its own.

    `lease` is the RAM disk's as it is now, `pausing` why the trainer's processes are stopped, None while they run.

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
        self.pausing: str | None = None
        self._started_s = time.time()
        self._place = Path(f"/proc/{keeper}/root") / stage.ram.lstrip("/")
        self._spilled = Path(stage.spilled)
        self._groups = memory.groups()
        self._fill = Fill(Path(lease.folder), lease.backend)
        self._trainer: int | None = None
        self._stopped: list[psutil.Process] = []
        self._paused_since_s = 0.0
        self._grow_again_s = self._prune_again_s = self._pause_again_s = self._memory_s = 0.0
        self._spill_again_s = 0.0
        self._hurried: Checkpoint | None = None
        self._lock = threading.Lock()  # of stopping and going on
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="guard", daemon=True)

    @property
    def cushion_bytes(self) -> int:
        """The room below which the trainer is stopped."""
        return min(_CUSHION_BYTES, int(self.lease.size_bytes * _CUSHION_SHARE))

    def start(self, trainer: int) -> None:
        """Begin to watch the trainer with this process id, which sees its project by now."""
        if self.run.guard and self.lease.backend != "disk":
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                self._trainer = os.pidfd_open(trainer)
                self._thread.start()

    def let_go(self) -> None:
        """Have the trainer's processes go on, and stop them no more: it is to end."""
        self._end.set()
        self._go_on()

    def finish(self) -> None:
        """End: the trainer has."""
        self.let_go()
        if self._trainer is not None:
            self._thread.join()
            os.close(self._trainer)
            self._trainer = None

    def _work(self) -> None:
        wait_s = 0.0
        try:
            while not self._end.wait(wait_s):
                try:
                    wait_s = self._look()
                except (OSError, RamTrainError, psutil.Error) as error:
                    log.warning("run %s: the guard could not do its work: %s", self.run.run, error)
                    wait_s = _AGAIN_S
        except Exception:
            log.exception("run %s: nothing guards its memory any more, a defect of RamTrain", self.run.run)
        finally:
            self._go_on()
            self.result.writes = thread_writes()

    def _look(self) -> float:
        """See how much room there is, and make some if need be; return how long to wait, in seconds."""
        free_bytes = self._free_bytes()
        if free_bytes < 2 * self.cushion_bytes:
            free_bytes = self._make_room()
        disk_s = (free_bytes - self.cushion_bytes) / _FASTEST_BYTES_S
        if time.monotonic() >= self._memory_s:
            spare_s = min(-shortage.stop_bytes for shortage in self._memory()) / _FASTEST_BYTES_S
            self._memory_s = time.monotonic() + max(_SHORTEST_S, min(_LONGEST_S, spare_s))
            disk_s = min(disk_s, spare_s)
        if disk_s < 0 and time.monotonic() >= self._pause_again_s:
            self._pause_until_it_eases(free_bytes)
        return max(_SHORTEST_S, min(disk_s, self._memory_s - time.monotonic()))

    # What there is

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
        count = 0
        for entry in standing(user_root()):
            group = Path(entry.promise.group) if entry.promise.group else None
            if entry.is_at_work and entry.promise.state != self.lease.state and bound.covers(group):
                # It may not be mounted yet, or just be released.
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    count += Lease.read(Path(entry.promise.state) / MARK).started > self.lease.started
        return count

    @property
    def _target_bytes(self) -> int:
        """How much room is made: for one more checkpoint, as far as the RAM disk is large enough for that."""
        return max(2 * self.cushion_bytes, min(self._checkpoint_bytes(), self.lease.size_bytes // 2))

    def _checkpoint_bytes(self) -> int:
        return max((saved.size_bytes for saved in self.drain.saved[-10:]), default=0)

    # What helps without the trainer's noticing

    def _make_room(self) -> int:
        """Prune, and enlarge the RAM disk; return the room that there is then."""
        wanted_bytes, now = 2 * self.cushion_bytes, time.monotonic()
        if self.pausing or now >= self._prune_again_s:
            for checkpoint in self._prunable():
                if self._free_bytes() >= self._target_bytes:
                    break
                self._prune(checkpoint)
            self._prune_again_s = time.monotonic() + _AGAIN_S / 4
        free_bytes = self._free_bytes()
        if free_bytes < wanted_bytes and self.run.grow and now >= self._grow_again_s:
            free_bytes = self._grow()
        return free_bytes

    def _free_bytes(self) -> int:
        return self._fill.free_bytes(self.lease.size_bytes, self.cushion_bytes)

    def _prunable(self) -> Iterator[Checkpoint]:
        """Yield what the trainer would not use again, the oldest first: neither the newest whole one nor the best."""
        products = self.run.products
        newest = self._newest() if products.prunable else None
        if newest is None:
            return
        wanted = matcher((*products.model, *products.artifacts))
        for checkpoint in reversed(find_checkpoints(self.stage, products.prunable)):
            names = (checkpoint.path, *(path for path, _ in checkpoint.files))
            is_wanted = any(wanted.fullmatch(name) for name in names) or _is_best(checkpoint, products)
            is_older = checkpoint.path != newest.path and checkpoint.saved_s < newest.saved_s
            in_ram = not any((Path(self.stage.layers[0]) / name).is_symlink() for name in names)
            if is_older and in_ram and not is_wanted:
                yield checkpoint

    def _newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint: one that the drain knows to be, or that tells it itself."""
        upper, held = Path(self.stage.layers[0]), self._held()
        for checkpoint in find_checkpoints(self.stage, self.run.products.checkpoints):
            is_closed = held.isdisjoint(f"{self.stage.ram}/{path}" for path, _ in checkpoint.files)
            if checkpoint == self.drain.newest or (
                is_closed and tells_its_end(checkpoint, upper) and is_whole(checkpoint, upper)
            ):
                return checkpoint
        return None

    def _held(self) -> set[str]:
        """Return what the trainer's processes have open or mapped, by its path as they see it."""
        return {path for process in self.processes() for path in held_by(process.pid)}

    def _prune(self, checkpoint: Checkpoint) -> None:
        began_s, place = time.monotonic(), self._through(checkpoint.path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
        self._note("prune", "its RAM disk fills", checkpoint.path, checkpoint.size_bytes, began_s)

    def _grow(self) -> int:
        """Enlarge the RAM disk, as far as there is memory for it; return the room that there is then."""
        began_s, before_bytes = time.monotonic(), self.lease.size_bytes
        more_bytes = max(int(before_bytes * _GROWTH), 2 * self._checkpoint_bytes())
        self.lease = grow(self.run, self.lease, before_bytes + more_bytes, before_bytes + self.cushion_bytes)
        grown_bytes = self.lease.size_bytes - before_bytes
        if grown_bytes:
            size = format_size(self.lease.size_bytes, binary=True)
            self._note("grow", "its RAM disk fills", f"to {size}", grown_bytes, began_s)
        if grown_bytes < more_bytes:
            self._grow_again_s = time.monotonic() + _AGAIN_S
        return self._free_bytes()

    def _hurry(self) -> None:
        """Have the newest checkpoint brought home, once."""
        newest = self.drain.newest
        if newest and newest != self._hurried and newest.saved_s > self.drain.schedule.safe_s and self.drain.hurry():
            self._hurried = newest
            self._note("drain", "memory runs short", newest.path, newest.size_bytes, time.monotonic())

    # What the trainer has to be stopped for

    def _pause_until_it_eases(self, free_bytes: int) -> None:
        """Stop the trainer, make room, and let it go on when there is some, or when nothing more can be done."""
        began_s = time.monotonic()
        worst, *_ = self._shortages(free_bytes)
        is_of_memory = worst.is_of_memory
        try:
            if not self._pause(worst.why):
                return
            self._hurry()
            while not self._end.is_set():
                shortages = self._shortages(self._make_room())
                is_of_memory |= any(each.is_of_memory and each.stop_bytes > 0 for each in shortages)
                left = [each for each in shortages if is_of_memory or not each.is_of_memory]
                if not left or not self._relieve(left[0], time.monotonic() - began_s):
                    return
        finally:
            self._go_on()

    def _relieve(self, shortage: Shortage, waited_s: float) -> bool:
        """Do something about a shortage, the trainer being stopped; return False if it is to go on as it is."""
        may_ease = shortage.is_of_memory and waited_s < _EASES_S
        if not may_ease and self._spill(shortage):
            return True
        if not shortage.is_of_memory and shortage.stop_bytes <= 0:
            return False  # it is not as much room as was wished for
        is_last = not self.drain.is_hurrying and (not shortage.is_of_memory or waited_s > _PATIENCE_S)
        if is_last:
            self._pause_again_s = time.monotonic() + (_PATIENCE_S / 10 if shortage.is_of_memory else _AGAIN_S)
            self._note("give way", shortage.why, "nothing more can be moved out of RAM", 0, time.monotonic() - waited_s)
            return False
        self._end.wait(_PAUSED_TICK_S)
        return True

    def _pause(self, why: str) -> bool:
        """Stop all the trainer's processes, again until there is none that one has just made; False if it has ended."""
        began_s = time.monotonic()
        with self._lock:
            if self._end.is_set() or not self._signal_trainer(signal.SIGSTOP):
                return False
            self.pausing, self._paused_since_s = why, began_s
            known: set[int] = set()
            while running := [process for process in self.processes() if process.pid not in known]:
                for process in running:
                    known.add(process.pid)
                    with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
                        process.suspend()
                        self._stopped.append(process)
        self._note("pause", why, pluralize(len(self._stopped), "process", "processes"), 0, began_s)
        return True

    def _signal_trainer(self, number: signal.Signals) -> bool:
        """Send the trainer's first process a signal, which takes no look at all processes; False if it has ended."""
        try:
            signal.pidfd_send_signal(self._trainer, number)
        except ProcessLookupError:
            return False
        return True

    def _go_on(self) -> None:
        with self._lock:
            if self.pausing is None:
                return
            for process in reversed(self._stopped):
                with contextlib.suppress(psutil.Error):
                    process.resume()
            paused_s = time.monotonic() - self._paused_since_s
            self._stopped, self.pausing = [], None
            self.result.paused_s = round(self.result.paused_s + paused_s, 3)
        self._note("go on", "", "", 0, self._paused_since_s)

    def _spill(self, shortage: Shortage) -> bool:
        """Move files to the disk, the oldest first, until there is room; return whether any was."""
        missing_bytes, has_spilled = shortage.go_on_bytes, False
        remove_orphans(Path(self.lease.folder), self._spilled)
        for path, size_bytes in self._spillable() if time.monotonic() >= self._spill_again_s else ():
            if missing_bytes <= 0 or self._end.is_set():
                break
            began_s = time.monotonic()
            try:
                spill(Path(self.stage.layers[0], path), self._through(path), self._spilled)
            except (OSError, RamTrainError) as error:
                if not self.processes():
                    break  # the trainer has ended meanwhile
                log.warning("run %s: %s could not be moved to the disk: %s", self.run.run, path, error)
                self._spill_again_s = time.monotonic() + _DISK_AGAIN_S
                break
            missing_bytes -= size_bytes
            has_spilled = True
            self.result.spilled_bytes += size_bytes
            self._note("spill", shortage.why, path, size_bytes, began_s)
        return has_spilled

    def _spillable(self) -> Iterator[tuple[str, int]]:
        """Yield the files in RAM that the trainer wrote and nobody has open, the oldest first, with their sizes."""
        upper, project = Path(self.stage.layers[0]), Path(self.stage.project)
        held, found = self._held(), []
        for path in View([upper]).written(project):
            with contextlib.suppress(FileNotFoundError):
                status = (upper / path).lstat()
                if contents_of(upper / path, None) and status.st_nlink == 1 and status.st_size >= _LEAST_SPILL_BYTES:
                    found.append((status.st_mtime, path, status.st_size))
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


def _is_best(checkpoint: Checkpoint, products: Products) -> bool:
    folder = os.path.dirname(checkpoint.path)
    return bool(matcher(products.best).fullmatch(os.path.relpath(checkpoint.path, folder or ".")))


def _is_stalled() -> bool:
    now = memory.pressure()
    return now is not None and now.full_percent > _STALLED_PERCENT
