"""Start the trainer, watch it, end it: the side of RamTrain that stays outside the trainer's namespace."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain import caller, remedy, slurm
from ramtrain.beside import Beside
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.courier import Courier
from ramtrain.devices import Given, given
from ramtrain.drain import Drain, Drained, Saved
from ramtrain.durable import remove
from ramtrain.environment import Description, ProjectState
from ramtrain.errors import RamTrainError
from ramtrain.export import keep_log
from ramtrain.fingerprint import Fingerprint, fingerprint
from ramtrain.guard import Guard, Guarded
from ramtrain.inputs import read_inputs
from ramtrain.keeper import ABANDONED_GRACE_S, Ending, Order, Stop, kill_descendants
from ramtrain.lease import Lease, is_full, used_bytes
from ramtrain.meter import NO_WRITES, DiskCounters, ProcessWrites, disk_counters, own_writes, writes_of
from ramtrain.namespace import ENTER
from ramtrain.parameters import make_file
from ramtrain.plain import one_line, printable, without_colours
from ramtrain.progress import TrainingProgress
from ramtrain.ramdisk import enlarge, only_one, temporary_folder
from ramtrain.redact import redact_arguments, redact_text
from ramtrain.resume import Ladder, Resumed, prepare
from ramtrain.series import Sample, Series, series_of
from ramtrain.shelf import TRAINER_LOG, durable_checkpoints, export_file
from ramtrain.sighting import SIGHTING
from ramtrain.staging import Begun, Stage
from ramtrain.strays import MUCH_BYTES, Strays
from ramtrain.system import PR_SET_CHILD_SUBREAPER, set_process_attribute
from ramtrain.view import matcher

log = logging.getLogger(__name__)

_TICK_S = 0.5
# Measuring a folder means walking it, a trainer's writes all its processes; it may take this share of a core.
_MEASURING_SHARE = 0.005
_SAMPLE_S = _SIGHTING_S = 1.0
_SAME_SIGNAL_S = {False: 0.5, True: 5.0}  # it takes Snakemake a while to pass one on
# A trainer that fails sooner, without a word of progress, could not load its checkpoint.
_LOADING_S = 300.0
_TAIL_LINES, _TAIL_WIDTH, _TAIL_BYTES = 12, 500, 64 << 10
# Of what a trainer has printed since the last look, at most so much is read: it may print gigabytes.
_FOLLOWED_BYTES = 1 << 20
_MOST_TOLD = 5
# What is on its way to the store when it is not wanted any more; then the process ends without it.
_COURIER_S = 5.0

END_OF_SNAKEMAKE = "the end of Snakemake"
TOLD_BY_SNAKEMAKE = "a signal to Snakemake"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, caller.TOLD_TO_END)


class Failed(RamTrainError):
    """A training that did not end well: `what` says how it ended, the rest of the text what to do now; `reason` is both
    in a line, how it ended and what the trainer said last. `was_told` if it was ended by somebody."""

    def __init__(self, what: str, remedy: str, reason: str, was_told: bool) -> None:
        super().__init__(f"{what}\n{remedy}")
        self.what, self.reason, self.was_told = what, reason, was_told


@dataclass(frozen=True)
class Training:
    """A training that ended well; `progress` is what its output said last, `resumed` what it went on from.

    `saved` are the complete checkpoints that were seen, `strays` files on a disk that the trainer wrote, with their
    sizes, `own` what RamTrain wrote beside it, durable checkpoints apart; `before` the disk's counters at the start;
    `devices` are those that it was given, by UUID where that is known; `started` and `ended` say when the trainer ran,
    and are not in a note of before they were kept.
    """

    command: list[str]
    train_s: float
    writes: ProcessWrites
    peak_bytes: int
    left_behind: int
    progress: dict[str, str]
    drained: Drained
    guarded: Guarded
    saved: list[Saved]
    strays: dict[str, int]
    own: ProcessWrites
    before: DiskCounters
    resumed: Resumed | None
    project: ProjectState
    fingerprint: Fingerprint
    devices: list[str] = field(default_factory=list)
    started: str | None = None
    ended: str | None = None

    @classmethod
    def read(cls, path: Path) -> Training:
        """Read how a training went."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Training:
        """Return the training that `asdict` made `content` of."""
        parts = {
            "writes": ProcessWrites(**content["writes"]),
            "drained": Drained.from_dict(content["drained"]),
            "guarded": Guarded.from_dict(content["guarded"]),
            "own": ProcessWrites(**content["own"]),
            "saved": [Saved(**entry) for entry in content["saved"]],
            "before": DiskCounters(**content["before"]),
            "resumed": content["resumed"] and Resumed(**content["resumed"]),
            "project": ProjectState.from_dict(content["project"]),
            "fingerprint": Fingerprint(**content["fingerprint"]),
        }
        return cls(**{**content, **parts})


def trainer_environment(run: Run, lease: Lease, stage: Stage, devices: Given) -> dict[str, str]:
    """Return the trainer's environment: the user's, TMPDIR in RAM, threads if configured, the adapter's variables, the
    config's, and its devices if it is given any."""
    env = caller.environment()
    env.update(dict.fromkeys(caller.TEMPORARY_VARIABLES, str(temporary_folder(lease))))
    if run.threads:
        env.update(dict.fromkeys(caller.THREAD_VARIABLES, str(run.threads)))
    env.update({"PWD": stage.cwd, "PYTHONUNBUFFERED": "1"})
    return env | run.trainer.environment | run.variables(stage.ram) | devices.environment


def train(run: Run, lease: Lease, stage: Stage) -> Training:
    """Run the trainer to its end, from where an earlier attempt got to, when there are devices for it.

    Raises:
        RamTrainError: it is running already, could not be started, failed, or was told to end. Its RAM disk stays.
    """
    with only_one(run.run, Path(lease.state)):
        # Snakemake forgets that it had to train again when that is cut short; a missing export it does not forget.
        remove(export_file(run.run))
        with given(run, lease.workdir) as devices:
            return _train(run, lease, stage, devices)


def _train(run: Run, lease: Lease, stage: Stage, devices: Given) -> Training:
    with (
        _signals() as signals,
        ThreadPoolExecutor(1) as background,
        Description(run.run, run.project.resolve(), lease) as description,
    ):
        lease = enlarge(run, lease)
        own_before, trainers = own_writes(), NO_WRITES
        inputs = background.submit(read_inputs, run.project.resolve(), description.hashes, run.trainer.inputs)

        def mine() -> Fingerprint:
            return fingerprint(run, inputs.result())

        _warn_unprotected(run, lease)
        ladder = Ladder(run, lease, prepare(run, lease, stage, mine), mine)
        for arguments in ladder.steps():
            stage = ladder.stage
            if run.trainer.parameters:
                make_file(Path(stage.project), Path(stage.layers[0]), run.trainer.parameters, run.file_parameters())
            order = Order(
                argv=run.arguments(stage.ram) + arguments,
                cwd=stage.cwd,
                env=trainer_environment(run, lease, stage, devices),
                log=str(Path(lease.folder) / TRAINER_LOG),
                namespace=stage.namespace,
                overlays=stage.overlays,
                spilled=stage.spilled,
            )
            # What the project holds may take a while to read; the trainer does not wait for it.
            Begun(fingerprint(run, inputs.result() if inputs.done() else None), run.products).write(lease)
            noted = background.submit(lambda at: Begun(mine(), run.products).write(at), lease)
            where = f", on node {lease.job.node}" if lease.job else ""
            log.info("run %s: training; its output%s: tail -f %s", run.run, where, order.log)
            description.start(order.argv, order.env, inputs.result)
            watch = _Watch(run, lease, stage, order, signals, mine, devices.locks)
            ending = watch.until_end()
            lease = watch.lease
            trainers = trainers.and_also(watch.written)
            if not (ladder.is_resuming and _could_not_load(ending, watch)):
                ladder.works(watch.made_progress())
                break
        noted.result()
        log_at_home = keep_log(run.run, lease)
        if trouble := _trouble(run, stage, ending, watch.stopped_by):
            ended, tail = f"{trouble} after {watch.train_s:.0f} s", _tail(Path(lease.folder) / TRAINER_LOG)
            raise Failed(
                f"run {run.run}: {ended}. Its output, in {log_at_home}, ends:\n{tail}",
                _explain(run, lease, stage, watch, ladder),
                reason=ended if watch.stopped_by else f"{ended}: {tail.splitlines()[-1].strip()}",
                was_told=watch.stopped_by is not None,
            )
        Begun(mine(), run.products, finished=True).write(lease)
        project = description.finish()
    assert ending is not None  # else there was trouble
    watch.warn_of_strays()
    own = own_writes().since(own_before).since(trainers).since(watch.drain.result.writes)
    own = own.since(watch.guard.result.writes)
    if ending.left_behind:
        log.warning(
            "run %s: the trainer left %s behind, which RamTrain has ended: %s. Was that the training itself? "
            "Then project.command has to stay until it is over",
            run.run,
            pluralize(len(ending.left_behind), "process", "processes"),
            "; ".join(map(one_line, ending.left_behind[:_MOST_TOLD])),
        )
    return Training(
        command=redact_arguments(order.argv),
        train_s=watch.train_s,
        writes=ending.writes,
        peak_bytes=watch.peak_bytes,
        left_behind=len(ending.left_behind),
        progress=watch.progress.latest,
        drained=watch.drain.result,
        guarded=watch.guard.result,
        saved=watch.drain.saved,
        strays=watch.strays.files,
        own=own,
        before=watch.before,
        resumed=ladder.resumed,
        project=project,
        fingerprint=mine(),
        devices=[device.uuid for device in devices.devices],
        started=stamp(watch.started_s),
        ended=stamp(watch.ended_s),
    )


def _warn_unprotected(run: Run, lease: Lease) -> None:
    if run.store and run.store.checkpoints and run.protect.max_loss_s is None:
        log.warning("run %s: protect.max_loss is never: no checkpoints go to the store while it trains", run.run)
    if lease.backend == "disk":
        return  # what the trainer saves is on the disk
    if run.protect.max_loss_s is None:
        log.warning(
            "run %s: protect.max_loss is never: nothing is written to the disk while it trains, and a power cut costs "
            "the whole training",
            run.run,
        )
    elif not run.products.checkpoints:
        log.warning(
            "run %s: no checkpoints are named: a power cut costs the whole training. Name them in project.checkpoints",
            run.run,
        )


def _could_not_load(ending: Ending | None, watch: _Watch) -> bool:
    """Whether a trainer that was to resume failed by itself before it got anywhere."""
    failed = ending is not None and ending.error is None and (ending.returncode or 0) > 0 and not watch.stopped_by
    return failed and not watch.made_progress()


def _explain(run: Run, lease: Lease, stage: Stage, watch: _Watch, ladder: Ladder) -> str:
    """Return where the newest checkpoint is, and what to type."""
    unlock = f"{caller.command('--unlock')} && " if caller.has_ended() and not caller.job() else ""
    lines = []
    newest = watch.drain.newest
    if ladder.has_failed:
        lines.append(f"It could not go on from any of its checkpoints ({', '.join(ladder.tried_names)}).")
    elif newest:
        path = Path(stage.layers[0]) / newest.path
        lines.append(remedy.kept(f"Its newest checkpoint is {newest.path}, still in RAM: {path}"))
    else:
        lines.append(remedy.still_in_ram(lease.folder))
    durable = next(iter(durable_checkpoints(run.run)), None)
    if durable:
        lines.append(f"On the disk is {durable.checkpoint}, as {durable.folder}")
        if watch.courier and run.store:
            arrived = watch.courier.arrived
            is_older = ", an older one" if arrived != durable.folder.name else ""
            lines.append(f"In {run.store.url} is {f'{arrived}{is_older}' if arrived else 'nothing of this attempt'}")
    if watch.was_short_of_memory():
        lines.append(
            "Meanwhile the kernel killed a process because the machine, or the job's cgroup, ran out of memory."
        )
    if watch.is_full:
        size = format_size(lease.size_bytes, binary=True)
        helps = (
            "it grows when you go on"
            if run.auto_size and not caller.job()
            else "give ramdisk.size more before you go on"
        )
        if run.guard and run.grow:
            helps = "there was no memory to enlarge it, and nothing that could be moved out of it"
        lines.append(f"Its RAM disk of {size} is full: {helps}.")
    lines.append(f"To go on from there, type\n  {unlock}{caller.command('train')}")
    if ladder.has_failed:
        lines.append(f"To start anew, type\n  {caller.command('train')} --config resume=never")
    if not caller.job():
        lines.append(f"To bring home what is there and release the RAM, type\n  {unlock}{caller.command('unmount')}")
    return "\n".join(lines)


class _Watch:
    """One trainer under its keeper, watched until both are gone, with a drain beside it.

    `stopped_by` says what made RamTrain end it, if anything did; `peak_bytes` is the most its RAM disk held.
    """

    def __init__(
        self,
        run: Run,
        lease: Lease,
        stage: Stage,
        order: Order,
        signals: _Signals,
        mine: Callable[[], Fingerprint],
        locks: tuple[int, ...],
    ) -> None:
        self.run, self.stage = run, stage
        self.signals = signals
        self.log = Path(order.log)
        self.log_position = self.log.stat().st_size if self.log.exists() else 0
        self.progress = TrainingProgress(f"run {run.run}", run.trainer.progress)
        self.stopped_by: str | None = None
        self.stopped_s = 0.0
        self.has_ended = self.is_guarded = False
        self.used_bytes = self.peak_bytes = 0
        self.next_measure = self.next_sample = self.next_sighting = 0.0
        self.strays, self.told_of_strays, self.staging = Strays(stage.spilled), False, stage.method
        self.series = Series(series_of(lease), run.trainer.progress)
        self.before = disk_counters(Path(lease.workdir))
        self.oom_kills = _oom_kills()
        self.written = NO_WRITES
        self.started_s = self.ended_s = time.time()
        self.train_s = 0.0
        # Should the keeper be killed, its orphans come to us.
        set_process_attribute(PR_SET_CHILD_SUBREAPER, 1)
        enter = ENTER[order.namespace] if order.namespace else ()
        self.keeper = subprocess.Popen(
            [*enter, sys.executable, "-I", "-m", "ramtrain.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=locks,  # should we be killed, its devices are in use until the trainer is gone
        )
        self._tell_keeper(asdict(order))
        self.drain = Drain(run, lease, stage, mine, self._processes, lambda: self.progress.latest)
        self.guard = Guard(run, lease, stage, self.keeper.pid, self.drain, self._processes)
        self.courier = Courier(run, mine) if run.store and run.store.checkpoints else None
        self.drain.start()
        if self.courier:
            self.courier.start()

    @property
    def lease(self) -> Lease:
        """The RAM disk's lease as it is now."""
        return self.guard.lease

    def made_progress(self) -> bool:
        """Whether the trainer got anywhere: said so, wrote a checkpoint, or trained for longer than loading takes."""
        newest = self.drain.newest
        wrote = newest is not None and newest.saved_s > self.started_s
        return bool(self.progress.latest) or wrote or self.train_s > _LOADING_S

    def was_short_of_memory(self) -> bool:
        """Whether the kernel has killed any process for want of memory since the trainer was started."""
        return _oom_kills() > self.oom_kills

    @property
    def is_full(self) -> bool:
        """Whether the RAM disk was as good as full, at the end or when the guard saw it."""
        size_bytes = self.lease.size_bytes
        return is_full(max(self.used_bytes, size_bytes - self.guard.least_free_bytes), size_bytes)

    def until_end(self) -> Ending | None:
        """Return how the trainer ended; None if its keeper died."""
        answers = b""
        with _workflow() as workflow:
            watched: list[Any] = [self.keeper.stdout, self.signals.wakeup, *workflow]
            while True:
                ready, _, _ = select.select(watched, [], [], _TICK_S)
                if self.keeper.stdout in ready:
                    answer = self.keeper.stdout.read(1 << 16)
                    if not answer:
                        break
                    answers += answer
                    self._start_guard(answers)
                if self.signals.wakeup in ready:
                    self._stop(self.signals.take(), self._grace_s())
                if set(workflow) & set(ready):
                    watched = [source for source in watched if source not in workflow]
                    self._stop(END_OF_SNAKEMAKE, ABANDONED_GRACE_S)
                self._follow()
        self.keeper.wait()
        self.guard.finish()
        self.ended_s = time.time()
        self.train_s = round(self.ended_s - self.started_s, 3)
        self.next_measure = 0.0
        self._follow()
        ending = self._read_ending(answers)
        self.written = ending.writes if ending else self.written
        has_failed = _trouble(self.run, self.stage, ending, self.stopped_by) is not None
        is_to_go_on = has_failed and self.stopped_by != END_OF_SNAKEMAKE
        self._end_drain(with_newest=is_to_go_on)
        self._end_courier(with_newest=is_to_go_on)
        self._sample()
        self.has_ended = True
        self._note()
        self.drain.teller.tell(self.drain.last, at_once=True)
        self.progress.close()
        return ending

    def _start_guard(self, answers: bytes) -> None:
        """Have memory watched as soon as the keeper says that the trainer runs."""
        first, newline, _ = answers.partition(b"\n")
        if newline and not self.is_guarded and "pid" in (said := json.loads(first)):
            self.guard.start(said["pid"])
            self.is_guarded = True

    def _read_ending(self, answers: bytes) -> Ending | None:
        last = answers.decode().splitlines()[-1:]
        content = json.loads(last[0]) if last else {}
        if "returncode" not in content:
            kill_descendants()
            return None
        return Ending(**{**content, "writes": ProcessWrites(**content["writes"])})

    def _end_drain(self, with_newest: bool) -> None:
        """Let the drain end, with the newest checkpoint of a training that is to be gone on with; a signal cuts it off.

        What is drained last is no more than was promised: in RAM it is as well.
        """
        self.drain.finish(with_newest)
        self._wait_for(self.drain, math.inf, math.inf)

    def _end_courier(self, with_newest: bool) -> None:
        """Let the courier end, with the newest durable checkpoint of a training that is to be gone on with; a signal
        cuts it off. A job of a cluster has little time, and what is at home is out of its node."""
        if self.courier is None:
            return
        with_newest = with_newest and not caller.job()
        self.courier.finish(with_newest)
        if with_newest and not self.courier.has_ended(_TICK_S):
            log.info("run %s: its newest durable checkpoint goes to the store; Ctrl-C leaves that out", self.run.run)
        self._wait_for(self.courier, math.inf if with_newest else _COURIER_S, _COURIER_S)

    def _wait_for(self, work: Beside, wait_s: float, cancelled_s: float) -> None:
        """Wait for the end of work beside the training, for `cancelled_s` more when a signal has cut it off."""
        deadline = time.monotonic() + wait_s
        while not work.has_ended(_TICK_S) and time.monotonic() < deadline:
            ready, _, _ = select.select([self.signals.wakeup], [], [], 0)
            if ready:
                self.signals.take()
                work.cancel()
                deadline = time.monotonic() + cancelled_s

    def _processes(self) -> list[psutil.Process]:
        """Return what runs below the keeper: the trainer and all its processes."""
        try:
            return psutil.Process(self.keeper.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _grace_s(self) -> float:
        """Return how long the trainer has to end: in a cluster's job, what it saves has to come home as well."""
        grace_s, job = self.run.trainer.grace_s, caller.job()
        return min(grace_s, round(slurm.seconds_left(job) / 3, 1)) if job and not self.stopped_by else grace_s

    def _stop(self, reason: str, grace_s: float) -> None:
        """Have the trainer ended as its adapter says; asked a second time, at once."""
        same_s = _SAME_SIGNAL_S[TOLD_BY_SNAKEMAKE in (reason, self.stopped_by)]
        if self.stopped_by and time.monotonic() < self.stopped_s + same_s:
            return  # one Ctrl-C may reach us on two ways
        self.stopped_s = time.monotonic()
        if self.stopped_by:
            stop = Stop(signal.SIGKILL, 0.0)
        else:
            stop = Stop(self.run.trainer.stop_signal, grace_s, self.run.trainer.stop_to)
            log.warning(
                "run %s: %s: the trainer is sent %s and has %g s to end",
                self.run.run,
                reason,
                self.run.trainer.stop_signal.name,
                grace_s,
            )
        self.stopped_by = self.stopped_by or reason
        self.guard.let_go()
        self._tell_keeper(asdict(stop))

    def _tell_keeper(self, content: dict[str, Any]) -> None:
        # A keeper that is gone already is noticed by the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self.keeper.stdin.write(json.dumps(content).encode() + b"\n")

    def _follow(self) -> None:
        """Take in the trainer's new output and, now and then, how full the RAM disk is and what has been written."""
        now = time.monotonic()
        if now >= self.next_measure:
            began_s = time.thread_time()
            self.used_bytes = used_bytes(self.lease)
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            self._count_writes()
            if now >= self.next_sample:
                self.next_sample = now + _SAMPLE_S
                self._sample()
            self.next_measure = now + max(_TICK_S, (time.thread_time() - began_s) / _MEASURING_SHARE)
        if self.log.exists():
            with self.log.open("rb") as output:
                end = output.seek(0, os.SEEK_END)
                output.seek(max(self.log_position, end - _FOLLOWED_BYTES))
                new = output.read(_FOLLOWED_BYTES)
                self.log_position = output.tell()
            self.progress.feed(new.decode(errors="replace"))
        if now >= self.next_sighting:
            self.next_sighting = now + _SIGHTING_S
            self._note()

    def _count_writes(self) -> None:
        """Sum up what the keeper and all below it have written so far; children that ended are in their parents'."""
        total, processes = NO_WRITES, self._processes()
        for pid in (self.keeper.pid, *(process.pid for process in processes)):
            with contextlib.suppress(OSError):  # it has ended
                total = total.and_also(writes_of(pid))
        if total.disk_bytes > self.written.disk_bytes and self.lease.backend != "disk":
            self.strays.look(processes)
        if total.logical_bytes > self.written.logical_bytes:
            self.written = total
        if self.strays.files:
            self.warn_of_strays()

    def warn_of_strays(self) -> None:
        """Say once that the trainer writes much to the disk past its RAM disk, and how to prevent it."""
        disk_bytes = self.written.disk_bytes
        if disk_bytes > MUCH_BYTES and self.lease.backend != "disk" and not self.told_of_strays:
            log.warning("run %s: the trainer: %s", self.run.run, self.strays.told(disk_bytes, self.staging))
            self.told_of_strays = True

    def _sample(self) -> None:
        """Add this moment to the series."""
        try:
            counters = disk_counters(Path(self.lease.workdir))
        except OSError as error:  # somebody has deleted the folder
            log.debug("run %s: no sample: %s", self.run.run, error)
            return
        memory, drained = psutil.virtual_memory(), self.drain.result
        sample = Sample(
            t_s=round(time.time() - self.started_s, 1),
            ram_bytes=self.used_bytes,
            memory_bytes=memory.total - memory.available,
            logical_bytes=self.written.logical_bytes,
            disk_bytes=self.written.disk_bytes,
            drain_bytes=drained.writes.disk_bytes,
            device_bytes=counters.since(self.before),
            swap_bytes=counters.swapped_out_bytes - self.before.swapped_out_bytes,
            checkpoints=len(self.drain.saved),
            drains=drained.checkpoints,
        )
        self.series.add(sample, self.progress.latest)

    def _note(self) -> None:
        """Say where the training is: on the terminal, in RAM, and, through the drain, beside its checkpoints."""
        sighting = self.drain.sight(
            self.started_s,
            self.has_ended,
            self.used_bytes,
            self.written,
            self.guard.result.spilled_bytes,
            self.guard.pausing,
        )
        self.progress.tell(sighting)
        self.drain.last = sighting
        try:
            sighting.write(Path(self.lease.state) / SIGHTING)
        except OSError as error:
            log.debug("run %s: %s", self.run.run, error)  # a full RAM disk is told of when the trainer has failed


def _oom_kills() -> int:
    """Return how many processes of this machine were killed for want of memory (/proc/vmstat, cgroups included)."""
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class _Signals:
    """Signals to end as something that select can wait for; `wakeup` is readable when one came."""

    def __init__(self) -> None:
        self.wakeup, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Under nohup a lost terminal is meant to be survived.
        heeded = [n for n in _STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    @staticmethod
    def _note(number: int, _: object) -> None:
        """Do nothing; the wakeup descriptor carries the number."""

    def take(self) -> str:
        """Return the name of the signal that came."""
        number = signal.Signals(os.read(self.wakeup, 1)[0])
        return TOLD_BY_SNAKEMAKE if number == caller.TOLD_TO_END else number.name

    def close(self) -> None:
        """Put the handlers back as they were."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wakeup)
        os.close(self._write)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    with contextlib.closing(_Signals()) as signals:
        yield signals


@contextlib.contextmanager
def _workflow() -> Iterator[list[int]]:
    """Give a descriptor that becomes readable when Snakemake ends (pidfd_open(2)); none if it is not our caller."""
    pid = caller.pid()
    try:
        descriptors = [os.pidfd_open(pid)] if pid else []
    except ProcessLookupError:
        raise RamTrainError("Snakemake ended before the training began.") from None
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _trouble(run: Run, stage: Stage, ending: Ending | None, stopped_by: str | None) -> str | None:
    """Return what kept the training from ending well."""
    if ending is None:
        return "the process that kept the trainer was killed, and the trainer with it,"
    if ending.error:
        return f"the trainer could not be started ({ending.error})"
    if stopped_by:
        killed = " and, as it did not end, killed" if ending.was_killed else ""
        return f"the trainer was ended by {stopped_by}{killed}"
    if ending.returncode is None or ending.returncode > 0:
        return f"the trainer failed with exit status {ending.returncode}"
    if ending.returncode < 0:
        name = signal.Signals(-ending.returncode).name if -ending.returncode in list(signal.Signals) else ""
        return f"the trainer was killed by {name or f'signal {-ending.returncode}'}"
    if unfinished := _unfinished_model(run, stage, ending):
        return f"the trainer ended, and a process that it left behind was still writing {unfinished} when it was ended,"
    return None


def _unfinished_model(run: Run, stage: Stage, ending: Ending) -> str | None:
    """Return a file of the model that was being written when what the trainer left behind was ended."""
    is_model = matcher(run.products.model).fullmatch
    paths = (os.path.relpath(path, stage.ram) for path in ending.unfinished)
    return next((one_line(path) for path in paths if is_model(path)), None)


def _tail(path: Path) -> str:
    """Return the last lines of what a trainer has printed, fit for a terminal."""
    if not path.exists() or path.stat().st_size == 0:
        return "  (it is empty)"
    with path.open("rb") as output:
        output.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = without_colours(output.read(_TAIL_BYTES).decode(errors="replace"))
    lines = redact_text(text).splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  {printable(line[-_TAIL_WIDTH:])}" for line in lines)
