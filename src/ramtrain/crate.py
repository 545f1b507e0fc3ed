"""What was done, in the form that others read: Workflow Run RO-Crate, profile Provenance Run Crate 0.5.

A crate is made of a run's record and of what came home beside it, with neither the project nor Snakemake at hand. What
the record does not say is left out. What the words mean: https://w3id.org/ro/wfrun/provenance/0.5
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mimetypes
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ramtrain.durable import as_json, write_bytes, write_json

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

CRATE = "ro-crate-metadata.json"
WORKFLOW = "workflow.smk"
RECORD = "record.json"
MOST_INPUTS = 1000

_VERSION = "1.1"  # of RO-Crate: the one that the profile is written for
_WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    _WORKFLOW_CRATE: "Workflow RO-Crate",
}
# Words that RO-Crate 1.1 does not have.
_TERMS = {
    "resourceUsage": "https://w3id.org/ro/terms/workflow-run#resourceUsage",
    "sha256": "http://schema.org/sha256",
}
_NO_LICENCE = "RamTrain knows neither the licence of the project nor that of what was trained from it."
_FORMATS = {".log": "text/plain", ".smk": "text/plain", ".diff": "text/x-diff", ".yaml": "application/yaml"}
_JSON_LD = "application/ld+json"
_BYTE, _SECOND = ("https://qudt.org/vocab/unit/BYTE", "byte"), ("https://qudt.org/vocab/unit/SEC", "second")

_STEPS = {
    "mount": "Give the run a RAM disk",
    "stage": "Let the trainer see its project, with all writes going to RAM",
    "train": "Run the trainer, and bring its checkpoints home",
    "export": "Bring the model, the artifacts and the log home; read them back from the disk and compare",
    "unmount": "Release the RAM disk and write the record",
}
# What lies beside the record, where there is such a file.
_LOGS = {"train.log": "The trainer's output", "series.tsv": "What happened while it trained, a line a second"}
_COMPANIONS = {"config.yaml": "The config of this run", "project.diff": "What of the project was not committed"}


@dataclass(frozen=True)
class _Figure:
    """A figure of the record: its path there, its unit, and how it was counted where the record does not say."""

    path: str
    name: str
    unit: tuple[str, str] = _BYTE
    method: str = ""


def _writes(by: str, whose: str) -> list[_Figure]:
    return [
        _Figure(f"writes.{by}.logical_bytes", f"what {whose} gave to write calls"),
        _Figure(f"writes.{by}.disk_bytes", f"what of it went to the disk: {whose}"),
    ]


def _took(step: str) -> _Figure:
    return _Figure(f"timings_s.{step}", f"how long the step took: {step}", _SECOND, "wall time, of the last attempt")


_USAGE = {
    "run": [
        _Figure(
            "timings_s.total", "how long all steps took", _SECOND, "from the first step's start to the last one's end"
        ),
        _Figure("writes.written_bytes", "what the run wrote to the disk", method="the steps' disk_bytes, added up"),
        _Figure("writes.filesystem.bytes", "what the file system was given"),
        _Figure("writes.device.bytes", "what the block device was given"),
        _Figure("writes.cgroup.bytes", "what the cgroup gave to devices"),
        _Figure(
            "ramdisk.swapped_out_bytes", "what the machine swapped out", method="all processes, from mount to unmount"
        ),
    ],
    "mount": [_took("mount")],
    "stage": [_took("stage"), _Figure("staging.bytes", "what was copied into RAM", method="the sizes of the files")],
    "train": [
        _took("train"),
        *_writes("trainer", "the trainer"),
        *_writes("drain", "durable checkpoints"),
        *_writes("guard", "files for which RAM had no room"),
        *_writes("own", "RamTrain's logs and notes"),
        _Figure("ramdisk.peak_bytes", "the most that the RAM disk held", method="the most that was seen"),
        _Figure("guard.paused_s", "how long the trainer was stopped for want of memory", _SECOND, "wall time"),
    ],
    "export": [_took("export"), *_writes("export", "the export")],
    "unmount": [_took("unmount")],
}
_USAGE_IN_SWEEP = _USAGE["run"][:2]


def workflow_text(home: Path) -> bytes:
    """Return the workflow in one piece, as crates contain it: the Snakefile and the rules that it includes.

    Args:
        home: the folder that holds the Snakefile.
    """
    sources = [home / "Snakefile", *sorted((home / "workflow/rules").glob("*.smk"))]
    return b"\n\n".join(f"# {source.relative_to(home)}\n\n".encode() + source.read_bytes() for source in sources)


def describe_run(record: Mapping[str, Any], home: Path, workflow: bytes) -> None:
    """Write a run's crate, and the workflow beside it.

    Args:
        record: what is, or is about to be, in the file beside the crate.
        home: the folder of the run's results.
        workflow: what `workflow_text` returned.
    """
    environment, command = record["environment"], shlex.join(record["command"])
    crate = _crate(f"RamTrain: run {record['run']}", f"A model, and how it was trained: {command}", record["ended"])
    ramtrain, trainer = _ramtrain(crate, environment), _trainer(crate, record)
    steps = {step: (what, trainer if step == "train" else ramtrain) for step, what in _STEPS.items()}
    main = _workflow(crate, workflow, environment, steps, [ramtrain, trainer])
    project, values = _project(crate, record), _parameters(crate, record)
    model, artifacts = _exported(crate, record, "model"), _exported(crate, record, "artifacts")
    logs, companions = _beside(crate, home, _LOGS), _beside(crate, home, _COMPANIONS)
    written = _file_of(crate, RECORD, as_json(record), "The record: every figure, and how it was counted")
    _has_slots(main)

    products = [*model, *artifacts, *logs]
    objects = {"stage": [project], "train": [*values, project]}
    results = {"train": products, "export": products}
    actions = [
        _action(
            crate,
            step,
            f"{what}: {command}" if step == "train" else what,
            tool,
            record.get("steps", {}).get(step, {}),
            objects.get(step, []),
            results.get(step, []),
            _usage(crate, record, _USAGE[step]),
        )
        for step, (what, tool) in steps.items()
    ]
    whole = _action(
        crate,
        "run",
        f"Run {record['run']}, from the first step to the last",
        main,
        record,
        [*values, project],
        [*products, *companions, written],
        _usage(crate, record, _USAGE["run"]),
    )
    _organize(crate, environment, main, [[action] for action in actions], whole)
    crate.root_dataset["mentions"] = [whole, *actions, project]
    _write(crate, home, workflow)


def describe_sweep(records: Sequence[Path], results: Path, workflow: bytes) -> None:
    """Write the crate of all runs, which refers to theirs, and the workflow beside it.

    Args:
        records: the records of the runs, at least one, each in its run's folder in `results`.
        results: the folder that holds those of the runs.
        workflow: what `workflow_text` returned.
    """
    files = {path: _in_sweep(path) for path in records}
    runs = {path: record for path, (record, _, _) in files.items()}
    newest = max(runs.values(), key=lambda record: record["ended"])
    span = {"started": min(record["started"] for record in runs.values()), "ended": newest["ended"]}
    crate = _crate("RamTrain: all runs", f"Models of {len(runs)} runs, and how they were trained", newest["ended"])
    tools = {path: _ramtrain(crate, record["environment"]) for path, record in runs.items()}
    steps = {"run": ("Train on a RAM disk and bring the model home", _ramtrain(crate, newest["environment"]))}
    main = _workflow(crate, workflow, newest["environment"], steps, tools.values())
    actions, folders = [], []
    for path, record in runs.items():
        run = f"{record['run']}/"
        model = _exported(crate, record, "model", run)
        _, size_bytes, sha256 = files[path]
        what = f"The record of run {record['run']}"
        written = _file(crate, f"{run}{RECORD}", size_bytes, sha256, description=what)
        folder = _folder(crate, run, f"What came home of run {record['run']}", [written, *model])
        if (path.parent / CRATE).exists():
            folder["subjectOf"] = _add(
                crate,
                _id(f"{run}{CRATE}"),
                "CreativeWork",
                name=f"The crate of run {record['run']}",
                encodingFormat=_JSON_LD,
            )
        action = _action(
            crate,
            f"run {record['run']}",
            f"Run {record['run']}: {shlex.join(record['command'])}",
            tools[path],
            record,
            _parameters(crate, record, run),
            [folder],
            _usage(crate, record, _USAGE_IN_SWEEP, run),
        )
        actions.append(action)
        folders.append(folder)
    _has_slots(main)
    table = _beside(crate, results, {"summary.tsv": "The table of the runs"})
    whole = _action(crate, "sweep", "All runs", main, span, [], [*folders, *table], [])
    _organize(crate, newest["environment"], main, [actions], whole)
    crate.root_dataset["mentions"] = [whole, *actions]
    _write(crate, results, workflow)


def _in_sweep(path: Path) -> tuple[dict[str, Any], int, str]:
    """Return what of a record the crate of all runs has, the size of the file, and its SHA-256: ten thousand inputs a
    run are not kept for a thousand runs."""
    content = path.read_bytes()
    record = json.loads(content)
    kept = ("run", "started", "ended", "command", "parameters", "timings_s", "writes", "model")
    environment = {key: record["environment"].get(key) for key in ("ramtrain", "ramtrain_commit", "snakemake")}
    return (
        {**{key: record[key] for key in kept if key in record}, "environment": environment},
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that a crate gives as `resourceUsage`, by their path in the record."""
    paths = [figure.path for step in _USAGE.values() for figure in step]
    return {path: value for path in paths if (value := _look_up(record, path)[1]) is not None}


def _crate(name: str, description: str, at: str) -> ROCrate:
    from rocrate.rocrate import ROCrate  # a fifth of a second

    crate = ROCrate(version=_VERSION)
    crate.metadata.extra_terms = _TERMS
    crate.metadata["conformsTo"] = [{"@id": crate.metadata.profile}, {"@id": _WORKFLOW_CRATE}]
    root = crate.root_dataset
    root["name"], root["description"], root["datePublished"] = name, description, at
    root["license"] = _add(crate, "#licence", "CreativeWork", name="Licence not stated", description=_NO_LICENCE)
    root["conformsTo"] = [
        _add(crate, address, "CreativeWork", name=profile, version=address.rsplit("/", 1)[1])
        for address, profile in _PROFILES.items()
    ]
    return crate


def _add(crate: ROCrate, identifier: str, kind: str | list[str], **properties: Any) -> Entity:
    """Add what is no file of the crate's, with the properties that are known."""
    from rocrate.model.contextentity import ContextEntity

    known = {name: _one(value) for name, value in properties.items() if value is not None and value != []}
    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **known}))


def _one(value: Any) -> Any:
    """Return the only entry of a list in its place, as RO-Crate asks for."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _id(path: str) -> str:
    return quote(os.fsencode(path), safe="/=,+")


def _part(crate: ROCrate, path: str, kind: str | list[str], **properties: Any) -> Entity:
    """Add a file or folder that the crate holds."""
    from rocrate.model.data_entity import DataEntity

    return crate.add(DataEntity(crate, _id(path), {"@type": kind, **properties}))


def _file(crate: ROCrate, path: str, size_bytes: int, sha256: str, **properties: Any) -> Entity:
    known = {"name": path, "encodingFormat": _format(path), "contentSize": str(size_bytes), "sha256": sha256}
    return _part(crate, path, "File", **known, **properties)


def _format(path: str) -> str:
    return _FORMATS.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"


def _file_of(crate: ROCrate, path: str, content: bytes, description: str) -> Entity:
    return _file(crate, path, len(content), hashlib.sha256(content).hexdigest(), description=description)


def _beside(crate: ROCrate, home: Path, files: Mapping[str, str]) -> list[Entity]:
    """Add the files that are there, of those that may be beside the crate."""
    found = []
    for name, description in files.items():
        with contextlib.suppress(FileNotFoundError), (home / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(_file(crate, name, os.fstat(file.fileno()).st_size, sha256, description=description))
    return found


def _exported(crate: ROCrate, record: Mapping[str, Any], what: str, run: str = "") -> list[Entity]:
    """Add the files of the model, or the artifacts: what the workflow's output of that name was."""
    return [
        _file(crate, f"{run}{file['path']}", file["bytes"], file["sha256"], exampleOfWork=_slot(crate, what, "File"))
        for file in record[what]
    ]


def _folder(crate: ROCrate, path: str, name: str, parts: list[Entity]) -> Entity:
    return _part(crate, path, "Dataset", name=name, hasPart=_one(parts))


def _ramtrain(crate: ROCrate, environment: Mapping[str, Any]) -> Entity:
    version = "-".join(filter(None, (environment["ramtrain"], environment.get("ramtrain_commit"))))
    identifier = f"#ramtrain-{_id(version)}"
    return crate.get(identifier) or _add(
        crate,
        identifier,
        "SoftwareApplication",
        name="RamTrain",
        description="Trains any project on a RAM disk and brings the model home",
        softwareVersion=version,
    )


def _trainer(crate: ROCrate, record: Mapping[str, Any]) -> Entity:
    commit, python = record["project"]["git_commit"], record["environment"]["python"]
    changed = " and what was not committed" if record["project"]["dirty"] else ""
    return _add(
        crate,
        "#trainer",
        "SoftwareApplication",
        name=f"The trainer of {record['project']['path']}",
        description=shlex.join(record["command"]),
        softwareVersion=f"commit {commit}{changed}" if commit else None,
        softwareRequirements=python and _program(crate, "Python", python, "https://www.python.org"),
    )


def _program(crate: ROCrate, name: str, version: str, address: str) -> Entity:
    return _add(crate, address, "SoftwareApplication", name=name, softwareVersion=version, url=address)


def _workflow(
    crate: ROCrate,
    text: bytes,
    environment: Mapping[str, Any],
    steps: Mapping[str, tuple[str, Entity]],
    tools: Iterable[Entity],
) -> Entity:
    """Add the workflow, the main entity, with its steps: what each does, and the tool that does it."""
    from rocrate.model.computerlanguage import get_lang

    licence = _add(crate, "https://spdx.org/licenses/MIT", "CreativeWork", name="MIT License")
    main = _part(
        crate,
        WORKFLOW,
        ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        name="RamTrain",
        description="Snakemake's rules, in one piece; what they call is RamTrain's",
        version=environment["ramtrain"],
        encodingFormat=_format(WORKFLOW),
        contentSize=str(len(text)),
        sha256=hashlib.sha256(text).hexdigest(),
        programmingLanguage=crate.add(get_lang(crate, "snakemake", environment["snakemake"])),
        conformsTo={"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
        license=licence,
        hasPart=_one(list({tool.id: tool for tool in tools}.values())),
    )
    main["step"] = _one(
        [
            _add(
                crate,
                f"{WORKFLOW}#{step}",
                "HowToStep",
                name=step,
                description=what,
                position=position,
                workExample=tool,
            )
            for position, (step, (what, tool)) in enumerate(steps.items(), 1)
        ]
    )
    crate.mainEntity = main
    return main


def _slot(crate: ROCrate, name: str, kind: str, among: str = "") -> Entity:
    """Return an input or output of the workflow, made when it is first asked for.

    Args:
        among: what its id has before the name, where others may have that name as well.
    """
    identifier = f"#{'input' if kind != 'File' else 'output'}/{among}{_id(name)}"
    return crate.get(identifier) or _add(crate, identifier, "FormalParameter", name=name, additionalType=kind)


def _has_slots(main: Entity) -> None:
    for way in ("input", "output"):
        slots = [slot for slot in main.crate.get_by_type("FormalParameter") if slot.id.startswith(f"#{way}/")]
        if slots:
            main[way] = _one(slots)


def _parameters(crate: ROCrate, record: Mapping[str, Any], run: str = "") -> list[Entity]:
    return [
        _add(
            crate,
            f"#value/{_id(run + name)}",
            "PropertyValue",
            name=name,
            value=value,
            exampleOfWork=_slot(crate, name, "Text", among="parameters/"),
        )
        for name, value in record.get("parameters", {}).items()
    ]


def _project(crate: ROCrate, record: Mapping[str, Any]) -> Entity:
    """Add the project's files as far as their hashes are known, which are not in the crate, as one collection."""
    project = record["project"]
    files = {
        file["path"]: _add(
            crate,
            f"#project/{_id(file['path'])}",
            "File",
            name=file["path"],
            encodingFormat=_format(file["path"]),
            sha256=file["sha256"],
        )
        for file in project["inputs"][:MOST_INPUTS]
    }
    others = len(project["inputs"]) - len(files)
    named = [files[word] for word in record["command"] if word in files]
    return _add(
        crate,
        "#project",
        "Collection",
        name=project["path"],
        description="The project's files when the training began"
        + (f"; {others} more, with their hashes, in {RECORD}" if others else "")
        + (f"; {project['inputs_left_out']} were not hashed" if project["inputs_left_out"] else ""),
        version=project["git_commit"],
        hasPart=list(files.values()),
        mainEntity=named[:1],
        exampleOfWork=_slot(crate, "project", "Collection"),
    )


def _usage(crate: ROCrate, record: Mapping[str, Any], of: Iterable[_Figure], run: str = "") -> list[Entity]:
    """Add the figures that were measured."""
    found = []
    for figure in of:
        part, value = _look_up(record, figure.path)
        if value is not None:
            address, unit = figure.unit
            usage = _add(
                crate,
                f"#usage/{_id(run)}{figure.path}",
                "PropertyValue",
                name=figure.name,
                propertyID=f"ramtrain:{figure.path}",
                value=value,
                unitCode=address,
                unitText=unit,
                description=figure.method or part["method"],
            )
            found.append(usage)
    return found


def _look_up(record: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], Any]:
    """Return the part of the record that a figure stands in, and the figure; None where an older version has none."""
    *parents, last = path.split(".")
    part = functools.reduce(lambda part, parent: part.get(parent) or {}, parents, record)
    return part, part.get(last)


def _action(
    crate: ROCrate,
    name: str,
    description: str,
    tool: Entity,
    times: Mapping[str, Any],
    objects: list[Entity],
    results: list[Entity],
    usage: list[Entity],
) -> Entity:
    """Add what was done: with what tool, from what, to what end; one that leaves nothing at home activates."""
    return _add(
        crate,
        f"#{_id(name.replace(' ', '/'))}",
        "CreateAction" if results else "ActivateAction",
        name=name,
        description=description,
        instrument=tool,
        startTime=times.get("started"),
        endTime=times.get("ended"),
        actionStatus="http://schema.org/CompletedActionStatus",
        object=objects,
        result=results,
        resourceUsage=usage,
    )


def _organize(
    crate: ROCrate, environment: Mapping[str, Any], main: Entity, actions: list[list[Entity]], whole: Entity
) -> None:
    """Add what Snakemake did: it had each step's actions done, and so the whole."""
    engine = _program(crate, "Snakemake", environment["snakemake"], "https://snakemake.readthedocs.io")
    steps = main["step"] if isinstance(main["step"], list) else [main["step"]]
    controls = [
        _add(
            crate,
            f"#control/{step['name']}",
            "ControlAction",
            name=f"Have done: {step['name']}",
            instrument=step,
            object=done,
        )
        for step, done in zip(steps, actions, strict=True)
    ]
    _add(crate, "#organize", "OrganizeAction", name="Snakemake", instrument=engine, object=controls, result=whole)


def _write(crate: ROCrate, folder: Path, workflow: bytes) -> None:
    write_bytes(folder / WORKFLOW, workflow)
    write_json(folder / CRATE, crate.metadata.generate())
