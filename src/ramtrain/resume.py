"""What an interrupted training goes on from: the newest checkpoint that is whole and belongs to the same training."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from humanfriendly import format_timespan

from ramtrain import caller, shelf
from ramtrain.checkpoints import FAILED, INCOMPLETE, TRIED, Checkpoint, find_checkpoints, is_whole, marked
from ramtrain.config import Run, fill_placeholders
from ramtrain.durable import set_aside
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import Fingerprint
from ramtrain.ramdisk import Lease
from ramtrain.salvage import make_durable, save_state
from ramtrain.shelf import DurableCheckpoint
from ramtrain.sighting import SIGHTING, Sighting
from ramtrain.staging import Begun, Stage, renew

log = logging.getLogger(__name__)


RULES = ("same", "always", "never")


@dataclass(frozen=True)
class Start:
    """What a training can go on from: a path in the project, when it was saved (seconds since the epoch), where the
    training was then; in RAM, or on the disk in `durable`."""

    checkpoint: str
    saved_s: float
    progress: dict[str, str]
    in_ram: Checkpoint | None
    durable: DurableCheckpoint | None


@dataclass(frozen=True)
class Resumed:
    """From which checkpoint a training went on, and what was lost: seconds and steps of training; None: not known."""

    checkpoint: str
    source: str
    lost_s: float | None
    lost_steps: int | None


def prepare(run: Run, lease: Lease, stage: Stage, mine: Callable[[], Fingerprint]) -> Stage:
    """Clear the RAM disk of another training's state, after its newest checkpoint has been made durable.

    Raises:
        RamTrainError: that state could not be brought home; all is as it was.
    """
    begun = Begun.read(lease)
    moved = Path(stage.project) != run.project.resolve()
    ends = begun is not None and (moved or not belongs(run, mine(), begun.fingerprint))
    if begun and ends:
        saved = save_state(lease)
        changes = ", ".join(mine().changes(begun.fingerprint))
        if changes and run.resume == "same":
            log.warning(
                "run %s: the training was changed (%s) and starts anew. %s To go on from an earlier state all the "
                "same, type `%s --config resume=%s`",
                run.run,
                changes,
                saved.sentence(),
                caller.command("train"),
                shlex.quote(str(saved.folder)) if saved.is_durable else "always",
            )
    elif begun is None and run.resume == "same":
        _tell_of_others(run, mine)
    if ends:  # what is read from the output is to be of one training
        (Path(lease.folder) / shelf.TRAINER_LOG).unlink(missing_ok=True)
    if run.resume == "never":
        for durable in shelf.durable_checkpoints(run.run):
            aside = set_aside(durable.folder, "aside")
            log.info("run %s: starting anew, as asked; the earlier durable checkpoint is now %s", run.run, aside)
    return renew(run, lease) if ends or moved else stage


def _tell_of_others(run: Run, mine: Callable[[], Fingerprint]) -> None:
    """Say that there are durable checkpoints of another training, where there is none of this one."""
    others = shelf.durable_checkpoints(run.run)
    if not others or any(belongs(run, mine(), durable.fingerprint) for durable in others):
        return
    log.warning(
        "run %s: the training was changed (%s) and starts anew. Of the earlier one there is %s. To go on from it all "
        "the same, type `%s --config resume=%s`",
        run.run,
        ", ".join(mine().changes(others[0].fingerprint)),
        others[0].folder,
        caller.command("train"),
        shlex.quote(str(others[0].folder)),
    )


class Ladder:
    """What a training can go on from, tried from the newest to the oldest until one works.

    `stage` is how the project is staged for the present step, `resumed` what it goes on from.
    """

    def __init__(self, run: Run, lease: Lease, stage: Stage, mine: Callable[[], Fingerprint]) -> None:
        self.run, self.lease, self.stage, self.mine = run, lease, stage, mine
        self.resumed: Resumed | None = None
        self.has_failed = False
        self.begun = Begun.read(lease)
        self.tried: list[Start] = []

    @property
    def is_resuming(self) -> bool:
        """Whether the trainer has been told to go on from a checkpoint."""
        return self.resumed is not None and self.run.trainer.resume is not None

    @property
    def tried_names(self) -> list[str]:
        """The checkpoints that were tried in vain."""
        return [start.checkpoint for start in self.tried]

    def steps(self) -> Iterator[list[str]]:
        """Yield the arguments of each step; the next one is asked for when the trainer could not load the last."""
        for start in self._starts():
            try:
                arguments, self.resumed = _go_on(self.run, self.lease, self.stage, start, self.mine)
            except RamTrainError as error:
                log.warning("%s", error)
                continue
            yield arguments
            log.warning("run %s: the trainer could not go on from %s", self.run.run, start.checkpoint)
            _hide(self.stage, start)
            self.tried.append(start)
        if self.tried:
            self.has_failed = True
            self._settle(is_their_fault=False)
            return
        if self.begun and self.run.trainer.resume:
            log.info("run %s: the earlier attempt left no whole checkpoint; starting anew", self.run.run)
            self.stage = renew(self.run, self.lease)
        yield []

    def works(self, made_progress: bool) -> None:
        """Take note that the trainer could load the last one, or that it ended for another reason."""
        self._settle(is_their_fault=made_progress)

    def _starts(self) -> list[Start]:
        """Return what the training can go on from, the newest first."""
        run = self.run
        if run.resume not in RULES:
            named = shelf.read_durable(Path(run.resume))
            return [Start(named.checkpoint, named.saved_s, named.progress, None, named)]
        if not self.begun and not any(shelf.shelf(run.run).glob("[0-9]*")):
            return []
        mine = self.mine()
        in_ram = _whole_in_ram(run, self.stage) if self.begun else []
        seen = Sighting.read(Path(self.lease.state) / SIGHTING)
        said = seen.checkpoints if seen else {}
        found = {start: Start(start.path, start.saved_s, said.get(start.path, {}), start, None) for start in in_ram}
        only_durable = []
        for durable in shelf.durable_checkpoints(run.run):
            if not belongs(run, mine, durable.fingerprint):
                continue
            twin = next((start for start in in_ram if _is_copy(durable, start)), None)
            start = Start(durable.checkpoint, durable.saved_s, durable.progress, twin, durable)
            if twin:
                found[twin] = start
            else:
                only_durable.append(start)
        return sorted([*found.values(), *only_durable], key=lambda start: start.saved_s, reverse=True)

    def _settle(self, is_their_fault: bool) -> None:
        """Mark the checkpoints that were tried in vain, if another one worked; otherwise put them back."""
        for start in self.tried:
            path = Path(self.stage.layers[0]) / start.checkpoint
            hidden = marked(path, TRIED)
            if not is_their_fault:
                _rename(hidden, path)
                continue
            _rename(hidden, marked(path, FAILED))
            for durable in shelf.durable_checkpoints(self.run.run):
                if (durable.checkpoint, durable.saved_s) == (start.checkpoint, start.saved_s):
                    set_aside(durable.folder, "failed")
            log.warning("run %s: %s is marked as failed and not tried again", self.run.run, start.checkpoint)


def belongs(run: Run, fingerprint: Fingerprint, other: Fingerprint) -> bool:
    """Whether the run may go on from what carries `other`; if a checkpoint is named, from nothing else."""
    return run.resume == "always" or (run.resume == "same" and not fingerprint.changes(other))


def _is_copy(durable: DurableCheckpoint, checkpoint: Checkpoint) -> bool:
    return durable.checkpoint == checkpoint.path and durable.saved_s == checkpoint.saved_s


def _whole_in_ram(run: Run, stage: Stage) -> list[Checkpoint]:
    """Return the whole checkpoints in RAM. One that was cut short is renamed to end in `.incomplete`, out of the
    trainer's sight: the Coqui Trainer takes the newest by name and dies of it."""
    upper = Path(stage.layers[0])
    for tried in upper.glob(f"**/*{TRIED}"):  # of a call that was killed before it knew better
        path = tried.with_name(tried.name.removesuffix(TRIED))
        _rename(tried, marked(path, FAILED) if path.exists() else path)
    whole = []
    for checkpoint in find_checkpoints(stage, run.products.checkpoints):
        if is_whole(checkpoint, upper, run.products.complete):
            whole.append(checkpoint)
        else:
            path = upper / checkpoint.path
            incomplete = path.rename(marked(path, INCOMPLETE))
            log.warning("run %s: %s was cut short; it is renamed to %s", run.run, path, incomplete.name)
    return whole


def _go_on(
    run: Run, lease: Lease, stage: Stage, start: Start, mine: Callable[[], Fingerprint]
) -> tuple[list[str], Resumed]:
    """Put a checkpoint where the trainer expects it; return the arguments that resume it, and what was lost.

    One that is only in RAM is made durable first: from now on no power cut costs what was before.

    Raises:
        RamTrainError: the durable checkpoint is not what was kept; it has been set aside.
        OSError: the RAM disk has no room for it.
    """
    seen = Sighting.read(Path(lease.state) / SIGHTING) or Sighting.read(shelf.attempt(run.run))
    if start.in_ram is None:
        assert start.durable is not None
        try:
            shelf.put_back(start.durable, stage, lease)
            _put_back_best(run, lease, stage, start.durable)
        except RamTrainError as error:
            failed = set_aside(start.durable.folder, "failed")
            raise RamTrainError(f"run {run.run}: {error}; it is set aside as {failed}") from None
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {start.durable.folder} could not be put back") from None
        source = f"from the durable checkpoint {start.durable.folder}"
    else:
        source = "which is still in RAM"
        if start.durable is None and run.protect.max_loss_s is not None:
            try:
                make_durable(run.run, lease, stage, Begun(mine(), run.products), start.in_ram, start.progress)
            except (OSError, RamTrainError) as error:
                log.warning("run %s: %s could not be made durable: %s", run.run, start.checkpoint, error)
    lost_s, lost_steps = _lost(start, seen)
    lost = f"; lost: {format_timespan(round(lost_s))} of training" if lost_s and lost_s >= 1 else ""
    log.info("run %s: going on from %s, %s%s", run.run, start.checkpoint, source, lost)
    arguments: list[str] = []
    if run.trainer.resume:
        values = {"folder": str(PurePosixPath(start.checkpoint).parent), "checkpoint": start.checkpoint}
        arguments = fill_placeholders(run.trainer.resume.arguments, values)
    return arguments, Resumed(start.checkpoint, source, lost_s, lost_steps)


def _put_back_best(run: Run, lease: Lease, stage: Stage, durable: DurableCheckpoint) -> None:
    """Put the best models so far back as well, where they are not the checkpoint itself.

    Where none of those that it names is at home, the newest one of before.
    """

    def is_back(best: DurableCheckpoint) -> bool:
        try:
            shelf.put_back(best, stage, lease)
        except RamTrainError as error:
            failed = set_aside(best.folder, "failed")
            log.warning("run %s: %s; it is set aside as %s", run.run, error, failed)
            return False
        return True

    if durable.best == []:
        return
    same = [best for best in shelf.best_models(run.run) if not durable.fingerprint.changes(best.fingerprint)]
    others = [best for best in same if best.checkpoint not in durable.also]
    named = [best for best in others if best.folder.name in (durable.best or ())]
    if not [best for best in named if is_back(best)]:
        next((best for best in others if best not in named and is_back(best)), None)


def _lost(start: Start, seen: Sighting | None) -> tuple[float | None, int | None]:
    if seen is None:
        return None, None
    steps = None
    if start.progress.get("step", "").isdigit() and seen.progress.get("step", "").isdigit():
        steps = max(0, int(seen.progress["step"]) - int(start.progress["step"]))
    # What an attempt that ended before had trained is not lost again while nobody trains.
    return round(max(0.0, seen.seen_s - max(start.saved_s, seen.started_s)), 3), steps


def _hide(stage: Stage, start: Start) -> None:
    """Put a checkpoint out of the trainer's sight, for as long as an older one is tried."""
    path = Path(stage.layers[0]) / start.checkpoint
    _rename(path, marked(path, TRIED))


def _rename(path: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # trainers delete checkpoints, also those that they cannot load
        path.rename(target)
