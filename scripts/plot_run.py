"""Draw a run: its time line, and where its time went.

results/example/timeline.svg, results/example/timings.svg
"""

from pathlib import Path

from ramtrain.pictures import plot_timeline, plot_timings, read_record, read_series
from ramtrain.script import messages


def plot_run(record_file: Path, timeline: Path, timings: Path) -> None:
    """Draw both from the record and the samples that lie beside it; a record of an older version has none."""
    record = read_record(record_file)
    plot_timeline(record, read_series(record_file.with_name("series.tsv")), timeline)
    plot_timings(record, timings)


if __name__ == "__main__":
    with messages(snakemake, f"the pictures of run {snakemake.wildcards.run}", "all"):
        plot_run(Path(snakemake.input.record), Path(snakemake.output.timeline), Path(snakemake.output.timings))
