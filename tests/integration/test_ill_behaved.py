"""Trainers with bad manners: the model and the record are right all the same, or the refusal is clear."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import yaml
from conftest import REPO, Ended
from workplace import Workplace, check_folder

from ramtrain.schema import complete, load_yaml

Snakemake = Callable[..., Ended]
PROJECT = REPO / "tests/projects/ill_behaved"
RUN = "ill"
MIB = 1 << 20
NAMES = [
    b"new\nline",
    b" two  blanks ",
    b"-rf",
    b"*",
    b"?",
    b"[ab]",
    b"no \xff text",
    b"quo\"te's",
    b"back\\slash",
    b"esc\x1b[31m\x07",
    b"\xe2\x80\xaetxt.exe",
    b"l" * 255,
]
# Whatever an overlay or a copy makes of them, all in one training: each would hide no other's fault.
MANNERS = (
    "start_anew links hard_links sparse read_only masks attributes nodes names odd_writes databases other_folders "
    "environment others_name leave_a_logger be_silent vanish"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / RUN
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def ill_config(project: Path, *manners: str, **changes: Any) -> dict[str, Any]:
    """Return a config for a trainer with these manners; `changes` are keys of its part `project`."""
    return {
        "project": {
            "path": str(project),
            "command": [sys.executable, "train.py", *manners],
            "model": ["out/model"],
            "checkpoints": [],
            **changes,
        },
        "ramdisk": {"size": "64M"},
        "protect": {"max_loss": "1 s"},
    }


def named(path: str | bytes) -> tuple[str, bytes]:
    """Return a path and what the trainer writes there: the file's name, a thousand times."""
    text = os.fsdecode(path)
    return text, os.fsencode(Path(text).name) * 1000


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, by their path in it; whatever is no file is an error."""
    found = {}
    for path in folder.rglob("*"):
        assert path.is_dir() or (path.is_file() and not path.is_symlink()), path
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, mtime and content of all that is in a folder."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def one_run(workdir: Path) -> tuple[dict[str, Any], Path]:
    """Return the record of the only run, which is valid, and the folder of its results."""
    home = workdir / "results" / RUN
    record = json.loads((home / "record.json").read_text())
    complete(record, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")
    return record, home


@pytest.mark.parametrize("staging", ["overlay", "copy"])
def test_many_bad_manners_at_once(staging: str, snakemake: Snakemake, workdir: Path, project: Path) -> None:
    before = state_of(project)
    config = ill_config(
        project,
        *MANNERS.split(),
        model=["out/model", "out/latest", "out/newest/*"],
        checkpoints=["out/step-*", "out/latest", "out/ck-*"],
        artifacts=["out/*.db", "out/late.log", "out/dangling", "venv/lib/installed"],
    )

    ended = snakemake({**config, "staging": staging}, "train")

    assert ended.status == 0, ended.output
    record, home = one_run(workdir)
    check_folder(home / "model")
    found = contents(home / "model")
    del found["manifest.json"]
    assert found.pop("model/sparse") == b"beginning".ljust(32 * MIB, b"\0") + b"middle".ljust(32 * MIB, b"\0")
    assert (home / "model/model/sparse").stat().st_blocks * 512 < 16 * MIB, "its holes are holes at home"
    databases = [name for name in found if "sqlite" in name]
    assert sorted(databases) == ["model/state.sqlite", "model/state.sqlite-shm", "model/state.sqlite-wal"]
    for name in databases:
        del found[name]
    odd_names = [folder + name for name in NAMES for folder in (b"", b"d" + name[:254] + b"/")]
    assert found == {
        **dict(named(b"model/names/" + name) for name in odd_names),
        **dict(map(named, ["latest/weights-200", "newest/weights-200"])),
        **dict(named(f"model/mask {mask}/file") for mask in ("0", "77")),
        **dict(named(f"model/by its {way} path") for way in ("absolute", "relative")),
        **dict(map(named, ["model/read-only/deep/weights", "model/attributes", "model/nodes/weights"])),
        **dict(map(named, ["model/of the third process"])),
        "model/of a link": b"weights-200" * 1000,
        "model/hard link": b"ck-1" * 1000,
        "model/nodes/empty": b"",
        "model/nameless": b"nameless" * 1000,
        "model/allocated": b"allocated".ljust(MIB, b"\0"),
        "model/again": b"199" * 1000,
    }
    assert stat.S_IMODE((home / "model/model/read-only/deep/weights").stat().st_mode) == 0o400
    for path in ("model/model/state.sqlite", "artifacts/out/log.db"):
        with sqlite3.connect(home / path) as database:
            assert database.execute("select count(*) from steps").fetchone() == (100,), "what was in the WAL is there"
        database.close()

    files = {file["path"]: file["sha256"] for file in (*record["model"], *record["artifacts"])}
    assert len(record["model"]) == len(found) + 1 + len(databases)
    for path in found:
        assert files[f"model/{path}"] == hashlib.sha256(found[path]).hexdigest(), path
    assert set(files) >= {"artifacts/out/log.db", "artifacts/out/log.db-wal", "artifacts/out/late.log"}
    described = json.loads((home / "ro-crate-metadata.json").read_text())["@graph"]
    parts = {os.fsdecode(unquote_to_bytes(entity["@id"])) for entity in described}
    assert parts >= set(files), "each file is in the crate, by its name"
    with (workdir / "results/summary.tsv").open(newline="") as table:
        (row,) = csv.DictReader(table, delimiter="\t")
    assert row["status"] == "done"

    for name in ("nodes/pipe", "nodes/socket", *(["nodes/device"] if os.geteuid() == 0 else [])):
        assert f"run {RUN}: model: out/model/{name} is left out: it is a pipe, socket or device" in ended.output
    assert f"run {RUN}: artifact out/dangling is left out: out/dangling is a link to nothing" in ended.output
    assert f"run {RUN}: the trainer left 1 process behind, which RamTrain has ended: " in ended.output
    assert "Traceback" not in ended.output
    assert state_of(project) == before


def test_a_model_that_a_process_left_behind_is_still_writing_is_no_model(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = ill_config(project, "leave_a_trainer", model=["out/model/*"])
    ended = snakemake(config, "train")
    assert ended.status != 0
    expected = f"run {RUN}: the trainer ended, and a process that it left behind was still writing out/model/late when"
    assert expected in ended.output
    assert "Traceback" not in ended.output
    assert not (workdir / "results" / RUN / "model").exists()
    rescued = snakemake(config, "unmount")
    assert rescued.status == 0, rescued.output
    (folder,) = (workdir / "results" / RUN).glob("rescued-*")
    assert set((folder / "out/model/late").read_bytes()) == set(b"more")


def test_what_cannot_come_home_as_the_model_is_refused_and_only_the_export_is_repeated(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    manners = ["links", "nodes"]
    for model, why in {
        "out/dangling": "is refused: out/dangling is a link to nothing.\n",
        "out/model/nodes/pipe": "is refused: there is no file in it that could be copied.\n",
    }.items():
        ended = snakemake(ill_config(project, *manners, model=[model]), "train")
        assert ended.status != 0
        assert f"run {RUN}: project.model: {model!r} {why}" in ended.output, ended.output
        assert "only the export is repeated" in ended.output
        assert "Traceback" not in ended.output
    ended = snakemake(ill_config(project, *manners, model=["out/latest", "out/model/nodes"]), "train")
    assert ended.status == 0, ended.output
    assert "train_run" not in ended.output
    record, home = one_run(workdir)
    assert [file["path"] for file in record["model"]] == [
        "model/latest/weights-200",
        "model/model/nodes/empty",
        "model/model/nodes/weights",
    ]
    check_folder(home / "model")


@pytest.mark.usefixtures("rebooted")
def test_what_a_trainer_prints_and_how_it_names_things_spoils_no_message(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = ill_config(project, "babble", "save", "tidy_up", "fail", checkpoints=["out/checkpoints/*"])
    ended = snakemake(config, "train")
    assert ended.status != 0
    assert f"run {RUN}: the trainer failed with exit status 3 after " in ended.output
    assert len(ended.output) < 64 << 10, "24 MiB of output are quoted in brief"
    assert "\x1b" not in ended.output and "\0" not in ended.output, "and nothing of it moves the cursor"
    home = workdir / "results" / RUN
    assert (home / "train.log").stat().st_size > 24 * MIB, "all of it is at home"
    assert (home / "failure.json").stat().st_size < 64 << 10
    with (workdir / "results/summary.tsv").open(newline="") as table:
        (row,) = csv.DictReader(table, delimiter="\t")
    assert row["status"] == "failed"

    newest = "out/checkpoints/" + "l" * 255
    (durable,) = (home / "checkpoints").glob("[0-9]*")
    assert json.loads((durable / "manifest.json").read_text())["checkpoint"] == newest
    assert (durable / "project" / newest).read_bytes() == b"l" * 255 * 1000
    check_folder(durable)
    again = snakemake(config, "train")
    assert (
        f"run {RUN}: going on from {newest}, from the durable checkpoint {durable.relative_to(workdir)}" in again.output
    )


@pytest.fixture
def deaf(workdir: Path, project: Path) -> Iterator[Workplace]:
    """Return a workplace for a trainer that heeds no signal; it is given a second to end."""
    adapter = workdir / "deaf.yaml"
    adapter.write_text(yaml.safe_dump({"description": "deaf", "stop": {"signal": "SIGINT", "grace_s": 1}}))
    place = Workplace(workdir, ill_config(project, "heed_no_signal", trainer=str(adapter)), RUN)
    yield place
    place.reboot()


def test_a_trainer_that_heeds_no_signal_is_killed_with_all_its_children(deaf: Workplace) -> None:
    deaf.start()
    deaf.wait_for("**/deaf-*")
    os.killpg(deaf.snakemake.pid, signal.SIGINT)
    assert deaf.wait() != 0
    said = deaf.said()
    by = "(SIGINT|a signal to Snakemake)"  # it comes on two ways, and either may be the first
    assert re.search(f"run {RUN}: {by}: the trainer is sent SIGINT and has 1 s to end", said), said
    assert re.search(f"run {RUN}: the trainer was ended by {by} and, as it did not end, killed after ", said), said
    assert "Traceback" not in said
    deaf.wait_for_nobody()
