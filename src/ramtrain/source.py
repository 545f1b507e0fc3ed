"""What a Python file tells without being run: what it imports, its options, and the files that it seems to write."""

from __future__ import annotations

import ast
import glob
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

_MOST_BYTES = 512 << 10
_DEEPEST = 12
# Names of variables, arguments and options for the folder that a training writes to.
_OUTPUT = re.compile(
    r"(out|output|save|ckpt|checkpoint|result|run|work|exp|experiment|model|default_root|logging|log)s?_?"
    r"(dir|directory|path|folder|dirpath)|out|output|outputs|dirpath|results"
)
_SAVES = re.compile(r"(.*_)?(save|dump|write|export)(_.*|z|v|txt|bytes|text|file)?")
_COPIES = ("copy", "copy2", "copyfile", "move", "rename", "replace")
_WRAPPERS = ("Path", "PurePath", "PosixPath", "str", "fspath", "abspath", "realpath", "normpath", "expanduser")
_SAME_PLACE = ("resolve", "absolute", "expanduser", "as_posix")


@dataclass(frozen=True)
class Option:
    """An option of a script: its name as it is typed, without dashes if it is positional; `default` is a glob."""

    name: str
    is_required: bool
    default: str | None
    line: int


@dataclass(frozen=True)
class Named:
    """Something with a name, the value that it is given as a glob in the project, and where that stands."""

    name: str
    value: str
    place: str


@dataclass
class Source:
    """A Python file: what it imports, by full name, calls and defines, each with its first line; its options and
    subcommands.

    `outputs` are folders that by their names are written to, `written` what its calls seem to save. `is_in_package`:
    it imports from beside itself, so that it has to be started as a module.
    """

    path: str
    imports: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    defines: dict[str, int] = field(default_factory=dict)
    options: dict[str, Option] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)
    outputs: list[Named] = field(default_factory=list)
    written: list[Named] = field(default_factory=list)
    is_program: bool = False
    is_in_package: bool = False


def read_source(root: Path, path: str) -> Source | None:
    """Return what a Python file of a project tells; None if it is too large, no file of the project's, cannot
    be read, or is no Python."""
    file = root / path
    try:
        is_inside = not file.is_symlink() or file.resolve().is_relative_to(root.resolve())
        if not is_inside or not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, in somebody else's code
            tree = ast.parse(file.read_bytes())
        return _Reader(path, tree).source
    except (
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        MemoryError,
    ):  # of a loop of links, and of too deep code, too
        return None


class _Reader:
    """Reads one file; `assigned` has what names and attributes are assigned, of several the last."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.source = Source(path)
        self.assigned: dict[str, ast.expr] = {}
        self.defaults: dict[str, str | None] = {}
        nodes = list(ast.walk(tree))
        for node in nodes:
            self._note_names(node)
        for node in nodes:
            if isinstance(node, ast.Call):
                self._note_option(node)
        for node in nodes:
            self._note_outputs(node)
            if isinstance(node, ast.Call):
                self._note_call(node)
        if "HfArgumentParser" in self.source.calls:
            for node in nodes:
                self._note_fields(node)
        self.source.is_program = any(isinstance(node, ast.If) and _is_main(node.test) for node in tree.body)

    def _note_names(self, node: ast.AST) -> None:
        source = self.source
        if isinstance(node, ast.Import):
            for alias in node.names:
                source.imports.setdefault(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            source.is_in_package = source.is_in_package or node.level > 0
            prefix = "." * node.level + module
            source.imports.setdefault(prefix, node.lineno)
            for alias in node.names:
                source.imports.setdefault(f"{prefix}.{alias.name}" if module else prefix + alias.name, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            source.defines.setdefault(node.name, node.lineno)
        for name, value in _assignments(node):
            self.assigned[name] = value
        if isinstance(node, ast.FunctionDef):
            for name, value in _argument_defaults(node.args):
                self.assigned.setdefault(name, value)

    def _note_option(self, call: ast.Call) -> None:
        """Note an option of argparse or click."""
        if _name_of(call.func) not in ("add_argument", "option", "argument") or not call.args:
            return
        names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        longs = [name for name in names if name.startswith("--")] or names
        if not longs:
            return
        name = longs[0].split("/")[0]  # click: --flag/--no-flag
        is_positional = not name.startswith("-")
        has_own = "default" in given or _text_of(given.get("nargs")) in ("?", "*")
        required = _constant(given.get("required")) is True or (is_positional and not has_own)
        default = self.glob_of(given["default"]) if "default" in given else None
        destination = _text_of(given.get("dest")) or name.lstrip("-").replace("-", "_")
        self.defaults[destination] = default
        for long in longs:
            self.source.options.setdefault(
                long.split("/")[0], Option(long.split("/")[0], required, default, call.lineno)
            )
        if default and _OUTPUT.fullmatch(destination.lower()):
            self._add(self.source.outputs, destination, default, call.lineno)

    def _note_fields(self, node: ast.AST) -> None:
        """Note the fields of a dataclass that have no default: options that must be given."""
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(part) for part in node.decorator_list):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and part.value is None and isinstance(part.target, ast.Name):
                    name = f"--{part.target.id}"
                    self.source.options.setdefault(name, Option(name, True, None, part.lineno))

    def _note_outputs(self, node: ast.AST) -> None:
        named = [*_assignments(node)]
        if isinstance(node, ast.Call):
            named += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
            if _name_of(node.func).endswith("TrainingArguments"):
                named += [("output_dir", value) for value in node.args[:1]]
        if isinstance(node, ast.FunctionDef):
            named += _argument_defaults(node.args)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            named += [(key.value, value) for key, value in pairs if isinstance(key, ast.Constant)]
        for name, value in named:
            if isinstance(name, str) and _OUTPUT.fullmatch(name.lower()):
                self._add(self.source.outputs, name, self.glob_of(value), value.lineno)

    def _note_call(self, call: ast.Call) -> None:
        name = _name_of(call.func)
        if not name:
            return
        self.source.calls.setdefault(name, call.lineno)
        if name == "add_parser" and call.args and (command := _text_of(call.args[0])):
            self.source.commands.setdefault(command, call.lineno)
        places: list[ast.expr] = []
        if name == "open" and _opens_for_writing(call):
            places = [call.args[0] if isinstance(call.func, ast.Name) and call.args else _receiver(call)]
        elif name in _COPIES and len(call.args) > 1:
            places = [call.args[1]]
        elif _SAVES.fullmatch(name):
            places = [*call.args, *(keyword.value for keyword in call.keywords), _receiver(call)]
        for place in places:
            self._add(self.source.written, name, self.glob_of(place), call.lineno)

    def _add(self, to: list[Named], name: str, value: str | None, line: int) -> None:
        path = value and _in_project(value)
        if path:
            to.append(Named(name, path, f"{self.source.path}:{line}"))

    def glob_of(self, node: ast.expr | None, depth: int = 0) -> str | None:
        """Return the text that an expression stands for, as a glob: what is not known of it is `*`; None if nothing is
        known."""
        if depth > _DEEPEST:
            return None

        def known(part: ast.expr | None) -> str | None:
            return self.glob_of(part, depth + 1)

        match node:
            case ast.Constant(value=str(text)):
                return glob.escape(text)
            case ast.JoinedStr(values=parts):
                return "".join(known(part) or "*" for part in parts)
            case ast.FormattedValue(value=value):
                return known(value)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                first, second = known(left), known(right)
                return None if second is None else _join("**" if first is None else first, second)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = known(left), known(right)
                return None if first is None and second is None else (first or "*") + (second or "*")
            case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod(), right=right):
                values = iter(right.elts if isinstance(right, ast.Tuple) else [right])
                fill = partial(_filled, lambda: known(next(values, None)))
                return re.sub(r"%[-+ #0-9.]*([a-z])", fill, glob.escape(text))
            case ast.BoolOp(op=ast.Or(), values=values):
                return next((text for value in values if (text := known(value))), None)
            case ast.IfExp(body=body, orelse=orelse):
                return known(body) or known(orelse)
            case ast.Name(id="__file__"):
                return glob.escape(self.source.path)
            case ast.Name(id=name):
                return known(self.assigned.get(name))
            case ast.Attribute(attr="parent", value=value):
                return _parent(known(value))
            case ast.Attribute(attr=name):
                return self.defaults[name] if name in self.defaults else known(self.assigned.get(f".{name}"))
            case ast.Call():
                return self._glob_of_call(node, depth + 1)
        return None

    def _glob_of_call(self, call: ast.Call, depth: int) -> str | None:
        def known(part: ast.expr | None) -> str | None:
            return self.glob_of(part, depth)

        name, first = _name_of(call.func), call.args[0] if call.args else None
        if name in _WRAPPERS and first is not None:
            return _join(*(known(part) or "*" for part in call.args)) if known(first) is not None else None
        if name in _SAME_PLACE or (name == "open" and isinstance(call.func, ast.Attribute)):
            return known(_receiver(call))
        if name == "open":
            return known(first)
        if name == "dirname":
            return _parent(known(first))
        if name in ("join", "joinpath") and call.args:
            parts = call.args if name == "join" else [_receiver(call), *call.args]
            texts = [known(part) for part in parts]
            return None if texts[-1] is None else _join(texts[0] or "**", *(text or "*" for text in texts[1:]))
        if name in ("with_suffix", "with_name") and first is not None:
            base, own = known(_receiver(call)), known(first) or "*"
            if base is None:
                return None
            return base.rsplit(".", 1)[0] + own if name == "with_suffix" else _join(_parent(base) or "", own)
        if name == "format":
            text = known(_receiver(call))
            return text and re.sub(r"\{[^}]*\}", "*", text)
        if name in ("get", "getenv", "getattr") and len(call.args) > 1:
            return known(call.args[-1])
        return None


def _filled(value: Callable[[], str | None], place: re.Match[str]) -> str:
    """Return what stands in the place of `%s` and its like."""
    text = value()
    return text if text is not None and place[1] == "s" else "*"


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what is assigned to names, and to attributes, with a dot before them."""
    targets: list[ast.expr] = []
    value: ast.expr | None = None
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
        targets, value = [node.target], node.value
    for target in targets:
        if value is not None and isinstance(target, ast.Name):
            yield target.id, value
        elif value is not None and isinstance(target, ast.Attribute):
            yield f".{target.attr}", value


def _argument_defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    plain = [*arguments.posonlyargs, *arguments.args]
    first = len(plain) - len(arguments.defaults)
    yield from ((argument.arg, value) for argument, value in zip(plain[first:], arguments.defaults, strict=True))
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    yield from ((argument.arg, value) for argument, value in pairs if value is not None)


def _name_of(function: ast.expr) -> str:
    """Return the last part of a function's name."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _receiver(call: ast.Call) -> ast.expr | None:
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def _opens_for_writing(call: ast.Call) -> bool:
    own = call.args[1:] if isinstance(call.func, ast.Name) else call.args
    modes = [*own[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(set(_text_of(mode) or "") & set("wax") for mode in modes)


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _text_of(node: ast.expr | None) -> str | None:
    value = _constant(node)
    return value if isinstance(value, str) else None


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in (test.left, *test.comparators)
    )


def _join(*parts: str) -> str:
    joined = ""
    for part in parts:
        joined = part if part.startswith("/") or not joined else f"{joined.rstrip('/')}/{part}"
    return joined


def _parent(path: str | None) -> str | None:
    if path is None:
        return None
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _in_project(path: str) -> str | None:
    """Return a path as a glob in the project; None if it leads out of it, or is no path."""
    if path.startswith(("/", "~")) or "://" in path or "\0" in path or "\n" in path:
        return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[0] == "*":  # a folder that is not known may be none, or several
        parts[0] = "**"
    return None if ".." in parts else "/".join(parts)
