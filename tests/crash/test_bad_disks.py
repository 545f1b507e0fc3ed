"""The disk is full, or fails, while a checkpoint or the model comes home: nothing is lost, and what is said helps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs_root
from workplace import Workplace, expected_losses, resuming_config, state_of

from ramtrain.system import run_command

pytestmark = needs_root("a loop device with ext4 of its own")
DISK_BYTES = 64 << 20


@pytest.fixture
def small_disk(tmp_path: Path, resuming: Path) -> Iterator[Workplace]:
    """Return a workplace whose results lie on a small disk of their own."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run_command("mkfs.ext4", "-q", "-F", str(image))
    run_command("mount", "-o", "loop", str(image), str(point))
    workdir = point / "ram train"
    workdir.mkdir()
    config = resuming_config(resuming, **{"ramdisk.size": "200M", "protect.max_loss": "1 s"})
    config["project"]["command"] += ["--mb", "8"]
    place = Workplace(workdir, config)
    run_command("sync", "-f", str(point))
    yield place
    place.reboot()
    run_command("umount", str(point))


def fill(place: Workplace, leave_bytes: int) -> Path:
    """Fill the disk but for `leave_bytes`."""
    filler = place.workdir.parent / "filler"
    with filler.open("wb") as file:
        while (free_bytes := shutil.disk_usage(place.workdir).free - leave_bytes) > 0:
            file.write(bytes(min(free_bytes, 1 << 20)))
            file.flush()
    return filler


def wait_until_detached(image: Path, within_s: float = 60.0) -> None:
    """Wait until no loop device has the image: mount namespaces of other tests' trainers keep what they once saw."""
    deadline = time.monotonic() + within_s
    while attached := run_command("losetup", "--associated", str(image)):
        assert time.monotonic() < deadline, attached
        time.sleep(0.1)


def test_full_while_draining(small_disk: Workplace) -> None:
    small_disk.start(pause_s=0.5)
    small_disk.wait_for("results/resuming/checkpoints/[0-9]*/manifest.json")
    filler = fill(small_disk, leave_bytes=4 << 20)
    (durable,) = small_disk.results.glob("checkpoints/[0-9]*")
    while "no durable checkpoint could be written" not in small_disk.said():
        assert small_disk.snakemake.poll() is None, small_disk.said()
        time.sleep(0.05)
    assert durable.is_dir(), "the older one stays until a newer one is whole"
    small_disk.check_disk()
    filler.unlink()
    assert small_disk.wait() == 0, small_disk.said()
    record = small_disk.check_finished()
    assert record["protection"]["worst_loss_s"] > record["protection"]["max_loss_s"], "and the record says so"


@pytest.mark.parametrize("target", ["train", "unmount"])
def test_full_while_exporting(target: str, small_disk: Workplace) -> None:
    small_disk.start(pause_s=0)
    filler = fill(small_disk, leave_bytes=4 << 20)
    assert small_disk.wait() != 0
    small_disk.wait_for_nobody()
    small_disk.check_disk()
    assert "the export failed" in small_disk.said()
    assert "What it wrote is still in RAM" in small_disk.said()
    assert not (small_disk.results / "model").exists()
    filler.unlink()
    again = small_disk.type_what_is_said(small_disk.said(), target)
    assert "train_run" not in again, "only the export is repeated"
    if target == "unmount":
        assert "run resuming: its model, 1 file of 8 MiB: results/resuming/model; the RAM is released" in again
        again = small_disk.run("train", "--configfile", str(small_disk.configfile)).stdout
        assert "train_run" not in again, "only the record is missing"
    assert small_disk.check_finished()["metrics"]["avg_loss"]["final"] == expected_losses()[-1]


def test_full_when_a_new_model_is_to_replace_an_older_one(small_disk: Workplace, resuming: Path) -> None:
    small_disk.start(pause_s=0)
    assert small_disk.wait() == 0, small_disk.said()
    small_disk.check_finished()
    changed = resuming_config(resuming, **{"ramdisk.size": "200M"})
    changed["project"]["command"] += ["--mb", "8", "--lr", "0.2"]
    small_disk.configure(changed)
    filler = fill(small_disk, leave_bytes=4 << 20)
    small_disk.start(pause_s=0)
    assert small_disk.wait() != 0
    assert state_of(small_disk.results / "model/best_model.pth"), "the earlier model stays"
    small_disk.check_disk()
    filler.unlink()
    again = small_disk.type_what_is_said(small_disk.said())
    assert "train_run" not in again, "only the export is repeated"
    small_disk.check_finished(lr="0.2")


def test_read_only_while_training(small_disk: Workplace) -> None:
    small_disk.start(pause_s=0.3)
    small_disk.wait_for("results/resuming/checkpoints/[0-9]*/manifest.json")
    point = str(small_disk.workdir.parent)
    run_command("mount", "-o", "remount,abort", point)  # as the kernel does when the device fails
    assert small_disk.wait() != 0
    small_disk.wait_for_nobody()
    assert any(small_disk.ram.glob("overlay/upper/output/run/best_model.pth")), "the model is in RAM"
    run_command("umount", point)
    wait_until_detached(Path(f"{point}.img"))
    run_command("mount", "-o", "loop", f"{point}.img", point)
    small_disk.check_disk()
    for arguments in (["--unlock"], ["train"], ["train", "--rerun-incomplete"]):
        ended = small_disk.run(*arguments, "--configfile", str(small_disk.configfile))
    assert ended.returncode == 0, ended.stdout
    small_disk.check_finished()
