"""Two model files: which tensors differ, by how much, and what is said where that cannot be known."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramtrain.errors import RamTrainError
from ramtrain.tensors import Contents, Difference, Value, compare_contents, is_known

torch = pytest.importorskip("torch", reason="needs PyTorch: examples/tiny_tts/requirements.txt")

NAN, INF = math.nan, math.inf


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any, Any], Contents]:
    """Return a function that saves two contents with torch.save and compares the files."""

    def compared(a: Any, b: Any) -> Contents:
        paths = [tmp_path / f"{name}.pth" for name in "ab"]
        for path, content in zip(paths, (a, b), strict=True):
            torch.save(content, path)
        return compare_contents(*paths)

    return compared


def checkpoint(weight: float = 1.0, step: int = 5, date: str = "November 26, 2026") -> dict[str, Any]:
    """Return what the Coqui Trainer saves, in small."""
    return {
        "model": {"a.weight": torch.full((2, 3), 2.0), "b.weight": torch.tensor([weight, 4.0])},
        "optimizer": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}],
        "step": step,
        "date": date,
        "scaler": None,
        "model_loss": {"eval_loss": NAN},
    }


def test_a_changed_weight_is_named_with_its_size(saved: Callable[..., Contents]) -> None:
    found = saved(checkpoint(), checkpoint(weight=1.5, step=6))
    changed = Difference("model.b.weight", "float32 [2]", "float32 [2]", 0.5, 0.125, 1, 2)
    assert found == Contents("tensor", 3, [changed], [], [], [Value("step", "5", "6")])


def test_files_of_the_same_tensors_differ_in_the_date_alone(saved: Callable[..., Contents]) -> None:
    found = saved(checkpoint(), checkpoint(date="November 27, 2026"))
    assert found.differing == 0
    assert found.values == [Value("date", "'November 26, 2026'", "'November 27, 2026'")]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, NAN], [1.0, NAN], None),
        ([0.0], [-0.0], None),
        ([], [], None),
        ([1.0, NAN, 3.0], [1.0, 2.0, 3.5], (0.5, 0.5 / 3, 2, 1)),
        ([1.0, INF], [1.0, INF], None),
        ([2.0, INF], [2.0, 1.0], (INF, INF, 1, 0)),
        ([0.0, 0.0], [0.0, 1e-9], (1e-9, None, 1, 0)),
    ],
)
def test_values_that_are_no_plain_numbers(
    a: list[float], b: list[float], expected: tuple[Any, ...] | None, saved: Callable[..., Contents]
) -> None:
    sides = [{"w": torch.tensor(side, dtype=torch.float64)} for side in (a, b)]
    changed = saved(*sides).changed
    found = [(each.largest, each.relative, each.differing, each.nans) for each in changed]
    assert found == ([] if expected is None else [pytest.approx(expected)])


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float8_e4m3fn", "complex64", "int8", "int64", "uint16", "bool"]
)
def test_every_type_of_value_is_compared(dtype: str, saved: Callable[..., Contents]) -> None:
    a, b = ({"w": torch.tensor(side).to(getattr(torch, dtype))} for side in ([0.0, 1.0], [0.0, 0.0]))
    (changed,) = saved(a, b).changed
    assert (changed.largest, changed.differing, changed.a) == (1.0, 1, f"{dtype} [2]")
    assert saved(a, a).changed == []


def test_large_whole_numbers_that_no_float_tells_apart_differ(saved: Callable[..., Contents]) -> None:
    (changed,) = saved({"w": torch.tensor([1 << 60])}, {"w": torch.tensor([(1 << 60) + 1])}).changed
    assert changed.differing == 1


def test_other_shapes_types_and_names(saved: Callable[..., Contents]) -> None:
    a = {"shape": torch.zeros(2), "type": torch.ones(2), "gone": torch.zeros(1), "kind": torch.zeros(1)}
    b = {"shape": torch.zeros(3), "type": torch.ones(2).half(), "new": torch.zeros(1), "kind": "text"}
    found = saved(a, b)
    assert [(each.name, each.a, each.b, each.largest) for each in found.changed] == [
        ("shape", "float32 [2]", "float32 [3]", None),
        ("type", "float32 [2]", "float16 [2]", 0.0),
    ]
    assert (found.only_a, found.only_b) == (["gone", "kind"], ["new"])
    assert (found.count, found.differing) == (5, 5)


def test_the_largest_differences_come_first(saved: Callable[..., Contents]) -> None:
    a = {name: torch.zeros(2) for name in "wxyz"}
    b = {"w": a["w"] + 1, "x": a["x"] + 3, "y": torch.tensor([NAN, 0]), "z": a["z"] + 2}
    assert [each.name for each in saved(a, b).changed] == ["y", "x", "z", "w"]


def test_names_with_dots_do_not_hide_each_other(saved: Callable[..., Contents]) -> None:
    a = {"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}
    b = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    assert len(saved(a, b).changed) == len(saved(b, a).changed) == 1


def test_what_holds_itself_has_an_end(saved: Callable[..., Contents]) -> None:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    content["self"] = content
    assert saved(content, {"w": torch.ones(1)}).count == 1


def test_the_old_form_of_torch_save_is_read_as_well(tmp_path: Path) -> None:
    for name, weight in (("a", 1.0), ("b", 3.0)):
        torch.save(checkpoint(weight), tmp_path / f"{name}.pth", _use_new_zipfile_serialization=False)
    (changed,) = compare_contents(tmp_path / "a.pth", tmp_path / "b.pth").changed
    assert changed.largest == 2.0


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_not_loaded_and_its_bytes_are_compared(
    saved: Callable[..., Contents], tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    trap = Trap(sprung)
    found = saved(*({"x": torch.zeros(2), "w": torch.full((2,), value), "trap": trap} for value in (0.0, 1.0)))
    assert not sprung.exists()
    assert (found.unit, [each.name for each in found.changed]) == ("storage", ["data/1"])
    assert found.why.endswith("a.pth as weights only: it refers to posix.mkdir")


def hide(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Make it as if they were not installed."""
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)


def test_without_pytorch_the_bytes_are_compared_and_it_is_said_what_to_install(
    saved: Callable[..., Contents], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(checkpoint(), checkpoint(weight=1.5))
    hide(monkeypatch, "torch")
    found = compare_contents(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (found.unit, [each.name for each in found.changed]) == ("storage", ["data/1"])
    assert f"{shlex.quote(sys.executable)} -m pip install torch" in found.why
    same = compare_contents(tmp_path / "a.pth", tmp_path / "a.pth")
    assert same.differing == 0
    assert same.count == found.count


def test_storages_of_the_same_checksum_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "torch")
    for name, content in (("a", b"plumless"), ("b", b"buckeroo")):  # two words of the same CRC-32
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as archive:
            archive.writestr("archive/data/0", content)
            archive.writestr("archive/data.pkl", b"")
    found = compare_contents(tmp_path / "a.pth", tmp_path / "b.pth")
    assert [each.name for each in found.changed] == ["data/0"]


@pytest.mark.parametrize("content", [b"", b"abc" * 100, b"\x80\x02}q\x00.", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_what_is_no_model_has_a_message(content: bytes, suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        path.write_bytes(content)
    try:
        found = compare_contents(*paths)
    except RamTrainError as error:
        assert re.search(r"PyTorch does not load|no safetensors file", str(error))
    else:
        assert found.count == 0


def test_safetensors_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch", reason="needs safetensors: requirements-dev.txt")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    w, same = torch.tensor([1.0, -4.0]), torch.zeros(3, dtype=torch.int32)
    library.save_file({"w": w, "same": same, "gone": torch.zeros(1)}, a, {"format": "pt", "epoch": "1"})
    library.save_file({"w": w + 1, "same": same}, b, {"format": "pt", "epoch": "2"})
    expected = Contents(
        "tensor",
        3,
        [Difference("w", "F32 [2]", "F32 [2]", 1.0, 0.25, 2, 2)],
        ["gone"],
        [],
        [Value("metadata.epoch", "'1'", "'2'")],
    )
    assert compare_contents(a, b) == expected
    hide(monkeypatch, "torch")
    assert compare_contents(a, b) == expected, "NumPy does as well"
    hide(monkeypatch, "safetensors")
    with pytest.raises(RamTrainError, match="-m pip install safetensors"):
        compare_contents(a, b)


def test_safetensors_of_types_that_numpy_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch", reason="needs safetensors: requirements-dev.txt")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    library.save_file({"w": torch.ones(2, dtype=torch.bfloat16)}, a)
    library.save_file({"w": torch.zeros(2, dtype=torch.bfloat16)}, b)
    assert compare_contents(a, b).changed[0].largest == 1.0
    hide(monkeypatch, "torch")
    with pytest.raises(RamTrainError, match=r"torch is needed for tensors of type BF16: .* -m pip install torch"):
        compare_contents(a, b)


MEASURE = """
import sys, threading, time
from pathlib import Path
from ramtrain.tensors import compare_contents

def held_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

import torch
samples, ended = [held_kb()], threading.Event()
watch = threading.Thread(target=lambda: [samples.append(held_kb()) for _ in iter(lambda: ended.wait(0.002), True)])
watch.start()
found = compare_contents(Path(sys.argv[1]), Path(sys.argv[2]))
ended.set()
watch.join()
print(len(samples), (max(samples) - samples[0]) >> 10, len(found.changed))
"""


def test_a_large_checkpoint_needs_little_memory(saved: Callable[..., Contents], tmp_path: Path) -> None:
    values = torch.from_numpy(np.arange(1 << 24, dtype=np.float32))
    for name, factor in (("a", 1), ("b", 2)):
        torch.save({"w": values * factor}, tmp_path / f"{name}.pth")
    argv = [sys.executable, "-c", MEASURE, str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    samples, held_mib, changed = map(int, said.split())
    assert samples > 10
    assert changed == 1
    assert held_mib < 48, "of two files of 64 MiB"


def test_which_names_are_known() -> None:
    assert all(map(is_known, ("a.pth", "b.PT", "c.ckpt", "d.bin", "e.safetensors")))
    assert not any(map(is_known, ("config.json", "pth", "sample.wav")))
