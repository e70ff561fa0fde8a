"""What goes wrong with a database is one sentence with a remedy."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.ledger import store
from loopwright.ledger.engine import Ledger, make_engine
from loopwright.ledger.migrations.upgrade import script_directory
from loopwright.ledger.schema import REVISION


@pytest.mark.parametrize("url", ["", "ledger.db", "mysql://host/db", "nonsense://x"])
def test_a_url_the_ledger_cannot_use_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="wanted sqlite:"):
        make_engine(url)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(BadInput) as raised:
        make_engine("mysql+x://ada:secret@host:what/db")
    assert "secret" not in str(raised.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable, match="does not answer") as raised:
        Ledger.open("postgresql://ada:secret@127.0.0.1:1/db").migrate()
    assert "secret" not in str(raised.value)
    assert "127.0.0.1:1" in str(raised.value)


def test_a_folder_that_is_missing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Check that the folder exists"):
        Ledger.open(f"sqlite:///{tmp_path}/nowhere/ledger.db").read().__enter__()


def test_a_file_that_is_something_else_is_explained(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unavailable, match="something else"):
        Ledger.open(f"sqlite:///{tmp_path}/ledger.db").migrate()


def test_a_ledger_that_was_not_migrated_is_explained(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(Unavailable, match="not migrated"), ledger.read() as conn:
        store.rows(conn)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    with ledger.read() as conn:
        pages = conn.execute(text("PRAGMA page_count")).scalar_one()
    with pytest.raises(Unavailable, match="Free some space"), ledger.write() as conn:
        conn.execute(text(f"PRAGMA max_page_count = {pages}"))
        store.put_meta(conn, "small", "x")
        store.put_meta(conn, "large", "x" * 1_000_000)
    ledger.dispose()
    with Ledger.open(ledger.url).read() as conn:
        assert store.get_meta(conn, "small") is None


def test_sqlite_is_set_up_to_survive_a_power_cut(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.read() as conn:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
        found = {name: conn.execute(text(f"PRAGMA {name}")).scalar_one() for name in wanted}
    assert found == wanted


def test_an_immediate_engine_takes_the_write_lock_at_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger.open(url).migrate()
    with make_engine(url, begin="immediate").begin():
        other = sqlite3.connect(tmp_path / "ledger.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger.open(url).migrate()
    killed = f"""
import os, signal
from datetime import UTC, datetime
from loopwright.ledger import store
from loopwright.ledger.engine import Ledger
with Ledger.open({url!r}).write() as conn:
    for n in range(200):
        store.append(conn, at=datetime.now(UTC), actor="a", action="x", subject="s", payload={{"n": n}})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    with Ledger.open(url).read() as conn:
        assert store.verify(conn).ok
        assert store.rows(conn) == []


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Unavailable, match=r"pip install 'loopwright\[postgres\]'"):
        make_engine("postgresql://ada@db/loopwright")


def test_the_schema_names_the_newest_migration() -> None:
    assert script_directory().get_current_head() == REVISION


def test_a_migrated_ledger_opens_without_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger.open(url).migrate()
    code = f"""
import sys
from loopwright.ledger.engine import Ledger
Ledger.open({url!r}).migrate()
assert not any(name.split('.')[0] == 'alembic' for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
