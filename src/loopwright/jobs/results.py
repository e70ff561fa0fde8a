"""What a job gives: Parquet files of answers below one folder or prefix, named by row and fence; a manifest at the end.

    <output>/<job>/part-000000000000-1.parquet    rows from 0 on, by the worker that was given fence 1
    <output>/<job>/manifest.json                  which parts are the result; written when the job has succeeded

A part counts once the ledger names it. A worker that lost the job leaves at most a file that nobody names: a later
one has another fence, so it is never written over, and it is deleted at the end.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from loopwright.bundle.signature import Schema
from loopwright.data.files import Files
from loopwright.data.storage import Storage
from loopwright.jobs.store import Part
from loopwright.kernel.errors import LoopwrightError, Unavailable
from loopwright.kernel.files import write_atomic

MANIFEST = "manifest.json"
_OWN = ("row", "id", "version", "error")


def result_schema(schema: Schema) -> pa.Schema:
    """row (from 1, as in the input), id, version, one column per output (output_… where the name is taken), error."""
    return pa.schema([
        ("row", pa.int64()),
        ("id", pa.string()),
        ("version", pa.int32()),
        *((f"output_{name}" if name in _OWN else name, pa.float64()) for name in schema.outputs),
        ("error", pa.string()),
    ])  # fmt: skip


def result_table(
    schema: Schema, first: int, ids: Sequence[str], version: int, outputs: NDArray[np.float64],
    errors: Mapping[int, str],
) -> pa.Table:  # fmt: skip
    """Answers of consecutive rows from `first` (counted from 0) on; `errors` by position, whose outputs are null."""
    n = len(ids)
    absent = np.zeros(n, dtype=bool)
    absent[list(errors)] = True
    kinds = result_schema(schema)
    columns = [
        pa.array(np.arange(first + 1, first + n + 1)),
        pa.array(ids, pa.string()),
        pa.array(np.full(n, version, dtype=np.int32)),
        *(pa.array(outputs[:, place], pa.float64(), mask=absent) for place in range(outputs.shape[1])),
        pa.array([errors.get(position) for position in range(n)], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=kinds)


class Results:
    """One job's place: a folder or s3:// prefix of its own below `base`."""

    def __init__(self, base: str, job: str) -> None:
        self._storage = Storage.at(base)
        self._job = job
        self.uri = self._storage.path(job)

    def write(self, first: int, fence: int, rows: pa.Table) -> str:
        """Write a part, whole or not at all, and return its URI. Raises Unavailable."""
        buffer = pa.BufferOutputStream()
        pa_parquet.write_table(rows, buffer, compression="zstd")
        uri = f"{self.uri}/part-{first:012d}-{fence}.parquet"
        self._put(uri, buffer.getvalue().to_pybytes())
        return uri

    def finish(self, model: str, version: int, fence: int, parts: Sequence[Part]) -> None:
        """Write the manifest and delete parts that are none of the result. Is idempotent.

        fence: of who finishes it; what a later holder of the job wrote stays, whoever wakes up late.
        """
        wanted = {part.uri for part in parts}
        for stray in self._listed():
            if stray not in wanted and _fence(stray) <= fence:
                delete_file(stray)
        document = {
            "job": self._job, "model": model, "version": version, "rows": sum(part.rows for part in parts),
            "parts": [{"uri": part.uri, "first_row": part.first_row + 1, "rows": part.rows} for part in parts],
        }  # fmt: skip
        self._put(f"{self.uri}/{MANIFEST}", json.dumps(document, indent=1).encode())

    def discard(self, uris: Iterable[str]) -> None:
        """Delete these parts, as far as they are this job's own."""
        for uri in uris:
            if uri.startswith(f"{self.uri}/part-"):
                delete_file(uri)

    def delete(self) -> None:
        """Delete every part and the manifest. Is idempotent."""
        if self._storage.remote:
            try:  # a thousand objects a request
                self._storage.filesystem().delete_dir(self._storage.inner(self.uri))
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _unwritable(self.uri, error) from error
            return
        for stray in [*self._listed(), f"{self.uri}/{MANIFEST}"]:
            delete_file(stray)
        _remove_empty(Path(self.uri))

    def reach(self) -> None:
        """Raise Unavailable when the place does not answer."""
        self._listed()

    def _put(self, uri: str, data: bytes) -> None:
        if not self._storage.remote:
            write_atomic(Path(uri), data)
            return
        try:
            with self._storage.filesystem().open_output_stream(self._storage.inner(uri)) as stream:
                stream.write(data)
        except OSError as error:
            raise _unwritable(uri, error) from error

    def _listed(self) -> list[str]:
        if not self._storage.remote:
            return [str(path) for path in Path(self.uri).glob("part-*.parquet")]
        from pyarrow import fs

        try:
            found = self._storage.filesystem().get_file_info(
                fs.FileSelector(self._storage.inner(self.uri), allow_not_found=True)
            )
        except OSError as error:
            raise _unwritable(self.uri, error) from error
        return [f"s3://{one.path}" for one in found if one.base_name.startswith("part-")]


def _fence(uri: str) -> int:
    """Of who wrote the part; 0 for a name that no worker gives."""
    found = uri.removesuffix(".parquet").rpartition("-")[2]
    return int(found) if found.isascii() and found.isdigit() else 0


def delete_file(uri: str) -> None:
    """Delete a part, where it is still there."""
    storage = Storage.at(uri.rpartition("/")[0])
    try:
        if storage.remote:
            storage.filesystem().delete_file(storage.inner(uri))
        else:
            Path(uri).unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(uri, error) from error


def read_results(parts: Sequence[Part], after: int, limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows beyond the first `after`, each a map of columns; Unavailable for a part that is gone."""
    found: list[dict[str, Any]] = []
    for part in parts:
        end = part.first_row + part.rows
        if end <= after or len(found) >= limit:
            continue
        for batch in _batches(part, max(0, after - part.first_row), limit - len(found)):
            found += batch.slice(0, limit - len(found)).to_pylist()
            if len(found) >= limit:
                break
    return found


def _batches(part: Part, skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    try:
        schema = _schema(part.uri)
        yield from Files((part.uri,), schema, part.rows).batches(rows=max(rows, 1), skip=skip)
    except LoopwrightError:
        raise
    except OSError as error:
        raise Unavailable(
            f"a part of the result cannot be read ({str(error).splitlines()[0][:200]})", where=part.uri,
            next="Was it deleted? Begin the job anew: loopwright jobs retry",
        ) from error  # fmt: skip


def _schema(uri: str) -> pa.Schema:
    storage = Storage.at(uri.rpartition("/")[0])
    with storage.filesystem().open_input_file(storage.inner(uri)) as file:
        return pa_parquet.read_schema(file).remove_metadata()


def _unwritable(uri: str, error: OSError) -> Unavailable:
    return Unavailable(
        f"results cannot be written ({str(error).splitlines()[0][:200]})", where=uri,
        next="Check the place, free space, and what the worker may write there.",
    )  # fmt: skip


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
