"""Checkpoints: whole or cut short, one file or many, the trainer's own or the project's, still written to or not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from workplace import spill_at_rest

from ramtrain import checkpoints
from ramtrain.checkpoints import (
    Checkpoint,
    find_checkpoints,
    is_whole,
    is_whole_file,
    tells_its_end,
)
from ramtrain.opened import held_by, written_to
from ramtrain.spill import contents_of
from ramtrain.staging import Stage

WEIGHTS = random.Random(1).randbytes(3000)


def zip_bytes(members: dict[str, bytes], comment: bytes = b"") -> bytes:
    """Return a zip file with its members stored, as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


def safetensors_bytes(tensors: dict[str, bytes], padding: int = 0) -> bytes:
    """Return a file as https://github.com/huggingface/safetensors describes it, section Format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": '"data_offsets":[0,999999]'}}
    offset = 0
    for name, content in tensors.items():
        end = offset + len(content)
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


PYTORCH = zip_bytes({"archive/data.pkl": b"{}", "archive/data/0": WEIGHTS, "archive/version": b"3\n"})
NOTED = zip_bytes({"data.pkl": WEIGHTS}, comment=b"a note")
# As Stable-Baselines3 saves it: what torch.save wrote, as members of another zip file.
NESTED = zip_bytes({"policy.pth": PYTORCH, "policy.optimizer.pth": PYTORCH, "data": WEIGHTS})
INNER_END = NESTED.index(PYTORCH) + len(PYTORCH)
SAFE = safetensors_bytes({"a": WEIGHTS, "b": b"", "c": WEIGHTS[:100]})
SAFE_HEADER = 8 + struct.unpack("<Q", SAFE[:8])[0]
PADDED = safetensors_bytes({"a": WEIGHTS}, padding=7)
OTHER = b"\x80\x04" + WEIGHTS


@pytest.mark.parametrize(
    ("name", "content", "cuts"),
    [
        ("model.pth", PYTORCH, [1, 3, 4, 8, 100, len(PYTORCH) // 2, len(PYTORCH) - 22, len(PYTORCH) - 1]),
        ("model.zip", NOTED, [8, len(NOTED) // 2, len(NOTED) - 28]),
        ("model.safetensors", SAFE, [1, 7, 8, 9, SAFE_HEADER - 1, SAFE_HEADER, SAFE_HEADER + 1, len(SAFE) - 1]),
        ("padded.safetensors", PADDED, [8, len(PADDED) - 1]),
        ("empty.safetensors", safetensors_bytes({}), [1, 8, 20]),
        pytest.param(
            "policy.zip",
            NESTED,
            [INNER_END - 1, INNER_END, INNER_END + 1, INNER_END + 60, len(NESTED) - 1],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kind_that_names_its_end_is_whole_only_with_it(
    name: str, content: bytes, cuts: list[int], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert is_whole_file(path)
    # A file of another kind is too short to be told while its first bytes are missing.
    told = {cut for cut in cuts if cut >= 4 or name.endswith(".safetensors")}
    for cut in sorted(told, reverse=True):
        os.truncate(path, cut)
        assert not is_whole_file(path), f"cut to {cut} of {len(content)} bytes"
    os.truncate(path, 0)
    assert not is_whole_file(path), "empty"


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin", "model"])
def test_of_any_other_kind_only_an_empty_file_is_not_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(OTHER)
    for length in (len(OTHER), len(OTHER) // 2, 1):
        os.truncate(path, length)
        assert is_whole_file(path)
    os.truncate(path, 0)
    assert not is_whole_file(path)


@pytest.mark.parametrize(
    ("offset", "garbage"), [(6, b"\xff"), (8, b"\x00\x08\x00\x00")], ids=["a version from the future", "no UTF-8"]
)
def test_a_directory_that_makes_no_sense_is_that_of_a_file_being_written(
    offset: int, garbage: bytes, tmp_path: Path
) -> None:
    content = bytearray(zip_bytes({"archive/données": WEIGHTS}))
    at = content.index(b"PK\x01\x02")
    content[at + offset : at + offset + len(garbage)] = garbage
    if offset == 8:
        content[at + 46] = 0xFF  # the name's first byte
    (tmp_path / "model.pth").write_bytes(content)
    assert not is_whole_file(tmp_path / "model.pth")


def test_more_bytes_than_safetensors_names_are_not_whole_either(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFE + b"x")
    assert not is_whole_file(path), "its header is another file's"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert not is_whole_file(path)


@pytest.mark.parametrize(
    ("files", "whole", "tells"),
    [
        ({"x.pth": PYTORCH}, True, True),
        ({"x.pth": PYTORCH[:-1]}, False, True),
        ({"x.safetensors": SAFE}, True, True),
        ({"x.bin": OTHER}, True, False),
        ({"x.bin": b""}, False, False),
        ({"x/model.safetensors": SAFE, "x/optimizer.pt": PYTORCH, "x/state.json": b"{}"}, True, False),
        ({"x/model.safetensors": SAFE, "x/optimizer.pt": PYTORCH[:-9], "x/state.json": b"{}"}, False, False),
        ({"x/model.safetensors": SAFE[:-1], "x/optimizer.pt": PYTORCH, "x/state.json": b"{}"}, False, False),
        ({"x/model.safetensors": SAFE, "x/optimizer.pt": PYTORCH, "x/state.json": b""}, False, False),
        ({"x/only.pth": PYTORCH}, True, True),
    ],
)
def test_a_folder_is_whole_when_each_of_its_files_is(
    files: dict[str, bytes], whole: bool, tells: bool, tmp_path: Path
) -> None:
    """`tells`: nothing more can come once the end is there, so that nobody has to wait whether something does."""
    write(tmp_path, files)
    (checkpoint,) = find_checkpoints(stage_of(tmp_path / "project", tmp_path), ["x*"])
    assert is_whole(checkpoint, tmp_path) == whole
    assert tells_its_end(checkpoint, tmp_path) == tells


@pytest.mark.parametrize(
    ("last", "whole"),
    [
        ({"x/state.json": b'{"step": 1}'}, True),
        ({"x/state.json": b'{"step": 1'}, False),
        ({"x/state.json": b""}, False),
        ({}, False),
        ({"x/sub/state.json": b"{}"}, False),
    ],
    ids=["there", "cut short", "empty", "missing", "another folder's"],
)
def test_a_folder_is_whole_with_what_is_written_last(last: dict[str, bytes], whole: bool, tmp_path: Path) -> None:
    write(tmp_path, {"x/model.safetensors": SAFE, **last})
    (checkpoint,) = find_checkpoints(stage_of(tmp_path / "project", tmp_path), ["x*"])
    assert is_whole(checkpoint, tmp_path, ["state.json"]) == whole
    assert tells_its_end(checkpoint, tmp_path, ["state.json"]) == whole


def test_a_file_needs_nothing_that_is_written_last(tmp_path: Path) -> None:
    write(tmp_path, {"x.pth": PYTORCH})
    (checkpoint,) = find_checkpoints(stage_of(tmp_path / "project", tmp_path), ["x*"])
    assert is_whole(checkpoint, tmp_path, ["state.json"])


def test_one_that_is_gone_is_not_whole(tmp_path: Path) -> None:
    write(tmp_path, {"x.pth": PYTORCH})
    (checkpoint,) = find_checkpoints(stage_of(tmp_path / "project", tmp_path), ["x*"])
    (tmp_path / "x.pth").unlink()
    assert not is_whole(checkpoint, tmp_path)
    assert not tells_its_end(checkpoint, tmp_path)


def stage_of(project: Path, upper: Path) -> Stage:
    """Return how a project is staged by copy."""
    return Stage(str(project), "copy", "", None, str(upper), str(upper), [str(upper)], [], 0, 0, 0.0)


def write(folder: Path, files: dict[str, bytes], saved_s: float | None = None) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        if saved_s is not None:
            os.utime(folder / name, (saved_s, saved_s))


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Stage:
    """Return the staging of a project that came with checkpoints of its own."""
    write(project, {"out/old_1.bin": OTHER, "out/old_2.bin": OTHER, "out/ck-9/a": OTHER, "out/ck-9/b": OTHER}, 5e8)
    shutil.copytree(project, tmp_path / "ram")
    return stage_of(project, tmp_path / "ram")


def names(found: list[Checkpoint]) -> list[str]:
    return [checkpoint.path for checkpoint in found]


def test_the_newest_comes_first_by_the_time_of_its_last_file(copied: Stage, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    write(ram, {"out/ck_10.bin": OTHER}, 1e9)
    write(ram, {"out/ck_9.bin": OTHER, "out/ck-20/a": OTHER}, 1e9 - 10)
    write(ram, {"out/ck-20/sub/b": OTHER * 2}, 1e9 + 10)
    found = find_checkpoints(copied, ["out/ck_*.bin", "out/ck-*", "**/ck_9.bin"])
    assert names(found) == ["out/ck-20", "out/ck_10.bin", "out/ck_9.bin"]
    assert [path for path, _ in found[0].files] == ["out/ck-20/a", "out/ck-20/sub/b"]
    assert found[0].saved_s == 1e9 + 10
    assert found[0].size_bytes == 3 * len(OTHER)


def test_only_what_the_trainer_wrote_is_found(copied: Stage, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    assert find_checkpoints(copied, ["out/*", "**/*.bin"]) == []
    write(ram, {"out/old_2.bin": OTHER[::-1]})
    assert names(find_checkpoints(copied, ["out/*"])) == ["out/old_2.bin"]
    write(ram, {"out/ck-9/b": OTHER + b"x"})
    (folder,) = find_checkpoints(copied, ["out/ck-*"])
    assert [path for path, _ in folder.files] == ["out/ck-9/a", "out/ck-9/b"], "the folder as a whole"
    assert find_checkpoints(copied, ["out/nothing*", "nowhere/*.bin", "train.py"]) == []


def test_links_are_no_checkpoints_and_no_part_of_one(copied: Stage, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    write(ram, {"out/ck_1.bin": OTHER, "out/ck-20/a": OTHER})
    (ram / "out/ck_2.bin").symlink_to("ck_1.bin")
    (ram / "out/ck_3.bin").symlink_to("nothing")
    (ram / "out/ck-21").symlink_to("ck-20")
    (ram / "out/ck-20/link").symlink_to("a")
    (ram / "out/ck-22").mkdir()
    (ram / "out/ck-22/link").symlink_to("../ck-20/a")
    found = find_checkpoints(copied, ["out/ck_[123].bin", "out/ck-2?", "out/ck_2.bin"])
    assert sorted(names(found)) == ["out/ck-20", "out/ck_1.bin"]
    assert [path for checkpoint in found for path, _ in checkpoint.files if "link" in path] == []


def test_a_link_to_a_folder_is_none_even_if_its_name_is_written_out(copied: Stage, tmp_path: Path) -> None:
    write(tmp_path / "ram", {"out/ck-20/a": OTHER})
    (tmp_path / "ram/out/last").symlink_to("ck-20")
    assert names(find_checkpoints(copied, ["out/ck-20", "out/last"])) == ["out/ck-20"]


@pytest.mark.parametrize("moved", [["ck-20/b"], ["ck-20/a", "ck-20/sub/c"], ["ck_1.pth"]])
def test_one_that_has_been_spilled_is_the_same_in_other_files(moved: list[str], copied: Stage, tmp_path: Path) -> None:
    stage = replace(copied, spilled=str(tmp_path / "spilled"))
    ram = tmp_path / "ram/out"
    write(ram, {"ck_1.pth": PYTORCH, "ck-20/a": OTHER, "ck-20/b": SAFE, "ck-20/sub/c": OTHER * 2}, 1e9)
    patterns = ["out/ck_*.pth", "out/ck-20", "out/ck-*"]
    before = {found.path: found for found in find_checkpoints(stage, patterns)}
    for name in moved:
        spill_at_rest(ram / name, ram / name, tmp_path / "spilled")
    after = {found.path: found for found in find_checkpoints(stage, patterns)}
    assert before.keys() == after.keys() == {"out/ck_1.pth", "out/ck-20"}
    for path, found in after.items():
        assert found == before[path]
        assert [name for name, _ in found.files] == [name for name, _ in before[path].files]
        assert (found.saved_s, found.size_bytes) == (before[path].saved_s, before[path].size_bytes)
        assert is_whole(found, tmp_path / "ram")
    assert tells_its_end(after["out/ck_1.pth"], tmp_path / "ram")
    (tmp_path / "spilled" / next(path.name for path in (tmp_path / "spilled").iterdir())).write_bytes(b"")
    changed = {found.path: found for found in find_checkpoints(stage, patterns)}
    assert [path for path in after if after[path] != changed[path]] == [f"out/{moved[0].split('/')[0]}"]


def test_one_that_is_spilled_while_it_is_looked_for_is_found_with_all_its_files(
    copied: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(copied, spilled=str(tmp_path / "spilled"))
    ram = tmp_path / "ram"
    write(ram, {"out/ck-20/a": OTHER, "out/ck-20/b": OTHER})

    def look_and_spill(path: Path, folder: Path | None) -> Path | None:
        found = contents_of(path, folder)
        if path.is_file() and not path.is_symlink():
            spill_at_rest(path, path, tmp_path / "spilled")
        return found

    monkeypatch.setattr(checkpoints, "contents_of", look_and_spill)
    (found,) = find_checkpoints(stage, ["out/ck-*"])
    assert all((ram / "out/ck-20" / name).is_symlink() for name in ("a", "b"))
    assert [name for name, _ in found.files] == ["out/ck-20/a", "out/ck-20/b"]


def test_a_link_to_anywhere_else_is_still_none_where_files_are_spilled(copied: Stage, tmp_path: Path) -> None:
    stage = replace(copied, spilled=str(tmp_path / "spilled"))
    ram = tmp_path / "ram/out"
    write(ram, {"ck_1.pth": PYTORCH, "ck-20/a": OTHER})
    write(tmp_path, {"spilled/ck-21/a": OTHER, "elsewhere/x": OTHER})
    spill_at_rest(ram / "ck_1.pth", ram / "ck_1.pth", tmp_path / "spilled")
    (ram / "ck_2.pth").symlink_to("ck_1.pth")
    (ram / "ck_3.pth").symlink_to(tmp_path / "elsewhere/x")
    (ram / "ck_4.pth").symlink_to(tmp_path / "spilled/gone")
    (ram / "ck-21").symlink_to(tmp_path / "spilled/ck-21")
    (ram / "ck-20/link").symlink_to(tmp_path / "elsewhere/x")
    found = find_checkpoints(stage, ["out/ck*", "out/ck_3.pth", "out/ck-21"])
    assert {checkpoint.path: [name for name, _ in checkpoint.files] for checkpoint in found} == {
        "out/ck_1.pth": ["out/ck_1.pth"],
        "out/ck-20": ["out/ck-20/a"],
    }
    assert names(find_checkpoints(copied, ["out/ck_*"])) == [], "without the folder it is a link like any other"


CHURN = """
import os, shutil, sys
os.chdir(sys.argv[1])
print("begun", flush=True)
while True:
    for number in range(20):
        open(f"ck_{number}.bin", "wb").write(bytes(number))
        os.makedirs(f"ck-{number}/sub", exist_ok=True)
        for name in ("a", "sub/b", "c"):
            open(f"ck-{number}/{name}", "wb").write(bytes(9))
        if number % 3:
            os.rename(f"ck_{number}.bin", "ck_last.bin")
            shutil.rmtree(f"ck-{number - 1}", ignore_errors=True)
            os.rename(f"ck-{number}", f"ck-{number - 1}")
    for name in os.listdir():
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
"""


@contextlib.contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """Run a Python program as a trainer; it has begun when it printed a line, and is killed in the end."""
    argv = [sys.executable, "-I", "-c", code, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_trainer_that_makes_and_deletes_files_all_the_time_is_no_trouble(copied: Stage, tmp_path: Path) -> None:
    (tmp_path / "ram/churn").mkdir()
    seen = set()
    with child(CHURN, str(tmp_path / "ram/churn")):
        for _ in range(200):
            for checkpoint in find_checkpoints(copied, ["churn/*", "churn/ck-19", "**/*.bin"]):
                is_whole(checkpoint, tmp_path / "ram")
                seen.add(checkpoint.path)
    assert len(seen) > 10, "there was something to be seen"


def mapped(protection: str, flags: str, mode: str = "r+b") -> str:
    """Return code that maps the file and closes every descriptor of it, also mmap's own."""
    code = f"file = open(path, {mode!r}); kept = mmap.mmap(file.fileno(), 0, mmap.{flags}, {protection})"
    return f"{code}; os.closerange(3, 20)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("kept = open(path, 'wb')", True),
        ("kept = open(path, 'ab')", True),
        ("kept = open(path, 'r+b')", True),
        ("kept = os.open(path, os.O_WRONLY)", True),
        ("kept = os.open(path, os.O_RDWR)", True),
        ("kept = open(path, 'rb')", False),
        ("kept = open(path, 'r+b'); kept.close()", False),
        ("kept = os.open(path, os.O_PATH)", False),
        (mapped("mmap.PROT_READ | mmap.PROT_WRITE", "MAP_SHARED"), True),
        (mapped("mmap.PROT_READ", "MAP_SHARED", "rb"), False),
        (mapped("mmap.PROT_READ | mmap.PROT_WRITE", "MAP_PRIVATE"), False),
        ("kept = open(path, 'r+b'); os.unlink(path)", False),
        ("kept = open(path + '.other', 'wb')", False),
    ],
)
@pytest.mark.parametrize("name", ["x.bin", "a b ü/x (deleted) 1.bin"])
def test_whoever_has_a_file_open_or_mapped_for_writing_is_seen(
    code: str, expected: bool, name: str, tmp_path: Path
) -> None:
    write(tmp_path, {f"ram/{name}": bytes(9000)})
    program = f"import mmap, os, sys; path = sys.argv[1]; {code}; print('begun', flush=True); sys.stdin.read()"
    with child(program, str(tmp_path / "ram" / name)) as trainer:
        found = written_to([psutil.Process(trainer.pid)], str(tmp_path / "ram"))
        assert (name in found) == expected
        assert found <= {name, f"{name}.other", f"{name} (deleted)"}, "nothing outside the folder"
        assert written_to([psutil.Process(trainer.pid)], str(tmp_path / "ra")) == set()
        assert written_to([], str(tmp_path / "ram")) == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("kept = open(path, 'rb')", True),
        ("kept = open(path, 'ab')", True),
        (mapped("mmap.PROT_READ", "MAP_SHARED", "rb"), True),
        (mapped("mmap.PROT_READ", "MAP_PRIVATE", "rb"), True),
        (mapped("mmap.PROT_READ | mmap.PROT_WRITE", "MAP_SHARED"), True),
        ("kept = open(path, 'r+b'); kept.close()", False),
        ("kept = open(path + '.other', 'wb')", False),
    ],
)
@pytest.mark.parametrize("name", ["x.bin", "a b ü/x (deleted) 1.bin"])
def test_whoever_holds_a_file_also_for_reading_is_seen(code: str, expected: bool, name: str, tmp_path: Path) -> None:
    write(tmp_path, {f"ram/{name}": bytes(9000)})
    program = f"import mmap, os, sys; path = sys.argv[1]; {code}; print('begun', flush=True); sys.stdin.read()"
    with child(program, str(tmp_path / "ram" / name)) as trainer:
        assert (str(tmp_path / "ram" / name) in held_by(trainer.pid)) == expected
    assert list(held_by(trainer.pid)) == [], "it has ended"


def test_a_process_that_has_ended_writes_to_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], cwd="/")
    trainer = psutil.Process(process.pid)
    process.kill()
    assert written_to([trainer], str(tmp_path)) == set(), "not waited for yet"
    process.wait()
    assert written_to([trainer], str(tmp_path)) == set()


@pytest.mark.parametrize("change", ["written to", "touched", "grown"])
def test_a_checkpoint_that_was_written_to_is_another(change: str, tmp_path: Path) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "written to": lambda path: path.write_bytes(OTHER[::-1]),
        "touched": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
        "grown": lambda path: os.truncate(path, len(OTHER) + 1),
    }
    write(tmp_path, {"x.bin": OTHER}, saved_s=1e9)
    stage = stage_of(tmp_path / "project", tmp_path)
    before = find_checkpoints(stage, ["x.bin"])
    assert find_checkpoints(stage, ["x.bin"]) == before
    changes[change](tmp_path / "x.bin")
    assert find_checkpoints(stage, ["x.bin"]) != before
