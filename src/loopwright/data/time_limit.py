"""An end to queries that a contract brings: the engine is interrupted when their time is over."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

SECONDS = 60.0
ROWS_A_SECOND = 20_000
_AGAIN = 0.2


class Overdue(duckdb.Error):
    """What a contract asks took longer than it may; the message says how long that is."""


def seconds_for(rows: int) -> float:
    """What the SQL of a contract may take on a batch of `rows`: a minute, and 50 µs for each row."""
    return SECONDS + rows / ROWS_A_SECOND


@contextmanager
def within(engine: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what `engine` does in the block after `seconds`; raises Overdue then. It can be asked on afterwards."""
    over, interrupted = threading.Event(), threading.Event()

    def watch() -> None:
        wait = seconds
        # Again and again: between two queries there is nothing to interrupt.
        while not over.wait(wait):
            interrupted.set()
            engine.interrupt()
            wait = _AGAIN

    watching = threading.Thread(target=watch, name="time limit", daemon=True)
    watching.start()
    try:
        yield
    except duckdb.InterruptException:
        if not interrupted.is_set():
            raise
        raise Overdue(f"took longer than {seconds:.0f} s; ask for less, or join on keys") from None
    finally:
        over.set()
        watching.join()
