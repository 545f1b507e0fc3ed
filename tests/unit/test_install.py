"""A model is put where the config wants it too; nothing is replaced that RamTrain has not put there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, small_config

from ramtrain import durable
from ramtrain.config import Run, complete_config, load_runs
from ramtrain.durable import MANIFEST, Kept, hash_from_disk
from ramtrain.errors import RamTrainError
from ramtrain.inputs import INSTALLED, WORKPLACE, read_inputs
from ramtrain.install import check_install, install
from ramtrain.shelf import home


def a_run(project: Path, to: str = "voices/{run}", name: str = "anna", **changes: Any) -> Run:
    config = small_config(project, runs=[{"run": name}], **{"project.install_to": to, **changes})
    return load_runs(complete_config(config, REPO, "my.yaml"), REPO)[name]


def trained(run: Run, content: bytes = b"model") -> list[Kept]:
    """Put a model into the results; return its files."""
    kept = []
    for name in ("model/model.pth", "model/wavs/one.wav"):
        path = home(run.run) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        kept.append(Kept(name, *hash_from_disk(path)))
    return kept


def test_it_is_put_there_and_replaced_by_the_next_training(project: Path, workdir: Path) -> None:
    run = a_run(project)
    found = install(run, trained(run))
    assert found is not None
    assert found.pop("disk_bytes") >= 0
    assert found == {"path": str(project / "voices/anna"), "files": 2, "bytes": 10}
    assert (project / "voices/anna/wavs/one.wav").read_bytes() == b"model"
    assert install(run, trained(run, b"a new model"))
    assert (project / "voices/anna/model.pth").read_bytes() == b"a new model"
    assert sorted(os.listdir(project / "voices")) == ["anna"], "nothing half-done is left beside it"


def test_what_is_half_done_lies_beside_no_other_model(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AllTalk takes any folder beside its models for one, and refuses all of them where one is not complete."""
    seen = []

    def cut_off(partial: Path, *arguments: Any) -> None:
        seen.append((os.listdir(project / "voices"), partial.parent))
        raise KeyboardInterrupt

    run = a_run(project)
    model = trained(run)
    with monkeypatch.context() as patched:
        patched.setattr("ramtrain.durable._take_name", cut_off)
        patched.setattr("ramtrain.durable._give_up", lambda partial, disk: None)  # as after a kill -9
        with pytest.raises(KeyboardInterrupt):
            install(run, model)
    workplace = project / WORKPLACE
    assert seen == [([], workplace)]
    assert workplace.stat().st_mode & 0o777 == 0o700
    assert len(os.listdir(workplace)) == 1
    before = read_inputs(project).digests
    install(run, model)
    assert os.listdir(project / "voices") == ["anna"]
    assert not workplace.exists()
    assert read_inputs(project).digests == before


def test_nothing_is_deleted_through_a_link_that_somebody_planted(project: Path, workdir: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    run = a_run(project)
    (project / WORKPLACE).symlink_to(precious)
    with pytest.raises(RamTrainError, match="was not made by you"):
        install(run, trained(run))
    (project / WORKPLACE).unlink()
    (project / "voices").mkdir(exist_ok=True)
    (project / "voices/.anna.01234567.partial").symlink_to(precious)
    (project / "voices/.anna.aside").mkdir()
    install(run, trained(run))
    assert (precious / "file").exists()
    assert sorted(os.listdir(project / "voices")) == [".anna.01234567.partial", ".anna.aside", "anna"]


def test_what_is_put_there_while_it_is_copied_is_not_lost(
    project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copied = a_run(project), durable._copy_verified
    install(run, trained(run))

    def slowly(*arguments: Any) -> list[Kept]:
        (project / "voices/anna/notes.txt").write_text("mine")
        return copied(*arguments)

    monkeypatch.setattr("ramtrain.durable._copy_verified", slowly)
    with pytest.raises(RamTrainError, match=r"notes\.txt is not as RamTrain put it there"):
        install(run, trained(run, b"new"))
    assert (project / "voices/anna/notes.txt").read_text() == "mine"
    assert (project / "voices/anna/model.pth").read_bytes() == b"model"


def test_a_model_may_have_a_manifest_of_its_own(project: Path, workdir: Path) -> None:
    run = a_run(project)
    for content in (b"one", b"two"):
        model = trained(run, content)
        (home(run.run) / "model" / MANIFEST).write_bytes(content)
        model.append(Kept(f"model/{MANIFEST}", *hash_from_disk(home(run.run) / "model" / MANIFEST)))
        install(run, model)
        assert (project / "voices/anna" / MANIFEST).read_bytes() == content


def test_nothing_is_put_anywhere_unless_it_is_asked_for(project: Path, workdir: Path) -> None:
    config = small_config(project, runs=[{"run": "anna"}])
    run = load_runs(complete_config(config, REPO, "my.yaml"), REPO)["anna"]
    before = sorted(project.rglob("*"))
    check_install(run)
    assert install(run, trained(run)) is None
    assert sorted(project.rglob("*")) == before


def _somebody_elses(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.pth").write_bytes(b"theirs")


def _of_another_folder(folder: Path) -> None:
    manifest = folder / INSTALLED
    manifest.write_text(manifest.read_text().replace('"workdir": "', '"workdir": "/elsewhere'))


def _of_another_run(folder: Path) -> None:
    manifest = folder / INSTALLED
    manifest.write_text(manifest.read_text().replace('"run": "anna"', '"run": "bert"'))


def _a_link(folder: Path) -> None:
    folder.rename(folder.with_name("true"))
    folder.symlink_to("true")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt is not as RamTrain put it there"),
        (lambda folder: (folder / "model.pth").write_bytes(b"MODEL"), "model.pth is not as RamTrain put it there"),
        (lambda folder: (folder / "model.pth").unlink(), "is there already, and is of no run of this working"),
        (lambda folder: (folder / INSTALLED).unlink(), "is there already, and is of no run of this working"),
        (_of_another_folder, "is there already, and is of no run of this working directory. Name another folder"),
        (_of_another_run, "holds the model of run bert. Name another folder"),
        (lambda folder: (folder / "best").symlink_to("wavs"), "best is not as RamTrain put it there"),
        (lambda folder: (folder / "empty").mkdir(), "empty is not as RamTrain put it there"),
        (_a_link, "is there already, and is of no run of this working directory"),
    ],
)
def test_what_is_not_as_it_was_put_there_is_not_replaced(
    spoil: Callable[[Path], object], message: str, project: Path, workdir: Path
) -> None:
    run, folder = a_run(project), project / "voices/anna"
    install(run, trained(run))
    spoil(folder)
    before = {path: path.lstat().st_mtime_ns for path in folder.parent.rglob("*")}
    model = trained(run, b"new")
    for attempt in (lambda: check_install(run), lambda: install(run, model)):
        with pytest.raises(RamTrainError, match=message):
            attempt()
    assert {path: path.lstat().st_mtime_ns for path in folder.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (".", "name a folder of its own"),
        ("..", "name a folder of its own"),
        ("../elsewhere", "leads out of the project; give an absolute path"),
        ("link/anna", "leads out of the project; give an absolute path"),
        ("theirs", "is there already, and is of no run"),
        ("theirs/model.pth/anna", "cannot be made: .*/theirs/model.pth is no folder that you may write to"),
    ],
)
def test_where_it_cannot_go(to: str, message: str, project: Path, workdir: Path, tmp_path: Path) -> None:
    _somebody_elses(project / "theirs")
    (project / "link").symlink_to(tmp_path)
    with pytest.raises(RamTrainError, match=f"run anna: project.install_to: .*{message}"):
        check_install(a_run(project, to))


def test_results_are_no_place_for_it(project: Path, workdir: Path) -> None:
    for to in (workdir, workdir / "results", workdir / "results/anna/model"):
        with pytest.raises(RamTrainError, match="name a folder of its own"):
            check_install(a_run(project, str(to)))


def test_a_disk_that_is_full_costs_no_model(project: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ramtrain.install.commit_folder", full)
    run = a_run(project)
    model = trained(run)
    with pytest.raises(
        RamTrainError, match=r"No space left.*\n.*its model is in results/anna/model, verified, but not"
    ):
        install(run, model)


def test_two_runs_are_not_put_into_one_folder(project: Path, workdir: Path) -> None:
    config = small_config(project, runs=[{"run": "a"}, {"run": "b"}], **{"project.install_to": "voices/x"})
    with pytest.raises(RamTrainError, match=r"runs a and b would both be put into .*/voices/x"):
        load_runs(complete_config(config, REPO, "my.yaml"), REPO)


def test_what_is_installed_does_not_change_another_training(project: Path, workdir: Path) -> None:
    before = read_inputs(project)
    run = a_run(project)
    install(run, trained(run))
    assert read_inputs(project).digests == before.digests
    manifest = json.loads((project / "voices/anna" / INSTALLED).read_text())
    (project / "voices/anna" / INSTALLED).write_text(json.dumps({**manifest, "workdir": "/elsewhere"}))
    assert read_inputs(project).digests != before.digests, "of another working directory it is an input like any other"
