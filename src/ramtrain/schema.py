"""JSON schemas with messages for people: every error names the key, what is wrong, what would be right."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from ramtrain.errors import RamTrainError


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        RamTrainError: the file is missing or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RamTrainError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RamTrainError(f"{path}: not valid YAML: {error}") from error


def complete(instance: Any, schema: dict[str, Any], source: str) -> Any:
    """Check `instance` and return a copy in which the schema's defaults fill what is not there.

    Args:
        source: the file that `instance` was read from, for the messages.

    Raises:
        RamTrainError: one line for each thing that is wrong.
    """
    errors = sorted(Draft202012Validator(schema).iter_errors(instance), key=lambda e: list(e.path))
    if errors:
        raise RamTrainError("\n".join(f"{source}: {_explain(error)}" for error in errors))
    return _fill(copy.deepcopy(instance), schema, schema)


def _fill(instance: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    if isinstance(instance, dict):
        for key, part in schema.get("properties", {}).items():
            if "$ref" in part:
                part = {**root["$defs"][part["$ref"].rsplit("/", 1)[1]], **part}
            if key not in instance and "default" in part:
                instance[key] = copy.deepcopy(part["default"])
            if key in instance:
                instance[key] = _fill(instance[key], part, root)
    return instance


def _explain(error: ValidationError) -> str:
    where = [str(part) for part in error.absolute_path]

    def key(*more: str) -> str:
        return ".".join([*where, *more]) or "the file"

    match error.validator:
        case "additionalProperties":
            known = list(error.schema["properties"])
            unknown = sorted(set(error.instance) - set(known), key=str)
            return "; ".join(f"{key(str(name))}: unknown key, {_suggest(name, known)}" for name in unknown)
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            described = error.schema["properties"]
            return "; ".join(
                f"{key(name)}: missing. {described[name].get('description', '').strip()}" for name in missing
            )
        case "enum":
            options = [str(option) for option in error.validator_value]
            return f"{key()}: {error.instance!r} is not known, {_suggest(error.instance, options)}"
        case "minLength" | "minItems":
            return f"{key()}: is empty. {error.schema.get('description', '').strip()}"
        case "type":
            kinds = error.validator_value
            wanted = " or ".join(kinds) if isinstance(kinds, list) else kinds
            return f"{key()}: {error.instance!r} is not of type {wanted}."
        case _:
            return f"{key()}: {error.message}"


def _suggest(name: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
