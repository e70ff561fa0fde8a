"""The same views on a real Spark: equal columns, statuses and types, and SQL that means the same."""

import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data.files import Files
from loopwright.features import FeatureView
from loopwright.features.portable import to_spark
from loopwright.features.spark import SparkEngine, spark_session, training_set_on_spark
from loopwright.features.training_set import training_set
from loopwright.kernel.errors import BadInput, Unavailable
from tests.contract.features import oracle
from tests.contract.features.oracle import Fact, asked_table, facts_table


def world(seed: int) -> tuple[list[Fact], list[tuple[str | None, int | None, Any]]]:
    chance = random.Random(seed)

    def moment() -> Any:
        return oracle.at(chance.randrange(12)) + chance.choice([-1, 0, 0, 1]) * (oracle.HOUR / 3_600_000_000)  # type: ignore[operator]

    def key() -> str | None:
        return chance.choice(["a", "a", "b", "ü", None])

    facts = [
        Fact(key(), chance.choice([1, 1, 2, None]), chance.choice([None, moment(), moment()]),
             chance.choice([None, moment(), moment()]), chance.choice([None, 0.1, -1.5, 3.3, 1e6, 12345.678]),
             chance.choice([None, 0, 1, 2, 3]), chance.choice([None, "", "x", "y"]))
        for _ in range(80)
    ]  # fmt: skip
    asked = [(key(), chance.choice([1, 2]), moment()) for _ in range(60)]
    return facts, asked + asked[:5]


VIEWS = {
    "as of": oracle.view(ttl=3, after=0.5, own_times=False, window=4, over="event_time"),
    "own times": oracle.view(ttl=None, after=0, own_times=True, window=4, over="event_time", value="n"),
    "known lately": oracle.view(ttl=1, after=0.5, own_times=True, window=1, over="available_at"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_spark_gives_what_the_oracle_gives(spark: Any, tmp_path: Path, name: str) -> None:
    facts, asked = world(len(name))
    table, view = facts_table(facts), VIEWS[name]
    # As a lake holds them: several files, columns of its own, one file older than a column.
    places = [tmp_path / "x=1" / f"{n}.parquet" for n in range(2)]
    places[0].parent.mkdir()
    older = [row for row in table.to_pylist() if row["w"] is None]
    newer = [row for row in table.to_pylist() if row["w"] is not None]
    pa_parquet.write_table(pa.Table.from_pylist(older, schema=oracle.FACTS).drop_columns(["w"]), places[0])
    newer_rows = pa.Table.from_pylist(newer, schema=oracle.FACTS)
    pa_parquet.write_table(
        newer_rows.append_column("_row", pa.array(range(len(newer)), pa.int64())), places[1]
    )
    files = Files(tuple(map(str, places)), oracle.FACTS)

    rows = asked_table(asked)
    found = training_set_on_spark(spark, rows, [view], {"facts": files}, status=True)
    assert found.select(rows.column_names).equals(rows)
    wanted = [oracle.answer(view, facts, row) for row in asked]
    for n, (got, want) in enumerate(
        zip(found.drop_columns(rows.column_names).to_pylist(), wanted, strict=True)
    ):
        for column, value in want.items():
            near = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert got[column] == near, (n, column)
    here = training_set(rows, [view], {"facts": table}, status=True)
    assert found.schema.equals(here.schema)
    for column in here.column_names:  # to the last bit, but for what goes through a root
        if not column.startswith("stddev"):
            assert found.column(column).to_pylist() == here.column(column).to_pylist(), column
    assert not [t for t in spark.catalog.listTables() if t.isTemporary]


SAME = [
    "a / b", "a / 2", "a / nullif(b, 0)", "(a + b) * 0.5 - 1", "-a % 3", "round(d)", "floor(d)", "ceil(d)",
    "CAST(floor(d / 2) AS BIGINT)", "CAST(a > 1 AS INTEGER)", "abs(d)", "sign(d)", "exp(d / 100)",
    "CASE WHEN d > 0 THEN ln(d) END", "CASE WHEN d > 0 THEN log10(d) END", "sqrt(abs(d))", "d ** 2",
    "greatest(a, b, 1)", "least(d, 1.5)", "coalesce(a, b, 0)", "a IS DISTINCT FROM b", "a BETWEEN 1 AND 2",
    "a IN (1, 2)", "s LIKE 'x%'", "s ILIKE 'X_'", "regexp_matches(s, '^[xy]\\d+$')", "s || '-' || s", "upper(s)",
    "length(s)", "substring(s, 2, 2)", "starts_with(s, 'x')", "contains(s, '1')", "replace(s, 'x', 'z')", "trim(s)",
    "md5(s)", "isodow(t)", "year(t)", "quarter(t)", "dayofyear(t)", "hour(t)", "minute(t)", "second(t)",
    "epoch_us(t)", "epoch(t)", "epoch_us(date_trunc('week', t))", "epoch_us(date_trunc('hour', t))",
    "epoch_us(t + INTERVAL 20 HOUR)", "epoch_us(t - INTERVAL 1 MONTH)", "epoch_us(t + to_minutes(a))",
    "epoch_us(CAST(t AS DATE))", "epoch_us(CAST('2024-03-10T01:30:00-05:00' AS TIMESTAMPTZ))",
    "(epoch_us(t) - epoch_us(u)) / 86400000000", "epoch_us(u)", "hour(u)", "isnan(d)", "extract(month FROM u)",
    "left(s, 1)", "d = d",
]  # fmt: skip


def test_expressions_mean_the_same(spark: Any) -> None:
    moments = [oracle.at(hour) for hour in (0, 1.5, 5, 26.25, -4000.125, 700)]
    rows = pa.table({
        "i": range(6), "a": pa.array([1, 2, -7, None, 0, 3]), "b": pa.array([0, 4, 2, 1, 0, None]),
        "d": pa.array([2.5, -2.5, 0.5, 1e3, None, -0.75]), "s": ["x1", "y22", None, "", "ünx 1 ", "X9"],
        "t": pa.array(moments, pa.timestamp("us", "UTC")),
        "u": pa.array(moments[::-1], pa.timestamp("us", "UTC")).cast(pa.timestamp("us")),
    })  # fmt: skip
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.register("rows", rows)
    here = con.execute(f"SELECT {', '.join(SAME)} FROM rows ORDER BY i").fetchall()
    engine = SparkEngine(spark)
    engine.register("rows", rows)
    told = ", ".join(f"{to_spark(sql, 'here')} AS c{n}" for n, sql in enumerate(SAME))
    there = engine.collect(f"SELECT {told} FROM rows ORDER BY i")
    engine.close()
    for n, sql in enumerate(SAME):
        for row, (ours, theirs) in enumerate(zip(here, there.column(n).to_pylist(), strict=True)):
            value = float(ours[n]) if isinstance(ours[n], float) or hasattr(ours[n], "as_tuple") else ours[n]
            near = pytest.approx(value, rel=1e-12, nan_ok=True) if isinstance(value, float) else value
            assert theirs == near, (sql, row)


def test_sources_in_sql_run_on_spark_and_python_does_not(spark: Any) -> None:
    facts, asked = world(3)
    view = FeatureView(
        "daily", "facts", ("k",), ("top",), "day", ttl=48 * oracle.HOUR, available_after=24 * oracle.HOUR,
        source="""SELECT k, date_trunc('day', t) AS day, max(v) AS top, avg(n) AS mean FROM facts
                  WHERE t IS NOT NULL GROUP BY ALL""",
    )  # fmt: skip
    rows = asked_table([(k, j, t + 40 * oracle.HOUR) for k, j, t in asked])
    tables = {"facts": facts_table(facts)}
    there = training_set_on_spark(spark, rows, [view], tables, status=True)
    assert there.equals(training_set(rows, [view], tables, status=True))
    assert set(there.column("daily_status").to_pylist()) > {"PRESENT"}
    with pytest.raises(BadInput, match="does not run on Spark"):
        training_set_on_spark(spark, rows, [replace(view, source=lambda facts: facts)], tables)


def test_a_rows_fault_on_spark_is_bad_input(spark: Any) -> None:
    view = FeatureView("v", "facts", ("k",), {"log": "ln(v)"}, "t")
    tables = {"facts": facts_table([Fact("a", 1, oracle.at(0), None, -1.0, 1, "")])}
    with pytest.raises(BadInput, match="on Spark"):
        training_set_on_spark(spark, asked_table([("a", 1, oracle.at(1))]), [view], tables)  # type: ignore[list-item]


def test_a_spark_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"spark://HOST:PORT or local"):
        spark_session("yarn")
    with pytest.raises(BadInput, match=r"wanted spark://HOST:PORT"):
        spark_session("spark://cluster")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"spark://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            Unavailable, match=r"cluster does not answer.*refused.*Check that its master runs"
        ):
            spark_session(nobody)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="openjdk-17-jre-headless"):
        spark_session("local[2]")
