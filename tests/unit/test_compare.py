"""Two records: every difference is named, nothing is called the same that is not known, and bad input has a message."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_PROJECT, small_config
from workplace import changed, snakemake_argv

from ramtrain.compare import Comparison, compare
from ramtrain.compared import as_dict, as_text
from ramtrain.errors import RamTrainError
from ramtrain.recorded import Record, find_record

SECRET = "[secret left out]"
LOSS = {"final": 0.5, "best": 0.4, "goal": "min", "step_of_best": 7, "source": "log"}
GPU = {"name": "GPU X", "driver": "550.1", "memory_bytes": 8 << 30, "uuid": "GPU-1"}
COMMAND = ["python", "train.py", "--lr", "1e-3", "--out", "{ram}/out"]
# What a record has beside today's fields when all of it is there.
MORE: dict[str, Any] = {
    "parameters": {"lr": "1e-3", "seed": "1"},
    "training.project": "/home/a/project",
    "training.command": COMMAND,
    "training.threads": 2,
    "training.environment": {"MODE": "fast"},
    "metrics": {"loss": LOSS},
    "devices": ["0"],
    "environment.gpus": [GPU],
    "environment.ramtrain_commit": "1" * 40,
    "project.git_commit": "a" * 40,
    "project.dirty": False,
    "project.diff": None,
    "project.inputs_why": "all files",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of a real run of the small project."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(SMALL_PROJECT, folder / "small")
    (folder / "my.yaml").write_text(yaml.safe_dump(small_config(folder / "small")))
    argv = snakemake_argv("train", "--configfile", "my.yaml")
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder / "results/small"


@pytest.fixture
def real(results: Path) -> dict[str, Any]:
    """Return the record of that run, as it is today."""
    return json.loads((results / "record.json").read_text())


@pytest.fixture
def full(real: dict[str, Any]) -> dict[str, Any]:
    """Return that record with all that a record may have."""
    return changed(real, copy.deepcopy(MORE))


def compared(a: dict[str, Any], b: dict[str, Any], folder: Path = Path("/nowhere")) -> Comparison:
    return compare(Record(folder / "a/record.json", a), Record(folder / "b/record.json", b))


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines below each heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("  "):
            found[heading].append(line.strip())
        else:
            heading = line
            found.setdefault(heading, [])
    return {heading: lines for heading, lines in found.items() if lines}


def same(text: str) -> str:
    """Return the line of what is the same."""
    return next((line for line in text.splitlines() if line.startswith("the same: ")), "")


def other(record: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return changed(copy.deepcopy(record), changes)


def test_a_record_is_the_same_as_itself(full: dict[str, Any]) -> None:
    text = as_text(compared(full, full))
    hashed = full["model"][0]["sha256"]
    assert text.splitlines()[0] == f"the models are the same, byte for byte (SHA-256 {hashed})"
    assert sections(text) == {}
    assert same(text) == (
        "the same: command, project, parameters (1), seed, threads and environment, config, code (commit aaaaaaaaaaaa, "
        f"no uncommitted changes), inputs (2 files), Python {full['environment']['python']}, "
        f"packages ({len(full['environment']['packages']):,}), machine, devices, RamTrain "
        f"({full['environment']['ramtrain']}), metrics (5)"
    )


@pytest.mark.parametrize(
    ("key", "value", "section", "line", "no_longer_same"),
    [
        ("training.project", "/mnt/project", "training", "project: /home/a/project -> /mnt/project", "project"),
        ("training.threads", 4, "training", "threads: 2 -> 4", "threads"),
        ("training.environment", {"MODE": "slow"}, "training", "environment.MODE: fast -> slow", "threads"),
        ("parameters", {"lr": "1e-4", "seed": "1"}, "training", "lr: 1e-3 -> 1e-4", "parameters"),
        ("parameters", {"lr": "1e-3", "seed": "2"}, "training", "seed: 1 -> 2", "seed"),
        ("protection.resumed_from", "c_5", "training", "its last attempt went on from: the beginning -> c_5", None),
        ("config.protect.max_loss", "5 min", "config", "protect.max_loss: 10 min -> 5 min", "config"),
        ("config.project.model", ["x.bin"], "config", 'project.model: ["out/model.bin"] -> ["x.bin"]', "config"),
        ("project.git_commit", "b" * 40, "code", f"commit: {'a' * 40} -> {'b' * 40}", "code"),
        ("project.git_commit", None, "code", f"commit: {'a' * 40} -> none", "code"),
        ("project.dirty", True, "code", "uncommitted changes: no -> yes", "code"),
        ("environment.python", "3.99.0", "packages", "changed: Python: {python} -> 3.99.0", "Python"),
        ("environment.packages.numpy", "9.9", "packages", "changed: numpy: {numpy} -> 9.9", "packages"),
        ("environment.packages.new", "1.0", "packages", "only in B: new 1.0", "packages"),
        ("environment.conda.cudnn", "9.1 h0", "packages", "only in B: cudnn 9.1 h0", "conda packages"),
        ("environment.kernel", "9.9.9", "machine", "kernel: {kernel} -> 9.9.9", "machine"),
        ("environment.memory_bytes", 64 << 30, "machine", "memory_bytes: {memory} -> 64 GiB", "machine"),
        ("environment.disk.model", "SSD", "machine", "disk.model: {disk} -> SSD", "machine"),
        ("environment.gpus", [{**GPU, "driver": "560"}], "machine", "gpus.0.driver: 550.1 -> 560", "machine"),
        ("environment.gpus", [], "machine", "gpus.0.name: GPU X -> none", "machine"),
        ("devices", ["1"], "machine", 'devices: ["0"] -> ["1"]', "devices"),
        ("environment.ramtrain", "9.9", "RamTrain", "RamTrain: {ramtrain} -> 9.9", "RamTrain"),
        ("environment.ramtrain_commit", "2" * 40, "RamTrain", f"its commit: {'1' * 40} -> {'2' * 40}", "RamTrain"),
        ("ramdisk.backend", "path", "RamTrain", "RAM disk: {backend} -> path", "RamTrain"),
        ("metrics", {"loss": {**LOSS, "final": 0.6}}, "metrics", "loss.final: 0.5 -> 0.6", "metrics"),
    ],
)  # fmt: skip
def test_every_change_is_named(
    key: str, value: Any, section: str, line: str, no_longer_same: str | None, full: dict[str, Any]
) -> None:
    environment = full["environment"]
    full["environment"]["packages"].setdefault("numpy", "1.0")
    comparison = compared(full, other(full, {key: value}))
    text = as_text(comparison)
    for name, said in {
        "python": environment["python"],
        "numpy": environment["packages"]["numpy"],
        "kernel": environment["kernel"],
        "ramtrain": environment["ramtrain"],
        "backend": full["ramdisk"]["backend"],
        "disk": environment["disk"]["model"] or "none",
    }.items():
        line = line.replace(f"{{{name}}}", said)
    found = sections(text)
    if "{memory}" in line:
        assert found["machine"][0].endswith(line.partition("{memory}")[2])
    else:
        assert line in found[section]
    assert set(found) <= {section, "not known"}
    assert not no_longer_same or f" {no_longer_same}" not in same(text).replace(",", " ").replace("(", " ( ")
    assert section in as_dict(comparison)["differences"]


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("python train.py --lr 1e-4 --out {ram}/out", ["--lr: 1e-3 -> 1e-4"]),
        ("python train.py --lr=1e-3 --out {ram}/out --fast", ["--fast: none -> given"]),
        ("python train.py --lr -1e-3", ["--lr: 1e-3 -> -1e-3", "--out: {ram}/out -> none"]),
        ("python3 train.py --lr 1e-3 --out {ram}/out", ["program: python -> python3"]),
        ("python x.py --lr 1e-3 --out {ram}/out", ["argument 1: train.py -> x.py"]),
        (
            "python train.py --out {ram}/out --lr 1e-3",
            [f"order of the arguments: {' '.join(COMMAND)} -> python train.py --out {{ram}}/out --lr 1e-3"],
        ),
    ],
)
def test_a_command_is_compared_argument_by_argument(command: str, lines: list[str], full: dict[str, Any]) -> None:
    text = as_text(compared(full, other(full, {"training.command": command.split()})))
    assert [line.replace("'", "") for line in sections(text)["training"]] == lines
    assert "command" not in same(text)


def inputs(*names: str, **hashes: str) -> list[dict[str, str]]:
    return [{"path": name, "sha256": hashes.get(name, "0") * 64} for name in names]


def test_inputs_that_were_added_removed_or_changed_are_named(full: dict[str, Any]) -> None:
    a = other(full, {"project.inputs": inputs("gone", "kept", "x")})
    b = other(full, {"project.inputs": inputs("kept", "new", "x", x="1")})
    comparison = compared(a, b)
    assert sections(as_text(comparison))["inputs"] == ["changed: x", "only in A: gone", "only in B: new"]
    assert {"what": "new", "a": None, "b": "0" * 64} in as_dict(comparison)["differences"]["inputs"]


def test_of_many_changes_twenty_are_named_and_the_others_counted(full: dict[str, Any]) -> None:
    names = [f"{number:04}" for number in range(1500)]
    a = other(full, {"project.inputs": inputs(*names)})
    b = other(full, {"project.inputs": inputs(*names[:10], **dict.fromkeys(names, "1"))})
    b["environment"]["packages"] = dict.fromkeys(names, "1.0")
    comparison = compared(a, b)
    found = sections(as_text(comparison))
    assert len(found["inputs"]) == 10 + 21
    assert found["inputs"][-1] == "only in A: and 1,470 more"
    assert found["packages"][-1] == "only in B: and 1,480 more"
    assert len(as_dict(comparison)["differences"]["inputs"]) == 1500


def test_inputs_are_not_called_the_same_where_not_all_were_hashed(full: dict[str, Any]) -> None:
    left_out = other(full, {"project.inputs_left_out": 1200, "project.inputs_why": "files over 1 GiB are left out"})
    text = as_text(compared(full, left_out))
    assert "inputs" not in same(text)
    assert sections(text)["not known"] == [
        "inputs: 1,200 of B were left out of hashing (files over 1 GiB are left out)",
        "inputs: 2 files hashed in both, and the same",
    ]
    fewer = other(left_out, {"project.inputs": full["project"]["inputs"][:1]})
    assert sections(as_text(compared(full, fewer)))["inputs"][0].startswith("only hashed in A: ")


def write(folder: Path, record: dict[str, Any], **files: str | bytes) -> Record:
    """Put a record into a folder, with files beside it; return it as it is found there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record))
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_record(str(folder))


DIFF = """diff --git a/train.py b/train.py
index 1..2 100644
--- a/train.py
+++ b/train.py
@@ -1,2 +1,2 @@
 import torch
-lr = 1
+lr = {}
"""
NEW = """diff --git a/my model.py b/my model.py
new file mode 100644
--- /dev/null
+++ b/my model.py
@@ -0,0 +1 @@
+x = 1
"""


def test_uncommitted_changes_are_told_file_by_file(full: dict[str, Any], tmp_path: Path) -> None:
    dirty = other(full, {"project.dirty": True, "project.diff": "project.diff"})
    a = write(tmp_path / "a", dirty, **{"project.diff": DIFF.format(2)})
    b = write(tmp_path / "b", dirty, **{"project.diff": DIFF.format(3) + NEW})
    assert sections(as_text(compare(a, b)))["code"] == [
        "uncommitted changes of my model.py: none -> 1 line",
        "uncommitted changes of train.py: 2 lines -> 2 lines, others",
    ]
    clean = write(tmp_path / "clean", full)
    assert sections(as_text(compare(clean, a)))["code"] == [
        "uncommitted changes: no -> yes",
        "uncommitted changes of train.py: none -> 2 lines",
    ]
    assert "config, commit aaaaaaaaaaaa, uncommitted changes, inputs" in same(as_text(compare(a, a)))
    (tmp_path / "b/project.diff").unlink()
    text = as_text(compare(a, b))
    assert "uncommitted changes: which ones, in B, is not at hand here" in sections(text)["not known"]
    assert "uncommitted changes" not in same(text)


def test_a_secret_that_was_left_out_is_not_called_the_same(full: dict[str, Any], tmp_path: Path) -> None:
    secrets = {"training.environment": {"API_KEY": SECRET}, "project.dirty": True, "project.diff": "project.diff"}
    record = other(full, secrets)
    record["training"]["command"] += ["--token", SECRET]
    a, b = (write(tmp_path / name, record, **{"project.diff": DIFF.format(SECRET)}) for name in "ab")
    text = as_text(compare(a, b))
    assert sections(text) == {
        "not known": [
            f"{what}: a secret was left out and cannot be compared"
            for what in ("--token", "environment.API_KEY", "uncommitted changes of train.py")
        ]
    }
    assert "command" not in same(text)
    assert "environment" not in same(text)


def test_what_a_record_lacks_is_not_recorded(full: dict[str, Any]) -> None:
    lines = set()
    for key in sorted(full.keys() - {"run"}):
        less = {name: value for name, value in full.items() if name != key}
        for sides in ((less, full), (full, less), (less, less)):
            comparison = compared(*sides)
            lines |= set(sections(as_text(comparison)).get("not known", []))
            json.dumps(as_dict(comparison), allow_nan=False)
        for part in full[key] if isinstance(full[key], dict) else []:
            less = {**full, key: {name: value for name, value in full[key].items() if name != part}}
            comparison = compared(full, less)
            lines |= set(sections(as_text(comparison)).get("not known", []))
    for expected in (
        "metrics: not recorded in A",
        "metrics: not recorded in B",
        "config: not recorded in A and B",
        "inputs: not recorded in B",
        "packages: not recorded in B",
        "parameters: not recorded in B",
        "seed: not recorded in A and B",
        "machine: not recorded in A",
        "code: no git commit is recorded; the hashes of the inputs tell what differs",
    ):
        assert expected in lines
    nothing = {"run": "x", "config": {}}
    assert "whether the models are the same is not known: none is recorded in A and B" in as_text(
        compared(nothing, nothing)
    )


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["command", "training"], "command"),
        (["training", "project"], "project"),
        (["parameters"], "seed"),
        (["config", "parameters.seed"], "seed"),
        (["config"], "config"),
        (["project.git_commit"], "code"),
        (["project.dirty"], "no uncommitted changes"),
        (["project.inputs"], "inputs"),
        (["project.inputs_left_out"], "inputs"),
        (["environment.packages"], "packages"),
        (["environment.python"], "Python"),
        (["environment"], "machine"),
        (["environment.ramtrain"], "RamTrain"),
        (["environment"], "RamTrain"),
    ],
)
def test_what_neither_record_has_is_not_called_the_same(fields: list[str], name: str, full: dict[str, Any]) -> None:
    assert name in same(as_text(compared(full, full)))
    less = copy.deepcopy(full)
    for field in fields:
        *path, last = field.split(".")
        part = less
        for key in path:
            part = part[key]
        del part[last]
    for sides in ((less, less), (less, full), (full, less)):
        said = same(as_text(compared(*sides)))
        assert name not in said
        assert "None" not in said


def test_a_value_that_is_no_number_is_the_same_as_itself_and_valid_json(full: dict[str, Any]) -> None:
    record = other(full, {"metrics": {"loss": {"final": math.nan}}})
    assert "metrics" in same(as_text(compared(record, record)))
    content = as_dict(compared(full, record))
    assert {"what": "loss.final", "a": 0.5, "b": "nan"} in content["differences"]["metrics"]
    json.dumps(content, allow_nan=False)


def test_a_folder_in_ram_is_no_difference_in_a_record_without_its_training(real: dict[str, Any]) -> None:
    a, b = (
        other(
            real,
            {"command": ["python", "train.py", "--out", f"/ram/{run}/p/out", "--seed", "1", "-x", f"/ram/{run}/p"]},
        )
        for run in "ab"
    )
    del a["training"], b["training"]
    assert "the same: command" in same(as_text(compared(a, b)))
    b["command"][5] = "2"
    assert sections(as_text(compared(a, b)))["training"] == ["--seed: 1 -> 2"]


def test_what_a_terminal_would_obey_is_not_printed(full: dict[str, Any]) -> None:
    record = other(full, {"training.environment": {"X\x1b[2J": "a\nb\x1b[31m"}, "run": "x\x1b]0;t"})
    text = as_text(compared(full, record))
    assert "\x1b" not in text
    assert "environment.X\\x1b[2J: none -> a\\nb\\x1b[31m" in sections(text)["training"]


def model(*files: tuple[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"path": f"model/{name}", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files
    ]


Sides = Callable[..., Comparison]


@pytest.fixture
def models(full: dict[str, Any], tmp_path: Path) -> Sides:
    """Return a function that compares runs with these model files."""

    def compare_them(a: dict[str, bytes], b: dict[str, bytes]) -> Comparison:
        return compare(
            *(
                write(
                    tmp_path / side,
                    {**full, "model": model(*files.items())},
                    **{f"model__{name}": content for name, content in files.items()},
                )
                for side, files in (("a", a), ("b", b))
            )
        )

    return compare_them


def test_files_that_are_not_looked_into_and_files_of_one_model_alone(models: Sides, tmp_path: Path) -> None:
    found = models({"a.wav": b"1", "same": b"=", "x": b"x"}, {"a.wav": b"2", "same": b"=", "y.json": b"{}"})
    assert found.verdict == "the models differ: a.wav: other bytes; x: only in A; y.json: only in B"
    assert sections(as_text(found))["model"] == ["a.wav: other bytes", "x: only in A", "y.json: only in B"]
    assert [file["same"] for file in as_dict(found)["model"]] == [False, True, False, False]
    shutil.rmtree(tmp_path / "b/model")
    alone = compare(*(find_record(str(tmp_path / side)) for side in "ab"))
    assert "a.wav: only the hashes are known here: the files are not beside the record" in alone.verdict


def test_a_file_of_another_name_is_the_same_file_or_the_only_one_of_its_kind(models: Sides) -> None:
    found = models({"best_1.wav": b"1", "c.json": b"="}, {"best_2.wav": b"2", "d.json": b"="})
    assert [(file.a, file.b, file.is_same) for file in found.model] == [
        ("model/c.json", "model/d.json", True),
        ("model/best_1.wav", "model/best_2.wav", False),
    ]
    assert sections(as_text(found))["model"] == ["model/best_1.wav -> model/best_2.wav: other bytes"]


def test_a_file_that_is_no_longer_what_was_recorded_is_told(models: Sides, tmp_path: Path) -> None:
    for files in ({"m.pth": b"1"}, {"m.pth": b"2"}):
        models({"m.pth": b"1"}, files)
        (tmp_path / "b/model/m.pth").write_bytes(b"3")
        found = compare(*(find_record(str(tmp_path / side)) for side in "ab"))
        assert found.verdict.endswith(f"; but {tmp_path}/b/model/m.pth: no longer what the record says")
        assert found.model[0].contents is None
        assert f"({tmp_path}/b/model/m.pth: no longer what the record says)" in as_text(found)


def test_no_file_outside_the_folder_of_the_record_is_read(full: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("diff --git a/x b/x\n@@\n+y\n")
    (path,) = model(("../../secret", b""))
    for name in ("../secret", str(tmp_path / "secret")):
        spied = {**other(full, {"project.diff": name, "project.dirty": True}), "model": [{**path, "path": name}]}
        found = compare(write(tmp_path / "a", spied), write(tmp_path / "b", full))
        assert found.model[0].spoilt == []
        assert "uncommitted changes: which ones, in A, is not at hand here" in as_text(found)


def test_the_verdict_is_one_short_line_for_many_files(models: Sides) -> None:
    a, b = ({f"shard\n{number}": side + b"%d" % number for number in range(9)} for side in (b"a", b"b"))
    verdict = as_text(models(a, b)).splitlines()[0]
    assert verdict == r"the models differ: shard\n0, shard\n1, shard\n2 and 6 more: other bytes"


def test_tensors_are_compared_where_the_files_are_at_hand(models: Sides, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: examples/tiny_tts/requirements.txt")

    def saved(bias: float, date: str, **more: Any) -> bytes:
        content = {"model": {"w": torch.ones(3), "b": torch.tensor([bias, 2.0])}, "date": date, **more}
        torch.save(content, tmp_path / "saved.pth")
        return (tmp_path / "saved.pth").read_bytes()

    first = saved(1.0, "Monday")
    found = models({"m.pth": first}, {"m.pth": saved(1.5, "Monday", new=torch.zeros(1))})
    assert found.verdict == "the models differ: 2 of 3 tensors, at most 0.5 (model.b)"
    assert sections(as_text(found))["model"] == [
        "m.pth: 2 of 3 tensors, at most 0.5 (model.b)",
        "model.b: at most 0.5 (relative 0.25), in 1 of 2 values, float32 [2]",
        "only in B: new",
    ]
    found = models({"m.pth": first}, {"m.pth": saved(1.0, "Tuesday")})
    assert found.verdict == "the models differ: all 2 tensors are the same, only date differs"
    assert sections(as_text(found))["model"][1] == "date: 'Monday' -> 'Tuesday'"
    found = models({"m.bin": b"1"}, {"m.bin": b"2"})
    assert found.verdict == "the models differ: other bytes"
    assert "m.bin: other bytes (PyTorch does not load " in as_text(found)


def call(workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ramtrain", "compare", *arguments]
    return subprocess.run(argv, cwd=workdir, capture_output=True, text=True, check=False)


def test_the_command_takes_runs_folders_and_files(real: dict[str, Any], workdir: Path) -> None:
    real["project"]["inputs"].append({"path": "\udcff", "sha256": "0" * 64})  # a name that is no UTF-8
    write(workdir / "results/a", real)
    write(workdir / "results/b", other(real, {"project.inputs": []}))
    for a, b in (("a", "b"), ("results/a", "results/b/"), ("results/a/record.json", "./results/b/record.json")):
        done = call(workdir, a, b)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\n  only in A: \\udcff\n" in done.stdout
    content = json.loads(call(workdir, "a", "b", "--json").stdout)
    assert content["b"] == {"record": "results/b/record.json", "run": real["run"], "ended": real["ended"]}
    assert content["verdict"].startswith("the models are the same, byte for byte")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (None, "c", "there is no run 'c'. Name a run, a folder with a record.json, or that file. Runs in "),
        (None, "results/c", "there is no run 'results/c'"),
        (None, "failed", "results/failed has no record.json: a run has one when it has ended well"),
        ("{", "b", "results/b/record.json is no record of a run: it is not valid JSON"),
        ("[1]", "b", "results/b/record.json is no record of a run"),
        ('{"files": []}', "b", "results/b/record.json is no record of a run"),
        ('{"run": "b", "config": []}', "b", "results/b/record.json: config: [] where a mapping of keys is expected"),
        ('{"run": "b", "config": {}, "model": [{"path": 1, "sha256": "0"}]}', "b", "model.0.path: 1 where text is"),
        ('{"run": "b", "config": {}, "model": [{"path": "m"}]}', "b", "model.0.sha256: missing"),
        ('{"run": "b", "config": {}, "project": {"dirty": "no"}}', "b", "project.dirty: 'no' where true or false"),
    ],
)
def test_bad_input_has_a_message(
    content: str | None, name: str, said: str, real: dict[str, Any], workdir: Path
) -> None:
    write(workdir / "results/a", real)
    (workdir / "results/failed").mkdir()
    if content is not None:
        (workdir / "results/b").mkdir()
        (workdir / "results/b/record.json").write_text(content)
    with pytest.raises(RamTrainError) as raised:
        find_record(name)
    assert said in str(raised.value)
    assert "Runs in" not in said or str(raised.value).endswith("/results: a")


def test_bad_input_ends_with_status_2(real: dict[str, Any], workdir: Path) -> None:
    write(workdir / "results/a", real)
    done = call(workdir, "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("there is no run 'b'.")
    assert "Traceback" not in done.stderr
