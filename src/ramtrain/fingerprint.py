"""What defines a training: only a state that carries the same is gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ramtrain.config import Run
from ramtrain.inputs import Inputs
from ramtrain.redact import redact


@dataclass(frozen=True)
class Fingerprint:
    """The command with its values, the project's path, the threads; and a digest for each entry of the project.

    Secrets are left out of `training`, and a changed one changes no training: a token that has expired is renewed, and
    the training goes on. A digest would notice the change, but a short password can be found from its digest, and the
    fingerprint stands in every manifest.

    `inputs` is None where they are not known: not read yet, or not to be told from products (staging `none`).
    """

    training: dict[str, Any]
    inputs: dict[str, str] | None

    def changes(self, other: Fingerprint) -> list[str]:
        """Name what differs; nothing if it is the same training."""
        others = redact(other.training)  # of a version that left them in
        keys = dict.fromkeys([*self.training, *others])
        changed = [key for key in keys if self.training.get(key) != others.get(key)]
        mine, theirs = self.inputs, other.inputs
        if mine is not None and theirs is not None:
            changed += sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        return changed


def fingerprint(run: Run, inputs: Inputs | None) -> Fingerprint:
    """Return the fingerprint of a configured run.

    With staging `none` the trainer works in the project itself, and may write there: its files define nothing.
    """
    return Fingerprint(run.training, None if inputs is None or run.staging == "none" else inputs.digests)
