"""One way to open DuckDB: in memory, UTC, silent, offline."""

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """Open a fresh in-memory database that prints no progress bar and fetches no extensions."""
    engine = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    engine.execute("SET TimeZone = 'UTC'")
    # It would draw over the caller's own progress display, even into a pipe.
    engine.execute("SET enable_progress_bar = false")
    return engine
