"""Keeps the code of a run: a digest of the project's files, and, inside a git repository, a private snapshot
commit.

The snapshot holds staged, unstaged, untracked and binary files as they are, under `refs/loopwright/`, without
touching the index, the branch or the working tree. Files that git ignores stay out.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwright.kernel.digest import digest_json, sha256_file
from loopwright.kernel.errors import BadInput, LoopwrightError, Refused, Unavailable

MAX_NEW_BYTES = 50_000_000
_SECONDS = 30
_CODE = frozenset({".py", ".yaml", ".yml", ".json", ".toml", ".sql", ".cfg"})
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "loopwright"), ("EMAIL", "loopwright@localhost"))
}
_SECRET_NAMES = re.compile(
    r"(^|/)(\.env(\.(?!example|sample|template)[^/]*)?|id_(rsa|dsa|ecdsa|ed25519)|[^/]*\.(pem|p12|pfx|key))$"
)
_SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}"
    rb"|\bxox[baprs]-[A-Za-z0-9-]{20,}"
    rb"|\blw_[a-z0-9_]{4,}_[A-Za-z0-9_-]{30,}|\bsk-[A-Za-z0-9_-]{32,}"
)


@dataclass(frozen=True, slots=True)
class GitState:
    """Where the code stood. `snapshot` is the private commit, "" with `why_not` saying why there is none."""

    commit: str
    branch: str
    dirty: bool
    snapshot: str = ""
    ref: str = ""
    why_not: str = ""


def code_record(folder: Path) -> dict[str, Any]:
    """JSON: `digest` over the project's code files and `git` (None outside a repository). Never raises for
    git."""
    state = git_state(folder)
    return {"digest": code_digest(folder), "git": asdict(state) if state else None}


def code_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the project's code and configuration, caches and hidden folders left
    out."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if (
            path.suffix in _CODE
            and path.is_file()
            and not any(part.startswith((".", "__")) for part in name.parts[:-1])
        ):
            digests[name.as_posix()] = sha256_file(path)
    return digest_json(digests)


def git_state(folder: Path) -> GitState | None:
    """Describe and snapshot the repository around `folder`; None when there is none, or no git."""
    if shutil.which("git") is None:
        return None
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    except LoopwrightError:
        return None
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except LoopwrightError:
        commit = ""  # a repository without its first commit
    branch = _git(root, "branch", "--show-current").strip()
    dirty = bool(_git(root, "status", "--porcelain", "-z"))
    try:
        snapshot, ref = snapshot_commit(root)
    except LoopwrightError as error:
        return GitState(commit, branch, dirty, why_not=str(error))
    return GitState(commit, branch, dirty, snapshot, ref)


def snapshot_commit(root: Path, *, max_new_bytes: int = MAX_NEW_BYTES) -> tuple[str, str]:
    """Commit the working tree of the repository at `root` to a private ref; return (commit, ref).

    Raises Refused when a changed or new file looks like a secret, or when such files exceed `max_new_bytes`
    together: a repository is a place for code. Raises Unavailable when git fails.
    """
    _check_new_files(root, max_new_bytes)
    with tempfile.TemporaryDirectory() as place:
        index = Path(place) / "index"
        current = root / _git(root, "rev-parse", "--git-path", "index").strip()
        if current.is_file():
            # Its stat cache spares reading every file. With its own time: by that git tells which entries changed too
            # soon after it was written to be trusted.
            shutil.copy2(current, index)
        private = {"GIT_INDEX_FILE": str(index), **_IDENTITY}
        _git(root, "add", "-A", env=private)
        tree = _git(root, "write-tree", env=private).strip()
        try:
            parent = ["-p", _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()]
        except Unavailable:
            parent = []
        commit = _git(
            root, "commit-tree", tree, *parent, "-m", "Snapshot of a training run", env=private
        ).strip()
    ref = f"refs/loopwright/runs/{commit[:16]}"
    _git(root, "update-ref", ref, commit)
    return commit, ref


def _check_new_files(root: Path, limit: int) -> None:
    listed = _git(root, "ls-files", "-z", "--modified", "--others", "--exclude-standard")
    total = 0
    for name in sorted(set(filter(None, listed.split("\0")))):
        path = root / name
        if path.is_symlink() or not path.is_file():
            continue
        size = path.stat().st_size
        total += size
        if total > limit:
            raise Refused(
                "changed and new files are too large for a snapshot commit",
                where=str(root),
                got=f"more than {limit:,} bytes",
                next=f"Add data such as {name} to .gitignore.",
            )
        if _SECRET_NAMES.search(name) or (size < 2_000_000 and _SECRETS.search(path.read_bytes())):
            raise Refused(
                "a file that looks like a secret would go into the snapshot commit",
                where=str(root),
                got=name,
                next="Move it out of the repository, or add it to .gitignore.",
            )


def _git(folder: Path, *words: str, env: dict[str, str] | None = None) -> str:
    if not folder.is_dir():
        raise BadInput("not a folder", got=str(folder))
    quiet = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "commit.gpgSign=false"]
    # A git hook or wrapper around us may have pointed these at another repository.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *quiet, *words],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={
                **outside,
                "GIT_TERMINAL_PROMPT": "0",
                "GIT_OPTIONAL_LOCKS": "0",
                "LC_ALL": "C",
                **(env or {}),
            },
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"git did not finish ({error})", where=str(folder)) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Unavailable(f"git {words[0]} failed: {said[:300]}", where=str(folder))
    return done.stdout.decode(errors="surrogateescape")
