"""The file that a trainer reads its parameters from, made anew for each run where the trainer sees its project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ramtrain.durable import make_parents, write_bytes, write_json
from ramtrain.errors import RamTrainError


@dataclass(frozen=True)
class ParametersFile:
    """How an adapter describes it: made at `file` in the project, as the trainer sees it, out of the project's own
    `base`; `keys` says under which dotted key a parameter stands there, if not under its name."""

    file: str
    base: str | None
    keys: Mapping[str, str]


def read_base(project: Path, parameters: ParametersFile) -> dict[str, Any]:
    """Return what the project's own file says, which the parameters are set in; {} where the adapter names none.

    Raises:
        RamTrainError: it is missing, or holds no mapping of keys.
    """
    if parameters.base is None:
        return {}
    path = project / parameters.base
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise RamTrainError(f"{path}: {error.strerror}; the adapter's parameters.base names it.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RamTrainError(f"{path}: cannot be read ({error}); the adapter's parameters.base names it.") from None
    if not isinstance(content, dict):
        raise RamTrainError(f"{path}: holds no mapping of keys; the adapter's parameters.base names it.")
    return content


def check_place(folder: Path, parameters: ParametersFile) -> None:
    """Check that no link leads the parameters file out of a project's folder, or of what lies over it in RAM.

    Raises:
        RamTrainError: a folder above the file, or the file, is a link.
    """
    path = PurePosixPath(parameters.file)
    for place in (path, *path.parents[:-1]):
        if (folder / place).is_symlink():
            raise RamTrainError(
                f"{folder / place}: is a link, and {path}, the adapter's parameters.file, would lie where it leads; "
                "name another place."
            )


def base_names(project: Path, parameters: ParametersFile) -> frozenset[str] | None:
    """Return the names that the project's own file has at its top; None where the adapter names none, or it cannot be
    read, which `read_base` tells of."""
    if parameters.base is None:
        return None
    try:
        return frozenset(read_base(project, parameters))
    except RamTrainError:
        return None


def make_file(project: Path, upper: Path, parameters: ParametersFile, values: Mapping[str, Any]) -> Path:
    """Write the parameters file of a run; return where.

    Args:
        project: the folder of the project on the disk, which is only read.
        upper: the folder in RAM with what the trainer sees in its place.
        values: what is set, by dotted key.

    Raises:
        RamTrainError: the base cannot be read, a key goes through what is no mapping, or the place is a link.
    """
    content = read_base(project, parameters)
    for key, value in values.items():
        *path, last = key.split(".")
        part = content
        for name in path:
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise RamTrainError(f"{parameters.base}: {key}: {name} is no mapping of keys there.")
        part[last] = value
    check_place(upper, parameters)
    target = upper / parameters.file
    make_parents(PurePosixPath(parameters.file), upper, project)
    if target.suffix == ".json":
        write_json(target, content)
    else:
        write_bytes(target, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return target
