"""What a job must know of the call of Snakemake that it belongs to; handed down in the environment."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CALLER = "RAMTRAIN_CALLER"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
TEMPORARY_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")


def remember(configfiles: Sequence[str | Path]) -> None:
    """Note this process, its --configfile, and the variables that Snakemake sets anew for every job."""
    variables = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, *TEMPORARY_VARIABLES)}
    content = {"pid": os.getpid(), "configfiles": [str(path) for path in configfiles], "variables": variables}
    os.environ[_CALLER] = json.dumps(content)


def pid() -> int | None:
    """Return the process of Snakemake; None if it did not call us."""
    return _recall().get("pid")


def command(target: str) -> str:
    """Return what to type for a target, with the config that this call was given."""
    configfiles = _recall().get("configfiles", [])
    return shlex.join(["snakemake", "--cores", "1", target, *(["--configfile", *configfiles] if configfiles else [])])


def environment() -> dict[str, str]:
    """Return the environment that Snakemake itself was called in."""
    env = dict(os.environ)
    variables = _recall().get("variables", {})
    env.pop(_CALLER, None)
    for name, value in variables.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def _recall() -> dict[str, Any]:
    return json.loads(os.environ.get(_CALLER, "{}"))
