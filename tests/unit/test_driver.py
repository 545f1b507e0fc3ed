"""What an adapter may bring along: a driver, where the project's own Python is, a look before anything is mounted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO, small_config

from ramtrain import driver
from ramtrain.config import Run, check_project, complete_config, load_runs
from ramtrain.errors import RamTrainError

DRIVER = """\
import os, pathlib, sys
assert sys.argv[-1] == "--check"
print(*sys.argv[1:-1], os.environ["MODE"], os.getcwd(), flush=True)
print("no base model", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def load(project: Path, workdir: Path) -> Callable[..., Run]:
    """Return a function that makes a run of an adapter of its own."""
    (workdir / "mine.py").write_text(DRIVER)

    def load(command: str, adapter: dict[str, Any] | None = None, **changes: Any) -> Run:
        own = {"description": "mine", "driver": "mine.py", "check": ["--check"], "environment": {"MODE": "quiet"}}
        (workdir / "mine.yaml").write_text(yaml.safe_dump({**own, **(adapter or {})}))
        config = small_config(
            project, **{"project.command": command, "project.trainer": "mine.yaml", "runs": [{"run": "a"}], **changes}
        )
        return load_runs(complete_config(config, REPO, "my.yaml"), REPO)["a"]

    return load


def test_a_driver_looks_in_the_project(load: Callable[..., Run], project: Path) -> None:
    driver.check(load("{python} {driver} 0", **{"project.python": sys.executable}))
    with pytest.raises(RamTrainError) as refused:
        driver.check(load("{python} {driver} 3 {seed}", **{"project.python": sys.executable}))
    assert str(refused.value) == f"run a: 3 1 quiet {project}\nno base model"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/bin/false", "`/bin/false --check` ended with status 1 and said nothing"),
        ("/bin/nothing", "run a: `/bin/nothing --check` cannot be started: No such file or directory"),
        ("sh -c 'sleep 60; exit' sh", "has not ended within 0.3 s"),
    ],
)
def test_what_cannot_look(
    command: str, message: str, load: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_LOOK_S", 0.3)
    with pytest.raises(RamTrainError, match=message):
        driver.check(load(command))


def test_without_check_nothing_is_started(load: Callable[..., Run]) -> None:
    driver.check(load("/bin/false", {"check": []}))


def test_the_command_has_the_driver_and_the_training_does_not_depend_on_where_it_is(
    load: Callable[..., Run], workdir: Path
) -> None:
    run = load("python {driver}")
    assert run.arguments(ram="") == ["python", str(workdir / "mine.py")]
    assert run.training["command"] == ["python", "{driver}"]


def test_the_projects_own_python_is_found(load: Callable[..., Run], project: Path) -> None:
    adapter = {"python": ["env/bin/python", "venv/bin/python"]}
    assert load("{python}", adapter).arguments(ram="") == ["python"]
    (project / "venv/bin").mkdir(parents=True)
    (project / "venv/bin/python").symlink_to(sys.executable)
    run = load("{python}", adapter)
    assert run.arguments(ram="") == [str(project / "venv/bin/python")], "a link: Python finds its packages by it"
    check_project(run)
    assert load("{python}", adapter, **{"project.python": "python3"}).arguments(ram="") == ["python3"]
    named = load("{python}", adapter, **{"project.python": "other/python"})
    with pytest.raises(RamTrainError, match=r"program '.*/other/python': no such file"):
        check_project(named)


@pytest.mark.parametrize(
    ("command", "adapter", "message"),
    [
        ("python {driver}", {"driver": None}, "{driver} is not known"),
        ("python {driver}", {"driver": "none.py"}, "mine.yaml: driver: .*/none.py: no such file; it stands beside"),
        ("python {driver}", {"driver": "../mine.py"}, "mine.yaml: driver"),
        ("python", {"python": ["/usr/bin/python"]}, "mine.yaml: python"),
    ],
)
def test_what_an_adapter_cannot_say(
    command: str, adapter: dict[str, Any], message: str, load: Callable[..., Run]
) -> None:
    with pytest.raises(RamTrainError, match=message):
        load(command, adapter)


@pytest.mark.parametrize("name", ["python", "driver"])
def test_names_of_placeholders_are_no_parameters(name: str, load: Callable[..., Run]) -> None:
    with pytest.raises(RamTrainError, match=f"a column cannot be named '{name}'"):
        load("python", runs=[{"run": "a", name: "x"}])


def test_copying_leaves_out_what_the_adapter_says(load: Callable[..., Run]) -> None:
    run = load("python", {"exclude": ["env/**"]}, **{"project.exclude": ["cache"]})
    assert run.exclude == ("env/**", "cache")
