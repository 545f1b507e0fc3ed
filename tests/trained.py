"""Workplaces for projects of real libraries, with the configs that docs/trainers.md has for them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from workplace import Workplace, changed

REPO = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documented(name: str) -> dict[str, Any]:
    """Return the config that docs/trainers.md has for the project ~/`name`."""
    blocks = map(yaml.safe_load, _BLOCK.findall((REPO / "docs/trainers.md").read_text(encoding="utf-8")))
    (config,) = (config for config in blocks if config.get("project", {}).get("path") == f"~/{name}")
    return config


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Trained(Workplace):
    """A workplace for a project of a real library: `project` is its folder, `whole` a copy for one go."""

    patience_s = 300.0  # of large libraries the import alone takes half a minute beside other tests

    def __init__(self, workdir: Path, name: str, folder: Path, **changes: Any) -> None:
        self.project, self.whole = folder / name, folder / "whole"
        for copy in (self.project, self.whole):
            shutil.copytree(REPO / "tests/projects" / name, copy)
        self.config = documented(name)
        changes = {
            "project.path": str(self.project),
            "project.python": sys.executable,
            "ramdisk.size": "256M",
            "protect.max_loss": "1 s",
            "train.threads": 1,
        } | changes
        super().__init__(workdir, changed(self.config, changes), run=name)

    @property
    def upper(self) -> Path:
        """What the trainer has written, in RAM."""
        return self.ram / "overlay/upper"

    @property
    def model(self) -> Path:
        """The model at home."""
        return self.results / "model"

    def wait_for(self, pattern: str, within_s: float = patience_s) -> Path:
        """Wait likewise, with more patience."""
        return super().wait_for(pattern, within_s)

    def wait_for_another_checkpoint(self) -> None:
        """Wait until one more checkpoint is durable."""
        before, deadline = self._durable(), time.monotonic() + self.patience_s
        while not self._durable() - before:
            assert self.snakemake.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def _durable(self) -> set[Path]:
        return set(self.results.glob("checkpoints/[0-9]*/manifest.json"))

    def train_whole(self) -> Path:
        """Train the copy in one go, as one would without RamTrain; return its folder."""
        words = self.config["project"]["command"].split()
        done = subprocess.run(
            [word.format(python=sys.executable, seed=1) for word in words],
            cwd=self.whole,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=self.patience_s,
        )
        assert done.returncode == 0, done.stdout
        return self.whole

    def go_on(self) -> str:
        """Take the lock away, train to the end, and return what was said."""
        for arguments in (["--unlock"], ["train"]):
            ended = self.run(*arguments, "--configfile", str(self.configfile))
            assert ended.returncode == 0, ended.stdout
        return ended.stdout
