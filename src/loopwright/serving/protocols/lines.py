"""JSON lines: a row of inputs a line, by name, with `_id`, `_unit` and `_event_time` where it has them."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput
from loopwright.serving.engine import Answer
from loopwright.serving.protocols.parsing import ROW_ID
from loopwright.serving.protocols.parts import Part, name_of, part_of, rows_at_once
from loopwright.serving.protocols.typed import label
from loopwright.serving.rows import RESERVED, Reader, check_names, short_name

MAX_LINE = 1 << 20

_decode = msgspec.json.Decoder().decode
_encoder = msgspec.json.Encoder()
_Line = tuple[int, bytes | None]


class Line(msgspec.Struct, omit_defaults=True):
    """A row's answer. source: what stood in for a failing arm; error: why there is none; line: where the row stood."""

    id: str = ""
    version: int = 0
    arm: str = ""
    outputs: dict[str, float] | None = None
    label: str | None = None
    source: str = "model"
    error: str | None = None
    line: int = 0


class LineReader:
    """Reads lines as they come; a part is what has come, up to a number of rows."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._at_once = rows_at_once(reader)
        self._known = {*reader.names, *RESERVED}
        self._bools = [name for _, name, dtype in reader.fields if dtype == "bool"]

    async def parts(self, body: AsyncIterator[bytes]) -> AsyncGenerator[Part, None]:
        """Raises what reading the body raises; a line that cannot be read is an error in its part."""
        async for lines in _lines(body):
            for start in range(0, len(lines), self._at_once):
                yield self._part(lines[start : start + self._at_once])

    def _part(self, lines: list[_Line]) -> Part:
        bad: dict[int, str] = {}
        names: dict[int, str] = {}
        records = []
        for at, (number, line) in enumerate(lines):
            record = None
            try:
                record = self._record(line, f"line {number}")
                records.append(record)
            except BadInput as error:
                bad[at], names[at] = str(error), name_of(_id_of(line))
        columns = {name: [record[name] for record in records] for name in self._reader.names}
        for name in RESERVED:
            columns[name] = [record.get(name) for record in records]
        return part_of([number for number, _ in lines], columns, self._reader, "line", bad, names)

    def _record(self, line: bytes | None, where: str) -> dict[str, Any]:
        if line is None:
            raise BadInput("the line is too long", where=where, wanted=f"at most {MAX_LINE} bytes")
        try:
            record = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise BadInput(f"not JSON ({reason})", where=where) from None
        if type(record) is not dict:
            raise BadInput("not a row", where=where, wanted="an object of inputs by name")
        if record.keys() != self._reader.names and not self._reader.names <= record.keys() <= self._known:
            schema = self._reader.schema
            check_names(list(record), schema, at=lambda name: f"{where}: {short_name(name)}", within=where)
        for name in self._bools:
            if type(record[name]) is float:  # what binary tensors must write
                raise BadInput(
                    "a value of another kind",
                    where=f"{where}: {name}",
                    got=record[name],
                    wanted="true or false",
                )
        return record


def _id_of(line: bytes | None) -> object:
    try:
        return _decode(line)[ROW_ID] if line else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[list[_Line]]:
    """Lines that have come, with their numbers, blank ones left out; None for one that is too long."""
    rest = bytearray()
    number = 0
    too_long = False
    async for chunk in body:
        rest += chunk
        found: list[_Line] = []
        *whole, last = bytes(rest).split(b"\n")
        for line in whole:
            number += 1
            if too_long or len(line) > MAX_LINE:
                found.append((number, None))
                too_long = False
            elif line.strip():
                found.append((number, line))
        rest = bytearray(last)
        if len(rest) > MAX_LINE:
            too_long = True
            rest.clear()
        if found:
            yield found
    if too_long:
        yield [(number + 1, None)]
    elif rest.strip():
        yield [(number + 1, bytes(rest))]


class LineWriter:
    """Writes a line for each row."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def head(self) -> bytes:
        """Nothing comes before the lines."""
        return b""

    def part(self, part: Part, answer: Answer | None) -> bytes:
        """The lines of a part."""
        told = []
        row = 0
        for at, number in enumerate(part.places):
            if answer is None or at in part.bad:
                told.append(Line(id=part.names.get(at, ""), error=part.bad[at], line=number))
                continue
            line = Line(answer.ids[row], answer.versions[row], answer.arms[row])
            if answer.errors[row]:
                line.error, line.line = answer.errors[row], number
            else:
                outputs = answer.outputs[row]
                line.outputs = dict(zip(self._schema.outputs, outputs, strict=True))
                line.label = label(self._schema, outputs)
                line.source = answer.sources[row]
            told.append(line)
            row += 1
        return _encoder.encode_lines(told)

    def end(self, failure: str, position: int) -> bytes:
        """A last line with what ended the request before its time."""
        return _encoder.encode_lines([Line(error=failure, line=position)]) if failure else b""
