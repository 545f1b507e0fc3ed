"""Object storage as a second home: what came home is there too, and comes back on a machine that has nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from conftest import Ended, ran, small_config
from workplace import RUN, Workplace, resuming_config

from ramtrain.durable import as_json

if TYPE_CHECKING:
    from s3 import Bucket

pytest_plugins = ["s3"]


def version_of(record: Path) -> str:
    started = datetime.fromisoformat(json.loads(record.read_text())["started"])
    return started.strftime("%Y%m%dT%H%M%S.") + f"{started.microsecond // 1000:03}Z"


def fetched(workdir: Path, *runs: str) -> Ended:
    return ran([sys.executable, "-m", "ramtrain", "fetch", *runs, "--configfile", "my.yaml"], workdir)


def test_a_run_that_has_ended_is_in_the_store_and_comes_back(
    snakemake: Callable[..., Ended], workdir: Path, project: Path, bucket: Bucket
) -> None:
    config = {**small_config(project), "runs": [{"run": "one"}], "store": bucket.store}
    results = workdir / "results/one"

    ended = snakemake(config, "train")

    assert ended.status == 0, ended.output
    stored = json.loads((results / "stored.json").read_text())
    assert f"run one: in {stored['url']}, {stored['files']} files of" in ended.output
    version = stored["url"].removeprefix(f"{bucket.store['url']}/")
    there = bucket.names()
    assert {name.removeprefix(f"{version}/") for name in there} >= {
        *("manifest.json", "model/model.bin", "artifacts/out/log.txt", "record.json", "export.json", "train.log")
    }
    assert all(name.startswith(f"{version}/") for name in there)
    assert "Nothing to be done" in snakemake(config, "train").output

    model = (results / "model/model.bin").read_bytes()
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert "run one: is here already" in fetched(workdir).output
    shutil.rmtree(workdir / "results")
    shutil.rmtree(workdir / ".snakemake")
    back = fetched(workdir)

    assert back.status == 0 and f"run one: has ended; it came home from {stored['url']}" in back.output
    assert (results / "model/model.bin").read_bytes() == model
    assert all(path.read_bytes() == before[path] for path in results.rglob("*") if path.is_file())
    again = snakemake(config, "train")
    assert again.status == 0 and "train_run" not in again.output, again.output
    assert bucket.names() == there

    assert snakemake(config, "train", "--forcerun", "train_run").status == 0
    versions = {name.split("/")[1] for name in bucket.names()}
    assert len(versions) == 2, "the earlier one stays"


def test_a_store_that_cannot_be_used_is_told_of_before_and_after(
    snakemake: Callable[..., Ended], workdir: Path, project: Path, bucket: Bucket
) -> None:
    config = {**small_config(project), "runs": [{"run": "one"}]}
    missing = {**bucket.store, "url": "s3://no-such-bucket/x"}
    refused = snakemake({**config, "store": missing}, "train")
    assert refused.status == 1 and "s3://no-such-bucket/x: a first try to write there" in refused.output
    assert "Traceback" not in refused.output and not (workdir / "results/one/train.log").exists()
    checked = ran([sys.executable, "-m", "ramtrain", "check", "--configfile", "my.yaml"], workdir)
    assert checked.status == 1 and "s3://no-such-bucket/x: a first try" in checked.output

    assert snakemake(config, "train").status == 0
    failed = snakemake({**config, "store": missing}, "train")
    assert failed.status == 1 and "s3://no-such-bucket/x: " in failed.output and "Traceback" not in failed.output
    assert "Its model and its record are at home, in results/one." in failed.output
    assert f"run one: done, in results/one, and not in {missing['url']} yet" in failed.output
    assert (workdir / "results/one/model/model.bin").exists() and not (workdir / "results/one/stored.json").exists()
    model, version = workdir / "results/one/model/model.bin", version_of(workdir / "results/one/record.json")
    bucket.put(f"one/{version}/begun.json", as_json({"by": {"host": socket.gethostname(), "workdir": str(workdir)}}))
    bucket.put(f"one/{version}/model/model.bin", model.read_bytes())
    sent = bucket.changed(f"one/{version}/model/model.bin")
    mended = snakemake({**config, "store": bucket.store}, "train")
    assert mended.status == 0 and "train_run" not in mended.output, mended.output
    assert f"one/{version}/manifest.json" in bucket.names() and f"one/{version}/begun.json" not in bucket.names()
    assert bucket.changed(f"one/{version}/model/model.bin") == sent, (
        "what an upload cut short has sent is not sent again"
    )


def test_a_machine_that_is_gone_for_good_costs_no_more_than_the_last_checkpoint_in_the_store(
    workplace: Workplace, resuming: Path, bucket: Bucket
) -> None:
    store = {**bucket.store, "checkpoints": True}
    workplace.configure({**resuming_config(resuming), "store": store})
    workplace.start()
    deadline = time.monotonic() + 40
    while not any(name.endswith("/manifest.json") for name in bucket.names(f"{RUN}/checkpoints/")):
        assert time.monotonic() < deadline and workplace.snakemake.poll() is None, workplace.said()
        time.sleep(0.1)
    workplace.reboot()
    shutil.rmtree(workplace.workdir / "results")
    shutil.rmtree(workplace.workdir / ".snakemake")

    back = fetched(workplace.workdir, RUN)
    assert back.status == 0 and f"run {RUN}: its durable checkpoint " in back.output, back.output
    ended = workplace.run("train", "--configfile", "my.yaml")
    assert ended.returncode == 0, ended.stdout
    record = workplace.check_finished()
    assert record["protection"]["resumed_from"] in ended.stdout and ", from the durable checkpoint" in ended.stdout
    assert not bucket.names(f"{RUN}/checkpoints/"), "what the model has made superfluous is gone"
    assert any(name.endswith("/model/best_model.pth") for name in bucket.names())


def test_ctrl_c_lets_the_newest_checkpoint_reach_the_store(
    workplace: Workplace, resuming: Path, bucket: Bucket
) -> None:
    workplace.configure({**resuming_config(resuming), "store": {**bucket.store, "checkpoints": True}})
    workplace.start(pause_s=1.0)
    workplace.wait_for(f"results/{RUN}/checkpoints/[0-9]*/manifest.json")
    os.killpg(workplace.snakemake.pid, signal.SIGINT)
    assert workplace.wait() != 0
    (newest,) = (workplace.results / "checkpoints").glob("[0-9]*")
    assert f"{RUN}/checkpoints/{newest.name}/manifest.json" in bucket.names()
    there = {name.split("/")[2] for name in bucket.names(f"{RUN}/checkpoints/")}
    assert {name for name in there if not name.startswith("best-")} == {newest.name}, "older ones are gone"
    assert f"In {bucket.store['url']} is {newest.name}\n" in workplace.said()
    assert f"the durable checkpoint {newest.name}" in workplace.said() and " too, in " in workplace.said()
