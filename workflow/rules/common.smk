"""The configuration: loaded, checked, resolved to one `Run` per run. No rules."""

import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from ramtrain import caller, config as settings, ramdisk, status
from ramtrain.errors import RamTrainError
from ramtrain.schema import load_yaml

HOME = Path(workflow.basedir)
RAM_ROOT = ramdisk.ram_root(Path.cwd())


def load_config():
    """Complete Snakemake's config: a user's --configfile as it is, or else the example's, with the defaults."""
    source = ", ".join(map(str, workflow.overwrite_configfiles))
    if not source:  # a `configfile:` directive would merge the example's settings into a user's
        example = load_yaml(HOME / "config/config.yaml") or {}
        update_config(example, config)
        config.update(example)
    config.update(settings.complete_config(config, HOME, source or "config/config.yaml"))


def load_runs():
    """Return the configured runs by id, all of them checked."""
    runs = settings.load_runs(config, HOME)
    for run in runs.values():
        if not Path("results", run.run, "record.json").exists():
            settings.check_project(run)
    return runs


try:
    ramdisk.check_root(RAM_ROOT)
    if "unmount" in sys.argv:
        # What is in RAM comes home whatever became of the config, the runs table and the project.
        RUNS, BENCHMARK_RUN = {}, None
    else:
        load_config()
        RUNS = load_runs()
        BENCHMARK_RUN = settings.benchmark_run(config, RUNS)
except RamTrainError as error:
    raise WorkflowError(str(error)) from None

caller.remember(workflow.overwrite_configfiles)

# Snakemake (9.27, PythonScript.execute_script) starts scripts with its Python's path as it is, spaces and all.
sys.executable = shlex.quote(sys.executable)

# What all runs together may hold in RAM; --resources ramdisk_mb=N overrides it.
workflow.global_resources.setdefault("ramdisk_mb", settings.budget_bytes() >> 20)


wildcard_constraints:
    run="[^/]+",


def ramdisk_mb(wildcards):
    """Return what the run holds from mount to unmount: the same on every rule of its chain."""
    return RUNS[wildcards.run].ramdisk_mb


def run_threads(wildcards):
    """Return the threads of the run's trainer, or 1 where they are its own affair: likewise the same on every rule."""
    return RUNS[wildcards.run].threads or 1
