"""Reads Arrow's IPC streaming format from anybody: each length in it is checked against the bytes that are there.

Written here, for the columns that models take, because the decoders in C at hand trust some of those lengths, and a
worker must outlive whatever it is sent. Compressed buffers are refused: a few bytes of them may stand for any number.
Layout: https://arrow.apache.org/docs/format/Columnar.html, and Schema.fbs and Message.fbs beside it.
"""

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput
from loopwright.serving.http import Malformed, TooLarge
from loopwright.serving.rows import MAX_TEXT

MAX_HEAD = 1 << 20
MAX_BATCH = 32 << 20
MAX_BATCH_ROWS = 1 << 20

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
_CONTINUED = 0xFFFFFFFF
_STRUCT = struct.Struct("<qq")
_BROKEN = (struct.error, IndexError, UnicodeDecodeError)

Kind = Literal["null", "int", "float", "bool", "string", "timestamp", "other"]
_KINDS: dict[int, Kind] = {
    1: "null",
    2: "int",
    3: "float",
    5: "string",
    6: "bool",
    10: "timestamp",
    20: "string",
    24: "string",
}
_NAMES = {4: "binary", 7: "decimal", 8: "date", 9: "time", 12: "list", 13: "struct", 14: "union", 17: "map",
          18: "duration", 19: "large_binary", 21: "large_list", 23: "binary_view"}  # fmt: skip
_OFFSETS = {5: "<i4", 20: "<i8", 24: "view"}
_VIEW = np.dtype([("size", "<i4"), ("start", "V4"), ("buffer", "<i4"), ("offset", "<i4")])
_INLINE = 12
"""Bytes of a text that stand in its view itself."""
_BUFFERS: dict[Kind, int] = {"null": 0, "string": 3}
"""Buffers of a column; two where nothing else is said: validity and data."""

_MICROSECONDS = {0: (1_000_000, 1), 1: (1000, 1), 2: (1, 1), 3: (1, 1000)}

Take = Callable[[int, int], list[Any]]
"""Returns a column's values from one row to before another, None for null."""


@dataclass(frozen=True, slots=True)
class Column:
    """A schema's column. type: as Arrow calls it; kind: of its values; layout: numpy's name of its numbers, or of a
    text's offsets, or "view"; unit: a timestamp's in microseconds, as a fraction; dictionary, index: where encoded."""

    name: str
    type: str
    kind: Kind
    layout: str = ""
    unit: tuple[int, int] = (1, 1)
    dictionary: int | None = None
    index: str = ""


@dataclass(frozen=True, slots=True)
class Texts:
    """What the indices of a dictionary-encoded column stand for. size: bytes."""

    length: int
    take: Take
    size: int


class Table:
    """A flatbuffer's table. Whatever does not fit raises struct.error or IndexError."""

    __slots__ = ("_at", "_data", "_size", "_vtable")

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        if self._vtable < 0:
            raise IndexError(self._vtable)
        (self._size,) = struct.unpack_from("<H", data, self._vtable)

    @classmethod
    def root(cls, data: bytes) -> "Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, slot: int) -> int:
        if 6 + 2 * slot > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + 4 + 2 * slot)
        return self._at + offset if offset else 0

    def number(self, slot: int, layout: str, default: int = 0) -> int:
        at = self._field(slot)
        found: int = struct.unpack_from(layout, self._data, at)[0] if at else default
        return found

    def _follow(self, at: int) -> int:
        found: int = at + struct.unpack_from("<I", self._data, at)[0]
        return found

    def table(self, slot: int) -> "Table | None":
        at = self._field(slot)
        return Table(self._data, self._follow(at)) if at else None

    def vector(self, slot: int, size: int) -> tuple[int, int]:
        """Where a vector's elements of `size` bytes begin, and how many there are."""
        at = self._field(slot)
        if not at:
            return 0, 0
        start = self._follow(at)
        (count,) = struct.unpack_from("<I", self._data, start)
        if start + 4 + count * size > len(self._data):
            raise IndexError(count)
        return start + 4, count

    def tables(self, slot: int) -> list["Table"]:
        start, count = self.vector(slot, 4)
        return [Table(self._data, self._follow(start + 4 * i)) for i in range(count)]

    def pairs(self, slot: int) -> list[tuple[int, int]]:
        start, count = self.vector(slot, _STRUCT.size)
        return [_STRUCT.unpack_from(self._data, start + _STRUCT.size * i) for i in range(count)]

    def longs(self, slot: int) -> list[int]:
        start, count = self.vector(slot, 8)
        return list(struct.unpack_from(f"<{count}q", self._data, start)) if count else []

    def text(self, slot: int) -> str:
        start, count = self.vector(slot, 1)
        return self._data[start : start + count].decode()


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the stream: its kind, the table about it, and its body, no larger than is allowed."""

    kind: int
    table: Table
    body: bytes


async def messages(body: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    """The stream's messages up to its end, each whole. Raises Malformed, TooLarge, and what reading the body raises."""
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
        head = await source.take(length)
        try:
            root = Table.root(head)
            kind, size, table = root.number(1, "<B"), root.number(3, "<q"), root.table(2)
        except _BROKEN:
            raise broken("a message head") from None
        if kind not in (SCHEMA, DICTIONARY, BATCH) or table is None:
            raise Malformed("a message of another kind", where="body", got=kind, wanted="record batches")
        if not 0 <= size <= MAX_BATCH:
            raise _too_large(f"{size} bytes")
        yield Message(kind, table, await source.take(size))


def read_schema(message: Message) -> list[Column]:
    """The columns. Raises Malformed."""
    try:
        if message.table.number(0, "<h"):
            raise Malformed("numbers with their bytes in another order", where="body", wanted="little-endian")
        return [_column(field) for field in message.table.tables(1)]
    except _BROKEN:
        raise broken("the schema") from None


def _column(field: Table) -> Column:
    name, code, about = field.text(0), field.number(2, "<B"), field.table(3)
    kind = _KINDS.get(code, "other")
    type_, layout, unit = _NAMES.get(code, f"type {code}") if kind == "other" else kind, "", (1, 1)
    if kind == "int":
        layout = _integer(about)
        type_ = np.dtype(layout).name if layout else "int"
    elif kind == "float" and about is not None:
        layout = {0: "<f2", 1: "<f4", 2: "<f8"}.get(about.number(0, "<h"), "")
        type_ = np.dtype(layout).name if layout else "float"
    elif kind == "string":
        layout = _OFFSETS[code]
    elif kind == "timestamp":
        layout, unit = "<i8", _MICROSECONDS.get(about.number(0, "<h") if about else 0, (1, 1))
    if kind in ("int", "float") and not layout:
        kind = "other"
    encoding = field.table(4)
    if encoding is None:
        return Column(name, type_, kind, layout, unit)
    index = _integer(encoding.table(1)) or "<i4"
    return Column(name, f"dictionary<{type_}>", kind, layout, unit, encoding.number(0, "<q"), index)


def _integer(about: Table | None) -> str:
    if about is None:
        return ""
    size, letter = about.number(0, "<i") // 8, "i" if about.number(1, "<B") else "u"
    return f"<{letter}{size}" if size in (1, 2, 4, 8) else ""


def read_dictionary(message: Message, columns: Sequence[Column]) -> tuple[int, Texts]:
    """A dictionary's id and texts. Raises Malformed, TooLarge, BadInput for what is added to an earlier one."""
    try:
        key, batch = message.table.number(0, "<q"), message.table.table(1)
        delta = message.table.number(2, "<B")
    except _BROKEN:
        raise broken("a dictionary") from None
    column = next((column for column in columns if column.dictionary == key), None)
    if batch is None or column is None or column.kind != "string":
        raise broken("a dictionary")
    if delta:
        raise BadInput(
            "additions to a dictionary are not read", where="body", wanted="whole dictionaries",
            next="pyarrow: IpcWriteOptions(emit_dictionary_deltas=False), as it is by default.",
        )  # fmt: skip
    values = Column("", "string", "string", column.layout)
    (take,), length = _read(batch, message.body, [values], {})
    return key, Texts(length, take, len(message.body))


def read_batch(
    message: Message, columns: Sequence[Column], dictionaries: dict[int, Texts]
) -> tuple[list[Take], int]:
    """What gives each column's values, and the number of rows. Raises Malformed, TooLarge, BadInput."""
    return _read(message.table, message.body, columns, dictionaries)


def _read(
    batch: Table, body: bytes, columns: Sequence[Column], dictionaries: dict[int, Texts]
) -> tuple[list[Take], int]:
    try:
        n, nodes, buffers = batch.number(0, "<q"), batch.pairs(1), batch.pairs(2)
        compressed, counts = batch.table(3) is not None, batch.longs(4)
    except _BROKEN:
        raise broken("a record batch") from None
    if not 0 <= n <= MAX_BATCH_ROWS:
        raise _too_large(f"{n} rows")
    if compressed:
        raise BadInput("compressed buffers are not read", where="body", wanted="a stream without compression")
    if any(count < 0 for count in counts):
        raise broken("a record batch")
    views = iter(counts)
    needed = [
        2 if column.dictionary is not None
        else 2 + next(views, 0) if column.layout == "view"
        else _BUFFERS.get(column.kind, 2)
        for column in columns
    ]  # fmt: skip
    if len(nodes) != len(columns) or len(buffers) != sum(needed) or any(length != n for length, _ in nodes):
        raise broken("a record batch")
    if any(start < 0 or size < 0 or start + size > len(body) for start, size in buffers):
        raise broken("a buffer")
    takes, first = [], 0
    for column, count, (_, nulls) in zip(columns, needed, nodes, strict=True):
        own = [memoryview(body)[start : start + size] for start, size in buffers[first : first + count]]
        first += count
        takes.append(_take(column, own, n, nulls, dictionaries))
    return takes, n


def _take(
    column: Column, buffers: Sequence[memoryview], n: int, nulls: int, dictionaries: dict[int, Texts]
) -> Take:
    if column.kind == "null" or not n:
        return lambda start, end: [None] * (end - start)
    if column.dictionary is not None:
        indices = _numbers(buffers[1], column.index, n)
        plain = _looked_up(indices, dictionaries.get(column.dictionary))
    elif column.kind == "string":
        if column.layout == "view":
            plain = _views(buffers[1], buffers[2:], n)
        else:
            plain = _texts(buffers[1], buffers[2], column.layout, n)
    elif column.kind == "bool":
        bits = _bits(buffers[1], n)
        plain = lambda start, end: bits[start:end].tolist()  # noqa: E731
    else:
        numbers = _numbers(buffers[1], column.layout, n)
        if column.kind == "timestamp":
            times, over = column.unit
            plain = lambda start, end: [tick * times // over for tick in numbers[start:end].tolist()]  # noqa: E731
        else:
            plain = lambda start, end: numbers[start:end].tolist()  # noqa: E731
    if not nulls and not len(buffers[0]):
        return plain
    valid = _bits(buffers[0], n)
    return lambda start, end: [
        value if there else None
        for value, there in zip(plain(start, end), valid[start:end].tolist(), strict=True)
    ]


def _numbers(buffer: memoryview, layout: str, n: int) -> NDArray[Any]:
    if len(buffer) < n * np.dtype(layout).itemsize:
        raise broken("a buffer")
    return np.frombuffer(buffer, dtype=layout, count=n)


def _bits(buffer: memoryview, n: int) -> NDArray[np.bool_]:
    if 8 * len(buffer) < n:
        raise broken("a bitmap")
    return np.unpackbits(np.frombuffer(buffer, dtype=np.uint8), count=n, bitorder="little").astype(bool)


def _texts(offsets: memoryview, data: memoryview, layout: str, n: int) -> Take:
    """Texts; bytes that are no UTF-8 stay bytes, which no input takes."""
    edges = _numbers(offsets, layout, n + 1)
    if int(edges[0]) < 0 or int(edges[-1]) > len(data) or (np.diff(edges) < 0).any():
        raise broken("a text")

    def take(start: int, end: int) -> list[Any]:
        here = edges[start : end + 1].tolist()
        return [_text(data, here[row], here[row + 1]) for row in range(end - start)]

    return take


def _views(views: memoryview, data: Sequence[memoryview], n: int) -> Take:
    """Texts of which each says where it stands; as `_texts`. A view that points nowhere gives b""."""
    if len(views) < _VIEW.itemsize * n:
        raise broken("a text")
    table = np.frombuffer(views, dtype=_VIEW, count=n)

    def text(row: int, size: int, buffer: int, offset: int) -> str | bytes:
        if 0 <= size <= _INLINE:
            start = _VIEW.itemsize * row + 4
            return _text(views, start, start + size)
        if size < 0 or offset < 0 or not 0 <= buffer < len(data) or offset + size > len(data[buffer]):
            return b""
        return _text(data[buffer], offset, offset + size)

    def take(start: int, end: int) -> list[Any]:
        here = table[start:end]
        about = zip(here["size"].tolist(), here["buffer"].tolist(), here["offset"].tolist(), strict=True)
        return [text(start + row, *each) for row, each in enumerate(about)]

    return take


def _text(data: memoryview, start: int, end: int) -> str | bytes:
    # Beyond `most` bytes it is too long for every input, and need not be copied whole to be found so.
    most = 4 * MAX_TEXT + 4
    raw = bytes(data[start : min(end, start + most)])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw[:20] if end - start <= most else raw.decode(errors="replace")


def _looked_up(indices: NDArray[Any], texts: Texts | None) -> Take:
    def take(start: int, end: int) -> list[Any]:
        places = indices[start:end].tolist()
        known = {}
        for place in set(places):
            # Where the index itself is null, it may be any number.
            if texts is not None and 0 <= place < texts.length:
                (known[place],) = texts.take(place, place + 1)
        return [known.get(place) for place in places]

    return take


def broken(what: str) -> Malformed:
    """The error for lengths and places that do not fit what is there."""
    return Malformed(f"{what} does not hold what it says", where="body", wanted="an Arrow IPC stream")


def _too_large(got: str) -> TooLarge:
    return TooLarge(
        "a record batch too large", where="body", got=got,
        wanted=f"at most {MAX_BATCH_ROWS} rows and {MAX_BATCH} bytes",
        next="Write smaller ones: writer.write_table(table, max_chunksize=10000).",
    )  # fmt: skip


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
