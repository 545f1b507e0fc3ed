"""What the trainer sees of its project, read from outside: an overlay's layers, a copy, or a plain folder.

The overlay's rules are the kernel's (Documentation/filesystems/overlayfs.rst): the upper layer's name wins, a character
device 0/0 hides a name, a folder marked opaque hides the layers below it; folders of both layers merge. The mounts
themselves use redirect_dir=nofollow and metacopy=off, so that there is nothing else to follow.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ramtrain.errors import RamTrainError
from ramtrain.plain import one_line

log = logging.getLogger(__name__)

_MAGIC = re.compile(r"[*?[]")
_OPAQUE_ATTRIBUTES = ("trusted.overlay.opaque", "user.overlay.opaque")
_MOST_LINKS = 40  # as the kernel, path_resolution(7)


class Escapes(RamTrainError):
    """A symbolic link that points out of the project."""


class View:
    """A project as its trainer sees it.

    Args:
        layers: folders that make it up, the upper first.
        seen_as: the absolute paths under which the trainer knows the project, for links with absolute targets.
        spilled: a folder outside, to the files of which links may lead as well.

    `closed` are the folders that could not be looked into so far, and why: their mode, or a path that is too long.
    """

    def __init__(self, layers: Sequence[Path], seen_as: Sequence[Path] = (), spilled: Path | None = None) -> None:
        self.layers = list(layers)
        self.spilled = spilled
        self.seen_as = [Path(path) for path in seen_as]
        self.closed: dict[Path, OSError] = {}

    def glob(self, patterns: Iterable[str]) -> list[str]:
        """Return the paths of all files that the patterns name, sorted; a folder stands for all files in it.

        `*`, `?` and `[...]` match within a name, `**` any number of folders. Links to folders are followed only where
        the pattern spells their name out.
        """
        return sorted({path for files in self.find(patterns).values() for path in files})

    def find(self, patterns: Iterable[str]) -> dict[str, list[str]]:
        """Return the files of each file or folder that the patterns name, by its path."""
        found: dict[str, list[str]] = {}
        for pattern in patterns:
            literal, rest = split_pattern(pattern)
            if not rest:
                if self._exists(literal):
                    found[literal] = self._files_of(literal)
                continue
            try:
                layers = self._folders(literal)
            except Escapes:
                continue
            matches = re.compile(_translate(rest)).fullmatch
            depth = None if "**" in rest else len(rest.split("/"))
            for path, is_folder in self._walk(layers, "", depth):
                if matches(path):
                    whole = str(PurePosixPath(literal) / path)
                    found[whole] = self._files_of(whole) if is_folder else [whole]
        return found

    def real(self, path: str) -> Path:
        """Return the file that `path` stands for, links followed.

        Raises:
            Escapes: a link on the way points out of the project.
            FileNotFoundError: there is no such file.
        """
        layers = self._resolve(path)
        if not layers:
            raise FileNotFoundError(f"{one_line(path)} is a link to nothing")
        return layers[0]

    def written(self, original: Path) -> list[str]:
        """Return the files of the upper layer that `original` does not have, or not with that size and time.

        Raises:
            OSError: a folder could not be looked into.
        """
        paths = [path for path, is_folder in self._walk(self.layers[:1], "", None) if not is_folder]
        for error in self.closed.values():
            raise error
        return sorted(path for path in paths if self.is_written(path, original))

    def is_written(self, path: str, original: Path) -> bool:
        """Whether `original` does not have this file of the upper layer, or not with that size and time.

        Raises:
            FileNotFoundError: the upper layer does not have it any more.
        """
        status = (self.layers[0] / path).lstat()
        try:
            before = (original / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        return (status.st_size, status.st_mtime_ns) != (before.st_size, before.st_mtime_ns)

    def is_of_training(self, real: Path, original: Path) -> bool:
        """Whether a real file was written by the training: `original` does not have it so."""
        upper = self.layers[0]
        if real.is_relative_to(upper):
            return self.is_written(str(real.relative_to(upper)), original)
        return real.parent == self.spilled

    def _files_of(self, path: str) -> list[str]:
        try:
            layers = self._folders(path)
        except Escapes:
            layers = []  # a link out of the project is a name like any other until it is read
        if not layers:
            return [path]
        return [f"{path}/{name}" for name, is_folder in self._walk(layers, "", None) if not is_folder]

    def _walk(self, layers: Sequence[Path], prefix: str, depth: int | None) -> Iterator[tuple[str, bool]]:
        """Yield (path, is a folder) of everything below the merged folder `layers`; links are names, not followed."""
        # A trainer that is at work deletes files and folders meanwhile.
        for name in sorted({name for layer in layers for name in self._names(layer)}):
            try:
                found = _lookup(layers, name)
                is_folder = bool(found) and stat.S_ISDIR(found[0].lstat().st_mode)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note_closed(layers[0] / name, error)
                continue
            if not found:
                continue
            path = f"{prefix}{name}"
            yield path, is_folder
            if is_folder and depth != 1:
                yield from self._walk(found, f"{path}/", depth and depth - 1)

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._note_closed(folder, error)
            return []

    def _note_closed(self, path: Path, error: OSError) -> None:
        if error.errno not in (errno.EACCES, errno.ENAMETOOLONG):
            raise error
        self.closed[path] = error

    def _exists(self, path: str) -> bool:
        """Whether there is such a name; a link out of the project, or to nothing, is one until it is read."""
        parent, _, name = path.rpartition("/")
        try:
            return bool(self._resolve(path) or _lookup(self._resolve(parent), name))
        except Escapes:
            return True

    def _folders(self, path: str) -> list[Path]:
        return [layer for layer in self._resolve(path) if layer.is_dir()]

    def _resolve(self, path: str) -> list[Path]:
        """Return what stands for `path` in each layer that contributes to it, the upper first; [] if nothing does."""
        left = [part for part in path.split("/") if part not in ("", ".")]
        trail: list[list[Path]] = [self.layers]
        links = 0
        while left:
            name = left.pop(0)
            if name == "..":
                if len(trail) == 1:
                    raise Escapes(f"{path} leads out of the project")
                trail.pop()
                continue
            here = _lookup(trail[-1], name)
            if here and here[0].is_symlink():
                links += 1
                if links > _MOST_LINKS:
                    raise Escapes(f"{path}: too many links on the way")
                target = os.readlink(here[0])
                if target.startswith("/"):
                    if Path(target).parent == self.spilled:
                        trail, left = [[self.spilled]], [Path(target).name, *left]
                        continue
                    target = self._inside(path, target)
                    trail = [self.layers]
                left = [part for part in target.split("/") if part not in ("", ".")] + left
                continue
            if not here:
                return []
            trail.append(here)
        return trail[-1]

    def _inside(self, path: str, target: str) -> str:
        for root in self.seen_as:
            if Path(os.path.normpath(target)).is_relative_to(root):
                return os.path.relpath(os.path.normpath(target), root)
        raise Escapes(f"{one_line(path)} is a link to {one_line(target)}, outside the project")


def real_files(view: View, paths: Iterable[str], what: str) -> dict[str, Path]:
    """Return the file that each path stands for, links followed; what cannot be had is named in the log and left out.

    Args:
        what: what they are, for the message.
    """
    found: dict[str, Path] = {}
    for path in paths:
        try:
            found[path] = view.real(path)
        except (Escapes, FileNotFoundError) as error:
            log.warning("%s %s is left out: %s", what, one_line(path), error)
    return plain_files(found, what)


def plain_files(found: Mapping[str, Path], what: str) -> dict[str, Path]:
    """Leave out what has no contents to copy: a pipe would be waited for, a device read without end."""
    kept = {path: real for path, real in found.items() if real.is_file()}
    for path in sorted(found.keys() - kept.keys()):
        why = "a link to a folder, and not named itself" if found[path].is_dir() else "a pipe, socket or device"
        log.warning("%s %s is left out: it is %s", what, one_line(path), why)
    return kept


def _lookup(layers: Sequence[Path], name: str) -> list[Path]:
    found: list[Path] = []
    for layer in layers:
        path = layer / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if _is_whiteout(status) or (found and not stat.S_ISDIR(status.st_mode)):
            break
        found.append(path)
        if not stat.S_ISDIR(status.st_mode) or _is_opaque(path):
            break
    return found


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(folder: Path) -> bool:
    for attribute in _OPAQUE_ATTRIBUTES:
        try:
            if os.getxattr(folder, attribute, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue  # no such attribute, or a file system without them
    return False


def _parts(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in ("", ".")]


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a glob into its leading folders without wildcards and the rest."""
    parts = _parts(pattern)
    magic = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return "/".join(parts[:magic]), "/".join(parts[magic:])


def _translate(pattern: str) -> str:
    """Return the regular expression for a glob (glob.translate of Python 3.13, hidden names included)."""
    parts = pattern.split("/")
    expression = ""
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            expression += ".+" if last else "(?:[^/]+/)*"
            continue
        for token in re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL):
            if token == "*":
                expression += "[^/]*"
            elif token == "?":
                expression += "[^/]"
            elif len(token) > 1:
                expression += (
                    "["
                    + ("^" if token[1] == "!" else "")
                    + re.escape(token[1:-1].lstrip("!")).replace(r"\-", "-")
                    + "]"
                )
            else:
                expression += re.escape(token)
        expression += "" if last else "/"
    return f"(?s:{expression})"


def matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return a regular expression whose fullmatch tells whether any of the globs names a path."""
    return re.compile("|".join(_translate("/".join(_parts(pattern))) for pattern in patterns) or r"(?!)")


def check_glob(key: str, pattern: str) -> None:
    """Check that a glob, which a config has under `key`, is one, and stays in the project.

    Raises:
        RamTrainError: it is not, or does not.
    """
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise RamTrainError(f"{key}: {pattern!r}: globs are relative to the project and stay in it.")
    try:
        matcher([pattern])
    except re.error as error:
        raise RamTrainError(f"{key}: {pattern!r} is no glob: {error.msg}.") from None
