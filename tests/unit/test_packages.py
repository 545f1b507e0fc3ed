"""Which Python a command uses, and what is installed for it: of the trainer, not of RamTrain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from ramtrain.packages import Python, conda_packages, find_python, python_of

LONG_SHEBANG = "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\nimport sys\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a project and several Pythons, which say which one they are."""
    programs = {
        "bin/python": "",
        "bin/python3.11": "",
        "my venv/bin/python": "",
        "project/.venv/bin/python": "",
        "conda/bin/conda": "",
        "conda/bin/python": "",
        "conda/envs/tts/bin/python": "",
        "elsewhere/envs/far/bin/python": "",
        "bin/env": "",
        "bin/nice": "",
        "bin/uv": "",
        "bin/tool": "\x7fELF",
        "bin/train.sh": "#!/bin/sh\npython train.py\n",
        "bin/torchrun": f"#!{tmp_path}/bin/python\n",
        "bin/accelerate": "#!/usr/bin/env python3.11\n",
        "bin/deepspeed": "#!/usr/bin/env -S python -u\n",
        "bin/spaced": LONG_SHEBANG.format(python=f'"{tmp_path}/my venv/bin/python"'),
        "bin/longish": LONG_SHEBANG.format(python=f"{tmp_path}/bin/python"),
        "bin/loop": f"#!/usr/bin/env {tmp_path}/bin/loop\n",
    }
    for name, content in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "project/pyproject.toml").touch()
    (tmp_path / "project/data.txt").touch()
    (tmp_path / "home/.conda").mkdir(parents=True)
    (tmp_path / "home/.conda/environments.txt").write_text(f"{tmp_path}/elsewhere/envs/far\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py", "bin/python"),
        ("python3.11 -u train.py", "bin/python3.11"),
        ("{place}/project/.venv/bin/python train.py", "project/.venv/bin/python"),
        (".venv/bin/python train.py", "project/.venv/bin/python"),
        ("torchrun --nproc 2 train.py", "bin/python"),
        ("accelerate launch train.py", "bin/python3.11"),
        ("deepspeed train.py", "bin/python"),
        ("spaced train.py", "my venv/bin/python"),
        ("longish train.py", "bin/python"),
        ("env -i A=1 python train.py", "bin/python"),
        ("env PATH={place}/project/.venv/bin python train.py", "project/.venv/bin/python"),
        ("nice -n 10 env B=2 torchrun train.py", "bin/python"),
        ("conda run -n tts python train.py", "conda/envs/tts/bin/python"),
        ("conda run --no-capture-output --name=tts train -n x", "conda/envs/tts/bin/python"),
        ("conda run -n base python train.py", "conda/bin/python"),
        ("conda run -n far python train.py", "elsewhere/envs/far/bin/python"),
        ("conda run --cwd . -p {place}/conda/envs/tts python -n far", "conda/envs/tts/bin/python"),
        ("conda run python -n tts", None),
        ("conda run -n nowhere python train.py", None),
        ("uv run train.py", "project/.venv/bin/python"),
        ("uv run --with numpy train.py", None),
        ("uv sync", None),
        ("tool train.py", None),
        ("train.sh", None),
        ("loop", None),
        ("nowhere train.py", None),
        ("./data.txt", None),
    ],
)
def test_the_python_of_a_command(command: str, expected: str | None, place: Path) -> None:
    env = {"PATH": f"{place}/bin:{place}/conda/bin", "HOME": str(place / "home")}
    found = find_python(command.format(place=place).split(" "), env, place / "project")
    assert found == (expected and place / expected)


def test_the_packages_are_those_of_that_python_in_the_trainers_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    for name, about in {
        "extra/My_Package-1.5": "Name: My_Package\nVersion: 1.5\n",
        "more/My_Package-1.4": "Name: My_Package\nVersion: 1.4\n",
        "extra/half-1.0": "Name: half\n",
        "extra/other": "Version: 1.0\n",
        "extra/empty-1.0": None,
    }.items():
        (tmp_path / f"{name}.dist-info").mkdir(parents=True)
        if about:
            (tmp_path / f"{name}.dist-info/METADATA").write_text(about)
    project = tmp_path / "project"
    project.mkdir()
    (project / "json.py").write_text("raise SystemExit('a module of the project was run')\n")
    env = {"PATH": f"{tmp_path}/venv/bin", "PYTHONPATH": f"{tmp_path}/extra:{tmp_path}/more"}
    found = python_of(["python", "train.py"], env, project, Event())
    assert found.executable == str(tmp_path / "venv/bin/python")
    assert found.packages == {"My_Package": "1.5"}
    assert found.version is not None and found.version.startswith("3.")
    assert list(project.iterdir()) == [project / "json.py"]


def test_a_python_that_fails_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    broken.chmod(0o755)
    assert python_of([str(broken), "x.py"], os.environ, tmp_path, Event()) == Python(str(broken))
    assert f"the packages of {broken} are not in the record: " in caplog.text
    assert "broken" in caplog.text
    assert python_of(["nowhere"], os.environ, tmp_path, Event()) == Python()


def test_a_conda_environment_has_a_list_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "conda-meta").mkdir()
    about = {"name": "libblas", "version": "3.9.0", "build": "20_openblas", "files": []}
    (tmp_path / "conda-meta/libblas-3.9.0-20_openblas.json").write_text(json.dumps(about))
    (tmp_path / "conda-meta/pip-24.0.json").write_text('{"name": "pip", "version": "24.0"}')
    (tmp_path / "conda-meta/broken.json").write_text("{")
    (tmp_path / "conda-meta/history").touch()
    assert conda_packages(tmp_path) == {"libblas": "3.9.0 20_openblas", "pip": "24.0"}
    assert "broken.json cannot be read" in caplog.text
    assert conda_packages(tmp_path / "none") == {}
