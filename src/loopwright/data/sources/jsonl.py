"""JSON lines: read twice, once for the columns' types and once for the rows.

A column whose values are of one type keeps it, objects and lists included; whole numbers beside fractions become
fractions; any other mixture is kept as text: strings as they are, other values as they were written. Text that looks
like a time stays text: only a contract knows times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.json as pa_json

from loopwright.data.sources.delimited import check_text, too_long
from loopwright.data.sources.reading import MAX_COLUMNS, MAX_LINE, SHOWN, Damaged, Malformed, Reading, Told
from loopwright.data.sources.streams import CHUNK, Part
from loopwright.kernel.errors import BadInput

BLOCK = 4 << 20
MAX_DEPTH = 32
_WHOLE = range(-(1 << 63), 1 << 63)
_BLANK = b" \t\r"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a column's values are: `name` is null, bool, int, float, text, object, list or mixed."""

    name: str
    fields: tuple[tuple[str, "Kind"], ...] = ()
    item: "Kind | None" = None

    def arrow(self) -> pa.DataType | None:
        """The column's type; None where its values are kept as text in the way they were written."""
        match self.name:
            case "bool":
                return pa.bool_()
            case "int":
                return pa.int64()
            case "float":
                return pa.float64()
            case "null" | "text":
                return pa.string()
            case "object":
                inner = [(name, kind.arrow()) for name, kind in self.fields]
                return None if not inner or any(t is None for _, t in inner) else pa.struct(inner)
            case "list":
                item = (self.item or NULL).arrow()
                return None if item is None else pa.list_(item)
        return None


NULL, MIXED = Kind("null"), Kind("mixed")


def read_kinds(part: Part, reading: Reading, told: Told) -> dict[str, Kind]:
    """Columns of the file in the order they appear, and what their values are."""
    found: dict[str, Kind] = {}
    for chunk in _chunks(part, reading, None, lambda line: None, told):
        for name, kind in _kinds(chunk).items():
            found[name] = merge(found.get(name, NULL), kind)
        if len(found) > MAX_COLUMNS:
            raise BadInput(
                "too many columns", where=part.where, got=len(found), wanted=f"at most {MAX_COLUMNS}"
            )
    return found


def read_rows(
    part: Part, kinds: dict[str, Kind], reading: Reading, bad: Callable[[Malformed], None], told: Told
) -> Iterator[pa.RecordBatch]:
    """The rows in order, by the columns `kinds`; lines that are no JSON object go to `bad`, in order too."""
    types = {name: kind.arrow() for name, kind in kinds.items()}
    schema = schema_of(kinds)
    typed = pa.schema([(name, kind) for name, kind in types.items() if kind is not None])
    written = [name for name, kind in types.items() if kind is None]
    for chunk in _chunks(part, reading, typed, bad, told):
        columns: dict[str, Any] = {}
        if typed.names:
            # A key that stands twice is beyond Arrow: the last value counts, as for every other reader.
            rows = chunk.rows
            if rows is None:
                rows = pa.Table.from_pylist([_ANY.decode(line) for line in chunk.lines], typed)
            columns = dict(zip(rows.column_names, rows.columns, strict=True))
        if written:
            raw = [_RAW.decode(line) for line in chunk.lines]
            for name in written:
                columns[name] = pa.chunked_array([[_as_text(row.get(name)) for row in raw]], pa.string())
        yield from pa.table([columns[name] for name in schema.names], schema).to_batches()


def no_rows(part: Part, reading: Reading) -> BadInput:
    """The error for a file without a single row: what its first line is instead."""
    wrong: list[Malformed] = []
    for _ in _chunks(
        part, reading, None, lambda line: wrong.append(line) if not wrong else None, lambda *_: None
    ):
        pass
    return BadInput(
        "cannot be read as jsonl" if wrong else "holds no rows",
        where=f"{part.where}:{wrong[0].line}" if wrong else part.where,
        got=wrong[0].why if wrong else None,
        wanted="a JSON object on each line",
        next="Check how the file was written",
    )


def schema_of(kinds: dict[str, Kind]) -> pa.Schema:
    """The columns as they are kept."""
    return pa.schema([(name, kind.arrow() or pa.string()) for name, kind in kinds.items()])


def merge(one: Kind, other: Kind) -> Kind:
    """What a column is whose values are of both kinds."""
    if one == other or other.name == "null":
        return one
    if one.name == "null":
        return other
    if {one.name, other.name} == {"int", "float"}:
        return Kind("float")
    if one.name == other.name == "list":
        return Kind("list", item=merge(one.item or NULL, other.item or NULL))
    if one.name == other.name == "object":
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = merge(fields.get(name, NULL), kind)
        return Kind("object", tuple(fields.items()))
    return MIXED


@dataclass(slots=True)
class _Position:
    line: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Lines that are JSON objects, and what Arrow makes of them; None where it cannot."""

    lines: tuple[bytes, ...]
    rows: pa.Table | None


_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WHOLE_LINE = msgspec.json.Decoder(dict[str, Any])
_ANY = msgspec.json.Decoder()


def _chunks(
    part: Part, reading: Reading, schema: pa.Schema | None, bad: Callable[[Malformed], None], told: Told
) -> Iterator[_Chunk]:
    """Lines that are JSON objects, about BLOCK bytes at a time, parsed by `schema` (None: as it comes).

    Arrow judges all lines at once; where it does not like them, or may be too kind, each is looked at.
    """
    at = _Position()
    for lines in _lines(part, reading, told, at):
        good = tuple(line for line in lines if line.strip(_BLANK))
        rows = _parse(good, schema) if _plain(good) else None
        if rows is None:
            good = tuple(_sifted(lines, at.line, bad))
            rows = _parse(good, schema)
        at.line += len(lines)
        at.rows += len(good)
        if good:
            yield _Chunk(good, rows)


def _sifted(lines: list[bytes], before: int, bad: Callable[[Malformed], None]) -> Iterator[bytes]:
    for number, line in enumerate(lines, before + 1):
        if not line.strip(_BLANK):
            continue
        why = _wrong(line)
        if why is None:
            yield line
        else:
            text = line[: 4 * SHOWN].decode(errors="backslashreplace").rstrip("\r")
            bad(Malformed(number, text[:SHOWN], why))


def _lines(part: Part, reading: Reading, told: Told, at: "_Position") -> Iterator[list[bytes]]:
    rest, first = b"", True
    with part.open(reading) as stream:
        while True:
            try:
                data = _block(stream, BLOCK)
            except Damaged as error:
                raise BadInput(
                    "cannot be read as jsonl to its end",
                    where=part.where,
                    got=f"{error}, after {at.rows} rows",
                    next="Check that the file is whole",
                ) from None
            if first:
                check_text(data, part.where)
                data, first = data.removeprefix(b"\xef\xbb\xbf"), False
                if data.lstrip()[:1] == b"[":
                    raise BadInput(
                        "cannot be read as jsonl",
                        where=f"{part.where}:1",
                        got="an array",
                        wanted="a JSON object on each line",
                        next="Make lines of the array: jq -c '.[]'",
                    )
            if not data:
                break
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if lines:
                yield lines
            if len(rest) > MAX_LINE:
                raise too_long(part.where, at.line + 1)
            told(stream.consumed, stream.size)
    if rest:
        yield [rest]


def _block(stream: Any, size: int) -> bytes:
    pieces, got = [], 0
    while got < size:
        piece = stream.read(min(CHUNK, size - got))
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def _plain(lines: tuple[bytes, ...]) -> bool:
    """Whether the lines hold nothing that Arrow may take though it is no text."""
    data = b"\n".join(lines)
    if data.isascii():
        return b"\\u" not in data
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\\u" not in data


def _wrong(line: bytes) -> str | None:
    """Why a line is no row; None when it is one."""
    try:
        _WHOLE_LINE.decode(line)
    except msgspec.ValidationError:
        return "not a JSON object"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"no JSON ({str(error).splitlines()[0]})"
    return None


def _kinds(chunk: _Chunk) -> dict[str, Kind]:
    """By Arrow where it can say, else value by value."""
    if chunk.rows is not None:
        return {field.name: _of_arrow(field.type) for field in chunk.rows.schema}
    found: dict[str, Kind] = {}
    for line in chunk.lines:
        for name, value in _ANY.decode(line).items():
            known = found.get(name, NULL)
            found[name] = known if known is MIXED else merge(known, _kind(value))
    return found


def _parse(lines: tuple[bytes, ...], schema: pa.Schema | None) -> pa.Table | None:
    """The lines as a table of all columns, or of those of `schema`; None when Arrow cannot."""
    if not lines or (schema is not None and not schema.names):
        return None
    data = b"\n".join(lines) + b"\n"
    options = pa_json.ReadOptions(block_size=len(data) + 1, use_threads=False)
    unexpected = "infer" if schema is None else "ignore"
    parse = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    try:
        rows = pa_json.read_json(pa.BufferReader(data), options, parse)
    except pa.ArrowInvalid:
        return None
    return rows if rows.num_rows == len(lines) else None


def _kind(value: object, depth: int = 0) -> Kind:
    match value:
        case None:
            return NULL
        case bool():
            return Kind("bool")
        case int():
            return Kind("int") if value in _WHOLE else MIXED
        case float():
            return Kind("float")
        case str():
            return Kind("text")
        case list() if depth < MAX_DEPTH:
            item = NULL
            for element in value:
                item = merge(item, _kind(element, depth + 1))
            return Kind("list", item=item)
        case dict() if depth < MAX_DEPTH:
            return Kind("object", tuple((name, _kind(inner, depth + 1)) for name, inner in value.items()))
    return MIXED


def _of_arrow(kind: pa.DataType) -> Kind:
    if pa.types.is_null(kind):
        return NULL
    if pa.types.is_boolean(kind):
        return Kind("bool")
    if pa.types.is_integer(kind):
        return Kind("int")
    if pa.types.is_floating(kind):
        return Kind("float")
    if pa.types.is_struct(kind):
        return Kind("object", tuple((field.name, _of_arrow(field.type)) for field in kind))
    if pa.types.is_list(kind):
        return Kind("list", item=_of_arrow(kind.value_type))
    return Kind("text")  # Arrow takes texts for times where they look like it


def _as_text(raw: "msgspec.Raw | None") -> str | None:
    if raw is None:
        return None
    data = bytes(raw)
    if data == b"null":
        return None
    return str(_ANY.decode(data)) if data[:1] == b'"' else data.decode()
