"""How long a run on SLURM takes beside its trainer: many runs of a trainer that does nothing, some at a time.

python tests/slurm/many.py [RUNS [AT A TIME]], as root; 200 and 4 unless said otherwise.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import yaml

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
_EVENT = re.compile(r"\[(\S+)\] (sched: Allocate|_job_complete:) JobId=(\d+)(?: done| NodeList)")


def main(count: int, at_a_time: int) -> None:
    """Start SLURM, send the runs, and say where the time went."""
    root = Path(tempfile.mkdtemp(prefix="ramtrain-many-", dir="/var/tmp"))
    subprocess.run([HERE / "start.sh", root], check=True)
    try:
        workdir = _workdir(root, count)
        began_s, busy_s = time.monotonic(), _busy_s()
        _train(workdir, at_a_time)
        wall_s, busy_s = time.monotonic() - began_s, _busy_s() - busy_s
        jobs_s = list(_jobs_s((root / "slurmctld.log").read_text()))
    finally:
        subprocess.run([HERE / "stop.sh", root], check=True)
    records = [json.loads(path.read_text()) for path in workdir.glob("results/*/record.json")]
    trainers_s = sum(record["timings_s"]["train"] for record in records)
    sent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(records)} runs, {at_a_time} at a time: {wall_s:.0f} s")
    print(f"a run beyond its trainer: {(at_a_time * wall_s - trainers_s) / count:.1f} s of one place")
    print(f"a job, by SLURM: {statistics.mean(jobs_s):.1f} s (median {statistics.median(jobs_s):.1f} s)")
    for what, seconds in (
        ("from mount to unmount", [record["timings_s"]["total"] for record in records]),
        ("the trainer", [record["timings_s"]["train"] for record in records]),
        ("mount, stage, export and unmount themselves", [_own_s(record) for record in records]),
    ):
        print(f"  {what}: {statistics.mean(seconds):.2f} s")
    print(f"the machine's CPU time: {busy_s / count:.1f} s a run, of {os.cpu_count() * wall_s / count:.1f} s")
    print(f"the Snakemake that sends them: {sent.ru_utime + sent.ru_stime:.1f} s of CPU time")
    shutil.rmtree(root)


def _busy_s() -> float:
    """Return the CPU time that all processes of this machine have taken, others' as well."""
    times = psutil.cpu_times()
    return sum(times[:8]) - times.idle - times.iowait


def _own_s(record: dict) -> float:
    return sum(record["timings_s"][step] for step in ("mount", "stage", "export", "unmount"))


def _workdir(root: Path, count: int) -> Path:
    workdir, project = root / "work", root / "project"
    workdir.mkdir()
    project.mkdir()
    (project / "data.txt").write_text("1\n")
    config = {
        "project": {"path": str(project), "command": ["sh", "-c", "echo {i} > model.bin"], "model": ["model.bin"]},
        "sweep": {"i": list(range(count))},
        "ramdisk": {"size": "16M"},
        "train": {"memory": "64M"},
        "protect": {"max_loss": "never"},
    }
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    return workdir


def _train(workdir: Path, at_a_time: int) -> None:
    with (workdir / "output.txt").open("w") as output:
        subprocess.run(
            [
                *(sys.executable, HERE / "quick.py", "train", "--cores", "all", "--jobs", str(at_a_time)),
                *("--snakefile", REPO / "Snakefile", "--workflow-profile", REPO / "profiles/slurm"),
                *("--configfile", "my.yaml", "--slurm-status-command", "squeue", "--slurm-no-account"),
            ],
            cwd=workdir,
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _jobs_s(log: str) -> Iterator[float]:
    """Yield how long each job took, by the controller's log."""
    begun: dict[str, datetime] = {}
    for stamp, what, job in _EVENT.findall(log):
        at = datetime.fromisoformat(stamp)
        if what.startswith("sched"):
            begun[job] = at
        elif job in begun:
            yield (at - begun.pop(job)).total_seconds()


if __name__ == "__main__":
    main(*(int(text) for text in (sys.argv[1:] + ["200", "4"][len(sys.argv) - 1 :])))
