"""Rows of a real PostgreSQL: whole, from a cursor on, and when the server goes away."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from loopwright.data.source import Source, resolve
from loopwright.data.sources import postgres
from loopwright.data.staged import Staged
from loopwright.kernel.errors import BadInput, NotFound, Unavailable

EVENTS = "CREATE TABLE events (id bigint, at timestamptz NOT NULL, what text)"


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def source(url: str, asked: str = "table=events", **how: Any) -> Source:
    return resolve(f"{url}?{asked}", Path(), **how)


def ids(staged: Staged) -> list[int]:
    return list(staged.rows.table(["id"]).column("id").to_pylist())


class Reader:
    """Reads `events` on from where it stood, and keeps all it ever got."""

    def __init__(self, url: str, folder: Path, **how: Any) -> None:
        self.url, self.folder, self.how = url, folder, how
        self.cursor: Any = None
        self.got: list[int] = []
        self.turns = 0

    def read(self) -> list[int]:
        self.turns += 1
        asked = source(self.url, cursor_column="at", cursor=self.cursor, **self.how)
        staged = asked.stage(self.folder / str(self.turns))
        self.cursor = staged.cursor
        new = ids(staged)
        self.got += new
        return new


def test_a_table_comes_with_its_types_and_what_arrow_lacks_as_text(postgres_url: str, tmp_path: Path) -> None:
    run(
        postgres_url,
        "CREATE SCHEMA shop",
        'CREATE TABLE shop."Orders" (id int, price numeric(12,3), at timestamptz, day date, who uuid, doc jsonb, tags '
        "text[], prices numeric[], took interval, paid money, ok bool)",
        "INSERT INTO shop.\"Orders\" VALUES (1, 3.50, '2026-01-01 12:00+02', '2026-01-01',"
        " '00000000-0000-0000-0000-000000000001', '{\"a\": 1}', '{x,y}', '{1.50}', '1 day 2 hours', 4, true),"
        " (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    )
    staged = source(postgres_url, 'table=shop."Orders"').stage(tmp_path)
    first, second = staged.rows.table(staged.rows.schema.names).to_pylist()
    assert first["price"] == "3.500" and first["prices"] == ["1.50"] and first["tags"] == ["x", "y"]
    assert first["who"].endswith("0001") and first["doc"] == '{"a": 1}' and first["took"] == "1 day 02:00:00"
    assert first["at"].isoformat() == "2026-01-01T10:00:00+00:00" and first["paid"] == "$4.00"
    assert {value for name, value in second.items() if name != "id"} == {None}


def test_equal_rows_are_the_same_delivery_whatever_their_order(postgres_url: str, tmp_path: Path) -> None:
    run(postgres_url, "CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i")
    up = source(postgres_url, "query=SELECT i FROM t").stage(tmp_path / "1")
    run(
        postgres_url,
        "CREATE TABLE u AS SELECT i FROM t ORDER BY i DESC",
        "DROP TABLE t",
        "ALTER TABLE u RENAME TO t",
    )
    down = source(postgres_url, "query=SELECT i FROM t").stage(tmp_path / "2")
    assert up.batch_id == down.batch_id
    run(postgres_url, "INSERT INTO t VALUES (1)")
    assert source(postgres_url, "query=SELECT i FROM t").stage(tmp_path / "3").batch_id != up.batch_id


def test_a_cursor_brings_only_what_is_new_ties_included(postgres_url: str, tmp_path: Path) -> None:
    run(postgres_url, EVENTS, "INSERT INTO events VALUES (1, '2026-01-01', 'a'), (2, '2026-01-02', 'b')")
    reader = Reader(postgres_url, tmp_path)
    assert reader.read() == [1, 2]
    assert reader.read() == []
    run(
        postgres_url,
        "INSERT INTO events VALUES (3, '2026-01-02', 'c'), (2, '2026-01-02', 'b'), (4, '2026-01-03', 'd')",
    )
    assert reader.read() == [3, 2, 4]  # a second row exactly like one that is known is a row, too
    assert reader.read() == []
    run(postgres_url, "DELETE FROM events WHERE id > 1")
    assert reader.read() == []
    run(postgres_url, "INSERT INTO events VALUES (5, '2026-01-03', 'e')")
    assert reader.read() == [5]


def test_rows_that_become_visible_late_are_found_within_the_lookback(
    postgres_url: str, tmp_path: Path
) -> None:
    from datetime import timedelta

    run(postgres_url, EVENTS, "INSERT INTO events VALUES (1, '2026-01-01 10:00', 'a')")
    late = psycopg.connect(postgres_url)
    late.execute("INSERT INTO events VALUES (2, '2026-01-01 10:04', 'written before 3, committed after it')")
    run(postgres_url, "INSERT INTO events VALUES (3, '2026-01-01 10:05', 'c')")
    strict, wide = (
        Reader(postgres_url, tmp_path / n, lookback=timedelta(minutes=m)) for n, m in (("s", 0), ("w", 5))
    )
    assert strict.read() == wide.read() == [1, 3]
    late.commit()
    late.close()
    assert strict.read() == []
    assert wide.read() == [2]
    assert wide.read() == []


def test_no_row_is_lost_or_doubled_while_others_insert(postgres_url: str, tmp_path: Path) -> None:
    """Four writers insert rows of a few equal times, each in a transaction of its own, while a reader reads on."""
    run(postgres_url, EVENTS, "CREATE SEQUENCE tick")
    done, failed = threading.Event(), threading.Event()
    brought, written = 0, [0] * 4

    def write(writer: int) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            # On until the reader has had its turns.
            while written[writer] < 60 or (brought <= 2 and written[writer] < 5000 and not failed.is_set()):
                # The time is taken as the row is stored, under a lock: it never lags behind a committed one.
                connection.execute(
                    "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(1), nextval('tick') AS n, pg_sleep(0.005))"
                    " INSERT INTO events"
                    " SELECT %s, '2026-01-01'::timestamptz + (n / 20) * interval '1 s', 'x' FROM turn",
                    (writer * 10_000 + written[writer],),
                )
                written[writer] += 1

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    reader = Reader(postgres_url, tmp_path)
    reader.read()
    for thread in writers:
        thread.start()

    def wait() -> None:
        for thread in writers:
            thread.join()
        done.set()

    threading.Thread(target=wait).start()
    try:
        while not done.wait(0.01):
            brought += bool(reader.read())
    except BaseException:
        failed.set()
        raise
    reader.read()
    assert Counter(reader.got) == Counter(w * 10_000 + r for w in range(4) for r in range(written[w]))
    assert brought > 2


def test_a_server_that_goes_away_half_way_leaves_nothing_and_says_where(
    postgres_url: str, tmp_path: Path
) -> None:
    run(
        postgres_url, "CREATE TABLE big AS SELECT i, repeat('x', 500) AS pad FROM generate_series(1, 60000) i"
    )
    killed = []

    def kill(read: int, total: int | None) -> None:
        if not killed:
            killed.append(read)
            run(
                postgres_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loopwright'",
            )

    with pytest.raises(Unavailable, match=r"fails while it is read, after \d+ rows") as caught:
        source(postgres_url, "table=big").stage(tmp_path, progress=kill)
    assert killed and "nothing was kept" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert source(postgres_url, "table=big").stage(tmp_path).input_rows == 60000


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("table=nowhere", NotFound, 'relation "nowhere" does not exist'),
        ("table=a;drop table b", BadInput, "not a table's name"),
        ("query=SELECT 1/0 AS x", BadInput, "division by zero"),
        ("query=SELEC 1", BadInput, "not a query"),
        ("query=SELECT 1 AS x&table=t", BadInput, "both table and query"),
        ("", BadInput, "neither table nor query"),
        (
            "query=WITH gone AS (DELETE FROM events RETURNING 1) SELECT * FROM gone",
            BadInput,
            "refuses the query",
        ),
        ("query=SELECT 1 AS _row", BadInput, "cannot be kept"),
        ("query=SELECT 1 AS x WHERE false", BadInput, "holds no rows"),
        ("table=events&password_env=NO_SUCH_VARIABLE", BadInput, "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_cannot_be_read_says_why(
    postgres_url: str, tmp_path: Path, asked: str, error: type[Exception], said: str
) -> None:
    run(postgres_url, EVENTS)
    with pytest.raises(error, match=said):
        source(postgres_url, asked).stage(tmp_path)


def test_a_cursor_that_cannot_work_is_told(postgres_url: str, tmp_path: Path) -> None:
    run(
        postgres_url, "CREATE TABLE events (id bigint, at timestamptz)", "INSERT INTO events VALUES (1, NULL)"
    )
    with pytest.raises(BadInput, match="holds nulls"):
        source(postgres_url, cursor_column="at").stage(tmp_path)
    with pytest.raises(BadInput, match="did you mean `at`"):
        source(postgres_url, cursor_column="att").stage(tmp_path)
    with pytest.raises(BadInput, match="the cursor column changed"):
        source(postgres_url, cursor_column="id", cursor={"column": "at", "value": "2026-01-01"})
    with pytest.raises(BadInput, match="only a query"):
        resolve("a.csv", tmp_path, cursor_column="at")


def test_too_many_ties_are_told_before_they_fill_memory(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "MOST_TIES", 10)
    run(postgres_url, EVENTS, "INSERT INTO events SELECT i, '2026-01-01', 'x' FROM generate_series(1, 11) i")
    with pytest.raises(BadInput, match="too many rows share"):
        source(postgres_url, cursor_column="at").stage(tmp_path)


def test_no_password_is_ever_shown(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "s3cr/et@1")
    host = postgres_url.rpartition("@")[2]
    run(postgres_url, EVENTS, "INSERT INTO events VALUES (1, '2026-01-01', 'x')")
    found = resolve(f"postgresql://loopwright@{host}?table=events&password_env=DB_PASSWORD", Path())
    assert "s3cr" not in repr(found)
    assert found.stage(tmp_path).uri == f"postgresql://{host}?table=events"
    with pytest.raises(Unavailable) as caught:
        resolve("postgresql://me:s3cret@127.0.0.1:9/db?table=t", Path()).stage(tmp_path / "none")
    assert "s3cret" not in str(caught.value) and "127.0.0.1:9/db" in str(caught.value)


def test_a_table_starts_a_project(postgres_url: str, tmp_path: Path) -> None:
    from loopwright.pipeline.scaffold import init_project
    from loopwright.project.spec import load_project

    run(
        postgres_url,
        "CREATE TABLE orders AS SELECT i AS id, i % 2 AS late, i * 0.5::float8 AS size,"
        " '2026-01-01'::timestamptz + i * interval '1 hour' AS at FROM generate_series(1, 300) i",
    )
    report = init_project(tmp_path / "p", name="m", data=f"{postgres_url}?table=orders", target="late")
    assert report.rows == 300 and report.time == "at" and report.key == ("id",)
    assert load_project(report.path).spec.data.sources["orders"].uri == f"{postgres_url}?table=orders"
