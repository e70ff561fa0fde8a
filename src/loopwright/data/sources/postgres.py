"""`postgresql://user@host/db?table=schema.table` or `?query=SELECT …`: rows of a PostgreSQL, through ADBC.

All is read in one read-only transaction, so the rows are those of one moment. The password comes from the URL, from
PostgreSQL's own environment (PGPASSWORD, a password file), or from the variable that `password_env=NAME` names.

With a cursor column only what is new comes: rows beyond the newest value read so far, and rows at that very value that
were not there then. Rows at the newest value are remembered by 64-bit digests, as often as they stood there, so ties
are neither lost nor doubled. `lookback` widens what is remembered, for writers whose transactions commit later than
others with newer values: a row is lost only when it becomes visible with a value more than `lookback` below the newest.
"""

import base64
import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec
import pyarrow as pa

from loopwright.data.content import content_digest
from loopwright.data.files import Files
from loopwright.data.sources.reading import Told, names_that_can_be_kept, public_uri
from loopwright.data.sources.staging import disk, write_rows
from loopwright.data.sql import quote as _quoted
from loopwright.data.sql import text as _text
from loopwright.data.staged import MALFORMED, Staged
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unavailable, did_you_mean

BATCH_BYTES = 4 << 20
CONNECT_SECONDS = 10
MOST_TIES = 1_000_000
_IDENTIFIER = r'"(?:[^"]|"")+"|[A-Za-z_][A-Za-z0-9_$]*'
_TABLE = re.compile(rf"(?:({_IDENTIFIER})\.)?({_IDENTIFIER})")
_TYPE = re.compile(r"[a-z][a-z0-9_ ]*(\(\d+(,\d+)?\))?( (with|without) time zone)?")
_AS_TEXT = ("money", "oid", "interval")
_OLD, _EDGE = "_lw_old", "_lw_edge"


@dataclass(frozen=True, slots=True)
class Query:
    """What to read from where. `name`: for messages, without credentials.

    `since`: the state after the last reading. `undone`: how many landings from there were taken back.
    """

    name: str
    url: str = field(repr=False)
    select: str
    column: str | None = None
    lookback: timedelta = timedelta()
    since: Mapping[str, Any] | None = None
    undone: int = 0

    @classmethod
    def parse(
        cls, uri: str, *, column: str | None = None, lookback: timedelta = timedelta(),
        since: Mapping[str, Any] | None = None,
    ) -> "Query":  # fmt: skip
        """A query by its URI. Raises BadInput for one that cannot be; connects to nothing."""
        name = public_uri(uri)
        parts = urlsplit(uri)
        given = parse_qsl(parts.query, keep_blank_values=True)
        values = dict(given)
        twice = [key for key in values if sum(key == k for k, _ in given) > 1]
        if twice:
            raise BadInput("a parameter stands twice", where=name, got=twice[0], next="Mend the uri")
        table, query = values.pop("table", None), values.pop("query", None)
        if (table is None) == (query is None):
            raise BadInput(
                "a database needs one answer to what is read", where=name,
                got="both table and query" if table else "neither table nor query",
                wanted="?table=schema.table or ?query=SELECT …", next="Mend the uri in loop.yaml",
            )  # fmt: skip
        if table is not None:
            found = _TABLE.fullmatch(table)
            if not found:
                raise BadInput("not a table's name", where=name, got=table, wanted="table or schema.table",
                               next='Write odd names in quotes: "My Table"')  # fmt: skip
            select = "SELECT * FROM " + ".".join(_folded(part) for part in found.groups() if part)
        else:
            assert query is not None
            select = query.strip().rstrip(";").strip()
            if not re.match(r"(?i)(select|with|values|table)\b|\(", select):
                raise BadInput("not a query", where=name, got=query, wanted="SELECT …", next="Mend the uri")
        undone = int((since or {}).get("undone", 0))
        if since is not None and "value" not in since:  # a first landing was begun only
            since = None
        if since is not None and column is not None and since.get("column") != column:
            raise BadInput(
                "the cursor column changed", where=name, got=column,
                wanted=f"{since.get('column')}, by which this table was read so far",
                next="Give the table a new name in loop.yaml to read it anew",
            )  # fmt: skip
        return cls(
            name,
            _with_password(parts, values, name),
            select,
            column,
            lookback,
            since if column else None,
            undone,
        )

    @property
    def title(self) -> str:
        """The table's name; "query" for a query."""
        named = re.fullmatch(r'SELECT \* FROM (?:.*\.)?("(?:[^"]|"")+")', self.select)
        return named[1].strip('"') if named else "query"

    def stage(self, into: Path, origin: Mapping[str, Any], progress: Told) -> Staged:
        """Bring the rows into a Parquet file in `into`; see `Source.stage`. No new rows is no error here."""
        with disk(into):
            into.mkdir(parents=True, exist_ok=True)
        with _connected(self.url, self.name) as connection:
            schema, cells = _columns(connection, self.select, self.name)
            names_that_can_be_kept(schema.names, self.name)
            if self.column is None:
                files = self._write(
                    connection, into, f"SELECT {cells} FROM ({self.select}\n) AS q", None, progress
                )
                if not files.rows:
                    raise BadInput(
                        "holds no rows", where=self.name, wanted="at least one", next="Check the query"
                    )
                return self._staged(files, None, origin)
            edge = self._edge(connection, schema)
            if edge is None:
                return self._staged(Files((), schema, 0), self.since, origin)
            ties = _Ties(self.name, self.since)
            files = self._write(connection, into, self._beyond(cells, *edge), ties, progress)
        value, kind = edge
        state = {"column": self.column, "value": value, "type": kind, "seen": ties.packed()}
        return self._staged(files, state, origin)

    def _staged(self, files: Files, cursor: Mapping[str, Any] | None, origin: Mapping[str, Any]) -> Staged:
        """Equal rows from an equal start are the same delivery, in whatever order they came."""
        content = content_digest(files) if files.uris else ""
        types = [(f.name, str(f.type)) for f in files.schema]
        start = [(self.since or {}).get("value"), (self.since or {}).get("seen"), self.undone]
        batch = digest_json([self.name, start, types, content])
        rows = Files(files.uris, files.schema, files.rows, numbered=True)
        return Staged(self.name, batch, rows, Files((), MALFORMED, 0), cursor, origin)

    def _edge(self, connection: Any, schema: pa.Schema) -> tuple[str, str] | None:
        """The newest value of the cursor and its type, as PostgreSQL writes them; None for no rows."""
        assert self.column is not None
        if self.column not in schema.names:
            raise BadInput(
                f"no column `{self.column}` to read on by", where=self.name,
                wanted=f"one of {', '.join(schema.names[:40])}",
                next=did_you_mean(self.column, schema.names) or "Mend `cursor` in loop.yaml",
            )  # fmt: skip
        cell = _quoted(self.column)
        newest = f"max({cell})"
        if self.since is not None:  # rows may have been deleted since
            newest = (
                f"greatest({newest}, {_text(str(self.since['value']))}::{_type(str(self.since['type']))})"
            )
        sql = (
            f"SELECT ({newest})::text, pg_typeof({newest})::text, count(*) - count({cell})"
            f" FROM ({self.select}\n) AS q"
        )
        value, kind, nulls = _fetch(connection, sql, self.name)[0]
        if nulls:
            raise BadInput(
                "the cursor column holds nulls: such rows would never be read", where=f"{self.name}: {self.column}",
                got=f"{nulls} rows", wanted="a value in every row",
                next="Choose a column that is NOT NULL, or leave such rows out in ?query=",
            )  # fmt: skip
        if value is None:
            return None
        if not _TYPE.fullmatch(kind) or value in ("infinity", "NaN"):
            raise BadInput("the cursor column does not grow", where=f"{self.name}: {self.column}",
                           got=f"{kind} {value}", wanted="a time or a number that grows")  # fmt: skip
        return value, kind

    def _beyond(self, cells: str, value: str, kind: str) -> str:
        cell = _quoted(self.column or "")
        edge = f"{_text(value)}::{kind}{self._back(kind)}"
        old, where = "false", ""
        if self.since is not None:
            start = f"{_text(str(self.since['value']))}::{kind}"
            old = f"{cell} <= {start}"
            where = f" WHERE {cell} >= {start}{self._back(kind)}"
        return (
            f"SELECT {cells}, ({old}) AS {_OLD}, ({cell} >= {edge}) AS {_EDGE}"
            f" FROM ({self.select}\n) AS q{where} ORDER BY {cell}"
        )

    def _back(self, kind: str) -> str:
        seconds = self.lookback.total_seconds()
        if not seconds:
            return ""
        if not kind.startswith(("timestamp", "date")):
            raise BadInput("a lookback is of time", where=f"{self.name}: {self.column}", got=kind,
                           wanted="a cursor column of times", next="Remove `lookback`, or use a time")  # fmt: skip
        return f" - interval '{seconds:.6f} seconds'"

    def _write(self, connection: Any, into: Path, sql: str, ties: "_Ties | None", progress: Told) -> Files:
        cursor = connection.cursor(
            adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
        )
        done = _Rows()
        with _telling(self.name, done):
            cursor.execute(sql)
            reader = cursor.fetch_record_batch()
        schema = _storable(reader.schema.remove(len(reader.schema) - 1).remove(len(reader.schema) - 2)
                           if ties else reader.schema)  # fmt: skip

        def batches() -> Iterator[pa.RecordBatch]:
            read = 0
            while True:
                with _telling(self.name, done):
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                read += batch.nbytes
                batch = _stored(ties.sift(batch, schema.names) if ties else batch, schema)
                done.number += batch.num_rows
                progress(read, None)
                yield batch

        try:
            with disk(into):
                files = write_rows(into / "rows.parquet", schema, batches())
        finally:
            with suppress(Exception):  # a connection that broke cannot be told to close
                cursor.close()
        if not files.rows:
            (into / "rows.parquet").unlink()
            return Files((), schema, 0)
        return files


@dataclass(slots=True)
class _Rows:
    number: int = 0


class _Ties:
    """Which rows at the cursor's newest values are there already, and which will be."""

    def __init__(self, name: str, since: Mapping[str, Any] | None) -> None:
        self._name = name
        self._known = _unpacked(str((since or {}).get("seen", "")))
        self._seen: Counter[int] = Counter()

    def sift(self, batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
        """The rows that were not read before."""
        old, edge = batch.column(_OLD).to_pylist(), batch.column(_EDGE).to_pylist()
        rows = batch.select(names)
        asked = [position for position, pair in enumerate(zip(old, edge, strict=True)) if any(pair)]
        known = set()
        if asked:
            for position, row in zip(asked, rows.take(pa.array(asked)).to_pylist(), strict=True):
                digest = _digest(row)
                if edge[position]:
                    self._seen[digest] += 1
                    if self._seen.total() > MOST_TIES:
                        raise BadInput(
                            "too many rows share the cursor's newest value", where=self._name,
                            got=f"more than {MOST_TIES} rows", wanted="a column that tells rows apart",
                            next="Choose a finer `cursor`, a shorter `lookback`, or load the table whole",
                        )  # fmt: skip
                if old[position] and self._known[digest] > 0:
                    self._known[digest] -= 1
                    known.add(position)
        if not known:
            return rows
        return rows.filter(pa.array([position not in known for position in range(rows.num_rows)]))

    def packed(self) -> str:
        listed = sorted(self._seen.elements())
        return base64.b64encode(zlib.compress(struct.pack(f"<{len(listed)}Q", *listed))).decode()


def _type(kind: str) -> str:
    if not _TYPE.fullmatch(kind):
        raise BadInput("a cursor of an unknown type", got=kind, wanted="a type of PostgreSQL")
    return kind


def _digest(row: Mapping[str, Any]) -> int:
    text = msgspec.json.encode(row, enc_hook=repr)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _unpacked(packed: str) -> Counter[int]:
    if not packed:
        return Counter()
    data = zlib.decompress(base64.b64decode(packed))
    return Counter(struct.unpack(f"<{len(data) // 8}Q", data))


@contextmanager
def _connected(url: str, name: str) -> Iterator[Any]:
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise Unavailable("reading PostgreSQL needs a driver", where=name,
                          next="Install it: pip install 'loopwright[postgres]'") from None  # fmt: skip
    with _telling(name):
        connection = dbapi.connect(url)
    try:
        with _telling(name), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute("SET LOCAL TimeZone = 'UTC'")
            cursor.execute("SET LOCAL DateStyle = 'ISO'")
            cursor.execute("SET LOCAL standard_conforming_strings = on")
        yield connection
    finally:
        with suppress(Exception):  # nothing was written, so nothing can be lost
            connection.close()


def _fetch(connection: Any, sql: str, name: str) -> list[tuple[Any, ...]]:
    with _telling(name), connection.cursor() as cursor:
        cursor.execute(sql)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def _columns(connection: Any, select: str, name: str) -> tuple[pa.Schema, str]:
    """Columns as they will be kept, and the SQL that gives them: what Arrow has no type for comes as text."""
    with _telling(name), connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM ({select}\n) AS q LIMIT 0")
        schema = cursor.fetch_record_batch().schema
    cells = []
    for one in schema:
        kind = (one.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
        cell = _quoted(one.name)
        if _odd(one.type) or kind in _AS_TEXT:
            array = "[]" if pa.types.is_list(one.type) else ""
            cell = f"{cell}::text{array} AS {cell}"
        cells.append(cell)
    return _storable(schema), ", ".join(cells)


def _odd(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _odd(kind.value_type)
    if pa.types.is_struct(kind):
        return True  # a row type: its text is what PostgreSQL shows
    return isinstance(kind, pa.BaseExtensionType) or pa.types.is_interval(kind)


def _storable(schema: pa.Schema) -> pa.Schema:
    fields = []
    for one in schema:
        kind = one.type
        if _odd(kind):
            kind = pa.list_(pa.string()) if pa.types.is_list(kind) else pa.string()
        elif pa.types.is_list(kind):
            kind = pa.list_(kind.value_type)
        fields.append(pa.field(one.name, kind))
    return pa.schema(fields)


def _stored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [column.cast(one.type) for column, one in zip(batch.columns, schema, strict=True)], schema=schema
    )


@contextmanager
def _telling(name: str, done: "_Rows | None" = None) -> Iterator[None]:
    """What the driver raises, in our words and without its connection string."""
    try:
        yield
    except LoopwrightError:
        raise
    except Exception as error:
        from adbc_driver_manager import Error

        if not isinstance(error, (Error, OSError, pa.ArrowException)):
            raise
        raise _said(error, name, f"after {done.number} rows" if done is not None else "") from None


def _said(error: Exception, name: str, so_far: str) -> LoopwrightError:
    state = str(getattr(error, "sqlstate", None) or "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^.*?(ERROR|FATAL):\s*", "", lines[0]) if lines else type(error).__name__
    text = re.sub(r"\s*SQLSTATE: \w+$", "", text)
    if state in ("42P01", "3F000"):
        return NotFound(text, where=name, next="Check the table's name and its schema: ?table=schema.table")
    if state.startswith(("0A", "22", "25", "42")):
        return BadInput(
            f"PostgreSQL refuses the query ({text})", where=name, next="Mend the uri in loop.yaml"
        )
    what = f"PostgreSQL fails while it is read, {so_far}" if so_far else "PostgreSQL does not answer"
    known = "password" in text or "role" in text or "does not exist" in text or "pg_hba" in text
    return Unavailable(
        what, where=name, got=text[:300],
        next="Check user, password and database" if known
        else "Check host and port, or try again: nothing was kept, and it goes on where it stood",
    )  # fmt: skip


def _with_password(parts: Any, values: dict[str, str], name: str) -> str:
    user = parts.netloc
    variable = values.pop("password_env", None)
    if variable is not None:
        password = os.environ.get(variable)
        if password is None:
            raise BadInput("no password", where=name, got=f"the variable {variable} is not set",
                           next=f"Set {variable}")  # fmt: skip
        who, at, host = parts.netloc.rpartition("@")
        if not at or not who:
            raise BadInput("a password without a user", where=name, wanted="postgresql://USER@HOST/…")
        user = f"{quote(unquote(who.split(':')[0]), safe='')}:{quote(password, safe='')}@{host}"
    values.setdefault("connect_timeout", str(CONNECT_SECONDS))
    values.setdefault("application_name", "loopwright")
    return f"postgresql://{user}{parts.path}?{urlencode(values, quote_via=quote)}"


def _folded(identifier: str) -> str:
    """A name as PostgreSQL reads it: small letters unless in quotes."""
    return identifier if identifier.startswith('"') else _quoted(identifier.lower())
