"""Draw which runs came to the best models, and the metric against the parameters.

results/ranking.svg, results/parameters.svg
"""

from pathlib import Path

from ramtrain.pictures import read_summary
from ramtrain.ranking import plot_parameters, plot_ranking
from ramtrain.script import messages

if __name__ == "__main__":
    with messages(snakemake, "the ranking of the runs", "all"):
        table = read_summary(Path(snakemake.input.table))
        plot_ranking(table, snakemake.params.metrics, Path(snakemake.output.ranking))
        plot_parameters(table, snakemake.params.metrics, Path(snakemake.output.parameters))
