"""On a disk with no neighbours: what the record says was written is what the device saw."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import REPO, SMALL_PROJECT, needs_root, small_config
from workplace import snakemake_argv

from ramtrain.system import mount_of, run_command

pytestmark = needs_root("a loop device with ext4 of its own")

WRITERS_PROJECT = REPO / "tests/projects/writers"
TRAINER = ["train.py", "--steps", "20", "--mb", "20", "--sync"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], int]]]:
    """Return a mounted loop device and a function for the bytes it has been given to write, all settled."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    run_command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    run_command("mount", "-o", "loop", str(image), str(point))
    name = Path(mount_of(point).source).name

    def written_bytes() -> int:
        run_command("sync", "-f", str(point))
        return psutil.disk_io_counters(perdisk=True)[name].write_bytes

    yield point, written_bytes
    run_command("umount", str(point))


def test_the_record_agrees_with_the_device_and_ram_saves_ten_times(disk: tuple[Path, Callable[[], int]]) -> None:
    point, written_bytes = disk
    project, workdir = point / "project", point / "ram train"
    run_command("cp", "-a", str(SMALL_PROJECT), str(project))
    workdir.mkdir()
    config = small_config(project, **{"ramdisk.size": "256M"})
    config["project"]["command"] = [sys.executable, *TRAINER]
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))

    before = written_bytes()
    subprocess.run(
        snakemake_argv("train", "--configfile", "my.yaml"), cwd=workdir, check=True, capture_output=True, timeout=120
    )
    with_ram_bytes = written_bytes() - before
    record = json.loads((workdir / "results/project/record.json").read_text())

    before = written_bytes()
    subprocess.run([sys.executable, *TRAINER], cwd=project, check=True, capture_output=True, timeout=120)
    bare_bytes = written_bytes() - before

    writes = record["writes"]
    slack_bytes = 0.05 * with_ram_bytes + (2 << 20)
    counted_bytes = writes["trainer"]["disk_bytes"] + writes["export"]["disk_bytes"]
    figures = f"device {with_ram_bytes}, record {writes}, bare {bare_bytes}"
    assert abs(writes["device"]["bytes"] - with_ram_bytes) <= slack_bytes, figures
    assert abs(writes["filesystem"]["bytes"] - with_ram_bytes) <= slack_bytes, figures
    assert abs(counted_bytes - with_ram_bytes) <= slack_bytes, figures
    assert bare_bytes >= 10 * with_ram_bytes, figures


@pytest.mark.parametrize("way", ["fleeting", "overwrite", "small", "brood", "mapped", "daemon"])
def test_whatever_way_a_trainer_writes_the_record_says_what_the_device_was_given(
    way: str, disk: tuple[Path, Callable[[], int]]
) -> None:
    config = {
        "project": {"command": [sys.executable, "train.py", way, "out"], "model": ["out/model.bin"]},
        "ramdisk": {"size": "400M", "backend": "disk"},
    }
    record, device_bytes = _run_on(disk, WRITERS_PROJECT, config)
    _check_device(record, device_bytes)
    if way == "daemon":  # it is caught: ended, and what it wrote is counted
        assert record["writes"]["trainer"]["logical_bytes"] >= 20 << 20


def test_what_the_example_writes_to_the_disk_is_in_its_record(disk: tuple[Path, Callable[[], int]]) -> None:
    config = yaml.safe_load((REPO / "config/config.yaml").read_text())
    config["project"]["command"] = [sys.executable, "train.py", "--epochs", "1", "--seed", "1"]
    config["train"] = {"threads": 1}
    config |= {"runs": None, "benchmark": {}, "ramdisk": {"size": "600M", "backend": "disk"}}
    record, device_bytes = _run_on(disk, REPO / "examples/tiny_tts", config)
    _check_device(record, device_bytes)


def _run_on(disk: tuple[Path, Callable[[], int]], source: Path, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Train a copy of a project that lies on the disk; return the record, and what the disk was given."""
    point, written_bytes = disk
    project, workdir = point / "project", point / "ram train"
    shutil.copytree(source, project, ignore=shutil.ignore_patterns("output", "__pycache__"))
    workdir.mkdir()
    config["project"]["path"] = str(project)
    (workdir / "my.yaml").write_text(yaml.safe_dump(config))
    before = written_bytes()
    argv = snakemake_argv("train", "--configfile", "my.yaml")
    done = subprocess.run(argv, cwd=workdir, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    device_bytes = written_bytes() - before
    return json.loads((workdir / "results/project/record.json").read_text()), device_bytes


def _check_device(record: dict[str, Any], device_bytes: int) -> None:
    """Check the device's figure against its counter: within 2 % or 1 MB, whichever is larger."""
    slack_bytes = max(0.02 * device_bytes, 1_000_000)
    found = record["writes"]["device"]["bytes"]
    print(f"device {device_bytes}, record {found}, trainer {record['writes']['trainer']}")
    assert abs(found - device_bytes) <= slack_bytes, f"device {device_bytes}, record {record['writes']}"
