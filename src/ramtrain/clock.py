"""Points in time as records have them."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def stamp(at_s: float | None = None) -> str:
    """Return a point in time, now or `at_s` seconds since the epoch: ISO 8601, UTC, with milliseconds."""
    return datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC).isoformat(timespec="milliseconds")
