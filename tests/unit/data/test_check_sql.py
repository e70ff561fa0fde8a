"""SQL that a contract brings reads the tables it is told of, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import yaml

from loopwright.data.check import check
from loopwright.data.check_sql import Harmful, require_condition, require_query
from loopwright.data.contract import Contract
from loopwright.data.duck import connect, lock

TABLES = {"flights", "airports"}


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with connect() as opened:
        yield opened


def contract(**rule: object) -> Contract:
    table = {"name": "t", "properties": [{"name": "a"}], "quality": [rule]}
    document = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "t", "schema": [table]}
    return Contract.parse(yaml.safe_dump(document), "t.odcs.yaml")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM flights;",
        "WITH late AS (SELECT * FROM flights WHERE a > 1) SELECT count(*) FROM late JOIN airports USING (a)",
        "SELECT max(n) FROM (SELECT count(*) AS n FROM flights GROUP BY a)",
        "SELECT count(*) FROM flights WHERE a IN (SELECT a FROM airports)",
        "SELECT sum(x) FROM (VALUES (1), (2)) AS v(x)",
        "SELECT count(*) FROM (SELECT unnest(b) FROM flights)",
        "SELECT count(*) FROM Flights AS f -- why not\n",
    ],
)
def test_questions_about_known_tables_are_asked(engine: duckdb.DuckDBPyConnection, sql: str) -> None:
    require_query(engine, sql, TABLES)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM read_csv('/etc/passwd')",
        "SELECT count(*) FROM '/etc/passwd'",
        "SELECT content FROM read_text('/etc/passwd')",
        "SELECT count(*) FROM glob('/etc/*')",
        "SELECT (SELECT max(content) FROM read_text('/etc/passwd')) FROM flights",
        "WITH x AS (SELECT * FROM read_blob('/etc/passwd')) SELECT count(*) FROM x",
        "SELECT count(*) FROM duckdb_secrets()",
        "SELECT count(*) FROM duckdb_settings()",
        "SELECT count(*) FROM information_schema.tables",
        "SELECT count(*) FROM sqlite_master",
        "SELECT count(*) FROM query('SELECT 1')",
        "SELECT count(*) FROM _lw_raw",
        "SELECT current_setting('memory_limit')",
        "SELECT count(*) FROM (SHOW TABLES)",
        "COPY flights TO '/tmp/leak.csv'",
        "COPY (SELECT 1) TO '/tmp/leak.csv'",
        "ATTACH '/tmp/leak.db'",
        "PRAGMA memory_limit = '1TB'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "DROP VIEW flights",
        "INSERT INTO flights VALUES (1)",
        "CREATE TABLE x AS SELECT 1",
        "SELECT 1; SELECT 2",
        "EXPORT DATABASE '/tmp/leak'",
        "",
    ],
)
def test_everything_else_is_refused_before_it_runs(engine: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises((Harmful, duckdb.Error)):
        require_query(engine, sql, TABLES)


@pytest.mark.parametrize(
    "sql",
    [
        "1) FROM read_csv('/etc/passwd') WHERE (1 = 1",
        "a > 1), (a < 2",
        "true) WHERE (false",
        "a > 1) --",
        "a IN (SELECT column0 FROM read_csv('/etc/passwd'))",
        "a > 1; DROP VIEW flights",
        "getvariable('x') = 1",
    ],
)
def test_a_condition_cannot_step_out_of_its_brackets(engine: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises((Harmful, duckdb.Error)):
        require_condition(engine, sql, TABLES)


@pytest.mark.parametrize(
    "sql", ["a > 1", "a IN (SELECT a FROM airports)", "a > 1 -- said so\n", "(a, b) <> (1, 2)"]
)
def test_a_condition_is_an_expression(engine: duckdb.DuckDBPyConnection, sql: str) -> None:
    require_condition(engine, sql, TABLES)


def test_a_refused_condition_is_an_error_that_names_it_and_blocks() -> None:
    escape = contract(
        type="custom", engine="loopwright", name="leak",
        implementation="a IN (SELECT column0 FROM read_csv('/etc/passwd'))",
    )  # fmt: skip
    report = check(pa.table({"a": ["x"]}), escape)
    (blocked,) = report.blocked_by
    assert (report.state, blocked.name, blocked.state) == ("ERROR", "leak", "ERROR")
    assert "`read_csv` is not for contracts" in blocked.why


def test_a_query_that_gives_many_rows_never_brings_them_here() -> None:
    many = contract(type="sql", query="SELECT n FROM range(1000000000) AS r(n)", mustBe=1, name="bomb")
    (blocked,) = check(pa.table({"a": ["x"]}), many).blocked_by
    assert blocked.name == "bomb" and blocked.state == "ERROR"


def test_a_locked_engine_opens_its_files_and_no_others(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    mine.write_text("a\n1\n")
    other.write_text("a\n2\n")
    with connect(memory_limit="100MB", spill=tmp_path / "spill") as engine:
        lock(engine, [str(mine)])
        assert engine.execute(f"SELECT a FROM read_csv('{mine}')").fetchall() == [(1,)]
        for sql in (
            f"SELECT * FROM read_csv('{other}')",
            f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
            f"ATTACH '{tmp_path / 'out.db'}'",
            "SET enable_external_access = true",
            "SET memory_limit = '1TB'",
            "SET allowed_paths = ['/etc/passwd']",
        ):
            with pytest.raises(duckdb.Error):
                engine.execute(sql)
    assert not (tmp_path / "out.csv").exists()
