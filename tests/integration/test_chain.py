"""The whole chain on a small project: every backend with every staging, as the user who runs the tests."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import REPO, Ended, expected_model, small_config
from workplace import Workplace

from ramtrain.ramdisk import SHM
from ramtrain.redact import MARK
from ramtrain.schema import complete, load_yaml

Snakemake = Callable[..., Ended]
BACKENDS = ["tmpfs", "shm", "path", "disk"]


def manifest(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return mode, size, mtime and hash of everything in `folder`, itself included."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def record(workdir: Path, run: str) -> dict:
    return json.loads((workdir / "results" / run / "record.json").read_text())


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """Return a folder in memory that stands for the RAM disk of some other tool."""
    folder = SHM / f"other tool {os.getpid()}"
    folder.mkdir()
    yield folder
    assert not any(folder.iterdir()), "the adopted RAM disk is left as it was"
    folder.rmdir()


@pytest.mark.parametrize("staging", ["overlay", "copy", "none"])
def test_on_every_backend_runs_end_in_the_same_model(
    staging: str, snakemake: Snakemake, workdir: Path, project: Path, memory_folder: Path
) -> None:
    backends = BACKENDS if os.geteuid() == 0 else BACKENDS[1:]  # only root may mount a tmpfs
    before = manifest(project)
    sweep = {"ramdisk.backend": backends}
    config = small_config(project, **{"ramdisk.path": str(memory_folder), "staging": staging, "sweep": sweep})

    ended = snakemake(config, "train", cores=2)

    assert ended.status == 0, ended.output
    for backend in backends:
        check_run(workdir / f"results/ramdisk.backend={backend}", backend, staging)
    assert manifest(project) == before


def check_run(home: Path, backend: str, staging: str) -> None:
    """Check what came home of a run of the small project, and its record."""
    expected = hashlib.sha256(expected_model(seed=1, steps=5)).hexdigest()
    assert hashlib.sha256((home / "model/model.bin").read_bytes()).hexdigest() == expected, home
    assert (home / "artifacts/out/log.txt").read_text() == "5 steps\n"
    assert "step 5 of 5" in (home / "train.log").read_text()
    written = json.loads((home / "record.json").read_text())
    assert written["model"] == [
        {"path": "model/model.bin", "bytes": (1 << 20) + 14, "sha256": expected},
    ]
    assert (written["ramdisk"]["backend"], written["staging"]["method"]) == (backend, staging)
    assert written["writes"]["trainer"]["logical_bytes"] >= 6 << 20
    if backend != "disk":
        assert written["writes"]["trainer"]["disk_bytes"] <= 64 << 10, home
    complete(written, load_yaml(REPO / "workflow/schemas/record.schema.yaml"), "record.json")


def test_a_second_call_has_nothing_to_do(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    config = small_config(project)
    assert snakemake(config, "train").status == 0
    for script in (REPO / "scripts").glob("*.py"):
        script.touch()
    again = snakemake(config, "train")
    assert "Nothing to be done" in again.output
    bigger = snakemake(small_config(project, **{"ramdisk.size": "65M"}), "train")
    assert "Nothing to be done" in bigger.output, "another size of the RAM disk does not train again"
    other = snakemake(small_config(project, **{"train.seed": 2}), "train", "--dry-run")
    assert "Params have changed" in other.output, "another seed does"


def test_a_config_of_six_lines_takes_the_place_of_the_example(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    ended = snakemake(
        f"project:\n"
        f"  path: {project}\n"
        f"  command: ['{sys.executable}', train.py]\n"
        f"  model: [out/model.bin]\n"
        f"ramdisk:\n"
        f"  size: 64M\n",
        "train",
    )
    assert ended.status == 0, ended.output
    (run,) = [path.parent.name for path in (workdir / "results").glob("*/record.json")]
    written = record(workdir, run)
    assert written["config"]["project"]["trainer"] == "generic"
    assert written["config"]["runs"] is None
    assert written["ramdisk"]["backend"] == ("tmpfs" if os.geteuid() == 0 else "shm"), "the first that works"
    assert written["staging"]["method"] == "overlay"
    model = workdir / "results" / run / "model"
    assert sorted(os.listdir(model)) == ["manifest.json", "model.bin"]
    assert (model / "model.bin").read_bytes() == expected_model(seed=1, steps=5)


def test_a_trainer_without_known_checkpoints_leaves_all_it_wrote_and_unmount_brings_it_home(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, **{"project.checkpoints": []})
    config["project"]["command"] += ["--status", "3"]
    ended = snakemake(config, "train")
    assert ended.status != 0
    assert "no checkpoints are named: a power cut costs the whole training" in ended.output
    assert "run my_pr_ject_: the trainer failed with exit status 3" in ended.output
    assert f"What it wrote is still in RAM, {SHM}/ramtrain-" in ended.output
    assert "  giving up\n" in ended.output
    assert "step 5 of 5" in (workdir / "results/my_pr_ject_/train.log").read_text()

    rescued = snakemake(config, "unmount")
    assert rescued.status == 0, rescued.output
    (folder,) = (workdir / "results/my_pr_ject_").glob("rescued-*")
    assert (folder / "out/checkpoint_5.bin").read_bytes() == expected_model(1, steps=5)
    assert f"all that it wrote, 2 files of 1 MiB: {folder.relative_to(workdir)}; the RAM is released" in rescued.output


def test_a_model_glob_that_matches_nothing_can_be_corrected(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    ended = snakemake(small_config(project, **{"project.model": ["out/*.pth"]}), "train")
    assert ended.status != 0
    assert "'out/*.pth' matches nothing" in ended.output
    for name in ("out/checkpoint_5.bin", "out/log.txt", "out/model.bin"):
        assert f"  {name}\n" in ended.output, "the message lists what the trainer wrote"

    corrected = snakemake(small_config(project), "train")
    assert corrected.status == 0, corrected.output
    assert "train_run" not in corrected.output, "only the export is repeated"


def test_a_row_that_is_taken_out_meanwhile_has_a_message(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    (workdir / "runs.tsv").write_text("run\nfirst\nsecond\n")
    config = small_config(project, runs="runs.tsv")
    config["project"]["command"] = [
        sys.executable,
        "-c",
        f"open({str(workdir / 'runs.tsv')!r}, 'w').write('run\\nb\\n')",
    ]
    ended = snakemake(config, "train")
    assert "is no longer in the runs table. Its RAM disk stays" in ended.output
    assert "Traceback" not in ended.output
    assert snakemake(config, "unmount").status == 0


def test_while_a_run_waits_for_another_snakemake_takes_nothing_from_the_trainer(workplace: Workplace) -> None:
    (workplace.workdir / "runs.tsv").write_text("run\nfirst\nsecond\n")
    config = yaml.safe_load(workplace.configfile.read_text())
    workplace.configure({**config, "runs": "runs.tsv"})
    workplace.start(pause_s=1)
    while "first: training" not in workplace.said() and "second: training" not in workplace.said():
        time.sleep(0.1)
        assert workplace.snakemake.poll() is None, workplace.said()
    time.sleep(1)
    before_s = sum(workplace.snakemake.cpu_times()[:2])
    time.sleep(3)
    used_s = sum(workplace.snakemake.cpu_times()[:2]) - before_s
    assert used_s <= 0.1, f"Snakemake used {used_s} s of CPU in 3 s"


def git(project: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(project), *identity, *arguments], check=True, capture_output=True)


def test_a_record_says_what_was_trained_on_what_and_no_secret_is_written_anywhere(
    snakemake: Snakemake, workdir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, variable, written = "Zq81-argument-Xy", "Zq82-variable-Xy", "Zq83-written-Xy"
    monkeypatch.setenv("HF_TOKEN", variable)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "first")
    trainer = (project / "train.py").read_text()
    (project / "train.py").write_text(
        trainer.replace(
            "arguments = parser",
            "parser.add_argument('--hf-token')\n"
            "assert os.environ['HF_TOKEN'].startswith('Zq82')\n"
            f"api_key = '{written}'\n"
            "arguments = parser",
        )
    )
    config = small_config(project)
    config["project"]["command"] += ["--hf-token", argument, "--steps", "3"]
    before = manifest(project)

    ended = snakemake(config, "train")

    assert ended.status == 0, ended.output
    assert manifest(project) == before, "nothing of the project is written to, not even its Git index"
    (workdir / "my.yaml").unlink()
    for path in workdir.rglob("*"):
        if path.is_file():
            for secret in (argument, variable, written):
                assert secret.encode() not in path.read_bytes(), f"{secret} is in {path}"
                assert base64.b64encode(secret.encode())[:-4] not in path.read_bytes(), f"{secret} is in {path}"
    assert not any(secret in ended.output for secret in (argument, variable, written))

    (home,) = (workdir / "results").glob("my*")
    found = record(workdir, home.name)
    assert found["command"][-4:] == ["--hf-token", MARK, "--steps", "3"]
    command = config["project"]["command"]
    assert found["config"]["project"]["command"] == [*command[:-4], "--hf-token", MARK, "--steps", "3"]
    assert found["project"]["dirty"] is True
    assert found["project"]["diff"] == "project.diff"
    assert found["project"]["inputs_why"] == "all of the project's files, 2"
    assert [entry["path"] for entry in found["project"]["inputs"]] == ["data/words.txt", "train.py"]
    assert f"+api_key = '{MARK}'" in (home / "project.diff").read_text()
    assert found["environment"]["python"] == platform.python_version()
    assert found["environment"]["interpreter"] == sys.executable
    assert found["environment"]["packages"]["psutil"] == psutil.__version__
    assert len(found["environment"]["ramtrain_commit"]) == 40

    command[-3] = "renewed"
    assert "Nothing to be done" in snakemake(config, "train").output, "a token that was renewed trains nothing again"
    git(project, "commit", "--quiet", "--all", "-m", "second")
    again = snakemake(config, "train", "--forcerun", "train_run")
    assert again.status == 0, again.output
    assert record(workdir, home.name)["project"]["diff"] is None
    assert not (home / "project.diff").exists(), "that of an earlier training is gone"
