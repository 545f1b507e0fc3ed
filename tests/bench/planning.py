"""How long Snakemake takes to plan a sweep, and how much memory: runs that are all to be trained, or all done."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from figures import ENVIRONMENT, MB, REPO, Row, call, say

from ramtrain.errors import RamTrainError

_FIRST = "run-00000"
_LIMIT_S, _LIMIT_BYTES = 5.0, 300 * MB


@dataclass(frozen=True)
class Planned:
    """A call that plans and does nothing: its seconds, and the most memory that it took."""

    wall_s: float
    peak_bytes: int


def measure_planning(bench: Path, rounds: int) -> list[Row]:
    """1,000 runs, to be trained and done, within 5 s and 300 MB; 10,000, without a limit, once."""
    rows = []
    for count, times in ((1_000, rounds), (10_000, 1)):
        workdir = _sweep(bench, count)
        dry = [_plan(workdir, f"{count:,} runs: dry run", "--dry-run") for _ in range(times)]
        _finish(workdir, count)
        done = [_plan(workdir, "nothing to do", says="Nothing to be done") for _ in range(times)]
        limited = count == 1_000
        rows += _rows(f"10 {count:,} runs planned, dry run", dry, limited)
        rows += _rows(f"10 {count:,} runs planned, all done", done, limited)
    return rows


def _rows(what: str, planned: list[Planned], limited: bool) -> list[Row]:
    seconds = sorted(call.wall_s for call in planned)
    peak_bytes = max(call.peak_bytes for call in planned)
    median_s = seconds[len(seconds) // 2]
    passed = not limited or (median_s <= _LIMIT_S and peak_bytes <= _LIMIT_BYTES)
    limits = f", limits {_LIMIT_S:g} s and {_LIMIT_BYTES / MB:.0f} MB" if limited else ", no limit"
    return [Row(what, "s", seconds, "", [], f"{peak_bytes / MB:.0f} MB at most{limits}", passed)]


def _sweep(bench: Path, count: int) -> Path:
    """Return a working directory with so many runs in a table."""
    workdir = Path(tempfile.mkdtemp(prefix="work-", dir=bench))
    (workdir / "project").mkdir()
    (workdir / "project/readme.txt").touch()
    names = (f"run-{number:05}" for number in range(count))
    rows = "".join(f"{name}\t{name}\t{name}\n" for name in names)
    (workdir / "runs.tsv").write_text(f"run\tlr\ttrain.environment.NAME\n{rows}")
    config = {
        "project": {
            "path": "project",
            "command": ["sh", "-c", "echo $0 > model", "{lr}"],
            "model": ["model"],
            "checkpoints": ["model"],
        },
        "ramdisk": {"size": "16M"},
        "runs": "runs.tsv",
    }
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    return workdir


def _argv(*arguments: str) -> list[str]:
    argv = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile"), "--cores", "1"]
    return [*argv, *arguments, "--configfile", "my.yaml"]


def _plan(workdir: Path, what: str, *arguments: str, says: str = "This was a dry-run") -> Planned:
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        snakemake = subprocess.Popen(
            _argv("train", *arguments), cwd=workdir, env=ENVIRONMENT, stdout=output, stderr=output, text=True
        )
        _, status, usage = os.wait4(snakemake.pid, 0)
        wall_s = time.monotonic() - started
        output.seek(0)
        said = output.read()
    if status != 0 or says not in said:
        raise RamTrainError(f"{what}: it ended with {status} and said:\n{said[-2000:]}")
    planned = Planned(wall_s, usage.ru_maxrss * 1024)
    say(f"  {what}: {planned.wall_s:.2f} s, {planned.peak_bytes / MB:.0f} MB (load {os.getloadavg()[0]:.1f})")
    return planned


def _finish(workdir: Path, count: int) -> None:
    """Train the first run, and let the others have what it left, Snakemake's notes of it included."""
    files = [f"results/{_FIRST}/{step}.json" for step in ("export", "record")]
    call(_argv(*files), workdir, workdir / "output.txt")
    notes = workdir / ".snakemake/metadata"
    first = [(base64.b64decode(note.name).decode(), note.read_text()) for note in notes.iterdir()]
    for number in range(1, count):
        name = f"run-{number:05}"
        (workdir / "results" / name).mkdir()
        for file in files:
            shutil.copyfile(workdir / file, workdir / file.replace(_FIRST, name))
        for path, text in first:
            note = base64.b64encode(path.replace(_FIRST, name).encode()).decode()
            (notes / note).write_text(text.replace(_FIRST, name))
    (workdir / "results/summary.tsv").write_text("run\n")
