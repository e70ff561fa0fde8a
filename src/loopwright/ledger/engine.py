"""Opens the ledger's database: SQLite by default, PostgreSQL by URL; one writer at a time on both.

Unsynchronised check-then-write code is correct because of that: SQLite takes its write lock when a write
transaction begins, PostgreSQL takes one advisory lock (docs/decisions/0002-one-writer.md).
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.files import lock
from loopwright.ledger.schema import REVISION

VERSION_TABLE = "loopwright_version"
# Any number will do as long as every process uses the same one: the eight letters of "loopwrit".
WRITER_LOCK = int.from_bytes(b"loopwrit", "big", signed=True)
BUSY_TIMEOUT_MS = 30_000

Begin = Literal["deferred", "immediate"]


def make_engine(url: str, *, begin: Begin = "deferred") -> Engine:
    """Return an engine for a `sqlite:///` or `postgresql://` URL; connects to nothing yet.

    SQLite: WAL, foreign keys on, 30 s busy timeout, fsync at every commit, real transactions also around DDL.
    With `begin="immediate"` every SQLite transaction takes the write lock at its start, so that a
    read-then-write transaction waits for its turn and never fails with "database is locked" half-way.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgresql(parsed)
    in_memory = parsed.database in (None, "", ":memory:")
    engine = create_engine(parsed, **({"poolclass": StaticPool} if in_memory else {}))

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # Without this, pysqlite begins and commits by itself: no DDL in transactions, no BEGIN IMMEDIATE.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        how = connection.get_execution_options().get("sqlite_begin", begin)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if how == "immediate" else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    patience = {"connect_timeout": 10, "options": f"-c lock_timeout={BUSY_TIMEOUT_MS}"}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=patience)
    except ModuleNotFoundError:
        raise Unavailable(
            "the driver for PostgreSQL is not installed",
            next="Install it: pip install 'loopwright[postgres]'",
        ) from None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The database and how to enter it. Safe to share between threads; not across a fork."""

    url: str
    engine: Engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Return the ledger at `url`. Connects on first use and migrates nothing."""
        return cls(url, make_engine(url))

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Enter a transaction as the only writer: commits at the end, rolls back on any error.

        Raises Unavailable when the database does not answer, is full, or is read-only, and RuntimeError inside
        another `write` of the same thread, which could only wait for itself.
        """
        with _alone(self.url), _explained(self.url), self.engine.connect() as plain:
            connection = plain.execution_options(sqlite_begin="immediate")
            with connection.begin():
                become_writer(connection)
                yield connection

    @contextmanager
    def beside(self) -> Iterator[Connection]:
        """Enter a transaction that writes beside the one writer: for queues, whose rows are locked one by one.

        Whoever changes a row locks it first (FOR UPDATE, SKIP LOCKED where any row will do), and neither appends to the
        audit log nor enters `write` before the end. On SQLite, which has one writer only, it is `write`.
        """
        if self.engine.dialect.name == "sqlite":
            with self.write() as connection:
                yield connection
            return
        with _explained(self.url), self.engine.connect() as plain, plain.begin():
            yield plain

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Enter a transaction that changes nothing; all its reads see one moment."""
        with _explained(self.url), self.engine.connect() as plain:
            # PostgreSQL's default shows each statement another moment: an audit log would seem to end after its end.
            level = {"isolation_level": "REPEATABLE READ"} if plain.dialect.name == "postgresql" else {}
            connection = plain.execution_options(**level)
            yield connection
            connection.rollback()

    def migrate(self) -> None:
        """Bring our tables to this release's schema; is idempotent, and safe for several processes at once.

        Raises Unavailable when the database was written by a newer release.
        """
        with _explained(self.url), self._migration_lock():
            with self.engine.connect() as connection:
                standing = self._standing(connection)
            if standing == REVISION:
                return
            # Alembic costs a quarter second to import; most starts find nothing to do.
            from loopwright.ledger.migrations.upgrade import upgrade

            with self.write() as connection:
                upgrade(connection, VERSION_TABLE, standing)

    def dispose(self) -> None:
        """Close idle connections."""
        self.engine.dispose()

    def _migration_lock(self) -> AbstractContextManager[None]:
        database = self.engine.url.database
        if self.engine.dialect.name != "sqlite" or database in (None, "", ":memory:"):
            return nullcontext()
        path = Path(str(database))
        return lock(path.with_name(f".{path.name}.migration"))

    @staticmethod
    def _standing(connection: Connection) -> str | None:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        standing = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        return None if standing is None else str(standing)


def become_writer(connection: Connection) -> None:
    """Make the open transaction the only writer until it ends; SQLite's BEGIN IMMEDIATE has done so."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise BadInput("not a database URL", got=_without_password(url), wanted=_WANTED) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return parsed
    if backend not in ("postgresql", "postgres"):
        raise BadInput("a database the ledger cannot live in", got=backend, wanted=_WANTED)
    return parsed.set(drivername="postgresql+psycopg")


_WANTED = "sqlite:////path/ledger.db or postgresql://user@host/database"


def _without_password(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}…{rest.rpartition('@')[2]}" if "@" in rest else url


_entered = threading.local()


@contextmanager
def _alone(url: str) -> Iterator[None]:
    inside: set[str] = _entered.__dict__.setdefault("urls", set())
    if url in inside:
        raise RuntimeError("this thread is writing to the ledger already: pass that connection on")
    inside.add(url)
    try:
        yield
    finally:
        inside.discard(url)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the driver's failures into one sentence about what to do."""
    try:
        yield
    except DatabaseError as error:
        said = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        remedy = _remedy(said)
        if not remedy and not isinstance(error, OperationalError):
            raise
        raise Unavailable(
            f"the ledger does not answer ({said})",
            where=_without_password(url),
            next=remedy or "Check that the database runs and that the URL is right.",
        ) from error


def _remedy(said: str) -> str:
    remedies: dict[str, str] = {
        "disk is full": "Free some space; nothing was half-written.",
        "disk i/o error": "The disk is full or failing: free some space; nothing was half-written.",
        "readonly database": "Make the home writable for this user; nothing was half-written.",
        "unable to open": "Check that the folder exists and is writable.",
        "not a database": "The file is damaged or is something else; restore it from a backup.",
        "malformed": "The file is damaged; restore it from a backup.",
        "no such table": "The ledger is not migrated; any command on the home does that: loopwright status.",
        "database is locked": "Another process has held the write lock for 30 s; see: loopwright doctor.",
        "lock timeout": "Another process has held the write lock for 30 s; see: loopwright doctor.",
    }
    lowered = said.lower()
    return next((remedy for sign, remedy in remedies.items() if sign in lowered), "")
