"""Files of this machine as one delivery: a path, a folder or a glob; and how deliveries are read into rows."""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data.files import Files
from loopwright.data.sources import delimited, jsonl
from loopwright.data.sources.reading import (
    FORMATS,
    PACKINGS,
    Malformed,
    Reading,
    Told,
    first_line,
    names_that_can_be_kept,
    same_columns,
)
from loopwright.data.sources.streams import MAX_UNPACKED, Part
from loopwright.kernel.digest import digest_json, sha256_file
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable, did_you_mean

MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """Files of one format, in order of their names. `digest` covers exactly their bytes; `stamps` tell a change."""

    parts: tuple[Part, ...]
    digest: str
    stamps: tuple[tuple[int, int, int], ...]

    @property
    def format(self) -> str:
        return self.parts[0].format

    def check_unchanged(self) -> None:
        """Raise Conflict when a file was written while it was read."""
        for part, stamp in zip(self.parts, self.stamps, strict=True):
            if _stamp(part.path) != stamp:
                raise Conflict(
                    "changed while it was read", where=part.where, next="Try again when nothing writes to it"
                )

    def rows(
        self, reading: Reading, nulls: Sequence[str], bad: Callable[[Malformed], None], told: Told
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The columns, and the rows in order. Parquet comes with its types, all else as `reading` says."""
        if self.format == "csv":
            schema, batches = _csv(self.parts, reading, nulls, bad, self._sum(told))
        elif self.format == "jsonl":
            schema, batches = _jsonl(self.parts, reading, bad, self._sum(told))
        else:
            files = self.parquet()
            schema = files.schema
            batches = files.batches(schema.names)
        return schema, batches

    def parquet(self) -> Files:
        """The files themselves as rows. Raises BadInput for one that is no Parquet, or has other columns."""
        schemas: list[pa.Schema] = []
        rows = 0
        for part in self.parts:
            footer = _footer(part)
            schema = footer.schema.to_arrow_schema().remove_metadata()
            names_that_can_be_kept(schema.names, part.where)
            if schemas:
                same_columns(schemas[0].names, schema.names, part.where, self.parts[0].where)
            schemas.append(schema)
            rows += footer.num_rows
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BadInput(
                "files of one delivery with types that do not go together",
                where=self.parts[0].where,
                got=first_line(error),
                next="Write them with the same types",
            ) from None
        schema = pa.schema([
            pa.field(column.name, _readable(column.type, column.name, self.parts[0].where)) for column in schema
        ])  # fmt: skip
        return Files(tuple(str(part.path) for part in self.parts), schema, rows)

    def _sum(self, told: Told) -> Callable[[int], Told]:
        """Progress of one file as progress of all; a file that is read twice counts twice."""
        passes = 2 if self.format == "jsonl" else 1
        sizes = [part.path.stat().st_size for part in self.parts] * passes
        total = sum(sizes) // passes

        def at(position: int) -> Told:
            before = sum(sizes[:position])
            return lambda done, _: told((before + done) // passes, total)

        return at


def find_local(name: str, path: Path, reading: Reading, *, root: Path | None = None) -> Delivery:
    """What `path` names: a file, all files of a folder, or those that a glob matches. `name`: what errors call it."""
    if path.is_file() or not (path.is_dir() or has_magic(str(path))):
        return deliver([(name, path)], reading)
    found = _listed(name, path)
    beside = root or (path if path.is_dir() else Path(os.path.commonpath([p.parent for p in found])))
    return deliver([(f"{name.rstrip('/')}: {p.relative_to(beside)}", p) for p in found], reading)


def deliver(
    files: Sequence[tuple[str, Path]], reading: Reading, *, called: Sequence[str] | None = None
) -> Delivery:
    """A delivery of files by what errors call them and where they lie; they must be of one format.

    `called`: names whose endings tell the format, where those of the paths do not.
    """
    parts: list[Part] = []
    stamps, found = [], []
    for position, (where, path) in enumerate(files):
        part = _part(where, path, reading, Path(called[position] if called else path.name))
        if parts and part.format != parts[0].format:
            raise BadInput(
                "files of different formats in one delivery",
                where=where,
                got=part.format,
                wanted=f"{parts[0].format}, like {parts[0].where}",
                next="Name one kind: folder/*.csv",
            )
        stamps.append(_stamp(path))
        parts.append(part)
        found.append(sha256_file(path))
    return Delivery(tuple(parts), found[0] if len(found) == 1 else digest_json(found), tuple(stamps))


def _csv(
    parts: Sequence[Part], reading: Reading, nulls: Sequence[str], bad: Callable[[Malformed], None],
    told: Callable[[int], Told],
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:  # fmt: skip
    headers: list[delimited.Header] = []
    for part in parts:
        header = delimited.read_header(part, reading)
        names_that_can_be_kept(header.names, part.where)
        if headers:
            same_columns(headers[0].names, header.names, part.where, parts[0].where)
        headers.append(header)
    schema = pa.schema([(name, pa.string()) for name in headers[0].names])

    def batches() -> Iterator[pa.RecordBatch]:
        for position, (part, header) in enumerate(zip(parts, headers, strict=True)):
            sink = bad if len(parts) == 1 else _named(bad, part)
            for batch in delimited.read_rows(part, header, reading, nulls, sink, told(position)):
                yield batch.select(schema.names)

    return schema, batches()


def _jsonl(
    parts: Sequence[Part], reading: Reading, bad: Callable[[Malformed], None], told: Callable[[int], Told]
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    kinds: dict[str, jsonl.Kind] = {}
    for position, part in enumerate(parts):
        for name, kind in jsonl.read_kinds(part, reading, told(position)).items():
            kinds[name] = jsonl.merge(kinds.get(name, jsonl.NULL), kind)
    if not kinds:
        raise jsonl.no_rows(parts[0], reading)
    names_that_can_be_kept(list(kinds), parts[0].where)

    def batches() -> Iterator[pa.RecordBatch]:
        for position, part in enumerate(parts):
            sink = bad if len(parts) == 1 else _named(bad, part)
            yield from jsonl.read_rows(part, kinds, reading, sink, told(len(parts) + position))

    return jsonl.schema_of(kinds), batches()


def _named(bad: Callable[[Malformed], None], part: Part) -> Callable[[Malformed], None]:
    """Lines of several files say which one they stand in."""
    return lambda line: bad(Malformed(line.line, line.text, f"{part.path.name}: {line.why}"))


def _readable(kind: pa.DataType, name: str, where: str) -> pa.DataType:
    """The type in which a Parquet column is read, wherever rows are looked at: all read what is returned.

    Spans of time are the whole numbers that the file holds. Raises BadInput for numbers of more digits than engines
    have.
    """
    types = pa.types
    if types.is_float16(kind):
        return pa.float32()
    if types.is_duration(kind):
        return pa.int64()
    if types.is_decimal256(kind):
        if kind.precision <= 38:
            return pa.decimal128(kind.precision, kind.scale)
        raise BadInput(
            f"the column `{name}` has more digits than can be computed with", where=where, got=str(kind),
            wanted="at most 38", next="Write it as text or with fewer digits",
        )  # fmt: skip
    if types.is_struct(kind):
        return pa.struct([
            pa.field(inner.name, _readable(inner.type, f"{name}.{inner.name}", where)) for inner in kind
        ])  # fmt: skip
    if types.is_map(kind):
        return pa.map_(kind.key_type, _readable(kind.item_type, f"{name}[]", where))
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _readable(kind.value_type, f"{name}[]", where)
        return kind if inner == kind.value_type else pa.list_(inner)
    return kind


def _footer(part: Part) -> Any:
    try:
        with pa_parquet.ParquetFile(part.path) as file:
            return file.metadata
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadInput(
            "cannot be read as parquet",
            where=part.where,
            got=first_line(error),
            next="Check that the file is whole",
        ) from None
    except OSError as error:
        if error.errno is None:  # Arrow's own: a footer that lies
            raise BadInput(
                "cannot be read as parquet",
                where=part.where,
                got=first_line(error),
                next="Check that the file is whole",
            ) from None
        raise Unavailable(
            f"cannot be read ({error.strerror or error})",
            where=part.where,
            next="Check the file and its rights",
        ) from error


def _listed(name: str, path: Path) -> list[Path]:
    """Files of a folder, or of a glob, by name; hidden ones and markers like _SUCCESS are none."""
    if path.is_dir():
        candidates: Iterator[Path] = path.iterdir()
    else:
        text = str(path)
        head = re.split(r"[*?\[]", text, maxsplit=1)[0]
        fixed = Path(head) if head.endswith("/") else Path(head).parent
        candidates = fixed.glob(str(path.relative_to(fixed)))
    found = []
    for candidate in candidates:
        if candidate.is_file() and not candidate.name.startswith((".", "_")):
            found.append(candidate)
        if len(found) > MAX_FILES:
            raise BadInput("too many files", where=name, wanted=f"at most {MAX_FILES}", next="Name fewer")
    if not found:
        what = "the folder holds no file" if path.is_dir() else "no file matches"
        raise NotFound(
            what, where=name, got=str(path), wanted="CSV, Parquet or JSON lines", next="Check the uri"
        )
    return sorted(found, key=str)


def _part(where: str, path: Path, reading: Reading, called: Path) -> Part:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        )
        raise NotFound(
            "is a folder" if path.is_dir() else "no such file",
            where=where,
            got=str(path),
            wanted="a CSV, Parquet or JSON lines file",
            next=near or "Check the uri",
        )
    if not os.access(path, os.R_OK):
        raise BadInput(
            "may not be read", where=where, got=str(path), next="Give this user the right to read it"
        )
    if path.stat().st_size == 0:
        raise BadInput(
            "is empty", where=where, got="0 bytes", wanted="rows", next="Check how the file was written"
        )
    suffixes = [suffix.lower() for suffix in called.suffixes]
    packing = PACKINGS.get(suffixes[-1]) if suffixes else None
    member = None
    if packing == "zip":
        member = _only_member(where, path)
        suffixes = [s.lower() for s in Path(member).suffixes]
    elif packing is not None:
        suffixes = suffixes[:-1]
    format_ = reading.format or FORMATS.get(suffixes[-1] if suffixes else "")
    if format_ is None:
        raise BadInput(
            "unknown kind of file",
            where=where,
            got=member or called.name,
            wanted=f"a name ending in {', '.join(FORMATS)}",
            next="Rename or convert the file, or say its `format` in loop.yaml",
        )
    if format_ == "parquet" and packing is not None:
        raise BadInput(
            "Parquet within an archive", where=where, got=path.name, wanted="the Parquet file itself",
            next="Unpack it; Parquet is compressed within",
        )  # fmt: skip
    return Part(path, where, format_, packing, member)


def _only_member(where: str, path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")
            ]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise BadInput(
            "not a zip file", where=where, got=str(error), next="Check that the file is whole"
        ) from None
    if len(members) != 1:
        raise BadInput(
            "wanted one file in the zip",
            where=where,
            got=f"{len(members)} files",
            next="Unpack it and name one file",
        )
    if members[0].flag_bits & 1:
        raise BadInput(
            "the zip asks for a password", where=where, got=members[0].filename, next="Unpack it first"
        )
    if members[0].file_size > MAX_UNPACKED:
        raise BadInput(
            "unpacks too large",
            where=where,
            got=f"{members[0].file_size} bytes",
            wanted=f"at most {MAX_UNPACKED}",
        )
    return members[0].filename


def _stamp(path: Path) -> tuple[int, int, int]:
    seen = path.stat()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
