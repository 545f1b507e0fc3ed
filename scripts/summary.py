"""Gather the records of all runs into one table, a row per run.

run      status  reason  started                        parameters.epochs  timings_s.train  ...
example  done            2026-01-01T12:00:00.000+00:00  12                 52.1             ...
"""

from pathlib import Path

from ramtrain.summary import write_summary

if __name__ == "__main__":
    write_summary(Path(snakemake.output.table), {Path(record).parent.name: {} for record in snakemake.input.records})
