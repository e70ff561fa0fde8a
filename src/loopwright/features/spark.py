"""Spark as the engine of training sets: the SQL of `lookup` and `portable`, over a lake's Parquet files.

Needs the extra `spark` and Java 17 or later. Views whose source is a Python function need their tables in one memory
and are refused; so is SQL outside the portable subset, by name.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from loopwright.data.files import Files
from loopwright.data.source import public_uri
from loopwright.features.duck import Tables, own_columns, require_tables
from loopwright.features.lookup import Dialect, Family
from loopwright.features.portable import SPARK
from loopwright.features.training_set import ASKED, Entities, FailedTests, Plan, read_entities, training_set
from loopwright.features.view import FeatureView
from loopwright.kernel.errors import BadInput, Unavailable

_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "integer"),
    "float": "float", "double": "float", "boolean": "boolean", "string": "text", "date": "time", "timestamp": "time",
    "timestamp_ntz": "time",
}  # fmt: skip
CONFIGURATION = {
    # Times are compared as moments; an expression that fails must fail, not give null.
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.parquet.inferTimestampNTZ.enabled": "true",
    "spark.sql.caseSensitive": "false",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


def spark_session(url: str, options: Mapping[str, str] | None = None) -> Any:
    """A SparkSession at `url`: spark://HOST:PORT, or local[N] for this machine. One process holds one at a time.

    Raises Unavailable without PySpark, without Java, or when the cluster does not answer; BadInput for another URL.
    """
    if not (url.startswith(("spark://", "local[")) or url == "local"):
        raise BadInput("not a Spark", got=public_uri(url), wanted="spark://HOST:PORT or local[2]")
    if urlsplit(url).username:
        raise BadInput("a Spark URL holds no user", got=public_uri(url), wanted="spark://HOST:PORT")
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise Unavailable("PySpark is not installed", next="pip install 'loopwright[spark]'") from None
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise Unavailable(
            "Spark needs Java", wanted="Java 17 or later on the PATH, or JAVA_HOME",
            next="Debian, Ubuntu: apt-get install openjdk-17-jre-headless",
        )  # fmt: skip
    builder = SparkSession.builder.master(url).appName("loopwright")
    for key, value in {**CONFIGURATION, **(options or {})}.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    except (PySparkException, OSError, RuntimeError) as error:
        raise Unavailable(
            "Spark does not start", where=url, got=str(error).splitlines()[0] if str(error) else None,
            next="Look at its log, and that Java is 17 or later.",
        ) from error  # fmt: skip
    return session


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
    here = _running()
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
            self._name(name, self._files(rows))
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

    def _files(self, files: Files) -> Any:
        """There is no Delta reader without its jar: the files of the version are read by their paths."""
        names = own_columns(files)
        if not files.uris:
            return self.session.createDataFrame(
                pa.schema([files.schema.field(n) for n in names]).empty_table()
            )
        uris = [uri.replace("s3://", "s3a://", 1) for uri in files.uris]
        # Without a base path a folder called x=1 would become a column.
        scheme, mark, _ = uris[0].rpartition("://")
        folders = [uri.rpartition("/")[0].removeprefix(scheme + mark) for uri in uris]
        base = f"{scheme}{mark}{os.path.commonpath(folders)}"
        read = self.session.read.option("basePath", base).option("mergeSchema", "true").parquet(*uris)
        held = set(read.columns)
        types = dict(self.session.createDataFrame(files.schema.empty_table()).dtypes)
        return read.selectExpr(
            *(
                f"CAST({self.dialect.name(n) if n in held else 'NULL'} AS {types[n]}) AS {self.dialect.name(n)}"
                for n in names
            )
        )


def _running() -> Any:
    """The session that this process has open; None where it has none."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        return None
    return SparkSession.getActiveSession()


def _family(kind: str) -> Family:
    return "decimal" if kind.startswith("decimal") else _FAMILIES.get(kind, "other")


def _told(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400]
