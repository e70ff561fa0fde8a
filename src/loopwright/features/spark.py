"""Spark as the engine of training sets: the SQL of `lookup` and `portable`, over a lake's Parquet files.

Needs the extra `spark` and Java 17 or later. Views whose source is a Python function need their tables in one memory
and are refused; so is SQL outside the portable subset, by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from loopwright.data.files import Files
from loopwright.data.spark import files_frame, running, spark_session
from loopwright.features.duck import Tables, own_columns, require_tables
from loopwright.features.lookup import Dialect, Family
from loopwright.features.portable import SPARK
from loopwright.features.training_set import ASKED, Entities, FailedTests, Plan, read_entities, training_set
from loopwright.features.view import FeatureView
from loopwright.kernel.errors import BadInput

_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "integer"),
    "float": "float", "double": "float", "boolean": "boolean", "string": "text", "date": "time", "timestamp": "time",
    "timestamp_ntz": "time",
}  # fmt: skip


def training_set_on_spark(
    session: Any,
    entities: Entities,
    views: Sequence[FeatureView],
    tables: Mapping[str, Any],
    timestamp: str = "event_time",
    *,
    status: bool = False,
    full_names: bool = False,
    failed_tests: FailedTests = "refuse",
) -> pa.Table:
    """What `training_set` gives, made by a Spark session (as `spark_session` opens one).

    `tables`: `Files`, Arrow tables or Spark DataFrames by name. The rows asked about and the answer pass through this
    process; the tables do not.
    """
    for view in views:
        if view.source is not None and not isinstance(view.source, str):
            raise BadInput(
                "a Python function of whole tables does not run on Spark", where=f"feature view {view.name}",
                wanted="a source in SQL", next="Say it in SQL, or run on DuckDB.",
            )  # fmt: skip
        require_tables(view.tables(), tables, f"feature view {view.name}")
    plan = Plan.of(read_entities(entities), views, timestamp, status=status, full_names=full_names)
    engine = SparkEngine(session)
    try:
        for name in dict.fromkeys(name for view in plan.views for name in view.tables()):
            engine.register(name, tables[name])
        engine.register(ASKED, plan.numbered())
        sources = [engine.rows_of(view, f"feature view {view.name}") for view in plan.views]
        plan.look_up(engine, sources)
        return plan.finish(engine.collect(plan.answer(engine.dialect)), failed_tests)
    finally:
        engine.close()


def training_set_on(
    engine: str,
    entities: Entities,
    views: Sequence[FeatureView],
    tables: Tables,
    timestamp: str = "event_time",
    **options: Any,
) -> pa.Table:
    """What `training_set` gives with these options, on the engine that a home names: "duckdb", or a Spark's URL."""
    if engine == "duckdb":
        return training_set(entities, views, tables, timestamp, **options)
    here = running()
    session = here or spark_session(engine)
    try:
        return training_set_on_spark(session, entities, views, tables, timestamp, **options)
    finally:
        if here is None:
            session.stop()


@dataclass(slots=True)
class SparkEngine:
    """Relations are temporary views of `session`; `close` drops them."""

    session: Any
    dialect: Dialect = SPARK
    _made: list[str] = field(default_factory=list)

    def make(self, name: str, sql: str, where: str, *, lazy: bool = False) -> None:
        """Say what the relation is; Spark makes it when it is asked."""
        from pyspark.errors import PySparkException

        try:
            self._name(name, self.session.sql(sql))
        except PySparkException as error:
            raise BadInput(_told(error), where=where, next="Mend the SQL.") from None

    def types(self, name: str) -> dict[str, Family]:
        """Family of each column."""
        return {column: _family(kind) for column, kind in self.session.table(name).dtypes}

    def count(self, sql: str) -> int:
        """The one number that a query gives."""
        return int(self.collect(sql).column(0)[0].as_py())

    def collect(self, sql: str) -> pa.Table:
        """The rows of a query; raises BadInput for expressions that fail on them."""
        from pyspark.errors import PySparkException

        try:
            return self.session.sql(sql).toArrow()
        except PySparkException as error:
            raise BadInput(_told(error), where="on Spark", next="Mend the SQL, or the rows.") from None

    def register(self, name: str, rows: Any) -> None:
        """Make Arrow rows, `Files` or a DataFrame the relation `name`."""
        if isinstance(rows, Files):
            self._name(name, files_frame(self.session, rows, own_columns(rows)))
        elif isinstance(rows, pa.Table):
            self._name(name, self.session.createDataFrame(rows))
        else:
            self._name(name, rows)

    def rows_of(self, view: FeatureView, where: str) -> str:
        """SQL for a FROM: the rows that a view looks at."""
        if view.source is None:
            return self.dialect.name(view.table)
        assert isinstance(view.source, str)
        return f"({self.dialect.translate(view.source.strip().rstrip(';'), f'{where}: source')})"

    def close(self) -> None:
        """Drop what was made."""
        for name in self._made:
            self.session.catalog.dropTempView(name)

    def _name(self, name: str, frame: Any) -> None:
        frame.createOrReplaceTempView(self.dialect.name(name))
        self._made.append(name)


def _family(kind: str) -> Family:
    return "decimal" if kind.startswith("decimal") else _FAMILIES.get(kind, "other")


def _told(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400]
