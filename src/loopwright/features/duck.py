"""DuckDB as the engine of features: relations are temporary tables, sources come as Arrow tables or Parquet files."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from loopwright.data.duck import connect
from loopwright.data.files import Files
from loopwright.features.lookup import DUCKDB, Dialect, Family
from loopwright.features.view import FeatureView, as_mapping, quoted
from loopwright.kernel.errors import BadInput, Unavailable, did_you_mean

Tables = Mapping[str, pa.Table | Files]

_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
         "UHUGEINT"), "integer"),
    "FLOAT": "float", "DOUBLE": "float", "BOOLEAN": "boolean", "VARCHAR": "text", "DATE": "time", "TIME": "time",
    "TIMESTAMP": "time", "TIMESTAMP WITH TIME ZONE": "time", "TIMESTAMP_S": "time", "TIMESTAMP_MS": "time",
    "TIMESTAMP_NS": "time",
}  # fmt: skip


@dataclass(slots=True)
class DuckEngine:
    """`con` belongs to one thread and to this engine alone."""

    con: duckdb.DuckDBPyConnection
    dialect: Dialect = DUCKDB

    def make(self, name: str, sql: str, where: str, *, lazy: bool = False) -> None:
        """Make a temporary table, or a view where `lazy`."""
        run(self.con, f"CREATE TEMP {'VIEW' if lazy else 'TABLE'} {name} AS {sql}", where)

    def types(self, name: str) -> dict[str, Family]:
        """Family of each column."""
        found = self.con.execute(f"DESCRIBE SELECT * FROM {name}").fetchall()
        return {str(row[0]): family(str(row[1])) for row in found}

    def count(self, sql: str) -> int:
        """The one number that a query gives."""
        return int(self.con.execute(sql).fetchall()[0][0])


def family(sql_type: str) -> Family:
    """The family of one of DuckDB's types."""
    if sql_type.startswith("DECIMAL"):
        return "decimal"
    return "text" if sql_type.startswith("ENUM") else _FAMILIES.get(sql_type, "other")


@contextmanager
def engine(dialect: Dialect = DUCKDB, *, memory_limit: str | None = None) -> Iterator[DuckEngine]:
    """A fresh database in memory, in UTC, on two threads.

    What does not fit in `memory_limit` ("512MB"; None: most of the machine's) lies in files of a temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="loopwright-features-") as spill:
        con = connect(memory_limit=memory_limit, spill=Path(spill))
        try:
            if memory_limit is None:
                con.execute("SET threads = 2")
            # A name in a project's SQL means a table of the project, never a variable of ours.
            con.execute("SET python_enable_replacements = false")
            yield DuckEngine(con, dialect)
        finally:
            con.close()


def run(con: duckdb.DuckDBPyConnection, sql: str, where: str) -> duckdb.DuckDBPyConnection:
    """Execute; raises BadInput, naming `where`, for SQL that DuckDB does not take or that fails on the rows."""
    try:
        return con.execute(sql)
    except duckdb.OutOfMemoryException as error:
        raise Unavailable(
            "the memory does not suffice", where=where, got=str(error).splitlines()[0],
            next="Give it more (`memory_limit`), or ask fewer rows or columns at once.",
        ) from None  # fmt: skip
    except duckdb.Error as error:
        told = str(error).split("\n\nLINE")[0].replace("\n", " ")
        raise BadInput(told, where=where, next=_advice(error)) from None


def _advice(error: duckdb.Error) -> str:
    if isinstance(error, duckdb.OutOfRangeException | duckdb.ConversionException) and "INT128" in str(error):
        return "A number is too great to be summed exactly, or is infinite: hold fewer `decimals`, or leave it out."
    return "Mend the SQL."


def require_tables(names: Sequence[str], tables: Mapping[str, Any], where: str) -> None:
    """Raise BadInput naming the first table that is not among `tables`."""
    for name in names:
        if name not in tables:
            raise BadInput(
                f"table `{name}` is not there",
                where=where,
                got=sorted(tables),
                wanted="a source of loop.yaml",
                next=did_you_mean(name, tables),
            )


def register(
    con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table | Files, *, ordered: bool = False
) -> None:
    """Make `rows` the relation `name`; of files nothing is read yet, and the lake's own columns stay out.

    `ordered`: files' rows come in the order that the lake fixes, by batch, then as its source had them.
    """
    if not isinstance(rows, Files):
        con.register(name, rows)
        return
    order = [each for each in ("_batch", "_row") if each in rows.names] if ordered else []
    own = own_columns(rows)
    rows.view(con, f"_lake_{name}" if order else name, [*own, *order])
    if order:
        con.execute(
            f"CREATE TEMP VIEW {quoted(name)} AS SELECT {', '.join(map(quoted, own))} "
            f"FROM {quoted(f'_lake_{name}')} ORDER BY {', '.join(order)}"
        )


def own_columns(rows: Files) -> list[str]:
    """Names of the columns but the lake's own (`_batch`, `_row`, …)."""
    return [name for name in rows.names if not name.startswith("_")]


def as_table(rows: pa.Table | Files) -> pa.Table:
    """All rows in memory, in the order that the lake fixes: by batch, then as its source had them."""
    if not isinstance(rows, Files):
        return rows
    order = [name for name in ("_batch", "_row") if name in rows.names]
    found = rows.table([*own_columns(rows), *order])
    return found.sort_by([(name, "ascending") for name in order]).drop_columns(order) if order else found


def rows_of(con: duckdb.DuckDBPyConnection, view: FeatureView, index: int, tables: Tables, where: str) -> str:
    """SQL for a FROM: the rows that `view` looks at. A Python function is called here."""
    if view.source is None:
        return quoted(view.table)
    if isinstance(view.source, str):
        query = view.source.strip().rstrip(";")
        _check_reads(con, view, query, where)
        return f"({query})"
    name = f"_source{index}"
    con.register(name, call_source(view.source, [as_table(tables[t]) for t in view.tables()], where))
    return name


def _check_reads(con: duckdb.DuckDBPyConnection, view: FeatureView, query: str, where: str) -> None:
    """Raise BadInput where the query reads a table that the view does not name: lineage would not know of it."""
    try:
        with connect() as scratch:  # it cannot look through views of files: tables of the same columns do
            for name in view.tables():
                scratch.register(name, con.sql(f"SELECT * FROM {quoted(name)} LIMIT 0").to_arrow_table())
            found = scratch.get_table_names(query)
    except duckdb.Error as error:
        raise BadInput(
            str(error).split("\n\nLINE")[0], where=f"{where}: source", next="Mend the SQL."
        ) from None
    if unknown := sorted(found - set(view.tables())):
        raise BadInput(
            f"the source reads `{unknown[0]}`, which the view does not name", where=where,
            got=", ".join(view.tables()), wanted=f'reads=("{unknown[0]}",) among them',
        )  # fmt: skip


def call_source(source: Callable[..., Any], given: Sequence[pa.Table], where: str) -> pa.Table:
    """Call a view's Python function; raises BadInput for what it raises, and for an answer that is no table."""
    name = getattr(source, "__qualname__", type(source).__qualname__)
    try:
        made = source(*given)
    except Exception as error:
        raise BadInput(
            f"`{name}` failed: {type(error).__name__}: {error}", where=where, next="Mend the function."
        ) from error
    if isinstance(made, pa.RecordBatchReader):
        made = made.read_all()
    if not isinstance(made, pa.Table | pa.RecordBatch):
        with suppress(TypeError, ValueError, pa.ArrowException):
            made = pa.table(made)
    if isinstance(made, pa.RecordBatch):
        made = pa.Table.from_batches([made])
    if not isinstance(made, pa.Table):
        raise BadInput(
            f"`{name}` gave no table", where=where, got=type(made).__name__,
            wanted="a pyarrow.Table, or what it can be made of",
        )  # fmt: skip
    return made


def check_source(con: duckdb.DuckDBPyConnection, view: FeatureView, index: int, where: str) -> None:
    """Raise BadInput where a Python function's rows lack a key or a time: none of them could ever be found."""
    if view.source is None or isinstance(view.source, str):
        return
    name = getattr(view.source, "__qualname__", type(view.source).__qualname__)
    wanted = {f"entity `{key}`": sql for key, sql in as_mapping(view.entity).items()}
    wanted |= {"event_time": view.event_time} if view.event_time else {}
    counts = ", ".join(f"count(*) FILTER (WHERE ({sql}) IS NULL)" for sql in wanted.values())
    found = run(
        con, f"SELECT count(*), {counts} FROM _source{index} AS {quoted(view.table)}", where
    ).fetchall()[0]
    for what, missing in zip(wanted, found[1:], strict=True):
        if missing:
            raise BadInput(
                f"`{name}` gave {missing} of {found[0]} rows without {what}", where=where, wanted="none",
                next="Leave such rows out in the function.",
            )  # fmt: skip
