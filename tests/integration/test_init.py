"""A first config and the check of it, as a user types them: each config passes and trains as it is; faults are told."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO, SMALL_PROJECT, Ended, ran, small_config
from workplace import Workplace, changed, snakemake_argv

from ramtrain.check import read_config
from ramtrain.lease import SHM
from ramtrain.namespace import ENTER

Ramtrain = Callable[..., Ended]
TRACEBACK = "Traceback (most recent call last)"


@pytest.fixture
def ramtrain(workdir: Path) -> Ramtrain:
    """Return a function that calls `python -m ramtrain` in `workdir`, with this Python as `python` on the PATH."""

    def call(*arguments: str, program: Sequence[str] = (sys.executable, "-m", "ramtrain")) -> Ended:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return ran([*program, *arguments], workdir, PATH=path)

    return call


@pytest.fixture
def check(workdir: Path, ramtrain: Ramtrain) -> Callable[..., Ended]:
    """Return a function that writes a config and checks it."""

    def write_and_check(config: dict[str, Any]) -> Ended:
        (workdir / "my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return ramtrain("check", "--configfile", "my.yaml")

    return write_and_check


def initialized(ramtrain: Ramtrain, project: Path, workdir: Path, trainer: str) -> Path:
    """Have a config made for a project, and checked; return it."""
    made = ramtrain("init", str(project), "--output", "its.yaml")
    assert made.status == 0, made.output
    path = workdir / "its.yaml"
    text = path.read_text()
    assert len(text.splitlines()) <= 20
    assert yaml.safe_load(text)["project"]["trainer"] == trainer, made.output
    checked = ramtrain("check", "--configfile", path.name)
    assert checked.status == 0, checked.output
    assert "can be trained" in checked.output
    return path


def train(ramtrain: Ramtrain, config: Path, workdir: Path) -> dict[str, Any]:
    """Train a config as it is; return the record."""
    ended = ramtrain("train", "--configfile", config.name, program=snakemake_argv())
    assert ended.status == 0, ended.output
    (record,) = workdir.glob("results/*/record.json")
    return json.loads(record.read_text())


def names(record: dict[str, Any]) -> set[str]:
    return {Path(file["path"]).name for file in record["model"]}


def test_a_script_of_ones_own_trains_as_guessed(ramtrain: Ramtrain, project: Path, workdir: Path) -> None:
    record = train(ramtrain, initialized(ramtrain, project, workdir, "generic"), workdir)
    assert names(record) == {"model.bin"}
    assert record["checkpoints"]["seen"]
    assert [Path(file["path"]).name for file in record["artifacts"]] == ["log.txt"]


@pytest.mark.parametrize(
    ("project", "said"),
    [("missing", "no such folder"), ("file", "is a file"), ("empty", "the folder is empty")],
)
def test_init_refuses_what_is_no_project(project: str, said: str, ramtrain: Ramtrain, workdir: Path) -> None:
    (workdir / "file").touch()
    (workdir / "empty").mkdir()
    ended = ramtrain("init", project)
    assert ended.status == 1
    assert said in ended.output
    assert TRACEBACK not in ended.output
    assert sorted(path.name for path in workdir.iterdir()) == ["empty", "file"]


def test_init_keeps_a_config_that_is_there(ramtrain: Ramtrain, project: Path, workdir: Path) -> None:
    (workdir / "its.yaml").write_text("mine\n")
    ended = ramtrain("init", str(project), "--output", "its.yaml")
    assert ended.status == 1
    assert "its.yaml: is there already" in ended.output
    assert (workdir / "its.yaml").read_text() == "mine\n"


def test_init_of_a_folder_whose_name_is_no_utf8(ramtrain: Ramtrain, workdir: Path) -> None:
    project = Path(os.fsdecode(b"p\xff"))
    shutil.copytree(SMALL_PROJECT, project)
    strict = ["env", "PYTHONIOENCODING=utf-8:strict", sys.executable, "-m", "ramtrain"]
    ended = ramtrain("init", str(project), "--output", "its.yaml", program=strict)
    assert ended.status == 0, ended.output
    assert r"in \udcff" not in ended.output
    assert r"/p\udcff, ran none of it" in ended.output


@pytest.fixture
def untouched(project: Path, workdir: Path) -> Iterator[None]:
    """Fail a test that changed anything in the project or the working directory, but for the config."""

    def state() -> dict[Path, tuple[int, int]]:
        paths = [path for root in (project, workdir) for path in root.rglob("*") if path.name != "my.yaml"]
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in [project, *paths]}

    before = state()
    yield
    assert state() == before


# A /dev/shm of its own, which nobody else uses; what is in it at the end, and what is mounted that was not before.
ALONE = """
mount -t tmpfs theirs /dev/shm && cut -d' ' -f2 /proc/mounts >"$0" && "$@"
status=$?
ls -A /dev/shm
cut -d' ' -f2 /proc/mounts | diff "$0" - | grep '^>'
exit $status
"""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("staging", ["auto", "copy"])
def test_a_check_leaves_nothing_in_ram_nor_mounted(
    staging: str, ramtrain: Ramtrain, project: Path, workdir: Path, tmp_path: Path
) -> None:
    (workdir / "my.yaml").write_text(yaml.safe_dump(small_config(project, staging=staging)))
    enter = ENTER["mount" if os.geteuid() == 0 else "user"]
    alone = [*enter, "sh", "-c", ALONE, str(tmp_path / "mounts"), sys.executable, "-m", "ramtrain"]
    ended = ramtrain("check", "--configfile", "my.yaml", program=alone)
    if os.geteuid() != 0 and "can be trained" not in ended.output:
        pytest.skip(f"needs user namespaces, which this machine refuses: {ended.output}")
    assert ended.status == 0, ended.output
    assert ended.output.endswith("  snakemake --cores 1 train --configfile my.yaml\n"), "nothing else is listed"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("backend", "staging"), [("auto", "auto"), ("shm", "copy"), ("path", "auto"), ("disk", "copy")]
)
def test_a_check_says_the_plan(
    backend: str, staging: str, check: Callable[..., Ended], project: Path, workdir: Path
) -> None:
    place = {"path": str(SHM), "disk": str(workdir)}.get(backend)
    ended = check(small_config(project, **{"ramdisk.backend": backend, "ramdisk.path": place, "staging": staging}))
    assert ended.status == 0, ended.output
    taken = ("tmpfs" if os.geteuid() == 0 else "shm") if backend == "auto" else backend
    for words in ("RAM disk", taken, "64 MiB", "staging", "out/model.bin", "nothing yet", "its beginning"):
        assert words in ended.output, words
    assert "Nothing is in the way. To train, type\n  snakemake --cores 1 train --configfile my.yaml\n" in ended.output


@pytest.mark.usefixtures("untouched")
def test_all_faults_are_told_at_once(
    check: Callable[..., Ended], project: Path, nvidia_smi: Callable[..., None]
) -> None:
    config = small_config(
        project,
        **{
            "project.command": ["python", "gone.py"],
            "guard.reserve": "100%",
            "train.gpus": 1,
            "benchmark.run": "other",
            "record.mlflow_uri": "https://me:x1y2z3@example.org",
        },
    )
    ended = check(config)
    assert ended.status == 1
    assert TRACEBACK not in ended.output
    for words in (
        "gone.py: no such file in",
        "its RAM disk does not fit in memory",
        "train.gpus: 1 device wanted",
        "benchmark.run: 'other' is no run",
        "record.mlflow_uri",
        "cannot be trained",
    ):
        assert words in ended.output, words
    assert "Nothing is in the way" not in ended.output


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ramdisk.szie": "1G", "stagin": "copy"}, ["ramdisk.szie: unknown key", "stagin: unknown key"]),
        ({"project.path": "nowhere"}, ["nowhere: no such folder"]),
        ({"project.command": "nonesuch --x"}, ["program 'nonesuch' not found"]),
        ({"project.trainer": "nonesuch"}, ["project.trainer: 'nonesuch' is not known"]),
        ({"ramdisk.backend": "path", "ramdisk.path": "/nowhere"}, ["ramdisk.path: /nowhere: no such folder"]),
        ({"staging": "none"}, ["needs {ram}"]),
        ({"resume": "/nowhere"}, ["resume"]),
    ],
)
def test_a_fault_is_told_as_train_tells_it(
    changes: dict[str, Any], said: list[str], check: Callable[..., Ended], project: Path
) -> None:
    config = small_config(project, **changes)
    if "staging" in changes:
        config["project"]["command"] = ["python", "train.py"]
    ended = check(config)
    assert ended.status == 1
    assert TRACEBACK not in ended.output
    for words in said:
        assert words in ended.output, ended.output


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "command",
    [["bash", "-lc", "python train.py"], ["python", "-W", "ignore", "train.py"], ["python", "-m", "nothing.py"]],
    ids=" ".join,
)
def test_a_script_that_the_command_does_not_name_first_is_not_looked_for(
    command: list[str], check: Callable[..., Ended], project: Path
) -> None:
    ended = check(small_config(project, **{"project.command": command}))
    assert ended.status == 0, ended.output


def test_what_an_adapters_look_finds_is_told_beside_all_else(
    check: Callable[..., Ended], project: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "looking.yaml"
    adapter.write_text("description: Looks first.\ncheck: [--check]\n")
    command = ["sh", "-c", 'echo "no base model for $0" && exit 3', "anna"]
    changes = {"project.trainer": str(adapter), "project.command": command, "train.gpus": 1, "guard.reserve": "100%"}
    ended = check(small_config(project, **changes))
    assert ended.status == 1
    assert TRACEBACK not in ended.output
    for words in ("no base model for anna", "its RAM disk does not fit in memory", "cannot be trained"):
        assert words in ended.output, words
    assert "Nothing is in the way" not in ended.output


@pytest.mark.usefixtures("untouched")
def test_of_many_runs_the_first_are_shown_and_all_are_checked(check: Callable[..., Ended], project: Path) -> None:
    config = small_config(project)
    config["project"]["command"] = [sys.executable, "train.py", "--steps", "{steps}"]
    runs = [{"run": f"r{number}", "steps": number} for number in range(200)]
    config["runs"] = [*runs, {"run": "odd", "steps": 1, "ramdisk.size": "128M", "project.path": "nowhere"}]
    ended = check(config)
    assert ended.status == 1
    assert len(ended.lines("run r")) == 3
    assert "198 more runs, in brief: r3, r4" in ended.output
    assert "nowhere: no such folder" in ended.output


def test_what_was_trained_is_told_and_what_was_changed_since(
    check: Callable[..., Ended], snakemake: Callable[..., Ended], project: Path
) -> None:
    assert snakemake(small_config(project), "train").status == 0
    assert "trained already, nothing of it was changed: " in check(small_config(project)).output
    again = check(small_config(project, **{"train.seed": 2}))
    assert "what it writes" not in again.output
    assert "can be trained" in again.output
    sized = check(changed(small_config(project, **{"train.seed": 2}), {"ramdisk": {"size": "auto"}}))
    assert "the most that run my_pr_ject_ held" in sized.output


def test_what_a_training_would_go_on_from_is_told(workplace: Workplace, ramtrain: Ramtrain) -> None:
    workplace.start(FAULT="stall@9")
    workplace.wait_for("checkpoints/[0-9]*/manifest.json".replace("checkpoints", "results/resuming/checkpoints"))
    workplace.process("train.py", "--epochs").kill()
    assert workplace.wait() != 0
    workplace.wait_for_nobody()
    in_ram = ramtrain("check", "--configfile", "my.yaml")
    assert in_ram.status == 0, in_ram.output
    assert "an earlier attempt left it" in in_ram.output
    assert f"what is in RAM, {workplace.ram}" in in_ram.output
    workplace.reboot()
    assert "results/resuming/checkpoints/" in ramtrain("check", "--configfile", "my.yaml").output
    workplace.configure(changed(yaml.safe_load(workplace.configfile.read_text()), {"train": {"threads": 1}}))
    assert "starts anew" in ramtrain("check", "--configfile", "my.yaml").output


def test_several_config_files_are_merged_as_snakemake_merges_them(tmp_path: Path) -> None:
    from snakemake.utils import update_config

    parts: list[dict[str, Any]] = [
        {"project": {"path": "a", "model": ["x"]}, "runs": "t.tsv", "train": {"seed": 1}},
        {"project": {"path": "b"}, "runs": [{"run": "r"}], "train": None},
        {"train": {"threads": 2}, "project": {"model": ["y"]}},
    ]
    files, expected = [], {}
    for number, part in enumerate(parts):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(part))
        update_config(expected, part)
    assert read_config(files, REPO) == expected


def test_without_a_config_the_example_is_checked(ramtrain: Ramtrain, workdir: Path) -> None:
    ended = ramtrain("check")
    assert "config/runs.tsv: No such file" in ended.output
    assert ended.status == 1
    assert SMALL_PROJECT.is_dir()
