"""Which runs there are: dotted columns, runs listed in the config, sweeps; and how their values reach a trainer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO, small_config
from workplace import changed

from ramtrain.again import changes_since, check_same_project, write_config
from ramtrain.config import Run, check_project, complete_config, load_runs
from ramtrain.errors import RamTrainError
from ramtrain.parameters import make_file
from ramtrain.redact import MARK
from ramtrain.runs import next_id, typed

LR = ["sh", "-c", "{lr}"]


def resolve(config: dict[str, Any]) -> dict[str, Run]:
    return load_runs(complete_config(config, REPO, "my.yaml"), REPO)


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(RamTrainError) as refused:
        resolve(config)
    return str(refused.value)


def swept(project: Path, sweep: dict[str, Any], command: list[str] = LR, **changes: Any) -> dict[str, Any]:
    return small_config(project, sweep=sweep, **{"project.command": command, **changes})


def with_table(project: Path, tmp_path: Path, table: str, command: list[str] = LR) -> dict[str, Any]:
    path = tmp_path / "runs.tsv"
    path.write_text(table)
    return small_config(project, runs=str(path), **{"project.command": command})


def test_every_combination_is_a_run_that_is_named_by_it(project: Path) -> None:
    sweep = {"lr": ["1e-4", 0.001, 3], "batch": [8, 16], "seeds": 2}
    runs = resolve(swept(project, sweep, ["sh", "{batch}", "{lr}", "{seed}"]))
    assert list(runs)[:3] == ["batch=8,lr=1e-4,seed=1", "batch=8,lr=1e-4,seed=2", "batch=8,lr=0.001,seed=1"]
    assert len(runs) == 12
    assert runs["batch=16,lr=3,seed=2"].arguments(ram="") == ["sh", "16", "3", "2"]


def test_the_order_of_a_sweep_names_the_same_runs(project: Path) -> None:
    command = ["sh", "{batch}", "{lr}", "{seed}"]
    one = resolve(swept(project, {"lr": [1, 2], "batch": [8, 16], "seeds": 2}, command))
    other = resolve(swept(project, {"seeds": 2, "batch": [16, 8], "lr": [2, 1]}, command))
    assert {run: one[run].training for run in one} == {run: other[run].training for run in other}


def test_seeds_begin_with_the_configured_one(project: Path) -> None:
    runs = resolve(swept(project, {"seeds": 3}, ["sh", "{seed}"], **{"train.seed": 7}))
    assert list(runs) == ["seed=7", "seed=8", "seed=9"]
    assert list(resolve(swept(project, {"seed": [5, 3]}, ["sh", "{seed}"]))) == ["seed=5", "seed=3"]


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        (["a,b", "a_b"], [r"lr=a_b-[0-9a-f]{8}", r"lr=a_b"]),
        (["a b", "a/b"], [r"lr=a_b-[0-9a-f]{8}"] * 2),
        ([True, "yes"], ["lr=true", "lr=yes"]),
        (["x" * 200], [r"lr=x{88}-[0-9a-f]{8}"]),
        (["ü"], [r"lr=_-[0-9a-f]{8}"]),
        ([""], ["lr="]),
    ],
)
def test_values_that_no_id_can_hold_work_all_the_same(values: list[Any], pattern: list[str], project: Path) -> None:
    runs = resolve(swept(project, {"lr": values}))
    assert len(runs) == len(values)
    for run, value, expected in zip(runs.values(), values, pattern, strict=True):
        assert re.fullmatch(expected, run.run)
        assert run.arguments(ram="")[2] == ("true" if value is True else value)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, "my.yaml: sweep: "),
        ({"lr": []}, "my.yaml: sweep.lr: is empty. A list of values"),
        ({"lr": 1}, "my.yaml: sweep.lr: 1 where a list is expected. A list of values, such as [1e-4, 3e-4]."),
        ({"lr": [None]}, "my.yaml: sweep.lr.0: nothing where "),
        ({"lr": [1, 1]}, "config: sweep.lr: '1' appears twice."),
        ({"lr": [0.1, "0.1"]}, "config: sweep.lr: '0.1' appears twice."),
        ({"lr": [1], "seeds": 0}, "my.yaml: sweep.seeds: 0 is less than the minimum of 1."),
        ({"lr": [1], "seeds": 2, "seed": [1]}, "config: sweep: seed and seeds say the same thing twice"),
        ({"lr": [1], "seed": ["x"]}, "config: sweep: lr=1,seed=x: seed: 'x' does not fit. A whole number"),
        ({"lr": [1], "seeds": 2}, "config: sweep.seeds: nothing uses it: {seed} is neither in project.command nor in "),
        ({"lr": [1], "rl": [1]}, "config: sweep.rl: nothing uses it: {rl} is neither in project.command nor in train."),
        ({"lr": [1], "run": ["a"]}, "config: sweep.run: the ids are made of the values; name single runs in `runs`."),
        ({"lr": [1], "ram": ["a"]}, "config: sweep: a column cannot be named 'ram'"),
        ({"l r": [1]}, "config: sweep: a column cannot be named 'l r'"),
        (
            {"lr": [1], "ramdisk.szie": ["1G"]},
            "sweep: column 'ramdisk.szie' is no key of the config; did you mean 'ram",
        ),
        ({"lr": [1], "benchmark.pairs": [1]}, "sweep: column 'benchmark.pairs' is no key of the config; "),
        ({"lr": [1], "ramdisk.size": ["1X"]}, "sweep: lr=1,ramdisk.size=1X: ramdisk.size: '1X' is not a size;"),
        ({"lr": [1], "train.threads": ["two"]}, "lr=1,train.threads=two: train.threads: 'two' where a whole number or"),
        (
            {"lr": [1], "seeds": 10**9},
            "config: sweep: 1 x 1000000000 are 1,000,000,000 combinations, and 10,000 are ",
        ),
        (
            {"lr": [1], "hf_token": ["hf_" + "a1" * 16]},
            "config: sweep.hf_token: a secret cannot be varied: it would ",
        ),
        ({"lr": ["hf_" + "a1" * 16]}, "config: sweep.lr: a secret cannot be varied"),
        ({"lr": [1], True: [1]}, "my.yaml: true: a key has to be text; put it in quotation marks."),
        ({"lr": [1], "seed": [1], "train.seed": [2]}, "config: sweep: seed and train.seed say the same thing twice"),
        (
            {"lr": list(range(100)), "a": list(range(100)), "b": list(range(100))},
            "config: sweep: 100 x 100 x 100 are 1,000,000 combinations, and 10,000 are the most; take fewer values",
        ),
    ],
)
def test_a_bad_sweep_has_one_message(sweep: dict[str, Any], expected: str, project: Path) -> None:
    message = refusal(swept(project, sweep))
    assert expected in message
    assert "\n" not in message


def test_dotted_columns_are_keys_of_the_config_for_that_run(project: Path, tmp_path: Path) -> None:
    header = "run\tlr\tramdisk.size\tprotect.max_loss\ttrain.threads\tproject.model\n"
    table = header + "a\t1\t128M\t1 h\t2\t[x, y]\nb\t1\t\t\t\t\n"
    runs = resolve(with_table(project, tmp_path, table))
    a, b = runs.values()
    assert (a.size_bytes >> 20, a.protect.max_loss_s, a.threads, a.products.model) == (128, 3600, 2, ("x", "y"))
    assert (b.size_bytes >> 20, b.protect.max_loss_s, b.threads, b.products.model) == (
        64,
        600,
        None,
        ("out/model.bin",),
    )
    assert a.config["ramdisk"]["size"] == "128M"
    assert a.values == {
        "seed": "1",
        "lr": "1",
        "ramdisk.size": "128M",
        "protect.max_loss": "1 h",
        "train.threads": "2",
        "project.model": '["x", "y"]',
    }


def test_a_variable_may_be_a_column(project: Path, tmp_path: Path) -> None:
    runs = resolve(with_table(project, tmp_path, "run\tlr\ttrain.environment.MODE\na\t1\tfast\nb\t2\t\n"))
    assert [run.variables(ram="") for run in runs.values()] == [{"MODE": "fast"}, {}]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "run\tlr\tramdisk.sise\na\t1\t1G\n",
            "line 1: column 'ramdisk.sise' is no key of the config; did you mean 'ramdisk.s",
        ),
        ("run\tlr\tsweep.lr\na\t1\t1G\n", "line 1: column 'sweep.lr' is no key of the config; "),
        (
            "run\tlr\tramdisk.backend\na\t1\tzfs\n",
            "line 2: ramdisk.backend: 'zfs' is not known, known are: auto, tmpfs, ",
        ),
        (
            "run\tlr\tramdisk.size\na\t1\t1G\nb\t1\t[\n",
            "line 3: ramdisk.size: '[' is not a value in YAML; put it in quot",
        ),
        ("run\tlr\tproject.trainer\na\t1\tcoki\n", "line 2: project.trainer: 'coki' is not known; known are: "),
        ("run\tlr\tseeds\na\t1\t2\n", "line 1: column 'seeds' is of sweeps; a run's own is named 'seed'."),
        ("run\tlr\na\t\n", 'line 2: lr: is empty; give a value, or "" if an empty text is meant.'),
        (
            "run\tlearning_rate\na\t1\n",
            "line 2: project.command: {lr} is not known; known are learning_rate, python, ram, run, seed.",
        ),
    ],
)
def test_a_bad_cell_names_its_line(table: str, expected: str, project: Path, tmp_path: Path) -> None:
    message = refusal(with_table(project, tmp_path, table))
    assert expected in message
    assert message.count("runs.tsv") == 1
    assert "\n" not in message


def test_what_the_config_itself_has_wrong_is_not_blamed_on_a_row(project: Path, tmp_path: Path) -> None:
    config = changed(with_table(project, tmp_path, "run\tlr\na\t1\n"), {"ramdisk.size": "16Q"})
    assert refusal(config).startswith("ramdisk.size: '16Q' is not a size;")


def test_variables_in_a_table_stay_as_they_are_written(project: Path, tmp_path: Path) -> None:
    runs = resolve(with_table(project, tmp_path, "run\tlr\ttrain.environment.X\na\t0.10\t0.10\nb\ton\ton\n"))
    assert [run.variables(ram="")["X"] for run in runs.values()] == ["0.10", "on"]
    assert [run.arguments(ram="")[2] for run in runs.values()] == ["0.10", "on"]


def test_a_run_s_config_has_its_own_row_alone(project: Path, tmp_path: Path) -> None:
    _, run = resolve(with_table(project, tmp_path, "run\tlr\tramdisk.size\na\t1\t\nb\t2\t128M\n")).values()
    assert run.config["runs"] == [{"run": "b", "lr": "2", "ramdisk.size": "128M"}]
    (again,) = resolve({**run.config, "runs": [{**run.config["runs"][0], "run": "b-again"}]}).values()
    assert (again.training, again.values, again.size_bytes) == (run.training, run.values, run.size_bytes)


def test_one_run_can_be_read_alone(project: Path, tmp_path: Path) -> None:
    config = with_table(project, tmp_path, "run\tlr\tramdisk.size\na\t1\t1X\nb\t2\t128M\n")
    (run,) = load_runs(complete_config(config, REPO, "my.yaml"), REPO, only="b").values()
    assert (run.run, run.size_bytes >> 20) == ("b", 128)
    assert load_runs(complete_config(config, REPO, "my.yaml"), REPO, only="c") == {}


def test_an_empty_text_can_be_meant(project: Path, tmp_path: Path) -> None:
    (run,) = resolve(with_table(project, tmp_path, 'run\tlr\na\t""\n')).values()
    assert run.arguments(ram="")[2] == ""


def test_columns_rows_and_comments_may_change_and_define_no_other_training(project: Path, tmp_path: Path) -> None:
    before = resolve(with_table(project, tmp_path, "run\tlr\nb\t2\na\t1\n"))
    after = resolve(with_table(project, tmp_path, "# new\nnote\tlr\trun\tramdisk.size\nx y\t1\ta\t65M\n\nz\t2\tb\t\n"))
    assert {run: before[run].training for run in before} == {run: after[run].training for run in after}


def test_runs_may_stand_in_the_config_itself_and_beside_a_sweep(project: Path) -> None:
    config = swept(project, {"lr": [1, 2]}, runs=[{"run": "first", "lr": 5, "protect.keep": 2}])
    runs = resolve(config)
    assert list(runs) == ["first", "lr=1", "lr=2"]
    assert (runs["first"].arguments(ram="")[2], runs["first"].protect.keep) == ("5", 2)
    assert (
        "config: sweep: lr=1: run: 'lr=1' appears twice; run ids must differ. The other one: config: runs.0."
        in refusal(swept(project, {"lr": [1, 2]}, runs=[{"run": "lr=1", "lr": 5}]))
    )


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], "my.yaml: runs: is empty."),
        ([{"lr": 1}], "my.yaml: runs.0.run: missing. The run's id."),
        ([{"run": "a b", "lr": 1}], "config: runs.0: run: 'a b' does not fit."),
        ([{"run": "a", "lr": 1}, {"run": "a", "lr": 1}], "config: runs.1: run: 'a' appears twice;"),
        ([{"run": "a", "lr": None}], "config: runs.0: lr: "),
        (["a"], "my.yaml: runs.0: 'a' where a mapping of keys is expected."),
    ],
)
def test_a_bad_list_of_runs(runs: list[Any], expected: str, project: Path) -> None:
    assert expected in refusal(small_config(project, runs=runs, **{"project.command": LR}))


def test_parameters_reach_the_trainer_as_environment(project: Path) -> None:
    environment = {"LR": "{lr}", "WHERE": "{ram}/{run}", "DEBUG": True, "N": 3}
    config = swept(project, {"lr": [1]}, ["sh"], **{"train.environment": environment})
    (run,) = resolve(config).values()
    assert run.variables(ram="/r") == {"LR": "1", "WHERE": "/r/lr=1", "DEBUG": "true", "N": "3"}
    assert run.training["environment"]["LR"] == "1"
    assert "environment" not in resolve(small_config(project))["my_pr_ject_"].training, "of old, nothing trains again"
    assert "train.environment: {rl} is not known" in refusal(small_config(project, **{"train.environment.X": "{rl}"}))
    assert "train.environment: 'a b' does not fit. A name is letters" in refusal(
        small_config(project, **{"train.environment.a b": 1})
    )


def adapter(tmp_path: Path, content: dict[str, Any]) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"description": "my trainer", **content}))
    return str(path)


def test_parameters_reach_the_trainer_as_a_file(project: Path, tmp_path: Path) -> None:
    (project / "conf").mkdir(mode=0o750)
    (project / "conf/base.json").write_text('{"optimizer": {"lr": 1, "eps": 1e-8}, "name": "x"}')
    keys = {"lr": "optimizer.lr", "seed": "seed", "deep": "deep"}
    own = adapter(tmp_path, {"parameters": {"file": "conf/run.json", "base": "conf/base.json", "keys": keys}})
    config = swept(project, {"lr": ["1e-4"], "name": ["y"], "deep": ["[1, 2]"]}, ["sh"], **{"project.trainer": own})
    (run,) = resolve(config).values()
    check_project(run)
    upper = tmp_path / "upper"
    upper.mkdir()
    for _ in range(2):  # also where it has been made before
        path = make_file(project, upper, run.trainer.parameters, run.file_parameters())
    assert path == upper / "conf/run.json"
    assert path.parent.stat().st_mode & 0o777 == 0o750
    assert json.loads(path.read_text()) == {
        "optimizer": {"lr": 1e-4, "eps": 1e-8},
        "name": "y",
        "deep": [1, 2],
        "seed": 1,
    }
    assert not (project / "conf/run.json").exists()
    assert run.training["parameters"] == {"deep": [1, 2], "optimizer.lr": 1e-4, "name": "y", "seed": 1}


def test_a_parameter_that_the_base_does_not_know_is_a_note_or_in_a_sweep_a_mistake(
    project: Path, tmp_path: Path
) -> None:
    (project / "base.json").write_text('{"optimizer": {"lr": 1}, "batch": 8}')
    own = adapter(tmp_path, {"parameters": {"file": "run.json", "base": "base.json", "keys": {"lr": "optimizer.lr"}}})
    row = {"run": "a", "lr": 2, "batch": 4, "note": "x"}
    changes = {"project.trainer": own, "project.command": ["sh"]}
    (run,) = resolve(small_config(project, runs=[row], **changes)).values()
    assert run.training["parameters"] == {"optimizer.lr": 2, "batch": 4}
    assert "config: sweep.bacth: nothing uses it: " in refusal(swept(project, {"bacth": [4]}, **changes))


def test_a_parameters_file_may_be_yaml_and_of_its_own(project: Path, tmp_path: Path) -> None:
    own = adapter(tmp_path, {"parameters": {"file": "run.yaml"}})
    (run,) = resolve(swept(project, {"lr": [0.5]}, ["sh"], **{"project.trainer": own})).values()
    path = make_file(project, tmp_path, run.trainer.parameters, run.file_parameters())
    assert yaml.safe_load(path.read_text()) == {"lr": 0.5}, "the seed only where the adapter says where it stands"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"file": "run.toml"}, "own.yaml: parameters.file: 'run.toml' does not fit. Where it is made"),
        ({"file": "../run.json"}, "own.yaml: parameters.file: '../run.json': give a path in the project."),
        ({"file": "/run.json"}, "own.yaml: parameters.file: '/run.json': give a path in the project."),
        ({"file": "a.json", "base": "no.json"}, "no.json: No such file or directory; the adapter's parameters.base"),
        ({"file": "a.json", "base": "train.py"}, "train.py: cannot be read ("),
        (
            {"file": "a.json", "base": "data/words.txt"},
            "words.txt: holds no mapping of keys; the adapter's parameters.",
        ),
    ],
)
def test_a_bad_parameters_file(parameters: dict[str, str], expected: str, project: Path, tmp_path: Path) -> None:
    config = swept(project, {"lr": [1]}, ["sh"], **{"project.trainer": adapter(tmp_path, {"parameters": parameters})})
    with pytest.raises(RamTrainError, match=re.escape(expected)):
        check_project(resolve(config)["lr=1"])


def test_a_parameters_file_is_not_made_where_a_link_leads(project: Path, tmp_path: Path) -> None:
    shared, upper = tmp_path / "shared", tmp_path / "upper"
    shared.mkdir()
    upper.mkdir()
    own = adapter(tmp_path, {"parameters": {"file": "conf/run.json"}})
    (run,) = resolve(swept(project, {"lr": [1]}, ["sh"], **{"project.trainer": own})).values()
    (upper / "conf").symlink_to(shared)
    with pytest.raises(RamTrainError, match=r"upper/conf: is a link, and conf/run\.json"):
        make_file(project, upper, run.trainer.parameters, run.file_parameters())
    (project / "conf").symlink_to(shared)
    with pytest.raises(RamTrainError, match=r"/conf: is a link, and conf/run\.json, the adapter's parameters\.file"):
        check_project(run)
    assert not any(shared.iterdir())


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3", 3), ("true", True), ("[1]", [1]), ("a", "a")])
def test_what_a_parameter_is_in_a_file(text: str, value: Any) -> None:
    assert typed(text) == value


@pytest.mark.parametrize("text", ["1e400", "-Infinity", "NaN", "1_000", "0x10", "yes", ""])
def test_what_is_no_number_in_json_stays_text(text: str) -> None:
    assert typed(text) == text


def test_devices_are_not_given_twice(project: Path) -> None:
    config = small_config(project, **{"train.gpus": 1, "train.environment.CUDA_VISIBLE_DEVICES": "0"})
    assert refusal(config).startswith("train.environment.CUDA_VISIBLE_DEVICES: train.gpus decides that;")


def test_a_config_made_from_a_record_without_its_secret_is_refused(project: Path) -> None:
    config = small_config(project, **{"train.environment.HF_TOKEN": MARK})
    assert refusal(config) == (
        "my.yaml: train.environment.HF_TOKEN: a secret was left out here when the run was recorded; put it in again."
    )


def test_a_run_is_done_again_under_a_name_that_is_free(project: Path, workdir: Path) -> None:
    (run,) = resolve(small_config(project, **{"train.environment.HF_TOKEN": "hunter2xyz"})).values()
    folder = workdir / "results" / run.run
    (workdir / "results" / f"{run.run}-again").mkdir(parents=True)
    folder.mkdir()
    write_config(run, folder)
    text = (folder / "config.yaml").read_text()
    assert yaml.safe_load(text)["runs"] == [{"run": f"{run.run}-again-2"}]
    assert "hunter2xyz" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"runs": [{"run": "a", "lr": 2}]}, "lr was 1, is 2"),
        ({"runs": [{"run": "a", "lr": 1, "note": "x"}]}, None),
        ({"runs": [{"run": "a", "lr": 1, "note": "x"}], "train.threads": 2}, "threads was not given, is 2"),
        ({"project.command": ["sh", "{lr}"]}, "command was `sh -c 1`, is `sh 1`"),
        ({"train.environment": {"X": "1"}}, "environment was not given, is {'X': '1'}"),
    ],
)
def test_why_a_run_is_trained_again(change: dict[str, Any], said: str | None, project: Path, tmp_path: Path) -> None:
    config = small_config(project, runs=[{"run": "a", "lr": 1}], **{"project.command": LR})
    before = resolve(config)["a"]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"training": before.training, "parameters": before.values}))
    assert changes_since(resolve(changed(config, change))["a"], path) == said
    path.write_text("{}")
    assert changes_since(before, path) is None, "of an older version"


def test_an_adapter_of_ones_own_that_is_not_there(project: Path) -> None:
    assert "/no.yaml: no such file; known adapters are: " in refusal(
        small_config(project, **{"project.trainer": "no.yaml"})
    )


def test_another_project_s_model_is_not_replaced(project: Path, tmp_path: Path) -> None:
    (run,) = resolve(small_config(project)).values()
    path = tmp_path / "record.json"
    check_same_project(run, path)
    for training, is_refused in ((run.training, False), ({**run.training, "project": "/other"}, True)):
        path.write_text(json.dumps({"training": training, "parameters": {}}))
        if is_refused:
            with pytest.raises(RamTrainError, match="holds the model of another project, /other, which would be repl"):
                check_same_project(run, path)
        else:
            check_same_project(run, path)


@pytest.mark.parametrize(
    ("run", "again"),
    [
        ("a", "a-again"),
        ("a-again", "a-again-2"),
        ("a-again-2", "a-again-3"),
        ("x" * 98, "3ec4a1bd-again"),
    ],
)
def test_the_id_of_a_run_that_is_done_again(run: str, again: str) -> None:
    assert next_id(run) == again or (len(run) > 90 and re.fullmatch("[0-9a-f]{8}-again", next_id(run)))
