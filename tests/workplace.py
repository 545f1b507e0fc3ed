"""A working directory with a training that resumes: called as a user would, ended by force, looked over after it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import yaml

from ramtrain.durable import read_manifest
from ramtrain.lease import user_root
from ramtrain.ledger import opened
from ramtrain.ramdisk import MARK, Lease, ram_root, remove_tree
from ramtrain.spill import spill
from ramtrain.system import CommandError, mounts, run_command

SNAKEFILE = Path(__file__).resolve().parents[1] / "Snakefile"
RUN = "resuming"
EPOCHS = 12
# Promised; it takes longer where tests run side by side on few cores.
ORPHANS_GONE_S = 5.0
PATIENCE_S = 2 * ORPHANS_GONE_S


def snakemake_argv(*arguments: str, cores: int = 1) -> list[str]:
    """Return the call of Snakemake that a user would type in the checkout, for another working directory."""
    return [sys.executable, "-m", "snakemake", "--cores", str(cores), "--snakefile", str(SNAKEFILE), *arguments]


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the config with values set anew; dotted keys name them."""
    for key, value in changes.items():
        part = config
        *path, last = key.split(".")
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return config


def resuming_config(project: Path, **changes: Any) -> dict[str, Any]:
    """Return a config for the project that resumes; dotted keys change it."""
    config: dict[str, Any] = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", "--epochs", str(EPOCHS)],
            "trainer": "coqui",
            "model": ["output/run/best_model.pth"],
        },
        "ramdisk": {"size": "64M"},
        "protect": {"max_loss": "2 s"},
    }
    return changed(config, changes)


def expected_state(lr: str = "0.1", seed: int = 1, epochs: int = EPOCHS) -> str:
    """Return what an uninterrupted training comes to, worked out apart from the trainer."""
    state = f"{seed} {lr}"
    for epoch in range(1, epochs + 1):
        state = hashlib.sha256(f"{state} {epoch}".encode()).hexdigest()
    return state


def expected_losses(lr: str = "0.1") -> list[float]:
    """Return what the trainer says of each epoch of an uninterrupted training, worked out apart from it."""
    return [int(expected_state(lr, epochs=epoch)[:8], 16) / 1e9 for epoch in range(1, EPOCHS + 1)]


def state_of(model: Path) -> str:
    """Return the state that a checkpoint or model holds."""
    with zipfile.ZipFile(model) as archive:
        assert archive.testzip() is None
        return json.loads(archive.read("data.pkl"))["state"]


def check_folder(folder: Path) -> None:
    """Check that a folder that came home is what its manifest says."""
    for file in read_manifest(folder)["files"]:
        with (folder / file.path).open("rb") as content:
            assert hashlib.file_digest(content, "sha256").hexdigest() == file.sha256, folder / file.path


class Workplace:
    """A working directory with a config, in which Snakemake is called as a user calls it."""

    patience_s = 120.0

    def __init__(self, workdir: Path, config: dict[str, Any], run: str = RUN) -> None:
        self.workdir = workdir
        self.results = workdir / "results" / run
        self.ram = ram_root(workdir) / run
        self.configfile = workdir / "my.yaml"
        self.output = workdir / "output.txt"
        self.snakemake: psutil.Popen | None = None
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        """Write the config."""
        self.configfile.write_text(yaml.safe_dump(config))

    def start(self, pause_s: float = 0.3, **environment: str) -> None:
        """Call `train` in a session of its own, as a terminal would, and go on."""
        self._start(snakemake_argv("train", "--configfile", str(self.configfile)), pause_s, environment)

    def _start(self, argv: list[str], pause_s: float, environment: dict[str, str]) -> None:
        with self.output.open("w") as output:
            self.snakemake = psutil.Popen(
                argv,
                cwd=self.workdir,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_heed_signals,
                env={**os.environ, "PAUSE_S": str(pause_s), **environment},
            )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call Snakemake and wait for its end."""
        return subprocess.run(
            [*snakemake_argv(), *arguments],
            cwd=self.workdir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=self.patience_s,
            env={**os.environ, "PAUSE_S": "0", **environment},
        )

    def wait_for(self, pattern: str, within_s: float = patience_s) -> Path:
        """Wait until a file below the working directory or its RAM disk fits the glob; return it."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for root in (self.ram, self.workdir):
                with contextlib.suppress(FileNotFoundError):  # folders come and go while it looks
                    if found := sorted(root.glob(pattern)):
                        return found[0]
            assert self.snakemake is None or self.snakemake.poll() is None, self.said()
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} within {within_s} s: {self.said()}")

    def wait(self, within_s: float = patience_s) -> int:
        """Wait for the end of Snakemake; return its exit status."""
        assert self.snakemake is not None
        return self.snakemake.wait(within_s)

    def said(self) -> str:
        """Return what `start` has printed so far, and its jobs."""
        return self.output.read_text()

    def process(self, *words: str) -> psutil.Process:
        """Return the first process below Snakemake whose command line has all of `words`."""
        assert self.snakemake is not None
        for process in self.snakemake.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # another one has just ended
                if all(any(word in part for part in process.cmdline()) for word in words):
                    return process
        raise AssertionError(f"no process with {words}: {self.said()}")

    def ours(self) -> list[psutil.Process]:
        """Return every process that has to do with this working directory or its project."""
        found = []
        for process in psutil.process_iter():
            try:
                places = [*process.cmdline(), process.cwd()]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and any(str(self.workdir.parent) in place for place in places):
                found.append(process)
        return found

    def wait_for_nobody(self) -> None:
        """Check that soon no process is left."""
        deadline = time.monotonic() + PATIENCE_S
        while (left := self.ours()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"still there after {PATIENCE_S} s: {left}"

    def reboot(self) -> None:
        """Take away all that a reboot takes: what runs, and what is in RAM."""
        for process in self.ours():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait_for_nobody()
        if self.ram.parent.exists():
            for entry in mounts():
                if entry.point.is_relative_to(self.ram.parent):
                    _unmount(entry.point)
            remove_tree(self.ram.parent)
            with opened(user_root()):
                pass  # the ledger forgets what is dead

    def check_disk(self) -> None:
        """Check that nothing on the disk has a final name and is not whole; and that RAM holds only what is named."""
        for pattern in ("checkpoints/[!.]*", "model", "artifacts", "rescued-*"):
            for folder in filter(Path.is_dir, self.results.glob(pattern)):
                check_folder(folder)
        for mark in self.ram.parent.glob(f"*/{MARK}"):
            lease = Lease.read(mark)
            assert lease.workdir == str(self.workdir)
        points = [entry.point for entry in mounts() if entry.point.is_relative_to(self.ram.parent)]
        assert all((point / MARK).exists() for point in points)

    def printed_command(self, said: str, target: str = "train") -> list[list[str]]:
        """Return the command that the message says to type, as argument lists for this working directory."""
        line = next(line for line in said.splitlines() if line.startswith("  snakemake") and f" {target}" in line)
        calls = [shlex.split(call) for call in line.split("&&")]
        assert all(call[:3] == ["snakemake", "--cores", "1"] for call in calls), line
        return [call[3:] for call in calls]

    def start_what_is_said(self, said: str, pause_s: float = 0.3, **environment: str) -> None:
        """Start the command that the message says to type, and go on; what stands before its last && has to succeed."""
        *before, last = self.printed_command(said)
        for arguments in before:
            ended = self.run(*arguments)
            assert ended.returncode == 0, f"{arguments}: {ended.stdout}"
        self._start([*snakemake_argv(), *last], pause_s, environment)

    def type_what_is_said(self, said: str, target: str = "train", **environment: str) -> str:
        """Run the command that the message says to type; return what it printed. It has to succeed."""
        for arguments in self.printed_command(said, target):
            ended = self.run(*arguments, **environment)
            assert ended.returncode == 0, f"{arguments}: {ended.stdout}"
        return ended.stdout

    def check_finished(self, **parameters: Any) -> dict[str, Any]:
        """Check that the run is complete, its model the one of an uninterrupted training; return the record."""
        assert state_of(self.results / "model/best_model.pth") == expected_state(**parameters)
        assert not self.ram.parent.exists(), "the RAM disk is released"
        assert not list(self.results.glob("checkpoints/[0-9]*")), "durable checkpoints are removed after the export"
        self.check_disk()
        return json.loads((self.results / "record.json").read_text())


def _unmount(point: Path) -> None:
    """Unmount what the overlay of a killed trainer may still hold for a moment: namespaces are taken down later."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            run_command("umount", str(point))
            return
        except CommandError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def spill_at_rest(source: Path, place: Path, folder: Path, is_checkpoint: bool = True) -> None:
    """Move a file to the disk, of a trainer that is stopped."""
    assert spill(source, place, folder, is_checkpoint, lambda: contextlib.nullcontext(True))


def _heed_signals() -> None:
    # Tests started under nohup, or in a shell's background, would pass on that SIGHUP or SIGINT is ignored.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
