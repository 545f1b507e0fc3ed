"""A SLURM of one node for the tests, and sweeps that are sent to it; `make test-slurm`.

The node has a /dev/shm of its own, as on another machine. All of it lies in /var/tmp: where a job has a private
/dev/shm it has a private /tmp as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import REPO, RESUMING_PROJECT
from workplace import changed, expected_state, state_of

from ramtrain.system import mounts

HERE = Path(__file__).parent
PLACE = Path("/var/tmp")
_GONE_S = 5.0
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munge")


def why_not() -> str | None:
    """Return why no SLURM can be started here."""
    if os.geteuid() != 0:
        return "needs root: it starts a SLURM"
    if missing := [program for program in _PROGRAMS if not shutil.which(program)]:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "needs snakemake-executor-plugin-slurm: make test-slurm installs it"
    conf = Path("/etc/slurm/slurm.conf")
    return f"{conf} is a real one" if conf.exists() and not conf.is_symlink() else None


class Cluster:
    """A running SLURM of one node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slurmd = int((root / "slurmd.pid").read_text())

    def held(self) -> list[Path]:
        """Return what runs hold on the node: what is mounted, and what is in its /dev/shm."""
        mounted = [entry.point for entry in mounts(self.slurmd) if entry.source == "ramtrain"]
        return mounted + list(Path(f"/proc/{self.slurmd}/root/dev/shm").rglob("*"))

    @staticmethod
    def processes() -> list[str]:
        """Return the processes of jobs that are still on the node."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it has ended
                name = " ".join(process.cmdline())
                if "SLURM_JOB_ID" in process.environ() or name.startswith("slurmstepd: ["):
                    found.append(f"{process.pid} {name}")
        return found

    @staticmethod
    def ask(*command: str) -> str:
        """Return what a command of SLURM prints."""
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    def jobs(self) -> dict[str, str]:
        """Return all jobs of the last minutes, with their states."""
        listed = self.ask("squeue", "--noheader", "--states=all", "--format=%i %T")
        return dict(line.split() for line in listed.splitlines())


@pytest.fixture(scope="module")
def lines() -> Sequence[str]:
    """Return what slurm.conf has beside the usual; modules may have their own."""
    return ()


@pytest.fixture(scope="module")
def cluster(lines: Sequence[str]) -> Iterator[Cluster]:
    """Start SLURM, and stop it."""
    if reason := why_not():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="ramtrain-slurm-", dir=PLACE))
    (root / "job_container.conf").write_text(f"AutoBasePath=true\nBasePath={root}/private\n")
    try:
        try:
            subprocess.run([HERE / "start.sh", root, *lines], check=True, timeout=60, stderr=subprocess.PIPE, text=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"SLURM does not start on this machine: {error.stderr.strip().splitlines()[:1]}")
        yield Cluster(root)
    finally:
        subprocess.run([HERE / "stop.sh", root], check=True, timeout=60)
        shutil.rmtree(root)


class Sweep:
    """A working directory on shared storage whose runs are sent to the cluster."""

    def __init__(self, cluster: Cluster, workdir: Path) -> None:
        self.cluster, self.workdir = cluster, workdir
        self.project = workdir.with_name("project")
        shutil.copytree(RESUMING_PROJECT, self.project)
        self.configfile = workdir / "my.yaml"
        self.output = workdir / "output.txt"
        self.submitter: subprocess.Popen[bytes] | None = None
        self.home = Path.home()
        self.user: Sequence[str] = ()

    def configure(self, lrs: Sequence[str], **changes: Any) -> None:
        """Write a config with a run for each learning rate, or each with some seeds; dotted keys change it."""
        config = {
            "project": {
                "path": str(self.project),
                "command": [sys.executable, "train.py", "--lr", "{lr}", "--seed", "{seed}"],
                "trainer": "coqui",
                "model": ["output/run/best_model.pth"],
            },
            "sweep": {"lr": list(lrs)},
            "ramdisk": {"size": "64M"},
            "train": {"memory": "200M"},
            "protect": {"max_loss": "2 s"},
        }
        self.configfile.write_text(yaml.safe_dump(changed(config, changes)))

    def start(self, *arguments: str, pause_s: float = 0.0) -> None:
        """Call `train` as a user would, and go on."""
        with self.output.open("w") as output:
            self.submitter = subprocess.Popen(
                [
                    *self.user,
                    *(sys.executable, HERE / "quick.py", "train", "--cores", "all"),
                    *("--snakefile", REPO / "Snakefile", "--workflow-profile", REPO / "profiles/slurm"),
                    *("--configfile", self.configfile, "--latency-wait", "5"),
                    # It has no accounting.
                    *("--slurm-status-command", "squeue", "--slurm-no-account", "--slurm-keep-successful-logs"),
                    *arguments,
                ],
                cwd=self.workdir,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PAUSE_S": str(pause_s), "HOME": str(self.home)},
            )

    def become_plain(self) -> None:
        """Have it called by a user without privileges; skip the test where they could not."""
        self.user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        self.home = self.workdir.parent
        code = "import os, sys, snakemake, ramtrain; os.stat(sys.executable)"
        if subprocess.run([*self.user, sys.executable, "-c", code], check=False).returncode:
            pytest.skip(f"needs a checkout and an interpreter that others may read: {REPO}, {sys.executable}")
        self.home.parent.chmod(0o755)
        for path in (self.home, *self.home.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")

    def wait(self, within_s: float = 150.0) -> int:
        """Wait for the end of Snakemake; return its exit status."""
        assert self.submitter is not None
        return self.submitter.wait(within_s)

    def said(self) -> str:
        """Return what Snakemake printed, here and in its jobs."""
        logs = sorted(self.workdir.glob(".snakemake/slurm_logs/**/*.log"))
        return "\n".join(path.read_text(errors="replace") for path in (self.output, *logs))

    def results(self, run: str) -> Path:
        """Return the folder of a run's results."""
        return self.workdir / "results" / run

    def record(self, run: str) -> dict[str, Any]:
        """Return the record of a run that has ended, whose model is the one of an uninterrupted training."""
        values = dict(part.split("=") for part in run.split(","))
        expected = expected_state(lr=values["lr"], seed=int(values.get("seed", 1)))
        assert state_of(self.results(run) / "model/best_model.pth") == expected
        return json.loads((self.results(run) / "record.json").read_text())

    def until(self, what: Callable[[], Any], within_s: float = 60.0) -> Any:
        """Wait until something is so; return it."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := what():
                return found
            assert self.submitter is None or self.submitter.poll() is None, self.said()
            time.sleep(0.2)
        raise AssertionError(self.said())

    def checkpoints(self, run: str) -> list[Path]:
        """Return the manifests of a run's durable checkpoints."""
        return list(self.workdir.glob(f"results/{run}/checkpoints/[0-9]*/manifest.json"))

    def job_of(self, run: str) -> str:
        """Return the job in which a run is being trained, once it has a durable checkpoint."""
        self.until(lambda: self.checkpoints(run))
        return json.loads((self.results(run) / "job.json").read_text())["job"]["id"]

    def check_node(self) -> None:
        """Check that nothing is left on the node when its jobs have ended, and nobody."""
        self.until(lambda: not self.cluster.ask("squeue", "--noheader"), within_s=30)
        assert self.cluster.held() == []
        deadline = time.monotonic() + _GONE_S
        while (left := self.cluster.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []


@pytest.fixture
def sweep(cluster: Cluster) -> Iterator[Sweep]:
    """Return a working directory beside the cluster's own files; what still runs at the end is ended."""
    workdir = Path(tempfile.mkdtemp(dir=cluster.root)) / "ram train"
    workdir.mkdir()
    place = Sweep(cluster, workdir)
    yield place
    if place.submitter and place.submitter.poll() is None:
        place.submitter.kill()
        place.submitter.wait()
    subprocess.run(["scancel", *cluster.jobs()], check=False, capture_output=True)
    deadline = time.monotonic() + 30
    while cluster.ask("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)
    shutil.rmtree(workdir.parent)
