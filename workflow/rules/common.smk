"""The configuration: loaded, checked, resolved to one `Run` per run. No rules."""

import functools
import gc
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.target_jobs import TargetSpec
from snakemake.utils import update_config

from ramtrain import admission, caller, cluster, config as settings, devices, ramdisk, sizing, slurm, status, summary
from ramtrain.errors import RamTrainError
from ramtrain.redact import redact_text
from ramtrain.schema import load_yaml
from ramtrain.store import Store, check_library, read_address
from ramtrain.tracker import check_tracker

# A thousand runs are five thousand jobs, and what Snakemake does for each of them while it plans adds up: looking up its
# script (9.27, ScriptProcessor), and time and again what is no longer needed of some hundred thousand objects.
workflow.sourcecache._cache = functools.cache(workflow.sourcecache._cache)
gc.set_threshold(100_000, 20, 100)

# A limit for submitting to clusters. While a run waits for another, Snakemake (9.27, JobScheduler) looks again each time
# that its timespan is over, and does not end before the last of these; nor does it on a node, when its job is done.
JobScheduler.job_rate_limiter = property(lambda scheduler: None, lambda scheduler, limiter: None)

# When it is told to end, it takes a lock that it may hold at that moment (9.27, JobScheduler.exit_gracefully).
JobScheduler.exit_gracefully = caller.apart(JobScheduler.exit_gracefully)

HOME = Path(workflow.basedir)
RAM_ROOT = ramdisk.ram_root(Path.cwd())
CORES = workflow.cores

# Whether jobs are sent to other machines, as with profiles/slurm; what is free here is no matter to them then. Snakemake
# (9.27, Rule.expand_resources) would cut their threads down to the cores of this one.
SENDS = workflow.nodes is not None
if SENDS:
    workflow.global_resources["_cores"] = sys.maxsize

# The job of the cluster that this call was sent there as; it calls Snakemake once more, which works on the run.
JOB = (caller.job() or slurm.this_job()) if workflow.remote_exec else None
if workflow.remote_exec:
    TargetSpec.wildcards_dict = property(lambda spec: cluster.wildcards_of(spec[1]) if spec[1] else {})


def load_config():
    """Complete Snakemake's config: a user's --configfile as it is, or else the example's, with the defaults."""
    source = ", ".join(map(str, workflow.overwrite_configfiles))
    if not source:  # a `configfile:` directive would merge the example's settings into a user's
        example = load_yaml(HOME / "config/config.yaml") or {}
        update_config(example, config)
        config.update(example)
    config.update(settings.complete_config(config, HOME, source or "config/config.yaml"))
    check_tracker(config["record"]["mlflow_uri"])
    check_library(read_address(config["store"]))


def remember_call(reserve):
    """Note what jobs must know of this call, with what all its runs together may hold in RAM."""
    if SENDS:
        caller.remember(workflow.overwrite_configfiles, job=JOB)
        return
    free_mb = admission.room_bytes(None, Path.cwd(), settings.read_reserve(reserve)) >> 20
    if JOB:
        given_mb = cluster.ramdisk_mb(JOB, settings.read_memory(config["train"]["memory"]))
        free_mb = min(free_mb, free_mb if given_mb is None else given_mb)
    budget = workflow.global_resources.setdefault("ramdisk_mb", free_mb)
    caller.remember(workflow.overwrite_configfiles, budget.value, JOB)


def load_runs():
    """Return the configured runs by id, in a job its own, checked, with their sizes as they stay while this call lasts."""
    runs = settings.load_runs(config, HOME, cluster.run_of(sys.argv) if workflow.remote_exec else None)
    ended = {run for run in runs if Path("results", run, "record.json").exists()}
    settings.check_projects(run for run in runs.values() if run.run not in ended)
    if SENDS:
        sized = sizing.all_sized(runs, Path.cwd())
        cluster.check_runs(run for run in sized.values() if run.run not in ended)
        return sized
    if found := devices.count(runs.values(), ended):
        workflow.global_resources.setdefault("gpu", found)
    return sizing.all_sized(runs, Path.cwd())


try:
    ramdisk.check_root(RAM_ROOT)
    if "unmount" in sys.argv:
        # What is in RAM comes home whatever became of the config, the runs table and the project.
        RUNS, BENCHMARK_RUN = {}, None
        remember_call(None)
    else:
        load_config()
        remember_call(config["guard"]["reserve"])
        RUNS = load_runs()
        BENCHMARK_RUN = settings.benchmark_run(config, RUNS) if len(RUNS) > 1 or not workflow.remote_exec else None
except RamTrainError as error:
    raise WorkflowError(redact_text(str(error), code=True)) from None

if JOB:
    from ramtrain import leaving

    leaving.leave_at_end(Path.cwd(), JOB, cluster.run_of(sys.argv))

if SENDS:
    from ramtrain.arrived import Arrivals

    arrivals, clean_up = Arrivals(RUNS), Job.cleanup

    async def clean_up_failed(job, skip_outputs):
        """Delete what a failed job has made, as Snakemake does (9.27, GroupJob.postprocess), but no export: its run has
        only its record left to write."""
        if job.rule.name != "export_model" or not arrivals.has(job.wildcards.run):
            await clean_up(job, skip_outputs)

    Job.cleanup = clean_up_failed

# Snakemake (9.27, PythonScript.execute_script) starts scripts with its Python's path as it is, spaces and all.
sys.executable = shlex.quote(sys.executable)


wildcard_constraints:
    run="[^/]+",


def run_threads(wildcards):
    """Return the threads of the run's trainer, or 1 where they are its own affair: the same on every rule of its chain."""
    return RUNS[wildcards.run].threads or 1


# The rules of a run's chain are one job, where jobs are sent; groups take time for each job where they do nothing.
CHAIN = "run" if SENDS or JOB else None

# What a run holds from mount to unmount: the same on every rule of its chain. A resource takes its time for each job, so
# devices are one only where a run is given any.
HELD = {"ramdisk_mb": lambda wildcards: RUNS[wildcards.run].ramdisk_mb}
if any(run.gpus for run in RUNS.values()):
    HELD["gpu"] = lambda wildcards: RUNS[wildcards.run].gpus or 0
if SENDS:
    HELD["mem_mb"] = lambda wildcards: cluster.job_mb(RUNS[wildcards.run])


def lasts(minutes=None):
    """Return the resource that says how long a rule of the chain may take, the training itself where that is not said.

    Only jobs that are sent have such a limit, and those of runs that name one (train.time).
    """
    if not SENDS or not any(run.time_s for run in RUNS.values()):
        return {}
    return {"runtime": lambda wildcards: cluster.runtime_minutes(RUNS[wildcards.run], minutes)}


def asked_mb():
    """Return the memory that the job of each run asks for, in MiB, as profiles and the command line leave it."""
    found = {}
    for job in workflow.dag.needrun_jobs():
        if job.rule.group == CHAIN:
            asked = job.resources
            mb = asked["mem_mb_per_cpu"] * job.threads if asked.get("mem_mb_per_cpu") else asked.get("mem_mb", 0)
            found[job.wildcards.run] = max(mb, found.get(job.wildcards.run, 0))
    return found


def check_store():
    """Check that what the jobs make can be stored, as each run does that is trained here."""
    if address := read_address(config.get("store", {"url": None})):
        Store(address).check()
