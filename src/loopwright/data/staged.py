"""A source's rows on this machine: read once, in bounded memory, and kept as Parquet until they have landed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from loopwright.data.files import Files

MALFORMED = pa.schema([("line", pa.int64()), ("text", pa.string()), ("why", pa.string())])
"""A line that is no row: its number in the file where known, its text (cut at 1,000 characters), what is wrong."""


@dataclass(frozen=True, slots=True)
class Staged:
    """`rows`: as they came, numbered. `malformed`: of schema MALFORMED.

    `uri`: without credentials. `batch_id`: SHA-256 that names this delivery; the same bytes (or the same rows of a
    query) have the same. `cursor`: how far an incremental source is read once these rows have landed; None for
    others. `origin`: what else lineage should know, e.g. {"dvc_rev": "…"}.
    """

    uri: str
    batch_id: str
    rows: Files
    malformed: Files
    cursor: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_rows(self) -> int:
        """Rows and malformed lines together."""
        return (self.rows.rows or 0) + (self.malformed.rows or 0)
