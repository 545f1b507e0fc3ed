"""What a trainer writes to the disk past its RAM disk is named, and how to keep it in RAM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Ended, small_config

from ramtrain.meter import device_of
from ramtrain.strays import Strays

HOLDING = """
import mmap, os, sys, time
path, way = sys.argv[1:]
file = open(path, "w+b")
file.write(bytes(5000))
file.flush()
if way == "mapped":
    memory = mmap.mmap(file.fileno(), 5000)
    file.close()
if way == "deleted":
    os.unlink(path)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path, str], psutil.Process]]:
    """Return a function that starts a process that has a file open for writing."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path, way: str) -> psutil.Process:
        process = subprocess.Popen([sys.executable, "-c", HOLDING, str(path), way], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return psutil.Process(process.pid)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("way", ["open", "mapped"])
def test_a_file_on_the_disk_is_seen(way: str, tmp_path: Path, holder: Callable[[Path, str], psutil.Process]) -> None:
    if device_of(tmp_path) is None:
        pytest.skip("needs a temporary folder on a disk")
    strays = Strays("/spilled")
    strays.look([holder(tmp_path / "cache.bin", way)])
    assert strays.files == {str(tmp_path / "cache.bin"): 5000}
    assert f"volatile: [{tmp_path}]" in strays.told(2_000_000, "overlay")
    assert "below {ram}" in strays.told(2_000_000, "none")


def test_what_is_in_memory_is_no_stray(holder: Callable[[Path, str], psutil.Process]) -> None:
    path = Path("/dev/shm/ramtrain-test-stray")
    strays = Strays("/spilled")
    strays.look([holder(path, "deleted")])
    assert strays.files == {}
    assert "not seen open" in strays.told(2_000_000, "overlay")


def test_a_process_that_has_ended_has_nothing_to_tell(tmp_path: Path) -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    process.wait()
    strays = Strays("/spilled")
    strays.look([process])
    assert strays.files == {}


def test_a_trainer_that_writes_beside_its_project_is_told_of(
    snakemake: Callable[..., Ended], project: Path, tmp_path: Path
) -> None:
    if device_of(tmp_path) is None:
        pytest.skip("needs a temporary folder on a disk")
    caches = {run: tmp_path / f"cache of {run}" for run in ("stray", "kept")}
    for cache in caches.values():
        cache.mkdir()
    trainer = (
        "import os, sys, time; file = open(sys.argv[1], 'wb'); file.write(os.urandom(8 << 20)); "
        "file.flush(); time.sleep(2.5); os.makedirs('out', exist_ok=True); open('out/model.bin', 'wb').write(b'm')"
    )
    config = small_config(project)
    config["project"]["command"] = [sys.executable, "-c", trainer, str(tmp_path / "cache of {run}/big.bin")]
    config["runs"] = [{"run": "stray"}, {"run": "kept", "project.volatile": [str(caches["kept"])]}]
    ended = snakemake(config, "train")
    assert ended.status == 0, ended.output
    if "staging: overlay" not in ended.output:
        pytest.skip("needs overlays")
    (told,) = [line for line in ended.output.splitlines() if "MiB went to the disk past the RAM disk, into" in line]
    assert told.startswith("run stray: ")
    assert f"volatile: [{caches['stray']}]" in ended.output
    assert (caches["stray"] / "big.bin").exists()
    assert not (caches["kept"] / "big.bin").exists(), "and what is said helps"
