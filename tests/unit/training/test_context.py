"""The captured context, on real git repositories in temporary folders."""

import json
import subprocess
from pathlib import Path

import pytest

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Refused
from loopwright.project.sections import Data
from loopwright.project.spec import Project, Spec
from loopwright.training.code import code_digest, git_state, snapshot_commit
from loopwright.training.context import capture, environment, fingerprint, mlflow_tags, redacted

ME = Actor("ann", Role.DEVELOPER)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "train.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def project(folder: Path) -> Project:
    data = Data.model_validate(
        {"sources": {"rows": {"uri": "rows.csv", "contract": "c.yaml"}}, "label": {"name": "y"}}
    )
    return Project(folder, Spec(model="m", task="binary", data=data), "digest")


def test_a_snapshot_keeps_staged_unstaged_untracked_and_binary_files(repository: Path) -> None:
    (repository / "staged.py").write_text("staged")
    git(repository, "add", "staged.py")
    (repository / "train.py").write_text("a = 2\n")
    (repository / "new.bin").write_bytes(bytes(range(256)))
    (repository / "ignored.txt").write_text("no")
    before = git(repository, "status", "--porcelain")
    head = git(repository, "rev-parse", "HEAD")

    commit, ref = snapshot_commit(repository)

    assert git(repository, "show", f"{ref}:train.py") == "a = 2\n"
    assert git(repository, "ls-tree", "--name-only", commit).split() == [
        ".gitignore",
        "new.bin",
        "staged.py",
        "train.py",
    ]
    shown = subprocess.run(
        ["git", "-C", repository, "show", f"{commit}:new.bin"], capture_output=True, check=True
    )
    assert shown.stdout == bytes(range(256))
    assert git(repository, "status", "--porcelain") == before
    assert git(repository, "rev-parse", "HEAD") == head
    assert git(repository, "rev-parse", f"{commit}^") == head


def test_a_repository_without_a_commit_has_a_snapshot_too(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "train.py").write_text("a = 1\n")
    state = git_state(tmp_path)
    assert state is not None
    assert (state.commit, state.branch, state.dirty) == ("", "trunk", True)
    assert git(tmp_path, "show", f"{state.snapshot}:train.py") == "a = 1\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "A=1"),
        ("deploy/id_ed25519", "x"),
        ("notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("settings.py", "KEY = 'AKIA" + "Q" * 16 + "'"),
    ],
)
def test_a_secret_is_never_committed(repository: Path, name: str, content: str) -> None:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text(content)
    with pytest.raises(Refused, match="looks like a secret"):
        snapshot_commit(repository)
    state = git_state(repository)
    assert state is not None
    assert state.snapshot == ""
    assert name in state.why_not


def test_data_in_the_repository_is_refused_by_name(repository: Path) -> None:
    (repository / "big.csv").write_bytes(b"0" * 2000)
    with pytest.raises(Refused, match=r"big\.csv to \.gitignore"):
        snapshot_commit(repository, max_new_bytes=1000)


def test_a_clean_repository_says_so(repository: Path) -> None:
    state = git_state(repository)
    assert state is not None
    assert (state.branch, state.dirty, state.why_not) == ("trunk", False, "")
    assert state.commit == git(repository, "rev-parse", "HEAD").strip()


def test_the_context_holds_what_was_not_asked_for(repository: Path) -> None:
    found = capture(
        project=project(repository), snapshot="d" * 64, splits={"train": 10, "holdout": 2}, seed=7, actor=ME
    )
    json.dumps(found, allow_nan=False)
    assert found["actor"] == "ann"
    assert found["data"] == {"snapshot": "d" * 64, "splits": {"train": 10, "holdout": 2}}
    assert found["code"]["git"]["snapshot"]
    assert found["seeds"]["seed"] == 7
    assert any(line.startswith("numpy==") for line in found["environment"]["packages"])
    assert found["hardware"]["cores"] >= 1
    assert found["fingerprint"] == fingerprint(project=project(repository), snapshot="d" * 64, seed=7)


def test_outside_git_the_code_still_has_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "train.py").write_text("a = 1\n")
    found = capture(project=project(tmp_path), snapshot="s", splits={}, seed=1, actor=ME)
    assert found["code"]["git"] is None
    assert found["code"]["digest"] == code_digest(tmp_path)


def test_the_code_digest_changes_with_code_and_not_with_caches(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("a = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.py").write_text("cache")
    (tmp_path / "rows.csv").write_text("1,2")
    assert code_digest(tmp_path) == first
    (tmp_path / "train.py").write_text("a = 2\n")
    assert code_digest(tmp_path) != first


def test_the_environments_digest_is_that_of_its_packages() -> None:
    assert environment()["digest"] == environment()["digest"]
    assert environment()["packages"] == sorted(environment()["packages"])


def test_secrets_on_the_command_line_are_not_kept() -> None:
    assert redacted(["run", "--token", "abc", "--api-key=x", "--set", "seed=1"]) == [
        "run", "--token", "***", "--api-key=***", "--set", "seed=1",
    ]  # fmt: skip


def test_mlflow_is_told_the_commit_that_holds_the_code_as_it_was(repository: Path) -> None:
    (repository / "train.py").write_text("a = 3\n")
    found = capture(project=project(repository), snapshot="s", splits={}, seed=1, actor=ME)
    tags = mlflow_tags(found)
    assert git(repository, "show", f"{tags['mlflow.source.git.commit']}:train.py") == "a = 3\n"
    assert (tags["mlflow.user"], tags["loopwright.git.dirty"]) == ("ann", "true")
    assert all(tags.values())
