"""Sweeps on a real SLURM: each run is one job, whatever ends it; nothing stays on the node."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from onenode import Sweep
    from s3 import Bucket

pytest_plugins = ["onenode", "s3"]
THREADS = os.cpu_count() + 1  # the machine that sends is not the one that trains
LRS = ("0.1", "0.2", "0.3")
RUNS = [f"lr={lr},seed={seed}" for lr in LRS for seed in (1, 2)]


def status_of(sweep: Sweep) -> dict[str, dict]:
    argv = [sys.executable, "-m", "ramtrain", "status", "--json"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=sweep.workdir).stdout
    return {entry["run"]: entry for entry in json.loads(said) if entry["workdir"] == str(sweep.workdir)}


def test_a_sweep_is_a_job_a_run(sweep: Sweep, bucket: Bucket) -> None:
    store = {**bucket.store, "checkpoints": True}
    sweep.configure(LRS, **{"train.gpus": 1, "train.threads": THREADS, "sweep.seeds": 2, "store": store})
    before = sweep.cluster.jobs()
    sweep.start(pause_s=0.6)
    first = sweep.job_of(RUNS[0])
    entry = status_of(sweep)[RUNS[0]]
    assert (entry["job"], entry["partition"], entry["state"]) == (first, "test", "training")
    asked = sweep.cluster.ask("scontrol", "show", "job", first)
    assert "MinMemoryNode=1152M" in asked and f"CPUs/Task={THREADS} " in asked and "gres:gpu:1" in asked
    assert sweep.wait() == 0, sweep.said()
    jobs = {job: state for job, state in sweep.cluster.jobs().items() if job not in before}
    assert set(jobs.values()) == {"COMPLETED"} and len(jobs) == len(RUNS)
    records = [sweep.record(run) for run in RUNS]
    assert {record["job"]["id"] for record in records} == set(jobs)
    assert all(len(record["devices"]) == 1 for record in records)
    assert {(record["job"]["node"], record["job"]["partition"]) for record in records} == {(entry["node"], "test")}
    assert len((sweep.workdir / "results/summary.tsv").read_text().splitlines()) == 1 + len(RUNS)
    assert not list(sweep.workdir.glob("results/*/job.json")) and status_of(sweep) == {}
    assert all(any(name.endswith("/model/best_model.pth") for name in bucket.names(run)) for run in RUNS)
    assert f"is in {store['url']} too" in sweep.said(), "a job has taken a checkpoint there"
    sweep.check_node()


def scancel(job: str) -> None:
    call("scancel", job)


def reach_time_limit(job: str) -> None:
    call("scontrol", "update", f"JobId={job}", "TimeLimit=1")


def kill_step(job: str) -> None:
    """Kill what slurmstepd has started as the job's step: the Snakemake that works on the run."""
    (child,) = children_of_slurm(f"{job}.0")
    assert "snakemake" in child.cmdline()
    child.kill()


def kill_batch(job: str) -> None:
    """Kill what was sent as the job, and the Snakemake that waits there for the step: SLURM then ends the step."""
    for child in children_of_slurm(f"{job}.batch"):
        for process in (child, *child.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def children_of_slurm(step: str) -> list[psutil.Process]:
    """Return what the slurmstepd of a job's step has started."""
    names = {process: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    (slurmstepd,) = [process for process, name in names.items() if name.startswith(f"slurmstepd: [{step}]")]
    return slurmstepd.children()


def requeue(job: str) -> None:
    call("scontrol", "requeue", job)


def call(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


ENDINGS = {"0.2": reach_time_limit, "0.1": scancel, "0.3": kill_step, "0.5": kill_batch}


def test_whatever_ends_a_job_what_is_whole_comes_home_and_the_run_goes_on_from_there(sweep: Sweep) -> None:
    sweep.configure([*ENDINGS, "0.4"])
    sweep.start(pause_s=3.5)  # SLURM looks at time limits twice a minute
    jobs = {lr: sweep.job_of(f"lr={lr}") for lr in (*ENDINGS, "0.4")}
    for lr, end in ENDINGS.items():
        end(jobs[lr])
    for run in ("lr=0.1", "lr=0.3", "lr=0.5"):  # before another job starts, which would clear away what they left
        sweep.until(lambda run=run: not [path for path in sweep.cluster.held() if path.name == run], within_s=20)
    requeue(jobs["0.4"])
    assert sweep.wait() != 0
    said = sweep.said()
    sweep.check_node()
    assert sweep.record("lr=0.4")["protection"]["resumed_from"], "the one that was queued again has ended well"
    states = sweep.cluster.jobs()
    assert (states[jobs["0.1"]], states[jobs["0.4"]]) == ("CANCELLED", "COMPLETED")
    for lr in ENDINGS:
        assert sweep.checkpoints(f"lr={lr}") and not (sweep.results(f"lr={lr}") / "record.json").exists(), lr
    for lr in ("0.1", "0.2"):
        failure = json.loads((sweep.results(f"lr={lr}") / "failure.json").read_text())
        assert (failure["status"], failure["step"]) == ("interrupted", "train_run"), failure
        assert f"run lr={lr}: SIGTERM: the trainer is sent SIGINT" in said
    assert "its RAM on node" in said and "still in RAM" not in said and "snakemake --cores 1 unmount" not in said
    sweep.start()
    assert sweep.wait() == 0, sweep.said()
    for lr in ENDINGS:
        assert sweep.record(f"lr={lr}")["protection"]["resumed_from"], lr
    sweep.check_node()


def test_a_model_that_is_at_home_is_not_trained_once_more_when_its_job_failed_after_that(sweep: Sweep) -> None:
    place = sweep.workdir.with_name("installed")
    in_the_way = shlex.join(("mkdir", str(place))) + " && " + shlex.join(("touch", str(place / "other")))
    train = f"exec {shlex.quote(sys.executable)} train.py --lr {{lr}} --seed {{seed}}"
    changes = {"project.install_to": str(place), "project.command": ["sh", "-c", f"{in_the_way} && {train}"]}
    sweep.configure(["0.1"], **changes)
    sweep.start()
    assert sweep.wait() != 0
    assert "verified, but not in" in sweep.said()
    assert not sweep.checkpoints("lr=0.1")
    sweep.check_node()
    shutil.rmtree(place)
    sweep.start()
    assert sweep.wait() == 0, sweep.said()
    assert "unmount_run" in sweep.output.read_text() and "train_run" not in sweep.output.read_text()
    assert sweep.record("lr=0.1")["installed"]["path"] == str(place)
    sweep.check_node()


def test_a_job_goes_on_without_its_sender_and_is_not_done_again(sweep: Sweep) -> None:
    sweep.configure(["0.1"])
    sweep.start(pause_s=0.5)
    job = sweep.job_of("lr=0.1")
    sweep.submitter.kill()
    sweep.submitter.wait()
    sweep.submitter = None
    sweep.until((sweep.results("lr=0.1") / "record.json").exists, within_s=90)
    sweep.check_node()
    assert sweep.record("lr=0.1")["job"]["id"] == job
    sweep.start("--unlock")
    assert sweep.wait() == 0, sweep.said()
    sweep.start()
    assert sweep.wait() == 0, sweep.said()
    assert "train_run" not in sweep.output.read_text()
    assert sweep.record("lr=0.1")["job"]["id"] == job


def test_a_plain_user_needs_no_privilege(sweep: Sweep) -> None:
    sweep.configure(["0.1"])
    sweep.become_plain()
    sweep.start()
    assert sweep.wait() == 0, sweep.said()
    record = sweep.record("lr=0.1")
    assert (record["ramdisk"]["backend"], record["staging"]["method"]) == ("shm", "overlay")
    sweep.check_node()


def test_a_job_whose_ram_disk_does_not_fit_in_its_memory_is_not_sent(sweep: Sweep) -> None:
    sweep.configure(["0.1"])
    before = sweep.cluster.jobs()
    rules = ("mount_ramdisk", "stage_project", "train_run", "export_model", "unmount_run")
    sweep.start("--set-resources", *(f"{rule}:mem_mb=700" for rule in rules))
    assert sweep.wait() == 1
    said = sweep.said()
    assert "run lr=0.1: its RAM disk does not fit in the memory of its job, nothing was sent:" in said
    assert "76 MiB  is missing" in said
    assert sweep.cluster.jobs() == before
