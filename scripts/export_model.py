"""Bring a run's model home, verified.

run example: exported 4 model files and 3 artifacts of 57.1 MiB to results/example, read back and compared
"""

import logging
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.config import Run
from ramtrain.durable import sync_tree
from ramtrain.export import export_model, home, metrics_of
from ramtrain.lease import Lease, current
from ramtrain.record import Steps
from ramtrain.script import script
from ramtrain.staging import Stage, current_stage
from ramtrain.supervise import Training

# What the parameters of each training were. Snakemake does not sync it; an export without it, after a power cut, would
# pass for that of any parameters.
SNAKEMAKE_NOTES = Path(".snakemake/metadata")


def export(run: Run, lease_file: Path, stage_file: Path, train_file: Path, export_file: Path) -> None:
    """Export, and keep all that the steps so far have left for the record."""
    lease, training = current(Lease.read(lease_file)), Training.read(train_file)
    stage = current_stage(lease) or Stage.read(stage_file)  # a training that starts anew stages anew
    exported = export_model(run.run, run.products, lease, stage)
    sync_tree(SNAKEMAKE_NOTES)
    metrics = metrics_of(run.run, run.products, lease, stage)
    Steps(lease, stage, training, exported, metrics).write(export_file)
    size_bytes = sum(file.bytes for file in (*exported.model, *exported.artifacts))
    logging.info(
        "run %s: exported %s%s of %s to %s, read back and compared",
        run.run,
        pluralize(len(exported.model), "model file"),
        f" and {pluralize(len(exported.artifacts), 'artifact')}" if exported.artifacts else "",
        format_size(size_bytes, binary=True),
        home(run.run),
    )


if __name__ == "__main__":
    with script(snakemake) as run:
        export(
            run,
            Path(snakemake.input.lease),
            Path(snakemake.input.stage),
            Path(snakemake.input.train),
            Path(snakemake.output.export),
        )
