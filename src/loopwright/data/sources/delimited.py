"""CSV and its kin: all cells as text, records judged one by one.

What makes a line no row: another number of fields than the header, a NUL byte, a cell that is not UTF-8, a quote that
is never closed. Such lines are set aside with their number; the others are rows.
"""

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from loopwright.data.sources.reading import MAX_LINE, SHOWN, Damaged, Malformed, Reading, Told, first_line
from loopwright.data.sources.streams import Part, Stream
from loopwright.kernel.errors import BadInput

BLOCK = MAX_LINE
"""Bytes parsed at a time. Arrow reads up to 32 blocks ahead, and fails at a record that has no end in a whole block."""
HELD_LINES = 10_000
"""Malformed lines whose numbers may wait for the end of the file; see `_Numbers`."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Header:
    """`names`: the columns. `bytes`, `lines`: how much of the unpacked file the header takes."""

    names: tuple[str, ...]
    delimiter: str
    bytes: int
    lines: int


def read_header(part: Part, reading: Reading) -> Header:
    """The first record. Raises BadInput for a file without usable names."""
    with part.open(reading) as stream:
        data, ended = b"", False
        while not ended:
            try:
                chunk = stream.read(64 << 10)
            except Damaged as error:
                raise BadInput(
                    "cannot be read as csv",
                    where=part.where,
                    got=str(error),
                    wanted="a header and rows",
                    next="Check that the file is whole",
                ) from None
            data, ended = data + chunk, not chunk
            check_text(data, part.where)
            found = _header(data, part.where, reading.delimiter, ended)
            if found is not None:
                return found
            if len(data) > MAX_LINE:
                raise too_long(part.where, 1)
    raise BadInput(
        "is empty", where=part.where, wanted="a header and rows", next="Check how the file was written"
    )


def read_rows(
    part: Part,
    header: Header,
    reading: Reading,
    nulls: Sequence[str],
    bad: Callable[[Malformed], None],
    told: Told,
) -> Iterator[pa.RecordBatch]:
    """The rows in order, all columns text; lines that are none go to `bad`, in order too.

    Raises BadInput that names file and line where the file cannot be read on.
    """
    with part.open(reading) as stream:
        _skip(stream, header.bytes)
        first = stream.read(1)
        if not first:
            return
        stream.unread(first)
        numbers = _Numbers(part, header, reading, stream, bad)
        ragged: list[tuple[int, str, str]] = []

        def keep(row: Any) -> str:
            text = row.text or ""
            why = f"{row.actual_columns} fields, wanted {row.expected_columns}"
            ragged.append((row.number, text, why))
            return "skip"

        try:
            yield from _batches(stream, header, nulls, keep, ragged, numbers, told)
        except Damaged as error:
            raise BadInput(
                "cannot be read as csv to its end",
                where=part.where,
                got=f"{error}, after {numbers.rows} rows",
                next="Check that the file is whole",
            ) from None
        except pa.ArrowInvalid as error:
            if "straddling" in str(error):
                raise too_long(part.where, numbers.line(numbers.records + 1)) from None
            raise BadInput(
                "cannot be read as csv",
                where=part.where,
                got=f"{first_line(error)}, after {numbers.rows} rows",
                next="Check that the file is whole",
            ) from None
        numbers.finish()


def check_text(start: bytes, where: str) -> None:
    """Raise BadInput for bytes that begin no text in UTF-8."""
    if start.startswith(_UTF16) or b"\0" in re.split(rb"[\r\n]", start[: 64 << 10], maxsplit=1)[0]:
        utf16 = start.startswith(_UTF16) or start[1:2] == b"\0" or start[:1] == b"\0"
        raise BadInput(
            "not text in UTF-8",
            where=where,
            got="UTF-16" if utf16 else "NUL bytes",
            wanted="text in UTF-8",
            next="Convert it (iconv -f utf-16 -t utf-8) or say `encoding: utf-16` in loop.yaml"
            if utf16
            else "Check how the file was written",
        )


def too_long(where: str, line: int | None) -> BadInput:
    return BadInput(
        "a record is too long",
        where=f"{where}:{line}" if line else where,
        got=f"more than {MAX_LINE >> 20} MB without an end",
        wanted="lines of text",
        next="Look for a quote that is never closed, or a file without line ends",
    )


def _batches(
    stream: Stream, header: Header, nulls: Sequence[str], keep: Callable[[Any], str],
    ragged: list[tuple[int, str, str]], numbers: "_Numbers", told: Told,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(header.names, pa.string()),
        null_values=list(nulls),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        check_utf8=False,  # a cell that is not UTF-8 costs its line, not the file
    )
    parse = pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True, invalid_row_handler=keep)
    # Only a single-threaded reader knows the numbers of lines.
    options = pa_csv.ReadOptions(column_names=list(header.names), use_threads=False, block_size=BLOCK)
    try:
        reader = pa_csv.open_csv(pa.PythonFile(stream, mode="r"), options, parse, convert)
    except pa.ArrowInvalid as error:
        if "mpty CSV" in str(error):
            return
        raise
    last: pa.RecordBatch | None = None
    with reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            if batch.num_rows == 0 and not ragged:
                continue
            if last is not None:
                yield last
            last = numbers.sift(batch, ragged)
            told(stream.consumed, stream.size)
    if last is not None:
        yield last if ragged else numbers.sift_end(last, stream.tail)
    numbers.rest(ragged)


class _Numbers:
    """Knows which line of the file a record begins on, and sets records aside.

    Arrow numbers records; lines within quotes are counted here. Lines that are blank are not seen at all: where there
    are any, the records set aside are looked up in a second pass at the end, for the first HELD_LINES of them.
    """

    def __init__(
        self, part: Part, header: Header, reading: Reading, stream: Stream, bad: Callable[[Malformed], None]
    ) -> None:
        self.records = 0  # so far, malformed ones included
        self.rows = 0
        self._inner = 0  # line ends within quotes so far
        self._part, self._header, self._reading, self._stream = part, header, reading, stream
        self._bad = bad
        self._held: list[tuple[int, Malformed]] = []
        self._spilled = False
        self._last_kept = True

    def line(self, record: int) -> int:
        """Where the next `record` begins, unless there are blank lines."""
        return self._header.lines + record + self._inner

    def sift(self, batch: pa.RecordBatch, ragged: list[tuple[int, str, str]]) -> pa.RecordBatch:
        """Set aside what is no row, of this batch and of `ragged` up to its end; return the rows."""
        rows = batch.num_rows
        raw = [_data(column) for column in batch.columns]
        inner = sum(data.count(b"\n") for data in raw)
        broken = _broken(batch, raw)
        ragged.sort()
        skipped = [number for number, _, _ in ragged]
        end = _nth(self.records, batch.num_rows, skipped)
        mine = bisect_right(skipped, end)
        if broken or mine:
            within = _inner_lines(batch) if inner else None
            aside: list[tuple[int, int | None, str, str]] = [
                (number, None, text, why) for number, text, why in ragged[:mine]
            ]
            for place, why in broken.items():
                number = _nth(self.records, place + 1, skipped)
                aside.append((number, place, _spelt(batch, place, self._header.delimiter), why))
            extra = 0
            for number, row, text, why in sorted(aside, key=lambda found: found[0]):
                before = number - self.records - 1 - bisect_right(skipped, number - 1)
                lines = within[before - 1] if within is not None and before > 0 else 0
                self._aside(number, Malformed(self.line(number) + lines + extra, text[:SHOWN], why))
                extra += text.count("\n") if row is None else 0
            inner += extra
            del ragged[:mine]
            if broken:
                keep = pa.array([row not in broken for row in range(batch.num_rows)])
                batch = batch.filter(keep)
        self._last_kept = rows - 1 not in broken
        self.records = end
        self._inner += inner
        self.rows += batch.num_rows
        return batch

    def sift_end(self, batch: pa.RecordBatch, tail: bytes) -> pa.RecordBatch:
        """The last batch without a last row whose quote is never closed."""
        if batch.num_rows and self._last_kept and not tail.rstrip(b"\r\n \t").endswith(b'"'):
            cell = batch.column(batch.num_columns - 1)[batch.num_rows - 1].as_py()
            if cell is not None and ("\n" in cell or "\r" in cell):
                text = _spelt(batch, batch.num_rows - 1, self._header.delimiter)
                line = self.line(self.records) - cell.count("\n")
                self._aside(self.records, Malformed(line, text[:SHOWN], "a quote that is never closed"))
                self.rows -= 1
                return batch.slice(0, batch.num_rows - 1)
        return batch

    def rest(self, ragged: list[tuple[int, str, str]]) -> None:
        """Set aside what came after the last row."""
        for number, text, why in sorted(ragged):
            self._aside(number, Malformed(self.line(number), text[:SHOWN], why))
            self._inner += text.count("\n")
            self.records = max(self.records, number)
        ragged.clear()

    def finish(self) -> None:
        """Hand out what was held, by the right lines."""
        counted = self._header.lines + self.records + self._inner
        self._hand_out(exact=self._stream.lines in (counted, counted - 1))

    def _aside(self, number: int, line: Malformed) -> None:
        if self._spilled:
            self._bad(Malformed(None, line.text, line.why) if self._stream.blanks else line)
            return
        self._held.append((number, line))
        if len(self._held) == HELD_LINES:
            self._spilled = True
            self._hand_out(exact=not self._stream.blanks)

    def _hand_out(self, *, exact: bool) -> None:
        found = {} if exact or not self._held else self._look_up([number for number, _ in self._held])
        for number, line in self._held:
            self._bad(line if exact else Malformed(found.get(number), line.text, line.why))
        self._held = []

    def _look_up(self, records: Sequence[int]) -> dict[int, int]:
        """Record → the line it begins on, by Python's reader."""
        csv.field_size_limit(4 * MAX_LINE)
        wanted, last = set(records), max(records)
        found: dict[int, int] = {}
        with self._part.open(self._reading) as stream:
            _skip(stream, self._header.bytes)
            text = io.TextIOWrapper(io.BufferedReader(stream), encoding="latin-1", newline="")
            reader = csv.reader(text, delimiter=self._header.delimiter)
            record, before = 0, 0
            for fields in reader:
                if fields:
                    record += 1
                    if record in wanted:
                        found[record] = self._header.lines + before + 1
                    if record >= last:
                        break
                before = reader.line_num
        return found


def _header(data: bytes, where: str, delimiter: str | None, ended: bool) -> Header | None:
    """The header in `data`, or None when it is not all there yet."""
    bom = len(_BOM) if data.startswith(_BOM) else 0
    lines = data[bom:].splitlines(keepends=True)
    whole = lines if ended else [line for line in lines if line.endswith(b"\n")][: len(lines)]
    if not ended and not whole and not any(line.endswith(b"\r") for line in lines[:-1]):
        return None
    whole = whole or lines[:-1]
    if not whole:
        return None
    try:
        texts = [line.decode() for line in whole[:1000]]
    except UnicodeDecodeError:
        try:
            texts = [whole[0].decode()]
        except UnicodeDecodeError:
            raise BadInput(
                "the header is not UTF-8",
                where=f"{where}:1",
                wanted="CSV in UTF-8",
                next="Convert it (iconv -t utf-8) or say its `encoding` in loop.yaml",
            ) from None
    if not texts[0].strip():
        raise BadInput(
            "the first line is empty", where=f"{where}:1", wanted="column names", next="Add a header line"
        )
    separator = delimiter or max(",;\t|", key=texts[0].count)
    csv.field_size_limit(4 * MAX_LINE)
    reader = csv.reader(iter(texts), delimiter=separator)
    names = next(reader)
    if reader.line_num >= len(texts) and not ended and texts[-1].count('"') % 2:
        return None
    names = _named(names, where, texts[0].rstrip("\r\n"))
    taken = sum(len(line) for line in whole[: reader.line_num])
    return Header(tuple(names), separator, bom + taken, reader.line_num)


def _named(names: list[str], where: str, text: str) -> list[str]:
    if not names[0].strip():
        names[0] = "unnamed"  # an index column, as pandas writes it
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise BadInput(
            "a column name stands twice in the header",
            where=f"{where}:1",
            got=twice[0],
            next="Rename one of them",
        )
    if "" in (name.strip() for name in names):
        raise BadInput(
            "a column has no name",
            where=f"{where}:1",
            got=text,
            wanted="a name for every column",
            next="Mend the header",
        )
    return names


def _skip(stream: Stream, size: int) -> None:
    while size > 0:
        taken = len(stream.read(size))
        if not taken:
            return
        size -= taken


def _data(column: pa.Array) -> bytes:
    """The bytes of all cells, one after the other."""
    buffer = column.buffers()[2]
    return b"" if buffer is None else buffer.to_pybytes()


def _broken(batch: pa.RecordBatch, raw: Sequence[bytes]) -> dict[int, str]:
    """Position of each row with a cell that is no text → what is wrong with it."""
    found: dict[int, str] = {}
    for name, column, data in zip(batch.schema.names, batch.columns, raw, strict=True):
        plain = data.isascii()
        if plain and b"\0" not in data:
            continue
        if not plain:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                for row in pc.indices_nonzero(pc.invert(pc.string_is_ascii(column))).to_pylist():
                    try:
                        column[row].cast(pa.binary()).as_py().decode()
                    except UnicodeDecodeError as error:
                        byte = error.object[error.start]
                        found.setdefault(row, f"`{name}` is not UTF-8 (byte 0x{byte:02x})")
        if b"\0" in data:
            for row in pc.indices_nonzero(pc.match_substring(column.cast(pa.binary()), "\0")).to_pylist():
                found.setdefault(row, f"`{name}` has a NUL byte")
    return found


def _spelt(batch: pa.RecordBatch, row: int, delimiter: str) -> str:
    cells = [column[row].cast(pa.binary()).as_py() for column in batch.columns]
    return delimiter.join(
        "" if cell is None else cell[:SHOWN].decode(errors="backslashreplace") for cell in cells
    )


def _inner_lines(batch: pa.RecordBatch) -> list[int]:
    """Line ends within the cells of the rows up to and with each."""
    counts: Any = pa.repeat(pa.scalar(0, pa.int32()), batch.num_rows)
    for column in batch.columns:
        counts = pc.add(counts, pc.fill_null(pc.count_substring(column.cast(pa.binary()), "\n"), 0))
    summed: list[int] = pc.cumulative_sum(counts).to_pylist()
    return summed


def _nth(base: int, row: int, skipped: Sequence[int]) -> int:
    """The number of the `row`-th record after `base` that is not among `skipped` (sorted)."""
    number = base + row
    for taken in skipped:
        if taken > number:
            break
        number += 1
    return number
