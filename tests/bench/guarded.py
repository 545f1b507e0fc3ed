"""Rows 10 and 11: what the guard costs, and how fast a trainer it is in time for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from chain import run_chain
from figures import MB, REPO, Row, say
from trainings import WATCHED_TRAINER

from ramtrain.errors import RamTrainError

RATES_MB_S = (1000, 2000, 4000, 0)
# What holds the RAM disk of 64 MiB between twice the cushion, where room is made, and the cushion.
NEARLY_FULL = 'open("ballast", "wb").write(bytes(52 << 20))\n'


def measure_guard(bench: Path, rounds: int) -> list[Row]:
    """What the guard uses of a core, with much room and with little; a RAM disk of 1 GiB filled four times over."""
    return [_cost(bench, min(3, rounds)), _rates(bench, rounds)]


def _cost(bench: Path, rounds: int) -> Row:
    project = bench / "guarded"
    project.mkdir()

    def share(code: str, size: str, enabled: bool) -> float:
        (project / "train.py").write_text(code, encoding="utf-8")
        config = {
            "project": {"path": str(project), "command": [sys.executable, "train.py"], "model": ["share.json"]},
            "ramdisk": {"size": size},
            "guard": {"enabled": enabled, "grow": False},
        }
        model = run_chain(bench, config).model
        return json.loads((model / "share.json").read_text(encoding="utf-8"))["share"] * 100

    with_it, without, nearly_full = [], [], []
    for _ in range(rounds):
        with_it.append(share(WATCHED_TRAINER, "2G", enabled=True))
        without.append(share(WATCHED_TRAINER, "2G", enabled=False))
        nearly_full.append(share(NEARLY_FULL + WATCHED_TRAINER, "64M", enabled=True))
        say(
            f"  {with_it[-1]:.2f} % of a core, {without[-1]:.2f} % without, {nearly_full[-1]:.2f} % where room is short"
        )
    cost = median(with_it) - median(without)
    return Row(
        "10. watching with the guard, of a core",
        "%",
        with_it,
        "guard.enabled: false",
        without,
        f"{cost:+.2f} %, limit +0.5 %",
        cost <= 0.5,
        [f"all the time with little room, looking 100 times a second: {median(nearly_full):.2f} %"],
    )


def _rates(bench: Path, rounds: int) -> Row:
    project = bench / "filling"
    shutil.copytree(REPO / "tests" / "projects" / "filling", project)
    held: dict[int, int] = {}
    lowest_mb: dict[int, list[float]] = {}
    for rate in RATES_MB_S:
        held[rate], lowest_mb[rate] = 0, []
        for _ in range(rounds):
            try:
                record = run_chain(bench, _filling_config(project, rate)).record
            except RamTrainError as error:
                say(f"  {rate} MB/s: {error}")
                continue
            held[rate] += 1
            lowest_mb[rate].append((record["ramdisk"]["size_bytes"] - record["ramdisk"]["peak_bytes"]) / MB)
        least_mb = min(lowest_mb[rate], default=0)
        say(f"  {rate or 'no limit'} MB/s: {held[rate]} of {rounds}, least room {least_mb:.0f} MB")
    told = ", ".join(f"{rate or 'no limit'}: {count} of {rounds}" for rate, count in held.items())
    return Row(
        "11. room that was left at 2 GB/s, the least",
        "MB",
        lowest_mb[2000],
        "-",
        [],
        f"{held[2000]} of {rounds} never full",
        held[2000] == rounds,
        [f"trainings that never met a full RAM disk, by MB/s: {told}"],
    )


def _filling_config(project: Path, rate_mb_s: int) -> dict[str, Any]:
    arguments = ["--checkpoints", "16", "--mb", "256", "--mb-s", str(rate_mb_s)]
    return {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", *arguments],
            "model": ["out/model.bin"],
            "checkpoints": ["out/checkpoint_*.bin"],
        },
        "ramdisk": {"size": "1G"},
        "guard": {"grow": False},
        "protect": {"max_loss": "never"},
    }
