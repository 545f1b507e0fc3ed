"""Rows 2 to 4: staging and export against the tools that one would use instead."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import (
    MB,
    MIB,
    Row,
    alternate,
    call,
    claim_memory,
    fill,
    fill_small,
    in_brief,
    leased,
    set_cached,
    settle,
    versus,
)

from ramtrain.durable import commit_folder
from ramtrain.staging import stage_project


def stage_s(project: Path, staging: str) -> float:
    """Return the seconds of staging a project on a new RAM disk."""
    with leased(project, staging) as (run, lease):
        started = time.monotonic()
        stage_project(run, lease)
        return time.monotonic() - started


def copy_s(program: str, project: Path) -> float:
    """Return the seconds of `cp -a` or `rsync -a` of a project to such a RAM disk."""
    with leased(project, "copy") as (_, lease):
        return call([program, "-a", f"{project}/", f"{lease.folder}/copy"], project)


def measure_overlay(bench: Path, rounds: int) -> list[Row]:
    """Stage 100,000 files by overlay; `cp -a` of them into the same kind of RAM disk; page cache warm."""
    project = bench / "many"
    fill_small(project, 100_000, 100)
    settle(bench)
    figures = alternate({"overlay": lambda: stage_s(project, "overlay"), "cp": lambda: copy_s("cp", project)}, rounds)
    shutil.rmtree(project)
    middle_s = statistics.median(figures["overlay"])
    limit = f"{middle_s:.3f} s, limit 0.3 s"
    return [
        Row(
            "2. stage by overlay, 100,000 files",
            "s",
            figures["overlay"],
            "cp -a",
            figures["cp"],
            limit,
            middle_s <= 0.3,
        )
    ]


def measure_copy(bench: Path, rounds: int) -> list[Row]:
    """Stage 2 GB in 8 files and 20,000 of 4 KB by copy; `cp -a`, `rsync -a` to the same kind of RAM disk."""
    project = bench / "large"
    fill_small(project, 20_000, 4096)
    for number in range(8):
        fill(project / f"large-{number}.bin", 250 * MB)
    settle(bench)
    rivals = [program for program in ("cp", "rsync") if shutil.which(program)]
    notes = [] if "rsync" in rivals else ["rsync is not installed: compared with cp -a only"]
    rows = []
    for name, cached in (("3a", True), ("3b", False)):

        def ready(work: Callable[..., float], *arguments: Any, cached: bool = cached) -> Callable[[], float]:
            def one() -> float:
                set_cached(project, cached)
                return work(*arguments)

            return one

        contenders = {program: ready(copy_s, program, project) for program in rivals}
        figures = alternate({"copy": ready(stage_s, project, "copy"), **contenders}, rounds)
        best = min(rivals, key=lambda program: statistics.median(figures[program]))
        others = [f"{program} -a: {in_brief(figures[program], 's')}" for program in rivals if program != best]
        state = "warm" if cached else "cold"
        what = f"{name}. stage by copy, 2 GB and 20,000 files, cache {state}"
        rows.append(versus(what, figures["copy"], f"{best} -a", figures[best], 1.0, [*others, *notes]))
    shutil.rmtree(project)
    return rows


def measure_export(bench: Path, rounds: int) -> list[Row]:
    """Bring 2 GB (1.4 GB in one file) from RAM to the disk for good, verified; the other side reads from the cache."""
    project = bench / "export"
    project.mkdir()
    parts_s: list[list[float]] = []
    with leased(project, "copy") as (_, lease):
        model = Path(lease.folder) / "model"
        model.mkdir()
        sizes_mb = [1400, *[120] * 4, *[6] * 20]
        for number, size_mb in enumerate(sizes_mb):
            fill(model / f"{number}.bin", size_mb * MB)
        target = project / "home"

        def ready() -> None:
            shutil.rmtree(target, ignore_errors=True)
            settle(project)
            claim_memory()

        def ours() -> float:
            ready()
            started = time.monotonic()
            commit_folder({path.name: path for path in sorted(model.iterdir())}, target)
            return time.monotonic() - started

        def theirs() -> float:
            ready()
            steps = [["cp", "-a", model, target], ["sync", "-f", target], None]
            files = [target / path.name for path in sorted(model.iterdir())]
            parts_s.append([call(step or ["sha256sum", *files], project) for step in steps])
            return sum(parts_s[-1])

        figures = alternate({"export": ours, "cp, sync, sha256sum": theirs}, rounds)
    shutil.rmtree(project)
    middle_s = [statistics.median(column) for column in zip(*parts_s, strict=True)]
    started = time.monotonic()
    hashlib.sha256(bytes(256 * MIB))
    rate = 256 * MIB / MB / (time.monotonic() - started)
    note = "of it cp {:.2f} s, sync {:.2f} s, sha256sum {:.2f} s".format(*middle_s)
    note += f" ({2000 / middle_s[2]:.0f} MB/s; hashlib: {rate:.0f} MB/s)"
    against = "cp -a, sync -f, sha256sum"
    return [versus("4. export 2 GB, verified", figures["export"], against, figures["cp, sync, sha256sum"], 1.0, [note])]
