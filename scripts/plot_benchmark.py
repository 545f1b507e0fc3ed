"""Draw the benchmark: the disk beside RAM disks, and a pair of whole runs, results/benchmark_io.svg."""

from pathlib import Path

from ramtrain.pictures import plot_benchmark, read_benchmark
from ramtrain.script import messages

if __name__ == "__main__":
    with messages(snakemake, "the picture of the benchmark", "all"):
        plot_benchmark(read_benchmark(Path(snakemake.input.table)), Path(snakemake.output.picture))
