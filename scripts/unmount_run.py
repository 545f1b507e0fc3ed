"""Release a run's RAM disk, once its model is at home, and write the run's record.

run example: done in 58.21 seconds. The model is in results/example/model, 4 files of 56.3 MiB, verified; ...
"""

import logging
import time
from pathlib import Path

from ramtrain.again import write_config
from ramtrain.baseline import BASELINE, read_baseline
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.crate import describe_run, workflow_text
from ramtrain.endurance import add_to_total
from ramtrain.errors import RamTrainError
from ramtrain.export import check_home
from ramtrain.ramdisk import release
from ramtrain.record import Steps, compose, in_brief, write_record
from ramtrain.script import script, workflow_home
from ramtrain.shelf import RESULTS, close, home
from ramtrain.tracker import log_run


def unmount_run(run: Run, export_file: Path, record_file: Path, schema: Path, workflow: bytes) -> None:
    """Release the RAM disk, provided that what was exported is there, and write the crate and, last, the record."""
    started, started_at = time.monotonic(), stamp()
    steps = Steps.read(export_file)
    check_home(run.run, steps.lease, steps.export)
    close(run.run, steps.training.fingerprint, run.protect.keep_after_success)
    release(steps.lease)
    record = compose(
        steps,
        run,
        Path.cwd(),
        unmount_s=round(time.monotonic() - started, 3),
        unmount={"started": started_at, "ended": stamp()},
        baseline=read_baseline(RESULTS / BASELINE, run.project, run.command),
        tbw=run.config["disk"]["tbw"],
    )
    write_config(run, home(run.run))
    describe_run(record, record_file.parent, workflow)
    write_record(record_file, record, schema)
    try:
        add_to_total(RESULTS / "endurance.tsv", record)
    except RamTrainError as error:
        logging.warning("run %s: %s", run.run, error)
    if uri := run.config["record"]["mlflow_uri"]:
        log_run(record, record_file, run.project.resolve().name, uri)
    logging.info("%s", in_brief(record, home(run.run)))


if __name__ == "__main__":
    with script(snakemake) as run:
        checkout = workflow_home(snakemake)
        unmount_run(
            run,
            Path(snakemake.input.export),
            Path(snakemake.output.record),
            checkout / "workflow/schemas/record.schema.yaml",
            workflow_text(checkout),
        )
