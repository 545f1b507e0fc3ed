"""The state of a project's code: commit, changes as a patch; the repository is only read, and runs no program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from threading import Event

import pytest
from conftest import needs_root

from ramtrain import git as code
from ramtrain.git import Change, Code, Repository, read_code, read_commit
from ramtrain.redact import MARK
from ramtrain.system import CommandError

OTHER_UID = 64000


def git(folder: Path, *arguments: str, given: bytes = b"") -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    argv = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(argv, check=True, capture_output=True, input=given).stdout.decode()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(workdir: Path, tmp_path: Path) -> Path:
    """Return a repository with a commit, in which the project is the folder `sub`."""
    top = tmp_path / "repo sitory"
    (top / "sub").mkdir(parents=True)
    git(top, "init", "--quiet")
    (top / "top.py").write_text("top = 1\n")
    (top / "sub/train.py").write_text("a = 1\nb = 2\nc = 3\n")
    (top / 'sub/ü "q".yaml').write_text("lr: 1\nuser: me\n")
    (top / "sub/gone.py").write_text("gone\n")
    (top / "sub/table.bin").write_bytes(b"\0" + bytes(range(256)) * 4)
    (top / ".gitignore").write_text("ignored\n")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "-m", "first")
    return top


def state(folder: Path, scratch: Path) -> Code:
    return read_code(folder, scratch, Event())


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return found


def test_what_is_committed_has_no_diff(repository: Path, scratch: Path) -> None:
    head = git(repository, "rev-parse", "HEAD").strip()
    assert state(repository / "sub", scratch) == Code(head, False, None, 0)
    (repository / "top.py").write_text("top = 2\n")
    (repository / "sub/ignored").write_text("x")
    os.utime(repository / "sub/train.py")
    assert state(repository / "sub", scratch) == Code(head, False, None, 0), "neither elsewhere, ignored, nor touched"


def test_without_a_repository_nothing_is_said(workdir: Path, scratch: Path) -> None:
    assert state(workdir, scratch) == Code(None, None)
    git(workdir, "init", "--quiet")
    assert state(workdir, scratch) == Code(None, None), "no commit yet"


def test_the_patch_makes_the_commit_what_the_project_was(repository: Path, scratch: Path, tmp_path: Path) -> None:
    project = repository / "sub"
    (project / "train.py").write_text("a = 1\nb = 3\nc = 3\n")
    (project / 'ü "q".yaml').write_text("lr: 2\nuser: me\n")
    (project / "gone.py").unlink()
    (project / "table.bin").write_bytes(b"\0" + bytes(range(256)) * 5)
    (project / "new ü.py").write_text("new\n")
    (project / "new ü.py").chmod(0o755)
    (project / "link").symlink_to("train.py")
    git(repository, "add", "sub/train.py")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    before = everything(repository)

    found = state(project, scratch)

    assert everything(repository) == before, "nothing is written, neither the index nor an object"
    assert (found.dirty, found.left_out) == (True, 0)
    assert found.diff is not None
    git(clone, "apply", "-", given=found.diff)
    for path in project.iterdir():
        other = clone / "sub" / path.name
        assert (other.is_symlink(), other.read_bytes()) == (path.is_symlink(), path.read_bytes())
        assert other.lstat().st_mode & 0o111 == path.lstat().st_mode & 0o111
    assert not (clone / "sub/gone.py").exists()


def test_no_program_that_a_repository_names_is_run(repository: Path, scratch: Path, tmp_path: Path) -> None:
    was_run, program = tmp_path / "was run", tmp_path / "program"
    program.write_text(f'#!/bin/sh\ntouch "{was_run}"\ncat\n')
    program.chmod(0o755)
    for key in (
        "core.fsmonitor",
        "diff.external",
        "diff.evil.command",
        "diff.evil.textconv",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.Evil.process",
    ):
        git(repository, "config", key, f"'{program}'")
    (repository / ".git/info/attributes").write_text("*.py filter=evil diff=evil\n*.yaml filter=Evil\n")
    for hook in ("post-index-change", "pre-commit"):
        (repository / ".git/hooks" / hook).write_text(program.read_text())
        (repository / ".git/hooks" / hook).chmod(0o755)
    (repository / "sub/train.py").write_text("a = 5\n")
    (repository / 'sub/ü "q".yaml').write_text("lr: 5\n")
    (repository / "sub/new.py").write_text("new\n")
    found = state(repository / "sub", scratch)
    assert not was_run.exists()
    assert found.diff is not None
    assert b"+a = 5\n" in found.diff
    assert b"+lr: 5\n" in found.diff
    git(repository, "diff", "HEAD")
    assert was_run.exists(), "git itself runs them"


def test_a_filter_that_cannot_be_switched_off_is_not_run(
    repository: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    git(repository, "config", "filter.a=b.clean", "touch was-run")
    assert state(repository, scratch) == Code(None, None)
    assert "cannot be switched off" in caplog.text


def test_secrets_are_left_out_of_the_patch(repository: Path, scratch: Path) -> None:
    project = repository / "sub"
    secrets = ["Zq81", "Zq82", "Zq83", "Zq84", "Zq85", "Zq86", "Zq87"]
    key = "-----BEGIN RSA PRIVATE KEY-----\nZq82\n-----END RSA PRIVATE KEY-----\n"
    (project / 'ü "q".yaml').write_text("lr: 1\nuser: me\npassword: Zq81 and more\n")
    (project / "deploy.txt").write_text(key)
    (project / "train.py").write_text("a = 1\nb = 2\nc = 3\napi_key = 'Zq83'\ntoken = batch.token()\n")
    (project / ".netrc").write_text("machine x login y password Zq84\n")
    (project / "hf_token.txt").write_text("Zq85\n")
    (project / "table.bin").write_bytes(b"\0password = Zq86")
    (project / "wide.txt").write_bytes("password = Zq87\n".encode("utf-16"))
    git(repository, "add", "sub/wide.txt")
    found = state(project, scratch)
    assert found.diff is not None
    text = found.diff.decode()
    assert not any(secret in text for secret in secrets)
    assert f"+password: {MARK}\n" in text
    assert f"+api_key = '{MARK}'\n+token = batch.token()\n" in text
    assert "2 lines held what looks like a secret, which is left out.\nNot in it: 5 files.\n" in text
    assert "  'sub/deploy.txt': it holds a private key\n" in text
    for name in ("table.bin", "wide.txt"):
        assert f"  'sub/{name}': it is no text, and holds what looks like a secret\n" in text
    for name in (".netrc", "hf_token.txt"):
        assert f"  'sub/{name}': by its name it holds a secret\n" in text
    assert text.count("diff --git") == 2


def test_what_is_too_large_is_named_and_code_comes_first(
    repository: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "MOST_FILE_BYTES", 10_000)
    monkeypatch.setattr(code, "MOST_DIFF_BYTES", 15_000)
    project = repository / "sub"
    (project / "big.txt").write_bytes(b"x" * 10_001)
    (project / "a sound.wav").write_bytes(b"\0" * 100)
    (project / "notes").write_bytes(b"y" * 9_000)
    (project / "new.py").write_bytes(b"z" * 9_000)
    (project / "inner").mkdir()
    git(project / "inner", "init", "--quiet")
    git(project / "inner", "commit", "--quiet", "--allow-empty", "-m", "inner")
    found = state(project, scratch)
    assert found.left_out == 4
    assert found.diff is not None
    text = found.diff.decode()
    assert text.count("diff --git") == 1
    assert "diff --git a/sub/new.py" in text
    assert "  'sub/a sound.wav': not tracked, and no text\n" in text
    assert "  'sub/big.txt': 9.77 KiB\n" in text
    assert "  'sub/inner/': another repository\n" in text
    assert "  'sub/notes': the others are enough\n" in text


def test_much_data_that_is_not_tracked_is_hardly_read(
    repository: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_MOST_LOOKS", 20)
    project = repository / "sub"
    for number in range(60):
        with (project / f"{number:02}.wav").open("wb") as sound:
            sound.truncate(1 << 20)
    (project / "new.py").write_text("new\n")
    before_bytes = read_bytes()
    found = state(project, scratch)
    assert read_bytes() - before_bytes < 1 << 20
    assert found.left_out == 60
    assert found.diff is not None
    text = found.diff.decode()
    assert "diff --git a/sub/new.py" in text
    assert text.count(": not tracked, and no text\n") == 19
    assert text.count(": not tracked, and 20 others were looked into\n") == 41


def read_bytes() -> int:
    """Return what this process has read, and the programs that it waited for (proc_pid_io(5), rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_choice_among_many_files_ends_when_it_is_not_wanted_any_more(repository: Path) -> None:
    stop = Event()
    repo = Repository(repository, "", (), {}, stop)
    changes = [Change("top.py", None)]
    assert repo._choose(changes, {}) == changes
    stop.set()
    with pytest.raises(CommandError, match="it was stopped"):
        repo._choose(changes, {})


def test_what_ramtrain_keeps_in_a_project_is_no_change(
    repository: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    for name in ("results/run/record.json", ".snakemake/log/x"):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_text("x")
    assert state(repository, scratch).dirty is False


def test_a_call_that_is_not_wanted_any_more_ends(
    repository: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = Event()
    stop.set()
    assert read_code(repository, scratch, stop) == Code(None, None)
    assert "it was stopped" in caplog.text


def test_variables_of_a_call_from_a_git_hook_do_not_lead_elsewhere(
    repository: Path, scratch: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(workdir))
    monkeypatch.setenv("GIT_INDEX_FILE", str(workdir / "none"))
    assert state(repository, scratch).dirty is False


@needs_root("files of another user")
def test_root_reads_a_users_repository_but_not_one_that_was_planted(
    repository: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in [repository, *repository.rglob("*")]:
        os.lchown(path, OTHER_UID, OTHER_UID)
    assert state(repository / "sub", scratch).dirty is False
    os.chown(repository / ".git", OTHER_UID + 1, OTHER_UID + 1)
    assert state(repository / "sub", scratch) == Code(None, None)
    assert "dubious ownership" in caplog.text


def test_ramtrains_own_commit_counts_what_it_consists_of(repository: Path, scratch: Path) -> None:
    head = git(repository, "rev-parse", "HEAD").strip()
    (repository / "top.py").write_text("top = 2\n")
    assert read_commit(repository, ["sub"], scratch) == Code(head, False)
    assert read_commit(repository, ["sub", "top.py"], scratch) == Code(head, True)
    assert read_commit(repository / "sub", ["."], scratch) == Code(None, None), "installed, in somebody's repository"


def test_a_change_in_the_moment_of_the_commit_is_seen(repository: Path, scratch: Path) -> None:
    """Git compares what is as old as its index: the copy must not be younger (racy-git.adoc)."""
    file, moment = repository / "sub/train.py", (10**18, 10**18)
    git(repository, "config", "core.trustctime", "false")
    os.utime(file, ns=moment)
    git(repository, "add", "--all")
    os.utime(repository / ".git/index", ns=moment)
    file.write_text(file.read_text().replace("1", "7"))
    os.utime(file, ns=moment)
    assert state(repository, scratch).dirty is True
