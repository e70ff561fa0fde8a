"""Checks on Spark: the same compiled SQL, rendered for it and run where the data lies.

`SparkConnection` answers as a DuckDB connection does, so one examination runs on either. What engines spell differently
is respelled on the parsed tree; a contract's own SQL must lie in the portable subset, else its rule is an ERROR that
says what to write instead. Regular expressions are Java's there and RE2's here: they differ in look-around and
possessive quantifiers, which contracts do without.

Only the report comes back, with its examples; good and bad rows can be asked for, and then pass through this process.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from loopwright.data.checking import Examination, Reference, examination
from loopwright.data.contract import Contract
from loopwright.data.duck import MEMORY, connect
from loopwright.data.files import Files
from loopwright.data.portable import check_portable, respell
from loopwright.data.spark import files_frame, running, spark_session
from loopwright.data.staged import Staged
from loopwright.kernel.errors import BadInput

_TEXT = re.compile(r"('(?:[^']|'')*')")


def spark_sql(sql: str) -> str:
    """The compiled text of a contract in Spark's SQL. Raises duckdb.Error for what sqlglot cannot read."""
    # `len` counts items, `length` characters; sqlglot takes them for one.
    parts = _TEXT.split(sql)
    sql = "".join(part if part.startswith("'") else re.sub(r"\blen\(", "lw_size(", part) for part in parts)
    try:
        tree = sqlglot.parse_one(sql, read="duckdb")
    except (SqlglotError, RecursionError) as error:
        raise duckdb.ParserException(str(error).splitlines()[0]) from None
    for node in reversed(list(tree.dfs())):
        rule = _SPELLED.get(type(node))
        made = rule(node) if rule is not None else node
        if made is node:
            continue
        if node is tree:
            tree = made
        else:
            node.replace(made)
    return respell(tree).sql(dialect="spark")


def examination_on_spark(
    session: Any,
    rows: Staged | Files | pa.Table,
    contract: Contract,
    *,
    refs: Mapping[str, Files | pa.Table] | None = None,
    landed: Files | pa.Table | None = None,
    reference: Reference | None = None,
    now: datetime | None = None,
    malformed: int = 0,
) -> "SparkExamination":
    """`checking.examination` on a SparkSession: the same report. Files must lie where the cluster reads them."""
    if isinstance(rows, Staged):
        malformed += rows.malformed.rows or 0
        rows = rows.rows
    return SparkExamination(
        session, rows, contract, dict(refs or {}), landed, reference, now or datetime.now(UTC), malformed
    )


def examination_on(
    engine: str,
    rows: Staged | Files | pa.Table,
    contract: Contract,
    *,
    refs: Mapping[str, Files | pa.Table] | None = None,
    reference: Reference | None = None,
    now: datetime | None = None,
    memory_limit: str = MEMORY,
    spill: Path | None = None,
) -> Examination:
    """`checking.examination` on "duckdb", or on the Spark of a URL (spark://HOST:PORT, local[2]).

    A Spark session that is opened here stays open for the process: the next check finds it. Raises what `spark_session`
    raises.
    """
    if engine == "duckdb":
        return examination(
            rows, contract, refs=refs, reference=reference, now=now, memory_limit=memory_limit, spill=spill
        )
    session = running() or spark_session(engine)
    return examination_on_spark(session, rows, contract, refs=refs, reference=reference, now=now)


class SparkExamination(Examination):
    """An examination whose engine is Spark; its memory and disk are the cluster's."""

    def __init__(
        self,
        session: Any,
        rows: Files | pa.Table,
        contract: Contract,
        refs: Mapping[str, Files | pa.Table],
        landed: Files | pa.Table | None,
        reference: Reference | None,
        now: datetime,
        malformed: int,
    ) -> None:
        super().__init__(rows, contract, refs, landed, reference, now, "1000GB", None, malformed)
        self._session = session

    def _connect(self, folder: Path) -> Any:
        self._parser = connect()
        return SparkConnection(self._session)

    def _relation(self, name: str, rows: Files | pa.Table) -> Sequence[str]:
        self._engine.register(name, rows)
        return ()

    def _limited(self) -> AbstractContextManager[None]:
        return nullcontext()  # the cluster's queue says how long a job may run

    def _lock(self, paths: Sequence[str]) -> None:
        for rule in self._contract.rules:
            sql = rule.arguments.get("condition") if rule.kind == "condition" else rule.arguments.get("query")
            if rule.kind not in ("condition", "query") or sql is None:
                continue
            try:
                check_portable(str(sql).replace("{object}", f'"{self._contract.name}"'), rule.name)
            except BadInput as error:
                self._errors[rule.name] = f"{error.what}; wanted {error.wanted}"


class SparkConnection:
    """What an examination asks of a DuckDB connection, answered by a SparkSession. Its relations end with it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._made: list[str] = []
        self._kept: list[Any] = []

    def register(self, name: str, rows: Files | pa.Table) -> None:
        """Make rows the relation `name`."""
        frame = (
            files_frame(self._session, rows)
            if isinstance(rows, Files)
            else self._session.createDataFrame(rows)
        )
        self._name(name, frame)

    def execute(self, sql: str, parameters: object = None) -> "_Answer":
        """Run one statement; a relation that it creates is a view, a table is held by the cluster meanwhile."""
        assert parameters is None, "compiled text brings its values"
        found = re.fullmatch(
            r'\s*CREATE (?:OR REPLACE )?TEMP (VIEW|TABLE) ("(?:[^"]|"")*"|\w+) AS (.*)', sql, re.DOTALL
        )
        if found is None:
            return _Answer(self._frame(sql))
        frame = self._frame(found[3])
        if found[1] == "TABLE":
            frame = frame.cache()
            self._kept.append(frame)
        self._name(found[2].strip('"').replace('""', '"'), frame)
        return _Answer(None)

    def sql(self, sql: str) -> "_Answer":
        """The rows of a query."""
        return self.execute(sql)

    def close(self) -> None:
        """Let go of what was made."""
        for frame in self._kept:
            frame.unpersist()
        for name in self._made:
            self._session.catalog.dropTempView(name)

    def _frame(self, sql: str) -> Any:
        from pyspark.errors import PySparkException

        rendered = _described(sql) or spark_sql(sql)
        try:
            return self._session.sql(rendered)
        except PySparkException as error:
            raise duckdb.InvalidInputException(told(error)) from None

    def _name(self, name: str, frame: Any) -> None:
        frame.createOrReplaceTempView(f"`{name.replace('`', '``')}`")
        self._made.append(name)


class _Answer:
    """The rows of a statement, fetched once."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self._rows: list[tuple[Any, ...]] | None = None

    def fetchall(self) -> list[tuple[Any, ...]]:
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException

        if self._frame is None:
            return []
        try:
            return [tuple(_plain(value) for value in row) for row in self._frame.collect()]
        except (PySparkException, Py4JJavaError) as error:
            raise duckdb.InvalidInputException(told(error)) from None

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        if self._rows is None:
            self._rows = self.fetchall()
        part, self._rows = self._rows[:size], self._rows[size:]
        return part

    def to_arrow_reader(self, rows: int) -> pa.RecordBatchReader:
        found: pa.Table = self._frame.toArrow()
        return pa.RecordBatchReader.from_batches(found.schema, found.to_batches(rows))


def told(error: Exception) -> str:
    """The first line of what Spark says."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _plain(value: Any) -> Any:
    if hasattr(value, "asDict"):
        return value.asDict(recursive=True)
    return value


def _described(sql: str) -> str | None:
    found = re.fullmatch(r'DESCRIBE ("(?:[^"]|"")*"|\w+)', sql.strip())
    return f"DESCRIBE `{found[1].strip(chr(34))}`" if found else None


def _min(node: exp.Expr) -> exp.Expr:
    """The first of the rows stands for the first few: a list of all would have to fit in one machine."""
    if node.args.get("count") is None:
        return node
    return exp.Array(expressions=[exp.Min(this=node.this.copy())])


def _anonymous(node: exp.Expr) -> exp.Expr:
    arguments = [each.copy() for each in node.expressions]
    match node.name.lower():
        case "lw_size":
            return exp.Anonymous(this="cardinality", expressions=arguments)
        case "try_strptime":
            made = sqlglot.parse_one(
                f"SELECT strptime(x, {arguments[1].sql(dialect='duckdb')})", read="duckdb"
            )
            pattern = made.expressions[0].sql(dialect="spark").partition(", ")[2].removesuffix(")")
            return exp.Anonymous(
                this="try_to_timestamp", expressions=[arguments[0], sqlglot.parse_one(pattern, read="spark")]
            )
    return node


def _at_zone(node: exp.Expr) -> exp.Expr:
    """A time without a zone, as it was read on a clock of the zone, as a moment."""
    moment = exp.Cast(this=node.this.copy(), to=exp.DataType.build("TIMESTAMP", dialect="spark"))
    return exp.Anonymous(this="to_utc_timestamp", expressions=[moment, node.args["zone"].copy()])


def _quantile(node: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="percentile", expressions=[node.this.copy(), node.expression.copy()])


def _whole(node: exp.Expr) -> exp.Expr:
    """DuckDB reads "1.0" and "1e3" as whole numbers, and rounds; Spark reads digits alone, and cuts."""
    if not node.is_type("bigint"):
        return node

    def tried(value: exp.Expr, kind: str) -> exp.Expr:
        return exp.TryCast(this=value, to=exp.DataType.build(kind), safe=True)

    digits = tried(exp.Cast(this=node.this.copy(), to=exp.DataType.build("VARCHAR")), "BIGINT")
    rounded = tried(exp.Round(this=tried(node.this.copy(), "DOUBLE")), "BIGINT")
    return exp.Coalesce(this=digits, expressions=[rounded])


_SPELLED: dict[type[exp.Expr], Callable[[exp.Expr], exp.Expr]] = {
    exp.Min: _min,
    exp.Anonymous: _anonymous,
    exp.AtTimeZone: _at_zone,
    exp.PercentileCont: _quantile,
    exp.TryCast: _whole,
}
