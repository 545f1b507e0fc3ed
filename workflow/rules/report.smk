"""The table and the crate of all runs; and pictures: of each run, of all runs, of the benchmark, for `--report`.

No picture is part of `train`; all of them are drawn after the trainings, since their priority is the lowest.
"""


rule summary:
    """One row per run: timings, write volumes, the model's hash."""
    input:
        records=expand("results/{run}/record.json", run=RUNS),
    output:
        table=report(
            "results/summary.tsv",
            caption="../report/summary.rst",
            category="Sweep",
            labels={"figure": "table of the runs"},
        ),
    log:
        "results/logs/summary.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/summary.py"


rule describe_sweep:
    """Describe all runs as a Workflow Run RO-Crate, which refers to those of the runs."""
    input:
        records=expand("results/{run}/record.json", run=RUNS),
        table=rules.summary.output.table,
    output:
        crate="results/ro-crate-metadata.json",
    log:
        "results/logs/describe_sweep.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/describe_sweep.py"


rule plot_run:
    """Draw a run: what it held in RAM and wrote over its time, and where the time went."""
    input:
        record=rules.unmount_run.output.record,
    output:
        timeline=report(
            "results/{run}/timeline.svg",
            caption="../report/timeline.rst",
            category="Runs",
            labels={"run": "{run}", "figure": "time line"},
        ),
        timings=report(
            "results/{run}/timings.svg",
            caption="../report/timings.rst",
            category="Runs",
            labels={"run": "{run}", "figure": "timings"},
        ),
    log:
        "results/{run}/logs/plot_run.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/plot_run.py"


rule plot_summary:
    """Draw what the runs wrote to the disk, and how long they took."""
    input:
        table=rules.summary.output.table,
    output:
        picture=report(
            "results/sweep.svg",
            caption="../report/sweep.rst",
            category="Sweep",
            labels={"figure": "disk writes and wall time"},
        ),
    log:
        "results/logs/plot_summary.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/plot_summary.py"


rule plot_ranking:
    """Draw which runs came to the best models, and what that has to do with their parameters."""
    input:
        table=rules.summary.output.table,
    output:
        ranking=report(
            "results/ranking.svg",
            caption="../report/ranking.rst",
            category="Sweep",
            labels={"figure": "the runs, the best first"},
        ),
        parameters=report(
            "results/parameters.svg",
            caption="../report/parameters.rst",
            category="Sweep",
            labels={"figure": "metric against parameters"},
        ),
    log:
        "results/logs/plot_ranking.log",
    conda:
        "../envs/ramtrain.yaml"
    params:
        metrics=list({source.name: None for run in RUNS.values() for source in run.products.metrics}),
    script:
        "../../scripts/plot_ranking.py"


rule plot_benchmark:
    """Draw what the benchmark measured on the disk and on RAM disks."""
    input:
        table=rules.benchmark_io.output.table,
    output:
        picture=report(
            "results/benchmark_io.svg",
            caption="../report/benchmark.rst",
            category="Benchmark",
            labels={"figure": "disk and RAM disks"},
        ),
    log:
        "results/logs/plot_benchmark.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/plot_benchmark.py"
