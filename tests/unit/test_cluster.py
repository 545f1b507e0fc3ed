"""What the job of a run asks for, and what it says where others see it."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import afar, arrived, caller, cluster, leaving, ramdisk, remedy, slurm, status
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.durable import Kept
from ramtrain.errors import RamTrainError
from ramtrain.export import Export, NotExported
from ramtrain.fingerprint import Fingerprint
from ramtrain.meter import NO_WRITES
from ramtrain.ramdisk import acquire, release
from ramtrain.shelf import export_file
from ramtrain.sighting import Sighting
from ramtrain.sizing import all_sized
from ramtrain.slurm import Job

JOB = Job("17", "n1", "gpu", 4000)


def a_run(project: Path, **changes: Any) -> Run:
    config = small_config(project, **{"ramdisk.backend": "shm", "train.memory": "8G", **changes})
    (run,) = load_runs(complete_config(config, REPO, "test"), REPO).values()
    return run


@pytest.mark.parametrize(
    ("size", "memory", "reserve", "mb"),
    [
        ("16G", "8G", None, 24 * 1024 + 512),
        # The reserve is what the trainer lives on; where that is less, the reserve has to fit in all the same.
        ("40G", "1G", None, 46080),
        ("64M", "200M", None, 2 * (64 + 512)),
        ("64M", "200M", "1G", 64 + 512 + 1024),
    ],
)
def test_a_job_asks_for_its_ram_disk_and_its_trainer_and_what_admission_keeps_free(
    project: Path, size: str, memory: str, reserve: str | None, mb: int
) -> None:
    run = a_run(project, **{"train.memory": memory, "guard.reserve": reserve})
    run = replace(run, size_bytes=_mib(size) << 20)
    assert cluster.job_mb(run) == mb
    cluster.check_memory({"x": run}, {"x": mb})


def _mib(size: str) -> int:
    return int(size[:-1]) * (1024 if size[-1] == "G" else 1)


def test_on_the_disk_a_run_asks_for_no_memory_of_a_ram_disk(project: Path) -> None:
    assert cluster.job_mb(a_run(project, **{"ramdisk.backend": "disk"})) == 8 * 1024 + 512


def test_a_job_that_asks_for_too_little_is_refused_with_the_arithmetic(project: Path) -> None:
    run = a_run(project)
    cluster.check_memory({"x": run}, {"x": 8768})
    with pytest.raises(RamTrainError) as refusal:
        cluster.check_memory({"x": run}, {"x": 8767})
    assert str(refusal.value).splitlines()[1:] == [
        "  8.56 GiB  asked for (mem_mb)",
        "   -64 MiB  RAM disk (ramdisk.size)",
        "    -8 GiB  the trainer itself (train.memory)",
        "  -512 MiB  Snakemake and RamTrain",
        "    -1 MiB  is missing",
        "Leave mem_mb to RamTrain, which asks for 8.56 GiB; or give a smaller ramdisk.size.",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.memory": None}, "run my_pr_ject_: train.memory: missing"),
        ({"ramdisk.size": "auto"}, "run my_pr_ject_: ramdisk.size: auto: nothing is known yet"),
    ],
)
def test_what_a_job_is_to_ask_for_has_to_be_known(
    project: Path, workdir: Path, changes: dict[str, Any], message: str
) -> None:
    cluster.check_runs(all_sized({"x": a_run(project)}, workdir).values())
    with pytest.raises(RamTrainError, match=message):
        cluster.check_runs(all_sized({"x": a_run(project, **changes)}, workdir).values())


@pytest.mark.parametrize("run", ["a", "lr=0.1,seed=2", "a,b=1"])
def test_snakemake_gives_a_job_the_run_it_is_sent_for(project: Path, run: str) -> None:
    from snakemake.target_jobs import parse_target_jobs_cli_args
    from snakemake_interface_executor_plugins.utils import TargetSpec, encode_target_jobs_cli_args

    targets = encode_target_jobs_cli_args([TargetSpec(rule, {"run": run}) for rule in ("train_run", "export_model")])
    for sent in (targets, [target.replace('"', "") for target in targets]):  # as the shell leaves them
        (spec, _) = parse_target_jobs_cli_args(sent)
        assert cluster.wildcards_of(spec.wildcards_dict) == {"run": run}
        assert cluster.run_of(["snakemake", "--target-jobs", *sent, "--allowed-rules", "train_run"]) == run
    cluster.check_runs([replace(a_run(project), run=run)])


@pytest.mark.parametrize("run", ["a,b", "a=1,a=2,a=3", "a,run=2"])
def test_an_id_that_snakemake_loses_is_not_sent(project: Path, run: str) -> None:
    with pytest.raises(RamTrainError, match="its id cannot be sent to a cluster"):
        cluster.check_runs([replace(a_run(project), run=run)])


def test_snakemake_that_is_told_to_end_does_not_wait_for_a_lock_of_its_own() -> None:
    told: queue.Queue[int] = queue.Queue()
    lock = threading.Lock()

    def exit_gracefully(number: int, _: object) -> None:
        with lock:
            told.put(number)

    with lock:
        caller.apart(exit_gracefully)(signal.SIGTERM, None)
        assert told.empty()
    assert told.get(timeout=5) == signal.SIGTERM


def test_a_call_for_something_else_is_of_no_run() -> None:
    assert cluster.run_of(["snakemake", "--target-jobs", "benchmark_io:", "--cores", "1"]) is None
    assert cluster.run_of(["snakemake", "train"]) is None


def test_what_the_jobs_memory_leaves_to_the_ram_disk() -> None:
    assert cluster.ramdisk_mb(JOB, 2 << 30) == 4000 - 512 - 2048
    assert cluster.ramdisk_mb(JOB, 8 << 30) == 0
    assert cluster.ramdisk_mb(replace(JOB, memory_mb=None), None) is None


@pytest.mark.parametrize(("minutes", "expected"), [(None, 91), (5, 5)])
def test_how_long_a_step_may_take(project: Path, minutes: int | None, expected: int) -> None:
    assert cluster.runtime_minutes(a_run(project, **{"train.time": "90.1 min"}), minutes) == expected
    assert cluster.runtime_minutes(a_run(project), minutes) is None


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        (
            {
                "SLURM_JOB_ID": "17",
                "SLURMD_NODENAME": "n1",
                "SLURM_JOB_PARTITION": "gpu",
                "SLURM_MEM_PER_NODE": "4000",
            },
            JOB,
        ),
        ({"SLURM_JOB_ID": "17", "SLURM_MEM_PER_NODE": "0"}, Job("17", os.uname().nodename, None, None)),
    ],
)
def test_which_job_this_is(environment: dict[str, str], job: Job | None) -> None:
    assert slurm.this_job(environment) == job


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts programs of SLURM on the PATH that print what is given, or fail with it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(status: int = 0, **said: str) -> None:
        for name, text in said.items():
            (folder / name).write_text(f"#!/bin/sh\necho '{text}' >&{1 if status == 0 else 2}\nexit {status}\n")
            (folder / name).chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("said", "left_s"),
    [
        ("RUNNING 2:00", 120),
        ("RUNNING 1-02:03:04", 93784),
        ("RUNNING UNLIMITED", 45),
        ("COMPLETING 1:00:00", 45),
        ("", 45),
    ],
)
def test_how_long_a_job_that_was_told_to_end_has(programs: Callable[..., None], said: str, left_s: float) -> None:
    programs(squeue=said, scontrol="Kill = 1\nKillWait                = 45 sec")
    assert slurm.seconds_left(JOB) == left_s


def test_where_slurm_does_not_answer_it_is_slurms_default(programs: Callable[..., None]) -> None:
    programs(1, squeue="Unable to contact slurm controller", scontrol="Unable to contact slurm controller")
    assert slurm.seconds_left(JOB) == 30
    assert slurm.is_alive("17") is None


def test_whether_a_job_has_ended(programs: Callable[..., None]) -> None:
    programs(squeue="17")
    assert slurm.is_alive("17") is True
    programs(squeue="")
    assert slurm.is_alive("17") is False
    programs(1, squeue="slurm_load_jobs error: Invalid job id specified")
    assert slurm.is_alive("17") is False


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["snakemake", "train", "--workflow-profile", "p/s", "--profile=q"])
    monkeypatch.setenv("RAMTRAIN_CALLER", "{}")
    caller.remember(["my.yaml"])
    monkeypatch.setattr(sys, "argv", ["snakemake", "--mode", "remote"])
    caller.remember(["my.yaml"], job=JOB)
    yield


def test_a_job_says_what_its_sender_would_type(in_job: None) -> None:
    assert caller.job() == JOB and caller.pid() == os.getpid()
    assert caller.command("train") == (
        "snakemake --cores 1 train --profile=q --workflow-profile p/s --configfile my.yaml"
    )


def test_a_job_names_nothing_that_is_gone_when_it_has_ended(
    in_job: None, project: Path, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lease = acquire(a_run(project), workdir)
    other = replace(a_run(project), backend="tmpfs")
    said = [str(NotExported("run x: no model.", lease, "Mend that, and")), remedy.kept(), remedy.more_memory("others")]
    said += [remedy.of_another(), remedy.end_of_wait(), *status.last_words(ramdisk.ram_root(workdir))]
    with pytest.raises(RamTrainError, match="an earlier attempt left a RAM disk") as refusal:
        ramdisk.foresee(other, workdir)
    said = "\n".join([*said, str(refusal.value)])
    assert "What is whole comes home now, and its RAM on node n1 is released." in said
    for gone in (lease.folder, "snakemake --cores 1 unmount", "stays", "only the export", "Ctrl-C"):
        assert gone not in said, gone
    release(lease)


def test_only_these_name_the_unmount_and_none_of_them_in_a_job() -> None:
    sources = [*REPO.glob("src/ramtrain/*.py"), *REPO.glob("scripts/*.py")]
    naming = {path.stem for path in sources if "caller.command('unmount')" in path.read_text()}
    assert naming == {"status", "supervise", "leaving"}, "what is said of the RAM in jobs as well is remedy's"


def test_what_the_disk_does_not_take_is_told_of_and_stays(
    in_job: None,
    project: Path,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def is_full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lease = acquire(a_run(project), workdir)
    monkeypatch.setattr(leaving, "_PATIENCE_S", 0.1)
    with monkeypatch.context() as disk:
        disk.setattr(leaving, "rescue", is_full)
        leaving.leave(workdir, JOB.id, lease.run)
    (said,) = [entry.getMessage() for entry in caplog.records if entry.name == leaving.log.name]
    assert f"stays on node n1, at {lease.folder}. The next job of {workdir} there brings it home" in said
    leaving.leave(workdir, JOB.id, lease.run)
    assert not Path(lease.folder).exists()


@pytest.mark.parametrize(
    ("changes", "written", "spoilt", "has"),
    [
        ({}, True, False, True),
        ({}, False, False, False),
        ({"train.threads": 2}, True, False, False),
        ({}, True, True, False),
    ],
)
def test_a_model_has_arrived_if_it_is_new_of_this_training_and_whole(
    project: Path,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    written: bool,
    spoilt: bool,
    has: bool,
) -> None:
    run = a_run(project)
    model = workdir / "results" / run.run / "model/best.pth"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"model")
    kept = Kept("model/best.pth", model.stat().st_size + spoilt, "0")
    steps = SimpleNamespace(
        training=SimpleNamespace(fingerprint=Fingerprint(a_run(project, **changes).training, {"data": "1"})),
        export=Export([kept], [], 0.0, NO_WRITES),
    )
    monkeypatch.setattr(arrived, "Steps", SimpleNamespace(read=lambda path: path.stat() and steps))
    export_file(run.run).write_text("of an earlier training")
    arrivals = arrived.Arrivals({run.run: run})
    if written:
        os.utime(export_file(run.run), (1, 1))
    assert arrivals.has(run.run) is has
    export_file(run.run).unlink()
    assert not arrivals.has(run.run)


def a_sighting(**changes: Any) -> Sighting:
    now_s = time.time()
    seen = {
        "seen_s": now_s,
        "started_s": now_s - 100,
        "has_ended": False,
        "progress": {"epoch": "3"},
        "checkpoints": {},
    }
    rest = {"newest": "a.pth", "newest_s": now_s - 5, "durable": None, "safe_s": now_s - 60, "max_loss_s": 600.0}
    return Sighting(
        **{**seen, **rest, "checkpoints": {}, "worst_loss_s": 1.0, "used_bytes": 5, "kept_off_bytes": 7, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "state", "used_bytes"),
    [
        ({}, "training", 5),
        ({"paused": "memory"}, "paused: memory", 5),
        ({"has_ended": True}, "not training", 0),
        ({"seen_s": time.time() - 7200}, "not heard of for 2:", 5),
        (None, "mounted", 0),
    ],
)
def test_status_shows_what_a_job_elsewhere_has_told(
    in_job: None, project: Path, workdir: Path, changes: dict[str, Any] | None, state: str, used_bytes: int
) -> None:
    lease = acquire(a_run(project), workdir)
    release(lease)
    assert lease.job == JOB
    teller = afar.Teller(lease.run, lease)
    teller.tell(None if changes is None else a_sighting(**changes))
    teller.tell(a_sighting(used_bytes=99))  # within the minute
    (entry,) = [entry for entry in status.read_status() if entry["workdir"] == str(workdir)]
    assert entry["state"].startswith(state)
    assert (entry["job"], entry["node"], entry["used_bytes"]) == ("17", "n1", used_bytes)
    assert "(job 17 on n1)" in status.table([entry])
    afar.forget(lease.run)
    assert not afar.notes()


def test_a_run_that_is_in_no_job_tells_nothing(project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project), workdir)
    release(lease)
    afar.Teller(lease.run, lease).tell(a_sighting(), at_once=True)
    assert not afar.notes()


def test_two_jobs_do_not_train_one_run(
    in_job: None, project: Path, workdir: Path, programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = acquire(a_run(project), workdir)
    release(lease)
    afar.Teller(lease.run, lease).tell(None)
    programs(squeue="17")
    afar.check_alone(lease.run)  # it is this one, queued again
    caller.remember([], job=replace(JOB, id="18"))
    with pytest.raises(RamTrainError, match=r"job 17 on node n1 still works on it.*scancel 17"):
        afar.check_alone(lease.run)
    programs(squeue="")
    afar.check_alone(lease.run)


def test_in_an_interactive_job_a_run_may_be_tried_again(
    project: Path, workdir: Path, programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lease = acquire(a_run(project), workdir)
    release(lease)
    afar.Teller(lease.run, lease).tell(None)
    programs(squeue="17")
    afar.check_alone(lease.run)


def test_what_a_killed_job_left_on_the_node_is_released_by_the_next_one(
    in_job: None, project: Path, workdir: Path, programs: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    lease = acquire(a_run(project), workdir)
    programs(squeue="17")
    leave_in_another_process(workdir)
    assert Path(lease.folder).exists(), "as long as that job lives"
    programs(squeue="")
    leave_in_another_process(workdir)
    assert not Path(lease.folder).exists()
    assert "nothing was written; the RAM is released" in capfd.readouterr().out


def leave_in_another_process(workdir: Path, job: str = "18", output: int | None = None) -> None:
    code = (
        "from pathlib import Path; from ramtrain import leaving; from ramtrain.slurm import Job; "
        f"leaving.leave_at_end(Path({str(workdir)!r}), Job({job!r}, 'n1', None, None), 'x')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=output, stderr=output, timeout=60)


@pytest.mark.parametrize("output", ["a full disk", "a pipe that nobody reads"])
def test_a_job_leaves_nothing_although_nobody_hears_of_it(
    in_job: None, project: Path, workdir: Path, output: str
) -> None:
    lease = acquire(a_run(project), workdir)
    if output == "a full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        os.close(reading)
    try:
        leave_in_another_process(workdir, JOB.id, descriptor)
    finally:
        os.close(descriptor)
    assert not Path(lease.folder).exists()


@pytest.mark.parametrize("in_memory", [True, False])
def test_where_dev_shm_is_no_memory_the_jobs_own_folder_may_be(
    project: Path, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    with contextlib.ExitStack() as undo:
        scratch = tmp_path
        if in_memory:
            scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ramtrain-test-")))
        monkeypatch.setenv("RAMTRAIN_CALLER", "{}")
        caller.remember([], job=replace(JOB, scratch=str(scratch)))
        run = a_run(project, **{"ramdisk.backend": "auto"})

        def no_shm(run: Run) -> None:
            raise ramdisk.Unavailable("it is not in memory.")

        monkeypatch.setattr(ramdisk, "_check_may_mount", no_shm)
        monkeypatch.setattr(ramdisk, "_check_shm", no_shm)
        if not in_memory:
            with pytest.raises(RamTrainError, match="no RAM disk can be had here"):
                acquire(run, workdir)
            return
        lease = acquire(run, workdir)
        assert lease.backend == "path" and Path(lease.folder).is_relative_to(scratch)
        release(lease)
        assert not any(scratch.iterdir())


def test_a_job_leaves_nothing_when_it_ends(in_job: None, project: Path, workdir: Path) -> None:
    lease = acquire(a_run(project), workdir)
    leaving.leave(workdir, "16", "other")
    assert Path(lease.folder).exists(), "it is another's"
    leaving.leave(workdir, JOB.id, lease.run)
    assert not Path(lease.folder).exists()
    Path(lease.folder).mkdir(parents=True, mode=0o700)  # a job that is killed while it mounts leaves no more
    leaving.leave(workdir, JOB.id, "other")
    assert Path(lease.folder).exists()
    leaving.leave(workdir, JOB.id, lease.run)
    assert not Path(lease.folder).exists()
