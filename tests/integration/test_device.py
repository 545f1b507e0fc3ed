"""On a disk with no neighbours: what the record says was written is what the device saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import SMALL_PROJECT, needs_root, small_config
from workplace import snakemake_argv

from ramtrain.system import mount_of, run_command

pytestmark = needs_root("a loop device with ext4 of its own")

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
