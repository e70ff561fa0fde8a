"""Where rows come from, by URI, and how they are brought to this machine: in a stream, in bounded memory.

    PATH, file://…          a file, a folder or a glob of files with the same columns
    package://NAME/path     a file inside an installed package
    http(s)://…             a download that goes on where it broke off
    s3://BUCKET/KEY         an object, a prefix or a glob; any server that speaks S3
    lakefs://REPO/REF/PATH  the same through lakeFS's gateway, at the commit that REF stands for
    dvc://PATH@REV          what DVC tracks, at a revision of a git repository
    postgresql://…          a table or a query, whole or from a cursor on; see `sources.postgres`

Formats: CSV (any usual delimiter), JSON lines (both plain, .gz, .zst, or .zip of one file), Parquet. CSV cells stay
text here: only a contract knows their types, and a cell that does not fit must be shown as it was written.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from loopwright.data.files import Files
from loopwright.data.sources.files import Delivery, find_local
from loopwright.data.sources.reading import (
    FORMATS,
    NULLS,
    RESERVED,
    Malformed,
    Raw,
    Reading,
    Told,
    public_uri,
)
from loopwright.data.sources.staging import MalformedLines, disk, link, write_rows
from loopwright.data.staged import MALFORMED, Staged
from loopwright.kernel.errors import BadInput

if TYPE_CHECKING:
    from loopwright.data.sources.postgres import Query

__all__ = [
    "FORMATS", "MALFORMED", "NULLS", "RESERVED", "Malformed", "Raw", "Reading", "Source", "Told", "public_uri",
    "resolve", "resolve_declared",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Rows with a name. `digest`: SHA-256 of the bytes, or None where only reading tells (a query).

    `origin`: what lineage should know besides, e.g. {"dvc_rev": "…"}. What was downloaded lives as long as this object.
    """

    uri: str
    digest: str | None
    delivery: Delivery | None = None
    query: "Query | None" = None
    reading: Reading = field(default_factory=Reading)
    origin: Mapping[str, Any] = field(default_factory=dict)
    downloaded: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The URI without what lets somebody in."""
        return public_uri(self.uri)

    @property
    def path(self) -> Path:
        """The (first) file on this machine; a query has none."""
        return self._files.parts[0].path

    @property
    def format(self) -> str:
        """csv, jsonl, parquet or query."""
        return self.delivery.format if self.delivery is not None else "query"

    @property
    def title(self) -> str:
        """A word for what it holds: flights for data/flights.csv.gz, data/flights/*.csv or ?table=air.flights."""
        if self.query is not None:
            return self.query.title
        place = self.uri.rpartition("@")[0] if self.uri.startswith("dvc://") else self.name
        parts = [
            part for part in unquote(urlsplit(place).path if "://" in place else place).split("/") if part
        ]
        while len(parts) > 1 and any(sign in parts[-1] for sign in "*?["):
            parts.pop()
        return parts[-1].split(".")[0] if parts else "data"

    @property
    def _files(self) -> Delivery:
        if self.delivery is None:
            raise BadInput("a query is no file", where=self.name, wanted="a source of files")
        return self.delivery

    def stage(self, into: Path, nulls: Sequence[str] = NULLS, *, progress: Told | None = None) -> Staged:
        """Bring all rows into Parquet files in the folder `into` (made when missing); memory does not grow with them.

        CSV columns come as text, with null where the text is one of `nulls`. Parquet files of this machine are not
        copied. `progress` gets bytes read so far and in all. Lines that are no rows come back as `malformed`. Raises
        BadInput, with file and line, for what cannot be read on; Unavailable when the source or the disk fails;
        Conflict when a file changes meanwhile. When it raises, the folder holds nothing that was begun.
        """
        told = progress or _silent
        if self.query is not None:
            return self.query.stage(into, self.origin, told)
        with disk(into):
            into.mkdir(parents=True, exist_ok=True)
        lines = MalformedLines(into / "malformed.parquet")
        try:
            with disk(into):
                if self.format == "parquet":
                    rows = self._files.parquet()
                    if self.downloaded is not None:  # what was downloaded goes with this object
                        rows = replace(rows, uris=tuple(link(Path(u), into) for u in rows.uris))
                else:
                    schema, batches = self._files.rows(self.reading, nulls, lines.add, told)
                    rows = write_rows(into / "rows.parquet", schema, batches)
                malformed = lines.close()
            self._files.check_unchanged()
            self._some(rows.rows or 0, lines.rows)
        except BaseException:
            lines.abandon()
            for begun in (into / "rows.parquet", *into.glob("source-*.parquet")):
                begun.unlink(missing_ok=True)
            raise
        assert self.digest is not None
        return Staged(
            self.name,
            self.digest,
            Files(rows.uris, rows.schema, rows.rows, numbered=True),
            malformed,
            origin=self.origin,
        )

    def read(self, nulls: Sequence[str] = NULLS) -> Raw:
        """All rows in memory, for small data; else as `stage`."""
        if self.query is not None:
            with tempfile.TemporaryDirectory(prefix="loopwright-source-") as folder:
                staged = self.query.stage(Path(folder), self.origin, _silent)
                return Raw(staged.rows.table(staged.rows.schema.names))
        malformed: list[Malformed] = []
        schema, batches = self._files.rows(self.reading, nulls, malformed.append, _silent)
        rows = pa.Table.from_batches(batches, schema)
        self._some(rows.num_rows, len(malformed))
        return Raw(rows, tuple(malformed))

    def _some(self, rows: int, malformed: int) -> None:
        if rows + malformed == 0:
            raise BadInput(
                "holds no rows", where=self.name, wanted="at least one", next="Check how the file was written"
            )


def _silent(done: int, total: int | None) -> None:
    return None


class Declared(Protocol):
    """What loop.yaml says of a source."""

    @property
    def uri(self) -> str: ...
    @property
    def cursor(self) -> str | None: ...
    @property
    def lookback(self) -> timedelta: ...
    @property
    def format(self) -> str | None: ...
    @property
    def delimiter(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...


def resolve_declared(
    spec: Declared, base: Path, *, cursor: Mapping[str, Any] | None = None, whole: bool = False
) -> Source:
    """The source that loop.yaml declares, read on from `cursor`; `whole`: all of it, whatever was read before."""
    return resolve(
        spec.uri,
        base,
        cursor_column=None if whole else spec.cursor,
        cursor=cursor,
        lookback=spec.lookback,
        reading=Reading(spec.format, spec.delimiter, spec.encoding),
    )


def resolve(
    uri: str,
    base: Path,
    *,
    cursor_column: str | None = None,
    cursor: Mapping[str, Any] | None = None,
    lookback: timedelta = timedelta(),
    reading: Reading | None = None,
    check_host: Callable[[str], None] | None = None,
    moved: Callable[[], None] | None = None,
) -> Source:
    """Find what `uri` names; a relative path starts at `base`.

    `check_host`: takes the name or address of each server that a download calls, and raises when it may not be.
    `moved`: called while something comes, a megabyte or more each time; what it raises ends the download.

    `cursor_column`, `cursor`, `lookback`: of an incremental source, how far it was read, how far back to look again.
    Raises NotFound or BadInput saying what was looked for and where; Unavailable when a server does not answer.
    """
    reading = reading or Reading()
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if cursor_column is not None and scheme not in ("postgresql", "postgres"):
        raise BadInput(
            "only a query can be read on from a cursor",
            where=public_uri(uri),
            got=f"cursor: {cursor_column}",
            wanted="a postgresql:// source",
            next="Remove `cursor` in loop.yaml; files land once by their content",
        )
    origin: Mapping[str, Any] = {}
    folder: tempfile.TemporaryDirectory[str] | None = None
    match scheme:
        case "postgresql" | "postgres":
            from loopwright.data.sources.postgres import Query

            query = Query.parse(uri, column=cursor_column, lookback=lookback, since=cursor)
            return Source(uri, None, query=query, reading=reading)
        case "http" | "https":
            from loopwright.data.sources.web import download

            delivery, folder = download(uri, reading, check_host, moved)
        case "s3":
            from loopwright.data.sources.s3 import fetch as fetch_s3

            delivery, folder = fetch_s3(uri, reading, moved)
        case "lakefs":
            from loopwright.data.sources.lakefs import fetch as fetch_lakefs

            delivery, folder, origin = fetch_lakefs(uri, reading)
        case "dvc":
            from loopwright.data.sources.dvc import fetch as fetch_dvc

            delivery, folder, origin = fetch_dvc(uri, base, reading)
        case "package":
            from loopwright.data.sources.package import find_in_package

            delivery = find_local(uri, find_in_package(uri), reading)
        case "file":
            delivery = find_local(uri, Path(unquote(urlsplit(uri).path)), reading)
        case "":
            delivery = find_local(uri, (base / Path(uri).expanduser()).resolve(), reading)
        case _:
            raise BadInput(
                "unknown kind of source",
                where=public_uri(uri),
                got=f"{scheme}://",
                wanted="a path, file, package, http(s), s3, postgresql, dvc or lakefs",
                next="Mend the uri in loop.yaml",
            )
    return Source(uri, delivery.digest, delivery, reading=reading, origin=origin, downloaded=folder)
