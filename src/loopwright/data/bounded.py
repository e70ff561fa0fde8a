"""DuckDB in bounded memory: what does not fit goes to a folder that is gone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from loopwright.data.duck import connect
from loopwright.data.sql import text as _text
from loopwright.data.workspace import workspace
from loopwright.kernel.errors import Unavailable

MEMORY = "150MB"
"""What one pass over a table may hold; the process around it takes about 150 MB more."""

MOST_THREADS = 4


@contextmanager
def bounded(memory: str = MEMORY, *, spill: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine that spills below `spill` (default: the machine's folder for temporary files) and keeps no order.

    Raises Unavailable when the disk is full or memory does not suffice in spite of it.
    """
    with workspace(spill) as folder, connect() as engine:
        engine.execute(f"SET memory_limit = {_text(memory)}")
        engine.execute(f"SET temp_directory = {_text(str(folder))}")
        engine.execute("SET preserve_insertion_order = false")
        # Each thread takes buffers of its own; on a large machine they alone would be beyond the limit.
        threads = engine.sql("SELECT current_setting('threads')").fetchall()[0][0]
        engine.execute(f"SET threads = {min(int(threads), MOST_THREADS)}")
        try:
            yield engine
        except (duckdb.OutOfMemoryException, OSError) as error:
            # While rows are fetched as Arrow the same error has another class.
            if isinstance(error, OSError) and "Out of Memory" not in str(error):
                raise
            raise Unavailable(
                "too little memory, or no room to spill to", where=str(folder), got=str(error).split("\n")[0],
                wanted=f"{memory} and free space on the disk", next="Free some space, or set TMPDIR",
            ) from error  # fmt: skip
