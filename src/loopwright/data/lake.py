"""The lake: Delta tables at ROOT/{bronze,silver,quarantine,gold}/MODEL/TABLE.

bronze holds rows as they came, silver the typed rows that kept their contract, quarantine the others with reasons.
Every row carries `_batch` (digest of its source) and `_row` (its position there, from 1).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from loopwright.data.files import Files
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable
from loopwright.kernel.files import lock
from loopwright.ledger.engine import Ledger

Layer = Literal["bronze", "silver", "quarantine", "gold"]
KEPT = {
    # A run or a model may pin a table version for as long as audits ask for it: 7 years.
    "delta.logRetentionDuration": "interval 2557 days",
    "delta.deletedFileRetentionDuration": "interval 2557 days",
}
TRIES = 5


class Lake:
    """Tables of all models under one root. Safe to use from several processes."""

    def __init__(self, root: Path | str, ledger: Ledger) -> None:
        self.root = Path(root)
        self.ledger = ledger

    def path(self, layer: Layer, model: str, table: str) -> Path:
        """The folder of a table; raises BadInput for a name that is no plain name."""
        for name in (model, table):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise BadInput(
                    "not a name for a table",
                    where=str(self.root),
                    got=name,
                    wanted="letters, digits, `_`, `-`, `.`",
                )
        return self.root / layer / model / table

    def open(self, layer: Layer, model: str, table: str, version: int | None = None) -> DeltaTable:
        """Open a table (as it was at `version`); raises NotFound."""
        path = self.path(layer, model, table)
        try:
            return DeltaTable(path, version=version)
        except TableNotFoundError:
            raise NotFound(
                f"no table {layer}/{model}/{table}",
                where=str(self.root),
                next="Ingest it first: loopwright run",
            ) from None
        except DeltaError as error:
            raise NotFound(
                f"table {layer}/{model}/{table} has no version {version}",
                where=str(self.root),
                got=_short(error),
                next="It may have been vacuumed or damaged",
            ) from error

    def exists(self, layer: Layer, model: str, table: str) -> bool:
        return DeltaTable.is_deltatable(str(self.path(layer, model, table)))

    def version(self, layer: Layer, model: str, table: str) -> int | None:
        """The newest version of a table; None when there is no table."""
        return self.open(layer, model, table).version() if self.exists(layer, model, table) else None

    def read(
        self,
        layer: Layer,
        model: str,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        bare: bool = False,
    ) -> pa.Table:
        """Read rows in a fixed order: by batch, then as its source had them.

        `bare` leaves out the lake's own columns (`_batch`, `_row`, …).
        """
        known = self.open(layer, model, table, version)
        schema = pa.schema(known.schema())
        names = list(columns) if columns is not None else schema.names
        order = [n for n in ("_batch", "_row") if n in schema.names]
        wanted = pa.schema([schema.field(n) for n in [*names, *(n for n in order if n not in names)]])
        rows = _read_files(known, wanted)
        if order and not _in_order(rows):
            rows = rows.sort_by([(name, "ascending") for name in order])
        return rows.select([n for n in names if not (bare and n.startswith("_"))])

    def files(self, layer: Layer, model: str, table: str, *, version: int | None = None) -> Files:
        """The Parquet files of a table (as it was at `version`); raises NotFound."""
        known = self.open(layer, model, table, version)
        return Files(tuple(sorted(known.file_uris())), pa.schema(known.schema()))

    def columns(self, layer: Layer, model: str, table: str) -> list[str]:
        """Names of a table's columns, the lake's own included."""
        return list(pa.schema(self.open(layer, model, table).schema()).names)

    def write(
        self,
        layer: Layer,
        model: str,
        table: str,
        rows: pa.Table,
        *,
        once: str | None = None,
        replace: str | None = None,
        whole: bool = False,
    ) -> int:
        """Write rows in one atomic commit and return the table's version.

        `once`: a name for this write; if the table has seen it, nothing is written. `replace`: rows of this batch go,
        in the same commit. `whole`: all rows go. Raises Unavailable when the disk is full or read-only.
        """
        path = self.path(layer, model, table)
        commit = CommitProperties(app_transactions=[Transaction(once, 1)]) if once else None
        for attempt in range(TRIES):
            try:
                known = DeltaTable(path) if self.exists(layer, model, table) else None
                if known is not None and once and known.transaction_version(once) is not None:
                    return known.version()
                if known is not None and not whole:
                    self._require_types(layer, model, table, known, rows)
                if whole or (replace and known is not None):
                    write_deltalake(
                        path,
                        rows,
                        mode="overwrite",
                        predicate=None if whole else f"_batch = '{replace}'",
                        schema_mode="overwrite" if whole else "merge",
                        configuration=KEPT,
                        commit_properties=commit,
                    )
                else:
                    write_deltalake(
                        path,
                        rows,
                        mode="append",
                        schema_mode="merge",
                        configuration=KEPT,
                        commit_properties=commit,
                    )
                return DeltaTable(path).version()
            except CommitFailedError as error:
                if attempt == TRIES - 1:
                    raise Conflict(
                        "others keep writing to this table",
                        where=str(path),
                        got=_short(error),
                        next="Try again",
                    ) from error
            except (DeltaError, OSError) as error:
                raise Unavailable(
                    "cannot write the table",
                    where=str(path),
                    got=_short(error),
                    next="Check free space and permissions",
                ) from error
        raise AssertionError("unreachable")

    def _require_types(self, layer: str, model: str, table: str, known: DeltaTable, rows: pa.Table) -> None:
        """Raise BadInput where a column would be cast: delta-rs does that silently, and 2.5 would become 2."""
        held = pa.schema(known.schema())
        for field in rows.schema:
            if field.name in held.names and not _alike(field.type, held.field(field.name).type):
                raise BadInput(
                    f"the column `{field.name}` of {layer}/{model}/{table} changed its type",
                    where=str(self.root),
                    got=str(field.type),
                    wanted=str(held.field(field.name).type),
                    next="Give the table a new name, or load it whole (`load: full` in the contract)",
                )

    @contextmanager
    def locked(self, model: str, table: str) -> Iterator[None]:
        """Hold the right to ingest into a table, across processes."""
        name = self.path("silver", model, table).name
        with lock(self.root / ".locks" / f"{model}.{name}.lock"):
            yield


def _read_files(table: DeltaTable, schema: pa.Schema) -> pa.Table:
    """The named columns of all files of a table version; a column younger than a file is null there.

    Reads the files itself: pyarrow's dataset module, which deltalake would use, imports pandas (seconds, and
    60 MB). The lake's tables have no partitions and no deletion vectors.
    """
    parts = [schema.empty_table()]
    for uri in sorted(table.file_uris()):
        file = pa_parquet.ParquetFile(uri)
        held = [name for name in schema.names if name in file.schema_arrow.names]
        rows = file.read(columns=held)
        for name in schema.names:
            if name not in held:
                rows = rows.append_column(name, pa.nulls(rows.num_rows, schema.field(name).type))
        parts.append(rows.select(schema.names).cast(schema))
    return pa.concat_tables(parts)


def _alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether Delta keeps both types as the same one."""
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        return (one.tz is None) == (other.tz is None)
    return (
        one == other
        or _is_text(one) == _is_text(other) is True
        or (pa.types.is_list(one) and pa.types.is_list(other))
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _in_order(rows: pa.Table) -> bool:
    """Whether a single batch lies there in row order, the usual case."""
    if rows.num_rows < 2:
        return True
    batch = (
        rows.column("_batch").dictionary_encode().combine_chunks() if "_batch" in rows.column_names else None
    )
    if batch is not None and len(batch.dictionary) != 1:
        return False
    return (
        bool(np.all(np.diff(rows.column("_row").to_numpy()) > 0))
        if rows.column("_row").null_count == 0
        else False
    )


def _short(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
