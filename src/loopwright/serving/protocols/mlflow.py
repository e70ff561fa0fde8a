"""MLflow's scoring protocol: what its clients, Spark functions and SageMaker containers send to /invocations.

Columns are found by name, in any order. Those the model does not know are left aside, as MLflow does, unless one looks
like the misspelling of an input that is missing. A nullable input may be left out. Rows without names are taken in the
order of the schema.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loopwright import __version__
from loopwright.kernel.errors import BadInput, LoopwrightError, did_you_mean
from loopwright.serving.engine import Answer
from loopwright.serving.front import Front, Target, answer_headers
from loopwright.serving.http import (
    JSON,
    Malformed,
    Reply,
    Request,
    Route,
    TooLarge,
    encode,
    error_reply,
    json_reply,
)
from loopwright.serving.protocols.parsing import About, At, check_count, check_media_type, parse_json, rows_of
from loopwright.serving.rows import RESERVED, Reader, Rows, short_name

CSV = "text/csv"
TEXT = "text/plain; charset=utf-8"
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
PARAMS = ("id", "unit", "event_time")
COMPARISONS = 256
"""Of unknown columns with inputs that are missing: more would let a request take seconds."""

_CODES = {400: "BAD_REQUEST", 413: "BAD_REQUEST", 415: "BAD_REQUEST", 422: "INVALID_PARAMETER_VALUE"}
_CODES |= {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST"}
_CODES |= {408: "BAD_REQUEST", 429: "RESOURCE_EXHAUSTED", 503: "TEMPORARILY_UNAVAILABLE"}


class Mlflow:
    """The protocol's addresses."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> Iterable[Route]:
        """Where it answers: the plain address is for a server of one model."""
        yield Route("POST", "/invocations", self.invocations)
        yield Route("POST", "/models/{model}/invocations", self.invocations)
        yield Route("POST", "/models/{model}/versions/{version}/invocations", self.invocations)
        yield Route("GET", "/ping", self.ping)
        yield Route("GET", "/health", self.ping)
        yield Route("GET", "/version", self.version)

    async def invocations(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Answer a table."""
        try:
            front = self._front
            target = front.find(names["model"], names.get("version")) if names else front.only()
            call = front.call(target, request.headers, request.client)
            media_type = check_media_type(request, JSON, CSV)
            body = await request.body()
            read = read_csv if media_type == CSV else read_json
            answer = await front.answer(target, read(body, target.served.reader, front.bounds.rows), call)
            answer.raise_for_rows(target.model)
        except LoopwrightError as error:
            return told(error)
        body = encode({"predictions": predictions(target, answer)})
        return Reply(200, body, headers=answer_headers(target.model, answer))

    async def ping(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Whether traffic may come."""
        why = self._front.host.not_ready()
        return Reply(200, b"\n", TEXT) if not why else json_reply({"error": why}, 503)

    async def version(self, request: Request, names: Mapping[str, str]) -> Reply:
        """What answers here: this program's version, as bare text."""
        return Reply(200, __version__.encode(), TEXT)


def predictions(target: Target, answer: Answer) -> list[float] | list[dict[str, float]]:
    """Return a number per row, or a record per row of a model with several outputs."""
    outputs = target.served.schema.outputs
    if len(outputs) == 1:
        return [row[0] for row in answer.outputs]
    return [dict(zip(outputs, row, strict=True)) for row in answer.outputs]


def told(error: LoopwrightError) -> Reply:
    """Return an error as MLflow tells it, with what every protocol here says beside that."""
    reply = error_reply(error)
    assert isinstance(reply.body, bytes)
    said: dict[str, Any] = msgspec.json.decode(reply.body)
    code = _CODES.get(reply.status, "INTERNAL_ERROR")
    reply.body = encode({"error_code": code, "message": said["error"], **said})
    return reply


@dataclass(frozen=True, slots=True)
class Table:
    """What a request brings: values by column, and where each stands. unknown: columns beside these, left aside."""

    columns: Mapping[str, Sequence[Any]]
    n: int
    at: At
    within: str
    unknown: Sequence[str] = ()


def read_json(body: bytes, reader: Reader, max_rows: int) -> Rows:
    """Return a JSON body's rows. Raises Malformed, BadInput, TooLarge."""
    document = parse_json(without_nan(body))
    if not isinstance(document, dict):
        raise BadInput("not an object", where="body", wanted=f"an object with one of {', '.join(FORMATS)}")
    for name in document:
        if name not in FORMATS and name != "params":
            raise BadInput(
                f"`{short_name(name)}` is not understood", where="body",
                wanted=f"one of {', '.join(FORMATS)}, and params", next=did_you_mean(name, (*FORMATS, "params")),
            )  # fmt: skip
    about = _about(document.get("params"))
    formats = [name for name in FORMATS if name in document]
    if len(formats) != 1:
        raise BadInput(
            "not exactly one table", where="body", got=", ".join(formats) or "none",
            wanted=f"one of {', '.join(FORMATS)}",
        )  # fmt: skip
    kind = formats[0]
    given = document[kind]
    if kind == "dataframe_split":
        table = _split(given, reader, max_rows)
    elif isinstance(given, dict) and kind != "dataframe_records":
        table = _columns(given, kind, max_rows)
    elif isinstance(given, list):
        check_count(len(given), max_rows, kind)
        table = _listed(given, kind, reader, records_only=kind == "dataframe_records")
    else:
        raise BadInput("not a table", where=kind, got=given, wanted="a list of rows")
    return _rows(table, reader, about)


def read_csv(body: bytes, reader: Reader, max_rows: int) -> Rows:
    """Return the rows of a CSV body with a header, as `pandas.DataFrame.to_csv` writes it; an empty cell is null.

    Raises Malformed, BadInput, TooLarge.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", where=f"byte {error.start}", wanted="text in UTF-8") from None
    header: list[str] = []
    records: list[list[str]] = []
    lines: list[int] = []
    for line, cells in _lines(text):
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise BadInput(
                "another number of cells", where=f"line {line}", got=len(cells), wanted=str(len(header))
            )
        elif len(records) == max_rows:
            raise TooLarge("too many rows", where=f"line {line}", wanted=f"at most {max_rows}")
        else:
            records.append(cells)
            lines.append(line)
    check_count(len(records), max_rows, "body")
    _check_once(header, "line 1")
    types = {field.name: field.dtype for field in reader.schema.inputs}
    columns: dict[str, Sequence[Any]] = {}
    for name, column in zip(header, zip(*records, strict=True), strict=True):
        if name in types or name in RESERVED:
            convert = _CELLS[types.get(name, name)]
            columns[name] = [convert(cell) if cell else None for cell in column]
    unknown = [name for name in header if name and name not in columns]

    def at(name: str, row: int) -> str:
        return f"line {lines[row]}, column `{name}`"

    return _rows(Table(columns, len(records), at, "line 1", unknown), reader, About())


_TOKENS = re.compile(rb'"(?:[^"\\]+|\\.)*+(?:"|\Z)|NaN|-?Infinity', re.DOTALL)


def without_nan(body: bytes) -> bytes:
    """Return JSON with null for NaN, which MLflow's own client writes for missing numbers.

    Infinity becomes an object, which no input takes, so that it is refused with its place.
    """
    if b"NaN" not in body and b"Infinity" not in body:
        return body

    def plain(token: re.Match[bytes]) -> bytes:
        text = token[0]
        if text.startswith(b'"'):
            return text
        return b"null" if text == b"NaN" else b'{"not finite": "%b"}' % text

    return _TOKENS.sub(plain, body)


def _about(params: object) -> About:
    if params is None:
        return About()
    if not isinstance(params, dict):
        raise BadInput("not an object", where="params", got=params, wanted="an object")
    for name in params:
        if name not in PARAMS:
            raise BadInput(
                f"models here take no parameter `{short_name(name)}`", where="params",
                wanted=", ".join(PARAMS), next=did_you_mean(name, PARAMS),
            )  # fmt: skip
    return About.of(params, "params")


def _split(given: object, reader: Reader, max_rows: int) -> Table:
    within = "dataframe_split"
    if not isinstance(given, dict):
        raise BadInput("not an object", where=within, got=given, wanted='{"columns": […], "data": [[…], …]}')
    for name in given:
        if name not in ("columns", "data", "index"):
            raise BadInput(
                f"`{short_name(name)}` is not understood", where=within, wanted="columns, data and index"
            )
    data, columns = given.get("data"), given.get("columns")
    if not isinstance(data, list):
        raise BadInput("not a list", where=f"{within}.data", got=data, wanted="a list of rows")
    check_count(len(data), max_rows, f"{within}.data")
    if columns is None:
        return _positional(data, f"{within}.data", reader)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadInput("not names", where=f"{within}.columns", got=columns, wanted="a list of text")
    _check_once(columns, f"{within}.columns")
    return _transposed(data, columns, f"{within}.data")


def _listed(given: list[Any], within: str, reader: Reader, *, records_only: bool) -> Table:
    first = type(given[0])
    if first is dict:
        return _records(given, within, reader)
    if not records_only and first is list:
        return _positional(given, within, reader)
    if not records_only and len(reader.fields) == 1:
        return Table({reader.fields[0][1]: given}, len(given), lambda name, row: f"{within}[{row}]", within)
    raise BadInput("not a row", where=f"{within}[0]", got=given[0], wanted="an object of inputs by name")


def _records(given: list[Any], within: str, reader: Reader) -> Table:
    names: dict[str, None] = {}
    for row, record in enumerate(given):
        if not isinstance(record, dict):
            raise BadInput(
                "not a row", where=f"{within}[{row}]", got=record, wanted="an object of inputs by name"
            )
        names |= dict.fromkeys(record)
    known = [name for name in names if name in reader.names or name in RESERVED]
    columns = {name: [record.get(name) for record in given] for name in known}
    unknown = [name for name in names if name not in columns]
    return Table(columns, len(given), lambda name, row: f"{within}[{row}].{name}", within, unknown)


def _positional(given: list[Any], within: str, reader: Reader) -> Table:
    return _transposed(given, [name for _, name, _ in reader.fields], within)


def _transposed(given: list[Any], names: Sequence[str], within: str) -> Table:
    for row, cells in enumerate(given):
        if not isinstance(cells, list) or len(cells) != len(names):
            raise BadInput(
                "another number of values" if isinstance(cells, list) else "not a row", where=f"{within}[{row}]",
                got=len(cells) if isinstance(cells, list) else cells, wanted=f"a list of {len(names)} values",
            )  # fmt: skip
    columns = dict(zip(names, zip(*given, strict=True), strict=True))
    places = {name: place for place, name in enumerate(names)}
    return Table(columns, len(given), lambda name, row: f"{within}[{row}][{places[name]}]", within)


def _columns(given: dict[str, Any], within: str, max_rows: int) -> Table:
    """Values by column, or the single values of one row."""
    if not given:
        raise BadInput("no columns", where=within, wanted="inputs by name")
    if not any(isinstance(values, list) for values in given.values()):
        one = {name: [value] for name, value in given.items()}
        return Table(one, 1, lambda name, row: f"{within}.{name}", within)
    columns: dict[str, Sequence[Any]] = {}
    n = -1
    for name, values in given.items():
        where = f"{within}.{short_name(name)}"
        if not isinstance(values, list):
            raise BadInput("not a list, and other inputs are", where=where, got=values)
        if n < 0:
            n = len(values)
            check_count(n, max_rows, where)
        if len(values) != n:
            raise BadInput("another number of rows", where=where, got=len(values), wanted=str(n))
        # A column of an array of shape (n, 1) comes as rows of one value.
        columns[name] = [
            value[0] if isinstance(value, list) and len(value) == 1 else value for value in values
        ]
    return Table(columns, n, lambda name, row: f"{within}.{name}[{row}]", within)


def _rows(table: Table, reader: Reader, about: About) -> Rows:
    known = {
        name: values for name, values in table.columns.items() if name in reader.names or name in RESERVED
    }
    missing = [field for field in reader.schema.inputs if field.name not in known]
    unknown = [*table.unknown, *(name for name in table.columns if name not in known)]
    unknown = unknown[: max(1, COMPARISONS // max(1, len(missing)))]
    for field in missing:
        name = field.name
        near = did_you_mean(name, unknown)
        if near or not field.nullable:
            raise BadInput(
                f"input `{name}` is missing", where=table.within, wanted=", ".join(n for _, n, _ in reader.fields),
                next=near.replace("did you mean", "did you mean it by", 1) if near else "",
            )  # fmt: skip
        known[name] = [None] * table.n
    return rows_of(known, table.n, reader, table.at, about)


def _check_once(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput("a column given twice", where=where, got=name)
        seen.add(name)


# CSV.


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and cells; empty lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Malformed(f"not CSV ({error})", where=f"line {line}") from None
        if cells is None:
            return
        if cells:
            yield line, cells


_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?\s*")
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")
_NULLS = frozenset(("nan", "na", "n/a", "null", "none", "<na>"))
_BOOLS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _number(cell: str) -> float | int | str | None:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    return None if cell.strip().lower() in _NULLS else cell


def _bool(cell: str) -> bool | str | None:
    word = cell.strip().lower()
    return None if word in _NULLS else _BOOLS.get(word, cell)


def _moment(cell: str) -> int | str:
    return int(cell) if _WHOLE.fullmatch(cell) else cell


def _text(cell: str) -> str:
    return cell


_CELLS: dict[str, Callable[[str], Any]] = {
    "float64": _number, "int64": _number, "bool": _bool, "string": _text,
    "_id": _text, "_unit": _text, "_event_time": _moment,
}  # fmt: skip
