"""A batch file as rows that can be gone on with: brought here once per job and machine, read from any row on."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet

from loopwright.data.files import Files
from loopwright.data.source import Source, resolve
from loopwright.jobs.job import Job
from loopwright.jobs.request import Request
from loopwright.jobs.settings import Settings
from loopwright.kernel.errors import BadInput, Conflict, Unavailable
from loopwright.kernel.files import write_atomic

_NOTE = "staged.json"


@dataclass(frozen=True, slots=True)
class Input:
    """`name`: what errors call it. `digest`: SHA-256 of the delivered bytes. `malformed`: lines that are no rows."""

    name: str
    digest: str
    rows: Files
    total: int
    malformed: int = 0
    source: Source | None = None

    def check_unchanged(self) -> None:
        """Raise Conflict when a file that is read where it lies was written meanwhile."""
        if self.source is not None and self.source.delivery is not None:
            self.source.delivery.check_unchanged()


def open_input(
    job: Job, request: Request, folder: Path, settings: Settings, alive: Callable[[], None]
) -> Input:
    """Find the job's file, and bring what is not Parquet of this machine into `folder` (which is the job's own).

    What an earlier attempt brought here is used again. Raises NotFound, BadInput and Refused for what cannot be read,
    Unavailable for what cannot be read now, Conflict when it is not what earlier rows of the job came from.
    """
    assert request.input is not None
    uri = settings.input(request.input, anywhere=request.anywhere)
    begun_with = str(job.pinned["input"]) if job.pinned else None
    known = begun_with if job.done else None
    # A copy of before this life of the job may be of a file that has been mended since.
    kept = _kept(folder / "ready", begun_with) if begun_with else None
    if kept is not None:
        return kept
    source = resolve(uri, Path("/"), reading=request.reading, check_host=settings.check_host, moved=alive)
    assert source.delivery is not None and source.digest is not None
    if source.downloaded is None:
        for part in source.delivery.parts:
            settings.check_file(part.path, anywhere=request.anywhere)
    if known is not None and known != source.digest:
        raise Conflict(
            "the input is not what the first rows of the job came from", where=source.name, got=source.digest[:12],
            wanted=known[:12], next=f"Put it back, or begin anew: loopwright jobs retry {job.id} --anew",
        )  # fmt: skip
    kept = _kept(folder / "ready", source.digest)
    if kept is not None:
        return kept
    begun = folder / f"attempt-{job.fence}"
    shutil.rmtree(begun, ignore_errors=True)
    staged = source.stage(begun, progress=lambda done, total: alive())
    here = source.downloaded is None and source.format == "parquet"
    total = staged.rows.rows or 0
    if total > settings.max_rows:
        shutil.rmtree(begun, ignore_errors=True)
        raise BadInput(
            "too many rows", where=source.name, got=f"{total:,}", wanted=f"at most {settings.max_rows:,}",
            next='Split the file, or let an admin raise "max_rows" under "jobs" in home.json',
        )  # fmt: skip
    malformed = staged.malformed.rows or 0
    if malformed and request.bad_rows == "fail":
        first = next(staged.malformed.batches(rows=1)).to_pylist()[0]
        shutil.rmtree(begun, ignore_errors=True)
        raise BadInput(
            f"a line that is no row ({first['why']})" + (f", and {malformed - 1} more" if malformed > 1 else ""),
            where=f"{source.name}, line {first['line']}" if first["line"] else source.name,
            got=str(first["text"])[:200],
            next="Mend the file, or submit with bad_rows: report to go on without such lines.",
        )  # fmt: skip
    if here:
        shutil.rmtree(begun, ignore_errors=True)
        return Input(source.name, source.digest, staged.rows, total, 0, source)
    names = [Path(uri).name for uri in staged.rows.uris]
    note = {
        "name": source.name,
        "digest": source.digest,
        "files": names,
        "total": total,
        "malformed": malformed,
    }
    write_atomic(begun / _NOTE, json.dumps(note).encode())
    with suppress(OSError):  # another worker of this machine was first: its copy is as good
        begun.rename(folder / "ready")
    shutil.rmtree(begun, ignore_errors=True)
    ready = _kept(folder / "ready", source.digest)
    if ready is None:
        raise Unavailable("what was staged is gone", where=str(folder), next="It is staged again.")
    return ready


def _kept(folder: Path, digest: str | None) -> Input | None:
    """What an earlier attempt staged, when it is of these bytes; another content is thrown away."""
    try:
        note: dict[str, Any] = json.loads((folder / _NOTE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        note = {}
    if not note or (digest is not None and note["digest"] != digest):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    paths = [folder / name for name in note["files"]]
    try:
        schema = pa_parquet.read_schema(paths[0]).remove_metadata()
    except (OSError, IndexError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    files = Files(tuple(map(str, paths)), schema, note["total"])
    return Input(note["name"], note["digest"], files, note["total"], note["malformed"])
