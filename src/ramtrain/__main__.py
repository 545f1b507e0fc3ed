"""python -m ramtrain status: what this user's runs hold in RAM, and what a power cut would cost them."""

from __future__ import annotations

import argparse
import json

from ramtrain.status import read_status, table


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m ramtrain", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="every RAM disk of yours, and how safe what it holds is")
    status.add_argument("--json", action="store_true", help="for machines; sizes in bytes, times in seconds")
    arguments = parser.parse_args()
    runs = read_status()
    print(json.dumps(runs, indent=2, ensure_ascii=False) if arguments.json else table(runs))


if __name__ == "__main__":
    main()
