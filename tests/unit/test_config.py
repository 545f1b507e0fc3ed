"""Bad configs and tables: one message that names the key or the line, says what is wrong and what would be right."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain.config import Protect, Run, check_project, complete_config, load_runs, load_trainer, parse_size
from ramtrain.errors import RamTrainError

GIB = 1 << 30


def resolve(config: Any) -> dict[str, Run]:
    """Return the runs of a config, checked as the workflow does before anything is started."""
    runs = load_runs(complete_config(config, REPO, "my.yaml"), REPO)
    for run in runs.values():
        check_project(run)
    return runs


def refusal(config: Any) -> str:
    with pytest.raises(RamTrainError) as refused:
        resolve(config)
    return str(refused.value)


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    *path, last = key.split(".")
    part = config
    for name in path:
        part = part[name]
    del part[last]
    return config


def test_the_small_config_is_good(project: Path) -> None:
    (run,) = resolve(small_config(project)).values()
    assert run.run == "my_pr_ject_"
    assert run.project == project
    assert run.arguments(ram="/ram")[1:] == ["train.py", "--out", "/ram/out", "--seed", "1"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # unknown and misspelt keys, at the top and below
        ("projekt", {}, "my.yaml: projekt: unknown key, did you mean 'project'?"),
        ("stagging", "copy", "my.yaml: stagging: unknown key, did you mean 'staging'?"),
        (
            "epochs",
            5,
            "epochs: unknown key, known are: project, runs, sweep, ramdisk, staging, train, protect, guard, resume, ",
        ),
        ("project.comand", "x", "my.yaml: project.comand: unknown key, did you mean 'command'?"),
        ("ramdisk.szie", "1G", "my.yaml: ramdisk.szie: unknown key, did you mean 'size'?"),
        ("ramdisk.zzz", 1, "my.yaml: ramdisk.zzz: unknown key, known are: backend, size, path, sudo, fallback."),
        ("train.sed", 1, "my.yaml: train.sed: unknown key, did you mean 'seed'?"),
        # wrong types
        ("project.path", 5, "my.yaml: project.path: 5 where text is expected. Folder of the project"),
        ("project.path", None, "my.yaml: project.path: nothing where text is expected. Folder of the project"),
        ("project.path", "", "my.yaml: project.path: is empty. Folder of the project"),
        ("project.command", 5, "my.yaml: project.command: 5 where text or a list is expected."),
        ("project.command", ["sh", None], "my.yaml: project.command.1: nothing where text or a number is expected."),
        ("project.command", ["sh", ["x"]], "my.yaml: project.command.1: ['x'] where text or a number is expected."),
        ("project.model", "out", "my.yaml: project.model: 'out' where a list is expected. A list of globs"),
        ("project.model", [1], "my.yaml: project.model.0: 1 where text is expected."),
        ("project.model", [""], "my.yaml: project.model.0: is empty."),
        ("project.volatile", "x", "my.yaml: project.volatile: 'x' where a list is expected."),
        ("runs", 5, "my.yaml: runs: 5 where text or a list or null is expected. Table of the runs"),
        ("ramdisk", "16G", "my.yaml: ramdisk: '16G' where a mapping of keys is expected."),
        ("ramdisk", None, "my.yaml: ramdisk: nothing where a mapping of keys is expected."),
        ("ramdisk.size", 1.5, "my.yaml: ramdisk.size: 1.5 where text or a whole number is expected."),
        ("ramdisk.size", True, "my.yaml: ramdisk.size: True where text or a whole number is expected."),
        ("ramdisk.path", "", "my.yaml: ramdisk.path: is empty."),
        ("ramdisk.sudo", "yes", "my.yaml: ramdisk.sudo: 'yes' where true or false is expected."),
        ("train", [], "my.yaml: train: [] where a mapping of keys is expected."),
        ("train.seed", "x", "my.yaml: train.seed: 'x' where a whole number is expected."),
        ("train.seed", 1.0, "my.yaml: train.seed: 1.0 where a whole number is expected."),
        ("train.threads", "2", "my.yaml: train.threads: '2' where a whole number or null is expected."),
        ("train.threads", 0, "my.yaml: train.threads: 0 is less than the minimum of 1."),
        ("train.gpus", -1, "my.yaml: train.gpus: -1 is less than the minimum of 0. How many devices"),
        ("train.gpus", True, "my.yaml: train.gpus: True where a whole number or null is expected."),
        ("train.devices", "0,1", "my.yaml: train.devices: '0,1' where a list or null is expected."),
        ("train.devices", [], "my.yaml: train.devices: is empty. The devices that runs may have"),
        ("train.devices", [""], "my.yaml: train.devices.0: '' does not fit. A device is an index"),
        ("train.devices", ["0,1"], "my.yaml: train.devices.0: '0,1' does not fit. A device is an index"),
        ("train.devices", [0, -1], "my.yaml: train.devices.1: -1 is less than the minimum of 0."),
        # choices
        ("ramdisk.backend", "tmpf", "my.yaml: ramdisk.backend: 'tmpf' is not known, did you mean 'tmpfs'?"),
        ("ramdisk.backend", "zfs", "ramdisk.backend: 'zfs' is not known, known are: auto, tmpfs, shm, path, disk."),
        ("staging", "overly", "my.yaml: staging: 'overly' is not known, did you mean 'overlay'?"),
        ("staging", "rsync", "my.yaml: staging: 'rsync' is not known, known are: auto, overlay, copy, none."),
        ("project.trainer", "coki", "project.trainer: 'coki' is not known; known are: "),
        ("project.trainer", "../generic", "project.trainer: '../generic' is not known; known are: "),
        ("discard", "maybe", "my.yaml: discard: 'maybe' is not known, known are: true, false."),
        # sizes
        ("ramdisk.size", "8 potatoes", "ramdisk.size: '8 potatoes' is not a size; give a size such as 16G"),
        ("ramdisk.size", "2 giraffes", "ramdisk.size: '2 giraffes' is not a size;"),
        ("ramdisk.size", "", "ramdisk.size: '' is not a size;"),
        ("ramdisk.size", "%", "ramdisk.size: '%' is not a size;"),
        ("ramdisk.size", "nan%", "ramdisk.size: 'nan%' is not a size;"),
        ("ramdisk.size", "1,5G", "ramdisk.size: '1,5G' is not a size;"),
        ("ramdisk.size", -1, "ramdisk.size: -1 is not a size;"),
        ("ramdisk.size", "-1G", "ramdisk.size: '-1G' is not a size;"),
        ("ramdisk.size", 0, "ramdisk.size: 0 is less than 1 MiB (a number alone is bytes);"),
        ("ramdisk.size", 16, "ramdisk.size: 16 is less than 1 MiB (a number alone is bytes);"),
        ("ramdisk.size", "0%", "ramdisk.size: '0%' is less than 1 MiB"),
        ("ramdisk.size", "200%", "ramdisk.size: '200%' is more than this machine's memory of "),
        ("ramdisk.size", "1000T", "ramdisk.size: '1000T' is more than this machine's memory of "),
        ("ramdisk.size", 10**30, "is more than this machine's memory of "),
        ("ramdisk.fallback", "ssd", "my.yaml: ramdisk.fallback: 'ssd' is not known, known are: none, disk"),
        ("guard.reserve", "x", "guard.reserve: 'x' is not a size; give a size such as 4G, or a share such as 20%"),
        ("guard.resreve", "2G", "my.yaml: guard.resreve: unknown key, did you mean 'reserve'?"),
        # how it is protected, and what it goes on from
        ("protect", "10 min", "my.yaml: protect: '10 min' where a mapping of keys is expected."),
        ("protect.max_los", "1 h", "my.yaml: protect.max_los: unknown key, did you mean 'max_loss'?"),
        ("protect.max_loss", None, "my.yaml: protect.max_loss: nothing where text or a number is expected."),
        ("protect.max_loss", True, "my.yaml: protect.max_loss: True where text or a number is expected."),
        ("protect.max_loss", "10 parsecs", "protect.max_loss: '10 parsecs' is not a time; give a time such as 10 min"),
        (
            "protect.max_loss",
            "Never",
            "protect.max_loss: 'Never' is not a time; give a time such as 10 min, 30 s or 1 h,",
        ),
        ("protect.max_loss", "", "protect.max_loss: '' is not a time;"),
        ("protect.max_loss", "-1 h", "protect.max_loss: '-1 h' is not a time;"),
        ("protect.max_loss", -1, "protect.max_loss: -1 is not a time;"),
        ("protect.max_loss", 0, "protect.max_loss: 0 is less than a second, or no end of time; give a time such as"),
        ("protect.max_loss", 0.5, "protect.max_loss: 0.5 is less than a second,"),
        ("protect.max_loss", "500 ms", "protect.max_loss: '500 ms' is less than a second,"),
        ("protect.max_loss", float("nan"), "protect.max_loss: nan is not a time;"),
        ("protect.max_loss", float("inf"), "protect.max_loss: inf is not a time;"),
        pytest.param(
            "protect.max_loss",
            "9" * 400,
            "is not a time;",
        ),
        ("protect.write_budget", "x", "protect.write_budget: 'x' is not a size; give the bytes a day, such as 100G."),
        ("protect.write_budget", "50%", "protect.write_budget: '50%' is not a size; give the bytes a day"),
        ("protect.write_budget", -1, "protect.write_budget: -1 is not a size;"),
        (
            "protect.write_budget",
            0,
            "protect.write_budget: 0 is less than 1 MiB (a number alone is bytes); give the bytes",
        ),
        ("protect.write_budget", 100, "protect.write_budget: 100 is less than 1 MiB (a number alone is bytes);"),
        ("protect.write_budget", 1.5, "protect.write_budget: 1.5 where text or a whole number or null is expected."),
        ("protect.keep", 0, "my.yaml: protect.keep: 0 is less than the minimum of 1."),
        ("protect.keep", "1", "my.yaml: protect.keep: '1' where a whole number is expected."),
        ("protect.keep", None, "my.yaml: protect.keep: nothing where a whole number is expected."),
        ("protect.keep_after_success", -1, "my.yaml: protect.keep_after_success: -1 is less than the minimum of 0."),
        ("resume", "maybe", "resume: 'maybe' is not known; same, always and never are, and the folder of"),
        ("resume", "alway", "resume: 'alway' is not known; same, always and never are"),
        ("resume", True, "my.yaml: resume: True where text is expected."),
        # the command
        ("project.command", "", "my.yaml: project.command: is empty. The trainer, as a list"),
        ("project.command", [], "my.yaml: project.command: is empty. The trainer, as a list"),
        ("project.command", "  \t ", "project.command: is empty; give the program that trains"),
        ("project.command", [""], "project.command: is empty; give the program that trains"),
        ("project.command", "''", "project.command: is empty; give the program that trains"),
        ("project.command", 'sh -c "a', "project.command: No closing quotation: 'sh -c \"a'."),
        ("project.command", "sh \\", "project.command: No escaped character: 'sh \\\\'."),
        ("project.command", "sh \0", "the character NUL is not possible in a command, nor in its environment."),
        (
            "project.command",
            "sh {epochs}",
            "{epochs} is not known; known are python, ram, run, seed. A column of the runs table",
        ),
        ("project.command", "no-such-program", "'no-such-program' not found on the PATH; is its environment active?"),
        (
            "project.command",
            "./no-such-file",
            "program './no-such-file': no such file; a path with / in it is relative",
        ),
        ("project.command", ["/no/such"], "project.command: program '/no/such': no such file;"),
        ("project.command", ["/usr/bin/"], "project.command: program '/usr/bin/': no such file;"),
        (
            "project.command",
            "data/words.txt",
            "'data/words.txt' is not executable; chmod +x it, or put its interpreter",
        ),
        # globs
        ("project.model", ["/out"], "project.model: '/out': globs are relative to the project and stay in it."),
        ("project.model", ["a", "../out"], "project.model: '../out': globs are relative to the project"),
        ("project.exclude", ["out/[z-a]*"], "project.exclude: 'out/[z-a]*' is no glob: bad character range z-a."),
        ("project.artifacts", ["a/../../b"], "project.artifacts: 'a/../../b': globs are relative"),
        ("project.checkpoints", ["x/.."], "project.checkpoints: 'x/..': globs are relative"),
        ("project.exclude", ["/x"], "project.exclude: '/x': globs are relative"),
        ("project.preload", ["../x"], "project.preload: '../x': globs are relative"),
        ("project.model", [], "project.model: missing, and the adapter 'generic' knows no default; give the globs"),
        # the project
        ("project.path", "no/such", "no/such: no such folder. It is relative to "),
        ("project.path", "~no-such-user/x", "~no-such-user/x: no such folder. It is relative to "),
        # what belongs together
        ("disk.tbw", 0, "disk.tbw: 0 is less than or equal to the minimum of 0."),
        ("benchmark.pairs", 0, "benchmark.pairs: 0 is less than the minimum of 1."),
        ("benchmark.run", 5, "benchmark.run: "),
        ("ramdisk.backend", "path", "ramdisk.path: missing; the backend `path` uses the RAM disk that it names."),
        ("runs", "no-such.tsv", "no-such.tsv: No such file or directory; give the table's path."),
        ("runs", ".", ": Is a directory; give the table's path."),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, expected: str, project: Path) -> None:
    message = refusal(small_config(project, **{key: value}))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, ["my.yaml: the file: nothing where a mapping of keys is expected."]),
        ([], ["my.yaml: the file: [] where a mapping of keys is expected."]),
        ("text", ["my.yaml: the file: 'text' where a mapping of keys is expected."]),
        ({}, ["my.yaml: project: missing. What is trained."]),
        ({5: {}}, ["my.yaml: 5: a key has to be text; put it in quotation marks."]),
        ({"project": None}, ["my.yaml: project: nothing where a mapping of keys is expected."]),
        ({"project": {}}, ["my.yaml: project.path: missing. Folder", "my.yaml: project.command: missing. The trainer"]),
        (
            {"project": {"path": 1, "command": "x"}, "stagin": "copy", "ramdisk": {"size": None}},
            ["my.yaml: stagin: unknown key", "my.yaml: project.path: 1 where", "my.yaml: ramdisk.size: nothing where"],
        ),
    ],
)
def test_each_thing_that_is_wrong_has_one_line(config: Any, expected: list[str]) -> None:
    lines = refusal(config).splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_a_missing_key_is_described(project: Path) -> None:
    assert refusal(without(small_config(project), "project.path")) == (
        "my.yaml: project.path: missing. "
        "Folder of the project; relative to the folder that Snakemake runs in; ~ is your home."
    )


def test_staging_none_needs_a_place_in_ram_to_write_to(project: Path) -> None:
    config = small_config(project, staging="none", **{"project.command": "sh train.sh"})
    assert refusal(config).startswith("project.command: staging `none` needs {ram} in it")


def test_a_project_that_is_a_file_or_empty(project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "train.py: is a file; give the folder" in refusal(small_config(project / "train.py"))
    assert "empty: the folder is empty; nothing to train." in refusal(small_config(tmp_path / "empty"))


@pytest.mark.skipif(os.geteuid() == 0, reason="needs an unprivileged user: root may read everything")
def test_a_project_that_may_not_be_read(project: Path) -> None:
    project.chmod(0o000)
    try:
        assert "may not be read; check its owner and mode." in refusal(small_config(project))
    finally:
        project.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (2 << 20, 2 << 20),
        ("1048576", 1 << 20),
        ("16G", 16 * GIB),
        ("16g", 16 * GIB),
        ("16 GB", 16 * GIB),
        (" 16GiB ", 16 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("512M", GIB // 2),
        ("4096 K", 4 << 20),
        ("50%", 16 * GIB),
        ("12.5 %", 4 * GIB),
        ("100%", 32 * GIB),
    ],
)
def test_sizes(text: str | int, size_bytes: int) -> None:
    assert parse_size(text, total_bytes=32 * GIB) == size_bytes


FIT = "letters, digits and . _ = , + -, a letter or digit first."


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # nothing in it
        (b"", "no runs in it; the first line names the columns, each other line is a run."),
        (b"\n \n# a comment\n", "no runs in it;"),
        (b"run\tseed\n", "no runs in it;"),
        # ids
        (b"run\na\nb\na\n", "line 4: run: 'a' appears twice; run ids must differ."),
        (b"run\tseed\n\t1\n", f"line 2: run: '' does not fit. The run's id, which names its folder in results: {FIT}"),
        (b"run\na/b\n", f"line 2: run: 'a/b' does not fit. The run's id, which names its folder in results: {FIT}"),
        (b"run\na b\n", "line 2: run: 'a b' does not fit."),
        (b"run\n a\n", "line 2: run: ' a' does not fit."),
        (b"run\n-a\n", "line 2: run: '-a' does not fit."),
        (b"run\n.a\n", "line 2: run: '.a' does not fit."),
        (b"run\n..\n", "line 2: run: '..' does not fit."),
        (b"run\na\x0bb\n", "line 2: run: 'a\\x0bb' does not fit."),
        ("run\nlärm\n".encode(), "line 2: run: 'lärm' does not fit."),
        (b"run\n" + b"a" * 101 + b"\n", "is too long. The run's id"),
        (b"run\nlogs\n", "line 2: run: 'logs' is something else's name in results; choose another."),
        # columns
        (b"run\tseed\na\n", "line 2: 1 columns where the header has 2; columns are separated by one tab."),
        (b"run\tseed\n\na\t1\t2\n", "line 3: 3 columns where the header has 2;"),
        (b"run\tseed\na\t1\t\n", "line 2: 3 columns where the header has 2;"),
        (b"run\tlr\tlr\na\t1\t2\n", "line 1: column 'lr' appears twice."),
        (b"id\tseed\na\t1\n", "line 1: no column `run`, the run's id, among 'id', 'seed'; columns are separated"),
        (b"run,seed\na,1\n", "line 1: no column `run`, the run's id, among 'run,seed';"),
        (b"run\tseed \na\t1\n", "line 1: a column cannot be named 'seed ';"),
        (b"run\t\na\t1\n", "line 1: a column cannot be named '';"),
        (b"run\tram\na\t1\n", "line 1: a column cannot be named 'ram'; a name is letters, digits and _"),
        # cells
        (b"run\tseed\na\tone\n", "line 2: seed: 'one' does not fit. A whole number"),
        (b"run\tseed\na\t1.5\n", "line 2: seed: '1.5' does not fit."),
        (b"run\tseed\na\t\n", 'line 2: seed: is empty; give a value, or "" if an empty text is meant.'),
        (b'run\tlr\na\t"1\nb\t2\n', "line 2: a quotation mark is not closed"),
        (b'run\tlr\na\t"1" or 2\n', "line 2: a quotation mark is not closed, or text follows it;"),
        # encodings
        (b"run\na\xff\n", "is not text in UTF-8 (invalid start byte); save it as such."),
        ("run\tseed\na\t1\n".encode("utf-16"), "is not text in UTF-8 (invalid start byte); save it as such."),
    ],
)
def test_a_bad_table_of_runs(table: bytes, expected: str, project: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.tsv"
    path.write_bytes(table)
    message = refusal(small_config(project, runs=str(path)))
    assert expected in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (b"run\tseed\na\t1\nb\t-2\n", {"a": {"seed": "1"}, "b": {"seed": "-2"}}),
        (b"\xef\xbb\xbfrun\tseed\r\na\t1\r\n\r\n# end\r\n", {"a": {"seed": "1"}}),
        (b"# first\nseed\trun\n7\ta\n", {"a": {"seed": "7"}}),
        (b"run\n1e-4,x=+2.0_b\n", {"1e-4,x=+2.0_b": {"seed": "1"}}),
        (b'run\tdata\na\t"{""lr"": 1}"\nb\t{"lr": 1}\n', {"a": {"data": '{"lr": 1}'}, "b": {"data": '{"lr": 1}'}}),
        ("run\tvoice\na\tJürgen\u2028 x\x0cy\n".encode(), {"a": {"voice": "Jürgen\u2028 x\x0cy"}}),
    ],
    ids=["plain", "BOM and Windows line ends", "run is not first", "odd id", "quotation marks", "odd characters"],
)
def test_a_good_table_of_runs(table: bytes, expected: dict[str, Any], project: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.tsv"
    path.write_bytes(table)
    runs = resolve(small_config(project, runs=str(path)))
    assert list(runs) == list(expected)
    for run, parameters in expected.items():
        assert parameters.items() <= runs[run].parameters.items()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("sh -c 'a  b' \"c\"", ["sh", "-c", "a  b", "c"]),
        (["sh", 1, 2.5, "a b"], ["sh", "1", "2.5", "a b"]),
        ("sh {ram}/{run} --seed={seed}", ["sh", "/r am/my_pr_ject_", "--seed=1"]),
        ("sh {{seed}} {0} {} { }", ["sh", "{seed}", "{0}", "{}", "{", "}"]),
        (["sh", '{{"a": {seed}}}'], ["sh", '{"a": 1}']),
    ],
)
def test_good_commands(command: str | list[str], arguments: list[str], project: Path) -> None:
    (run,) = resolve(small_config(project, **{"project.command": command})).values()
    assert run.arguments(ram="/r am") == arguments


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("my prôject ü", "my_pr_ject_"),
        ("-dash", "dash"),
        ("...", "run"),
        ("voice+lr=1e-4,2", "voice+lr=1e-4,2"),
    ],
)
def test_without_a_table_the_run_is_named_after_the_project(name: str, run: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "train.sh").touch()
    assert list(resolve(small_config(folder, **{"project.command": "sh train.sh"}))) == [run]


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("description: [", "odd.yaml: not valid YAML: "),
        ("- a", "odd.yaml: the file: ['a'] where a mapping of keys is expected."),
        ("model: [a]", "odd.yaml: description: missing. Which trainer this is"),
        (
            "description: x\nstop: {signal: SIGKIL}",
            "odd.yaml: stop.signal: 'SIGKIL' is not known, did you mean 'SIGINT'?",
        ),
        ("description: x\nprogress: {loss: '('}", "odd.yaml: progress: missing ), unterminated subpattern"),
        ("description: x\nprogress: {loss: 'a'}", "odd.yaml: progress.loss: 'a' needs one group in parentheses."),
        (
            "description: x\nresume: {arguments: ['{chekpoint}']}",
            "odd.yaml: resume.arguments: {chekpoint} is not known; known are checkpoint, folder.",
        ),
    ],
)
def test_a_bad_adapter_is_named(adapter: str, expected: str, tmp_path: Path) -> None:
    trainers = tmp_path / "config/trainers"
    trainers.mkdir(parents=True)
    (tmp_path / "workflow").symlink_to(REPO / "workflow")
    (trainers / "odd.yaml").write_text(adapter)
    with pytest.raises(RamTrainError, match=re.escape(expected)):
        load_trainer("odd", tmp_path)


def test_the_program_may_be_named_in_any_way(project: Path) -> None:
    (project / "go").write_text("#!/bin/sh\n")
    (project / "go").chmod(0o755)
    for program in ("./go", str(project / "go"), "sh", sys.executable, "{ram}/go"):
        resolve(small_config(project, **{"project.command": [program]}))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("10 min", 600),
        ("10 minutes", 600),
        ("30 s", 30),
        ("30s", 30),
        ("90", 90),
        (90, 90),
        (1, 1),
        (1.5, 1.5),
        ("1 h", 3600),
        ("1.5 h", 5400),
        ("2 d", 172800),
        ("never", None),
    ],
)
def test_times_are_read_right(value: Any, seconds: float | None, project: Path) -> None:
    (run,) = resolve(small_config(project, **{"protect.max_loss": value})).values()
    assert run.protect.max_loss_s == seconds


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        ("100G", 100 * GIB),
        ("1.5 TB", 1536 * GIB),
        ("1M", 1 << 20),
        (1 << 30, GIB),
        ("10000T", 10000 << 40),
        (None, None),
    ],
)
def test_write_budgets_are_read_right(value: Any, size_bytes: int | None, project: Path) -> None:
    (run,) = resolve(small_config(project, **{"protect.write_budget": value})).values()
    assert run.protect.write_budget_bytes == size_bytes


def test_a_training_is_protected_unless_told_otherwise(project: Path) -> None:
    (run,) = resolve(small_config(project)).values()
    assert run.protect == Protect(max_loss_s=600, write_budget_bytes=None, keep=1, keep_after_success=0)
    assert run.resume == "same"
    changes = {"protect.keep": 5, "protect.keep_after_success": 2, "resume": "always"}
    (run,) = resolve(small_config(project, **changes)).values()
    assert (run.protect.keep, run.protect.keep_after_success, run.resume) == (5, 2, "always")
