"""A repository that the real DVC made: what it tracks is read at any revision, without DVC."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loopwright.data.source import resolve
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, NotFound, Tampered
from tests.object_store import S3Server

ENVIRONMENT = {
    "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.com", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip
FIRST, SECOND = b"x,y\r\n1,2\r\n", b"x,y\n1,2\n3,4\n"


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def commit(folder: Path, message: str) -> str:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", message)
    return run(folder, "git", "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A repository with a file in two revisions, a folder, and an output of a pipeline; revisions by name."""
    root = tmp_path_factory.mktemp("dvc") / "repo"
    (root / "data" / "days").mkdir(parents=True)
    run(root, "git", "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / "data" / "a.csv").write_bytes(FIRST)
    (root / "data" / "days" / "2.csv").write_bytes(b"x\nb\n")
    (root / "data" / "days" / "1.csv").write_bytes(b"x\na\n")
    (root / "make_out.py").write_text("import shutil; shutil.copy('data/a.csv', 'out.csv')\n")
    dvc(root, "add", "-q", "data/a.csv", "data/days")
    dvc(root, "stage", "add", "-q", "--run", "-n", "copy", "-d", "data/a.csv", "-o", "out.csv",
        f"{sys.executable} make_out.py")  # fmt: skip
    revisions = {"first": commit(root, "first")}
    run(root, "git", "tag", "v1")
    (root / "data" / "a.csv").write_bytes(SECOND)
    dvc(root, "add", "-q", "data/a.csv")
    revisions["second"] = commit(root, "second")
    return root, revisions


@pytest.fixture
def repo(made: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "repo", symlinks=True))


def test_a_file_is_read_as_it_was_at_a_revision(made: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, revisions = made
    old, new = resolve("dvc://data/a.csv@v1", root), resolve("dvc://a.csv@main", root / "data")
    assert old.digest == sha256_bytes(FIRST) and new.digest == sha256_bytes(SECOND)
    assert old.read().input_rows == 1 and new.read().input_rows == 2
    staged = old.stage(tmp_path)
    assert staged.origin["dvc_rev"] == revisions["first"] and staged.origin["dvc_path"] == "data/a.csv"
    assert staged.uri == "dvc://data/a.csv@v1"
    assert resolve(f"dvc://{root}//data/a.csv@{revisions['first'][:10]}", tmp_path).digest == old.digest
    assert run(root, "git", "status", "--porcelain") == ""


def test_a_folder_one_of_its_files_and_an_output_of_a_pipeline(made: tuple[Path, dict[str, str]]) -> None:
    root, _ = made
    assert resolve("dvc://data/days@v1", root).read().rows.to_pydict() == {"x": ["a", "b"]}
    assert resolve("dvc://data/days/2.csv@v1", root).read().rows.to_pydict() == {"x": ["b"]}
    assert resolve("dvc://out.csv@v1", root).digest == sha256_bytes(FIRST)


def test_bytes_come_from_a_remote_when_the_cache_is_gone(repo: Path) -> None:
    dvc(repo, "remote", "add", "-q", "-d", "store", str(repo.parent / "store"))
    dvc(repo, "push", "-q", "--all-commits")
    shutil.rmtree(repo / ".dvc" / "cache")
    assert resolve("dvc://data/a.csv@v1", repo).digest == sha256_bytes(FIRST)
    assert resolve("dvc://data/days@HEAD", repo).read().input_rows == 2
    shutil.rmtree(repo.parent / "store")
    with pytest.raises(NotFound, match=r"does not hold these bytes.*remote store.*dvc fetch"):
        resolve("dvc://data/a.csv@v1", repo)


def test_bytes_come_from_a_remote_in_s3(repo: Path, s3_server: S3Server, s3_bucket: str) -> None:
    dvc(repo, "remote", "add", "-q", "-d", "store", f"s3://{s3_bucket}/dvc")
    cache = repo / ".dvc" / "cache"
    for path in cache.rglob("*"):  # laid out as `dvc push` does, which would need one more package
        if path.is_file():
            s3_server.put(s3_bucket, f"dvc/{path.relative_to(cache)}", path.read_bytes())
    shutil.rmtree(cache)
    assert resolve("dvc://data/a.csv@v1", repo).digest == sha256_bytes(FIRST)


def test_a_pointer_of_an_older_dvc_is_understood(repo: Path) -> None:
    """Before version 3: no `hash`, the older layout of the cache, line ends not counted."""
    import hashlib

    md5 = hashlib.md5(FIRST.replace(b"\r\n", b"\n")).hexdigest()
    (repo / "data" / "a.csv.dvc").write_text(f"outs:\n- md5: {md5}\n  size: {len(FIRST)}\n  path: a.csv\n")
    commit(repo, "older")
    held = repo / ".dvc" / "cache" / md5[:2] / md5[2:]
    held.parent.mkdir(parents=True)
    held.write_bytes(FIRST)
    assert resolve("dvc://data/a.csv@HEAD", repo).digest == sha256_bytes(FIRST)


def test_bytes_that_were_changed_in_the_cache_are_not_used(repo: Path) -> None:
    for path in (repo / ".dvc" / "cache").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"x,y\n9,9\n")
    with pytest.raises(Tampered, match="not the bytes that were tracked"):
        resolve("dvc://data/a.csv@v1", repo)


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        ("dvc://data/a.csv@nowhere", NotFound, "no such revision"),
        ("dvc://data/a.csv@--output=/tmp/x", BadInput, "not a revision"),
        ("dvc://data/b.csv@v1", NotFound, "DVC does not track it"),
        ("dvc://make_out.py@v1", NotFound, "git itself holds it"),
        ("dvc://data/days/3.csv@v1", NotFound, "holds no such file"),
        ("dvc://../../etc/passwd@v1", BadInput, "leaves the repository"),
        ("dvc://nowhere//a.csv@v1", NotFound, "no such repository"),
    ],
)
def test_what_is_not_there_says_so(
    made: tuple[Path, dict[str, str]], uri: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        resolve(uri, made[0])


def test_outside_git_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a git repository"):
        resolve("dvc://a.csv@main", tmp_path)
