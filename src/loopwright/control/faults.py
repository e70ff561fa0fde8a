"""Names the faults of machines (disk full, read-only, port taken, database gone) in a person's words.

Imports only the standard library: the command line uses it before anything else is loaded.
"""

import errno
import sqlite3

from loopwright.kernel.errors import Conflict, LoopwrightError, Unavailable

_DISK = {
    errno.ENOSPC: ("the disk is full", "Free some space and try again; nothing was half-written."),
    errno.EFBIG: ("a file may not grow any more", "Raise the limit (ulimit -f); nothing was half-written."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and try again; nothing was half-written."),
    errno.EROFS: ("the disk is read-only", "Name a writable folder: --home DIR or LOOPWRIGHT_HOME."),
    errno.EACCES: ("permission denied", "Name a folder you may write to: --home DIR or LOOPWRIGHT_HOME."),
}
_DATABASE = {
    "database or disk is full": _DISK[errno.ENOSPC],
    "readonly database": ("the ledger is read-only", "Make the home writable, or name another with --home."),
    "unable to open database file": (
        "the ledger cannot be opened",
        "Does the home exist, and may you write it?",
    ),
    "database is locked": ("the ledger is busy", "Another process holds it for long; try again in a moment."),
    "disk i/o error": ("the disk answers with errors", "Check free space and the disk's health."),
    "malformed": ("the ledger's file is damaged", "Restore it from a backup."),
    "file is not a database": ("the ledger's file is not a database", "Restore it from a backup."),
    "connection refused": ("the ledger's database does not answer", "Is PostgreSQL up, and the URL right?"),
    "could not connect": ("the ledger's database does not answer", "Is PostgreSQL up, and the URL right?"),
    "connection failed": ("the ledger's database does not answer", "Is PostgreSQL up, and the URL right?"),
}


def explain(error: BaseException) -> LoopwrightError | None:
    """Return the error in our words, or None when it is not a known fault of the machine."""
    if isinstance(error, LoopwrightError):
        return error
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            return Conflict(
                "the port is in use", got=str(error), next="Name another with --port, or stop what holds it."
            )
        if error.errno in _DISK:
            what, then = _DISK[error.errno]
            return Unavailable(what, where=str(error.filename or ""), next=then)
        return None
    if isinstance(error, sqlite3.Error) or type(error).__module__.startswith(("sqlalchemy", "psycopg")):
        return _of_database(error)
    cause = error.__cause__ or error.__context__
    return explain(cause) if isinstance(cause, OSError | sqlite3.Error) else None


def _of_database(error: BaseException) -> LoopwrightError | None:
    # The driver's own words; SQLAlchemy's text would carry the statement and its parameters too.
    words = str(getattr(error, "orig", None) or error)
    for mark, (what, then) in _DATABASE.items():
        if mark in words.lower():
            return Unavailable(what, got=words, next=then)
    return None
