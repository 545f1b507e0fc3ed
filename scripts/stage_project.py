"""Stage a run's project: overlay, copy or none.

run example: staging: overlay (the first choice, and it works here)
"""

import logging
from dataclasses import asdict
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.ramdisk import Lease
from ramtrain.script import script
from ramtrain.staging import stage_project


def stage(run: Run, lease_file: Path, stage_file: Path) -> None:
    """Stage the project on the leased RAM disk."""
    staged = stage_project(run, Lease.read(lease_file))
    write_json(stage_file, asdict(staged))
    size = format_size(staged.bytes, binary=True)
    copied = f", {pluralize(staged.files, 'file')} of {size} copied" if staged.files else ""
    logging.info("run %s: staging: %s (%s)%s", run.run, staged.method, staged.why, copied)


if __name__ == "__main__":
    with script(snakemake) as run:
        stage(run, Path(snakemake.input.lease), Path(snakemake.output.stage))
