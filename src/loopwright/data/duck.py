"""One way to open DuckDB: in memory, UTC, silent, offline."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from loopwright.data.sql import text as _text
from loopwright.kernel.errors import BadInput

MEMORY = "256MB"
LEAST = 64 * 10**6
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def connect(*, memory_limit: str | None = None, spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open a fresh in-memory database that prints no progress bar and fetches no extensions.

    With a `memory_limit` ("256MB") what does not fit goes to files in the folder `spill`; threads are as many as that
    much memory feeds. The engine is told three quarters of it: what it does not count (buffers of readers, freed
    pages it keeps) takes the rest.
    """
    engine = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    engine.execute("SET TimeZone = 'UTC'")
    # It would draw over the caller's own progress display, even into a pipe.
    engine.execute("SET enable_progress_bar = false")
    if memory_limit is not None:
        limit = memory_bytes(memory_limit)
        engine.execute(f"SET memory_limit = '{limit * 3 // 4}B'")
        engine.execute(f"SET threads = {max(1, min(os.cpu_count() or 1, limit // LEAST))}")
    if spill is not None:
        engine.execute(f"SET temp_directory = {_text(str(spill))}")
    return engine


def lock(engine: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    """From here on the engine opens no file but `paths` and reaches no network; nothing can unlock it."""
    listed = ", ".join(_text(path) for path in paths)
    engine.execute("SET python_enable_replacements = false")
    engine.execute(f"SET allowed_paths = [{listed}]")
    engine.execute("SET enable_external_access = false")
    engine.execute("SET lock_configuration = true")


def memory_bytes(limit: str) -> int:
    """ "400MB" as bytes. Raises BadInput for what is no size, and for one too small to work in."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", limit, re.IGNORECASE)
    bytes_ = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if bytes_ < LEAST:
        raise BadInput(
            "not a memory limit", where="memory", got=limit, wanted="at least 64MB, e.g. 256MB or 2GB"
        )
    return bytes_
