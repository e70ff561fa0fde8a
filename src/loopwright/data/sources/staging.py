"""Batches into Parquet files of a folder, in bounded memory."""

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data.files import Files
from loopwright.data.sources.reading import Malformed
from loopwright.data.staged import MALFORMED
from loopwright.kernel.errors import Unavailable

GROUP_ROWS = 128 * 1024
GROUP_BYTES = 12 << 20


class Writer:
    """Writes batches of one schema to `path`, a row group at a time, beside whoever makes the batches."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.rows = 0
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0
        self._file = pa_parquet.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="staging")
        self._writing: Future[None] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Take a batch; raises what writing an earlier one raised."""
        if batch.num_rows == 0:
            return
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is held and the footer."""
        try:
            self._flush()
            self._wait()
        finally:
            self._beside.shutdown()
            self._file.close()

    def abandon(self) -> None:
        """Stop without a footer that anyone would believe; the file is removed."""
        self._held = []
        self._beside.shutdown()
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._wait()
        if self._held:
            rows = pa.Table.from_batches(self._held, self.schema)
            self._held, self._held_rows, self._held_bytes = [], 0, 0
            self.rows += rows.num_rows
            self._writing = self._beside.submit(self._file.write_table, rows, row_group_size=GROUP_ROWS)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Say that the disk is the matter where it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error, Unavailable) or error.errno is None:
            raise
        raise Unavailable(
            f"cannot stage rows ({error.strerror or error})",
            where=str(folder),
            next="Make room, or name another home: --home DIR",
        ) from error


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Files:
    """All batches in one file; nothing is left of it when they raise."""
    writer = Writer(path, schema)
    try:
        for batch in batches:
            writer.write(batch)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return Files((str(path),), schema, writer.rows)


def link(path: Path, into: Path) -> str:
    """A file's bytes in the folder `into`, without a second copy where both lie on one disk."""
    target = into / f"source-{len(list(into.glob('source-*.parquet')))}.parquet"
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, target)
    return str(target)


class MalformedLines:
    """Lines that are no rows, in a file; what is held in memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[Malformed] = []
        self._writer: Any = None
        self.rows = 0

    def add(self, line: Malformed) -> None:
        self._held.append(line)
        self.rows += 1
        if len(self._held) >= 4096:
            self._flush()

    def close(self) -> Files:
        """The lines; no file is made for none."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        return Files((str(self._path),) if self.rows else (), MALFORMED, self.rows)

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._writer = pa_parquet.ParquetWriter(self._path, MALFORMED, compression="zstd")
        lines = [dict(line=m.line, text=m.text, why=m.why) for m in self._held]
        self._held = []
        self._writer.write_table(pa.Table.from_pylist(lines, MALFORMED))
