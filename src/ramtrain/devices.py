"""GPUs: which ones a run may have, and some of them for it alone as long as its trainer runs.

A device that is in use is a lock in the user's folder, held by the process that trains and by its keeper: it is free
when both are gone, and with them the trainer. Whatever a device is called, the lock goes by its UUID, where nvidia-smi
tells that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from humanfriendly.text import concatenate, pluralize

from ramtrain import caller, remedy
from ramtrain.config import Run
from ramtrain.errors import RamTrainError
from ramtrain.lease import user_root
from ramtrain.locks import folder_locked, holder, take, tidy
from ramtrain.system import CommandError, run_command
from ramtrain.waiting import ended_promptly, wait_for

log = logging.getLogger(__name__)

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_BY_BUS = "PCI_BUS_ID"
_NVIDIA_SMI_S = 60.0
# nvidia-smi --list-gpus: a line a GPU, in the order of the PCI bus; below one that is divided, a line a part of it.
_GPU = re.compile(r"GPU [0-9]+: (.+) \(UUID: (.+)\)")
_PART = re.compile(r"\s+MIG .+ \(UUID: (.+)\)")
# What CUDA takes for a device; it does not look at what comes after something else ("Environment Variables" in its
# programming guide).
_SPELLING = re.compile(r"[0-9]+|(GPU|MIG)-.+")


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; `parts` are the UUIDs of its MIG devices."""

    model: str
    uuid: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """The GPUs of this machine, by their index; `why_none` says why none is known."""

    gpus: tuple[Gpu, ...]
    why_none: str


@dataclass(frozen=True)
class Device:
    """A device: as the config or the caller calls it, and its UUID, or the same again where that is not known."""

    spelling: str
    uuid: str


@dataclass(frozen=True)
class Given:
    """The devices that a run has for itself as long as `locks` are open, and the variables that tell the trainer."""

    devices: tuple[Device, ...]
    locks: tuple[int, ...]
    environment: dict[str, str]


def ask_machine() -> Machine:
    """Return the GPUs that nvidia-smi lists."""
    try:
        listed = run_command("nvidia-smi", "--list-gpus", timeout_s=_NVIDIA_SMI_S)
    except CommandError as error:
        return Machine((), f"{error}")
    gpus: list[Gpu] = []
    for line in listed.splitlines():
        if found := _GPU.fullmatch(line):
            gpus.append(Gpu(found[1], found[2], ()))
        elif gpus and (found := _PART.fullmatch(line)):
            last = gpus.pop()
            gpus.append(Gpu(last.model, last.uuid, (*last.parts, found[1])))
    return Machine(tuple(gpus), "" if gpus else "nvidia-smi lists none")


def count(runs: Collection[Run], ended: Collection[str]) -> int:
    """Return how many devices the runs may have together; 0 where none asks for any.

    Args:
        ended: ids of runs that need not be trained; what they may have is no matter.

    Raises:
        RamTrainError: a run asks for more devices than it may have, or a device is not what it is called.
    """
    machine = ask_machine() if any(run.gpus for run in runs) else Machine((), "")
    found: set[str] = set()
    for run in runs:
        if run.gpus:
            try:
                found.update(device.uuid for device in allowed(run, machine))
            except RamTrainError:
                if run.run not in ended:
                    raise
    return len(found)


def allowed(run: Run, machine: Machine) -> list[Device]:
    """Return the devices that the run may have: those of the config, else of the caller's environment, else all.

    Raises:
        RamTrainError: it asks for more, or a device is not what it is called.
    """
    asked = f"run {run.run}: train.gpus: {pluralize(run.gpus or 0, 'device')} wanted"
    if run.devices:
        where, by_bus, spellings = "train.devices", True, run.devices
    elif (visible := os.environ.get(VISIBLE)) is not None:
        where, by_bus, spellings = VISIBLE, os.environ.get(ORDER) == _BY_BUS, tuple(_heeded(visible))
    else:
        where, by_bus, spellings = "nvidia-smi", True, tuple(_whole(machine.gpus))
        if machine.why_none:
            raise RamTrainError(
                f"{asked}, and which ones there are is not known ({machine.why_none}); name them in train.devices, or "
                "leave train.gpus out."
            )
    devices = [Device(spelling, _uuid_of(spelling, machine, where, by_bus)) for spelling in spellings]
    for number, device in enumerate(devices):
        for other in devices[:number]:
            if other.uuid == device.uuid:
                raise RamTrainError(
                    f"{where}: {other.spelling!r} and {device.spelling!r} are the same device; name each of them once."
                )
    if (run.gpus or 0) > len(devices):
        names = f" ({', '.join(spellings)})" if spellings else ""
        raise RamTrainError(
            f"{asked}, and {where} allows {len(devices)}{names}; ask for fewer, or name more in train.devices."
        )
    return devices


def _heeded(visible: str) -> Iterator[str]:
    for spelling in visible.split(","):
        if not _SPELLING.fullmatch(spelling.strip()):
            return
        yield spelling.strip()


def _whole(gpus: Iterable[Gpu]) -> Iterator[str]:
    """Return the UUID of each GPU, of one that is divided those of its parts."""
    for gpu in gpus:
        yield from gpu.parts or (gpu.uuid,)


def _uuid_of(spelling: str, machine: Machine, where: str, by_bus: bool) -> str:
    """Return the device's UUID; what it is called where there is nothing to compare that with.

    Args:
        by_bus: whether an index counts along the PCI bus. Otherwise CUDA begins with the fastest, whichever that is.
    """
    gpus = machine.gpus
    if not gpus:
        return spelling
    known = ", ".join(_whole(gpus))
    if spelling.isdecimal():
        if not by_bus and len({gpu.model for gpu in gpus}) > 1:
            raise RamTrainError(
                f"{where}: which device {spelling!r} is depends on {ORDER}, since those of this machine differ; set it "
                f"to {_BY_BUS}, or name UUIDs. There are {known}."
            )
        found = [gpu.uuid for gpu in gpus[int(spelling) : int(spelling) + 1]]
    else:  # CUDA takes the beginning of a UUID as well
        uuids = [uuid for gpu in gpus for uuid in (gpu.uuid, *gpu.parts)]
        found = [spelling] if spelling in uuids else [uuid for uuid in uuids if uuid.startswith(spelling)]
    if len(found) != 1:
        what = "several devices" if found else "no device"
        raise RamTrainError(f"{where}: {spelling!r} is {what} of this machine; there are {known}.")
    if any(gpu.parts for gpu in gpus if gpu.uuid == found[0]):
        raise RamTrainError(f"{where}: {spelling!r} is divided (MIG); name its parts. There are {known}.")
    return found[0]


@contextlib.contextmanager
def given(run: Run, workdir: str) -> Iterator[Given]:
    """Give the run as many devices as it asks for, for as long as this and all that inherits its locks last.

    Where others of the user's runs have them, they are waited for.

    Raises:
        RamTrainError: it asks for more than it may have, or was told to end while it waited.
    """
    if not run.gpus:
        yield Given((), (), {} if run.gpus is None else {VISIBLE: ""})
        return
    note = json.dumps({"run": run.run, "workdir": workdir})
    what = pluralize(run.gpus, "device")
    taken = None
    try:
        with ended_promptly(run.run, what):  # nvidia-smi may take its time
            machine = ask_machine()
            devices = allowed(run, machine)
            taken = _take(run, devices, note, tell=True)
            if taken is None:
                taken = wait_for(run.run, what, lambda: _take(run, devices, note))
            log.info("run %s: %s", run.run, concatenate([_told(device) for device in taken]))
            if machine.gpus:
                _warn_of_others(run, taken)
        yield Given(tuple(taken), tuple(taken.values()), _environment(run, list(taken)))
    except RamTrainError:
        # One Ctrl-C may come on two ways; the second, from Snakemake, is not to cut off the message of the first.
        signal.signal(caller.TOLD_TO_END, lambda *_: None)
        raise
    finally:
        for descriptor in (taken or {}).values():
            os.close(descriptor)
        with folder_locked(user_root()):
            tidy(user_root())


def _take(run: Run, devices: Sequence[Device], note: str, tell: bool = False) -> dict[Device, int] | None:
    """Lock as many devices as the run asks for, all of them at once; None if there are not as many free ones."""
    taken: dict[Device, int] = {}
    others: dict[str, list[str]] = {}
    root = user_root()
    with folder_locked(root), contextlib.ExitStack() as undo:
        for device in devices:
            descriptor = take(root, _lock_name(device), note)
            if descriptor is None:
                others.setdefault(holder(root, _lock_name(device)), []).append(_told(device))
                continue
            undo.callback(os.close, descriptor)
            taken[device] = descriptor
            if len(taken) == run.gpus:
                undo.pop_all()
                return taken
    if tell:
        log.warning(
            "run %s: waiting for %s: %d of those that it may have %s free. %s. %s",
            run.run,
            pluralize(run.gpus or 0, "device"),
            len(taken),
            "is" if len(taken) == 1 else "are",
            "; ".join(_told_holder(noted, has) for noted, has in others.items()),
            remedy.end_of_wait(),
        )
    return None


def _lock_name(device: Device) -> str:
    return f"device-{hashlib.sha256(device.uuid.encode()).hexdigest()[:16]}"


def _told(device: Device) -> str:
    called = f" ({device.spelling})" if device.spelling != device.uuid else ""
    return f"device {device.uuid}{called}"


def _told_holder(note: str, has: Sequence[str]) -> str:
    noted = json.loads(note)
    return f"run {noted['run']} in {noted['workdir']} has {concatenate(has)}"


def _environment(run: Run, devices: Sequence[Device]) -> dict[str, str]:
    """Return what tells CUDA of the devices: by index if all were named so, as some trainers want it."""
    by_index = all(device.spelling.isdecimal() for device in devices)
    names = [device.spelling if by_index else device.uuid for device in devices]
    # An index in the caller's own variable counts as the caller's order says.
    order = {ORDER: _BY_BUS} if by_index and run.devices else {}
    return {VISIBLE: ",".join(names), **order}


def _warn_of_others(run: Run, devices: Iterable[Device]) -> None:
    """Say which processes are on the devices already: another user's, or a program's of which there is no lock."""
    uuids = {device.uuid for device in devices}
    query = "--query-compute-apps=gpu_uuid,pid,process_name"
    try:
        listed = run_command("nvidia-smi", query, "--format=csv,noheader", timeout_s=_NVIDIA_SMI_S)
    except CommandError as error:
        log.debug("run %s: who else uses its devices is not known: %s", run.run, error)
        return
    for line in listed.splitlines():
        uuid, *process = line.split(", ", 2)
        if uuid in uuids:
            log.warning(
                "run %s: device %s is also used by process %s, which RamTrain knows nothing of",
                run.run,
                uuid,
                " ".join(process),
            )
