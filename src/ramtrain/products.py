"""Which files a training makes, guessed from what its sources write and from what earlier trainings have left."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ramtrain.config import Trainer
from ramtrain.project import Project
from ramtrain.source import Named, Source

ALLTALK, COQUI, HUGGINGFACE, LIGHTNING, GENERIC = "alltalk", "coqui", "huggingface", "lightning", "generic"
OUTPUT = "output"
_MOST_GLOBS = 4
_WEIGHTS = re.compile(
    r".+\.(pt|pth|pth\.tar|ckpt|safetensors|bin|joblib|pkl|pickle|onnx|h5|keras|ubj|npz|npy|msgpack|gguf|weights|model)"
)
_MODEL = re.compile(r".*(model|booster|best|final).*\.(json|txt|xml|ya?ml)", re.IGNORECASE)
_CHECKPOINT = re.compile(
    r".*(check-?_?point|ckpt|(^|[^a-z])(step|epoch|iter|last|latest|snapshot|state|resume)([^a-z]|$)).*", re.IGNORECASE
)
_LOG = re.compile(r".*(log|metrics|history|loss|result|score|report).*\.(txt|log|csv|tsv|jsonl?)", re.IGNORECASE)
_OUTPUTS = re.compile(
    r"(out|outputs?|results?|runs?|checkpoints?|ckpts?|weights|experiments?|exps?|logs?|lightning_logs|saved?|saved_models)"
)
_LOGS = re.compile(r"(log|logging).*")
_FOLDER_SAVERS = ("save_pretrained", "save_model", "save_lora_weights")
_FALLBACKS = (
    (("sklearn", "joblib"), "**/*.joblib"),
    (("xgboost", "lightgbm", "catboost"), "**/*model*"),
    (("torch",), "**/*.pt*"),
    (("tensorflow", "keras"), "**/*.keras"),
)


@dataclass(frozen=True)
class Clue:
    """A guess, and what it is from."""

    value: str
    source: str


@dataclass(frozen=True)
class Found:
    """Globs for the config, beside the adapter's, and what its user should look at."""

    model: tuple[Clue, ...] = ()
    checkpoints: tuple[Clue, ...] = ()
    artifacts: tuple[Clue, ...] = ()
    warnings: tuple[str, ...] = ()


def find_products(project: Project, sources: Sequence[Source], adapter: Trainer, kind: str) -> Found:
    """Guess the globs that the adapter does not have."""
    written = _sorted_out(_told_by(sources))
    lying = _sorted_out(_left_in(project))
    if kind != GENERIC:
        return Found(model=() if adapter.model else tuple(_of_adapter(kind, sources, written)))
    model, checkpoints = written.model, written.checkpoints
    if not model and not checkpoints:
        model, checkpoints = lying.model, lying.checkpoints
    warnings = []
    if not checkpoints:
        warnings.append("no checkpoints were found, without which a power cut costs all of the training: name them")
    if not model:
        model = checkpoints or (_fallback(sources),)
        warnings.append("no file of a final model was found: look whether these globs name it")
    return Found(model, checkpoints, written.artifacts, tuple(warnings))


def output_folder(sources: Iterable[Source]) -> Clue | None:
    """Return the folder that the sources write to, by the names that they give it; not one of logs alone."""
    named = [output for source in sources for output in source.outputs]
    plain = [one for one in named if one.value and not _WEIGHTS.fullmatch(one.value) and one.value.strip("*/")]
    plain.sort(key=lambda one: bool(_LOGS.fullmatch(one.name.lower())))
    return Clue(plain[0].value, _said(plain[0])) if plain else None


def _said(named: Named) -> str:
    return f"{named.place}: {named.name}"


def _told_by(sources: Iterable[Source]) -> list[Clue]:
    found = []
    for source in sources:
        for written in source.written:
            if not written.value.strip("*/"):
                continue
            has_suffix = "." in PurePosixPath(written.value).name
            if has_suffix or written.name in _FOLDER_SAVERS:
                found.append(Clue(written.value, _said(written)))
    return found


def _left_in(project: Project) -> list[Clue]:
    """Return what lies in folders of earlier trainings, else at the top; numbers stand for any."""
    weights = [path for path in project.listing.files if _WEIGHTS.fullmatch(path)]
    inside = [path for path in weights if any(_OUTPUTS.fullmatch(part) for part in path.lower().split("/")[:-1])]
    return [Clue(_any_number(path), f"{path} lies there") for path in inside or weights]


def _any_number(path: str) -> str:
    return re.sub(r"[0-9]+", "*", glob.escape(path))


def _sorted_out(clues: Iterable[Clue]) -> Found:
    """Tell models, checkpoints and logs apart, by their names; each glob once, and a few of each."""
    model: dict[str, Clue] = {}
    checkpoints: dict[str, Clue] = {}
    artifacts: dict[str, Clue] = {}
    for clue in clues:
        name = "/".join(clue.value.split("/")[-2:])
        is_weights = bool(_WEIGHTS.fullmatch(name) or _MODEL.fullmatch(name)) or "." not in name.split("/")[-1]
        is_one_of_many = "*" in re.sub(r"\[.\]", "", name.split("/")[-1])
        if is_weights and (is_one_of_many or (_CHECKPOINT.fullmatch(name) and not _is_final(name))):
            checkpoints.setdefault(clue.value, clue)
        elif is_weights:
            model.setdefault(clue.value, clue)
        elif _LOG.fullmatch(name):
            artifacts.setdefault(clue.value, clue)
    return Found(*(tuple(list(found.values())[:_MOST_GLOBS]) for found in (model, checkpoints, artifacts)))


def _is_final(name: str) -> bool:
    last = name.split("/")[-1].lower()
    return "final" in last or "best" in last


def _of_adapter(kind: str, sources: Sequence[Source], written: Found) -> list[Clue]:
    """Return globs of the final model of a trainer whose adapter leaves them to the config."""
    folder = output_folder(sources)
    if kind == COQUI:
        place, source = (f"{folder.value}/*", folder.source) if folder else ("**", "no output folder was found")
        return [Clue(f"{place}/{name}", source) for name in ("best_model.pth", "config.json")]
    if elsewhere := [clue for clue in written.model if folder is None or clue.value != folder.value]:
        return elsewhere
    if kind == LIGHTNING:
        folder = folder or Clue("lightning_logs", "where Lightning writes")
        return [Clue(f"{folder.value}/**/*.ckpt", folder.source)]
    folder = folder or Clue(OUTPUT, "--output_dir, as the command gives it")
    if all(source.calls.isdisjoint(_FOLDER_SAVERS) for source in sources):
        folder = Clue(f"{folder.value}/checkpoint-*", "no model is saved in the end, but in checkpoints")
    return [Clue(f"{folder.value}/{name}", folder.source) for name in ("*.safetensors", "*.json")]


def _fallback(sources: Sequence[Source]) -> Clue:
    imported = {name.split(".")[0] for source in sources for name in source.imports}
    for libraries, pattern in _FALLBACKS:
        for library in libraries:
            if library in imported:
                return Clue(pattern, f"as {library} mostly writes it")
    return Clue("**/*model*", "nothing better was found")
