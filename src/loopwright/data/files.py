"""Rows that lie in Parquet files and need not fit in memory: read as a DuckDB view, as batches, or whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data.sql import quote as _quote
from loopwright.data.sql import text as _text
from loopwright.data.storage import s3_filesystem

BATCH_ROWS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Files:
    """`uris`: paths or s3:// URLs, in order. `schema`: the columns to be seen; one that a file lacks is null there.

    `rows`: how many there are, where known. `numbered`: give rows a column `_row`, their position from 1 (only for
    files that carry none).
    """

    uris: tuple[str, ...]
    schema: pa.Schema
    rows: int | None = None
    numbered: bool = False

    def view(
        self,
        engine: duckdb.DuckDBPyConnection,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        origin: str | None = None,
    ) -> None:
        """Create the temporary view `name` over the rows; nothing is read but the files' footers.

        `origin`: a column of this name says in which file (one of `uris`) a row lies.
        """
        names = list(columns) if columns is not None else self.names
        if not self.uris:
            empty = self.schema_of(names)
            engine.register(
                name, (empty.append(pa.field(origin, pa.string())) if origin else empty).empty_table()
            )
            return
        if any(uri.startswith("s3://") for uri in self.uris):
            _register_s3(engine)
        listed = ", ".join(_text(uri) for uri in self.uris)
        read = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
        held = {row[0] for row in engine.execute(f"DESCRIBE SELECT * FROM {read}").fetchall()}
        # A type may have widened since a file was written, and a column may be younger than every file.
        types = _duck_types(engine, self.schema)
        cells = [
            f"{_quote(n)}::{types[n]} AS {_quote(n)}" if n in held else f"NULL::{types[n]} AS {_quote(n)}"
            for n in names
            if n != "_row" or not self.numbered
        ]
        if origin is not None or (self.numbered and "_row" in names):
            read = read.removesuffix(")") + ", file_row_number = true, filename = true)"
        if origin is not None:
            cells.append(f"filename AS {_quote(origin)}")
        if self.numbered and "_row" in names:
            starts = self.starts()
            offset = (
                f" + CASE filename {' '.join(f'WHEN {_text(u)} THEN {n}' for u, n in starts.items())} END"
                if len(starts) > 1
                else ""
            )
            cells.append(f"file_row_number + 1{offset} AS _row")
        engine.execute(f"CREATE OR REPLACE TEMP VIEW {_quote(name)} AS SELECT {', '.join(cells)} FROM {read}")

    def batches(
        self, columns: Sequence[str] | None = None, *, rows: int = BATCH_ROWS, skip: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most `rows` at a time; not the first `skip`, of which little is read."""
        names = list(columns) if columns is not None else self.names
        schema = self.schema_of(names)
        start = 0
        for uri in self.uris:
            file = _open(uri)
            held = set(file.schema_arrow.names)
            passed = min(skip, file.metadata.num_rows)
            skip, start = skip - passed, start + passed
            for batch in _read(file, rows, [n for n in names if n in held], passed):
                cells = []
                for field in schema:
                    if field.name == "_row" and self.numbered:
                        cells.append(pa.array(np.arange(start + 1, start + 1 + batch.num_rows)))
                    elif field.name in held:
                        cells.append(batch.column(field.name).cast(field.type))
                    else:
                        cells.append(pa.nulls(batch.num_rows, field.type))
                start += batch.num_rows
                yield pa.RecordBatch.from_arrays(cells, schema=schema)

    def reader(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """`batches` as Arrow's reader."""
        names = list(columns) if columns is not None else self.names
        return pa.RecordBatchReader.from_batches(self.schema_of(names), self.batches(names))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory."""
        return self.reader(columns).read_all()

    def held(self) -> set[str]:
        """Names of the columns that at least one of the files has."""
        return {name for uri in self.uris for name in _open(uri).schema_arrow.names}

    @property
    def names(self) -> list[str]:
        """Names of the columns, `_row` last where rows are numbered."""
        return [*self.schema.names, *(["_row"] if self.numbered else [])]

    def schema_of(self, names: Sequence[str]) -> pa.Schema:
        """The schema of these columns, `_row` among them where rows are numbered."""
        number = pa.field("_row", pa.int64())
        return pa.schema([number if self.numbered and n == "_row" else self.schema.field(n) for n in names])

    def starts(self) -> dict[str, int]:
        """File → how many rows the files before it hold."""
        starts, so_far = {}, 0
        for uri in self.uris:
            starts[uri] = so_far
            so_far += _open(uri).metadata.num_rows
        return starts


def _read(file: Any, rows: int, columns: list[str], skip: int = 0) -> Iterator[pa.RecordBatch]:
    """One row group after the other: a reader over all of them keeps every byte that it has read."""
    for group in range(file.num_row_groups):
        held = file.metadata.row_group(group).num_rows
        if skip >= held:
            skip -= held
            continue
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield batch.slice(skip) if skip else batch
            skip = 0


def _open(uri: str) -> Any:
    if uri.startswith("s3://"):
        return pa_parquet.ParquetFile(s3_filesystem().open_input_file(uri.removeprefix("s3://")))
    return pa_parquet.ParquetFile(uri, memory_map=False)


def _register_s3(engine: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's own S3 reader is an extension that it would have to download."""
    if engine.filesystem_is_registered("s3"):
        return
    from fsspec.implementations.arrow import ArrowFSWrapper

    class S3(ArrowFSWrapper):  # type: ignore[misc]  # fsspec has no types
        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("s3://")

    engine.register_filesystem(S3(s3_filesystem()))


def _duck_types(engine: duckdb.DuckDBPyConnection, schema: pa.Schema) -> dict[str, str]:
    named = {field.name: _duck_type(field.type) for field in schema}
    if None not in named.values():
        return {name: str(type_) for name, type_ in named.items()}
    # Rarer ones DuckDB tells itself; its look at an Arrow table imports pandas, a third of a second.
    engine.register("_lw_types", schema.empty_table())
    found = {row[0]: str(row[1]) for row in engine.execute("DESCRIBE _lw_types").fetchall()}
    engine.unregister("_lw_types")
    return found


_DUCK_TYPES = {
    "bool": "BOOLEAN", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT",
    "uint8": "UTINYINT", "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT", "float": "FLOAT",
    "double": "DOUBLE", "string": "VARCHAR", "large_string": "VARCHAR", "string_view": "VARCHAR",
    "binary": "BLOB", "large_binary": "BLOB", "date32[day]": "DATE", "time64[us]": "TIME",
    "timestamp[us]": "TIMESTAMP", "timestamp[ms]": "TIMESTAMP_MS", "timestamp[s]": "TIMESTAMP_S",
    "timestamp[ns]": "TIMESTAMP_NS",
}  # fmt: skip


def _duck_type(arrow: pa.DataType) -> str | None:
    """What DuckDB calls the usual types of Arrow; None for others."""
    if pa.types.is_timestamp(arrow) and arrow.tz is not None and arrow.unit == "us":
        return "TIMESTAMP WITH TIME ZONE"
    if pa.types.is_list(arrow):
        inner = _duck_type(arrow.value_type)
        return inner and f"{inner}[]"
    if pa.types.is_struct(arrow) and arrow.num_fields:
        parts = [(field.name, _duck_type(field.type)) for field in arrow]
        named = ", ".join(f"{_quote(name)} {inner}" for name, inner in parts)
        return f"STRUCT({named})" if all(inner for _, inner in parts) else None
    return _DUCK_TYPES.get(str(arrow))
