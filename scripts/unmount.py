"""Bring home what earlier runs left in RAM, and release it.

run example: its newest checkpoint, output/x/best_model_64.pth, 1 file of 54.3 MiB: results/example/checkpoints/...
"""

import logging
import sys
from pathlib import Path

from ramtrain.errors import RamTrainError
from ramtrain.ramdisk import release_half
from ramtrain.rescue import halves, leftovers, rescue, row
from ramtrain.script import log_to


def unmount(workdir: Path, discard: bool) -> bool:
    """Rescue every run, one after the other; return whether all went well."""
    leases, well = list(leftovers(workdir)), True
    if not leases:
        logging.info("No run of %s holds a RAM disk.", workdir)
    for lease in leases:
        try:
            for saved in rescue(lease, discard):
                logging.info("%s", row(lease.run, saved))
        except (RamTrainError, OSError) as error:
            logging.error("%s\nIts RAM disk stays at %s.", error, lease.folder)
            well = False
    for folder in halves(workdir):
        try:
            release_half(folder)
            logging.info("%s, which was only half there, is gone", folder)
        except (RamTrainError, OSError) as error:
            logging.error("%s", error)
            well = False
    return well


if __name__ == "__main__":
    log_to(Path(snakemake.log[0]))
    if not unmount(Path.cwd(), discard=snakemake.config.get("discard") in (True, "true")):
        sys.exit(1)
