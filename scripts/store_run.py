"""Put a run that has ended into the store: its model, its artifacts, its record.

run example: in s3://bucket/trainings/example/20260101T120000.000Z, 9 files of 57.1 MiB, read back and compared
"""

import logging
from pathlib import Path

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain import caller
from ramtrain.archive import store_run
from ramtrain.config import Run, load_runs
from ramtrain.durable import write_json
from ramtrain.errors import RamTrainError
from ramtrain.script import messages, workflow_home
from ramtrain.shelf import home
from ramtrain.store import Store


def store(run: Run, stored_file: Path) -> None:
    """Store the run, and note where it is."""
    try:
        stored = store_run(run, Store(run.store))
    except RamTrainError as error:
        raise RamTrainError(
            f"run {run.run}: {error}\nIts model and its record are at home, in {home(run.run)}. When the cause is "
            f"mended, type `{caller.command('train')}`: only the upload is repeated."
        ) from error
    write_json(stored_file, stored)
    files, size = pluralize(stored["files"], "file"), format_size(stored["bytes"], binary=True)
    logging.info("run %s: in %s, %s of %s, read back and compared", run.run, stored["url"], files, size)


if __name__ == "__main__":
    name = snakemake.wildcards.run
    with messages(snakemake, f"run {name}", "train"):
        runs = load_runs(snakemake.config, workflow_home(snakemake), name)
        store(runs[name], Path(snakemake.output.stored))
