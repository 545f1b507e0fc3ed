"""Draw the table of the runs: what they wrote to the disk and how long they took, results/sweep.svg."""

from pathlib import Path

from ramtrain.pictures import plot_sweep, read_summary
from ramtrain.script import messages

if __name__ == "__main__":
    with messages(snakemake, "the picture of the runs", "all"):
        plot_sweep(read_summary(Path(snakemake.input.table)), Path(snakemake.output.picture))
