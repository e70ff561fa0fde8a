"""Where rows come from: a file, a file inside an installed package, or a URL. Bytes are identified by SHA-256.

Formats: CSV (plain, .gz, or .zip of one file), Parquet, JSON lines (plain or .gz). CSV cells stay text here: only a
contract knows their types, and a cell that does not fit must be shown as it was written.
"""

import csv
import gzip
import importlib.util
import io
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from loopwright.kernel.digest import sha256_file
from loopwright.kernel.errors import BadInput, NotFound, Unavailable, did_you_mean

NULLS = ("", "NA", "NaN", "nan", "null", "NULL")
FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
RESERVED = frozenset({"_row", "_batch", "_reasons", "_raw", "_at"})
"""Columns the lake adds to what it keeps."""
MAX_DOWNLOAD = 4 << 30
MAX_UNPACKED = 16 << 30
TIMEOUT = 30.0


_SECRET = re.compile(
    r"token|secret|passw|pwd|credential|signature|session|jwt|auth|api[-_]?key|access[-_]?key|^(sig|key|code)$"
    r"|^x-(amz|goog)-|^(sv|se|st|sp|sr|spr|skoid|sktid|skt|ske|sks|skv)$",
    re.IGNORECASE,
)


def public_uri(uri: str) -> str:
    """`uri` without what lets somebody in: user, password, and query parameters that carry keys or signatures.

    The same source under a new key keeps its name.
    """
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(pair[0])]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(query), ""))


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no row: its number in the file where known, its text, and what is wrong with it."""

    line: int | None
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Raw:
    """What a source holds: `rows` as they came, and the lines that are no rows."""

    rows: pa.Table
    malformed: tuple[Malformed, ...] = ()

    @property
    def input_rows(self) -> int:
        return int(self.rows.num_rows) + len(self.malformed)


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes with a name. `digest` covers exactly the bytes of `path`; `format` is csv, parquet or jsonl."""

    uri: str
    path: Path
    digest: str
    format: str
    member: str | None = None
    downloaded: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    def read(self, nulls: Sequence[str] = NULLS) -> Raw:
        """Read all rows. CSV columns come as text, with null where the text is one of `nulls`.

        Raises BadInput for what cannot be read as the format at all; lines with too few or too many fields do not
        raise, they come back as `malformed`.
        """
        raw = self._read(nulls)
        names = raw.rows.column_names
        lowered = [name.lower() for name in names]
        clash = [name for name in names if lowered.count(name.lower()) > 1 or name in RESERVED]
        if clash:
            raise BadInput(
                "a column name that cannot be kept",
                where=self.uri,
                got=clash[0],
                wanted=f"names that differ in more than case, none of {', '.join(sorted(RESERVED))}",
                next="Rename it",
            )
        if raw.input_rows == 0:
            raise BadInput(
                "holds no rows", where=self.uri, wanted="at least one", next="Check how the file was written"
            )
        return raw

    def _read(self, nulls: Sequence[str]) -> Raw:
        try:
            if self.format == "parquet":
                return Raw(pa_parquet.ParquetFile(self.path).read())
            with self.open() as stream:
                if self.format == "jsonl":
                    return Raw(pa_json.read_json(stream))
                return _read_csv(stream, self.uri, nulls)
        except (
            pa.ArrowInvalid,
            pa.ArrowNotImplementedError,
            zipfile.BadZipFile,
            gzip.BadGzipFile,
            EOFError,
        ) as error:
            raise BadInput(
                f"cannot be read as {self.format}",
                where=self.uri,
                got=_first_line(error),
                next="Check that the file is whole",
            ) from None
        except OSError as error:
            raise Unavailable(
                f"cannot be read: {error}", where=self.uri, next="Check the file and its rights"
            ) from error

    def open(self) -> IO[bytes]:
        """Open the unpacked bytes."""
        if self.member is not None:
            archive = zipfile.ZipFile(self.path)
            return archive.open(self.member)
        if self.path.suffix == ".gz":
            return gzip.open(self.path)  # type: ignore[return-value]  # GzipFile is an IO[bytes] in all but name
        return self.path.open("rb")


def resolve(uri: str, base: Path) -> Source:
    """Find what `uri` names; a relative path starts at `base`.

    Forms: `package://NAME/path/in/package` (found without importing the package), a path, `file://…`, `http(s)://…`.
    Raises NotFound or BadInput saying what was looked for and where; Unavailable when a server does not answer.
    """
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "package":
        path = _in_package(uri)
    elif scheme in ("http", "https"):
        return _download(uri)
    elif scheme == "file":
        path = Path(unquote(urlsplit(uri).path))
    elif scheme == "":
        path = (base / Path(uri).expanduser()).resolve()
    else:
        raise BadInput(
            "unknown kind of source",
            where=uri,
            got=f"{scheme}://",
            wanted="a path, file://, package:// or http(s)://",
            next="Mend the uri in loop.yaml",
        )
    return _describe(uri, path)


def _describe(uri: str, path: Path, downloaded: tempfile.TemporaryDirectory[str] | None = None) -> Source:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        )
        kind = "is a folder" if path.is_dir() else "no such file"
        raise NotFound(
            kind,
            where=uri,
            got=str(path),
            wanted="a CSV, Parquet or JSON lines file",
            next=near or "Check the uri",
        )
    if not os.access(path, os.R_OK):
        raise BadInput(
            "may not be read", where=uri, got=str(path), next="Give this user the right to read it"
        )
    if path.stat().st_size == 0:
        raise BadInput(
            "is empty", where=uri, got="0 bytes", wanted="rows", next="Check how the file was written"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    member = None
    if suffixes[-1:] == [".zip"]:
        member = _only_member(uri, path)
        suffixes = [s.lower() for s in Path(member).suffixes]
    elif suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
    format_ = FORMATS.get(suffixes[-1] if suffixes else "")
    if format_ is None:
        raise BadInput(
            "unknown kind of file",
            where=uri,
            got=member or path.name,
            wanted=f"a name ending in {', '.join(FORMATS)}",
            next="Rename or convert the file",
        )
    return Source(uri, path, sha256_file(path), format_, member, downloaded)


def _only_member(uri: str, path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")
            ]
    except zipfile.BadZipFile as error:
        raise BadInput(
            "not a zip file", where=uri, got=str(error), next="Check that the file is whole"
        ) from None
    if len(members) != 1:
        raise BadInput(
            "wanted one file in the zip",
            where=uri,
            got=f"{len(members)} files",
            next="Unpack it and name one file",
        )
    if members[0].file_size > MAX_UNPACKED:
        raise BadInput(
            "unpacks too large",
            where=uri,
            got=f"{members[0].file_size} bytes",
            wanted=f"at most {MAX_UNPACKED}",
        )
    return members[0].filename


def _in_package(uri: str) -> Path:
    parts = urlsplit(uri)
    package, inner = parts.netloc, unquote(parts.path).lstrip("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", package) or not inner:
        raise BadInput(
            "not a package source", where=uri, wanted="package://NAME/path/in/package", next="Mend the uri"
        )
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise NotFound(
            f"the package {package} is not installed", where=uri, next=f"Install it: pip install {package}"
        )
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root):
        raise BadInput(
            "leaves the package", where=uri, got=inner, wanted=f"a path inside {package}", next="Mend the uri"
        )
    return path


def _download(uri: str) -> Source:
    """Fetch into a temporary folder that lives as long as the Source."""
    folder = tempfile.TemporaryDirectory(prefix="loopwright-source-")
    path = Path(folder.name) / (Path(unquote(urlsplit(uri).path)).name or "download")
    size = 0
    try:
        with urllib.request.urlopen(uri, timeout=TIMEOUT) as answer, path.open("wb") as file:  # noqa: S310 - scheme checked by resolve
            while chunk := answer.read(1 << 20):
                size += len(chunk)
                if size > MAX_DOWNLOAD:
                    raise BadInput("too large to download", where=uri, wanted=f"at most {MAX_DOWNLOAD} bytes")
                file.write(chunk)
    except urllib.error.HTTPError as error:
        raise NotFound(
            "the server does not hand it out", where=uri, got=f"HTTP {error.code}", next="Check the uri"
        ) from None
    except OSError as error:
        raise Unavailable(
            "the server does not answer", where=uri, got=str(error), next="Try again later"
        ) from error
    return _describe(uri, path, folder)


def _read_csv(stream: IO[bytes], uri: str, nulls: Sequence[str]) -> Raw:
    data = stream.read()
    names, delimiter = _header(data, uri)
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=list(nulls),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    options = pa_csv.ReadOptions(column_names=names, skip_rows=1)
    try:
        return Raw(pa_csv.read_csv(pa.BufferReader(data), options, parse, convert))
    except pa.ArrowInvalid as error:
        if "Expected" not in str(error):
            raise
    malformed: list[Malformed] = []

    def keep(row: Any) -> str:
        why = f"{row.actual_columns} fields, wanted {row.expected_columns}"
        malformed.append(Malformed(row.number, row.text or "", why))
        return "skip"

    # Only a single-threaded reader knows line numbers; this path is taken for files with broken lines alone.
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep)
    options = pa_csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False)
    rows = pa_csv.read_csv(pa.BufferReader(data), options, parse, convert)
    return Raw(rows, tuple(malformed))


def _header(data: bytes, uri: str) -> tuple[list[str], str]:
    """Column names and delimiter, taken from the first line."""
    line = data[: 1 << 20].split(b"\n", 1)[0].rstrip(b"\r")
    if b"\0" in line:
        raise BadInput(
            "not text", where=uri, wanted="CSV in UTF-8", next="Check the file; UTF-16 must be converted"
        )
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(
            "the header is not UTF-8",
            where=f"{uri}:1",
            wanted="CSV in UTF-8",
            next="Convert it: iconv -t utf-8",
        ) from None
    if not text.strip():
        raise BadInput(
            "the first line is empty", where=f"{uri}:1", wanted="column names", next="Add a header line"
        )
    delimiter = max(",;\t|", key=text.count)
    names = next(csv.reader(io.StringIO(text), delimiter=delimiter))
    if not names[0].strip():
        names[0] = "unnamed"  # an index column, as pandas writes it
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(
            "a column name stands twice in the header",
            where=f"{uri}:1",
            got=twice[0],
            next="Rename one of them",
        )
    if "" in (name.strip() for name in names):
        raise BadInput(
            "a column has no name",
            where=f"{uri}:1",
            got=text,
            wanted="a name for every column",
            next="Mend the header",
        )
    return names, delimiter


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
