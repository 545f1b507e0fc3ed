"""Whether a config's runs could be trained here and now, and how: all checks of a training, and nothing of it done."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humanfriendly import format_size, format_timespan
from humanfriendly.text import pluralize

from ramtrain import devices, driver, ramdisk, shelf, staging
from ramtrain.admission import Line, Offer, cells, check_disk, room_on_disk
from ramtrain.again import changes_since, check_same_project
from ramtrain.columns import aligned
from ramtrain.config import Run, benchmark_run, check_project, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.fingerprint import fingerprint
from ramtrain.install import check_install
from ramtrain.lease import MARK, SHM, Lease, ram_root
from ramtrain.listing import Listing, list_folder
from ramtrain.packages import is_python
from ramtrain.ramdisk import check_root
from ramtrain.redact import redact_arguments
from ramtrain.resume import RULES, belongs
from ramtrain.schema import load_yaml
from ramtrain.sizing import Plan, plans_for, read_records, sized
from ramtrain.staging import Begun
from ramtrain.store import Address, Store, check_library, read_address
from ramtrain.tracker import check_tracker
from ramtrain.view import matcher

_MOST_SHOWN = 3
_MOST_NAMES = 10
_SHELLS = ("bash", "sh", "dash")
_SCRIPT = re.compile(r"[^-].*\.(py|sh)", re.DOTALL)

Row = tuple[str, str, str]


@dataclass
class Checked:
    """A run that was looked at: the plan for it, rows of what, how and why, and what is in the way."""

    run: Run
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All that was looked at: the first runs in full, the others in brief; `faults` are what is in the way."""

    plans: list[Checked]
    others: list[str]
    trained: list[str]
    faults: list[str]


@contextlib.contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Note what is wrong with one part, so that the others are looked at all the same."""
    try:
        yield
    except (RamTrainError, OSError) as error:
        if str(error) not in faults:
            faults.append(str(error))


def read_config(files: Sequence[Path], home: Path) -> dict[str, Any]:
    """Read a config as Snakemake does: of several files the later ones are merged over the earlier ones; without any it
    is the example's.

    Raises:
        RamTrainError: a file is missing, no YAML, or no mapping.
    """
    merged: dict[str, Any] = {}
    for file in files or [home / "config/config.yaml"]:
        content = load_yaml(file)
        if not isinstance(content, dict):
            raise RamTrainError(f"{file}: {content!r} where a mapping of keys is expected, such as `project: ...`.")
        _merge(merged, content)
    return merged


def _merge(config: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict):
            inner = config.get(key)
            config[key] = inner if isinstance(inner, dict) else {}
            _merge(config[key], value)
        else:
            config[key] = value


def check(files: Sequence[Path], home: Path, workdir: Path) -> Report:
    """Check all that a training with this config needs; nothing is mounted or left behind.

    Args:
        files: the config, as `--configfile` takes it.
        home: the folder of the workflow.
    """
    report = Report([], [], [], [])
    with noted(report.faults):
        source = ", ".join(map(str, files)) or "config/config.yaml"
        config = complete_config(read_config(files, home), home, source)
        with noted(report.faults):
            check_root(ram_root(workdir))
        with noted(report.faults):
            check_tracker(config["record"]["mlflow_uri"])
        runs = load_runs(config, home)
        in_store: list[str] = []
        with noted(in_store):
            _check_store(read_address(config["store"]))
        with noted(report.faults):
            benchmark_run(config, runs)
        with noted(report.faults):
            _check_runs(runs.values(), workdir, report)
        for checked in report.plans:
            checked.faults += in_store
        report.faults += in_store
    return report


def _check_store(address: Address | None) -> None:
    """Check that the store can be used, if there is to be one."""
    if address:
        check_library(address)
        Store(address).check()


def _check_runs(runs: Iterable[Run], workdir: Path, report: Report) -> None:
    waiting = []
    for run in runs:
        if _is_trained(run):
            report.trained.append(run.run)
        else:
            waiting.append(run)
    listings: dict[Path, Listing] = {}
    alike: set[object] = set()
    for run, plan in plans_for(waiting, workdir, read_records()):
        run = sized(run, plan)
        if len(report.plans) < _MOST_SHOWN:
            if run.project not in listings:
                listings[run.project] = list_folder(run.project)
            report.plans.append(_look_at(run, plan, workdir, listings[run.project]))
            faults = report.plans[-1].faults
        else:
            report.others.append(run.run)
            faults = _faults_in_brief(run, workdir, alike)
        report.faults += [fault for fault in faults if fault not in report.faults]


def _is_trained(run: Run) -> bool:
    """Whether the run's model is at home, and nothing of its training was changed since."""
    record = shelf.home(run.run) / "record.json"
    return record.exists() and changes_since(run, record) is None


def _faults_in_brief(run: Run, workdir: Path, alike: set[object]) -> list[str]:
    """Return what is in the way of a run; what several have in common is looked at once."""
    faults: list[str] = []
    place = str(run.project)
    with noted(faults):
        check_same_project(run, shelf.home(run.run) / "record.json")
    program = ("program", place, run.arguments(ram=place)[0], run.variables(ram=place).get("PATH"))
    if program not in alike:
        with noted(faults):
            _check_command(run)
    room = ("room", run.size_bytes, run.least_bytes, run.backend, run.ramdisk_path)
    if room not in alike:
        with noted(faults):
            ramdisk.foresee(run, workdir)
    given = ("devices", run.gpus, run.devices)
    if given not in alike:
        with noted(faults):
            devices.count([run], ())
    alike |= {program, room, given}
    return faults


def _check_command(run: Run) -> None:
    """Check the project, and that the script is there that the command gives to an interpreter before any options.

    Raises:
        RamTrainError: something is missing.
    """
    check_project(run)
    program, first, *_ = (*run.arguments(ram=str(run.project)), "")
    is_interpreter = is_python(Path(program)) or Path(program).name in _SHELLS
    is_script = is_interpreter and _SCRIPT.fullmatch(first)
    if is_script and not (run.project / first).exists():
        raise RamTrainError(f"project.command: {first}: no such file in {run.project}, where the command is started.")


def _look_at(run: Run, plan: Plan, workdir: Path, listing: Listing) -> Checked:
    """Look at one run in full.

    Args:
        listing: what lies in its project.
    """
    checked = Checked(run)
    faults, rows = checked.faults, checked.rows
    lease, offer, method, why = None, None, "", ""
    with noted(faults):
        check_same_project(run, shelf.home(run.run) / "record.json")
    with noted(faults):
        check_install(run)
    with noted(faults):
        _check_command(run)
        driver.check(run)
    with noted(faults):
        lease, offer = ramdisk.foresee(run, workdir)
    folder = Path(lease.folder) if lease else ram_root(workdir) / run.run
    with noted(faults):
        check_disk(run, workdir, plan.home)
    if run.project.is_dir():
        with noted(faults):
            method, why = _foresee_staging(run, lease, folder, workdir)
    rows += _rows_of_command(run, method, folder)
    rows += _rows_of_memory(run, plan, lease, offer)
    rows += [("disk", "room for what comes home", "" if plan.home else "its size is not known before a first run")]
    rows += _calculation(room_on_disk(workdir, plan.home))
    with noted(faults):
        rows.append(_row_of_devices(run))
    rows += [("staging", method, why)] if method else []
    rows += _rows_of_globs(run, listing)
    rows.append(_row_of_protection(run))
    with noted(faults):
        rows.append(_row_of_resume(run, lease))
    return checked


def _foresee_staging(run: Run, lease: Lease | None, folder: Path, workdir: Path) -> tuple[str, str]:
    """Return the method of staging, and why."""
    if lease and folder.is_dir() and (staged := staging.current_stage(lease)):
        return staged.method, "as an earlier attempt left it"
    is_elsewhere = lease is not None and lease.backend in ("path", "disk")
    return staging.foresee(run, folder, (run.ramdisk_path or workdir) if is_elsewhere else SHM)


def _rows_of_command(run: Run, method: str, folder: Path) -> Iterator[Row]:
    ram = {"copy": f"{folder}/project", "none": f"{folder}/out"}.get(method, str(run.project))
    argv = run.arguments(ram=ram)
    program = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=run.variables(ram=ram).get("PATH"))
    found = str(run.project / program) if program else "not found"
    name = run.config["project"]["trainer"]
    yield "project", str(run.project), ""
    yield "command", shlex.join(redact_arguments(argv)), ""
    yield "program", found, "RamTrain's own Python" if found == sys.executable else ""
    yield "trainer", run.trainer.name, name if name.endswith(".yaml") else f"config/trainers/{name}.yaml"
    if run.install_to:
        yield "install to", str(run.install_to), ""
    if run.store:
        yield "store", run.store.url, "with durable checkpoints" if run.store.checkpoints else "runs that have ended"


def _rows_of_memory(run: Run, plan: Plan, lease: Lease | None, offer: Offer | None) -> Iterator[Row]:
    yield "size", _size(run.size_bytes), "" if run.auto_size else run.size_from
    if run.auto_size:
        yield from _calculation(plan.parts)
    if lease:
        yield "RAM disk", lease.backend, lease.why
        yield "", f"in {lease.folder}", ""
    if offer:
        yield "memory", f"{_size(offer.fits_bytes)} can be promised", ""
        yield from _calculation(offer.tightest.lines)
        if not offer.fits:
            yield "", "it would wait", offer.waiting_for()


def _calculation(lines: Sequence[Line]) -> Iterator[Row]:
    yield from (("", amount, what) for amount, what in cells(lines))


def _row_of_devices(run: Run) -> Row:
    if not run.gpus:
        return "devices", "none" if run.gpus == 0 else "those that it finds", "train.gpus"
    allowed = devices.allowed(run, devices.ask_machine())
    return "devices", f"{run.gpus} of {len(allowed)}", ", ".join(device.spelling for device in allowed)


def _rows_of_globs(run: Run, listing: Listing) -> Iterator[Row]:
    for name in ("model", "checkpoints", "artifacts", "prunable"):
        for number, pattern in enumerate(dict.fromkeys(getattr(run.products, name))):
            yield "" if number else name, pattern, _matches(pattern, listing)
    for metric in run.products.metrics:
        where = "in its output" if metric.kind == "log" else _matches(metric.where, listing)
        yield "metric", f"{metric.name}, {metric.kind}", f"{where}; {metric}, {metric.goal} is best"


def _row_of_protection(run: Run) -> Row:
    bound_s = run.protect.max_loss_s
    if bound_s is None:
        return "power cut", "costs all of it", "protect.max_loss: never"
    if not run.products.checkpoints:
        return "power cut", "costs all of it", "no checkpoints are named, project.checkpoints"
    return "power cut", f"costs at most {format_timespan(bound_s)}", "protect.max_loss, or its own spacing"


def _row_of_resume(run: Run, lease: Lease | None) -> Row:
    """Say what the training would go on from, as far as that is known without hashing the project's files."""
    if run.resume not in RULES:
        return "goes on from", run.resume, "as named in the call"
    mine, left = fingerprint(run, None), []
    if lease and (Path(lease.state) / MARK).exists() and (begun := Begun.read(lease)):
        left.append((f"what is in RAM, {lease.folder}", begun.fingerprint))
    if shelf.shelf(run.run).is_dir():
        left += [(str(one.folder), one.fingerprint) for one in shelf.durable_checkpoints(run.run)]
    fitting = [what for what, other in left if belongs(run, mine, other)]
    if fitting:
        return "goes on from", fitting[0], "if the project's files are as they were"
    if left:
        what, other = left[0]
        changes = ", ".join(mine.changes(other)) or f"resume: {run.resume}"
        return "goes on from", "nothing: it starts anew", f"{what} is another training's ({changes})"
    return "goes on from", "nothing: it starts at its beginning", "nothing is there"


def _matches(pattern: str, listing: Listing) -> str:
    """Say what a glob matches today."""
    fits = matcher([pattern]).fullmatch
    found = [path for path in (*listing.files, *listing.folders) if fits(path)]
    far = "" if listing.is_whole else f" among the first {len(listing.files) + len(listing.folders):,} names"
    if not found:
        return f"matches nothing yet{far}"
    return f"{pluralize(len(found), 'match', 'matches')} today{far}, such as {found[0]}"


def as_text(report: Report) -> str:
    """Return the plans, one run below the other."""
    lines = []
    for checked in report.plans:
        lines.append(f"run {checked.run.run}: " + ("cannot be trained" if checked.faults else "can be trained"))
        lines += aligned(checked.rows)
    if report.others:
        lines.append(f"and {pluralize(len(report.others), 'more run')}, in brief: {_some(report.others)}")
    if report.trained:
        lines.append(f"trained already, nothing of it was changed: {_some(report.trained)}")
    if any("matches nothing yet" in why for checked in report.plans for _, _, why in checked.rows):
        lines.append("Globs that match nothing yet are no fault before a first training.")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _size(size_bytes: int) -> str:
    return format_size(size_bytes, binary=True)
