"""Online features in one SQLite file: a table of packed rows per generation, read without a lock (WAL).

Every thread has its own connection: read-only ones for readers, made again when the file is another. Rows may be lost
with the power, never half of them: what was lost is written again, because position and head lie with the rows.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from loopwright.features.online import Answer, Ask, Head
from loopwright.kernel.errors import Conflict, Unavailable

BUSY_SECONDS = 30.0
MMAP_BYTES = 1 << 30
CHECKPOINT_PAGES = 8_192
"""64 MB of new rows between two syncs of the file; what is not synced yet is read from the log beside it."""
_CHUNKS = (1, 2, 4, 8, 16, 25, 32, 50, 64, 100, 128, 200, 256, 500)
"""Sizes of IN lists: a few statements, prepared once each, serve every number of keys."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS heads (
    model TEXT NOT NULL, view TEXT NOT NULL, change INTEGER NOT NULL, generation INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (model, view)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS builds (
    model TEXT NOT NULL, view TEXT NOT NULL, token INTEGER NOT NULL, build TEXT NOT NULL,
    generation INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (model, view)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generations (
    generation INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, view TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS tokens (token INTEGER PRIMARY KEY AUTOINCREMENT);
"""

_decode_head = msgspec.msgpack.Decoder(Head).decode


class SqliteStore:
    """An `OnlineStore` in the file at `path`; the folder must exist. Threads share nothing but the file."""

    def __init__(self, path: Path, *, seconds: float | None = None) -> None:
        self.path = path
        self._seconds = BUSY_SECONDS if seconds is None else seconds
        self.url = f"sqlite:///{path}"
        self._mine = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._file: tuple[int, int] | None = None
        """Which file the path named when it was last looked at; connections to another one are made again."""
        self._heads: dict[tuple[str, str], Head] = {}

    def heads(self, model: str) -> dict[str, Head]:
        with self._explained():
            self._look()
            reader = self._reader()
            if reader is None:
                return {}
            rows = reader.execute(
                "SELECT view, body FROM heads WHERE model = ? ORDER BY view", (model,)
            ).fetchall()
        return {view: _decode_head(body) for view, body in rows}

    def fetch(self, model: str, asks: Sequence[Ask]) -> list[Answer]:
        try:
            reader: sqlite3.Connection | None = getattr(self._mine, "reader", None)
            if reader is None or self._mine.file != self._file:
                reader = self._reader()
            if reader is None:
                return [(None, ()) for _ in asks]
            if len(asks) == 1:
                view, keys = asks[0]
                known = self._heads.get((model, view))
                if known is not None and len(keys) == 1:
                    # One statement is one moment: the row belongs to the head whose change it is told with.
                    try:
                        change, row = reader.execute(
                            f"SELECT (SELECT change FROM heads WHERE model = ? AND view = ?), "
                            f"(SELECT row FROM g{known.generation} WHERE key = ?)",
                            (model, view, keys[0]),
                        ).fetchone()
                    except sqlite3.OperationalError as error:
                        if "no such table" not in str(error):
                            raise
                    else:
                        if change == known.change:
                            return [(known, (row,))]
            return self._fetch(reader, model, asks)
        except sqlite3.Error as error:
            raise _unavailable(self.path, error) from error

    def begin(self, model: str, view: str, build: str, *, onto: int | None = None) -> "SqliteWriting":
        with self._writing() as writer:
            token = writer.execute("INSERT INTO tokens DEFAULT VALUES").lastrowid
            writer.execute("DELETE FROM tokens WHERE token < ?", (token,))
            standing = writer.execute(
                "SELECT build, generation, position FROM builds WHERE model = ? AND view = ?", (model, view)
            ).fetchone()
            if standing is not None and standing[0] == build:
                generation, position = standing[1], standing[2]
            else:
                generation, position = onto, 0
                if generation is None:
                    made = writer.execute(
                        "INSERT INTO generations (model, view) VALUES (?, ?)", (model, view)
                    )
                    generation = made.lastrowid
                    writer.execute(
                        f"CREATE TABLE g{generation} (key BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID"
                    )
            writer.execute(
                "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?, ?, ?)",
                (model, view, token, build, generation, position),
            )
            _clear(writer, model, view, keep=generation)
        assert token is not None and generation is not None
        return SqliteWriting(self, model, view, token, generation, position)

    def close(self) -> None:
        while self._open:
            with suppress(sqlite3.Error):  # a connection of a thread that has ended closes with it
                self._open.pop().close()
        self._mine = threading.local()

    def _fetch(self, reader: sqlite3.Connection, model: str, asks: Sequence[Ask]) -> list[Answer]:
        reader.execute("BEGIN")
        try:
            return [self._fetch_one(reader, model, view, keys) for view, keys in asks]
        finally:
            reader.execute("COMMIT")

    def _fetch_one(self, reader: sqlite3.Connection, model: str, view: str, keys: Sequence[bytes]) -> Answer:
        found = reader.execute(
            "SELECT change FROM heads WHERE model = ? AND view = ?", (model, view)
        ).fetchone()
        if found is None:
            return None, ()
        head = self._heads.get((model, view))
        if head is None or head.change != found[0]:
            body = reader.execute(
                "SELECT body FROM heads WHERE model = ? AND view = ?", (model, view)
            ).fetchone()[0]
            head = self._heads[model, view] = _decode_head(body)
        rows: dict[bytes, bytes] = {}
        start = 0
        while start < len(keys):
            left = len(keys) - start
            size = next((n for n in _CHUNKS if n >= left), _CHUNKS[-1])
            part = [*keys[start : start + size], *(None,) * (size - left)]
            marks = ",".join("?" * size)
            rows.update(
                reader.execute(
                    f"SELECT key, row FROM g{head.generation} WHERE key IN ({marks})", part
                ).fetchall()
            )
            start += size
        return head, [rows.get(key) for key in keys]

    def _reader(self) -> sqlite3.Connection | None:
        """This thread's read-only connection; None while there is no file."""
        found: sqlite3.Connection | None = getattr(self._mine, "reader", None)
        if found is not None and self._mine.file != self._file:
            del self._mine.reader
            found.close()
            found = None
        if found is None:
            self._look()
            if self._file is None:
                return None
            found = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=self._seconds, isolation_level=None,
                check_same_thread=False, cached_statements=256,
            )  # fmt: skip
            found.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            if not found.execute("SELECT 1 FROM sqlite_master WHERE name = 'heads'").fetchall():
                found.close()
                return None
            self._mine.reader, self._mine.file = found, self._file
            self._open.append(found)
        return found

    def _look(self) -> None:
        """See whether the path names another file now: one that was damaged is deleted and made anew."""
        try:
            stat = self.path.stat()
            file: tuple[int, int] | None = (stat.st_dev, stat.st_ino)
        except FileNotFoundError:
            file = None
        if file != self._file:
            self._file = file
            self._heads.clear()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """This thread's writing connection in a transaction that is committed when the block ends well."""
        with self._explained():
            writer: sqlite3.Connection | None = getattr(self._mine, "writer", None)
            if writer is None:
                writer = self._open_writer()
                self._mine.writer = writer
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def _open_writer(self) -> sqlite3.Connection:
        until = time.monotonic() + self._seconds
        while True:
            try:
                return self._try_to_open_writer()
            except sqlite3.OperationalError as error:
                # SQLite waits for nobody who turns a new file to WAL at the same moment.
                if "locked" not in str(error) or time.monotonic() >= until:
                    raise
            time.sleep(0.02)

    def _try_to_open_writer(self) -> sqlite3.Connection:
        new = not self.path.exists()
        writer = sqlite3.connect(
            self.path, timeout=self._seconds, isolation_level=None, check_same_thread=False
        )
        try:
            if new:
                self.path.chmod(0o600)
            writer.execute("PRAGMA page_size = 8192")  # of a file in which nothing is yet
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("PRAGMA synchronous = NORMAL")
            writer.execute("PRAGMA cache_size = -65536")
            writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            for statement in _SCHEMA.split(";"):
                writer.execute(statement)
        except BaseException:
            writer.close()
            raise
        self._open.append(writer)
        return writer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _unavailable(self.path, error) from error


class SqliteWriting:
    """A `Writing` in SQLite."""

    def __init__(
        self, store: SqliteStore, model: str, view: str, token: int, generation: int, position: int
    ) -> None:
        self.generation, self.position = generation, position
        self._store, self._model, self._view, self._token = store, model, view, token

    def put(self, rows: Sequence[tuple[bytes, bytes]], gone: Sequence[bytes], position: int) -> None:
        with self._store._writing() as writer:
            self._held(writer)
            writer.executemany(f"INSERT OR REPLACE INTO g{self.generation} VALUES (?, ?)", rows)
            if gone:
                writer.executemany(f"DELETE FROM g{self.generation} WHERE key = ?", [(key,) for key in gone])
            writer.execute(
                "UPDATE builds SET position = ? WHERE model = ? AND view = ?",
                (position, self._model, self._view),
            )
        self.position = position

    def publish(self, head: Head) -> None:
        with self._store._writing() as writer:
            self._held(writer)
            rows = writer.execute(f"SELECT count(*) FROM g{self.generation}").fetchone()[0]
            whole = msgspec.structs.replace(head, generation=self.generation, change=self._token, rows=rows)
            writer.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
                (self._model, self._view, whole.change, self.generation, msgspec.msgpack.encode(whole)),
            )
            writer.execute("DELETE FROM builds WHERE model = ? AND view = ?", (self._model, self._view))
        with self._store._writing() as writer:
            _clear(writer, self._model, self._view)

    def _held(self, writer: sqlite3.Connection) -> None:
        found = writer.execute(
            "SELECT token FROM builds WHERE model = ? AND view = ?", (self._model, self._view)
        ).fetchone()
        if found is None or found[0] != self._token:
            raise Conflict(
                "another materialisation has taken over", where=f"{self._store.url}: {self._model}/{self._view}",
                next="Let that one finish; this one changed nothing since.",
            )  # fmt: skip


def _clear(writer: sqlite3.Connection, model: str, view: str, keep: int | None = None) -> None:
    """Drop the generations of a view that neither stand nor are being built."""
    rows = writer.execute(
        "SELECT generation FROM generations WHERE model = ?1 AND view = ?2 AND generation NOT IN "
        "(SELECT generation FROM heads WHERE model = ?1 AND view = ?2 "
        "UNION ALL SELECT generation FROM builds WHERE model = ?1 AND view = ?2)",
        (model, view),
    ).fetchall()
    for (generation,) in rows:
        if generation != keep:
            writer.execute(f"DROP TABLE IF EXISTS g{generation}")
            writer.execute("DELETE FROM generations WHERE generation = ?", (generation,))


def _unavailable(path: Path, error: sqlite3.Error) -> Unavailable:
    said = str(error)
    remedies = {
        "full": "Free some space; what readers see is whole.",
        "i/o": "The disk is full or failing; what readers see is whole.",
        "readonly": "Make the file writable for this user.",
        "unable to open": "Check that the folder exists and may be read and written.",
        "not a database": "The file is damaged or something else: delete it and materialise again.",
        "malformed": "The file is damaged: delete it and materialise again.",
        "locked": "Another process has held the write lock for 30 s.",
    }
    next_ = next((text for sign, text in remedies.items() if sign in said.lower()), "Check the file.")
    return Unavailable(f"the online store does not answer ({said})", where=str(path), next=next_)
