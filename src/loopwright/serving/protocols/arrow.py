"""Arrow's IPC stream: record batches of inputs in, record batches of answers out.

A message is taken from the body only when its size is known and allowed; nanoarrow verifies and decodes it. Compressed
buffers are refused, for a few bytes of them may say that they hold any number.
"""

import io
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import nanoarrow as na
import numpy as np
from nanoarrow._utils import NanoarrowException
from nanoarrow.c_array import CArrayView
from nanoarrow.c_array_stream import CArrayStream
from nanoarrow.ipc import InputStream, StreamWriter
from numpy.typing import NDArray

from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput
from loopwright.serving.engine import Answer
from loopwright.serving.http import Malformed, TooLarge
from loopwright.serving.protocols.parsing import EVENT_TIME, ROW_ID, UNIT
from loopwright.serving.protocols.parts import Part, part_of, rows_at_once
from loopwright.serving.rows import MAX_TEXT, Reader, check_names, short_name

MAX_HEAD = 1 << 20
MAX_BATCH = 32 << 20
MAX_BATCH_ROWS = 1 << 20

_CONTINUED = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_COMPRESSED = 3
"""The place of a record batch's compression among its fields."""

_NUMBERS: dict[str, str] = {
    "e": "<f2", "f": "<f4", "g": "<f8", "c": "<i1", "C": "<u1", "s": "<i2", "S": "<u2", "i": "<i4", "I": "<u4",
    "l": "<i8", "L": "<u8",
}  # fmt: skip
_FLOATS, _TEXTS = frozenset("efg"), frozenset("uU")
_INTEGERS = frozenset(_NUMBERS) - _FLOATS
_UNITS = {"s": (1_000_000, 1), "m": (1000, 1), "u": (1, 1), "n": (1, 1000)}
_WANTED: dict[str, tuple[frozenset[str], str]] = {
    "float64": (_FLOATS | _INTEGERS, "float64, or another float or integer"),
    "int64": (_INTEGERS | _FLOATS, "int64, or another integer, or a float of whole numbers"),
    "bool": (frozenset("b"), "bool"),
    "string": (_TEXTS, "string, plain or dictionary-encoded"),
}

Take = Callable[[int, int], list[Any]]
"""Returns a column's values from one row to before another, None for null."""


class ArrowReader:
    """Reads record batches as they come."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._at_once = rows_at_once(reader)
        self._schema = b""
        self._dictionaries: dict[int, list[bytes]] = {}

    async def parts(self, body: AsyncIterator[bytes]) -> AsyncGenerator[Part, None]:
        """Raises Malformed, TooLarge, BadInput for columns that do not fit, and what reading the body raises."""
        before = 0
        async for head, message in _messages(body):
            if (head.kind == _SCHEMA) == bool(self._schema):
                raise Malformed("messages out of order", where="body", wanted="a schema first, and once")
            if head.kind == _SCHEMA:
                self._schema = message
                _check(_decoded(message)[0], self._reader)
            elif head.kind == _DICTIONARY:
                self._keep(head, message)
            else:
                takes, n = self._columns(message)
                for start in range(0, n, self._at_once):
                    end = min(n, start + self._at_once)
                    columns = {name: take(start, end) for name, take in takes.items()}
                    yield part_of(
                        list(range(before + start + 1, before + end + 1)), columns, self._reader, "row"
                    )
                before += n
        if not self._schema:
            raise Malformed("an empty body", where="body", wanted="an Arrow IPC stream")

    def _keep(self, head: "_Head", message: bytes) -> None:
        known = self._dictionaries.setdefault(head.dictionary, [])
        if not head.delta:
            known.clear()
        known.append(message)
        if sum(len(each) for kept in self._dictionaries.values() for each in kept) > MAX_BATCH:
            raise TooLarge(
                "dictionaries too large", where="body", wanted=f"at most {MAX_BATCH} bytes of them"
            )

    def _columns(self, message: bytes) -> tuple[dict[str, Take], int]:
        kept = [each for messages in self._dictionaries.values() for each in messages]
        schema, arrays = _decoded(b"".join((self._schema, *kept, message)))
        if len(arrays) != 1:
            raise Malformed("not one record batch in its message", where="body", got=len(arrays))
        array = arrays[0]
        view = array.view()
        takes = {child.name: _take(child, view.child(place)) for place, child in enumerate(schema.children)}
        n: int = view.length
        # The views look into `array`, which has to be there until each buffer is copied.
        del view, array
        return takes, n


# Columns.


def _check(schema: Any, reader: Reader) -> None:
    """Raise BadInput unless every input has a column of its kind."""
    formats = {child.name: _format(child) for child in schema.children}
    names = [child.name for child in schema.children]
    check_names(names, reader.schema, at=lambda name: f"column {short_name(name)}", within="schema")
    for field, name, dtype in reader.fields:
        allowed, wanted = _WANTED[dtype]
        if formats[name] not in allowed and not (field.nullable and formats[name] == "n"):
            raise BadInput(
                f"input `{name}` is {dtype}", where=f"column {name}", got=formats[name], wanted=wanted
            )
    for name in (ROW_ID, UNIT):
        if name in formats and formats[name] not in _TEXTS | {"n"}:
            raise BadInput("not text", where=f"column {name}", got=formats[name], wanted="string")
    moment = formats.get(EVENT_TIME, "n")
    if moment not in _TEXTS | {"n", "l"} and not moment.startswith("ts"):
        raise BadInput(
            "not a time", where=f"column {EVENT_TIME}", got=moment, wanted="timestamp, string, or int64 (µs)"
        )


def _format(child: Any) -> str:
    """Arrow's format of a column; of what it holds, when it is dictionary-encoded."""
    found: str = (child.dictionary or child).format
    return f"dictionary<{found}>" if child.dictionary and found not in _TEXTS else found


def _take(child: Any, view: CArrayView) -> Take:
    length = view.length
    form: str = child.format
    if form == "n" or not length:
        return lambda start, end: [None] * (end - start)
    valid = _bits(view.buffer(0), view.offset, length)
    if child.dictionary is not None:
        taken = _dictionary_take(view, _NUMBERS[form], child.dictionary.format)
    elif form in _TEXTS:
        text = _texts(view, form)
        taken = lambda start, end: [text(row) for row in range(start, end)]  # noqa: E731
    elif form == "b":
        bits = _bits(view.buffer(1), view.offset, length)
        assert bits is not None
        taken = lambda start, end: bits[start:end].tolist()  # noqa: E731
    elif form.startswith("ts"):
        times, over = _UNITS[form[2]]
        ticks = _numbers(view, "<i8")
        taken = lambda start, end: [tick * times // over for tick in ticks[start:end].tolist()]  # noqa: E731
    else:
        numbers = _numbers(view, _NUMBERS[form])
        taken = lambda start, end: numbers[start:end].tolist()  # noqa: E731
    if valid is None or valid.all():
        return taken
    return lambda start, end: [
        value if there else None
        for value, there in zip(taken(start, end), valid[start:end].tolist(), strict=True)
    ]


def _numbers(view: CArrayView, dtype: str, buffer: int = 1, more: int = 0) -> NDArray[Any]:
    """A copy of a buffer's numbers from the view's first row on, `more` beyond its last."""
    held = np.frombuffer(bytes(view.buffer(buffer)), dtype=dtype)
    return held[view.offset : view.offset + view.length + more]


def _bits(buffer: Any, offset: int, length: int) -> NDArray[np.bool_] | None:
    packed = bytes(buffer)
    if not packed:
        return None
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    return bits[offset : offset + length].astype(bool)


def _texts(view: CArrayView, form: str) -> Callable[[int], str | bytes]:
    """Returns a row's text; bytes that are no UTF-8 stay bytes, which no input takes."""
    offsets = _numbers(view, "<i8" if form == "U" else "<i4", more=1)
    data = bytes(view.buffer(2))

    def text(row: int) -> str | bytes:
        start, end = int(offsets[row]), int(offsets[row + 1])
        # One byte more than can be right: what is too long is found so, and not copied.
        raw = data[start : min(end, start + 4 * MAX_TEXT + 4)]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw[:20] if end - start <= 4 * MAX_TEXT + 4 else raw.decode(errors="replace")

    return text


def _dictionary_take(view: CArrayView, dtype: str, form: str) -> Take:
    indices = _numbers(view, dtype)
    dictionary = view.dictionary
    text, size = _texts(dictionary, form), dictionary.length
    valid = _bits(dictionary.buffer(0), dictionary.offset, size) if size else None

    def take(start: int, end: int) -> list[Any]:
        places = indices[start:end].tolist()
        # Where the index itself is null, it may be any number.
        known = {
            place: None if valid is not None and not valid[place] else text(place)
            for place in set(places)
            if 0 <= place < size
        }
        return [known.get(place) for place in places]

    return take


# The stream.


class _Head:
    """What a message's metadata says of it."""

    __slots__ = ("compressed", "delta", "dictionary", "kind", "rows", "size")

    def __init__(self, meta: bytes) -> None:
        """Raises struct.error or IndexError for what is no metadata."""
        (root,) = struct.unpack_from("<I", meta)
        kind_at, header_at, size_at = (_field(meta, root, slot) for slot in (1, 2, 3))
        self.kind = meta[kind_at] if kind_at else 0
        self.size = struct.unpack_from("<q", meta, size_at)[0] if size_at else 0
        table = _at(meta, header_at)
        self.dictionary, self.delta = 0, False
        if self.kind == _DICTIONARY:
            id_at, delta_at = _field(meta, table, 0), _field(meta, table, 2)
            self.dictionary = struct.unpack_from("<q", meta, id_at)[0] if id_at else 0
            self.delta = bool(delta_at and meta[delta_at])
            table = _at(meta, _field(meta, table, 1))
        batch = self.kind in (_DICTIONARY, _BATCH)
        rows_at = _field(meta, table, 0) if batch else 0
        self.rows = struct.unpack_from("<q", meta, rows_at)[0] if rows_at else 0
        self.compressed = batch and bool(_field(meta, table, _COMPRESSED))


def _field(meta: bytes, table: int, slot: int) -> int:
    """Where a flatbuffer's table has a field; 0 where it has none."""
    vtable = table - struct.unpack_from("<i", meta, table)[0]
    if vtable < 0:
        raise IndexError(vtable)
    (size,) = struct.unpack_from("<H", meta, vtable)
    if 6 + 2 * slot > size:
        return 0
    (offset,) = struct.unpack_from("<H", meta, vtable + 4 + 2 * slot)
    return table + offset if offset else 0


def _at(meta: bytes, place: int) -> int:
    """Where the offset at `place` points."""
    if not place:
        raise IndexError(place)
    found: int = place + struct.unpack_from("<I", meta, place)[0]
    return found


async def _messages(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[_Head, bytes]]:
    """The stream's messages up to its end, each whole, with its head checked."""
    source = _Source(body)
    while prefix := await source.take(8, whole=False):
        mark, length = struct.unpack("<Ii", prefix)
        if mark != _CONTINUED:
            file = prefix.startswith(b"ARROW1")
            raise Malformed(
                "not an Arrow stream", where="body", got="an Arrow file" if file else prefix.hex(" "),
                wanted="the IPC streaming format",
                next="Write it with pyarrow.ipc.new_stream, not new_file." if file else "",
            )  # fmt: skip
        if length == 0:
            return
        if not 0 < length <= MAX_HEAD:
            raise TooLarge("a message head too large", where="body", got=length, wanted=f"at most {MAX_HEAD}")
        meta = await source.take(length)
        try:
            head = _Head(meta)
        except (struct.error, IndexError):
            raise Malformed("a broken message head", where="body", wanted="an Arrow IPC stream") from None
        _check_head(head)
        yield head, b"".join((prefix, meta, await source.take(head.size)))


def _check_head(head: _Head) -> None:
    if head.kind not in (_SCHEMA, _DICTIONARY, _BATCH):
        raise Malformed("a message of another kind", where="body", got=head.kind, wanted="record batches")
    if not 0 <= head.size <= MAX_BATCH or not 0 <= head.rows <= MAX_BATCH_ROWS:
        raise TooLarge(
            "a record batch too large", where="body", got=f"{head.rows} rows, {head.size} bytes",
            wanted=f"at most {MAX_BATCH_ROWS} rows and {MAX_BATCH} bytes",
            next="Write smaller ones: writer.write_table(table, max_chunksize=10000).",
        )  # fmt: skip
    if head.compressed:
        raise BadInput("compressed buffers are not read", where="body", wanted="a stream without compression")


class _Source:
    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = aiter(body)
        self._parts: list[bytes] = []
        self._have = 0

    async def take(self, n: int, *, whole: bool = True) -> bytes:
        """The next `n` bytes; b"" at the end of the body unless `whole`. Raises Malformed when it ends between."""
        while self._have < n:
            part = await anext(self._body, None)
            if part is None:
                if not self._have and not whole:
                    return b""
                raise Malformed("cut off", where="body", got=self._have, wanted=f"{n} bytes more")
            self._parts.append(part)
            self._have += len(part)
        data = b"".join(self._parts)
        self._parts = [data[n:]] if n < len(data) else []
        self._have = len(data) - n
        return data[:n]


def _decoded(data: bytes) -> tuple[Any, list[Any]]:
    """A stream's schema and record batches, verified. Raises Malformed."""
    try:
        with na.c_array_stream(InputStream.from_readable(io.BytesIO(data))) as stream:
            return stream.get_schema(), list(stream)
    except (NanoarrowException, ValueError) as error:
        what = str(error).rpartition(": ")[2] or str(error)
        raise Malformed(
            f"not an Arrow stream that can be read ({what})", where="body",
            next="Write text as string; polars: compat_level=CompatLevel.oldest()." if "View" in what else "",
        ) from None  # fmt: skip


# Answers.


class _Row(NamedTuple):
    id: str | None
    outputs: Sequence[float] = ()
    version: int | None = None
    arm: str | None = None
    source: str | None = None
    error: str | None = None


class ArrowWriter:
    """Writes a record batch for each part: _id, the outputs, _version, _arm, _source and _error (null: none)."""

    def __init__(self, schema: Schema) -> None:
        self._outputs = schema.outputs
        text = na.string()
        columns = {ROW_ID: text, **dict.fromkeys(schema.outputs, na.float64()), "_version": na.int64()}
        columns |= {"_arm": text, "_source": text, "_error": text}
        self._schema = na.c_schema(na.struct(columns))
        self._out = io.BytesIO()
        self._writer = StreamWriter.from_writable(self._out)

    def head(self) -> bytes:
        """The schema."""
        self._writer.write_stream(CArrayStream.from_c_arrays([], self._schema))
        return self._written()

    def part(self, part: Part, answer: Answer | None) -> bytes:
        """A record batch with a row for each of the part's."""
        rows: list[_Row] = []
        row = 0
        for at in range(len(part.places)):
            if answer is None or at in part.bad:
                rows.append(_Row(part.names.get(at) or None, error=part.bad[at]))
                continue
            told = _Row(answer.ids[row], version=answer.versions[row], arm=answer.arms[row] or None)
            if answer.errors[row]:
                told = told._replace(error=answer.errors[row])
            else:
                told = told._replace(outputs=answer.outputs[row], source=answer.sources[row])
            rows.append(told)
            row += 1
        return self._batch(rows)

    def end(self, failure: str, position: int) -> bytes:
        """The stream's end, after a row with what ended the request before its time."""
        last = self._batch([_Row(None, error=failure)]) if failure else b""
        self._writer.close()
        return last + self._written()

    def _batch(self, rows: Sequence[_Row]) -> bytes:
        ids, outputs, versions, arms, sources, errors = zip(*rows, strict=True)
        n = len(rows)
        there = np.array([bool(each) for each in outputs])
        values = np.full((n, len(self._outputs)), np.nan)
        if there.any():
            values[there] = [each for each in outputs if each]
        children = [_text_array(ids)]
        children += [
            _number_array(na.float64(), values[:, i].copy(), there) for i in range(len(self._outputs))
        ]
        known = np.array([version is not None for version in versions])
        children.append(_number_array(na.int64(), np.array([version or 0 for version in versions]), known))
        children += [_text_array(texts) for texts in (arms, sources, errors)]
        self._writer.write_array(
            na.c_array_from_buffers(self._schema, n, [None], children=children, null_count=0)
        )
        return self._written()

    def _written(self) -> bytes:
        data = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return data


def _number_array(kind: Any, values: NDArray[Any], there: NDArray[np.bool_]) -> Any:
    missing = len(there) - int(there.sum())
    valid = np.packbits(there, bitorder="little") if missing else None
    return na.c_array_from_buffers(kind, len(values), [valid, values], null_count=missing)


def _text_array(texts: Sequence[str | None]) -> Any:
    encoded = [b"" if text is None else text.encode("utf-8", "replace") for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in encoded], out=offsets[1:])
    missing = sum(text is None for text in texts)
    valid = np.packbits([text is not None for text in texts], bitorder="little") if missing else None
    return na.c_array_from_buffers(
        na.string(), len(texts), [valid, offsets, b"".join(encoded)], null_count=missing
    )
