"""An incremental source whose landing is killed, while its table goes on growing."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loopwright.data import ingest as ingesting
from loopwright.data import store
from loopwright.data.ingest import BatchBlocked, IngestReport, ingest
from loopwright.data.lake import Lake
from loopwright.data.source import resolve
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import BadInput

from .conftest import contract

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = ("{name: id, logicalType: integer}", "{name: at, logicalType: timestamp}")


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.fixture
def url(postgres_url: str) -> str:
    run(
        postgres_url,
        "CREATE TABLE t (id bigint, at timestamptz NOT NULL)",
        "INSERT INTO t VALUES (1, '2026-01-01')",
    )
    return postgres_url


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def land(lake: Lake, url: str, custom: str = "", quality: str = "") -> IngestReport:
    uri = f"{url}?table=t"
    with lake.ledger.read() as conn:
        cursor = store.find_cursor(conn, "m/t", resolve(uri, Path()).name)
    source = resolve(uri, Path(), cursor_column="at", cursor=cursor)
    terms = contract(*COLUMNS, custom=custom, quality=quality)
    return ingest(lake, model="m", table="t", source=source, contract=terms, actor=SYSTEM, now=NOW)


def ids(lake: Lake, layer: Any = "silver") -> list[int]:
    return sorted(lake.read(layer, "m", "t", columns=["id"]).column("id").to_pylist())


@pytest.mark.parametrize("where", ["_record", "merge"])
def test_rows_that_come_between_a_kill_and_the_next_try_are_not_doubled(
    lake: Lake, url: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    land(lake, url)
    for row in (2, 3, 4):
        run(url, f"INSERT INTO t VALUES ({row}, '2026-01-02')")
        with monkeypatch.context() as patched:

            def kill(*_: Any, **__: Any) -> None:
                raise Killed

            patched.setattr(ingesting, where, kill)
            with pytest.raises(Killed):
                land(lake, url)
    run(url, "DELETE FROM t WHERE id IN (3, 4)")  # the rows that the first try saw, once more
    assert land(lake, url).good_rows == 1
    assert ids(lake) == ids(lake, "bronze") == [1, 2]
    run(url, "INSERT INTO t VALUES (2, '2026-01-02')")  # a second row exactly like it
    assert land(lake, url).good_rows == 1
    assert ids(lake) == [1, 2, 2]
    assert land(lake, url).already_landed and ids(lake) == [1, 2, 2]


def test_a_batch_that_was_kept_out_is_read_again_and_stays_in_bronze(lake: Lake, url: str) -> None:
    few = "{metric: rowCount, mustBeLessThan: 2, severity: error, name: few, type: library}"
    land(lake, url, quality=few)
    run(url, "INSERT INTO t VALUES (2, '2026-01-02'), (3, '2026-01-03')")
    with pytest.raises(BatchBlocked):
        land(lake, url, quality=few)
    run(url, "DELETE FROM t WHERE id = 3")
    assert land(lake, url, quality=few).good_rows == 1
    assert ids(lake) == [1, 2] and ids(lake, "bronze") == [1, 2, 2, 3]


def test_an_increment_does_not_replace_the_table(lake: Lake, url: str) -> None:
    with pytest.raises(BadInput, match="reads what is new, and the contract replaces"):
        land(lake, url, custom="{property: load, value: full}")
