"""The rows that a check is given: numbered, as relations of an engine, and their cells as JSON has them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data.contract import Contract
from loopwright.data.files import Files
from loopwright.kernel.errors import BadInput, did_you_mean

FOOTERS = 64
"""Footers of so many files are read before a check; more would take longer than what they tell saves."""


def require_columns(names: Sequence[str], contract: Contract, where: str) -> None:
    """Raise BadInput when a column the contract promises is not there."""
    missing = [c.name for c in contract.columns if c.name not in names and not c.optional]
    if missing:
        near = did_you_mean(missing[0], [n for n in names if n not in {c.name for c in contract.columns}])
        raise BadInput(
            f"the column `{missing[0]}` vanished"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            where=where,
            got=f"columns {', '.join(names)}",
            wanted=f"`{missing[0]}`, as {contract.source} says",
            next=near or "Ask who delivers it, or change the contract",
        )


def numbered(rows: Files | pa.Table) -> Files | pa.Table:
    """The rows with `_row`, their position from 1, unless they carry one."""
    if isinstance(rows, Files):
        return rows if rows.numbered or "_row" in rows.schema.names else replace(rows, numbered=True)
    if "_row" in rows.column_names:
        return rows
    return rows.append_column("_row", pa.array(np.arange(1, rows.num_rows + 1)))


def view(engine: duckdb.DuckDBPyConnection, name: str, rows: Files | pa.Table) -> tuple[str, ...]:
    """Make the rows a relation called `name`; return the files it reads."""
    if isinstance(rows, Files):
        rows.view(engine, name)
        return rows.uris
    engine.register(name, rows)
    return ()


def finite(rows: Files | pa.Table) -> set[str]:
    """Columns of doubles that hold no infinity, as the footers of the files tell."""
    if not isinstance(rows, Files) or len(rows.uris) > FOOTERS or any("://" in uri for uri in rows.uris):
        return set()
    wanted = {field.name for field in rows.schema if pa.types.is_floating(field.type)}
    for uri in rows.uris if wanted else ():
        footer = pa_parquet.read_metadata(uri)
        for group in range(footer.num_row_groups):
            parts = footer.row_group(group)
            for index in range(parts.num_columns):
                part = parts.column(index)
                if part.path_in_schema in wanted:
                    known = part.statistics
                    told = (
                        known is not None
                        and known.has_min_max
                        # Of half floats the footer tells bytes.
                        and all(
                            isinstance(bound, float) and np.isfinite(bound)
                            for bound in (known.min, known.max)
                        )
                    )
                    wanted -= set() if told else {part.path_in_schema}
    return wanted


def top(path: str, held: Sequence[str]) -> str:
    """The column a dotted path begins at; "" when it is not there."""
    top = path if path in held else path.split(".")[0].split("[")[0]
    return top if top in held else ""


def plain(value: Any) -> Any:
    """A cell in types that JSON has."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return (
        value
        if value is None
        or isinstance(value, str | int | bool)
        or (isinstance(value, float) and value == value and abs(value) != float("inf"))
        else str(value)
    )
