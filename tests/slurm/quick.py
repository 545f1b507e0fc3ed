"""Snakemake, called as on its command line, whose plugin for SLURM asks once a second how its jobs are.

By itself it takes up to three minutes to see that one has ended.
"""

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)

if __name__ == "__main__":
    main(sys.argv[1:])
