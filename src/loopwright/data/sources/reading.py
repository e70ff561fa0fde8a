"""What can be said about a source's format, what its name says, and what came out of reading it."""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pyarrow as pa

from loopwright.kernel.errors import BadInput, did_you_mean

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
PACKINGS = {".gz": "gzip", ".zip": "zip", ".zst": "zstd"}
RESERVED = frozenset({"_row", "_batch", "_reasons", "_raw", "_at", "_malformed", "_ingested_at", "_source"})
"""Columns the lake adds to what it keeps."""
MAX_LINE = 1 << 20
"""Bytes of one record of text; a longer one is an unclosed quote or no text at all."""
MAX_COLUMNS = 10_000
SHOWN = 1_000
"""Characters kept of a line that is no row."""

Told = Callable[[int, int | None], None]
"""Progress: bytes read so far, and bytes in all where known."""

_SECRET = re.compile(
    r"token|secret|passw|pwd|credential|signature|session|jwt|auth|api[-_]?key|access[-_]?key|^(sig|key|code)$"
    r"|^x-(amz|goog)-|^(sv|se|st|sp|sr|spr|skoid|sktid|skt|ske|sks|skv)$",
    re.IGNORECASE,
)


def public_uri(uri: str) -> str:
    """`uri` without what lets somebody in: user, password, and query parameters that carry keys or signatures.

    The same source under a new key keeps its name.
    """
    if "://" not in uri or uri.startswith("dvc://"):
        return uri
    if uri.startswith(("s3://", "lakefs://")) and "@" not in uri:
        return uri  # a "?" in it is no query
    parts = urlsplit(uri)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET.search(pair[0])]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(query), ""))


@dataclass(frozen=True, slots=True)
class Reading:
    """What loop.yaml says about how to read a source; None: as its name and its first line say.

    `format`: csv, parquet or jsonl. `delimiter`: one character. `encoding`: a name that Python knows.
    """

    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        known = sorted(set(FORMATS.values()))
        if self.format is not None and self.format not in known:
            raise BadInput("unknown format", got=self.format, wanted=", ".join(known),
                           next=did_you_mean(self.format, known))  # fmt: skip
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise BadInput("not a delimiter", got=self.delimiter, wanted='one character, like ";" or "\\t"')
        if self.encoding is not None:
            try:
                text = codecs.lookup(self.encoding)._is_text_encoding  # codecs like hex and zlib are none
            except LookupError:
                text = False
            if not text:
                raise BadInput(
                    "unknown encoding", got=self.encoding, wanted="a name like utf-8, latin-1, cp1252"
                )

    @property
    def transcodes(self) -> bool:
        """Whether the bytes are in another encoding than UTF-8."""
        return self.encoding is not None and codecs.lookup(self.encoding).name not in (
            "utf-8",
            "utf-8-sig",
            "ascii",
        )


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


class Damaged(Exception):
    """Bytes that cannot be unpacked or decoded from here on; whoever reads says where."""


def names_that_can_be_kept(names: Sequence[str], where: str) -> None:
    """Raise BadInput for names that the lake cannot tell apart or keeps for itself."""
    if len(names) > MAX_COLUMNS:
        raise BadInput("too many columns", where=where, got=len(names), wanted=f"at most {MAX_COLUMNS}")
    seen: dict[str, str] = {}
    clash = [name for name in names if seen.setdefault(name.lower(), name) != name or name in RESERVED]
    clash += [name for name in names if list(names).count(name) > 1] if len(set(names)) < len(names) else []
    if clash:
        raise BadInput(
            "a column name that cannot be kept",
            where=where,
            got=clash[0],
            wanted=f"names that differ in more than case, none of {', '.join(sorted(RESERVED))}",
            next="Rename it",
        )


def same_columns(first: Iterable[str], others: Iterable[str], where: str, first_where: str) -> None:
    """Raise BadInput when a delivery's file has other columns than its first."""
    had, has = set(first), set(others)
    if had != has:
        lacks, more = sorted(had - has), sorted(has - had)
        said = [f"lacks {', '.join(lacks[:5])}"] if lacks else []
        said += [f"has besides {', '.join(more[:5])}"] if more else []
        raise BadInput(
            "other columns than the first file of the delivery",
            where=where,
            got="; ".join(said),
            wanted=f"the columns of {first_where}",
            next="Deliver files of one shape, or make two sources of them",
        )


def first_line(error: BaseException) -> str:
    """An engine's message, cut to what a person reads."""
    lines: list[Any] = str(error).strip().split("\n")
    return str(lines[0])[:300] if lines and lines[0] else type(error).__name__
