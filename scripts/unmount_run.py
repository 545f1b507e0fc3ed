"""Release a run's RAM disk, once its model is at home, and write the run's record.

run example: done in 58.21 seconds. The model is in results/example/model, 4 files of 56.3 MiB, verified; ...
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ramtrain import afar
from ramtrain.again import write_config
from ramtrain.baseline import BASELINE, read_baseline
from ramtrain.clock import stamp
from ramtrain.config import Run
from ramtrain.crate import CRATE, describe_run, workflow_text
from ramtrain.endurance import add_to_total
from ramtrain.errors import RamTrainError
from ramtrain.export import check_home
from ramtrain.install import install
from ramtrain.ramdisk import release
from ramtrain.record import Steps, compose, in_brief, write_record
from ramtrain.script import script, workflow_home
from ramtrain.shelf import RESULTS, close, home
from ramtrain.tracker import log_run


def unmount_run(run: Run, export_file: Path, record_file: Path, schema: Path, workflow: bytes) -> None:
    """Release the RAM disk, provided that what was exported is there, and write the crate and, last, the record.

    Once the RAM is released the record counts, and nothing that goes with it keeps it from being written.
    """
    started, started_at = time.monotonic(), stamp()
    steps = Steps.read(export_file)
    check_home(run.run, steps.lease, steps.export)
    baseline = read_baseline(RESULTS / BASELINE, run.project, run.command)
    close(run.run, steps.training.fingerprint, run.protect.keep_after_success)
    release(steps.lease)
    afar.forget(run.run)
    installed = install(run, steps.export.model)
    record = compose(
        steps,
        run,
        Path.cwd(),
        installed,
        unmount_s=round(time.monotonic() - started, 3),
        unmount={"started": started_at, "ended": stamp()},
        baseline=baseline,
        tbw=run.config["disk"]["tbw"],
    )
    folder = record_file.parent
    _write_beside(run.run, folder / "config.yaml", lambda: write_config(run, folder))
    _write_beside(run.run, folder / CRATE, lambda: describe_run(record, folder, workflow))
    write_record(record_file, record, schema)
    try:
        add_to_total(RESULTS / "endurance.tsv", record)
    except (RamTrainError, OSError, ValueError) as error:
        logging.warning("run %s: it is not in the running total of all runs: %s", run.run, error)
    if uri := run.config["record"]["mlflow_uri"]:
        log_run(record, record_file, run.project.resolve().name, uri)
    logging.info("%s", in_brief(record, home(run.run)))


def _write_beside(run: str, path: Path, write: Callable[[], None]) -> None:
    """Write a file that goes with the record; where that fails, say so, and let no earlier run's stay in its place."""
    try:
        write()
    except Exception as error:  # whatever a library makes of odd data, or a disk that is full
        reason = str(error).splitlines()[0] if str(error) else ""
        why = reason if isinstance(error, OSError) else f"{type(error).__name__}: {reason}"
        logging.warning("run %s: %s could not be written: %s. The run is done all the same.", run, path, why)
        with suppress(OSError):  # a disk that takes no change will not take the record either
            path.unlink()


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
