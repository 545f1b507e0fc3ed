"""Bad input and trouble as a user meets them: one clear message, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ended, needs_root, small_config
from workplace import snakemake_argv

from ramtrain.ramdisk import SHM, ram_root
from ramtrain.system import mount_of

Snakemake = Callable[..., Ended]
TRACEBACK = "Traceback (most recent call last)"
OTHER_UID = 64000 + os.getpid() % 1000  # tests run side by side


def content(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, mtime and content of all that is in `folder`, itself included."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, data)
    return found


def says(ended: Ended, *expected: str) -> None:
    """Check that a call failed and said so in words, not with a traceback."""
    assert ended.status != 0, ended.output
    assert TRACEBACK not in ended.output, ended.output
    for words in expected:
        assert words in ended.output, ended.output


def in_user_namespace(*options: str, limit: int | None = None) -> list[str]:
    """Return a prefix that runs a command in a user namespace, where at most `limit` more may be made."""
    enter = ["unshare", "--user", *options]
    if subprocess.run([*enter, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces, which this machine refuses")
    if limit is None:
        return enter
    return [*enter, "sh", "-c", f'echo {limit} > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]


# The config itself, and what it names: one of each; what is said of all others is for the tests of the library.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ramdisk.szie": "1G"}, "my.yaml: ramdisk.szie: unknown key, did you mean 'size'?\n"),
        ({"project.path": "nowhere"}, "/ram train/nowhere: no such folder. It is relative to "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_error_ends_the_call_before_anything_is_done(
    changes: dict[str, Any], expected: str, snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    before = content(project)
    ended = snakemake(small_config(project, **changes), "train")
    says(ended, expected)
    assert "results" not in os.listdir(workdir)
    assert content(project) == before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", "Config file must be given as JSON or YAML with keys at top level."),
        ("project: [x\n", "Config file is not valid JSON or YAML."),
    ],
    ids=["empty", "broken"],
)
def test_a_file_that_is_no_config(config: str, expected: str, snakemake: Snakemake, workdir: Path) -> None:
    says(snakemake(config, "train"), expected)
    assert "results" not in os.listdir(workdir)


BAD_ENDS = [
    # run, its program, its argument of -c, what is said of it
    ("segfault", "sh", "kill -SEGV $$", "the trainer was killed by SIGSEGV after "),
    ("killed", "sh", "kill -KILL $$", "the trainer was killed by SIGKILL after "),
    ("no_interpreter", "./no interpreter", "", "the trainer could not be started ("),
    (
        "no_program",
        "./no program",
        "",
        "the trainer could not be started ([Errno 8] Exec format error: './no program')",
    ),
    ("nothing", "sh", ":", "project.model: 'out/model.bin' matches nothing after training. The trainer wrote, in "),
    (
        "link_out",
        "sh",
        "mkdir out; ln -s /etc/hostname out/model.bin",
        "out/model.bin is a link to /etc/hostname, outside",
    ),
    (
        "link_up",
        "sh",
        "mkdir out; ln -s ../../x out/model.bin",
        "'out/model.bin' is refused: out/model.bin leads out of",
    ),
]


def test_each_bad_end_of_a_trainer_has_its_message(snakemake: Snakemake, workdir: Path, project: Path) -> None:
    for name, text in (("no interpreter", "#!/no/such/interpreter\n"), ("no program", "neither binary nor script\n")):
        (project / name).write_text(text)
        (project / name).chmod(0o755)
    rows = ["\t".join((run, program, argument or '""')) for run, program, argument, _ in BAD_ENDS]
    (workdir / "runs.tsv").write_text("\n".join(("run\tprogram\targument", *rows)))
    config = small_config(project, runs="runs.tsv", **{"project.command": ["{program}", "-c", "{argument}"]})
    before = content(project)

    ended = snakemake(config, "train", "--keep-going", cores=2)

    says(ended)
    for run, _, _, expected in BAD_ENDS:
        # Two scripts and Snakemake write to one pipe: a message need not begin a line.
        said = re.search(rf"run {run}: (?!failed: ).*{re.escape(expected)}.*\n?.*", ended.output)
        assert said, f"{run}: {ended.output}"
        assert f"/{run}" in said[0], "it says where things are now"
        assert f"run {run}: failed: " in ended.output
        assert not (workdir / "results" / run / "model").exists()
        assert list(SHM.glob(f"ramtrain-*/*/{run}")), "what it wrote is kept"
    released = snakemake(config, "unmount")
    assert released.status == 0, released.output
    assert len(released.lines("run ")) >= len(BAD_ENDS)
    assert content(project) == before


def test_a_run_that_is_being_trained_is_not_trained_twice(
    snakemake: Snakemake, workdir: Path, project: Path, tmp_path: Path
) -> None:
    begin, until = "mkdir out; echo 1 >out/checkpoint_1.bin; until [ -e", "]; do sleep 0.1; done; echo 1 >out/model.bin"
    config = small_config(project)
    config["project"]["command"] = ["sh", "-c", f"{begin} {shlex.quote(str(tmp_path / 'go'))} {until}"]
    (workdir / "first.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    first = subprocess.Popen(
        snakemake_argv("train", "--configfile", "first.yaml"),
        cwd=workdir,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(ram_root(workdir).glob("my_pr_ject_/**/checkpoint_1.bin")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second = snakemake(config, "train", "--nolock", "--rerun-incomplete")
        says(second, "run my_pr_ject_: is being trained by another process; wait for it, or end it with Ctrl-C there")
    finally:
        (tmp_path / "go").touch()
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    record = json.loads((workdir / "results/my_pr_ject_/record.json").read_text())
    assert [file["path"] for file in record["model"]] == ["model/model.bin"]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a folder that is not there", "a folder that is not there: no such folder; mount the RAM disk first.\n"),
        (".", ", which is not memory. Name a folder on a RAM disk, or say ramdisk.backend: disk if the disk is meant."),
    ],
    ids=["missing", "on a disk"],
)
def test_a_path_that_is_no_ram_disk(
    place: str, expected: str, snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    if mount_of(workdir.resolve()).fstype == "tmpfs":
        pytest.skip("needs a temporary folder on a disk")
    config = small_config(project, **{"ramdisk.backend": "path", "ramdisk.path": place})
    says(snakemake(config, "train"), "ramdisk.path: ", expected)
    assert not (workdir / "a folder that is not there").exists()


@pytest.fixture
def refused_namespaces() -> list[str]:
    return in_user_namespace("--map-current-user", "--keep-caps", limit=0)


def test_without_namespaces_auto_says_so_and_takes_a_copy(
    refused_namespaces: list[str], snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    before = content(project)
    ended = snakemake(small_config(project), "train", prefix=refused_namespaces)
    assert ended.status == 0, ended.output
    (line,) = ended.lines("run my_pr_ject_: staging: ")
    assert line.startswith("run my_pr_ject_: staging: copy (no overlay: in a ")
    assert "in a user namespace: unshare: unshare failed: No space left on device (README, 'Overlay wi" in line
    assert (workdir / "results/my_pr_ject_/model/model.bin").stat().st_size > 1 << 20
    assert content(project) == before


def test_without_namespaces_overlay_is_refused(
    refused_namespaces: list[str], snakemake: Snakemake, project: Path
) -> None:
    config = small_config(project, staging="overlay")
    says(
        snakemake(config, "train", prefix=refused_namespaces),
        "in a user namespace: unshare: ",
        "'Overlay without root'",
    )
    assert snakemake(config, "unmount").status == 0


@pytest.fixture
def mount_point(project: Path) -> Iterator[Path]:
    """Return a folder in the project on which something else is mounted."""
    folder = project / "mnt"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "other", str(folder)], check=True)
    (folder / "precious").write_text("kept")
    yield folder
    assert (folder / "precious").read_text() == "kept"
    subprocess.run(["umount", str(folder)], check=True)


@needs_root("mounts something in the project")
def test_a_project_with_a_mount_in_it_is_copied(snakemake: Snakemake, mount_point: Path, project: Path) -> None:
    ended = snakemake(small_config(project), "train")
    assert ended.status == 0, ended.output
    (line,) = ended.lines("run my_pr_ject_: staging: ")
    assert line.startswith(f"run my_pr_ject_: staging: copy (no overlay: {mount_point} is mounted inside {project}")


@needs_root("mounts something in the project")
@pytest.mark.usefixtures("rebooted")
def test_an_overlay_would_hide_a_mount_in_the_project(snakemake: Snakemake, mount_point: Path, project: Path) -> None:
    config = small_config(project, staging="overlay")
    says(snakemake(config, "train"), f"{mount_point} is mounted inside {project}, and an overlay would hide it.")


NAMES = [
    "-dash",
    "sp ace",
    " leading and trailing ",
    "ümläut",
    "日本",
    "qu'ote",
    'dou"ble',
    "back\\slash",
    "star*",
    "[br]",
    "$dollar",
    "per%cent",
    "co:lon",
    "com,ma=",
    "#hash;",
    "{brace}",
]
NAMES_TRAINER = """
import os, sys
from pathlib import Path
for name in Path("in").iterdir():
    assert name.read_text() == name.name, name
assert Path("-link/-dash").read_text() == "-dash"
for folder in (Path("out"), Path("out/-sub földer")):
    folder.mkdir()
    for name in os.listdir("in"):
        (folder / name).write_text(f"{folder.name} {name}")
Path("out/relative -link").symlink_to("-dash")
Path("out/absolute -link").symlink_to(Path("out/sp ace").absolute())
"""


@pytest.mark.parametrize("staging", ["overlay", "copy"])
def test_any_name_will_do(staging: str, snakemake: Snakemake, workdir: Path, tmp_path: Path) -> None:
    project = tmp_path / "-my \"prôject\" 'ü' $x {y} #%:,"
    (project / "in").mkdir(parents=True)
    for name in NAMES:
        (project / "in" / name).write_text(name)
    (project / os.fsdecode(b"gr\xfc\xdfe.txt")).write_text("Latin-1")
    (project / "-link").symlink_to("in")
    (project / "-train me.py").write_text(NAMES_TRAINER)
    (tmp_path / "-link to it").symlink_to(project)
    before = content(project)
    config = small_config(tmp_path / "-link to it", staging=staging)
    config["project"] |= {"command": [sys.executable, "./-train me.py"], "model": ["out"]}

    ended = snakemake(config, "train")

    assert ended.status == 0, ended.output
    home = workdir / "results/link_to_it/model"
    brought = {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file()}
    del brought["manifest.json"]
    assert brought == {
        **{name: f"out {name}" for name in NAMES},
        **{f"-sub földer/{name}": f"-sub földer {name}" for name in NAMES},
        "relative -link": "out -dash",
        "absolute -link": "out sp ace",
    }
    assert content(project) == before


@pytest.fixture
def other_root() -> Iterator[Path]:
    """Return the RAM root of a user who has none, and remove what a test makes of it."""
    root = SHM / f"ramtrain-{OTHER_UID}"
    yield root
    if root.is_dir() and not root.is_symlink():
        assert not any(root.iterdir())
        root.rmdir()
    else:
        root.unlink()


@needs_root("makes a folder of somebody else's")
def test_a_ram_root_that_somebody_else_made_is_refused(
    other_root: Path, snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    other_root.mkdir()
    os.chown(other_root, 1, 1)
    ended = snakemake(small_config(project), "train", prefix=in_user_namespace(f"--map-user={OTHER_UID}"))
    says(ended, f"{other_root} was not made by you (owner uid ", "Ask its owner or an administrator to remove it.")
    assert "results" not in os.listdir(workdir)


def test_a_ram_root_that_is_a_link_is_refused(
    other_root: Path, snakemake: Snakemake, tmp_path: Path, project: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other_root.symlink_to(tmp_path / "elsewhere")
    ended = snakemake(small_config(project), "train", prefix=in_user_namespace(f"--map-user={OTHER_UID}"))
    says(ended, f"{other_root} was not made by you (owner uid {OTHER_UID}, ")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_files_of_the_trainer_named_as_our_own_come_home_exported_and_rescued(
    snakemake: Snakemake, workdir: Path, project: Path
) -> None:
    config = small_config(project, sweep={"status": [0, 3]}, **{"project.model": ["manifest.json", "train.log"]})
    config["project"]["command"] = [
        "sh",
        "-c",
        "for f in manifest.json train.log; do echo $f >$f; done; exit {status}",
    ]
    snakemake(config, "train")
    snakemake(config, "unmount")
    for place in ("status=0/model", "status=3/rescued-*"):
        (home,) = (workdir / "results").glob(place)
        assert (home / "manifest.json").read_text() == "manifest.json\n"
        assert (home / "train.log").read_text() == "train.log\n"
