"""Secrets are left out of all that RamTrain writes down: told by their names, or by what they look like.

A name counts by its parts: `HF_TOKEN`, `--api-key` and `dbPassword` name secrets, `--tokenizer`, `max_tokens` and
`trigger_token` do not. `token` or `key` alone may mean something else: there a value counts if it looks made up, and a
parameter that is no secret must not be taken for one, or nobody would notice that it was changed. A reference such as
`$HF_TOKEN` or `{hf_token}` is no secret, nor is a switch.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MARK = "[secret left out]"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# `HFToken2` has the parts HF and Token, `OAuth2Token` O, Auth and Token.
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_PARTS = _words(
    "password passwords passwd passphrase secret secrets credential credentials "
    "apikey apikeys accesskey secretkey privatekey authtoken accesstoken"
)
# After one of these, or at the end before it, a key or a token is a secret; so are keys and tokens, but for a number.
_OWNERS = _words(
    "api access auth oauth bearer refresh session private secret signing encryption account hf hub huggingface wandb "
    "github gitlab gh openai anthropic aws azure gcp google comet neptune clearml mlflow kaggle slack npm pypi ssh "
    "replicate license licence telegram discord"
)
# With one of these in the name a key or a token is a thing of the training, or the secret is somewhere else.
_HARMLESS_PARTS = _words(
    "id ids type types count counts limit len length dim dims size sizes embed embedding embeddings frame frames index "
    "indices max min num n per pad padding eos bos unk mask masked sep cls special stop start end begin prefix suffix "
    "image audio video speaker text label class column sort order primary foreign query head heads value values "
    "dropout rate weight weights level bias proj projection norm budget batch window map ratio loss drop keep merge "
    "normalization frequency interval file files path paths dir folder name names initializer trigger placeholder "
    "modifier identifier abstraction concept instance target source input output prompt encoder decoder forced boi eoi"
)
_PLACE_PARTS = _words("file files path paths dir folder name names")
_NO_SECRET = re.compile(
    r"""(?ix) true | false | yes | no | on | off | none | null | auto |
    | \$\w+ | \$?\{.*\} | %\(.*\).* | %\w+%    # references
    | <.*> | your[_-].* | x+ | \*+ | \.{3}      # what stands for one in a manual""",
)
_NUMBER = re.compile(r"[+-]?[0-9]{0,10}\.?[0-9]{0,10}(?:[eE][+-]?[0-9]{1,3})?")
# What may be made up: neither a list nor a call, special token or sentence; then, unless it is of words, by its length.
_MADE_UP = re.compile(r"(?=[^a-zA-Z]*[a-zA-Z])(?=[^0-9]*[0-9])[\w.+/=:~-]{8,}|[\w.+/=:~-]{16,}", re.ASCII)
# `SpeakerEmbedding`, `log_history.eval_loss`; between separators also `val_top5_acc`, `v2`, `12`.
_WORD, _NUMBERED = r"(?:[A-Z]?[a-z]{1,14}|[A-Z]{1,14})", r"[A-Za-z]{3,14}[0-9]{1,2}"
_PLAIN_WORDS = re.compile(
    rf"""(?x) [A-Z]?[a-z]{{2,14}}(?:[A-Z][a-z]{{1,13}})* | {_WORD}
    | (?:{_WORD}|{_NUMBERED}) (?: [_./:-](?:{_WORD}|{_NUMBERED}|[vV]?[0-9]{{1,3}}) )+"""
)

_LOOKS = re.compile(
    r"""(?x) (?<![A-Za-z0-9]) (?:
      hf_[A-Za-z0-9]{20,}
    | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_[A-Za-z0-9_]{22,} | glpat-[A-Za-z0-9_-]{20,}
    | sk-(?:[a-z]{2,8}-)?(?=[A-Za-z]*[0-9])[A-Za-z0-9]{32,} | sk-(?:proj|ant|svcacct|admin)-[A-Za-z0-9_-]{20,}
    | [sr]k_(?:live|test)_[A-Za-z0-9]{16,}
    | (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z]) | AIza[A-Za-z0-9_-]{35}
    | xox[abeoprs]-[A-Za-z0-9-]{10,}
    | npm_[A-Za-z0-9]{36} | pypi-AgE[A-Za-z0-9_-]{50,}
    | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?   # a JSON Web Token
    )"""
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_IN_URL = re.compile(r"(://[^/\s:@'\"]*:)([^@\s/'\"]+)(?=@)|(://)([A-Za-z0-9_-]{20,})(?=@)")
_IN_QUERY = re.compile(r"([?&])([A-Za-z_][\w.-]*)=(?!\[secret left out\])([^&\s'\"#]+)")
_HEADER = re.compile(r"(?i)(authorization\\?[\"']?\s*[:=]\s*\\?[\"']?(?:(?:bearer|basic|token)\s+)?)([^\s\"'\\]+)")
_QUOTED = re.compile(r"([A-Za-z_][\w.-]*)(\\?[\"']?\]?\s{0,3}[:=]=?\s{0,3}[rbuf]{0,2})(\\?[\"'])((?:(?!\3).)+)(?=\3)")
# A line of a config file: its value may have spaces. Neither a list, nor what is quoted, nor a block begins here.
_LINE = re.compile(
    r"(?m)^(\s*(?:-\s+|export\s+)?)([A-Za-z_][\w.-]*)(\s*[:=]\s*)(?![\"'\[{|>&*])(\S[^\n]*?)(?=\s+#|\s*$)"
)
_BARE = re.compile(r"([A-Za-z_][\w.-]*)(\s{0,3}[:=]\s{0,3})(?![\"'\[{])([^\s,;]+)")
_VARIABLE = re.compile(r"(?<![\w.])([A-Z][A-Z0-9_]*)(=)([^\s\"'`,;&()\[\]]++)(?![(\[])")
_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w-]*)(\s+)(?!-)([^\s\"'`,;()\[\]]{6,})")
# One argument that is a command of its own is read as a text: `bash -c "HF_TOKEN=... python train.py"`.
_ARGUMENT = re.compile(r"(?![A-Z_][A-Z0-9_]*=\S+\s)([-+~]{0,2}[A-Za-z_][\w.+/-]*)=(.*)", re.DOTALL)


def is_secret(name: str, value: object) -> bool:
    """Whether a value is a secret by the name that it has: of a variable, a key, an argument with or without dashes."""
    kind = _kind(name)
    if kind is None or value is None or isinstance(value, bool):
        return False
    text = str(value).strip()
    if _NO_SECRET.fullmatch(text) or text == MARK:
        return False
    if kind == "secret":
        return True
    if _NUMBER.fullmatch(text):
        return False
    return kind == "secrets" or bool(_MADE_UP.fullmatch(text) and not _PLAIN_WORDS.fullmatch(text))


@functools.lru_cache(maxsize=4096)
def _kind(name: str) -> str | None:
    """Return `secret` for a name whose value is one whatever it is, `secrets` for one whose value is one unless it is a
    number, `maybe` for one whose value tells; else None."""
    parts = [part.lower() for part in _PART.findall(name)]
    if not parts or parts[-1] in _PLACE_PARTS:
        return None
    if not _SECRET_PARTS.isdisjoint(parts):
        return "secret"
    harmless = not _HARMLESS_PARTS.isdisjoint(parts)
    kind = None
    for place, part in enumerate(parts):
        if part not in ("token", "tokens", "key", "keys"):
            continue
        before, after = parts[max(0, place - 1) : place], parts[place + 1 :]
        if not _OWNERS.isdisjoint(before) or (len(after) == 1 and after[0] in _OWNERS):
            kind = "secret" if part in ("token", "key") else "secrets"
            return kind if parts[-1] not in ("id", "ids") else None
        if part in ("token", "key") and not harmless:
            kind = "maybe"
    return kind


def redact(value: Any, name: str = "", hidden: bool = False) -> Any:
    """Return a copy of what is to be written, config or record, without its secrets.

    A flat list with texts is taken for arguments, a text named `command` for those of a shell. Under `metrics` stand
    names of metrics, such as `password_f1`, and keys of tables: they hide nothing.

    Args:
        name: the key that `value` stands under.
        hidden: whether it stands under the name of a secret.
    """
    if name == "metrics" and isinstance(value, Mapping) and not hidden:
        return {metric: _redact_looks(about) for metric, about in value.items()}
    if isinstance(value, Mapping):
        below = hidden or _kind(name) == "secret"
        return {key: redact(part, str(key), below) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if not hidden and _kind(name) is None and _are_arguments(value):
            texts = redact_arguments([str(part) for part in value])
            return [
                text if isinstance(part, str) or text == MARK else part for part, text in zip(value, texts, strict=True)
            ]
        return [redact(part, name, hidden) for part in value]
    if is_secret("secret" if hidden else name, value):
        return MARK
    if not isinstance(value, str):
        return value
    return _redact_command(value) if name == "command" else redact_text(value, code=True)


def _are_arguments(parts: Sequence[Any]) -> bool:
    """Whether a list has nothing in it that is not one value, and a text at least: `[python, --lr, 0.1]`."""
    is_flat = all(part is None or isinstance(part, (str, int, float)) for part in parts)
    return is_flat and any(isinstance(part, str) for part in parts)


def _redact_looks(value: Any) -> Any:
    """Return a copy without what looks like a secret, whatever it is named."""
    if isinstance(value, Mapping):
        return {key: _redact_looks(part) for key, part in value.items()}
    return redact_text(value, code=True) if isinstance(value, str) else value


def redact_arguments(argv: Sequence[str]) -> list[str]:
    """Return a command's arguments without the secrets in them: `--hf-token X`, `--api_key=X`, `PASSWORD=X`."""
    redacted: list[str] = []
    option = ""
    for argument in argv:
        is_value = not argument.startswith("-") or bool(_NUMBER.fullmatch(argument))
        named = _ARGUMENT.fullmatch(argument)
        if option and is_value and is_secret(option, argument):
            redacted.append(MARK)
        elif named and is_secret(named[1], named[2]):
            redacted.append(f"{named[1]}={MARK}")
        else:
            redacted.append(redact_text(argument, code=True))
        option = argument if argument.startswith("-") and not named else ""
    return redacted


def _redact_command(text: str) -> str:
    """Return a command line that is split as before, but for its secrets."""
    try:
        argv = shlex.split(text)
    except ValueError:
        return redact_text(text)
    redacted = redact_arguments(argv)
    return text if redacted == argv else shlex.join(redacted)


def redact_text(text: str, code: bool = False) -> str:
    """Return a text without its secrets: what looks like one, and what stands behind the name of one.

    Args:
        code: it is program text or prose, in which only quoted values, those of options and those of variables such as
            `HF_TOKEN=...` are meant; in a config file the bare ones are, too.
    """
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MARK, text)
    text = _LOOKS.sub(MARK, text)
    if "://" in text:
        text = _IN_URL.sub(_without_password, text)
        text = _IN_QUERY.sub(lambda m: f"{m[1]}{m[2]}={MARK}" if is_secret(m[2], m[3]) else m[0], text)
    if ":" in text or "=" in text:
        text = _HEADER.sub(lambda m: m[0] if _NO_SECRET.fullmatch(m[2]) or m[2] in MARK else m[1] + MARK, text)
        text = _QUOTED.sub(lambda m: f"{m[1]}{m[2]}{m[3]}{MARK}" if is_secret(m[1], m[4]) else m[0], text)
        if not code:
            text = _LINE.sub(lambda m: f"{m[1]}{m[2]}{m[3]}{MARK}" if is_secret(m[2], m[4]) else m[0], text)
        text = (_VARIABLE if code else _BARE).sub(_without_value, text)
    return _OPTION.sub(_without_value, text) if "-" in text else text


def _without_password(match: re.Match[str]) -> str:
    before, password = match[1] or match[3], match[2] or match[4]
    return match[0] if _NO_SECRET.fullmatch(password) else before + MARK


def _without_value(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{MARK}" if is_secret(match[1], match[3]) else match[0]


def names_a_secret(names: Iterable[str]) -> bool:
    """Whether one of the names, of files say, is that of a secret."""
    return any(_kind(name) is not None for name in names)
