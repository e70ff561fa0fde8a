"""Arrow's IPC stream as bulk requests and answers: record batches of inputs in, record batches of answers out."""

import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import nanoarrow as na
import numpy as np
from nanoarrow.c_array_stream import CArrayStream
from nanoarrow.ipc import StreamWriter
from numpy.typing import NDArray

from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput
from loopwright.serving.engine import Answer
from loopwright.serving.http import Malformed, TooLarge
from loopwright.serving.protocols.arrow_stream import (
    DICTIONARY,
    MAX_BATCH,
    SCHEMA,
    Column,
    Texts,
    messages,
    read_batch,
    read_dictionary,
    read_schema,
)
from loopwright.serving.protocols.parsing import EVENT_TIME, ROW_ID, UNIT
from loopwright.serving.protocols.parts import Part, part_of, rows_at_once
from loopwright.serving.rows import Reader, check_names, short_name

_Texts = Sequence[str | None]
_WANTED = {
    "float64": (("float", "int"), "float64, or another float or integer"),
    "int64": (("int", "float"), "int64, or another integer, or a float of whole numbers"),
    "bool": (("bool",), "bool"),
    "string": (("string",), "string, plain or dictionary-encoded"),
}


class ArrowReader:
    """Reads record batches as they come."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._at_once = rows_at_once(reader)
        self._columns: list[Column] = []
        self._dictionaries: dict[int, Texts] = {}

    async def parts(self, body: AsyncIterator[bytes]) -> AsyncGenerator[Part, None]:
        """Raises Malformed, TooLarge, BadInput for columns that do not fit, and what reading the body raises."""
        before = 0
        async for message in messages(body):
            if (message.kind == SCHEMA) == bool(self._columns):
                raise Malformed("messages out of order", where="body", wanted="a schema first, and once")
            if message.kind == SCHEMA:
                self._columns = read_schema(message)
                _check(self._columns, self._reader)
            elif message.kind == DICTIONARY:
                key, texts = read_dictionary(message, self._columns)
                self._dictionaries[key] = texts
                if sum(each.size for each in self._dictionaries.values()) > MAX_BATCH:
                    raise TooLarge(
                        "dictionaries too large", where="body", wanted=f"at most {MAX_BATCH} bytes"
                    )
            else:
                takes, n = read_batch(message, self._columns, self._dictionaries)
                for start in range(0, n, self._at_once):
                    end = min(n, start + self._at_once)
                    columns = {
                        column.name: take(start, end)
                        for column, take in zip(self._columns, takes, strict=True)
                    }
                    places = list(range(before + start + 1, before + end + 1))
                    yield part_of(places, columns, self._reader, "row")
                before += n
        if not self._columns:
            raise Malformed("an empty body", where="body", wanted="an Arrow IPC stream")


def _check(columns: Sequence[Column], reader: Reader) -> None:
    """Raise BadInput unless every input has a column of its kind, and no column is anything else's."""
    names = [column.name for column in columns]
    check_names(names, reader.schema, at=lambda name: f"column {short_name(name)}", within="schema")
    given = {column.name: column for column in columns}
    wanted = {name: (field.nullable, *_WANTED[dtype]) for field, name, dtype in reader.fields}
    wanted |= dict.fromkeys((ROW_ID, UNIT), (True, ("string",), "string"))
    wanted[EVENT_TIME] = (True, ("timestamp", "string", "int"), "timestamp, string, or int64 of microseconds")
    for name, column in given.items():
        nullable, kinds, text = wanted[name]
        encoded = column.dictionary is not None and column.kind != "string"
        if encoded or not (column.kind in kinds or (nullable and column.kind == "null")):
            raise BadInput(
                "a column of another type", where=f"column {short_name(name)}", got=column.type, wanted=text
            )  # fmt: skip


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
        n = len(part.places)
        ids: list[str | None] = [None] * n
        arms: list[str | None] = [None] * n
        sources: list[str | None] = [None] * n
        errors: list[str | None] = [None] * n
        versions, outputs = np.zeros(n, np.int64), np.full((n, len(self._outputs)), np.nan)
        for at, why in part.bad.items():
            ids[at], errors[at] = part.names.get(at) or None, why
        good = part.good() if answer is not None else []
        for row, at in enumerate(good):
            assert answer is not None
            ids[at], versions[at], arms[at] = answer.ids[row], answer.versions[row], answer.arms[row] or None
            if answer.errors[row]:
                errors[at] = answer.errors[row]
            else:
                outputs[at], sources[at] = answer.outputs[row], answer.sources[row]
        return self._batch(ids, outputs, versions, arms, sources, errors)

    def end(self, failure: str, position: int) -> bytes:
        """The stream's end, after a row with what ended the request before its time."""
        last = b""
        if failure:
            nothing = np.full((1, len(self._outputs)), np.nan)
            last = self._batch([None], nothing, np.zeros(1, np.int64), [None], [None], [failure])
        self._writer.close()
        return last + self._written()

    def _batch(
        self,
        ids: _Texts,
        outputs: NDArray[np.float64],
        versions: NDArray[np.int64],
        arms: _Texts,
        sources: _Texts,
        errors: _Texts,
    ) -> bytes:
        """A record batch. A row without a source has no outputs, and one of version 0 no version."""
        there = np.array([source is not None for source in sources])
        children = [_text_array(ids)]
        children += [
            _number_array(na.float64(), outputs[:, i].copy(), there) for i in range(len(self._outputs))
        ]
        children.append(_number_array(na.int64(), versions, versions > 0))
        children += [_text_array(texts) for texts in (arms, sources, errors)]
        self._writer.write_array(
            na.c_array_from_buffers(self._schema, len(ids), [None], children=children, null_count=0)
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
