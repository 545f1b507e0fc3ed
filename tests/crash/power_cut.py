"""Power cuts on a real file system: what a disk holds at random moments of a run, and how the run goes on from that.

The working directory lies on an ext4 file system, whose image lies on an XFS file system with reflinks. A clone of the
image (FICLONE, ioctl_ficlonerange(2)) is taken between two writes of the loop device: it holds what had reached the
device by then, and nothing of the page cache, as a disk does after a power cut. The ext4 is mounted so that it forgets
as much as it can: names reach the device within a second, contents that were not synced half a minute later.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from workplace import RUN, Workplace, expected_state, resuming_config, state_of

from ramtrain.checkpoints import is_whole_file
from ramtrain.ramdisk import MARK
from ramtrain.system import CommandError, mounts, run_command

_FICLONE = 0x40049409  # linux/fs.h
_DISK_BYTES = 96 << 20
_STORE_BYTES, _CUT_BYTES = 320 << 20, 4 << 20
_PAUSE_S = 0.3
_LONGEST_WAIT_S = 0.3
_STALLED_AT, _EPOCHS_BEFORE = "stall@8", 7
_ANNOUNCED = re.compile(rf"durable checkpoint results/{RUN}/checkpoints/\S+-checkpoint_(\d+)\.pth")
KINDS = ("training", "exporting", "salvaging")


class SnapshotDisk:
    """An ext4 file system at `point`, made in `folder`; `close` leaves nothing of it behind."""

    def __init__(self, folder: Path, point: Path, snapshots: int) -> None:
        self.point, self.store = point, folder / "store"
        self.image = self.store / "disk.img"
        images = folder / "store.img"
        with contextlib.ExitStack() as stack:
            stack.callback(images.unlink, missing_ok=True)
            _make_image(images, _STORE_BYTES + snapshots * _CUT_BYTES, "mkfs.xfs", "-q")
            for place in (self.store, point):
                place.mkdir()
                stack.callback(place.rmdir)
                stack.callback(unmount, place)
            run_command("mount", "-o", "loop", str(images), str(self.store))
            _make_image(self.image, _DISK_BYTES, "mkfs.ext4", "-q", "-F")
            self.mount(self.image)
            self.close = stack.pop_all().close

    def mount(self, image: Path) -> None:
        """Mount the disk, or what a snapshot kept of it, in place of what is mounted; its journal is replayed."""
        unmount(self.point)
        run_command("mount", "-o", "loop,commit=1,noauto_da_alloc", str(image), str(self.point))

    def snapshot(self, name: str) -> Path:
        """Keep what the device holds now; return the image of it."""
        target = self.store / name
        with self.image.open("rb") as source, target.open("xb") as clone:
            fcntl.ioctl(clone, _FICLONE, source.fileno())
        return target


def unmount(point: Path, within_s: float = 10.0) -> None:
    """Unmount what is mounted at `point`, if anything is; its loop device goes with it."""
    deadline = time.monotonic() + within_s
    while any(entry.point == point for entry in mounts()):
        try:
            run_command("umount", str(point))
        except CommandError:  # a process that was killed is still on its way out
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _make_image(image: Path, size_bytes: int, *mkfs: str) -> None:
    with image.open("xb") as file:
        file.truncate(size_bytes)
    run_command(*mkfs, str(image))


@dataclass(frozen=True)
class Cut:
    """A power cut: the disk as it was, what was being done, for which training (its learning rate), and what had been
    promised before: a durable checkpoint of this epoch or a later one, or the model itself."""

    image: Path
    doing: str
    lr: str
    epoch: int
    is_home: bool

    def __str__(self) -> str:
        return f"{self.image.name}, while {self.doing} with --lr {self.lr}"


@dataclass(frozen=True)
class Found:
    """What the disk of a cut held: the epoch of the training's newest durable checkpoint (0: none), its path in the
    project, the learning rate of the model at home, how many commits were under way."""

    epoch: int
    checkpoint: str | None
    model: str | None
    commits: int


class PowerCuts:
    """A first training; then, as often as it takes, one that is killed, salvaged by `unmount`, and gone on with: its
    model replaces the earlier one. Meanwhile the power is cut at random moments, `snapshots` times or more."""

    def __init__(self, disk: SnapshotDisk, project: Path, snapshots: int, seed: int) -> None:
        self.disk, self.project, self.snapshots = disk, project, snapshots
        self.random = random.Random(seed)
        self.cuts: list[Cut] = []
        self.trainings: list[str] = []
        self.place = Workplace(disk.point, resuming_config(project))
        self.chapter, self.epoch, self.salvaged_epoch = "", 0, 0
        self.was_in_ram = False
        self.held: dict[str, Found] = {}

    def run(self) -> None:
        """Train, kill, salvage, go on, and cut the power meanwhile."""
        self._begin("0.1")
        self._train()
        while len(self.trainings) < 2 or len(self.cuts) < self.snapshots:
            self._begin(f"0.{len(self.trainings) + 1}")
            self._train(is_killed=True)
            self._salvage()
            self._train()

    def _begin(self, lr: str) -> None:
        self.trainings.append(lr)
        self.epoch = 0
        self._configure(lr)

    def _configure(self, lr: str) -> None:
        config = resuming_config(self.project, **{"protect.max_loss": "1 s"})
        config["project"]["command"] += ["--lr", lr]
        self.place.configure(config)

    def _train(self, is_killed: bool = False) -> None:
        place, self.chapter = self.place, "train"
        place.start(_PAUSE_S, FAULT=_STALLED_AT if is_killed else "@0")
        if is_killed:
            self._cut_while(lambda: self._epoch_in_ram() < _EPOCHS_BEFORE)
            self._kill_script()
            self.chapter = "killed"
        self._cut_while(lambda: place.snakemake.poll() is None)
        assert (place.wait() == 0) != is_killed, place.said()
        place.wait_for_nobody()

    def _kill_script(self) -> None:
        """Kill the script that trains, so that what it leaves in RAM is to be salvaged."""
        while self.place.snakemake.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # another one ended while it was looked for
                self.place.process("train_run.py", "scripts").kill()
                return

    def _salvage(self) -> None:
        self.chapter = "unmount"
        self.salvaged_epoch = self._epoch_in_ram()
        with ThreadPoolExecutor(1) as background:
            unmounting = background.submit(self.place.run, "unmount")
            self._cut_while(lambda: not unmounting.done())
        assert unmounting.result().returncode == 0, unmounting.result().stdout
        assert not self.place.ram.exists()

    def _epoch_in_ram(self) -> int:
        assert self.chapter == "unmount" or self.place.snakemake.poll() is None, self.place.said()
        epochs = [0]
        for file in self.place.ram.glob("overlay/upper/output/run/checkpoint_*.pth"):
            with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
                epochs += [_epoch(file.name)] if is_whole_file(file) else []
        return max(epochs)

    def _cut_while(self, goes_on: Callable[[], bool]) -> None:
        self.was_in_ram = False
        while goes_on():
            is_exporting = (self.place.ram / "train.json").exists()
            if not is_exporting:
                time.sleep(self.random.uniform(0, _LONGEST_WAIT_S))
            if is_exporting or self.random.random() < 0.5:
                self._cut_amid_commits(times=12 if is_exporting else 1)
            self.cuts.append(self._cut())

    def _cut_amid_commits(self, times: int) -> None:
        """Wait for the most delicate moments, which are rare and short: something is about to take its name."""
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not (found := _partials(self.place.results)) and time.monotonic() < deadline:
            time.sleep(0.001)
        for _ in range(times if found else 0):
            time.sleep(self.random.uniform(0, 0.01))
            self.cuts.append(self._cut())

    def _cut(self) -> Cut:
        is_in_ram = (self.place.ram / MARK).exists()
        self.was_in_ram = self.was_in_ram or is_in_ram
        was_released = self.was_in_ram and not is_in_ram
        if self.chapter == "unmount":
            self.epoch = self.salvaged_epoch if was_released else self.epoch
        else:
            self.epoch = max([self.epoch, *map(int, _ANNOUNCED.findall(self.place.said()))])
        doing = self._doing(is_in_ram)
        image = self.disk.snapshot(f"cut-{len(self.cuts)}")
        return Cut(image, doing, self.trainings[-1], self.epoch, self.chapter == "train" and was_released)

    def _doing(self, is_in_ram: bool) -> str:
        if self.chapter == "unmount":
            return "salvaging"
        if (self.place.ram / "train.json").exists():
            return "exporting"
        if (self.place.ram / "overlay/upper/output").exists():
            return "training"
        return "staging" if is_in_ram else "nothing is in RAM"

    def look_over(self, resumes: int) -> Iterator[str]:
        """Check the disk of every cut; go on from `resumes` of them, of each kind at first. Yield what there was."""
        self.place.reboot()
        found: dict[Cut, Found] = {}
        for cut in self.cuts:
            self.disk.mount(cut.image)
            found[cut] = self._check(cut)
        kinds = Counter(cut.doing for cut in self.cuts)
        yield f"{len(self.cuts)} power cuts: {', '.join(f'{count} while {kind}' for kind, count in kinds.items())}"
        yield (
            f"{sum(held.commits > 0 for held in found.values())} in the midst of a commit, "
            f"{sum(held.epoch > 0 for held in found.values())} with a durable checkpoint, "
            f"{sum(held.model is not None for held in found.values())} with a model at home; all whole"
        )
        for cut in self._chosen(found, resumes):
            self.disk.mount(cut.image)
            yield f"{cut}: {self._go_on(cut, found[cut])}"

    def _check(self, cut: Cut) -> Found:
        """Check what the disk of a cut holds, by itself and beside what the one before held."""
        home = self.place.results
        self.place.check_disk()
        for file in (*home.glob("*.json"), *home.glob("checkpoints/*.json")):
            assert isinstance(json.loads(file.read_text()), dict), f"{cut}: {file}"
        log = home / "train.log"
        assert not log.exists() or "EPOCH" in log.read_text(), f"{cut}: {log} is not whole"
        held = self._held(cut)
        had = self.held.get(cut.lr, Found(0, None, None, 0))
        if held.model != cut.lr:
            assert held.model == self._model_before(cut), f"{cut}: the model of the training before is gone: {held}"
            assert held.epoch >= cut.epoch, f"{cut}: epoch {cut.epoch} was promised, and there is {held}"
            assert had.model != cut.lr, f"{cut}: the cut before left {had}, this one {held}"
            assert held.epoch >= had.epoch, f"{cut}: the cut before left {had}, this one {held}"
        assert not cut.is_home or held.model == cut.lr, f"{cut}: the RAM was released and the model is not at home"
        if (export := home / "export.json").exists():
            command = json.loads(export.read_text())["training"]["fingerprint"]["training"]["command"]
            assert command == self._command_in_notes(), f"{cut}: for Snakemake, any parameters are those of the model"
        self.held[cut.lr] = held
        return held

    def _command_in_notes(self) -> list[str] | None:
        """Return the command that Snakemake has noted of the training."""
        for note in self.place.workdir.glob(".snakemake/metadata/*"):
            with contextlib.suppress(json.JSONDecodeError):
                content = json.loads(note.read_text())
                if content["rule"] == "train_run":
                    return ast.literal_eval(content["params"][0])["command"]
        return None

    def _model_before(self, cut: Cut) -> str | None:
        return dict(zip(self.trainings[1:], self.trainings, strict=False)).get(cut.lr)

    def _held(self, cut: Cut) -> Found:
        checkpoints = []
        for manifest in self.place.results.glob("checkpoints/[0-9]*/manifest.json"):
            content = json.loads(manifest.read_text())
            if cut.lr in content["fingerprint"]["training"]["command"]:
                checkpoints.append((_epoch(content["checkpoint"]), content["checkpoint"]))
        model, path = None, self.place.results / "model/best_model.pth"
        if path.exists():
            states = {expected_state(lr): lr for lr in self.trainings}
            model = states[state_of(path)]
        return Found(*max(checkpoints, default=(0, None)), model, len(_partials(self.place.results)))

    def _chosen(self, found: dict[Cut, Found], resumes: int) -> list[Cut]:
        """Choose from which cuts to go on: at first one of each kind, with something to go on from."""
        cuts = [cut for cut, held in found.items() if held.epoch]
        self.random.shuffle(cuts)
        first = [next((cut for cut in cuts if cut.doing == kind), None) for kind in KINDS]
        chosen = [cut for cut in first if cut]
        return (chosen + [cut for cut in cuts if cut not in chosen])[:resumes]

    def _go_on(self, cut: Cut, held: Found) -> str:
        """Go on from a cut to the end, as a user does; return from where it went on."""
        place = self.place
        self._configure(cut.lr)
        arguments = ["train", "--configfile", str(place.configfile)]
        if any(place.workdir.glob(".snakemake/locks/*")):
            place.run("--unlock", *arguments)
        ended = place.run(*arguments)
        if "--rerun-incomplete" in ended.stdout:  # as Snakemake asks for
            ended = place.run(*arguments, "--rerun-incomplete")
        assert ended.returncode == 0, f"{cut}: {ended.stdout}"
        try:
            record = place.check_finished(lr=cut.lr)
        except AssertionError as error:
            raise AssertionError(f"{cut}, {held}: {error}\n{ended.stdout}") from error
        return _how_it_went_on(record, held, ended.stdout)


def _how_it_went_on(record: dict[str, Any], held: Found, said: str) -> str:
    resumed_from, source = (record["protection"][key] for key in ("resumed_from", "resumed_source"))
    if "rule train_run" not in said:
        return "the model was at home"
    assert resumed_from == held.checkpoint, f"{held} is not gone on from, but {resumed_from}: {said}"
    assert "the durable checkpoint" in source
    return f"gone on from {resumed_from}, {record['protection']['lost_s']} s were lost"


def _epoch(name: str) -> int:
    return int(re.findall(r"checkpoint_(\d+)\.pth", name)[0])


def _partials(home: Path) -> list[Path]:
    return [*home.glob(".*.partial"), *home.glob("checkpoints/.*.partial")]


@contextlib.contextmanager
def power_cuts(folder: Path, project: Path, snapshots: int, seed: int) -> Iterator[PowerCuts]:
    """Give power cuts on a disk made in `folder`; at the end nothing of them is left, whatever happened."""
    disk = SnapshotDisk(folder, folder / "ram train", snapshots)
    try:
        cuts = PowerCuts(disk, project, snapshots, seed)
        try:
            yield cuts
        finally:
            cuts.place.reboot()
    finally:
        disk.close()
