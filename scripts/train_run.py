"""Run the trainer on the staged project.

run example: training; its output: tail -f /dev/shm/ramtrain-0/1a2b3c4d/example/train.log
run example: epoch 3/10, step 96, loss 0.41
"""

from dataclasses import asdict
from pathlib import Path

from ramtrain.config import Run
from ramtrain.durable import write_json
from ramtrain.ramdisk import Lease
from ramtrain.script import script
from ramtrain.staging import Stage
from ramtrain.supervise import train


def train_run(run: Run, lease_file: Path, stage_file: Path, train_file: Path) -> None:
    """Train, and note how it went on the RAM disk, where the model is."""
    training = train(run, Lease.read(lease_file), Stage.read(stage_file))
    write_json(train_file, asdict(training))


if __name__ == "__main__":
    with script(snakemake) as run:
        train_run(run, Path(snakemake.input.lease), Path(snakemake.input.stage), Path(snakemake.output.train))
