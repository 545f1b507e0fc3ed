"""Whether the models of two runs are the same, by their records; and what differs in them, where they are at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from humanfriendly.text import concatenate

from ramtrain.errors import RamTrainError
from ramtrain.recorded import Record
from ramtrain.tensors import Contents, compare_contents, is_known

NOT_AT_HAND = "only the hashes are known here: the files are not beside the record"
_MOST_NAMES = 3


@dataclass(frozen=True)
class ModelFile:
    """A file of the models: its paths and hashes in the records, None where a model has none.

    `contents` is what differs in it, `why` why that is not known; `spoilt` are files that are no longer what their
    record says.
    """

    a: str | None
    b: str | None
    a_sha256: str | None
    b_sha256: str | None
    contents: Contents | None = None
    why: str | None = None
    spoilt: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called."""
        return PurePosixPath(self.a or self.b or "").name

    @property
    def is_same(self) -> bool:
        """Whether both models have it, byte for byte."""
        return self.a_sha256 is not None and self.a_sha256 == self.b_sha256


def compare_models(a: Record, b: Record) -> list[ModelFile]:
    """Compare the models of two records, file by file; only what still is as it was recorded is looked into."""
    first, second = ({file["path"]: file["sha256"] for file in side.get("model") or []} for side in (a, b))
    return [_model_file(a, b, *pair, first.get(pair[0]), second.get(pair[1])) for pair in _pairs(first, second)]


def _pairs(a: dict[str, str], b: dict[str, str]) -> list[tuple[str | None, str | None]]:
    """Return which file of one model is which of the other: by its path, or hash, or as the only one of its kind."""
    pairs: list[tuple[str | None, str | None]] = [(path, path) for path in a if path in b]
    rest, others = [path for path in a if path not in b], [path for path in b if path not in a]

    def take(are_alike: Callable[[str, str], bool]) -> None:
        for path in list(rest):
            alike = [other for other in others if are_alike(path, other)]
            if len(alike) == 1 == sum(are_alike(path, alike[0]) for path in rest):
                pairs.append((path, alike[0]))
                rest.remove(path)
                others.remove(alike[0])

    take(lambda path, other: a[path] == b[other])
    take(lambda path, other: PurePosixPath(path).suffix == PurePosixPath(other).suffix)
    return [*pairs, *((path, None) for path in rest), *((None, other) for other in others)]


def _model_file(
    a: Record, b: Record, a_path: str | None, b_path: str | None, a_sha256: str | None, b_sha256: str | None
) -> ModelFile:
    found = ModelFile(a_path, b_path, a_sha256, b_sha256)
    at_hand = [side.beside(path) if path else None for side, path in ((a, a_path), (b, b_path))]
    try:
        spoilt = [
            str(path)
            for path, sha256 in zip(at_hand, (a_sha256, b_sha256), strict=True)
            if path and _sha256(path) != sha256
        ]
        if spoilt:
            return replace(found, spoilt=spoilt, why=f"{concatenate(spoilt)}: no longer what the record says")
        if found.is_same or a_path is None or b_path is None:
            return found
        if None in at_hand:
            return replace(found, why=NOT_AT_HAND)
        if not is_known(a_path):
            return found
        return replace(found, contents=compare_contents(*at_hand))
    except OSError as error:
        return replace(found, why=f"{error.filename}: {error.strerror}")
    except RamTrainError as error:
        return replace(found, why=str(error))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verdict(a: Record, b: Record, model: list[ModelFile]) -> str:
    """Return in one line whether the models are the same."""
    missing = [name for name, side in (("A", a), ("B", b)) if not side.get("model")]
    if missing:
        return f"whether the models are the same is not known: none is recorded in {concatenate(missing)}"
    spoilt = [path for file in model for path in file.spoilt]
    beware = f"; but {concatenate(spoilt)}: no longer what the record says" if spoilt else ""
    differing = [file for file in model if not file.is_same]
    if not differing:
        main = next((file for file in model if is_known(file.name)), model[0])
        files = "" if len(model) == 1 else f": {len(model)} files"
        of = "" if len(model) == 1 else f" of {main.name}"
        return f"the models are the same, byte for byte{files} (SHA-256{of} {main.a_sha256}){beware}"
    if all(file.why == NOT_AT_HAND for file in differing):
        return f"the models differ; {NOT_AT_HAND}{beware}"
    clauses: dict[str, list[str]] = {}
    for file in differing:
        clauses.setdefault(clause(file), []).append(file.name)
    said = [text if len(model) == 1 else f"{_few(names)}: {text}" for text, names in clauses.items()]
    return f"the models differ: {_few(said, '; ')}{beware}"


def clause(file: ModelFile) -> str:
    """Return how a file that is not the same differs, in a few words."""
    if file.a is None or file.b is None:
        return f"only in {'B' if file.a is None else 'A'}"
    if file.contents is None:
        return file.why if file.why == NOT_AT_HAND else "other bytes"
    return in_brief(file.contents)


def in_brief(contents: Contents) -> str:
    """Return how much of two files that were looked into differs."""
    unit = "tensors" if contents.unit == "tensor" else "stored parts"
    if not contents.differing:
        names = [value.name for value in contents.values]
        only = f"{_few(names)} {'differs' if len(names) == 1 else 'differ'}" if names else "their form differs"
        return f"all {contents.count:,} {unit} are the same, only {only}"
    measured = [difference for difference in contents.changed if difference.largest is not None]
    most = max(measured, key=lambda difference: difference.largest or 0, default=None)
    largest = f", at most {most.largest:.2g} ({most.name})" if most else ""
    return f"{contents.differing:,} of {contents.count:,} {unit}{largest}"


def _few(names: list[str], mark: str = ", ") -> str:
    more = len(names) - _MOST_NAMES
    return mark.join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
