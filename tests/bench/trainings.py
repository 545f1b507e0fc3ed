"""Rows 1 and 5 to 9: what RamTrain costs a training, in time, memory and bytes to the disk."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from chain import EXAMPLE_ENVIRONMENT, example_argv, example_config, example_project, run_chain
from figures import GB, MB, Row, alternate, call, in_brief, say, settle

from ramtrain.meter import disk_counters, own_writes

SHORT_EPOCHS, LONG_EPOCHS = 1, 12
LEAST_PAIRS = 7

# Deterministic, on all cores; a line of output for each step, as trainers do.
STEPS_TRAINER = """
import json, time
begun = time.monotonic()
import numpy as np
weights = np.random.default_rng(1).standard_normal((768, 768), dtype=np.float32)
state, steps_s = weights, []
for step in range(400):
    started = time.perf_counter()
    for _ in range(2):
        state = np.tanh(weights @ state / 28)
    steps_s.append(time.perf_counter() - started)
    print("step", step, flush=True)
with open("steps.json", "w") as file:
    json.dump({"steps_s": steps_s, "own_s": time.monotonic() - begun}, file)
"""

# The same with a checkpoint of 57 MB, as the example's, every 100 steps, of which the last two are kept.
DRAIN_TRAINER = """
import json, os, time
import numpy as np
weights = np.random.default_rng(1).standard_normal((768, 768), dtype=np.float32)
state, steps_s = weights, []
payload = bytearray(np.random.default_rng(2).bytes(57 << 20))
for step in range(1600):
    started = time.perf_counter()
    for _ in range(2):
        state = np.tanh(weights @ state / 28)
    steps_s.append(time.perf_counter() - started)
    if step % 100 == 99:
        payload[:4] = step.to_bytes(4, "little")
        with open(f"checkpoint_{step}.bin", "wb") as file:
            file.write(payload)
        if os.path.exists(f"checkpoint_{step - 200}.bin"):
            os.unlink(f"checkpoint_{step - 200}.bin")
        print("step", step, flush=True)
with open("steps.json", "w") as file:
    json.dump({"steps_s": steps_s}, file)
"""
DRAIN_MAX_LOSS = "10 s"

# Eight idle processes, as data loaders are; what RamTrain's two processes above it use of a core meanwhile.
WATCHED_TRAINER = """
import json, subprocess, sys, time
import psutil
loaders = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) for _ in range(8)]
above = psutil.Process().parents()[:2]
def used_s():
    return sum(sum(process.cpu_times()[:2]) for process in above)
time.sleep(5)
before_s, started = used_s(), time.monotonic()
for second in range(60):
    time.sleep(1)
    print("GLOBAL_STEP:", second, flush=True)
share = (used_s() - before_s) / (time.monotonic() - started)
for loader in loaders:
    loader.kill()
json.dump({"share": share, "names": [" ".join(process.cmdline())[-40:] for process in above]}, open("share.json", "w"))
"""


def measure_command(bench: Path, rounds: int) -> list[Row]:
    """Whole `snakemake --cores 1 train` on the example less the record's timings_s.train; memory beside Snakemake."""
    project = example_project(bench)
    chains = []

    def one() -> float:
        chains.append(run_chain(bench, example_config(project, SHORT_EPOCHS), EXAMPLE_ENVIRONMENT))
        return chains[-1].wall_s - chains[-1].train_s

    overhead_s = alternate({"snakemake train less the trainer": one}, rounds)["snakemake train less the trainer"]
    rss_mb = [chain.memory.rss_bytes / MB for chain in chains]
    last = chains[-1].memory
    return [
        Row(
            f"1. whole command less the trainer ({SHORT_EPOCHS} epoch)",
            "s",
            overhead_s,
            "-",
            [],
            f"{statistics.median(overhead_s):.2f} s, limit 4 s",
            statistics.median(overhead_s) <= 4,
            [f"wall {in_brief([c.wall_s for c in chains], 's')}, trainer {in_brief([c.train_s for c in chains], 's')}"],
        ),
        Row(
            "7. memory of script and keeper, sum of peak RSS",
            "MB",
            rss_mb,
            "-",
            [],
            f"{statistics.median(rss_mb):.0f} MB, limit 150 MB",
            statistics.median(rss_mb) <= 150,
            [
                "the last one: " + ", ".join(f"{name} {peak / MB:.1f} MB" for name, peak in last.peaks.items()),
                "PSS of all but Snakemake and the trainer, most at once: "
                + in_brief([c.memory.pss_bytes / MB for c in chains], "MB"),
            ],
        ),
    ]


def measure_steps(bench: Path, rounds: int) -> list[Row]:
    """Mean step of a trainer on all cores, inside a whole `snakemake train` and bare, in pairs."""
    project, bare = bench / "steps", bench / "steps-bare"
    for folder in (project, bare):
        folder.mkdir()
        (folder / "train.py").write_text(STEPS_TRAINER, encoding="utf-8")
    config = {
        "project": {"path": str(project), "command": [sys.executable, "train.py"], "model": ["steps.json"]},
        "ramdisk": {"size": "64M"},
    }
    middles_ms: dict[str, list[float]] = {"RamTrain": [], "bare": []}
    around_s: dict[str, list[float]] = {"RamTrain": [], "bare": []}

    def note(name: str, file: Path, trainer_s: float) -> float:
        content = json.loads(file.read_text(encoding="utf-8"))
        middles_ms[name].append(statistics.median(content["steps_s"]) * 1000)
        around_s[name].append(trainer_s - content["own_s"])
        return statistics.fmean(content["steps_s"]) * 1000

    def ours() -> float:
        chain = run_chain(bench, config)
        return note("RamTrain", chain.model / "steps.json", chain.train_s)

    def theirs() -> float:
        trainer_s = call([sys.executable, "train.py"], bare, bare / "train.log")
        return note("bare", bare / "steps.json", trainer_s)

    figures = alternate({"RamTrain": ours, "bare": theirs}, max(rounds, LEAST_PAIRS))
    ratio = statistics.median(figures["RamTrain"]) / statistics.median(figures["bare"])
    pairs = [ours / theirs for ours, theirs in zip(figures["RamTrain"], figures["bare"], strict=True)]
    medians = [ours / theirs for ours, theirs in zip(*middles_ms.values(), strict=True)]
    started_s = statistics.median(around_s["RamTrain"]) - statistics.median(around_s["bare"])
    return [
        Row(
            "5. trainer's mean step",
            "ms",
            figures["RamTrain"],
            "the same bare",
            figures["bare"],
            f"{(ratio - 1) * 100:+.2f} %, limit +2 %",
            ratio <= 1.02,
            [
                f"ratios of the pairs: mean step {in_brief(pairs, 'x')}, median step {in_brief(medians, 'x')}",
                f"start and end around the trainer, in timings_s.train: {started_s:+.3f} s beside bare",
            ],
        )
    ]


def measure_drain(bench: Path, rounds: int) -> list[Row]:
    """Mean step of a trainer on all cores that saves 57 MB every 1.5 s, with max_loss 10 s and never, in pairs."""
    project = bench / "drain"
    project.mkdir()
    (project / "train.py").write_text(DRAIN_TRAINER, encoding="utf-8")
    drained: list[dict[str, Any]] = []

    def mean_step_ms(max_loss: str) -> float:
        config = {
            "project": {
                "path": str(project),
                "command": [sys.executable, "train.py"],
                "model": ["steps.json"],
                "checkpoints": ["checkpoint_*.bin"],
            },
            "ramdisk": {"size": "512M"},
            "protect": {"max_loss": max_loss},
        }
        chain = run_chain(bench, config)
        if max_loss != "never":
            drained.append(chain.record)
        content = json.loads((chain.model / "steps.json").read_text(encoding="utf-8"))
        return statistics.fmean(content["steps_s"]) * 1000

    contenders = {"draining": lambda: mean_step_ms(DRAIN_MAX_LOSS), "never": lambda: mean_step_ms("never")}
    figures = alternate(contenders, rounds)
    ratio = statistics.median(figures["draining"]) / statistics.median(figures["never"])
    pairs = [with_it / without for with_it, without in zip(figures["draining"], figures["never"], strict=True)]
    drains = [record["writes"]["drain"] for record in drained]
    worst_s = [record["protection"]["worst_loss_s"] for record in drained]
    return [
        Row(
            f"8. trainer's mean step, max_loss {DRAIN_MAX_LOSS}",
            "ms",
            figures["draining"],
            "max_loss never",
            figures["never"],
            f"{(ratio - 1) * 100:+.2f} %, limit +2 %",
            ratio <= 1.02 and all(drain["checkpoints"] for drain in drains),
            [
                f"ratios of the pairs: {in_brief(pairs, 'x')}; worst loss {in_brief(worst_s, 's')}",
                f"drained {[drain['checkpoints'] for drain in drains]} of 16 checkpoints each, "
                f"skipped {[drain['skipped'] for drain in drains]}",
            ],
        )
    ]


def measure_watching(bench: Path, rounds: int) -> list[Row]:
    """What RamTrain uses of a core while a trainer and its eight idle loaders run; the size of the series; 3 times."""
    project = bench / "watched"
    project.mkdir()
    (project / "train.py").write_text(WATCHED_TRAINER, encoding="utf-8")
    config = {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py"],
            "trainer": "coqui",
            "model": ["share.json"],
        },
        "ramdisk": {"size": "64M"},
    }
    shares, hourly_mb = [], []
    for _ in range(min(3, rounds)):
        chain = run_chain(bench, config)
        shares.append(json.loads((chain.model / "share.json").read_text(encoding="utf-8"))["share"] * 100)
        size_bytes = (chain.model.parent / "series.tsv").stat().st_size
        hourly_mb.append(size_bytes / chain.train_s * 3600 / MB)
        say(f"  {shares[-1]:.2f} % of a core, {hourly_mb[-1]:.2f} MB an hour")
    return [
        Row(
            "9. watching a trainer, of a core",
            "%",
            shares,
            "-",
            [],
            f"{statistics.median(shares):.2f} %, limit 1 %; {statistics.median(hourly_mb):.2f} MB an hour, limit 1 MB",
            statistics.median(shares) <= 1 and statistics.median(hourly_mb) <= 1,
            [],
        )
    ]


def measure_writes(bench: Path, _: int) -> list[Row]:
    """Disk bytes (write_bytes - cancelled_write_bytes) of the example's whole training, by overlay and bare; once."""
    project = example_project(bench)
    settle(bench)
    before, device_before = own_writes(), disk_counters(bench).device_bytes
    bare_s = call(example_argv(LONG_EPOCHS), project, bench / "bare.log", EXAMPLE_ENVIRONMENT)
    bare = own_writes().since(before)
    settle(bench)
    device_bytes = (disk_counters(bench).device_bytes or 0) - (device_before or 0)
    shutil.rmtree(project / "output")
    say(f"  bare: {bare.disk_bytes / MB:.1f} MB in {bare_s:.1f} s")
    chain = run_chain(bench, example_config(project, LONG_EPOCHS), EXAMPLE_ENVIRONMENT)
    writes = chain.record["writes"]
    ours_mb, theirs_mb = writes["trainer"]["disk_bytes"] / MB, bare.disk_bytes / MB
    say(f"  overlay: {ours_mb:.3f} MB in {chain.train_s:.1f} s")
    return [
        Row(
            f"6. trainer's bytes to the disk, {LONG_EPOCHS} epochs",
            "MB",
            [ours_mb],
            "the same bare",
            [theirs_mb],
            "limits 1 MB, and 1 GB bare",
            chain.record["staging"]["method"] == "overlay" and ours_mb <= 1 and theirs_mb >= GB / MB,
            [
                f"given to write calls: {writes['trainer']['logical_bytes'] / MB:.0f} MB, bare "
                f"{bare.logical_bytes / MB:.0f} MB; the device, all processes: "
                f"{(writes['device']['bytes'] or 0) / MB:.0f} MB with the export, bare {device_bytes / MB:.0f} MB",
                f"whole command less the trainer: {chain.wall_s - chain.train_s:.2f} s; "
                f"trainer {chain.train_s:.1f} s, bare {bare_s:.1f} s; memory {chain.memory.rss_bytes / MB:.0f} MB RSS",
            ],
        )
    ]
