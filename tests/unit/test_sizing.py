"""Sizes that are found: from the RAM disk that is there, earlier runs, the adapter; else all that is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import caller, memory, sizing
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.durable import write_json
from ramtrain.memory import Bound
from ramtrain.ramdisk import acquire, release
from ramtrain.redact import redact
from ramtrain.sizing import Plan, plan_for, read_records, sized

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine of 64 GiB with 20 GiB available, and nothing promised."""
    monkeypatch.setattr(memory, "bounds", lambda *_: [Bound("this machine", 64 * GIB, 20 * GIB)])
    monkeypatch.setattr("ramtrain.admission.standing", lambda _: [])


def a_run(project: Path, **changes: Any) -> Run:
    changes = {"ramdisk.size": "auto", "ramdisk.backend": "tmpfs", "guard.reserve": "4G", **changes}
    (run,) = load_runs(complete_config(small_config(project, **changes), REPO, "test"), REPO).values()
    return run


def plan(run: Run) -> Plan:
    return plan_for(run, Path.cwd(), read_records())


def told(found: Plan) -> list[tuple[int, str, str]]:
    return [(part.amount_bytes, part.what, part.source) for part in found.parts]


def write_record(run: str, project: Path, peak_bytes: int, **changes: Any) -> None:
    record: dict[str, Any] = {
        "run": run,
        "config": {"project": small_config(project)["project"]},
        "ramdisk": {"peak_bytes": peak_bytes},
        "staging": {"method": "overlay", "bytes": 0},
        "checkpoints": {"size_bytes": 100 * MIB},
        "model": [{"path": "model/model.bin", "bytes": 50 * MIB}],
    }
    Path("results", run).mkdir(parents=True)
    write_json(Path("results", run, "record.json"), {**record, **changes})


def test_auto_is_the_default_and_a_size_stays_as_it_is(project: Path, workdir: Path) -> None:
    config = small_config(project)
    del config["ramdisk"]
    (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
    assert run.auto_size
    run = a_run(project, **{"ramdisk.size": "64M"})
    assert sized(run, plan(run), planned_mb=3) == run
    assert a_run(project, **{"ramdisk.size": "25%"}).size_bytes == 16 * GIB


def test_of_nothing_that_is_known_it_is_what_the_reserve_leaves(project: Path, workdir: Path) -> None:
    found = plan(a_run(project))
    why = "all that guard.reserve leaves, since nothing is known of it yet"
    assert told(found) == [(16 * GIB, "RAM disk", why)]
    assert found.least_bytes == GIB


def test_what_there_is_of_a_shared_memory_file_system_bounds_it(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 3 * GIB})
    monkeypatch.setattr("ramtrain.admission.shutil.disk_usage", lambda _: usage)
    assert plan(a_run(project, **{"ramdisk.backend": "shm"})).size_bytes == 3 * GIB


def test_the_most_that_earlier_runs_held_and_a_margin(project: Path, workdir: Path) -> None:
    write_record("a", project, 2 * GIB)
    write_record("b", project, 4 * GIB)
    write_record("another project", project.parent, 9 * GIB)
    other = {"project": {**small_config(project)["project"], "command": ["python", "other.py"]}}
    write_record("another command", project, 9 * GIB, config=other)
    write_record("of another version", project, 9 * GIB, ramdisk={})
    Path("results/torn").mkdir()
    Path("results/torn/record.json").write_text('{"run": ')
    found = plan(a_run(project))
    assert told(found) == [(4 * GIB, "what it writes", "the most that run b held"), (GIB, "margin", "")]
    assert (found.size_bytes, found.least_bytes) == (5 * GIB, 4 * GIB)


def test_a_record_tells_although_its_secrets_are_left_out(project: Path, workdir: Path) -> None:
    command = "python train.py --hf-token Zq81"
    config = redact({"project": {**small_config(project)["project"], "command": command}})
    assert "Zq81" not in str(config)
    write_record("a", project, 4 * GIB, config=config)
    assert plan(a_run(project, **{"project.command": command.replace("1", "2")})).least_bytes == 4 * GIB


def test_small_runs_have_a_margin_for_what_was_not_seen(project: Path, workdir: Path) -> None:
    write_record("a", project, 10 * MIB)
    assert plan(a_run(project)).size_bytes == (10 + 128) * MIB


@pytest.mark.parametrize(
    ("staging", "method", "copied_mib", "expected_mib"),
    [
        ("auto", "copy", 100, 800 + 200 + 100),
        ("copy", "copy", 100, 800 + 200 + 100),
        ("overlay", "copy", 100, 800 + 200),
        ("overlay", "overlay", 100, 800 + 200 + 100),  # preloaded
        ("copy", "overlay", 100, 800 + 200 + 30),
    ],
)
def test_what_is_copied_into_ram_is_apart_from_what_is_written(
    staging: str, method: str, copied_mib: int, expected_mib: int, project: Path, workdir: Path
) -> None:
    with (project / "large.bin").open("wb") as file:
        file.truncate(30 * MIB - 64 * 1024)
    record = {"method": method, "bytes": copied_mib * MIB}
    write_record("a", project, (800 + copied_mib) * MIB, staging=record)
    assert plan(a_run(project, staging=staging)).size_bytes // MIB == expected_mib


@pytest.fixture
def xtts(project: Path) -> Path:
    """Return a project with two base models as AllTalk lays them out, the larger of 1.86 GB at full size."""
    for name, size_bytes in (("small", 5), ("xttsv2", 1_857_883_871)):
        folder = project / "models/xtts" / name
        folder.mkdir(parents=True)
        with (folder / "model.pth").open("wb") as file:
            file.truncate(size_bytes)
    return project


def test_the_adapter_tells_by_the_base_model(xtts: Path, workdir: Path) -> None:
    found = plan(a_run(xtts, **{"project.trainer": "coqui"}))
    base = "models/xtts/xttsv2/model.pth, 1.73 GiB"
    assert told(found) == [
        (12 * 1_857_883_871, "4 checkpoints", f"each 3 times {base}"),
        (2_322_354_839, "what else it writes", f"1.25 times {base}"),
    ]
    assert 24.5e9 < found.size_bytes < 25.5e9, "4 x 3 x the base model + 2.3 GB"
    assert [line.amount_bytes for line in found.home] == [2 * 3 * 1_857_883_871], "keep + 1 durable checkpoints"


def test_without_a_base_model_the_adapter_tells_nothing(project: Path, workdir: Path) -> None:
    assert plan(a_run(project, **{"project.trainer": "coqui"})).size_bytes == 16 * GIB


def test_a_durable_checkpoint_tells_better_than_a_base_model(
    xtts: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = type("Durable", (), {"size_bytes": 500 * MIB, "folder": Path("results/a/checkpoints/1")})
    monkeypatch.setattr(sizing, "durable_checkpoints", lambda _: [checkpoint])
    Path("results/my_pr_ject_/checkpoints").mkdir(parents=True)
    found = plan(a_run(xtts, **{"project.trainer": "coqui"}))
    assert told(found)[0] == (2000 * MIB, "4 checkpoints", "each as results/a/checkpoints/1")
    assert [line.amount_bytes for line in found.home] == [500 * MIB], "one of the two is there already"


def test_earlier_runs_tell_better_than_the_adapter(xtts: Path, workdir: Path) -> None:
    write_record("a", xtts, GIB)
    found = plan(a_run(xtts, **{"project.trainer": "coqui"}))
    assert found.size_bytes == GIB + GIB // 4


def test_the_ram_disk_that_is_there_has_its_size_and_doubles_when_it_was_full(project: Path, workdir: Path) -> None:
    write_record("a", project, 4 * GIB)
    run = a_run(project, **{"ramdisk.backend": "shm"})
    lease = acquire(replace(run, size_bytes=8 * MIB, least_bytes=8 * MIB), workdir)
    assert told(plan(run)) == [(8 * MIB, "RAM disk", "it is there already")]
    (Path(lease.folder) / "full").write_bytes(bytes(8 * MIB))
    assert told(plan(run)) == [(16 * MIB, "RAM disk", "twice the 8 MiB that were full")]
    release(lease)


def test_a_size_does_not_change_while_a_call_lasts(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "budget_bytes", lambda: 10 * GIB)
    run = a_run(project)
    first = sized(run, plan(run))
    assert (first.size_bytes, first.ramdisk_mb) == (10 * GIB, 10 << 10)
    write_record("a", project, 4 * GIB)
    then = sized(run, plan(run), planned_mb=7000)
    assert (then.size_bytes, then.least_bytes) == (7000 * MIB, 4 * GIB)
    write_record("b", project, 16 * GIB)
    then = sized(run, plan(run), planned_mb=7000)
    assert (then.size_bytes, then.least_bytes) == (7000 * MIB, 7000 * MIB)


def test_a_need_beyond_the_budget_stays_what_it_is(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake cuts a job's resource down to the budget; what is refused then is to be named."""
    monkeypatch.setattr(caller, "budget_bytes", lambda: GIB)
    write_record("a", project, 4 * GIB)
    run = a_run(project)
    assert sized(run, plan(run), planned_mb=1 << 10).size_bytes == 5 * GIB


def test_on_the_disk_nothing_of_it_is_memory(project: Path, workdir: Path) -> None:
    run = a_run(project, **{"ramdisk.backend": "disk"})
    assert sized(run, plan(run), planned_mb=0).size_bytes == GIB
    assert sized(run, plan(run)).ramdisk_mb == 0


def test_what_comes_home_is_known_from_earlier_runs(project: Path, workdir: Path) -> None:
    write_record("a", project, GIB)
    run = a_run(project, **{"protect.keep": 3})
    home = plan(run).home
    assert [(line.amount_bytes, line.source) for line in home] == [
        (50 * MIB, "as in run a"),
        (400 * MIB, "each as in run a"),
    ]
    never = a_run(project, **{"protect.max_loss": "never"})
    assert [line.amount_bytes for line in plan(never).home] == [50 * MIB]
    assert plan(a_run(project, **{"ramdisk.size": "1G"})).home == plan(a_run(project)).home


def test_a_plan_can_be_told(project: Path, workdir: Path) -> None:
    assert plan(a_run(project)).source.startswith("RAM disk: all that guard.reserve leaves")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the records that are read."""
    read: list[Path] = []
    original = Path.read_text

    def read_text(path: Path, *arguments: Any, **more: Any) -> str:
        if path.name == "record.json":
            read.append(path)
        return original(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    return lambda: len(read)


def test_of_many_records_the_newest_are_read(project: Path, workdir: Path, counted: Callable[[], int]) -> None:
    for number in range(30):
        write_record(f"run {number}", project, GIB)
    assert len(read_records()) == counted() == 20
