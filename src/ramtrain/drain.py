"""Durable checkpoints: while a trainer trains, what a power cut would cost is kept within a bound.

The newest complete checkpoint is brought home when waiting for the next one would break the bound; what a newer one
overtakes is skipped, never queued. It is done in a thread of low priority: a slow disk delays the next durable
checkpoint, never the trainer.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from humanfriendly import format_size, format_timespan

from ramtrain import shelf
from ramtrain.afar import Teller
from ramtrain.beside import Beside, Cancelled
from ramtrain.best import globs_of_best
from ramtrain.checkpoints import (
    Checkpoint,
    Stamp,
    find_checkpoints,
    find_links,
    in_folder_of,
    is_unchanged,
    is_whole,
    tells_its_end,
)
from ramtrain.config import Products, Run
from ramtrain.durable import Changed, Kept, commit_folder, room_bytes, sweep_all
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.meter import NO_WRITES, ProcessWrites, thread_writes
from ramtrain.opened import written_to
from ramtrain.plain import one_line
from ramtrain.ramdisk import Lease
from ramtrain.sighting import Sighting
from ramtrain.spill import contents_of
from ramtrain.staging import Stage
from ramtrain.system import born_s
from ramtrain.view import View

log = logging.getLogger(__name__)

# A file that nobody has open, and that has not changed for so long, has been written.
_SETTLE_S = 1.0
# The files of a folder are written one after the other, with pauses.
_SETTLE_FOLDER_S = 5.0
_TICK_S = 0.5
# Looking for checkpoints means walking folders; it may take this share of the time.
_LOOKING_SHARE = 0.01
_RETRY_S = 30.0
_ALIVE_EVERY_S = 60.0
# A tenth of a trainer's weight (sched(7)); with less, a trainer that spins on all cores would starve the drain for
# longer than the bound, and the work to be done is the same.
_NICE = 10
_DAY_S = 86400.0
_MOST_DURABLE = 1_000


@dataclass(frozen=True)
class Hashes:
    """A durable checkpoint that was made: its path in the project, when it was saved (ISO 8601), and its files."""

    checkpoint: str
    saved: str
    files: list[Kept]


@dataclass
class Drained:
    """What a drain did: what it wrote, checkpoints brought home, overtaken by newer ones, found to be
    there already under another name, changed while they were copied. In seconds: the bound, None for none; the most
    training that a power cut would have cost at any moment; the longest that the trainer was without a new checkpoint,
    and that one took from its last change until it was durable. `durable` are those that were brought home, the last
    1,000 of them, and the best models so far."""

    max_loss_s: float | None
    writes: ProcessWrites = NO_WRITES
    checkpoints: int = 0
    skipped: int = 0
    duplicates: int = 0
    dropped: int = 0
    worst_loss_s: float = 0.0
    longest_spacing_s: float = 0.0
    longest_drain_s: float = 0.0
    durable: list[Hashes] = field(default_factory=list)

    def note(self, checkpoint: Checkpoint, files: list[Kept]) -> None:
        """Take note of a durable checkpoint."""
        saved = datetime.fromtimestamp(checkpoint.saved_s, UTC).isoformat(timespec="milliseconds")
        self.durable = [*self.durable, Hashes(checkpoint.path, saved, files)][-_MOST_DURABLE:]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Drained:
        """Return the drain's account that `asdict` made `content` of."""
        durable = [
            Hashes(**{**entry, "files": [Kept(**file) for file in entry["files"]]})
            for entry in content.get("durable", [])
        ]
        return cls(**{**content, "writes": ProcessWrites(**content["writes"]), "durable": durable})


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint as the trainer saved it: its size, and how long that took, where the file system tells."""

    size_bytes: int
    save_s: float | None


@dataclass
class Schedule:
    """When the next checkpoint has to be brought home; times in seconds since the epoch.

    Args:
        safe_s: up to when the training is on the disk; its beginning, as long as nothing is.
    """

    max_loss_s: float | None
    write_budget_bytes: int | None
    safe_s: float
    drain_s: float = 0.0
    notice_s: float = _SETTLE_S
    budget_free_s: float = 0.0
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    newest_s: float | None = None

    def saw(self, saved_s: float, now_s: float) -> None:
        """Learn from a checkpoint how far apart they are, and how long it takes until one is seen to be complete."""
        before = self.safe_s if self.newest_s is None else self.newest_s
        if saved_s > before:
            self.gaps_s.append(saved_s - before)
            self.notice_s = max(0.0, now_s - saved_s)
            self.newest_s = saved_s

    def is_due(self, now_s: float) -> bool:
        """Whether waiting for the checkpoint after the newest one would break the bound."""
        if self.max_loss_s is None or self.newest_s is None or self.newest_s <= self.safe_s:
            return False
        next_s = max(now_s, self.newest_s + max(self.gaps_s, default=0.0)) + self.notice_s
        return next_s + self.drain_s > self.safe_s + self.max_loss_s

    def allows(self, now_s: float) -> bool:
        """Whether the write budget has room again."""
        return now_s >= self.budget_free_s

    def drained(self, saved_s: float, began_s: float, took_s: float, size_bytes: int) -> None:
        """Take note of a checkpoint that was brought home."""
        self.safe_s = max(self.safe_s, saved_s)
        self.drain_s = took_s
        if self.write_budget_bytes:
            self.budget_free_s = began_s + size_bytes * _DAY_S / self.write_budget_bytes


def bring_home(
    run: str,
    checkpoint: Checkpoint,
    stage: Stage,
    lease: Lease,
    products: Products,
    about: Callable[[], dict[str, Any]],
    confirm: Callable[[], None] = lambda: None,
    report: Callable[[int, int], None] = lambda files, size: None,
    note: Callable[[Checkpoint, list[Kept]], None] = lambda checkpoint, files: None,
) -> Path:
    """Make a checkpoint in RAM a durable one, with what it needs and the logs; return its folder.

    The trainer may delete the files meanwhile: they are opened first. Those that it writes to are noticed.

    Args:
        about: what the manifest says of it.
        confirm: called when all is copied, before it counts; raises to drop it.
        note: called with each durable checkpoint that was made, and its files.

    Raises:
        Changed: it was written to meanwhile, or is gone.
        RamTrainError, OSError: the disk is full, or fails; nothing is left of it.
    """
    sweep_all(shelf.shelf(run))
    upper = Path(stage.layers[0])
    folder = shelf.shelf(run) / shelf.name_of(checkpoint.path, checkpoint.saved_s)
    with contextlib.ExitStack() as opened:
        sources: dict[str, Path] = {}
        descriptors = {}
        for path, stamp in checkpoint.files:
            try:
                source = contents_of(upper / path, Path(stage.spilled)) or upper / path
                descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise Changed(f"{path} is gone: {error.strerror}") from None
            opened.callback(os.close, descriptor)
            descriptors[descriptor] = stamp
            sources[f"{shelf.IN_PROJECT}{path}"] = Path(f"/proc/self/fd/{descriptor}")
        view = View([upper], spilled=Path(stage.spilled))
        for path, source in _plain_files(view, in_folder_of(checkpoint, products.companions)):
            sources.setdefault(path, source)
        logs = {path: source for path, source in _plain_files(view, products.logs) if path not in sources}
        if (output := Path(lease.folder) / shelf.TRAINER_LOG).exists():
            logs[shelf.TRAINER_LOG] = output
        _check_room(run, sum(map(room_bytes, {**sources, **logs}.values())))

        def finish() -> dict[str, Any]:
            changed = any(Stamp.of(os.fstat(descriptor)) != stamp for descriptor, stamp in descriptors.items())
            if changed or _has_grown(checkpoint, view):
                raise Changed(f"{checkpoint.path} was written to while it was copied")
            confirm()
            return about()

        best = _best_models(checkpoint, products, view)
        also = [other.path for other in best if _has_same_content(other, checkpoint, upper)]
        others = [other for other in best if other.path not in also]
        # First: a checkpoint that is durable is gone on with, and nobody would write an older best model again.
        for other in others:
            _bring_best_home(run, other, upper, about(), report, note)
        beside = {"also": also, "best": [shelf.name_of_best(other.path, other.saved_s) for other in others]}
        kept = commit_folder(
            {**sources, **logs}, folder, report, growing=logs.keys(), about=lambda: {**finish(), **beside}
        )
    note(checkpoint, kept)
    return folder


def _best_models(checkpoint: Checkpoint, products: Products, view: View) -> list[Checkpoint]:
    """Return the whole ones of the best models so far, but for the checkpoint itself."""
    upper, found = view.layers[0], []
    for path, names in view.find(globs_of_best(checkpoint, products, upper)).items():
        with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
            places = {name: contents_of(upper / name, view.spilled) for name in names}
            files = tuple((name, Stamp.of(place.stat())) for name, place in places.items() if place and place.is_file())
            best = Checkpoint(path, files)
            if files and path != checkpoint.path and is_whole(best, upper, products.complete):
                found.append(best)
    return found


def _has_same_content(best: Checkpoint, checkpoint: Checkpoint, upper: Path) -> bool:
    if best.is_folder or checkpoint.is_folder:
        return False
    try:
        return filecmp.cmp(upper / best.path, upper / checkpoint.path, shallow=False)
    except FileNotFoundError:
        return False


def _bring_best_home(
    run: str,
    best: Checkpoint,
    upper: Path,
    about: dict[str, Any],
    report: Callable[[int, int], None],
    note: Callable[[Checkpoint, list[Kept]], None],
) -> None:
    """Make the best model so far durable, unless it is; if it cannot be, the checkpoint need not be tried again."""
    if any((known.checkpoint, known.saved_s) == (best.path, best.saved_s) for known in shelf.best_models(run)):
        return
    folder = shelf.shelf(run) / shelf.name_of_best(best.path, best.saved_s)
    content = {**about, "checkpoint": best.path, "saved_s": best.saved_s}
    try:
        sources = {f"{shelf.IN_PROJECT}{name}": upper / name for name, _ in best.files}
        note(best, commit_folder(sources, folder, report, about=lambda: content))
    except Cancelled:
        raise
    except Changed as reason:
        log.debug("run %s: dropped: %s", run, reason)
    except (OSError, RamTrainError) as error:
        log.warning("run %s: the best model so far, %s, could not be made durable: %s", run, best.path, error)


def _plain_files(view: View, patterns: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files that the globs name by their path in a durable checkpoint; a link may lead out of the project."""
    for path in view.glob(patterns):
        with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
            source = contents_of(view.layers[0] / path, view.spilled)
            if source and source.is_file():
                yield f"{shelf.IN_PROJECT}{path}", source


def find_twin(
    run: str, checkpoint: Checkpoint, stage: Stage, fingerprint: Fingerprint
) -> shelf.DurableCheckpoint | None:
    """Return the newest durable checkpoint if it has the same contents, such as best_model.pth its numbered twin's."""
    durable = next(iter(shelf.durable_checkpoints(run)), None)
    if durable is None or fingerprint.changes(durable.fingerprint):
        return None
    start = f"{shelf.IN_PROJECT}{durable.checkpoint}"
    mine = sorted(Path(stage.layers[0]) / path for path, _ in checkpoint.files)
    theirs = sorted(durable.folder / file.path for file in durable.files if f"{file.path}/".startswith(f"{start}/"))
    try:
        is_same = len(mine) == len(theirs) and all(
            filecmp.cmp(here, there, shallow=False) for here, there in zip(mine, theirs, strict=True)
        )
    except FileNotFoundError:
        return None
    return durable if is_same else None


def _settle_s(checkpoint: Checkpoint, upper: Path, complete: Sequence[str]) -> float:
    """Return how long a checkpoint must have held still, in seconds, before it may be complete."""
    tells = tells_its_end(checkpoint, upper, complete)
    if checkpoint.is_folder:  # of several processes another one may still be writing to it
        return _SETTLE_S if tells else _SETTLE_FOLDER_S
    return 0.0 if tells else _SETTLE_S


def _has_grown(checkpoint: Checkpoint, view: View) -> bool:
    known = {path for path, _ in checkpoint.files}
    found = view.find([glob.escape(checkpoint.path)]).get(checkpoint.path, [])
    with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
        places = {path: contents_of(view.layers[0] / path, view.spilled) for path in found}
        return not known.issuperset(path for path, place in places.items() if place and place.is_file())
    return False


def _check_room(run: str, size_bytes: int) -> None:
    folder = shelf.home(run) if shelf.home(run).is_dir() else Path.cwd()
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise RamTrainError(
            f"{folder} has {format_size(free_bytes, binary=True)} free, and {format_size(size_bytes, binary=True)} are "
            "to come home; make room there"
        )


class Drain(Beside):
    """Brings checkpoints home beside a trainer, from `start` to `finish`.

    Args:
        fingerprint: waits until it is known, and returns it.
        processes: the trainer's.
        progress: what its output said last.
    """

    def __init__(
        self,
        run: Run,
        lease: Lease,
        stage: Stage,
        fingerprint: Callable[[], Fingerprint],
        processes: Callable[[], list[psutil.Process]],
        progress: Callable[[], dict[str, str]],
    ) -> None:
        super().__init__("drain")
        self.run, self.lease, self.stage = run, lease, stage
        self.fingerprint, self.processes, self.progress = fingerprint, processes, progress
        self.started_s = time.time()
        self.schedule = Schedule(run.protect.max_loss_s, run.protect.write_budget_bytes, safe_s=self.started_s)
        self.result = Drained(run.protect.max_loss_s)
        self.newest: Checkpoint | None = None
        self._last_newest: Checkpoint | None = None
        self.durable: Path | None = None
        self.saved: list[Saved] = []
        self._inodes: set[int] = set()
        self.last: Sighting | None = None
        self.teller = Teller(run.run, lease)
        self._alive_s = 0.0
        self._changed_s: dict[Checkpoint, float] = {}
        self._complete: dict[Checkpoint, dict[str, str]] = {}  # each with the progress at that time
        self._dealt_with: set[Checkpoint] = set()
        self._retry_s = 0.0
        self._told: object = None
        self._told_of_links = False
        self._hurry = threading.Event()

    def hurry(self) -> bool:
        """Have the newest complete checkpoint brought home now, whatever the schedule and the write budget say.

        Returns:
            whether that will be done: where there is no bound to keep, nothing is.
        """
        if self.schedule.max_loss_s is None or self._stop.is_set():
            return False
        self._hurry.set()
        self._wake.set()
        return True

    @property
    def is_hurrying(self) -> bool:
        """Whether what `hurry` asked for is still to be done."""
        return self._hurry.is_set() and self._thread.is_alive()

    def age_s(self) -> float:
        """Return how much training, in seconds, a power cut would cost now."""
        return max(0.0, time.time() - self.schedule.safe_s)

    def _work(self) -> None:
        # Both of these hold for a thread: setpriority(2), NOTES; ioprio_set(2).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_IDLE)
        try:
            while not self._stop.is_set():
                wait_s = self._work_once()
                self._wake.wait(wait_s)
                self._wake.clear()
            self._note_age()
            self._look_once(settle=False)
            if self._with_newest and self.schedule.max_loss_s is not None and not self._cancel.is_set():
                self._bring_newest()
            self.result.skipped += len(self._complete.keys() - self._dealt_with - {self.newest})
        except Exception:
            log.exception(
                "run %s: no more checkpoints are brought home, a defect of RamTrain; the training goes on", self.run.run
            )

    def _work_once(self) -> float:
        """Look, and bring the newest checkpoint home if it is due; return how long to wait, in seconds."""
        began = time.monotonic()
        self._look_once()
        wait_s = (time.monotonic() - began) / _LOOKING_SHARE
        self._note_age()
        if self._hurry.is_set():
            self._bring_newest()
            self._hurry.clear()
        else:
            self._bring_if_due()
        self._note_age()
        self._note_alive()
        if self.last:
            self.teller.tell(self.last)
        return max(_TICK_S, min(wait_s, (self.schedule.max_loss_s or wait_s) / 10))

    def _note_alive(self) -> None:
        """Note on the disk, where there are durable checkpoints, how far the training has got."""
        now = time.monotonic()
        folder, max_loss_s = shelf.shelf(self.run.run), self.schedule.max_loss_s
        if self.last is None or max_loss_s is None or now < self._alive_s or not folder.is_dir():
            return
        self._alive_s = now + min(_ALIVE_EVERY_S, max_loss_s)
        before = thread_writes()
        try:
            self.last.write(shelf.attempt(self.run.run))
        except OSError as error:
            self._tell_once(error.errno, f"{shelf.attempt(self.run.run)} could not be written: {error}")
        self.result.writes = self.result.writes.and_also(thread_writes().since(before))

    def _note_age(self) -> None:
        newest_s = self.schedule.newest_s or self.started_s
        self.result.worst_loss_s = max(self.result.worst_loss_s, round(self.age_s(), 3))
        self.result.longest_spacing_s = max(self.result.longest_spacing_s, round(time.time() - newest_s, 3))

    def _look_once(self, settle: bool = True) -> None:
        try:
            self._look(settle)
        except OSError as error:
            self._tell_once(error.errno, f"its checkpoints cannot be looked for: {error}")

    def _look(self, settle: bool = True) -> None:
        """See which checkpoints there are, and which of them are complete."""
        now, upper, complete = time.monotonic(), Path(self.stage.layers[0]), self.run.products.complete
        found = find_checkpoints(self.stage, self.run.products.checkpoints)
        if not found:
            self._tell_of_links()
        self._changed_s = {checkpoint: self._changed_s.get(checkpoint, now) for checkpoint in found}
        for checkpoint in reversed(found):
            if checkpoint in self._complete:
                continue
            if settle and now - self._changed_s[checkpoint] < _settle_s(checkpoint, upper, complete):
                continue
            # If it has not been written to since it was found, it was whole then, too.
            is_complete = is_whole(checkpoint, upper, complete) and not self._is_written_to(checkpoint)
            if is_complete and is_unchanged(checkpoint, upper, Path(self.stage.spilled)):
                self._complete[checkpoint] = self.progress()
                self._note_saved(checkpoint, upper)
                self.schedule.saw(checkpoint.saved_s, time.time())
        for gone in self._complete.keys() - set(found):
            del self._complete[gone]
            self.result.skipped += gone not in self._dealt_with
            self._dealt_with.discard(gone)
        self.newest = next((checkpoint for checkpoint in found if checkpoint in self._complete), None)
        self._last_newest = self.newest or self._last_newest

    def _tell_of_links(self) -> None:
        """Say once if the globs name links alone, such as `latest`: what these lead to has to be named."""
        if not self._told_of_links and (links := find_links(self.stage, self.run.products.checkpoints)):
            self._told_of_links = True
            log.warning(
                "run %s: %s is a link, and links are no checkpoints; name what it leads to in project.checkpoints",
                self.run.run,
                one_line(links[0]),
            )

    def _note_saved(self, checkpoint: Checkpoint, upper: Path) -> None:
        """Note how long a checkpoint took to be saved: from when its first file was made to the last write.

        A file that is written anew in its place was made when it was first written: of it nothing is known. Of one that
        is written in a single call too little is: the kernel notes the time of a write when it begins.
        """
        inodes = {stamp.inode for _, stamp in checkpoint.files}
        with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
            born = [born_s(upper / path) for path, _ in checkpoint.files]
            is_new = inodes.isdisjoint(self._inodes)
            first_s = min((second for second in born if second), default=None) if is_new else None
            save_s = None if first_s is None else round(max(0.0, checkpoint.saved_s - first_s), 3)
            self.saved.append(Saved(checkpoint.size_bytes, save_s))
        self._inodes |= inodes

    def _is_written_to(self, checkpoint: Checkpoint) -> bool:
        processes, upper, spilled = self.processes(), Path(self.stage.layers[0]), Path(self.stage.spilled)
        if not written_to(processes, self.stage.ram).isdisjoint(path for path, _ in checkpoint.files):
            return True
        with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
            places = [contents_of(upper / path, spilled) for path, _ in checkpoint.files]
            names = {place.name for place in places if place and place.parent == spilled}
            return bool(names) and not written_to(processes, self.stage.spilled).isdisjoint(names)
        return False

    def _bring_if_due(self) -> None:
        now_s = time.time()
        if self.newest is None or self.newest in self._dealt_with or now_s < self._retry_s:
            return
        if not self.schedule.is_due(now_s):
            return
        if not self.schedule.allows(now_s):
            until = time.strftime("%X", time.localtime(self.schedule.budget_free_s))
            bound = format_timespan(self.schedule.max_loss_s or 0)
            self._tell_once(
                "write_budget",
                f"protect.write_budget leaves no room for a durable checkpoint until {until}; until then a power cut "
                f"may cost more than max_loss, {bound}",
            )
            return
        self._bring_newest()

    def _bring_newest(self) -> None:
        checkpoint = self.newest
        if checkpoint is None or checkpoint in self._dealt_with or checkpoint.saved_s <= self.schedule.safe_s:
            return
        began_s, before = time.time(), thread_writes()
        try:
            fingerprint = self.fingerprint()
            if find_twin(self.run.run, checkpoint, self.stage, fingerprint):
                self.result.duplicates += 1
                self._dealt_with.add(checkpoint)
                return
            progress = self._complete[checkpoint]
            self.durable = bring_home(
                self.run.run,
                checkpoint,
                self.stage,
                self.lease,
                self.run.products,
                about=lambda: shelf.about(checkpoint.path, checkpoint.saved_s, progress, fingerprint),
                confirm=lambda: self._confirm(checkpoint),
                report=lambda *_: self._stop_if_cancelled(),
                note=self.result.note,
            )
            self._note_age()
            self._dealt_with.add(checkpoint)
            self.result.checkpoints += 1
            took_s = time.time() - began_s
            self.schedule.drained(checkpoint.saved_s, began_s, took_s, checkpoint.size_bytes)
            self.result.longest_drain_s = max(self.result.longest_drain_s, round(self.schedule.notice_s + took_s, 3))
            self._told = None
            size = format_size(checkpoint.size_bytes, binary=True)
            log.info("run %s: durable checkpoint %s, %s in %.1f s", self.run.run, self.durable, size, took_s)
            # What a trainer was writing when it failed may be cut short, and not tell.
            tells = tells_its_end(checkpoint, Path(self.stage.layers[0]), self.run.products.complete)
            is_doubtful = self._with_newest and not tells
            shelf.prune(self.run.run, fingerprint, self.run.protect.keep + is_doubtful)
        except Changed as reason:
            self.result.dropped += 1
            self._dealt_with.add(checkpoint)
            log.debug("run %s: dropped: %s", self.run.run, reason)
        except Cancelled:
            log.debug("run %s: a durable checkpoint was not completed", self.run.run)
        except (OSError, RamTrainError) as error:
            self._retry_s = time.time() + min(_RETRY_S, self.schedule.max_loss_s or _RETRY_S)
            self._tell_once(
                getattr(error, "errno", type(error)),
                f"no durable checkpoint could be written: {error}. The training goes on; a power cut may cost more "
                f"than max_loss until this is mended",
            )
        finally:
            self.result.writes = self.result.writes.and_also(thread_writes().since(before))

    def _confirm(self, checkpoint: Checkpoint) -> None:
        self._stop_if_cancelled()
        if self._is_written_to(checkpoint):
            raise Changed(f"{checkpoint.path} has been opened for writing again")

    def sight(
        self,
        started_s: float,
        has_ended: bool,
        used_bytes: int,
        written: ProcessWrites,
        spilled_bytes: int = 0,
        paused: str | None = None,
    ) -> Sighting:
        """Return what there is to see now."""
        return Sighting(
            seen_s=time.time(),
            started_s=started_s,
            has_ended=has_ended,
            progress=dict(self.progress()),
            checkpoints={checkpoint.path: dict(said) for checkpoint, said in list(self._complete.items())},
            newest=self._last_newest.path if self._last_newest else None,
            newest_s=self._last_newest.saved_s if self._last_newest else None,
            durable=str(self.durable) if self.durable else None,
            safe_s=self.schedule.safe_s,
            max_loss_s=self.schedule.max_loss_s,
            worst_loss_s=self.result.worst_loss_s,
            used_bytes=used_bytes,
            kept_off_bytes=max(
                0, written.logical_bytes - written.disk_bytes - self.result.writes.disk_bytes - spilled_bytes
            ),
            paused=paused,
        )

    def _tell_once(self, what: object, message: str) -> None:
        """Warn, unless the last warning was of the same."""
        if what != self._told:
            log.warning("run %s: %s", self.run.run, message)
        self._told = what
