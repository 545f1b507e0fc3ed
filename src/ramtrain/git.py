"""The project's code: its Git commit, and what is not committed as a patch; nothing of the project is written to.

Git works on a copy of the repository's index, without optional locks, hooks, file system monitor, filters, external
diffs or the network: a repository may name programs for each of these, and none of them is run.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path, PurePosixPath
from threading import Event

from humanfriendly import format_size
from humanfriendly.text import pluralize

from ramtrain.inputs import own_places
from ramtrain.redact import names_a_secret, redact_text
from ramtrain.system import CommandError, run_beside
from ramtrain.view import matcher

log = logging.getLogger(__name__)

DIFF = "project.diff"
MOST_FILE_BYTES = 1 << 20
MOST_DIFF_BYTES = 4 << 20
_MOST_FILES = 1_000
# Of those that are not tracked so many are looked into, each as far as Git looks whether a file is text.
_MOST_LOOKS = 2_000
_LOOK_BYTES = 8_000
_MOST_NAMES = 100
_MOST_ARGUMENTS = 200
_MOST_ANSWER_BYTES = 32 << 20
_GIT_S = 60.0
_SOURCES = (".py", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".js", ".ts", ".rs", ".go", ".java", ".jl")
_TEXTS = (*_SOURCES, ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".sh", ".txt", ".md", ".ipynb", ".smk")
_SECRET_FILES = (".netrc", ".pgpass", ".git-credentials", ".pypirc", ".htpasswd", "id_rsa", "id_ecdsa", "id_ed25519")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")
_SECRET_SUFFIXES = (".pem", ".key", ".p12", ".pfx", ".jks", ".kdbx", ".gpg")


@dataclass(frozen=True)
class Change:
    """A file that is not as it is in the commit: its path from the top, its blob there (None: it is not tracked)."""

    path: str
    old: str | None


@dataclass(frozen=True)
class Code:
    """The commit, whether the folder has changes since, and these as a patch; None where there is no repository.

    `left_out` counts the changed files that are not in the patch, which says why.
    """

    commit: str | None
    dirty: bool | None
    diff: bytes | None = None
    left_out: int = 0


def read_code(folder: Path, scratch: Path, stop: Event) -> Code:
    """Return the state of the code in a folder, as far as Git tells; it need not be the top of its repository.

    Changes inside of submodules do not count.

    Args:
        scratch: an empty folder, in memory, for Git's work.
        stop: once it is set, nothing more is done.
    """
    commit, dirty = None, None
    try:
        repository = Repository.of(folder, scratch, stop)
        if repository is None:
            return Code(None, None)
        commit = repository.commit
        changes = _changes(repository, folder)
        dirty = bool(changes)
        return Code(commit, dirty, *(repository.patch(changes) if changes else ()))
    except CommandError as error:
        log.warning("the state of the code in %s is not in the record as a whole: %s", folder, error)
        return Code(commit, dirty)


def _changes(repository: Repository, folder: Path) -> list[Change]:
    """Return the changes in a folder, but for what RamTrain and Snakemake keep there."""
    own = matcher(own_places(folder))
    prefix = folder.relative_to(repository.top)

    def is_own(path: str) -> bool:
        inside = PurePosixPath(path).relative_to(prefix)
        return any(own.fullmatch(str(part)) for part in (inside, *inside.parents))

    return [change for change in repository.changes(folder, ["."]) if not is_own(change.path)]


def read_commit(folder: Path, names: Sequence[str], scratch: Path) -> Code:
    """Return the commit of a folder that is the top of a repository, and whether the files of these names are changed.

    Raises:
        CommandError: Git failed.
    """
    repository = Repository.of(folder, scratch, Event()) if (folder / ".git").exists() else None
    if repository is None:
        return Code(None, None)
    return Code(repository.commit, bool(repository.changes(folder, names)))


@dataclass(frozen=True)
class Repository:
    """A repository that is only read: `top` is its work tree, `git` how it is called, `commit` what is checked out."""

    top: Path
    commit: str
    git: tuple[str, ...]
    env: dict[str, str]
    stop: Event

    @classmethod
    def of(cls, folder: Path, scratch: Path, stop: Event) -> Repository | None:
        """Return the repository that a folder lies in; None if there is none, no commit yet, or no Git."""
        top = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
        if top is None or shutil.which("git") is None:
            return None
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env |= {"LC_ALL": "C", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "GIT_TERMINAL_PROMPT": "0"}
        options = [
            "core.fsmonitor=false",
            f"core.hooksPath={os.devnull}",
            "core.quotePath=false",
            "diff.relative=false",
        ]
        # Root may read another user's repository, and all those of a team theirs; it is trusted like the project.
        if (top / ".git").lstat().st_uid in (0, folder.stat().st_uid):
            options.append(f"safe.directory={top}")
        git = ("git", "--no-optional-locks", "--no-pager", "-C", str(top))
        git += tuple(part for option in options for part in ("-c", option))
        found = cls(top, "", git, env, stop)
        try:
            commit = found.ask("rev-parse", "--verify", "HEAD").decode().strip()
        except CommandError as error:
            if "Needed a single revision" in str(error):
                return None
            raise
        index = top / os.fsdecode(found.ask("rev-parse", "--git-path", "index")).rstrip("\n")
        if index.exists():
            shutil.copy2(index, scratch / "index")  # with its time, by which Git knows what it has to look at
        env["GIT_INDEX_FILE"] = str(scratch / "index")
        return cls(top, commit, git + found._no_filters(), env, stop)

    def ask(self, *arguments: str, given: bytes = b"") -> bytes:
        """Return what Git prints."""
        return run_beside(
            *self.git,
            *arguments,
            env=self.env,
            stop=self.stop,
            timeout_s=_GIT_S,
            given=given,
            most_bytes=_MOST_ANSWER_BYTES,
        )

    def _no_filters(self) -> tuple[str, ...]:
        """Return options that keep the filters from running which the repository names (gitattributes(5))."""
        names = os.fsdecode(self.ask("config", "--list", "--name-only", "-z")).split("\0")
        filters = {name.rsplit(".", 1)[0] for name in names if name.startswith("filter.")}
        if odd := [name for name in filters if "=" in name]:
            raise CommandError(f"{self.top}: the filter {odd[0]!r} cannot be switched off")
        keys = ("clean=", "smudge=", "process=", "required=false")
        return tuple(part for name in sorted(filters) for key in keys for part in ("-c", f"{name}.{key}"))

    def changes(self, folder: Path, names: Sequence[str]) -> list[Change]:
        """Return what differs from the commit, below `folder` and of these names, and what Git neither knows nor
        ignores."""
        where = ("-C", str(folder))
        raw = self.ask(*where, "diff", "--raw", *_DIFF_OPTIONS, "-z", "HEAD", "--", *names).split(b"\0")
        changed = {}
        for about, path in zip(raw[::2], raw[1::2], strict=False):
            _, _, old, _, _ = about.split(b" ")
            changed[os.fsdecode(path)] = old.decode()
        listed = self.ask(*where, "ls-files", "-z", "--others", "--exclude-standard", "--full-name", "--", *names)
        untracked = [os.fsdecode(path) for path in listed.split(b"\0")[:-1]]
        return [*(Change(path, old) for path, old in changed.items()), *(Change(path, None) for path in untracked)]

    def patch(self, changes: Iterable[Change]) -> tuple[bytes, int]:
        """Return the changes as a patch for `git apply`, secrets left out, and how many files are not in it; its head
        says which, and why."""
        left_out: dict[str, str] = {}
        chosen = self._choose(changes, left_out)
        self._add([change.path for change in chosen if change.old is None])
        sections = []
        paths = sorted(change.path for change in chosen)
        blobs = {change.path: change.old for change in chosen}
        marked = 0
        for start in range(0, len(paths), _MOST_ARGUMENTS):
            some = [f":(top,literal){path}" for path in paths[start : start + _MOST_ARGUMENTS]]
            answer = self.ask("diff", "--binary", *_DIFF_OPTIONS, "HEAD", "--", *some)
            for section in re.split(rb"(?m)^(?=diff --git )", answer)[1:]:
                self._check_stop()
                path = _path_of(section)
                if why := self._hides(section, path, blobs.get(path)):
                    left_out[path] = why
                    continue
                clean, lines = _redact_section(section, path)
                sections.append(clean)
                marked += lines
        return self._head(left_out, marked) + b"".join(sections), len(left_out)

    def _choose(self, changes: Iterable[Change], left_out: dict[str, str]) -> list[Change]:
        """Return the changes that fit, those of code first; note why the others do not.

        Raises:
            CommandError: it was stopped.
        """
        known = list(changes)
        old_bytes = self._blob_sizes([change.old for change in known if change.old and change.old.strip("0")])
        sized = []
        for change in known:
            self._check_stop()
            size_bytes = max(_size(self.top / change.path), old_bytes.get(change.old or "", 0))
            suffix = PurePosixPath(change.path).suffix.lower()
            sized.append((change.old is None, suffix not in _TEXTS, size_bytes, change))
        chosen, total_bytes, looks = [], 0, 0
        for is_untracked, _, size_bytes, change in sorted(sized, key=lambda entry: (entry[:3], entry[3].path)):
            self._check_stop()
            if change.path.endswith("/"):
                left_out[change.path] = "another repository"
            elif _is_secret_file(change.path):
                left_out[change.path] = "by its name it holds a secret"
            elif size_bytes > MOST_FILE_BYTES:
                left_out[change.path] = format_size(size_bytes, binary=True)
            elif total_bytes + size_bytes > MOST_DIFF_BYTES or len(chosen) >= _MOST_FILES:
                left_out[change.path] = "the others are enough"
            elif is_untracked and looks >= _MOST_LOOKS:
                left_out[change.path] = f"not tracked, and {looks:,} others were looked into"
            elif is_untracked and b"\0" in _content(self.top / change.path, _LOOK_BYTES):
                looks += 1
                left_out[change.path] = "not tracked, and no text"
            else:
                looks += is_untracked
                total_bytes += size_bytes
                chosen.append(change)
        return chosen

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise CommandError(f"{self.top}: it was stopped")

    def _blob_sizes(self, blobs: Sequence[str]) -> dict[str, int]:
        given = "".join(f"{blob}\n" for blob in blobs).encode()
        answer = self.ask("cat-file", "--batch-check", given=given).decode() if blobs else ""
        lines = [line.split() for line in answer.splitlines()]
        return {line[0]: int(line[2]) for line in lines if len(line) == 3 and line[1] == "blob"}

    def _add(self, paths: Sequence[str]) -> None:
        """Have the copy of the index hold these as empty files, so that they show in a diff; no object is written."""
        empty = (sha1 if len(self.commit) == 40 else sha256)(b"blob 0\0", usedforsecurity=False).hexdigest()
        entries = b"".join(b"100644 %s\t%s\0" % (empty.encode(), os.fsencode(path)) for path in paths)
        if entries:
            self.ask("update-index", "-z", "--index-info", given=entries)

    def _hides(self, section: bytes, path: str, old: str | None) -> str | None:
        """Return why a file's patch cannot be shown, line by line, without a secret; None if it can."""
        content = _content(self.top / path)
        if _PRIVATE_KEY.search(section) or _PRIVATE_KEY.search(content):
            return "it holds a private key"
        if re.search(rb"(?m)^GIT binary patch$", section):
            before = self.ask("cat-file", "blob", old) if old and old.strip("0") else b""
            texts = (part.replace(b"\0", b"").decode("latin-1") for part in (before, content))
            if any(redact_text(text) != text for text in texts):
                return "it is no text, and holds what looks like a secret"
        return None

    def _head(self, left_out: dict[str, str], marked: int) -> bytes:
        lines = [f"What {self.top} had beside commit {self.commit} when the training began."]
        if marked:
            lines.append(f"{pluralize(marked, 'line')} held what looks like a secret, which is left out.")
        if left_out:
            lines.append(f"Not in it: {pluralize(len(left_out), 'file')}.")
            lines += [f"  {path!r}: {why}" for path, why in sorted(left_out.items())[:_MOST_NAMES]]
            if len(left_out) > _MOST_NAMES:
                lines.append(f"  and {len(left_out) - _MOST_NAMES} more")
        return ("\n".join(lines) + "\n\n").encode("utf-8", "backslashreplace")


_DIFF_OPTIONS = (
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--no-abbrev",
    "--no-color",
    "--ignore-submodules=dirty",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


def _path_of(section: bytes) -> str:
    """Return the path of a file's part of a patch; its first line has it twice, quoted as in C where that is needed."""
    line = section.split(b"\n", 1)[0].removeprefix(b"diff --git ")
    name = line[: len(line) // 2]
    if name.startswith(b'"'):
        name = name[1:-1].decode("latin-1").encode("latin-1").decode("unicode_escape").encode("latin-1")
    return os.fsdecode(name.removeprefix(b"a/"))


def _redact_section(section: bytes, path: str) -> tuple[bytes, int]:
    """Return a file's part of a patch without its secrets, and in how many lines there were some."""
    if re.search(rb"(?m)^GIT binary patch$", section):
        return section, 0
    code = PurePosixPath(path).suffix.lower() in _SOURCES
    head, hunks, body = section.partition(b"\n@@ ")
    lines = body.decode("utf-8", "surrogateescape").split("\n")
    clean = [line[:1] + redact_text(line[1:], code) if line[:1] in ("+", "-", " ") else line for line in lines]
    marked = sum(after != before for after, before in zip(clean, lines, strict=True))
    return head + hunks + "\n".join(clean).encode("utf-8", "surrogateescape"), marked


def _is_secret_file(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    suffix = PurePosixPath(name).suffix
    if name in _SECRET_FILES or suffix in _SECRET_SUFFIXES:
        return True
    return suffix not in _SOURCES and names_a_secret([name.removesuffix(suffix)])


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # it is deleted


def _content(path: Path, most_bytes: int = MOST_FILE_BYTES) -> bytes:
    """Return the beginning of a file, by default all that may be shown; of a link, a folder, what is gone, nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with open(descriptor, "rb", buffering=0) as file:
        return file.read(most_bytes) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
