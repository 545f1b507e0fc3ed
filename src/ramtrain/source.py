"""What a Python file tells without being run: what it imports, its options, and the files that it seems to write."""

from __future__ import annotations

import ast
import glob
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from posixpath import dirname, join

_MOST_BYTES = 512 << 10
_DEEPEST = 12
_LONGEST = 4096  # a path, on Linux
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
    """An option of a script: its name as it is typed, without dashes if it is positional."""

    name: str
    is_required: bool


@dataclass(frozen=True)
class Named:
    """Something with a name, the value that it is given as a glob in the project, and where that stands."""

    name: str
    value: str
    place: str


@dataclass
class Source:
    """A Python file: what it imports, by full name, and defines, each with its first line; what it calls; its options
    and subcommands.

    `outputs` are folders that by their names are written to, `written` what its calls seem to save. `is_in_package`:
    it imports from beside itself, so that it has to be started as a module.
    """

    path: str
    imports: dict[str, int] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    defines: dict[str, int] = field(default_factory=dict)
    options: dict[str, Option] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)
    outputs: list[Named] = field(default_factory=list)
    written: list[Named] = field(default_factory=list)
    is_program: bool = False
    is_in_package: bool = False


def read_source(root: Path, path: str) -> Source | None:
    """Return what a Python file of a project tells; None if it is too large, no file of the project's, cannot be read,
    or is no Python."""
    file = root / path
    try:
        is_inside = not file.is_symlink() or file.resolve().is_relative_to(root.resolve())
        if not is_inside or not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, in somebody else's code
            tree = ast.parse(file.read_bytes())
        return _Reader(path, tree).source
    # A loop of links is a RuntimeError; so is code that is too deep, or a MemoryError.
    except (OSError, SyntaxError, ValueError, RuntimeError, MemoryError):
        return None


class _Reader:
    """Reads one file; `assigned` has what names and attributes, with a dot before them, are assigned, of several the
    last; `globs` what some of them stand for."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.source = Source(path)
        self.assigned: dict[str, ast.expr | None] = {}
        self.globs: dict[str, str | None] = {}
        nodes = list(ast.walk(tree))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        for node in nodes:
            self._note_names(node)
        defaults = dict(option for call in calls if (option := self._note_option(call)))
        self.assigned |= {f".{name}": value for name, value in defaults.items()}
        self._note_outputs(defaults.items())
        for node in nodes:
            self._note_outputs(_given_names(node))
        for call in calls:
            self._note_call(call)
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

    def _note_option(self, call: ast.Call) -> tuple[str, ast.expr | None] | None:
        """Note an option of argparse or click; return the attribute that it sets, and its default."""
        if _name_of(call.func) not in ("add_argument", "option", "argument"):
            return None
        names = [text.split("/")[0] for arg in call.args if (text := _text_of(arg))]  # click: --flag/--no-flag
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        longs = [name for name in names if name.startswith("--")] or names
        if not longs:
            return None
        has_own = "default" in given or _text_of(given.get("nargs")) in ("?", "*")
        is_required = _constant(given.get("required")) is True or not (longs[0].startswith("-") or has_own)
        for name in longs:
            self.source.options.setdefault(name, Option(name, is_required))
        return _text_of(given.get("dest")) or longs[0].lstrip("-").replace("-", "_"), given.get("default")

    def _note_fields(self, node: ast.AST) -> None:
        """Note the fields of a dataclass that have no default: options that must be given."""
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(part) for part in node.decorator_list):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and part.value is None and isinstance(part.target, ast.Name):
                    name = f"--{part.target.id}"
                    self.source.options.setdefault(name, Option(name, is_required=True))

    def _note_outputs(self, named: Iterable[tuple[str, ast.expr | None]]) -> None:
        for name, value in named:
            if value and _OUTPUT.fullmatch(name.lower()):
                self._add(self.source.outputs, name, self.glob_of(value), value.lineno)

    def _note_call(self, call: ast.Call) -> None:
        name = _name_of(call.func)
        if not name:
            return
        self.source.calls.add(name)
        if name == "add_parser" and call.args and (command := _text_of(call.args[0])):
            self.source.commands.add(command)
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
        path = value and len(value) <= _LONGEST and _in_project(value)
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
                return None if second is None else join("**" if first is None else first, second)
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
                return self._glob_of_name(name, depth + 1)
            case ast.Attribute(attr="parent", value=value):
                return (path := known(value)) and dirname(path)
            case ast.Attribute(attr=name):
                return self._glob_of_name(f".{name}", depth + 1)
            case ast.Call():
                return self._glob_of_call(node, depth + 1)
        return None

    def _glob_of_name(self, name: str, depth: int) -> str | None:
        """Return what a name stands for; it is looked for once, and not known within itself, nor longer than a path."""
        if name not in self.globs:
            self.globs[name] = None
            text = self.glob_of(self.assigned.get(name), depth)
            self.globs[name] = text if len(text or "") <= _LONGEST else None
        return self.globs[name]

    def _glob_of_call(self, call: ast.Call, depth: int) -> str | None:
        def known(part: ast.expr | None) -> str | None:
            return self.glob_of(part, depth)

        name, first = _name_of(call.func), call.args[0] if call.args else None
        if name in _WRAPPERS and call.args:
            texts = [known(part) for part in call.args]
            return None if texts[0] is None else join(*("*" if text is None else text for text in texts))
        if name in _SAME_PLACE or (name == "open" and isinstance(call.func, ast.Attribute)):
            return known(_receiver(call))
        if name == "open":
            return known(first)
        if name == "dirname":
            return (path := known(first)) and dirname(path)
        if name in ("join", "joinpath") and call.args:
            parts = call.args if name == "join" else [_receiver(call), *call.args]
            texts = [known(part) for part in parts]
            if texts[-1] is None:
                return None
            return join("**" if texts[0] is None else texts[0], *(text or "*" for text in texts[1:]))
        if name in ("with_suffix", "with_name") and first is not None:
            base, own = known(_receiver(call)), known(first) or "*"
            if base is None:
                return None
            return base.rsplit(".", 1)[0] + own if name == "with_suffix" else join(dirname(base), own)
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


def _given_names(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what is given to names of any kind: variables, arguments, keys."""
    yield from _assignments(node)
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)
        if _name_of(node.func).endswith("TrainingArguments"):
            yield from (("output_dir", value) for value in node.args[:1])
    elif isinstance(node, ast.FunctionDef):
        yield from _argument_defaults(node.args)
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from ((name, value) for key, value in pairs if (name := _text_of(key)))


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


def _in_project(path: str) -> str | None:
    """Return a path as a glob in the project; None if it leads out of it, or is no path."""
    if path.startswith(("/", "~")) or "://" in path or "\0" in path or "\n" in path:
        return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[0] == "*":  # a folder that is not known may be none, or several
        parts[0] = "**"
    return None if ".." in parts else "/".join(parts)
