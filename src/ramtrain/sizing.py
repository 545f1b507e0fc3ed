"""How large a run's RAM disk is to be, found from what is known of it: its parts, how much each is, and from where.

The best that is known counts: the RAM disk that an earlier attempt left; the most that earlier runs of the same project
and command held; what the trainer's adapter tells; else all that the reserve leaves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from humanfriendly import format_size

from ramtrain import caller
from ramtrain.admission import Line, room_bytes
from ramtrain.config import Run, project_of
from ramtrain.errors import RamTrainError
from ramtrain.inputs import own_places
from ramtrain.lease import MARK, SHM, Lease, is_full, ram_root, used_bytes
from ramtrain.redact import redact_arguments
from ramtrain.shelf import RESULTS, durable_checkpoints, shelf
from ramtrain.tree import scan
from ramtrain.view import View, matcher

NOTHING_KNOWN = "all that guard.reserve leaves, since nothing is known of it yet"
_MARGIN = 0.25
# What a RAM disk holds is measured a few times a second; what a small trainer held in between is within this.
_LEAST_MARGIN_BYTES = 128 << 20
# Of a training of which nothing is known no less can be said to fit.
_LEAST_UNKNOWN_BYTES = 1 << 30
_MIB_BYTES = 1 << 20
_PAGE_BYTES = 4096
_MOST_RECORDS = 20


@dataclass(frozen=True)
class Plan:
    """What a RAM disk is to hold: its size is the sum of `parts`, `least_bytes` what it cannot do without.

    `home` is what is known of what will come to the disk: the model, and durable checkpoints.
    """

    parts: tuple[Line, ...]
    least_bytes: int
    home: tuple[Line, ...]

    @property
    def size_bytes(self) -> int:
        """The size, in whole MiB."""
        return _whole_mib(sum(part.amount_bytes for part in self.parts))

    @property
    def source(self) -> str:
        """Where the size is from, in a line."""
        return "; ".join(f"{part.what}: {part.source}" if part.source else part.what for part in self.parts)


def sized(run: Run, plan: Plan, planned_mb: int | None = None) -> Run:
    """Return the run with its size, where the config leaves that open.

    Args:
        planned_mb: what the call has planned for it when it began, its resource `ramdisk_mb`: another run's record, or
            what is free by now, does not change that.
    """
    if not run.auto_size:
        return run
    size_bytes = plan.size_bytes
    if planned_mb is not None and planned_mb << 20 != caller.budget_bytes() and run.backend != "disk":
        size_bytes = planned_mb << 20
    return replace(
        run, size_bytes=size_bytes, least_bytes=min(_whole_mib(plan.least_bytes), size_bytes), size_from=plan.source
    )


def all_sized(runs: Mapping[str, Run], workdir: Path, planned_mb: int | None = None) -> dict[str, Run]:
    """Return the runs with their sizes, where the config leaves those open; `planned_mb` as in `sized`."""
    left_open = [run for run in runs.values() if run.auto_size]
    plans = plans_for(left_open, workdir, read_records()) if left_open else ()
    return {**runs, **{run.run: sized(run, plan, planned_mb) for run, plan in plans}}


def plan_for(run: Run, workdir: Path, past: Sequence[dict[str, Any]]) -> Plan:
    """Find the size of a run's RAM disk, and what will come home.

    Args:
        past: as `read_records` returns them.
    """
    return _plan(run, workdir, _of_the_same(run, past), {})


def plans_for(runs: Iterable[Run], workdir: Path, past: Sequence[dict[str, Any]]) -> Iterator[tuple[Run, Plan]]:
    """Find the sizes of many runs; what they have in common is looked up once."""
    alike: dict[tuple[Path, tuple[str, ...]], dict[str, dict[str, Any]]] = {}
    known: dict[object, Any] = {}
    for run in runs:
        of = run.project, run.command
        if of not in alike:
            alike[of] = _of_the_same(run, past)
        yield run, _plan(run, workdir, alike[of], known)


def _plan(run: Run, workdir: Path, records: Mapping[str, dict[str, Any]], known: dict[object, Any]) -> Plan:
    """Find the size of a run's RAM disk; `known` takes what was found out and holds for other runs as well."""
    home = tuple(_comes_home(run, records, known))
    if not run.auto_size:
        return Plan((Line(run.size_bytes, "RAM disk", run.size_from),), run.least_bytes, home)
    mark = ram_root(workdir) / run.run / MARK
    there = _there(mark) if mark.exists() else None
    parts, least_bytes = there or _known(run, records, known) or _unknown(run, workdir, known)
    return Plan(tuple(parts), least_bytes, home)


def _there(mark: Path) -> tuple[list[Line], int] | None:
    """Return the size of the RAM disk that an earlier attempt left; twice as much if it was full."""
    try:
        lease = Lease.read(mark)
        held_bytes = used_bytes(lease)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # `acquire` speaks of it
    if is_full(held_bytes, lease.size_bytes):
        size = _size(lease.size_bytes)
        least_bytes = int(lease.size_bytes * (1 + _MARGIN))
        return [Line(2 * lease.size_bytes, "RAM disk", f"twice the {size} that were full")], least_bytes
    return [Line(lease.size_bytes, "RAM disk", "it is there already")], int(held_bytes * (1 + _MARGIN))


def _known(run: Run, records: Mapping[str, dict[str, Any]], known: dict[object, Any]) -> tuple[list[Line], int] | None:
    """Return what the run will hold by what earlier runs held, or by what the adapter tells; None if neither does."""
    if records:
        held = {name: _written_bytes(record) for name, record in records.items()}
        most = max(held, key=lambda name: held[name])
        written_bytes, staging = held[most], records[most]["staging"]
        staged = [Line(staging["bytes"], "copied into RAM", f"as in run {most}")] if staging["bytes"] else []
        if run.staging not in ("auto", staging["method"]):
            staged = _staged(run, known)
        margin_bytes = max(int(_MARGIN * written_bytes), _LEAST_MARGIN_BYTES)
        written = Line(written_bytes, "what it writes", f"the most that run {most} held")
        parts = [written, Line(margin_bytes, "margin"), *staged]
        return parts, sum(part.amount_bytes for part in parts) - margin_bytes
    parts = _told_by_adapter(run, known)
    if not parts:
        return None
    parts += _staged(run, known)
    return parts, sum(part.amount_bytes for part in parts)


def _unknown(run: Run, workdir: Path, known: dict[object, Any]) -> tuple[list[Line], int]:
    """Return all that there is; for a second run of the same place, what there was for the first."""
    staged_bytes = sum(part.amount_bytes for part in _staged(run, known))
    least_bytes = staged_bytes + _LEAST_UNKNOWN_BYTES
    if run.backend == "disk":
        return [Line(least_bytes, "RAM disk", "on the disk, where its size is no limit")], least_bytes
    place = _shared_place(run)
    room = _once(known, ("room", place, run.reserve_bytes), lambda: room_bytes(run, workdir, run.reserve_bytes, place))
    return [Line(max(room, least_bytes), "RAM disk", NOTHING_KNOWN)], least_bytes


def _shared_place(run: Run) -> Path | None:
    """Return the file system in memory whose size bounds the RAM disk too; None for a tmpfs of its own."""
    if run.backend == "path":
        return run.ramdisk_path if run.ramdisk_path and run.ramdisk_path.is_dir() else None
    may_mount = os.geteuid() == 0 or run.sudo
    return SHM if run.backend == "shm" or (run.backend == "auto" and not may_mount) else None


def _once(known: dict[object, Any], what: object, find: Callable[[], Any]) -> Any:
    """Return what is known, or find it out."""
    if what not in known:
        known[what] = find()
    return known[what]


def _staged(run: Run, known: dict[object, Any]) -> list[Line]:
    """Return what staging by copy brings into RAM."""
    project = run.project.resolve()
    if run.staging != "copy" or not project.is_dir():
        return []

    def size_bytes() -> int:
        items = scan(project, matcher((*run.exclude, *own_places(project))))
        return sum(item.status.st_size + _PAGE_BYTES for item in items)

    return [Line(_once(known, ("project", project, run.exclude), size_bytes), "the project", "copied into RAM")]


def _told_by_adapter(run: Run, known: dict[object, Any]) -> list[Line]:
    """Return the checkpoints that exist at one time, by a durable checkpoint or else the base model; [] if neither is
    there."""
    need = run.trainer.memory
    if need is None:
        return []
    base_bytes, base = _base_model(run, known)
    checkpoint_bytes, source = _checkpoint(run, known)
    if checkpoint_bytes is None:
        return []
    parts = [Line(need.checkpoints * checkpoint_bytes, f"{need.checkpoints} checkpoints", source)]
    if base_bytes and need.beside:
        beside = f"{need.beside:g} times {base}, {_size(base_bytes)}"
        parts.append(Line(math.ceil(need.beside * base_bytes), "what else it writes", beside))
    return parts


def _checkpoint(run: Run, known: dict[object, Any]) -> tuple[int | None, str]:
    """Return how large a checkpoint is by the largest durable one, or by the adapter; None if it is not known."""
    durable = durable_checkpoints(run.run) if shelf(run.run).is_dir() else []
    if durable:
        largest = max(durable, key=lambda checkpoint: checkpoint.size_bytes)
        return largest.size_bytes, f"each as {largest.folder}"
    need = run.trainer.memory
    base_bytes, base = _base_model(run, known)
    if need is None or not base_bytes:
        return None, ""
    return math.ceil(need.checkpoint * base_bytes), f"each {need.checkpoint:g} times {base}, {_size(base_bytes)}"


def _base_model(run: Run, known: dict[object, Any]) -> tuple[int, str]:
    """Return the size and the name of the largest file that the adapter takes for a base model; 0 if there is none."""
    need = run.trainer.memory
    if need is None or not run.project.is_dir():
        return 0, ""
    sizes = {}
    for name in _once(known, (run.project, need.base), lambda: View([run.project]).glob(need.base)):
        try:
            sizes[name] = (run.project / name).stat().st_size
        except OSError:
            continue  # a link to nothing
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return sizes.get(largest, 0), largest


def _comes_home(run: Run, records: Mapping[str, dict[str, Any]], known: dict[object, Any]) -> Iterator[Line]:
    """Yield what will be written to the disk of the results, as far as its size is known."""
    if run.backend == "disk":
        return
    models = {name: _model_bytes(record) for name, record in records.items()}
    if largest := max(models, key=lambda name: models[name], default=""):
        yield Line(models[largest], "the model", f"as in run {largest}")
    if run.protect.max_loss_s is None:
        return
    sizes = {name: record["checkpoints"]["size_bytes"] or 0 for name, record in records.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    checkpoint_bytes, source = (sizes[largest], f"each as in run {largest}") if largest else _checkpoint(run, known)
    if not checkpoint_bytes:
        return
    count = run.protect.keep + 1
    there_bytes = sum(durable.size_bytes for durable in durable_checkpoints(run.run))
    missing_bytes = max(0, int(count * checkpoint_bytes) - there_bytes)
    yield Line(missing_bytes, f"{count} durable checkpoints (protect.keep, and the next one)", source)


def _written_bytes(record: dict[str, Any]) -> int:
    return max(0, record["ramdisk"]["peak_bytes"] - record["staging"]["bytes"])


def _model_bytes(record: dict[str, Any]) -> int:
    return sum(file["bytes"] for file in record["model"])


def read_records() -> list[dict[str, Any]]:
    """Return the newest records of runs that ended here, whatever they were of; those that can be read."""
    paths = sorted(RESULTS.glob("*/record.json"), key=_changed_s, reverse=True)
    found = []
    for path in paths[:_MOST_RECORDS]:
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return found


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # it is gone by now


def _of_the_same(run: Run, past: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the records of the same project and command, whatever the values in it, by their runs."""
    found = {}
    mine = redact_arguments(run.command)  # a record has no secrets
    for record in past:
        try:
            folder, command = project_of(record["config"])
            same = (folder, redact_arguments(command)) == (run.project, mine)
            if same and _written_bytes(record) and _model_bytes(record) and "size_bytes" in record["checkpoints"]:
                found[record["run"]] = record
        except (KeyError, TypeError, RamTrainError):
            continue  # of another version: nothing to go by
    return found


def _whole_mib(size_bytes: int) -> int:
    return -(-size_bytes // _MIB_BYTES) * _MIB_BYTES


def _size(size_bytes: float) -> str:
    return format_size(size_bytes, binary=True)
