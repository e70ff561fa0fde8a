"""The key file gone, or open to others, when somebody approves or starts the control plane: told, and nothing done."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.registry import promotion, versions
from tests.governing import vouch

DORA = Actor("dora", Role.DEVELOPER)


@pytest.fixture
def waiting(home: Path) -> Path:
    """A home in which a version waits for two approvals, and ada may give one."""
    ctx = open_context(home, LOCAL)
    bundle = hashlib.sha256(b"model").hexdigest()
    with ctx.ledger.write() as conn:
        vouch(conn, "late", bundle, at=ctx.now)
        versions.register_version(
            conn,
            model="late",
            bundle=bundle,
            run_id=None,
            snapshot=None,
            author=DORA,
            metrics={},
            now=ctx.now,
        )
        promotion.request_promotion(
            conn,
            model="late",
            version=1,
            stage=promotion.Stage.PRODUCTION,
            actor=DORA,
            reason="",
            now=ctx.now,
        )
    ctx.ledger.dispose()
    assert loopwright("user", "add", "ada", "--role", "approver", "--home", str(home)).returncode == 0
    return home


def loopwright(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loopwright", *words], capture_output=True, text=True, timeout=120
    )


def gone(home: Path) -> None:
    (home / "keys" / "control.key").unlink()


def readable(home: Path) -> None:
    (home / "keys" / "control.key").chmod(0o644)


def open_folder(home: Path) -> None:
    (home / "keys").chmod(0o755)


def emptied(home: Path) -> None:
    (home / "keys" / "control.key").write_bytes(b"")


def contents(home: Path) -> dict[str, bytes]:
    """Every file of the home but SQLite's own, which a reader makes too."""
    return {
        str(path): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (gone, 2, "Restore it from a backup"),
        (readable, 1, "chmod 600"),
        (open_folder, 1, "chmod 700"),
        (emptied, 2, "control.key"),
    ],
)
def test_it_is_told_in_one_paragraph_and_nothing_is_written(
    waiting: Path, spoil: Callable[[Path], None], code: int, told: str
) -> None:
    spoil(waiting)
    before = contents(waiting)
    for words in (("approve", "late", "1", "--as", "ada"), ("up", "--port", "0")):
        answer = loopwright(*words, "--home", str(waiting))
        assert answer.returncode == code, answer.stderr
        (line,) = answer.stderr.strip().splitlines()
        assert told in line and "unexpected" not in line
        assert answer.stdout == ""
    assert contents(waiting) == before
