"""python -m ramtrain: what this user's runs hold in RAM and what a power cut would cost; whether a RAM disk pays."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ramtrain.advice import advise
from ramtrain.baseline import BASELINE, read_baseline
from ramtrain.config import project_of
from ramtrain.shelf import RESULTS, home
from ramtrain.status import read_status, table


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m ramtrain", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="every RAM disk of yours, and how safe what it holds is")
    status.add_argument("--json", action="store_true", help="for machines; sizes in bytes, times in seconds")
    advice = commands.add_parser("advise", help="whether a RAM disk pays for runs that have ended, from their records")
    advice.add_argument("runs", nargs="*", metavar="run", help="all runs in results by default")
    arguments = parser.parse_args()
    if arguments.command == "status":
        runs = read_status()
        print(json.dumps(runs, indent=2, ensure_ascii=False) if arguments.json else table(runs))
    else:
        _advise([home(run) / "record.json" for run in arguments.runs] or sorted(RESULTS.glob("*/record.json")))


def _advise(records: list[Path]) -> None:
    if not records:
        sys.exit(f"no run has ended yet in {RESULTS.absolute()}")
    for path in records:
        try:
            print(*advise(_with_baseline(json.loads(path.read_text(encoding="utf-8")))), sep="\n")
        except OSError as error:
            sys.exit(f"{path}: {error.strerror}; runs that have ended have one")
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{path}: is no record of this version of RamTrain ({error!r})")


def _with_baseline(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with the baseline that a benchmark has left since, where it has none of its own."""
    if record["writes"]["baseline"] is None:
        baseline = read_baseline(RESULTS / BASELINE, *project_of(record["config"]))
        record["writes"]["baseline"] = asdict(baseline) if baseline else None
    return record


if __name__ == "__main__":
    main()
