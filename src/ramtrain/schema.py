"""JSON schemas with messages for people: every error names the key, what is wrong, what would be right."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from ramtrain.errors import RamTrainError

# Each script of a run reads some schemas, and libyaml does that in a tenth of the time; PyYAML may be built without it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = {
    "object": "a mapping of keys",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
# JSON takes 1.0 for an integer; a seed of 1.0 would reach the trainer as such.
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        RamTrainError: the file is missing or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
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
    _check_keys(instance, source)
    errors = sorted(_Validator(schema).iter_errors(instance), key=lambda e: [str(part) for part in e.path])
    if errors:
        lines = dict.fromkeys(line for error in errors for line in _explain(error))
        raise RamTrainError("\n".join(f"{source}: {line}" for line in lines))
    return _fill(copy.deepcopy(instance), schema, schema)


def _check_keys(instance: Any, source: str) -> None:
    """Refuse a key that YAML takes for something else than text, as it does `on`, `no` and `1`."""
    if isinstance(instance, dict):
        for key, value in instance.items():
            if not isinstance(key, str):
                raise RamTrainError(f"{source}: {_as_yaml(key)}: a key has to be text; put it in quotation marks.")
            _check_keys(value, source)
    elif isinstance(instance, list):
        for value in instance:
            _check_keys(value, source)


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


def _explain(error: ValidationError) -> list[str]:
    where = [str(part) for part in error.absolute_path]
    described = error.schema.get("description", "").strip()

    def key(*more: str) -> str:
        return ".".join([*where, *more]) or "the file"

    match error.validator:
        case "additionalProperties":
            known = list(error.schema["properties"])
            unknown = sorted(set(error.instance) - set(known), key=str)
            return [f"{key(str(name))}: unknown key, {_suggest(name, known)}" for name in unknown]
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            parts = error.schema["properties"]
            return [f"{key(name)}: missing. {parts[name].get('description', '').strip()}" for name in missing]
        case "enum":
            options = dict.fromkeys(_as_yaml(option) for option in error.validator_value)
            return [f"{key()}: {error.instance!r} is not known, {_suggest(error.instance, list(options))}"]
        case "minLength" | "minItems":
            return [f"{key()}: is empty. {described}".strip()]
        case "type":
            kinds = error.validator_value
            wanted = " or ".join(_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
            given = "nothing" if error.instance is None else repr(error.instance)
            return [f"{key()}: {given} where {wanted} is expected. {described}".strip()]
        case "pattern":
            return [f"{key()}: {error.instance!r} does not fit. {described}".strip()]
        case _:
            return [f"{key()}: {error.message}. {described}".strip()]


def _as_yaml(option: object) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)


def _suggest(name: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
