"""The private mount namespace in which a trainer sees its project through an overlay.

As root a mount namespace is enough. Without privilege the user namespace that comes with it lets the user mount
overlays (with `userxattr`, overlayfs.rst) while files keep their owner. `unshare` of util-linux makes them, so that an
administrator can allow them to that one program (README). Nothing is left mounted when the last process in it ends.

As a program (`python -m ramtrain.namespace`) it tries an overlay out for real and fails where that does not work.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ramtrain.system import MS_BIND, mount

ENTER = {
    "mount": ("unshare", "--mount", "--"),
    "user": ("unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "--"),
}

# By which an overlay of ours is known among the mounts.
OVERLAY_SOURCE = "ramtrain"


@dataclass(frozen=True)
class Overlay:
    """An overlay to mount on the folder `lower` itself: what is written goes to `upper`; `work` is overlayfs's own."""

    lower: str
    upper: str
    work: str


def mount_overlays(overlays: Sequence[Overlay], namespace: str, uncovered: Path | None = None) -> None:
    """Mount each overlay on its lower folder; the caller is in a private mount namespace.

    The layers are named by open descriptors: no path needs escaping, and a lower folder that lies below another
    overlay (the project in a volatile /tmp) is still the one on the disk.

    Args:
        uncovered: a folder that is seen as it is on the disk, also below an overlay; made if need be.
    """
    options = "userxattr" if namespace == "user" else "redirect_dir=nofollow,metacopy=off,index=off"
    disk = None
    if uncovered and any(uncovered.is_relative_to(overlay.lower) for overlay in overlays):
        uncovered.mkdir(parents=True, exist_ok=True)
        disk = os.open(uncovered, os.O_PATH | os.O_DIRECTORY)
    opened = [
        [os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in (overlay.lower, overlay.upper, overlay.work)]
        for overlay in overlays
    ]
    for overlay, (lower, upper, work) in sorted(
        zip(overlays, opened, strict=True), key=lambda pair: len(Path(pair[0].lower).parts)
    ):
        layers = f"lowerdir=/proc/self/fd/{lower},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work}"
        mount(OVERLAY_SOURCE, overlay.lower, "overlay", f"{layers},{options}")
    if disk is not None:
        mount(f"/proc/self/fd/{disk}", str(uncovered), flags=MS_BIND)
        os.close(disk)
    for descriptors in opened:
        for descriptor in descriptors:
            os.close(descriptor)


def try_out(overlays: Sequence[Overlay], namespace: str, scratch: Path) -> None:
    """Mount the overlays and use them as a trainer would: write, rename, delete, make a deleted folder again.

    Args:
        scratch: an empty folder on the RAM disk for a small lower folder, in which things are deleted.

    Raises:
        OSError: something of it does not work here; replacing a folder needs extended attributes, which tmpfs has
            for users from Linux 6.6 on.
    """
    for name in ("lower/folder", "upper", "work"):
        (scratch / name).mkdir(parents=True)
    (scratch / "lower/folder/file").write_text("lower")
    small = Overlay(*(str(scratch / name) for name in ("lower", "upper", "work")))
    mount_overlays([*overlays, small], namespace)
    merged = Path(small.lower)
    (merged / "folder/file").write_text("upper")
    shutil.rmtree(merged / "folder")
    (merged / "folder").mkdir()
    if any((merged / "folder").iterdir()):
        raise OSError("a folder that was deleted and made again shows its old files")
    for overlay in overlays:
        probe = Path(overlay.lower) / f".ramtrain-{os.getpid()}"
        probe.write_text("probe")
        probe.unlink()


if __name__ == "__main__":
    trial = json.load(sys.stdin)
    try:
        try_out([Overlay(**entry) for entry in trial["overlays"]], trial["namespace"], Path(trial["scratch"]))
    except OSError as error:
        sys.exit(f"{error.strerror or error}: {error.filename or 'overlay'}")
