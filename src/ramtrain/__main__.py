"""python -m ramtrain: what this user's runs hold in RAM and what a power cut would cost; whether a RAM disk pays; what
differs between two runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ramtrain.advice import advise
from ramtrain.baseline import BASELINE, read_baseline
from ramtrain.compare import compare
from ramtrain.compared import as_dict, as_text
from ramtrain.config import project_of
from ramtrain.errors import RamTrainError
from ramtrain.recorded import find_record
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
    comparing = commands.add_parser("compare", help="what differs between two runs that have ended, and their models")
    for side in "AB":
        comparing.add_argument(side, help="a run in results, a folder with a record.json, or a record.json")
    comparing.add_argument("--json", action="store_true", help="for machines; sizes in bytes, times in seconds")
    arguments = parser.parse_args()
    if arguments.command == "status":
        runs = read_status()
        print(json.dumps(runs, indent=2, ensure_ascii=False) if arguments.json else table(runs))
    elif arguments.command == "compare":
        _compare(arguments.A, arguments.B, arguments.json)
    else:
        _advise([home(run) / "record.json" for run in arguments.runs] or sorted(RESULTS.glob("*/record.json")))


def _compare(a: str, b: str, as_json: bool) -> None:
    try:
        comparison = compare(find_record(a), find_record(b))
    except (RamTrainError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    # A file name in a record need not be text that the terminal knows.
    sys.stdout.reconfigure(errors="backslashreplace")
    print(json.dumps(as_dict(comparison), indent=2, ensure_ascii=False) if as_json else as_text(comparison))


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
    """Return the record with the baseline that a benchmark has left since, where it could have one and has none."""
    if record["writes"]["baseline"] is None and not record["protection"]["resumed_from"]:
        baseline = read_baseline(RESULTS / BASELINE, *project_of(record["config"]))
        record["writes"]["baseline"] = asdict(baseline) if baseline else None
    return record


if __name__ == "__main__":
    main()
