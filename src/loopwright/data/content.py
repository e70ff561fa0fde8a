"""What a table says, as one digest or as comparable rows, whatever order, files and batches its rows lie in.

The digest is SHA-256 over the names of the columns and the sorted SHA-256 digests of the rows; a row counts as often as
it stands there. The lake's own columns (`_batch`, `_row`, …) do not count. Each cell is spelt "length:text" and a null
"-", so no two different rows are spelt alike. Equal numbers are spelt alike: 0.0 and -0.0, and every NaN.
"""

import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopwright.data.bounded import MEMORY, bounded
from loopwright.data.files import Files
from loopwright.data.sql import quote as quote

ALGORITHM = "sha256-rows-1"
"""The name of this way to spell and sum up rows; another way has another name."""


@dataclass(frozen=True, slots=True)
class Content:
    """The digest of a table's rows, and their number."""

    digest: str
    rows: int


def content_digest(rows: pa.Table | Files, *, memory: str = MEMORY, spill: Path | None = None) -> str:
    """SHA-256 over all rows, whatever their order. Names of columns count; null, "" and 0 differ.

    Reads `Files` in bounded memory. Types do not count: an integer 1 and a text "1" are told apart by the schema.
    """
    return content(rows, memory=memory, spill=spill).digest


def content(rows: pa.Table | Files, *, memory: str = MEMORY, spill: Path | None = None) -> Content:
    """`content_digest`, and how many rows there are, in one pass."""
    schema = rows.schema
    names = content_names(schema)
    digest, counted = hashlib.sha256("\x1f".join(names).encode()), 0
    if not names:
        return Content(digest.hexdigest(), 0)
    with bounded(memory, spill=spill) as engine:
        if isinstance(rows, Files):
            rows.view(engine, "rows", names)
        else:
            engine.register("rows", rows.select(names))
        spelt = spelling(names, schema)
        # `sql`, not `execute`: the latter would hold all digests before the first is read.
        found = engine.sql(f"SELECT unhex(sha256({spelt})) AS h FROM rows ORDER BY h").to_arrow_reader(65536)
        for batch in found:
            digest.update(binascii.hexlify(_bytes(batch.column(0))))
            counted += batch.num_rows
    return Content(digest.hexdigest(), counted)


def content_names(schema: pa.Schema) -> list[str]:
    """The columns that are content, in the order in which they are spelt."""
    return sorted(name for name in schema.names if not name.startswith("_"))


def spelling(names: Sequence[str], schema: pa.Schema, of: str = "") -> str:
    """SQL for the spelling of a row's columns `names`; `of`: the alias of their table."""
    prefix = f"{quote(of)}." if of else ""
    return f"concat({', '.join(_cell(prefix + quote(name), schema.field(name).type) for name in names)})"


def _cell(value: str, kind: pa.DataType, depth: int = 0) -> str:
    spelt = _text(value, kind, depth)
    return f"coalesce(strlen({spelt}) || ':' || {spelt}, '-')"


def _text(value: str, kind: pa.DataType, depth: int) -> str:
    """SQL for the text of a value; null for null."""
    if pa.types.is_timestamp(kind):
        unit = "ns" if kind.unit == "ns" else "us"
        return f"epoch_{unit}({value})::VARCHAR"
    if pa.types.is_floating(kind):
        return f"(CASE WHEN {value} = 0 THEN 0.0 WHEN isnan({value}) THEN 'nan' ELSE {value} END)::VARCHAR"
    if pa.types.is_struct(kind):
        fields = [_cell(f"{value}.{quote(f.name)}", f.type, depth) for f in kind]
        return f"(CASE WHEN {value} IS NOT NULL THEN concat({', '.join(fields)}) END)"
    if _is_list(kind):
        return _joined(value, kind.value_type, depth)
    if pa.types.is_map(kind):
        pairs = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        # The entries of a map have no order.
        return _joined(f"list_sort(map_entries({value}))", pairs, depth)
    return f"{value}::VARCHAR"


def _joined(value: str, kind: pa.DataType, depth: int) -> str:
    one = f"_v{depth}"
    items = f"list_transform({value}, lambda {one}: {_cell(one, kind, depth + 1)})"
    return f"array_to_string({items}, '')"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _bytes(chunk: pa.Array) -> memoryview:
    """The values of a binary array without nulls, each of 32 bytes, one after the other."""
    values = chunk.cast(pa.binary())
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    return memoryview(values.buffers()[2])[int(offsets[0]) : int(offsets[-1])]
