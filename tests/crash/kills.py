"""Random kills: the shipped example trains, and something of it is killed at a random moment, again and again.

    python tests/crash/kills.py [--kills N] [--seed S] [--power-cuts N]

What is killed by SIGKILL is Snakemake, the script of whichever rule runs, the keeper or the trainer; now and then a
reboot follows, which takes what is in RAM. Then the printed command is typed, until the run is complete. The table at
the end says how the runs went on and what was lost; the exit status is 1 when a promise was broken. With --power-cuts
the disks of that many power cuts are looked over as well, see power_cut.py (root, xfsprogs). Files lie in a temporary
folder in the current directory, which must be on a disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from power_cut import power_cuts
from workplace import ORPHANS_GONE_S, Workplace, check_folder, snakemake_argv

from ramtrain.checkpoints import is_whole_file
from ramtrain.errors import RamTrainError
from ramtrain.schema import complete, load_yaml
from ramtrain.system import mount_of, mounts

REPO = Path(__file__).resolve().parents[2]
EXAMPLE = REPO / "examples" / "tiny_tts"
EPOCHS = 4
# A few megabytes a checkpoint, and one every half second or so.
SMALLER = {"encoder_channels": 192, "encoder_layers": 3, "decoder_layers": 3, "save_step": 8}
MAX_LOSS_S = 3.0
REBOOTS = 0.25
HUNG_S = 180.0
_SCRIPT = re.compile(r"\.(mount_ramdisk|stage_project|train_run|export_model|unmount_run)\.py$")
_GOES_ON = re.compile(r"going on from (\S+), (?:which is still in (RAM)|from the (durable checkpoint) ([^\s;]+))")
# How often is looked, what a record rounds, and a machine that is busy otherwise.
_TOLERANCE_S = 1.0
_TAIL = 4000


class Broken(Exception):
    """A promise that was not kept."""


@dataclass
class Kill:
    """A kill: of what, while what was running; when the training had begun and when it was last seen (seconds since the
    epoch; None: it was not under way); how far apart its checkpoints were and how long it took until one was durable.

    `saved_s` says when each of those that were left had been saved; `lost_s` may be `bound_s` at most.
    """

    number: int
    victim: str
    during: str
    began_s: float | None
    ended_s: float
    spacing_s: float
    drain_s: float
    gone_s: float = 0.0
    rebooted: bool = False
    saved_s: dict[str, float] = field(default_factory=dict)
    went_on: str = ""
    lost_s: float | None = None
    bound_s: float = 0.0

    def line(self) -> str:
        """Return all of it for the terminal."""
        lost = "" if self.lost_s is None else f", {self.lost_s:.1f} s were lost, at most {self.bound_s:.1f} s may be"
        return (
            f"{time.strftime('%X')} {self.number}: {self.victim} killed during {self.during}, all gone after "
            f"{self.gone_s:.1f} s{', and a reboot' if self.rebooted else ''}; went on: {self.went_on}{lost}"
        )


class ExamplePlace(Workplace):
    """A working directory with a copy of the example, made smaller."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / EXAMPLE.name
        shutil.copytree(EXAMPLE, self.project, ignore=shutil.ignore_patterns("output", "__pycache__"))
        (folder / "work").mkdir()
        super().__init__(folder / "work", self.config(seed=1), run=EXAMPLE.name)

    def config(self, seed: int) -> dict[str, Any]:
        """Return the example's own config, made smaller, and with a bound of a few seconds."""
        config = load_yaml(REPO / "config/config.yaml")
        del config["runs"]
        options = [f"--coqpit.{name}={value}" for name, value in SMALLER.items()]
        config["project"]["path"] = str(self.project)
        config["project"]["command"] = [sys.executable, "train.py", f"--epochs={EPOCHS}", f"--seed={seed}", *options]
        config["ramdisk"]["size"] = "512M"
        config["protect"] = {"max_loss": f"{MAX_LOSS_S:g} s"}
        return config

    def call(self, arguments: Sequence[str]) -> None:
        """Call Snakemake in a session of its own, and go on."""
        with self.output.open("w") as output:
            self.snakemake = psutil.Popen(
                [*snakemake_argv(), *arguments],
                cwd=self.workdir,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def running(self) -> tuple[str, dict[str, psutil.Process]]:
        """Return which rule's script runs, and what there is to be killed."""
        rule, found = "no rule", {"Snakemake": self.snakemake}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.snakemake.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    argv = process.cmdline()
                    if script := next(filter(None, map(_SCRIPT.search, argv)), None):
                        rule = script.group(1)
                        found.setdefault("the script", process)
                    elif "ramtrain.keeper" in argv:
                        found.setdefault("the keeper", process)
                    elif "train.py" in argv:
                        found.setdefault("the trainer", process)
        return rule, found

    def in_ram(self) -> dict[str, float]:
        """Return when each checkpoint in RAM was last written to, by its path in the project."""
        found, upper = {}, self.ram / "overlay/upper"
        for path in upper.glob("output/*/*_[1-9]*.pth"):
            with contextlib.suppress(FileNotFoundError):  # the trainer has deleted it
                found[str(path.relative_to(upper))] = path.stat().st_mtime
        return found

    def durable(self) -> dict[str, float]:
        """Return when each durable checkpoint was saved, by its folder as messages name it."""
        found = {}
        for manifest in self.results.glob("checkpoints/[0-9]*/manifest.json"):
            with contextlib.suppress(FileNotFoundError):  # it has been overtaken
                found[str(manifest.parent.relative_to(self.workdir))] = json.loads(manifest.read_text())["saved_s"]
        return found

    def commits(self) -> list[Path]:
        """Return what is about to take its name."""
        return [path for pattern in (".*.partial", "checkpoints/.*.partial") for path in self.results.glob(pattern)]


class Follower:
    """One call of Snakemake, followed: when its trainer began and was last seen, what that saved, what was durable."""

    def __init__(self, place: ExamplePlace) -> None:
        self.place = place
        self.called_s = time.time()
        self.began_s: float | None = None
        self.ended_s = 0.0
        self.drain_s = 0.0
        self.saved_s: dict[str, float] = {}
        self.draining_s: dict[str, float] = {}
        self.seen = set(place.durable())
        self.left = set(place.commits())  # by what was killed before

    def look(self) -> tuple[str, dict[str, psutil.Process]]:
        """Take in what there is now; return which rule's script runs, and what there is to be killed."""
        rule, there = self.place.running()
        if trainer := there.get("the trainer"):
            self.ended_s = time.time()
            with contextlib.suppress(psutil.NoSuchProcess):
                self.began_s = self.began_s or trainer.create_time()
        self.saved_s |= self.place.in_ram()
        for folder, saved_s in self.place.durable().items():
            if folder not in self.seen:
                self.seen.add(folder)
                self.drain_s = max(self.drain_s, time.time() - saved_s)
        return rule, there

    def commits(self) -> set[Path]:
        """Return what this call is about to give its name."""
        return set(self.place.commits()) - self.left

    def what(self, rule: str) -> set[str]:
        """Return what goes on, in words."""
        has_saved = self.began_s and any(saved_s > self.began_s for saved_s in self.saved_s.values())
        return {rule, *(["a commit"] if self.commits() else []), *(["a checkpoint"] if has_saved else [])}

    def spacing_s(self) -> float:
        """Return the longest time without a new checkpoint."""
        if self.began_s is None:
            return 0.0
        times = [self.began_s, *sorted(saved_s for saved_s in self.saved_s.values() if saved_s > self.began_s)]
        return max(
            after - before for before, after in zip(times, [*times[1:], max(self.ended_s, times[-1])], strict=True)
        )

    def longest_drain_s(self) -> float:
        """Return how long it took until a checkpoint was durable; one that is on its way counts so far."""
        under_way = [time.time() - saved_s for path in self.commits() for saved_s in self._saved_as(path)]
        return max([self.drain_s, *under_way])

    def _saved_as(self, partial: Path) -> list[float]:
        """Return when the checkpoint that is copied there had been saved; nothing if it is something else."""
        return [saved_s for path, saved_s in self.saved_s.items() if f"-{Path(path).name}." in partial.name]


class Kills:
    """Trainings of the example one after the other, the model of each replacing the one before; killed as they go."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.place = ExamplePlace(folder)
        self.random = random.Random(seed)
        self.kills: list[Kill] = []
        self.pending: list[Kill] = []
        self.broken: list[str] = []
        self.left: list[str] = []
        self.asked: Counter[str] = Counter()
        self.records: list[dict[str, Any]] = []
        self.seed = 0
        self.has_model = False
        self.drain_s = 0.0

    def run(self, count: int) -> None:
        """Train and kill until there were `count` kills."""
        while len(self.kills) < count:
            self.seed += 1
            self.place.configure(self.place.config(self.seed))
            try:
                self._train_and_kill(self.random.randint(3, 8))
            except (Broken, AssertionError, RamTrainError) as error:
                self._note_broken(f"training {self.seed}, after kill {len(self.kills)}: {error}")
                self.place.reboot()
                for name in ("results", ".snakemake"):
                    shutil.rmtree(self.place.workdir / name, ignore_errors=True)
                self.pending, self.has_model = [], False

    def _note_broken(self, what: str) -> None:
        say(f"BROKEN: {what}")
        self.broken.append(what)

    def _train_and_kill(self, most: int) -> None:
        """Train to the end, with `most` kills on the way, or as many as fall into it."""
        first = ["train", "--configfile", str(self.place.configfile)]
        arguments = first
        while True:
            killed = self._call_and_kill(arguments, self._moment() if most else None)
            said = self.place.said()
            self._settle(said)
            if killed:
                most -= 1
                self._after(killed)
                self.pending.append(killed)
                arguments = self._as_printed(said, first)
            elif self.place.wait() == 0:
                break
            elif "--unlock" in said and "locked" in said:
                self.asked["--unlock, as Snakemake says"] += 1
                self.place.run("--unlock", *first)
            elif "--rerun-incomplete" in said and "--rerun-incomplete" not in arguments:
                self.asked[f"--rerun-incomplete after a kill during {self.kills[-1].during}"] += 1
                arguments = [*first, "--rerun-incomplete"]
            else:
                raise Broken(f"{' '.join(arguments)} failed:\n{said[-_TAIL:]}")
        self._check_complete()

    def _as_printed(self, said: str, first: list[str]) -> list[str]:
        """Type all but the last call of the command that was printed; return that. Where none was, the same again."""
        try:
            *before, last = self.place.printed_command(said)
        except StopIteration:
            self.asked["the same again, nothing was printed"] += 1
            return first
        for arguments in before:
            self.asked[f"{arguments[0]}, as printed"] += 1
            ended = self.place.run(*arguments)
            if ended.returncode:
                raise Broken(f"{' '.join(arguments)}, as printed, failed:\n{ended.stdout[-_TAIL:]}")
        return last

    def _moment(self) -> Callable[[set[str], float], bool]:
        """Return when to kill, as a function of what goes on and of the seconds since the call."""
        rule = self.random.choice(["mount_ramdisk", "stage_project", "export_model", "unmount_run"])
        kinds = {"no rule": 20.0, "a checkpoint": 5.0, rule: 0.7, "a commit": 0.05}
        (which,) = self.random.choices(list(kinds), weights=[2, 3, 2, 3])
        delay_s = self.random.uniform(0, kinds[which])
        since_s: list[float] = []

        def has_come(what: set[str], called_s: float) -> bool:
            if not since_s and which in what:
                since_s.append(called_s)
            return bool(since_s) and called_s >= since_s[0] + delay_s

        return has_come

    def _call_and_kill(self, arguments: Sequence[str], moment: Callable[[set[str], float], bool] | None) -> Kill | None:
        """Call Snakemake and kill something of it at that moment; return None if it ended before."""
        self.place.call(arguments)
        follower = Follower(self.place)
        while self.place.snakemake.poll() is None:
            rule, there = follower.look()
            called_s = time.time() - follower.called_s
            if called_s > HUNG_S:
                raise Broken(f"it hangs: {self.place.said()[-_TAIL:]}")
            if moment and moment(follower.what(rule), called_s):
                return self._kill(rule, there, follower)
            time.sleep(0.01)
        return None

    def _kill(self, rule: str, there: dict[str, psutil.Process], follower: Follower) -> Kill:
        victim = self.random.choice(sorted(there))
        is_committing = " in the midst of a commit" if follower.commits() else ""
        kill = Kill(
            number=len(self.kills) + 1,
            victim=victim,
            during=f"{rule}{is_committing}",
            began_s=follower.began_s,
            ended_s=follower.ended_s,
            spacing_s=follower.spacing_s(),
            drain_s=follower.longest_drain_s(),
        )
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
            there[victim].kill()
        killed_s = time.time()
        while self.place.snakemake.poll() is None or self.place.ours():
            kill.gone_s = time.time() - killed_s
            if kill.gone_s > ORPHANS_GONE_S and self.place.snakemake.poll() is not None:
                raise Broken(f"{kill.line()}: still there: {self.place.ours()}")
            if kill.gone_s > HUNG_S:
                raise Broken(f"{kill.line()}: Snakemake does not end")
            time.sleep(0.02)
        self.kills.append(kill)
        return kill

    def _after(self, kill: Kill) -> None:
        """Look over the disk after a kill, take the RAM away now and then, and note what there is to go on from."""
        self._check_disk()
        kill.rebooted = self.random.random() < REBOOTS
        if kill.rebooted:
            self.place.reboot()
        upper = self.place.ram / "overlay/upper"
        whole = {path: saved_s for path, saved_s in self.place.in_ram().items() if is_whole_file(upper / path)}
        kill.saved_s = whole | self.place.durable()

    def _check_disk(self) -> None:
        """Check that what has a final name is whole, and that a model that was at home still is."""
        for pattern in ("checkpoints/[!.]*", "model", "artifacts", "rescued-*"):
            for folder in filter(Path.is_dir, self.place.results.glob(pattern)):
                check_folder(folder)
        for file in (*self.place.results.glob("*.json"), *self.place.results.glob("checkpoints/*.json")):
            json.loads(file.read_text())
        model = self.place.results / "model/best_model.pth"
        if self.has_model:
            with zipfile.ZipFile(model) as archive:
                if archive.testzip():
                    raise Broken(f"{model} is spoilt")

    def _settle(self, said: str) -> None:
        """See from what a call printed how the kills before it went on, and what they had cost."""
        how = how_it_went_on(said)
        if not how or not self.pending:
            return
        went_on, source = how
        *_, last = self.pending
        trained = next((kill for kill in self.pending if kill.began_s), None)
        for kill in self.pending:
            kill.went_on = went_on if kill is last else "killed again"
        if trained and went_on in ("RAM", "durable checkpoint", "anew"):
            rebooted = any(kill.rebooted for kill in self.pending)
            trained.bound_s = trained.spacing_s
            if rebooted:
                # A call that was killed early has not shown how long a drain takes here.
                trained.bound_s = max(MAX_LOSS_S, trained.spacing_s) + max(self.drain_s, trained.drain_s)
            if source and source not in last.saved_s:
                raise Broken(f"{last.line()}: {source} was not among {list(last.saved_s)}")
            # Told to end, a trainer saves once more after the kill.
            trained.lost_s = max(0.0, trained.ended_s - max(trained.began_s, last.saved_s.get(source or "", 0.0)))
        for kill in self.pending:
            say(kill.line())
        self.pending = []
        if went_on == "anew" and last.saved_s:
            raise Broken(f"{last.line()}: it began anew, and there were {list(last.saved_s)}")
        if trained and trained.lost_s is not None and trained.lost_s > trained.bound_s + _TOLERANCE_S:
            self._note_broken(f"{trained.line()}: more was lost than may be")

    def _check_complete(self) -> None:
        """Check a run that is complete: its model, its record, and that nothing else is left."""
        place = self.place
        record = json.loads((place.results / "record.json").read_text())
        complete(record, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")
        config = json.loads((place.results / "model/config.json").read_text())
        with zipfile.ZipFile(place.results / "model/best_model.pth") as archive:
            spoilt = archive.testzip()
        if spoilt or config["training_seed"] != self.seed:
            raise Broken(f"the model is not the one of training {self.seed}: {spoilt}, {config['training_seed']}")
        self.has_model = True
        self._check_disk()
        protection = record["protection"]
        bound_s = max(protection["max_loss_s"], protection["longest_spacing_s"]) + protection["longest_drain_s"]
        if protection["worst_loss_s"] > bound_s + _TOLERANCE_S:
            self._note_broken(f"training {self.seed}: {protection}")
        trained = next((kill for kill in reversed(self.kills) if kill.lost_s is not None), None)
        if protection["lost_s"] and trained and protection["lost_s"] > trained.bound_s + _TOLERANCE_S:
            self._note_broken(f"training {self.seed}: the record says {protection}, after {trained.line()}")
        self.drain_s = max(self.drain_s, protection["longest_drain_s"])
        self.records.append(record)
        if left := self._leftovers():
            self.left += left
            raise Broken(f"left over: {left}")
        say(f"training {self.seed} is complete: {protection}")

    def _leftovers(self) -> list[str]:
        root = self.place.ram.parent
        left = [str(path) for path in (root, *root.glob("*")) if path.exists()]
        left += [str(entry.point) for entry in mounts() if entry.point.is_relative_to(root)]
        left += map(str, [*self.place.ours(), *self.place.commits(), *self.place.durable()])
        return left


def how_it_went_on(said: str) -> tuple[str, str | None] | None:
    """Return from what a call went on, and from which checkpoint, by what it printed; None if it did not get there."""
    if going_on := list(_GOES_ON.finditer(said)):
        checkpoint, from_ram, from_disk, folder = going_on[-1].groups()
        return from_ram or from_disk, folder or checkpoint
    for words, how in {
        "training; its output": "anew",
        "rule export_model:": "the export alone",
        "rule unmount_run:": "the record alone",
        "Nothing to be done": "nothing was left to do",
    }.items():
        if words in said:
            return how, None
    return None


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def print_table(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Print how often each second thing came with each first one."""
    counts = Counter(pairs)
    columns = sorted({second for _, second in counts})
    rows = [[title, *columns, "all"]]
    for first in sorted({first for first, _ in counts}):
        found = [counts[first, second] for second in columns]
        rows.append([first, *(str(count or "") for count in found), str(sum(found))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_result(kills: Kills) -> None:
    """Print the tables and the worst cases."""
    done = [kill for kill in kills.kills if kill.went_on]
    print_table("killed / during", ((kill.victim, kill.during) for kill in kills.kills))
    print_table("killed / went on", ((kill.victim, kill.went_on) for kill in done))
    print_table("during / went on", ((kill.during, kill.went_on) for kill in done))
    print()
    for rebooted, what in ((False, "RAM kept"), (True, "rebooted")):
        lost = [kill for kill in done if kill.lost_s is not None and kill.rebooted == rebooted]
        if worst := max(lost, key=lambda kill: kill.lost_s - kill.bound_s, default=None):
            print(f"{what}: {len(lost)} losses, nearest to its bound {worst.lost_s:.1f} s of {worst.bound_s:.1f} s")
    protections = [record["protection"] for record in kills.records]
    for name in ("worst_loss_s", "longest_spacing_s", "longest_drain_s", "lost_s"):
        print(f"records, most: {name} {max((entry[name] or 0.0 for entry in protections), default=0.0):.1f}")
    print(f"all gone after a kill: {max((kill.gone_s for kill in kills.kills), default=0.0):.1f} s at most")
    for what, times in sorted(kills.asked.items()):
        print(f"typed {times} times: {what}")
    reboots = sum(kill.rebooted for kill in kills.kills)
    print(f"{len(kills.kills)} kills, {reboots} reboots, {len(kills.records)} trainings complete")
    print(f"left over: {len(kills.left)}; promises broken: {len(kills.broken)}", *kills.broken, sep="\n")


def kill_at_random(folder: Path, count: int, seed: int) -> bool:
    """Kill `count` times; return whether all promises were kept. Nothing of it is left, whatever happens."""
    kills = Kills(folder, seed)
    try:
        kills.run(count)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        kills.place.reboot()
        with contextlib.suppress(OSError):  # it holds another working directory's
            kills.place.ram.parent.parent.rmdir()
        print_result(kills)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return not kills.broken and not kills.left


def cut_power(folder: Path, count: int, seed: int) -> bool:
    """Look over the disks of `count` power cuts; return whether all promises were kept."""
    project = folder / "resuming"
    shutil.copytree(REPO / "tests/projects/resuming", project)
    try:
        with power_cuts(folder, project, count, seed) as cuts:
            cuts.run()
            for line in cuts.look_over(resumes=max(3, count // 20)):
                say(line)
    except (AssertionError, RamTrainError) as error:
        say(f"BROKEN: {error}")
        return False
    return True


def main() -> int:
    """Kill, and cut the power; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many kills; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=None, metavar="S", help="of all that is random; default: another one"
    )
    parser.add_argument("--power-cuts", type=int, default=0, metavar="N", help="how many power cuts; default: none")
    options = parser.parse_args()
    if mount_of(Path.cwd().resolve()).fstype in ("tmpfs", "ramfs"):
        parser.error(f"{Path.cwd()} is in memory; run this in a directory on a disk")
    if options.power_cuts and (os.geteuid() != 0 or not shutil.which("mkfs.xfs")):
        parser.error("--power-cuts needs root and xfsprogs")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    # In a shell's background it is ignored, and then what is started here would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1000)
    folder = Path(tempfile.mkdtemp(prefix=".crash-", dir=Path.cwd()))
    (folder / ".gitignore").write_text("*\n")
    began = time.monotonic()
    kept = True
    try:
        say(f"seed {seed}, in {folder}")
        if options.kills:
            kept = kill_at_random(folder, options.kills, seed)
        if options.power_cuts:
            kept = cut_power(folder, options.power_cuts, seed) and kept
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(folder)
        print(f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; {time.monotonic() - began:.0f} s in all")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
