"""Sessions for MLflow's stores that share one transaction with our acts, on engines set up like the ledger's.

MLflow opens a session per call and begins reading before it writes; on SQLite two such transactions lock each other
out. Here every writing session takes the write lock at its start, and a writing session opened inside another joins
it. A reading session stays apart: MLflow reads in a fresh one to explain why a flush failed.
"""

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlModelVersionTag,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
    SqlRegisteredModelTag,
    SqlWebhook,
    SqlWebhookEvent,
)
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from loopwright.kernel.errors import LoopwrightError
from loopwright.ledger.engine import make_engine

GOVERNED = (
    SqlRegisteredModel, SqlRegisteredModelTag, SqlRegisteredModelAlias, SqlModelVersion, SqlModelVersionTag,
    SqlWebhook, SqlWebhookEvent,
)  # fmt: skip
"""Rows that may be written only inside an act of the governed registry."""

_WRITES = re.compile(
    rf"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|REPLACE\s+INTO)\s+(?:ONLY\s+)?(?:\w+\.)?[\"`]?"
    rf"(?:{'|'.join(row.__tablename__ for row in GOVERNED)})\b",
    re.IGNORECASE,
)

_act: ContextVar[str | None] = ContextVar("loopwright_registry_act", default=None)

_engines: dict[str, Engine] = {}
_engines_lock = threading.Lock()


def shared_engine(url: str) -> Engine:
    """Return this process's one engine for `url`, with the functions MLflow's queries expect."""
    with _engines_lock:
        if url not in _engines:
            _engines[url] = make_engine(url)
            event.listen(_engines[url], "before_cursor_execute", _deny_by_default)
            if _engines[url].dialect.name == "sqlite":
                event.listen(_engines[url], "connect", _add_functions)
        return _engines[url]


@contextmanager
def announced(action: str) -> Iterator[None]:
    """Inside, this thread may write the registry's rows."""
    token = _act.set(action)
    try:
        yield
    finally:
        _act.reset(token)


class UnitOfWork:
    """What MLflow calls `ManagedSessionMaker`: a context manager factory, `with maker(read_only=False) as session`."""

    _writing: ContextVar["tuple[Engine, Session] | None"] = ContextVar(
        "loopwright_mlflow_session", default=None
    )

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._write_engine = engine.execution_options(sqlite_begin="immediate")

    @contextmanager
    def __call__(self, read_only: bool = True) -> Iterator[Session]:
        """Commit at the end, roll back on any error. A writing session inside another one of this thread joins it."""
        outer = self._writing.get()
        if not read_only and outer is not None and outer[0] is self.engine:
            yield outer[1]
            outer[1].flush()
            return
        with Session(self.engine if read_only else self._write_engine) as session:
            token = None if read_only else self._writing.set((self.engine, session))
            try:
                yield session
                session.commit()
            except (MlflowException, LoopwrightError):
                session.rollback()
                raise
            except OperationalError as error:
                session.rollback()
                # A client tries again after the first of the two, for minutes; after the second it never helps.
                code = BAD_REQUEST if _too_much(error) else TEMPORARILY_UNAVAILABLE
                raise MlflowException(message=str(error)[:2000], error_code=code) from error
            except SQLAlchemyError as error:
                session.rollback()
                raise MlflowException(message=str(error)[:2000], error_code=BAD_REQUEST) from error
            except (OverflowError, ValueError, RecursionError) as error:
                # What no column can hold: numbers beyond 64 bits, half of a surrogate pair, NUL.
                session.rollback()
                raise MlflowException(
                    f"a value cannot be stored: {error}", INVALID_PARAMETER_VALUE
                ) from error
            except Exception as error:
                session.rollback()
                raise MlflowException(message=str(error), error_code=INTERNAL_ERROR) from error
            finally:
                if token is not None:
                    self._writing.reset(token)


def _deny_by_default(
    conn: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
) -> None:
    """Refuse any write to the registry's rows that no act of ours announced: MLflow may grow new mutators.

    Looks at the text that goes to the database, so that it makes no difference how the write was made.
    """
    if _act.get() is None and _WRITES.search(statement):
        raise _ungoverned()


def _too_much(error: OperationalError) -> bool:
    """Whether the database refused the statement for its size or for a pattern in it, not for its own state."""
    # SQLSTATE class 54: program limit exceeded.
    if (getattr(error.orig, "sqlstate", None) or "").startswith("54"):
        return True
    said = str(error.orig).lower()
    signs = ("too many", "too large", "too big", "parser stack overflow", "user-defined function raised")
    return any(sign in said for sign in signs)


def _ungoverned() -> MlflowException:
    return MlflowException(
        "This call changes the model registry in a way Loopwright does not govern; it was refused.",
        PERMISSION_DENIED,
    )


def _add_functions(connection: sqlite3.Connection, _record: object) -> None:
    """Give SQLite what MLflow's own engine gives it: REGEXP, percentile, case-sensitive LIKE."""
    connection.create_function("regexp", 2, _regexp)
    connection.create_aggregate("percentile", 2, _Percentile)  # type: ignore[arg-type]
    connection.execute("PRAGMA case_sensitive_like = true")


def _regexp(pattern: str | None, text: str | None) -> bool:
    """Whether a client's pattern stands in `text`; by RE2, which takes time by the text's length and no more.

    Python's own engine would hold the whole process for as long as `(a+)+$` asks for.
    """
    if pattern is None or text is None:
        return False
    import pyarrow as pa  # where nobody asks with a pattern, nothing of it is loaded
    import pyarrow.compute as pc

    return bool(pc.match_substring_regex(pa.scalar(text), pattern).as_py())


class _Percentile:
    """PERCENTILE_CONT: linear between the two nearest values."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.share = 0.0

    def step(self, value: float | None, share: float | None) -> None:
        if value is not None:
            self.values.append(float(value))
        if share is not None:
            self.share = float(share)

    def finalize(self) -> float | None:
        if not self.values:
            return None
        ordered = sorted(self.values)
        place = self.share / 100.0 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])
