"""Describe all runs in the form that others read, results/ro-crate-metadata.json."""

from pathlib import Path

from ramtrain.crate import describe_sweep, workflow_text
from ramtrain.script import messages, workflow_home

if __name__ == "__main__":
    with messages(snakemake, "the crate of all runs", "all"):
        records = [Path(path) for path in snakemake.input.records]
        describe_sweep(records, Path(snakemake.output.crate).parent, workflow_text(workflow_home(snakemake)))
