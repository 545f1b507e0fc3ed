"""python -m ramtrain: what this user's runs hold in RAM and what a power cut would cost; whether a RAM disk pays; what
differs between two runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ramtrain import caller
from ramtrain.advice import advise
from ramtrain.archive import fetch_run
from ramtrain.baseline import BASELINE, read_baseline
from ramtrain.check import as_text as as_plan
from ramtrain.check import check, read_config
from ramtrain.config import Run, complete_config, load_runs, project_of
from ramtrain.errors import RamTrainError
from ramtrain.initial import initialize
from ramtrain.recorded import find_record
from ramtrain.redact import redact_text
from ramtrain.shelf import RESULTS, home
from ramtrain.status import read_status, table
from ramtrain.store import Store, check_library, read_address

# The folder of the workflow, installed with `pip install -e`; its scripts may run where it is not, and are told theirs.
HOME = Path(__file__).resolve().parents[2]


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
    making = commands.add_parser("init", help="a first config for a project, guessed from its files")
    making.add_argument("project", type=Path, help="the folder that you train in")
    making.add_argument("--output", type=Path, help="the config to write; named after the project by default")
    checking = commands.add_parser("check", help="all checks of a config, and the plan; nothing is trained")
    checking.add_argument("--configfile", type=Path, nargs="+", default=[], help="as Snakemake takes it")
    fetching = commands.add_parser("fetch", help="bring home what the store has of runs of which nothing is here")
    fetching.add_argument("runs", nargs="*", metavar="run", help="all runs of the config by default")
    fetching.add_argument("--configfile", type=Path, nargs="+", default=[], help="as Snakemake takes it")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text that the terminal knows
    if arguments.command == "init":
        _initialize(arguments.project, arguments.output)
    elif arguments.command == "check":
        _check(arguments.configfile)
    elif arguments.command == "fetch":
        _fetch(arguments.runs, arguments.configfile)
    elif arguments.command == "status":
        runs = read_status()
        print(json.dumps(runs, indent=2, ensure_ascii=False) if arguments.json else table(runs))
    elif arguments.command == "compare":
        _compare(arguments.A, arguments.B, arguments.json)
    else:
        _advise([home(run) / "record.json" for run in arguments.runs] or sorted(RESULTS.glob("*/record.json")))


def _initialize(project: Path, output: Path | None) -> None:
    try:
        print(redact_text(initialize(project, output, HOME), code=True))
    except RamTrainError as error:
        sys.exit(str(error))


def _check(configfiles: list[Path]) -> None:
    caller.remember(configfiles)
    report = check(configfiles, HOME, Path.cwd())
    print(redact_text(as_plan(report), code=True), flush=True)
    if report.faults:
        sys.exit(redact_text("\n".join(report.faults), code=True))
    print(
        f"Nothing is in the way. To train, type\n  {caller.command('train')}"
        if report.plans
        else "Nothing is to be trained."
    )


def _fetch(names: list[str], configfiles: list[Path]) -> None:
    caller.remember(configfiles)
    try:
        source = ", ".join(map(str, configfiles)) or "config/config.yaml"
        config = complete_config(read_config(configfiles, HOME), HOME, source)
        address, runs = read_address(config["store"]), load_runs(config, HOME)
        if address is None:
            raise RamTrainError(f"{source}: store.url: missing; it says where runs are fetched from.")
        if unknown := [name for name in names if name not in runs]:
            raise RamTrainError(f"{source}: {unknown[0]!r} is no run; the runs are {', '.join(runs)}.")
        check_library(address)
        store = Store(address)
        found = False
        for name in names or runs:
            is_here, what = _fetch_run(runs[name], store)
            print(f"run {name}: {redact_text(what, code=True)}", flush=True)
            found |= is_here
    except RamTrainError as error:
        sys.exit(redact_text(str(error), code=True))
    if not found:
        sys.exit(f"Nothing was fetched. Is {address.url} the right address, and the project's path the same?")
    print(f"To go on, type\n  {caller.command('train')}")


def _fetch_run(run: Run, store: Store) -> tuple[bool, str]:
    try:
        return fetch_run(run, store, Path.cwd())
    except OSError as error:
        raise RamTrainError(f"run {run.run}: cannot come home to {home(run.run)}: {error}") from error


def _compare(a: str, b: str, as_json: bool) -> None:
    # NumPy, for the tensors, takes as long to import as all else together; no other command needs it.
    from ramtrain.compare import compare
    from ramtrain.compared import as_dict, as_text

    try:
        comparison = compare(find_record(a), find_record(b))
    except (RamTrainError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
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
