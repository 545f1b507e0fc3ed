"""Give a run its RAM disk and write the lease.

run example: RAM disk: tmpfs of 4 GiB at /dev/shm/ramtrain-0/1a2b3c4d/example (the first choice, and it works here)
"""

import logging
from dataclasses import asdict
from pathlib import Path

from humanfriendly import format_size

from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.ramdisk import acquire
from ramtrain.script import script


def mount_ramdisk(run: Run, workdir: Path, lease_file: Path) -> None:
    """Acquire the run's RAM disk."""
    lease = acquire(run, workdir)
    write_json(lease_file, asdict(lease))
    logging.info(
        "run %s: RAM disk: %s of %s at %s (%s)",
        run.run,
        lease.backend,
        format_size(lease.size_bytes, binary=True),
        lease.folder,
        lease.why,
    )


if __name__ == "__main__":
    with script(snakemake) as run:
        mount_ramdisk(run, Path.cwd(), Path(snakemake.output.lease))
