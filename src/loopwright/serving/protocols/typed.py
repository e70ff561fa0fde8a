"""A route per model whose body is the model's own: inputs by name and type, one row or many.

A decoder made from the signature takes what is right in one pass. What it does not take is read again without types by
the checks every protocol shares, which say where the mistake is.
"""

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.serving.engine import Answer, Call
from loopwright.serving.front import Front, Target, answer_headers, answer_parameters
from loopwright.serving.http import Reply, Request, Route, encode
from loopwright.serving.models import Served
from loopwright.serving.protocols.parsing import (
    NOTHING,
    About,
    check_count,
    check_media_type,
    not_json,
    parse_json,
    rows_of,
)
from loopwright.serving.rows import (
    ENTITY,
    MAX_INT,
    MAX_TEXT,
    RESERVED,
    LookedUp,
    NamesEntities,
    PartialRows,
    Reader,
    Rows,
    Value,
    check_entity,
    check_event_time,
    check_id,
    check_names,
    check_values,
    short_name,
    v2_datatype,
)

JSON = "application/json"
ENVELOPE = ("inputs", "unit", "event_time", "id")
MOST_PARTS = 1000
"""Of keys that one row may name."""

_TYPES: dict[str, Any] = {
    "float64": float,
    "int64": Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)],
    "bool": bool,
    "string": Annotated[str, Meta(max_length=MAX_TEXT)],
}


class Prediction(msgspec.Struct, omit_defaults=True):
    """A row's answer. outputs: by the model's own names; label: the likeliest class; source: what stood in for an arm
    that failed; error: why there is no answer; features: by online view, the age in seconds of what was looked up
    there, and how it stands."""

    id: str
    version: int
    arm: str
    outputs: dict[str, float] | None = None
    label: str | None = None
    source: str = "model"
    error: str | None = None
    features: dict[str, dict[str, float | str | None]] | None = None


class Predicted(msgspec.Struct, omit_defaults=True):
    """An answer. errors: how many rows got none; fallback: whether another stood in for an arm that failed."""

    model: str
    version: int
    arm: str
    request_id: str
    predictions: list[Prediction]
    fallback: bool = False
    errors: int = 0


class Typed:
    """The protocol's addresses."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._decoders: dict[Served, TypedReader] = {}

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("POST", "/models/{model}/predict", self.predict)
        yield Route("POST", "/models/{model}/versions/{version}/predict", self.predict)

    async def predict(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Answer one row or many; 200 when at least one row got an answer."""
        target = self._front.find(names["model"], names.get("version"))
        call = self._front.call(target, request.headers, request.client)
        check_media_type(request, JSON)
        return await self.answer(target, await request.body(), call)

    async def answer(self, target: Target, body: bytes, call: Call) -> Reply:
        """Answer a body."""
        started = perf_counter_ns()
        reader = self.reader(target.served)
        begun: Answer | Coroutine[Any, Any, Answer]
        try:
            rows = reader.read(body, self._front.bounds.rows)
        except NamesEntities:
            partial = reader.read_partial(body, self._front.bounds.rows)
            begun = self._front.answer_entities(target, partial, call)
        else:
            begun = self._front.engine.start(target.model, rows, call)
        answer = begun if isinstance(begun, Answer) else await begun
        if all(answer.errors):
            answer.raise_for_rows(target.model)
        reply = Reply(200, encode(render(target, answer)), headers=answer_headers(target.model, answer))
        self._front.observe(target.model, answer, (perf_counter_ns() - started) // 1000)
        return reply

    def reader(self, served: Served) -> "TypedReader":
        """The version's decoder, made when it is first asked for."""
        found = self._decoders.get(served)
        if found is None:
            # A miss follows a change of routes: what is no longer served goes with it.
            live = {served for model in self._front.models.values() for served in model.versions.values()}
            self._decoders = {kept: reader for kept, reader in self._decoders.items() if kept in live}
            found = self._decoders[served] = TypedReader(served.reader)
        return found


def render(target: Target, answer: Answer) -> Predicted:
    """Return what is sent for an answer."""
    version, parameters, _ = answer_parameters(target.model, answer)
    schema = target.served.schema
    predictions = []
    for row, outputs in enumerate(answer.outputs):
        prediction = Prediction(answer.ids[row], answer.versions[row], answer.arms[row])
        if answer.errors[row]:
            prediction.error = answer.errors[row]
        else:
            prediction.outputs = dict(zip(schema.outputs, outputs, strict=True))
            prediction.label = label(schema, outputs)
            prediction.source = answer.sources[row]
            prediction.features = _features(answer.looked_up, row)
        predictions.append(prediction)
    return Predicted(
        target.model.name,
        version,
        parameters["arm"],
        answer.request_id,
        predictions,
        fallback=bool(parameters.get("fallback")),
        errors=sum(map(bool, answer.errors)),
    )


def _features(looked_up: LookedUp | None, row: int) -> dict[str, dict[str, float | str | None]] | None:
    if looked_up is None:
        return None
    return {
        view: {"status": statuses[row], "age": looked_up.ages[view][row]}
        for view, statuses in looked_up.statuses.items()
        if statuses[row] is not None
    }


def label(schema: Schema, outputs: Sequence[float]) -> str | None:
    """Return the likeliest class of a multiclass model's answer; None for other models."""
    return schema.classes[outputs.index(max(outputs))] if schema.task == "multiclass" else None


class TypedReader:
    """Turns bodies into rows of one schema."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._schema = reader.schema
        self._width = len(reader.fields)
        self._decoder = _decoder(reader.schema.inputs)

    def read(self, body: bytes, max_rows: int) -> Rows:
        """Return a body's rows. Raises Malformed, BadInput, TooLarge; NamesEntities: read it with `read_partial`."""
        if self._decoder is None:
            return self._read_again(body, max_rows)
        try:
            asked = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if str(error).startswith("Number out of range"):  # nobody else can say where
                raise BadInput(str(error), where="body") from None
            return self._read_again(body, max_rows)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(error) from None
        about = NOTHING
        if asked.id is not None or asked.unit is not None or asked.event_time is not None:
            about = About.of({"id": asked.id, "unit": asked.unit, "event_time": asked.event_time}, "")
        many = type(asked.inputs) is list
        if many:
            check_count(len(asked.inputs), max_rows, "inputs")
        width = self._width
        given = [msgspec.structs.astuple(row) for row in (asked.inputs if many else (asked.inputs,))]
        n = len(given)
        rows = Rows(
            about.id,
            n,
            [list(row[:width]) for row in given],
            [about.id if n == 1 else ""] * n,
            [about.unit] * n,
            [about.event_time] * n,
        )
        for number, row in enumerate(given):
            if row[width:] != _NO_RESERVED:
                _take_reserved(rows, number, row[width:], f"inputs[{number}]" if many else "inputs")
        return rows

    def _read_again(self, body: bytes, max_rows: int) -> Rows:
        """Find what the decoder did not take, in the words of the checks all protocols share, or take it after all."""
        document = parse_json(body)
        if not isinstance(document, dict):
            raise BadInput("not an object", where="body", wanted='{"inputs": {…}} or {"inputs": [{…}, …]}')
        if "entities" in document:
            raise NamesEntities("entities are not looked up here", where="entities", wanted="every input")
        for name in document:
            if name not in ENVELOPE:
                raise BadInput(
                    f"`{short_name(name)}` is not understood", where="body", wanted=", ".join(ENVELOPE),
                    next=did_you_mean(name, ENVELOPE) or "Inputs go into `inputs`.",
                )  # fmt: skip
        about = About.of(document, "")
        inputs = document.get("inputs")
        many = isinstance(inputs, list)
        records: list[Any] = inputs if isinstance(inputs, list) else [inputs]
        check_count(len(records), max_rows, "inputs")

        def place(row: int) -> str:
            return f"inputs[{row}]" if many else "inputs"

        for row, record in enumerate(records):
            self._check_record(record, place(row))
        columns = {
            name: [record.get(name) for record in records] for name in (*self._reader.names, *RESERVED)
        }
        return rows_of(
            columns, len(records), self._reader, lambda name, row: f"{place(row)}.{short_name(name)}", about
        )

    def read_partial(self, body: bytes, max_rows: int) -> PartialRows:
        """Return the rows of a body that names entities, and may leave inputs out. Raises as `read` does."""
        document = parse_json(body)
        for name in document:
            if name not in (*ENVELOPE, "entities"):
                raise BadInput(
                    f"`{short_name(name)}` is not understood", where="body", wanted=", ".join((*ENVELOPE, "entities")),
                    next=did_you_mean(name, ENVELOPE),
                )  # fmt: skip
        about = About.of(document, "")
        named, inputs = document["entities"], document.get("inputs")
        many = isinstance(named, list)
        keys: list[Any] = named if isinstance(named, list) else [named]
        check_count(len(keys), max_rows, "entities")
        if inputs is None:
            inputs = [{} for _ in keys] if many else {}
        if isinstance(inputs, list) != many or (many and len(inputs) != len(keys)):
            raise BadInput(
                "entities and inputs differ in number", where="inputs",
                got=f"{len(inputs)} rows" if isinstance(inputs, list) else "one row",
                wanted=f"a list of {len(keys)}" if many else "one object",
            )  # fmt: skip
        records = inputs if many else [inputs]
        n = len(keys)
        rows = PartialRows(
            about.id, n, [], [], [about.id if n == 1 else ""] * n, [about.unit] * n, [about.event_time] * n
        )
        for row, (key, record) in enumerate(zip(keys, records, strict=True)):
            where = f"[{row}]" if many else ""
            rows.entities.append(_read_key(key, f"entities{where}"))
            rows.given.append(self._read_some(record, f"inputs{where}"))
            _take_reserved(rows, row, [record.get(name) for name in RESERVED], f"inputs{where}")
        return rows

    def _read_some(self, record: Any, where: str) -> dict[str, Value]:
        if not isinstance(record, dict):
            raise BadInput("not a row", where=where, got=record, wanted="an object of inputs by name")
        if any(name.startswith(ENTITY) for name in record):
            raise BadInput("entities have a place of their own", where=where, wanted="entities: {…}")
        check_names(
            list(record),
            self._schema,
            at=lambda name: f"{where}.{short_name(name)}",
            within=where,
            partial=True,
        )
        self._check_booleans(record, where)
        return {
            name: check_values([record[name]], field, v2_datatype(field), partial(_place, f"{where}.{name}"))[
                0
            ]
            for field, name, _ in self._reader.fields
            if name in record
        }

    def _check_record(self, record: Any, where: str) -> None:
        if not isinstance(record, dict):
            raise BadInput("not a row", where=where, got=record, wanted="an object of inputs by name")
        if record.keys() != self._reader.names:
            check_names(
                list(record), self._schema, at=lambda name: f"{where}.{short_name(name)}", within=where
            )
        self._check_booleans(record, where)

    def _check_booleans(self, record: Mapping[str, Any], where: str) -> None:
        for field, name, dtype in self._reader.fields:
            if dtype == "bool" and isinstance(record.get(name), float):  # what binary tensors must write
                raise BadInput(
                    "a value of another kind", where=f"{where}.{name}", got=record[name],
                    wanted="true, false or null" if field.nullable else "true or false",
                )  # fmt: skip


_NO_RESERVED = (None,) * len(RESERVED)


def _place(where: str, _: int) -> str:
    return where


def _read_key(key: Any, where: str) -> dict[str, Value]:
    if not isinstance(key, dict) or len(key) > MOST_PARTS:
        raise BadInput(
            "not an entity", where=where, got=key, wanted=f"an object of at most {MOST_PARTS} keys by name"
        )
    return {name: check_entity(value, f"{where}.{short_name(name)}") for name, value in key.items()}


def _take_reserved(rows: Rows | PartialRows, row: int, reserved: Sequence[Any], where: str) -> None:
    row_id, unit, event_time = reserved
    if row_id is not None:
        rows.ids[row] = check_id(row_id, f"{where}._id")
    if unit is not None:
        rows.units[row] = check_id(unit, f"{where}._unit")
    if event_time is not None:
        rows.event_times[row] = check_event_time(event_time, f"{where}._event_time")


def _decoder(inputs: Sequence[Field]) -> msgspec.json.Decoder[Any] | None:
    """Return what decodes a body with these inputs, in order, then the reserved ones; None for names it cannot have."""
    fields: list[Any] = []
    names: dict[str, str] = {}
    for position, field in enumerate(inputs):
        kind = _TYPES[field.dtype]
        fields.append((f"f{position}", kind | None if field.nullable else kind))
        names[f"f{position}"] = field.name
    for name, kind in zip(RESERVED, (str, str, str | int), strict=True):
        fields.append((f"r{name}", kind | None, None))
        names[f"r{name}"] = name
    if any(set(name) & {'"', "\\"} or min(name) < " " for name in names.values()):
        return None
    row: Any = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    body: list[Any] = [
        ("inputs", row | Annotated[list[row], Meta(min_length=1)]),
        ("unit", str | None, None),
        ("event_time", str | int | None, None),
        ("id", str | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Body", body, forbid_unknown_fields=True))
