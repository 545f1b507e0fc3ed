"""Bring home what earlier runs left in RAM, and release it.

run example: brought home and verified: 7 files of 217.9 MiB in results/example/rescued-20260101T120000; RAM released
"""

import logging
import sys
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.errors import RamTrainError
from ramtrain.rescue import leftovers, rescue
from ramtrain.script import log_to


def unmount(workdir: Path, discard: bool) -> bool:
    """Rescue every run, one after the other; return whether all went well."""
    leases = list(leftovers(workdir))
    if not leases:
        logging.info("No run of %s holds a RAM disk.", workdir)
    well = True
    for lease in leases:
        try:
            done = rescue(lease, discard)
        except (RamTrainError, OSError) as error:
            logging.error("%s\nIts RAM disk stays at %s.", error, lease.folder)
            well = False
            continue
        what = f"{pluralize(done.files, 'file')} of {format_size(done.bytes, binary=True)}" + (
            f" in {done.folder}" if done.folder else ""
        )
        logging.info("run %s: %s%s; RAM released", done.run, done.note, f": {what}" if done.files else "")
    return well


if __name__ == "__main__":
    log_to(Path(snakemake.log[0]))
    if not unmount(Path.cwd(), discard=snakemake.config["discard"] in (True, "true")):
        sys.exit(1)
