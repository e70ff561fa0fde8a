"""The Parquet files of a Delta table: rows become files of a sane size, in bounded memory, described for its log."""

import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet
from deltalake.transaction import AddAction

from loopwright.data.storage import Storage
from loopwright.kernel.errors import BadInput, Unavailable

ROW_GROUP = 128 * 1024
GROUP_BYTES = 48 << 20
"""A row group is written when its rows reach either; so much is what a writer keeps in memory."""
FILE_BYTES = 128 << 20
TEXT = 64
"""Longer texts are left out of a file's statistics."""

Rows: TypeAlias = pa.Table | pa.RecordBatchReader
Told = Callable[[int], None]
"""Hears how many rows have been written so far."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file that lies in a table's folder, committed or not. `path`: relative to the folder."""

    path: str
    size: int
    rows: int
    stats: str

    def action(self) -> AddAction:
        return AddAction(self.path, self.size, {}, int(time.time() * 1000), True, self.stats)


class PartWriter:
    """Writes rows of one schema into files of a folder. Files that never get committed are invisible; `drop` deletes
    them."""

    def __init__(self, storage: Storage, folder: str, schema: pa.Schema, told: Told | None = None) -> None:
        self.schema = schema
        self.rows = 0
        self._files = storage.filesystem()
        self._folder, self._inner = folder, storage.inner(folder)
        self._told = told
        self._waiting: list[pa.RecordBatch] = []
        self._parts: list[Part] = []
        self._open: _OpenFile | None = None
        if not storage.remote:
            self._files.create_dir(self._inner, recursive=True)

    def write(self, rows: Rows) -> None:
        """Take all of `rows`; they must be of the writer's schema."""
        batches = rows.to_batches() if isinstance(rows, pa.Table) else rows
        for batch in batches:
            self.add(batch)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some rows."""
        if batch.num_rows:
            self._waiting.append(batch)
            if (
                sum(b.num_rows for b in self._waiting) >= ROW_GROUP
                or sum(b.nbytes for b in self._waiting) >= GROUP_BYTES
            ):
                self._flush()

    def close(self) -> list[Part]:
        """End the last file; returns the files in order, none for no rows."""
        self._flush()
        self._end()
        return self._parts

    def drop(self) -> None:
        """Delete what was written, as far as that is possible; used when it will not be committed."""
        if self._open is not None:
            self._open.abandon()
            self._open = None
        for part in self._parts:
            delete_part(self._files, f"{self._inner}/{part.path}")
        self._parts = []

    def uris(self) -> list[str]:
        """Where the files lie that are complete."""
        return [f"{self._folder}/{part.path}" for part in self._parts]

    def _flush(self) -> None:
        if not self._waiting:
            return
        group = pa.Table.from_batches(self._waiting, self.schema)
        self._waiting = []
        try:
            if self._open is None:
                name = f"part-{secrets.token_hex(16)}.parquet"
                self._open = _OpenFile(self._files, f"{self._inner}/{name}", name, self.schema)
            self._open.write(group)
            if self._open.size >= FILE_BYTES:
                self._end()
        except (OSError, pa.ArrowException) as error:
            raise _cannot_write(self._folder, error) from error
        self.rows += group.num_rows
        if self._told is not None:
            self._told(self.rows)

    def _end(self) -> None:
        if self._open is None:
            return
        try:
            self._parts.append(self._open.end())
        except (OSError, pa.ArrowException) as error:
            raise _cannot_write(self._folder, error) from error
        self._open = None


class _OpenFile:
    def __init__(self, files: Any, inner: str, name: str, schema: pa.Schema) -> None:
        self._files, self._inner, self._name = files, inner, name
        self._stream = files.open_output_stream(inner)
        self._footer: list[Any] = []
        self._writer = pa_parquet.ParquetWriter(
            self._stream, schema, compression="snappy", metadata_collector=self._footer
        )

    @property
    def size(self) -> int:
        return int(self._stream.tell())

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=ROW_GROUP)

    def end(self) -> Part:
        self._writer.close()
        size = self.size
        self._stream.close()
        footer = self._footer[0]
        return Part(self._name, size, footer.num_rows, json.dumps(_statistics(footer)))

    def abandon(self) -> None:
        # An S3 upload that is never closed is never seen; a local file is deleted.
        if hasattr(self._stream, "abort"):
            self._stream.abort()
        delete_part(self._files, self._inner)


def delete_part(files: Any, inner: str) -> None:
    """Delete a file that no version of the table holds. One that cannot be deleted stays unseen until a vacuum."""
    with suppress(OSError):
        files.delete_file(inner)


def write_parts(
    storage: Storage, folder: str, schema: pa.Schema, rows: Rows, told: Told | None = None
) -> list[Part]:
    """Write `rows` into files of the folder and return them; on an error nothing is left.

    Raises Unavailable when the disk is full or read-only, or the server does not answer.
    """
    try:
        writer = PartWriter(storage, folder, schema, told)
    except (OSError, pa.ArrowException) as error:
        raise _cannot_write(folder, error) from error
    try:
        writer.write(rows)
        return writer.close()
    except BaseException:
        writer.drop()
        raise


def cast_batches(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """`batches` in the types of `schema`; a column that they lack is null. Moments lose what is below a microsecond.

    Raises BadInput for a value that the type cannot hold.
    """
    for batch in batches:
        held = set(batch.schema.names)
        cells = [
            _cast(batch.column(field.name), field)
            if field.name in held
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(cells, schema=schema)


def _cast(cells: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return cells.cast(options=pc.CastOptions(field.type, allow_time_truncate=True))
    except pa.ArrowInvalid as error:
        raise BadInput(
            f"a value of `{field.name}` cannot be kept", got=str(error).split("\n")[0][:200],
            wanted=str(field.type), next="Write the column as text, or in a type that holds it",
        ) from None  # fmt: skip


def _statistics(footer: Any) -> dict[str, Any]:
    """What Delta's log says about a file: rows, and per column its least and greatest value and its nulls."""
    columns: dict[str, list[Any]] = {}
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if "." not in column.path_in_schema:
                columns.setdefault(column.path_in_schema, []).append(column.statistics)
    lowest, highest, nulls = {}, {}, {}
    for name, found in columns.items():
        if any(each is None for each in found):
            continue
        if all(each.has_null_count for each in found):
            nulls[name] = sum(each.null_count for each in found)
        bounds = [each for each in found if each.has_min_max]
        # A group of nulls alone has no bounds; any other without them makes the file's unknown.
        if not bounds or any(not each.has_min_max and each.num_values for each in found):
            continue
        least, greatest = _plain(min(each.min for each in bounds)), _plain(max(each.max for each in bounds))
        if least is not None and greatest is not None:
            lowest[name], highest[name] = least, greatest
    return {"numRecords": footer.num_rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls}


def _plain(value: Any) -> Any:
    """A bound as JSON holds it; None for one that is better left out."""
    if isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= TEXT else None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.isoformat(timespec="microseconds")
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return None


def _cannot_write(where: str, error: BaseException) -> Unavailable:
    return Unavailable(
        "cannot write the table",
        where=where,
        got=str(error).strip().split("\n")[0][:200],
        next="Check free space and permissions",
    )


def storable(schema: pa.Schema, *, widen: bool = False) -> pa.Schema:
    """`schema` in types that Delta has: nulls become text, unsigned numbers and times of day wider.

    `widen`: whole and real numbers of any size become the largest, so that a later delivery's fit.
    """
    return pa.schema([pa.field(field.name, _storable(field.type, widen)) for field in schema])


def _storable(kind: pa.DataType, widen: bool) -> pa.DataType:
    types = pa.types
    if types.is_null(kind) or types.is_time(kind) or types.is_duration(kind):
        return pa.string()
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_date(kind):
        return pa.date32()
    if types.is_unsigned_integer(kind) or (widen and types.is_integer(kind)):
        return pa.int64()
    if types.is_float16(kind) or (widen and types.is_floating(kind)):
        return pa.float64() if widen else pa.float32()
    if types.is_dictionary(kind):
        return _storable(kind.value_type, widen)
    if types.is_struct(kind):
        return pa.struct(
            [
                pa.field(kind.field(i).name, _storable(kind.field(i).type, widen))
                for i in range(kind.num_fields)
            ]
        )
    if types.is_map(kind):
        return pa.map_(_storable(kind.key_type, widen), _storable(kind.item_type, widen))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_storable(kind.value_type, widen))
    return kind


def total(parts: Sequence[Part]) -> int:
    return sum(part.rows for part in parts)
