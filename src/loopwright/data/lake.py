"""The lake: Delta tables at ROOT/{bronze,silver,quarantine,gold}/MODEL/TABLE.

bronze holds rows as they came, silver the typed rows that kept their contract, quarantine the others with reasons.
Every row carries `_batch` (digest of its source) and `_row` (its position there, from 1).
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import RemoveAction, create_table_with_add_actions

from loopwright.data.files import Files
from loopwright.data.lease import Lease, leased
from loopwright.data.parts import (
    Part,
    PartWriter,
    Rows,
    Told,
    cast_batches,
    delete_part,
    storable,
    write_parts,
)
from loopwright.data.storage import Storage
from loopwright.data.workspace import workspace
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable
from loopwright.kernel.files import lock
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger

Layer = Literal["bronze", "silver", "quarantine", "gold"]
KEPT = {
    # A run or a model may pin a table version for as long as audits ask for it: 7 years.
    "delta.logRetentionDuration": "interval 2557 days",
    "delta.deletedFileRetentionDuration": "interval 2557 days",
    # A version that is still pinned after that needs its log too; `data vacuum` is the only thing that deletes.
    "delta.enableExpiredLogCleanup": "false",
}
TRIES = 5


class Lake:
    """Tables of all models under one root: a folder, or s3://BUCKET/PREFIX. Safe to use from several processes.

    `staging`: a folder of this machine for what is on its way into a table.
    """

    def __init__(self, root: Path | str, ledger: Ledger, *, staging: Path | None = None) -> None:
        self.storage = Storage.at(root)
        self.ledger = ledger
        self._staging = staging
        self._leases: dict[str, Lease] = {}

    @classmethod
    def of(cls, home: Home, ledger: Ledger) -> "Lake":
        """The lake that a home names."""
        return cls(home.lake_url, ledger, staging=home.staging)

    @property
    def root(self) -> str:
        return self.storage.root

    def path(self, layer: Layer, model: str, table: str) -> str:
        """Where a table lies: a folder or an s3:// URL; raises BadInput for a name that is no plain name."""
        for name in (model, table):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise BadInput(
                    "not a name for a table",
                    where=self.root,
                    got=name,
                    wanted="letters, digits, `_`, `-`, `.`",
                )
        return self.storage.path(layer, model, table)

    def open(self, layer: Layer, model: str, table: str, version: int | None = None) -> DeltaTable:
        """Open a table (as it was at `version`); raises NotFound, Unavailable when the storage does not answer."""
        path = self.path(layer, model, table)
        try:
            newest = self._table(path, None) if version is not None else None
            if newest is not None and version is not None and version > newest.version():
                # The reader itself would look for every version in between.
                raise NotFound(
                    f"table {layer}/{model}/{table} has no version {version}", where=self.root,
                    wanted=f"at most {newest.version()}",
                )  # fmt: skip
            return self._table(path, version)
        except TableNotFoundError:
            raise NotFound(
                f"no table {layer}/{model}/{table}",
                where=self.root,
                next="Ingest it first: loopwright run",
            ) from None
        except (DeltaError, OSError) as error:
            # A version that is not there and a server that does not answer look alike; the newest version tells.
            if version is None or self._silent(path):
                raise _silent(self.root, error) from error
            raise NotFound(
                f"table {layer}/{model}/{table} has no version {version}",
                where=self.root,
                got=_short(error),
                next="It may have been vacuumed or damaged",
            ) from error

    def exists(self, layer: Layer, model: str, table: str) -> bool:
        path = self.path(layer, model, table)
        if not self.storage.remote:
            return DeltaTable.is_deltatable(path)
        try:
            return DeltaTable.is_deltatable(path, self._options())
        except (DeltaError, OSError) as error:
            raise _silent(self.root, error) from error

    def version(self, layer: Layer, model: str, table: str) -> int | None:
        """The newest version of a table; None when there is no table."""
        known = self._known(self.path(layer, model, table))
        return None if known is None else known.version()

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

        `bare` leaves out the lake's own columns (`_batch`, `_row`, …). For what fits in memory; see `files`.
        """
        found = self.files(layer, model, table, version=version)
        held = found.schema.names
        names = list(columns) if columns is not None else held
        order = [n for n in ("_batch", "_row") if n in held]
        rows = found.table([*names, *(n for n in order if n not in names)])
        if order and not _in_order(rows):
            rows = rows.sort_by([(name, "ascending") for name in order])
        return rows.select([n for n in names if not (bare and n.startswith("_"))])

    def files(self, layer: Layer, model: str, table: str, *, version: int | None = None) -> Files:
        """The Parquet files of a table (as it was at `version`); raises NotFound."""
        return _files(self.open(layer, model, table, version))

    def files_before(self, layer: Layer, model: str, table: str, once: str) -> Files | None:
        """The files as they were before the write named `once`; the newest where there was none. None: no table."""
        known = self._known(self.path(layer, model, table))
        while known is not None and known.transaction_version(once) is not None:
            known = self.open(layer, model, table, known.version() - 1) if known.version() else None
        return None if known is None else _files(known)

    def widen(self, layer: Layer, model: str, table: str, schema: pa.Schema) -> None:
        """Write a table's files anew where `schema` has a wider type: whole numbers as real ones, dates as times.

        One commit that changes no value; raises BadInput for a whole number that no real one is equal to.
        """
        known = self._known(self.path(layer, model, table))
        if known is None:
            return
        held = pa.schema(known.schema())
        wider = {
            field.name: field.type
            for field in schema
            if field.name in held.names and _wider(held.field(field.name).type, field.type)
        }
        if not wider:
            return
        to = pa.schema([pa.field(f.name, wider.get(f.name, f.type)) for f in held])
        found = _files(known)

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in found.batches():
                for name, kind in wider.items():
                    try:
                        cells = batch.column(name).cast(
                            pa.timestamp("us") if pa.types.is_timestamp(kind) else kind
                        )
                    except pa.ArrowInvalid as error:
                        raise BadInput(
                            f"the column `{name}` of {layer}/{model}/{table} cannot become {kind}",
                            where=self.root, got=_short(error), wanted="values that stay equal",
                            next="Keep its type, or give the table a new name",
                        ) from None  # fmt: skip
                    batch = batch.set_column(batch.schema.get_field_index(name), name, cells.cast(kind))
                yield batch

        reader = pa.RecordBatchReader.from_batches(to, cast_batches(batches(), to))
        parts = write_parts(self.storage, self.path(layer, model, table), to, reader)
        self.commit(layer, model, table, to, parts, whole=True)

    def columns(self, layer: Layer, model: str, table: str) -> list[str]:
        """Names of a table's columns, the lake's own included."""
        return list(pa.schema(self.open(layer, model, table).schema()).names)

    def write(
        self,
        layer: Layer,
        model: str,
        table: str,
        rows: Rows,
        *,
        once: str | None = None,
        replace: str | None = None,
        whole: bool = False,
        told: Told | None = None,
    ) -> int:
        """Write rows, read one batch after the other, in one atomic commit; returns the table's version.

        `once`: a name for this write; if the table has seen it, nothing is written. `replace`: rows of this batch go,
        in the same commit. `whole`: all rows go. Raises BadInput where a column changed its type, Unavailable when the
        disk is full or read-only.
        """
        path = self.path(layer, model, table)
        known = self._known(path)
        if known is not None and once and known.transaction_version(once) is not None:
            return int(known.version())
        schema = storable(rows.schema)
        if known is not None and not whole:
            schema = self.fitting(layer, model, table, schema, known)
        batches = rows.to_batches() if isinstance(rows, pa.Table) else rows
        reader = pa.RecordBatchReader.from_batches(schema, cast_batches(iter(batches), schema))
        parts = write_parts(self.storage, path, schema, reader, told)
        return self.commit(layer, model, table, schema, parts, once=once, replace=replace, whole=whole)

    def fitting(
        self, layer: Layer, model: str, table: str, schema: pa.Schema, known: DeltaTable | None = None
    ) -> pa.Schema:
        """`schema` with the types that the table holds; raises BadInput where a column's values could change.

        Text takes the words of any number, date or time; a whole number fits a real one.
        """
        known = known or self._known(self.path(layer, model, table))
        if known is None:
            return schema
        held = pa.schema(known.schema())
        spelled = {name.lower(): name for name in held.names}
        fields = []
        for field in schema:
            name = spelled.get(field.name.lower(), field.name)
            if name != field.name:
                raise BadInput(
                    f"a column of {layer}/{model}/{table} is spelled otherwise",
                    where=self.root, got=field.name, wanted=name, next="Keep the spelling, also of capitals",
                )  # fmt: skip
            kind = held.field(name).type if name in held.names else field.type
            if not _fits(field.type, kind, raw=layer in ("bronze", "quarantine")):
                raise BadInput(
                    f"the column `{name}` of {layer}/{model}/{table} changed its type",
                    where=self.root,
                    got=str(field.type),
                    wanted=str(kind),
                    next=(
                        f"Judge what has landed anew: loopwright data land PROJECT --rebuild {table}; "
                        "or give the table a new name, or load it whole (`load: full` in the contract)"
                    ),
                )
            fields.append(pa.field(name, kind))
        return pa.schema(fields)

    def commit(
        self,
        layer: Layer,
        model: str,
        table: str,
        schema: pa.Schema,
        parts: Sequence[Part],
        *,
        once: str | None = None,
        replace: str | None = None,
        whole: bool = False,
        remove: Sequence[str] = (),
    ) -> int:
        """Make files that lie in the table's folder its newest version; see `write`. `remove`: URIs of files that go.

        Files that are not taken in, because the table has seen `once` or an error is raised, are deleted.
        """
        path = self.path(layer, model, table)
        added = list(parts)
        try:
            for attempt in range(TRIES):
                for lease in list(self._leases.values()):
                    lease.require()
                try:
                    return self._commit(path, schema, added, once, replace, whole, remove)
                except CommitFailedError as error:
                    if attempt == TRIES - 1 or remove:
                        raise Conflict(
                            "others keep writing to this table", where=path, got=_short(error), next="Try again",
                        ) from error  # fmt: skip
                    self._drop(path, added[len(parts) :])
                    del added[len(parts) :]
        except (DeltaError, OSError) as error:
            self._drop(path, added)
            if isinstance(error, Unavailable | Conflict):
                raise
            raise Unavailable(
                "cannot write the table",
                where=path,
                got=_short(error),
                next="Check free space and permissions",
            ) from error
        except BaseException:
            self._drop(path, added)
            raise
        raise AssertionError("unreachable")

    def _commit(
        self,
        path: str,
        schema: pa.Schema,
        parts: list[Part],
        once: str | None,
        replace: str | None,
        whole: bool,
        remove: Sequence[str],
    ) -> int:
        properties = CommitProperties(app_transactions=[Transaction(once, 1)]) if once else None
        known = self._known(path)
        if known is None:
            create_table_with_add_actions(
                path, Schema.from_arrow(schema), [part.action() for part in parts], mode="error",
                configuration=KEPT, storage_options=self._options(), commit_properties=properties,
            )  # fmt: skip
            return int(self._table(path).version())
        if once and known.transaction_version(once) is not None:
            self._drop(path, parts)
            return int(known.version())
        if whole:
            known.create_write_transaction(
                [part.action() for part in parts], "overwrite", Schema.from_arrow(schema),
                commit_properties=properties,
            )  # fmt: skip
            return int(self._table(path).version())
        gone = [uri.removeprefix(path).lstrip("/") for uri in remove]
        if replace is not None:
            going, kept = self._without(path, known, replace)
            gone += going
            parts += kept
        held = pa.schema(known.schema())
        younger = pa.schema([field for field in schema if field.name not in held.names])
        if younger.names:
            known.alter.add_columns(Schema.from_arrow(younger).fields)
            held = pa.schema(known.schema())
        now = int(time.time() * 1000)
        known.create_write_transaction(
            [*(part.action() for part in parts), *(RemoveAction(name, True, now) for name in gone)],
            "append", Schema.from_arrow(held), commit_properties=properties,
        )  # fmt: skip
        return int(self._table(path).version())

    def _without(self, path: str, known: DeltaTable, batch: str) -> tuple[list[str], list[Part]]:
        """Names of the files that hold rows of `batch`, and new files with their other rows."""
        gone, kept = [], []
        found = _files(known)
        for uri, (least, greatest) in batch_bounds(known).items():
            if least is not None and greatest is not None and not least <= batch <= greatest:
                continue
            if not (least == greatest == batch):
                one = Files((uri,), found.schema)
                if not any(pc.any(pc.equal(b.column(0), batch)).as_py() for b in one.batches(["_batch"])):
                    continue
                others = (b.filter(pc.not_equal(b.column("_batch"), batch)) for b in one.batches())
                rows = pa.RecordBatchReader.from_batches(found.schema, others)
                kept += write_parts(self.storage, path, found.schema, rows)
            gone.append(uri.removeprefix(path).lstrip("/"))
        return gone, kept

    def writer(
        self, layer: Layer, model: str, table: str, schema: pa.Schema, told: Told | None = None
    ) -> PartWriter:
        """A writer of files for `commit`."""
        return PartWriter(self.storage, self.path(layer, model, table), schema, told)

    def part_files(
        self, layer: Layer, model: str, table: str, parts: Sequence[Part], schema: pa.Schema
    ) -> Files:
        """Rows of files that are not committed yet."""
        path = self.path(layer, model, table)
        return Files(tuple(f"{path}/{p.path}" for p in parts), schema, sum(p.rows for p in parts))

    @contextmanager
    def locked(self, model: str, table: str) -> Iterator[None]:
        """Hold the right to ingest into a table, across processes, and for a table on S3 across machines."""
        self.path("silver", model, table)
        if not self.storage.remote:
            with lock(Path(self.root) / ".locks" / f"{model}.{table}.lock"):
                yield
            return
        name = f"lake:{self.root}/{model}/{table}"
        with leased(self.ledger, name) as lease:
            self._leases[name] = lease
            try:
                yield
            finally:
                del self._leases[name]

    def workspace(self) -> AbstractContextManager[Path]:
        """A folder of this machine for the time of a landing; what killed processes left there is deleted."""
        if self._staging is not None:
            return workspace(self._staging)
        return workspace(None if self.storage.remote else Path(self.root) / ".staging")

    def drop(self, layer: Layer, model: str, table: str, parts: Sequence[Part]) -> None:
        """Delete files that were not committed."""
        self._drop(self.path(layer, model, table), parts)

    def _known(self, path: str) -> DeltaTable | None:
        try:
            return self._table(path)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise _silent(path, error) from error

    def _table(self, path: str, version: int | None = None) -> DeltaTable:
        return DeltaTable(path, version=version, storage_options=self._options())

    def _silent(self, path: str) -> bool:
        try:
            self._table(path)
        except (DeltaError, OSError):
            return True
        return False

    def _options(self) -> dict[str, str] | None:
        return dict(self.storage.options) or None

    def _drop(self, path: str, parts: Sequence[Part]) -> None:
        for part in parts:
            delete_part(self.storage.filesystem(), f"{self.storage.inner(path)}/{part.path}")


def batch_bounds(table: DeltaTable) -> dict[str, tuple[str | None, str | None]]:
    """For each file of a table: the least and the greatest `_batch`; None where its log does not say."""
    actions = pa.table(table.get_add_actions(flatten=True))
    names = actions.column_names
    if actions.num_rows == 0:
        return {}
    root = table.table_uri.rstrip("/").removeprefix("file://")
    least = actions.column("min._batch").to_pylist() if "min._batch" in names else [None] * actions.num_rows
    greatest = (
        actions.column("max._batch").to_pylist() if "max._batch" in names else [None] * actions.num_rows
    )
    return {
        f"{root}/{path}": (low, high)
        for path, low, high in zip(actions.column("path").to_pylist(), least, greatest, strict=True)
    }


def _files(table: DeltaTable) -> Files:
    return Files(tuple(sorted(table.file_uris())), pa.schema(table.schema()))


def _fits(kind: pa.DataType, held: pa.DataType, *, raw: bool) -> bool:
    """Whether every value of `kind` stays the same in a column of `held`; `raw`: text may stand for it."""
    if _alike(kind, held):
        return True
    types = pa.types
    if types.is_integer(kind) and types.is_integer(held):
        return bool(kind.bit_width <= held.bit_width)
    if types.is_float32(kind) and types.is_float64(held):
        return True
    if not raw:
        return False
    plain = (
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    )
    if _is_text(held):
        return bool(plain or types.is_timestamp(kind) or types.is_date(kind))
    return bool(types.is_integer(kind) and types.is_float64(held))


def _wider(held: pa.DataType, kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        (types.is_integer(held) and types.is_floating(kind))
        or (types.is_date(held) and types.is_timestamp(kind))
    )


def _silent(where: str, error: BaseException) -> Unavailable:
    return Unavailable(
        "the storage of the tables does not answer",
        where=where,
        got=_short(error),
        next="Check the server, its address (AWS_ENDPOINT_URL_S3) and the keys, or the folder and its rights",
    )


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
    """One line; delta-rs draws its causes as a coloured tree."""
    return " ".join(re.sub(r"\x1b\[\d+m|↳", " ", str(error)).split())[:300]
