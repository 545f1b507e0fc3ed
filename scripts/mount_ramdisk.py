"""Give a run its RAM disk and write the lease.

run example: planned for its RAM disk:
  217 MiB  what it writes (the most that run example held)
  128 MiB  margin
run example: RAM disk: tmpfs of 4 GiB at /dev/shm/ramtrain-0/1a2b3c4d/example (the first choice, and it works here)
"""

import logging
import signal
from dataclasses import asdict
from pathlib import Path

from humanfriendly import format_size

from ramtrain import afar, caller, driver
from ramtrain.admission import check_disk, table
from ramtrain.again import changes_since, check_same_project
from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.install import check_install
from ramtrain.lease import MARK, ram_root
from ramtrain.ramdisk import acquire
from ramtrain.script import script
from ramtrain.shelf import home
from ramtrain.sizing import plan_for, read_records
from ramtrain.store import Store


def mount_ramdisk(run: Run, workdir: Path, lease_file: Path) -> None:
    """Acquire the run's RAM disk, if there is room for it, and on the disk for what is to come home."""
    record = home(run.run) / "record.json"
    check_same_project(run, record)
    check_install(run)
    driver.check(run)
    if run.store and (run.store.checkpoints or not caller.job()):  # a node may reach no store, and may need none
        Store(run.store).check()
    if changes := changes_since(run, record):
        logging.info("run %s: is trained again: %s", run.run, changes)
    plan = plan_for(run, workdir, read_records())
    if run.auto_size:
        logging.info("run %s: planned for its RAM disk:\n%s", run.run, "\n".join(table(plan.parts)))
    if not (ram_root(workdir) / run.run / MARK).exists():  # what is in RAM already is to come home in any case
        check_disk(run, workdir, plan.home)
    afar.check_alone(run.run)
    lease = acquire(run, workdir)
    afar.Teller(run.run, lease).tell(None, at_once=True)
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
    # A mount is over in a moment and is not cut short; only while it waits for memory it heeds this signal.
    signal.signal(caller.TOLD_TO_END, lambda *_: None)
    with script(snakemake) as run:
        mount_ramdisk(run, Path.cwd(), Path(snakemake.output.lease))
