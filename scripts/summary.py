"""Gather the records of all runs into one table, a row per run.

run      status  reason  started                        parameters.epochs  timings_s.train  ...
example  done            2026-01-01T12:00:00.000+00:00  12                 52.1             ...
"""

from pathlib import Path

from ramtrain.config import load_runs
from ramtrain.script import messages, workflow_home
from ramtrain.summary import asked, write_summary

if __name__ == "__main__":
    with messages(snakemake, "the table of the runs", "train"):
        runs = load_runs(snakemake.config, workflow_home(snakemake))
        names = [Path(record).parent.name for record in snakemake.input.records]
        write_summary(Path(snakemake.output.table), asked({name: runs[name] for name in names if name in runs}))
