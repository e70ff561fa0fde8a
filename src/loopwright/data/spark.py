"""Spark over a lake's Parquet files. There is no Delta reader without its jar: a version's files are read by paths.

Needs the extra `spark` and Java 17 or later.
"""

import os
import shutil
import socket
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa

from loopwright.data.files import Files
from loopwright.data.source import public_uri
from loopwright.kernel.errors import BadInput, Unavailable

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


MASTER_SECONDS = 5.0


def spark_session(url: str, options: Mapping[str, str] | None = None) -> Any:
    """A SparkSession at `url`: spark://HOST:PORT, or local[N] for this machine. One process holds one at a time.

    Raises Unavailable without PySpark, without Java, or when the cluster does not answer; BadInput for another URL.
    """
    if not (url.startswith(("spark://", "local[")) or url == "local"):
        raise BadInput("not a Spark", got=public_uri(url), wanted="spark://HOST:PORT or local[2]")
    if urlsplit(url).username:
        raise BadInput("a Spark URL holds no user", got=public_uri(url), wanted="spark://HOST:PORT")
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise Unavailable("PySpark is not installed", next="pip install 'loopwright[spark]'") from None
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise Unavailable(
            "Spark needs Java", wanted="Java 17 or later on the PATH, or JAVA_HOME",
            next="Debian, Ubuntu: apt-get install openjdk-17-jre-headless",
        )  # fmt: skip
    _reach(url)
    # Rows pass as Arrow; nothing here goes through pandas.
    warnings.filterwarnings(
        "ignore", message="PySpark does not yet fully support pandas", category=FutureWarning
    )
    builder = SparkSession.builder.master(url).appName("loopwright")
    for key, value in {**CONFIGURATION, **(options or {})}.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    except (PySparkException, Py4JError, OSError, RuntimeError) as error:
        raise Unavailable(
            "Spark does not start", where=url, got=str(error).splitlines()[0] if str(error) else None,
            next="Look at its log, and that Java is 17 or later.",
        ) from error  # fmt: skip
    return session


def _reach(url: str) -> None:
    """Raise Unavailable where no master of the cluster takes a connection: Spark itself tries for a minute."""
    masters = [part.rpartition(":") for part in url.removeprefix("spark://").split(",")]
    if not url.startswith("spark://"):
        return
    for host, _, port in masters:
        if not (host and port.isdigit() and int(port) < 65_536):
            raise BadInput("not a Spark", got=url, wanted="spark://HOST:PORT")
    why: OSError | None = None
    for host, _, port in masters:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=MASTER_SECONDS).close()
            return
        except OSError as error:
            why = error
    raise Unavailable(
        "the Spark cluster does not answer", where=url, got=str(why),
        next="Check that its master runs and the port is open from here, or run on this machine: local[2].",
    )  # fmt: skip


def running() -> Any:
    """The session that this process has open; None where it has none."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        return None
    return SparkSession.getActiveSession()


def files_frame(session: Any, files: Files, columns: Sequence[str] | None = None) -> Any:
    """The rows of `files` (these columns) as a Spark DataFrame, in its schema's types; numbered as `Files` says."""
    names = list(columns) if columns is not None else files.names
    if not files.uris:
        return session.createDataFrame([], _types(files.schema_of(names)))
    uris = [uri.replace("s3://", "s3a://", 1) for uri in files.uris]
    # Without a base path a folder called x=1 would become a column.
    scheme, mark, _ = uris[0].rpartition("://")
    folders = [uri.rpartition("/")[0].removeprefix(scheme + mark) for uri in uris]
    base = f"{scheme}{mark}{os.path.commonpath(folders)}"
    read = session.read.option("basePath", base).option("mergeSchema", "true").parquet(*uris)
    held = set(read.columns)
    types = {field.name: field.dataType.simpleString() for field in _types(files.schema)}
    cells = [
        f"CAST({_quoted(name) if name in held else 'NULL'} AS {types[name]}) AS {_quoted(name)}"
        for name in names
        if name != "_row" or not files.numbered
    ]
    if files.numbered and "_row" in names:
        starts = " ".join(
            f"WHEN _metadata.file_name = '{quote(uri.rpartition('/')[2])}' THEN {start}"
            for uri, start in files.starts().items()
        )
        cells.append(f"CAST(_metadata.row_index + 1 + CASE {starts} ELSE 0 END AS BIGINT) AS _row")
    return read.selectExpr(*cells)


def _types(schema: pa.Schema) -> Any:
    """The schema in Spark's types, as it makes a table of Arrow its own."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema)


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
