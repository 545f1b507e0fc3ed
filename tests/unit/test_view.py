"""The view of a project from outside shows what the kernel shows inside."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from ramtrain.namespace import ENTER, Overlay
from ramtrain.ramdisk import SHM, remove_tree
from ramtrain.view import Escapes, View, matcher

NAMESPACE = "mount" if os.geteuid() == 0 else "user"

# Run inside the namespace: mounts, does seeded random things to the merged folder, prints what the kernel shows.
TRAINER = """
import json, os, random, shutil, sys
from pathlib import Path
from ramtrain.namespace import Overlay, mount_overlays
order = json.load(sys.stdin)
mount_overlays([Overlay(**order["overlay"])], order["namespace"])
root = Path(order["overlay"]["lower"])
chance = random.Random(order["seed"])
def folders():
    return [root, *sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
for number in range(60):
    folder = chance.choice(folders())
    entries = sorted(folder.iterdir())
    match chance.choice(["write", "write", "mkdir", "delete", "again", "rename", "link"]):
        case "write":
            (folder / f"f{chance.randrange(6)}").with_suffix(".x").write_text(f"upper {number}")
        case "mkdir":
            (folder / f"d{chance.randrange(4)}").mkdir(exist_ok=True)
        case "delete" if entries:
            victim = chance.choice(entries)
            shutil.rmtree(victim) if victim.is_dir() and not victim.is_symlink() else victim.unlink()
        case "again" if folder != root:
            shutil.rmtree(folder)
            folder.mkdir()
        case "rename" if entries and not entries[0].is_dir():
            entries[0].rename(folder / "renamed.x")
        case "link":
            (folder / f"l{number}").symlink_to("f1.x")
found = {}
for path in sorted(root.rglob("*")):
    if path.is_symlink() or not path.is_dir():
        found[str(path.relative_to(root))] = os.readlink(path) if path.is_symlink() else path.read_text()
print(json.dumps(found))
"""


@pytest.mark.parametrize("seed", range(8))
def test_the_view_shows_what_the_kernel_shows(seed: int, tmp_path: Path) -> None:
    lower = tmp_path / "a project: with, odd\\ 'chars"
    chance = random.Random(seed)
    for number in range(30):
        folder = lower.joinpath(*(f"d{chance.randrange(4)}" for _ in range(chance.randrange(4))))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number % 6}.x").write_text(f"lower {number}")
    ram = SHM / f"view test {os.getpid()}"
    try:
        overlay = Overlay(str(lower), str(ram / "upper"), str(ram / "work"))
        for folder in (overlay.upper, overlay.work):
            Path(folder).mkdir(parents=True)
        order = {"overlay": asdict(overlay), "namespace": NAMESPACE, "seed": seed}
        done = subprocess.run(
            [*ENTER[NAMESPACE], sys.executable, "-I", "-c", TRAINER],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        kernel = json.loads(done.stdout)
        view = View([Path(overlay.upper), lower], [lower])

        assert view.glob(["**"]) == sorted(kernel)
        assert len(kernel) >= 5
        for path, content in kernel.items():
            if content.startswith(("upper", "lower")):
                assert view.real(path).read_text() == content
    finally:
        remove_tree(ram)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.pth", ["a.pth"]),
        ("*.pth", ["a.pth"]),
        ("**/*.pth", ["a.pth", "run-1/best.pth", "run-2/best.pth"]),
        ("run-*/best.pth", ["run-1/best.pth", "run-2/best.pth"]),
        ("run-[!1]/*", ["run-2/best.pth"]),
        ("run-?/best.pth", ["run-1/best.pth", "run-2/best.pth"]),
        ("./run-1", ["run-1/best.pth", "run-1/ö [x]/-y.txt"]),
        ("run-1/*", ["run-1/best.pth", "run-1/ö [x]/-y.txt"]),
        ("run-1/ö*/*", ["run-1/ö [x]/-y.txt"]),
        ("latest/*.pth", ["latest/best.pth"]),
        ("latest/best.pth", ["latest/best.pth"]),
        ("*/.hidden", []),
        (".hidden", [".hidden"]),
        ("nothing/*", []),
        ("a.pth/*", []),
    ],
)
def test_globs(pattern: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("a.pth", "run-1/best.pth", "run-2/best.pth", "run-1/ö [x]/-y.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "latest").symlink_to("run-2")
    assert View([tmp_path]).glob([pattern]) == expected


@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        ("absolute", "/etc/passwd"),
        ("relative", "../../outside"),
        ("through/secret", ".."),
        ("loop", "loop"),
    ],
)
def test_links_out_of_the_project_are_refused(path: str, leaves: str, tmp_path: Path) -> None:
    (tmp_path / path.split("/")[0]).symlink_to(leaves)
    with pytest.raises(Escapes, match=path):
        View([tmp_path], [Path("/project")]).real(path)


def test_links_in_the_project_are_followed(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper, lower):
        folder.mkdir()
    (lower / "base.pth").write_text("base")
    (upper / "seen").symlink_to("/project/base.pth")
    (upper / "near").symlink_to("seen")
    view = View([upper, lower], [Path("/project")])
    assert view.real("near") == lower / "base.pth"
    with pytest.raises(FileNotFoundError):
        view.real("missing")


@pytest.fixture
def spilled(tmp_path: Path) -> Path:
    """Return a folder outside the project with a file, to which project/out/m.pth is a link."""
    folder = tmp_path / "results/run/spilled"
    for path in (folder, tmp_path / "project/out"):
        path.mkdir(parents=True)
    (folder / "1-m.pth").write_text("spilled")
    (tmp_path / "project/out/m.pth").symlink_to(folder / "1-m.pth")
    return folder


@pytest.mark.parametrize("pattern", ["out/m.pth", "out/*", "**/*.pth", "latest/m.pth", "near.pth"])
def test_a_link_to_a_spilled_file_is_followed(pattern: str, spilled: Path, tmp_path: Path) -> None:
    (tmp_path / "project/latest").symlink_to("out")
    (tmp_path / "project/near.pth").symlink_to("/project/out/m.pth")
    view = View([tmp_path / "project"], [Path("/project")], spilled)
    found = view.glob([pattern])
    assert found
    assert {view.real(path) for path in found} == {spilled / "1-m.pth"}


@pytest.mark.parametrize("given", [None, Path(""), Path("results/run/spilled"), Path("/results/run")])
def test_without_its_folder_it_is_a_link_out_of_the_project(given: Path | None, spilled: Path, tmp_path: Path) -> None:
    view = View([tmp_path / "project"], [Path("/project")], given)
    assert view.glob(["out/*"]) == ["out/m.pth"]
    with pytest.raises(Escapes, match="outside the project"):
        view.real("out/m.pth")


@pytest.mark.parametrize("target", ["{}", "{}/..", "{}/../secret", "{}/../spilled/../secret", "{}/out", "{}/up/secret"])
def test_no_link_leads_further_through_the_folder_of_spilled_files(target: str, spilled: Path, tmp_path: Path) -> None:
    (spilled.parent / "secret").write_text("secret")
    (spilled / "out").symlink_to(spilled.parent / "secret")
    (spilled / "up").symlink_to("..")
    (tmp_path / "project/out/x").symlink_to(target.format(spilled))
    with pytest.raises(Escapes):
        View([tmp_path / "project"], [Path("/project")], spilled).real("out/x")


def test_one_whose_spilled_file_is_gone_is_missing(spilled: Path, tmp_path: Path) -> None:
    (spilled / "1-m.pth").unlink()
    with pytest.raises(FileNotFoundError):
        View([tmp_path / "project"], spilled=spilled).real("out/m.pth")


def test_what_was_written(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper, lower):
        folder.mkdir()
        (folder / "same").write_text("same")
        os.utime(folder / "same", ns=(1, 1))
    (upper / "new").write_text("new")
    (upper / "same2").write_text("changed")
    (lower / "same2").write_text("before!")
    assert View([upper, lower]).written(lower) == ["new", "same2"]


def test_matcher() -> None:
    matches = matcher(["**/*.tmp", "cache", "a/[bc]"]).fullmatch
    assert [bool(matches(path)) for path in ("x.tmp", "d/e/x.tmp", "cache", "cache2", "a/b", "a/d")] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
