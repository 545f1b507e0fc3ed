"""What others have said or named is fit for a terminal, and a trainer's output is followed whatever it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ramtrain.plain import one_line, printable, without_colours
from ramtrain.progress import TrainingProgress
from ramtrain.shelf import name_of
from ramtrain.supervise import _tail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 日本 text\n\tof two lines", "plain ü 日本 text\n\tof two lines"),
        ("\x1b[2J\a\x7f\x85", "\\x1b[2J\\x07\\x7f\\x85"),
        ("cr\r", "cr\\x0d"),
        (os.fsdecode(b"no \xff text"), "no \\xff text"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
    ],
)
def test_nothing_moves_the_cursor(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert one_line(text) == expected.replace("\n", "\\x0a").replace("\t", "\\x09")


def test_colours_are_left_out() -> None:
    assert without_colours("\x1b[1m\x1b[31mred\x1b[0m") == "red"


@pytest.mark.parametrize("name", ["ck.pth", "l" * 255, "new\nline", os.fsdecode(b"\xff" * 255)])
def test_a_durable_checkpoint_has_a_name_that_more_can_come_to(name: str) -> None:
    found = name_of(f"out/{name}", 0.0)
    assert found.isprintable()
    assert len(f".failed-01234567-best-{found}.01234567.partial".encode()) <= 255
    assert name != "ck.pth" or found.endswith(".000-ck.pth")


def test_progress_is_found_in_whatever_a_trainer_prints() -> None:
    progress = TrainingProgress("run", {"step": re.compile("step ([0-9]+)")})
    progress.feed("\0\0step 1 of 9\rstep 2 of 9\r")
    assert progress.latest == {"step": "2"}, "a bar that is drawn again and again is of many lines"
    for _ in range(100):
        progress.feed("x" * 100_000)
    assert len(progress.rest) < 100_000, "of a line without end not all is kept"
    progress.feed(" step 3\n")
    assert progress.latest == {"step": "3"}


def test_of_an_output_only_the_end_is_quoted(tmp_path: Path) -> None:
    output = tmp_path / "train.log"
    output.write_bytes(b"\xff\n" * 100_000 + b"\x1b[31m" + b"x" * 50_000 + b"\x1b[0m\0\nlast\n")
    lines = _tail(output).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  last"
    assert re.fullmatch(r"  x{499}\\x00", lines[-2])
