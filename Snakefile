"""RamTrain: train any project on a RAM disk and bring the model home.

snakemake --cores 1 train      every configured run: trained, model at home, verified, RAM released, record written
snakemake --cores 1 unmount    whatever earlier runs left in RAM: brought home, then released
snakemake --cores 1 benchmark_io   this disk against this RAM disk, and a run on the disk against the same run in RAM
snakemake --cores 1            all of it, the table of the runs, and the pictures
"""

from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# Where the chains of runs are sent to a cluster, what is left to do here is light.
localrules:
    summary,
    describe_sweep,
    plot_run,
    plot_summary,
    plot_ranking,
    plot_benchmark,
    unmount,
    store_run,


include: "workflow/rules/common.smk"
include: "workflow/rules/ramdisk.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/report.smk"


rule train:
    """Every configured run: trained, model at home, verified, RAM released, record and table of the runs written."""
    input:
        # Snakemake does not make a missing export again for the sake of a record that is there.
        expand("results/{run}/{step}.json", run=RUNS, step=["export", "record"]),
        [f"results/{run}/stored.json" for run in RUNS if RUNS[run].store],
        rules.summary.output,


rule all:
    """All of it: every run trained, the benchmark, the table of the runs, and the pictures."""
    default_target: True
    input:
        rules.train.input,
        rules.benchmark_io.output,
        rules.describe_sweep.output,
        expand("results/{run}/{picture}.svg", run=RUNS, picture=["timeline", "timings"]),
        rules.plot_summary.output,
        rules.plot_ranking.output,
        rules.plot_benchmark.output,


rule unmount:
    """Whatever earlier, failed or killed runs left in RAM: brought home, then released."""
    log:
        "results/logs/unmount.log",
    conda:
        "workflow/envs/ramtrain.yaml"
    script:
        "scripts/unmount.py"


onstart:
    if SENDS:
        cluster.check_memory(RUNS, asked_mb())
        check_store()
    caller.pass_signals_on("mount_ramdisk.py", "train_run.py", "benchmark_io.py")


onsuccess:
    if JOB is None:
        for line in summary.done(RUNS):
            print(line)


onerror:
    from ramtrain import archive

    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        for line in summary.account(summary.asked(RUNS)) + archive.not_stored(RUNS):
            print(line)
    finally:
        for line in status.last_words(RAM_ROOT):
            print(line)
