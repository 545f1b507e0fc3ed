"""The table of all runs."""


rule summary:
    """One row per run: timings, write volumes, the model's hash."""
    input:
        records=expand("results/{run}/record.json", run=RUNS),
    output:
        table="results/summary.tsv",
    log:
        "results/logs/summary.log",
    conda:
        "../envs/ramtrain.yaml"
    script:
        "../../scripts/summary.py"
