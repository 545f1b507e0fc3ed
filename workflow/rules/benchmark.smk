"""This disk against this RAM disk, and a run without a RAM disk against the same run with one."""


rule benchmark_io:
    """Measure both; nothing else runs meanwhile."""
    output:
        table=report(
            "results/benchmark_io.tsv",
            caption="../report/benchmark_table.rst",
            category="Benchmark",
            labels={"figure": "table"},
        ),
        baseline="results/benchmark_io.json",
    log:
        "results/logs/benchmark_io.log",
    priority: 6  # before any training of the same call: the baseline is to stand in their records
    conda:
        "../envs/ramtrain.yaml"
    threads: CORES
    resources:
        **({"mem_mb": cluster.job_mb(BENCHMARK_RUN)} if SENDS and BENCHMARK_RUN else {}),
        ramdisk_mb=BENCHMARK_RUN.ramdisk_mb if BENCHMARK_RUN else 0,
        gpu=(BENCHMARK_RUN.gpus or 0) if BENCHMARK_RUN else 0,
    params:
        pairs=lambda wildcards: BENCHMARK_RUN and config["benchmark"]["pairs"],
        training=lambda wildcards: BENCHMARK_RUN and BENCHMARK_RUN.training,
    script:
        "../../scripts/benchmark_io.py"
