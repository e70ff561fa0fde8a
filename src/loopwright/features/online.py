"""Online features: what is known about an entity, read in microseconds by whoever answers a request.

A store holds, for each model and view, one packed row per entity (msgpack: schema, times, values) and one head: what
the rows mean and up to when they are known. A full materialisation builds a new generation beside the old one and moves
the head at the end, so readers see one complete set or the other. Light on purpose: serving workers import it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from loopwright.features.status import Status
from loopwright.kernel.clock import Clock, from_us, to_us, utc_now
from loopwright.kernel.errors import BadInput, NotFound, Unavailable, did_you_mean

MICROSECONDS = 1_000_000
_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(list[Any]).decode


_PRESENT, _NOT_FOUND, _EXPIRED, _NULL_KEY = Status.PRESENT, Status.NOT_FOUND, Status.EXPIRED, Status.NULL_KEY


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a view's generation mean. Times in microseconds since 1970, UTC.

    `entity`/`kinds`: names and types (string, int64, float64, bool) of the key's parts. `columns`/`dtypes`: the values,
    in the packed order. `schema`: tells rows of this layout from all others. `as_of`: what was known then is here.
    `timed`: rows carry an event time of their own; others were all reckoned at `as_of` (windows) or stand without one
    (`static`). `lasting`: columns that the TTL does not concern. `absent`: the values of an entity that has no row,
    where a view defines them. `tables`: table versions that were read. `build`: the materialisation that wrote it last.
    `view`: digest of the view's own definition, which the registry knows it by. `basis`: of all that decides a value,
    whichever columns are taken; "" in heads from before there was one.
    """

    definition: str
    schema: int
    generation: int
    change: int
    entity: tuple[str, ...]
    kinds: tuple[str, ...]
    columns: tuple[str, ...]
    dtypes: tuple[str, ...]
    as_of: int
    ttl: int | None = None
    lasting: tuple[str, ...] = ()
    timed: bool = True
    static: bool = False
    absent: tuple[Any, ...] | None = None
    rows: int = 0
    tables: dict[str, int] = {}
    written_at: int = 0
    build: str = ""
    view: str = ""
    basis: str = ""

    def key(self, entity: Mapping[str, Any] | Sequence[Any], where: str = "") -> bytes | None:
        """The packed key; None where a part is null, which equals nothing. Raises BadInput for a part that is missing
        or of another type."""
        if len(self.entity) == 1 and type(entity) is dict:
            value = entity.get(self.entity[0])
            if type(value) is _TYPES[self.kinds[0]]:  # the usual case, at a third of the cost
                return _encoder.encode((value,))
        if isinstance(entity, Mapping):
            try:
                parts = [entity[name] for name in self.entity]
            except KeyError as error:
                raise BadInput(
                    f"the entity lacks `{error.args[0]}`", where=where, got=sorted(map(str, entity)),
                    wanted=", ".join(self.entity), next=did_you_mean(str(error.args[0]), map(str, entity)),
                ) from None  # fmt: skip
        else:
            parts = list(entity)
            if len(parts) != len(self.entity):
                raise BadInput(
                    "a key of another length", where=where, got=parts, wanted=", ".join(self.entity)
                )
        for place, (value, kind) in enumerate(zip(parts, self.kinds, strict=True)):
            if value is None:
                return None
            if type(value) is not _TYPES[kind]:
                parts[place] = _as_kind(value, kind, f"{where}.{self.entity[place]}")
        return _encoder.encode(parts)


def pack(schema: int, event_time: int | None, known_at: int | None, values: Sequence[Any]) -> bytes:
    """One row as the stores keep it."""
    return _encoder.encode((schema, event_time, known_at, *values))


def pack_key(parts: Sequence[Any]) -> bytes:
    """A key whose parts have the head's kinds already."""
    return _encoder.encode(parts)


class Reading(msgspec.Struct, frozen=True):
    """What a store knows about one entity through one view, judged at the moment it was asked.

    `age`: seconds since the fact happened (since `as_of` for windows; None for facts without a time and for what is not
    there). `known_for`: seconds since it was known. `values`: column → value; None where null, expired or not found,
    but for views that define what an unknown entity has. `definition`: digest of the view's definition it was made by.
    """

    view: str
    status: Status
    values: dict[str, Any]
    age: float | None = None
    known_for: float | None = None
    as_of: int = 0
    definition: str = ""
    lasting: tuple[str, ...] = ()

    def status_of(self, column: str) -> Status:
        """The status of one value: the row's, or NULL where the row is there and the value is not.

        What a window holds does not expire with the row beside it.
        """
        if self.status is _PRESENT or (self.status is _EXPIRED and column in self.lasting):
            return _PRESENT if self.values[column] is not None else Status.NULL
        return self.status

    def to_json(self) -> dict[str, Any]:
        """JSON: {view, status, age, known_for, as_of, definition, values, statuses}."""
        return {
            "view": self.view, "status": self.status.value, "age": self.age, "known_for": self.known_for,
            "as_of": from_us(self.as_of), "definition": self.definition, "values": dict(self.values),
            "statuses": {name: self.status_of(name).value for name in self.values},
        }  # fmt: skip


Ask = tuple[str, Sequence[bytes]]
"""A view's name and packed keys."""

Answer = tuple[Head | None, Sequence[bytes | None]]
"""The head that stands and the packed rows under it, in the order of the keys; (None, ()) where there is no view."""


class Writing(Protocol):
    """The pen on one view. Whoever began last holds it; an earlier holder gets Conflict and changes nothing."""

    generation: int
    position: int
    """How far the rows of this build were put before, for whoever goes on with it."""

    def put(self, rows: Sequence[tuple[bytes, bytes]], gone: Sequence[bytes], position: int) -> None:
        """Write rows and delete keys, and remember `position`: all of it or nothing."""

    def publish(self, head: Head) -> None:
        """Let readers see this generation under `head`, at once, and clear away what it replaces."""


class OnlineStore(Protocol):
    """Where packed rows lie. Safe for several threads and processes; open it after forking."""

    url: str
    """Where it is, without a password."""

    def heads(self, model: str) -> dict[str, Head]:
        """The heads that stand, by view."""

    def fetch(self, model: str, asks: Sequence[Ask]) -> list[Answer]:
        """Packed rows for several views in one round trip; each view's rows belong to the head they come with."""

    def begin(self, model: str, view: str, build: str, *, onto: int | None = None) -> Writing:
        """Take the pen for the build named `build`; a build of this name that was cut short goes on where it was.

        `onto`: the standing generation that it changes; None: a new one. What another unfinished build left is deleted.
        """

    def close(self) -> None:
        """Let go of connections."""


def open_store(url: str, *, seconds: float | None = None) -> OnlineStore:
    """Open sqlite:///PATH, redis://HOST:PORT/DB or rediss://…; connects when first used.

    seconds: after which a store that does not answer is given up; None: the engine's own patience. Raises BadInput for
    another URL, and Unavailable when Redis is named and its client is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from loopwright.features.online_sqlite import SqliteStore

        path = unquote(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else ""
        if not path:
            raise BadInput("not a place for online features", got=url, wanted="sqlite:////folder/online.db")
        return SqliteStore(Path(path), seconds=seconds)
    if scheme in ("redis", "rediss"):
        from loopwright.features.online_redis import RedisStore

        return RedisStore(url, seconds=seconds)
    raise BadInput(
        "no online store of this kind", where="online_url", got=f"{scheme}://" if scheme else "no scheme",
        wanted="sqlite:////folder/online.db, redis://host:6379/0 or rediss://…", next="Mend `online_url` in home.json.",
    )  # fmt: skip


class OnlineFeatures:
    """Reads a store in the words of views and entities. Safe for several threads."""

    def __init__(self, store: OnlineStore, clock: Clock = utc_now) -> None:
        self.store = store
        self.clock = clock
        self._heads: dict[tuple[str, str], Head] = {}

    def read(
        self, model: str, view: str, entity: Mapping[str, Any] | Sequence[Any], *, at: datetime | None = None
    ) -> Reading:
        """What is known about one entity through one view. Raises NotFound for a view that was never materialised."""
        moment = to_us(at or self.clock())
        known = self._heads.get((model, view)) or self._learn(model, (view,))[0]
        while True:
            key = known.key(entity, view)
            ((head, rows),) = self.store.fetch(model, ((view, () if key is None else (key,)),))
            if head is None:
                raise self._unknown(model, (view,))
            if head.change != known.change:
                self._heads[model, view] = head
                if (head.entity, head.kinds) != (known.entity, known.kinds):
                    known = head  # the key itself is made another way now
                    continue
            return _reading(
                view, head, rows[0] if rows else None, moment, _NULL_KEY if key is None else _NOT_FOUND
            )

    def read_many(
        self,
        model: str,
        entities: Sequence[Mapping[str, Any]],
        views: Sequence[str] | None = None,
        *,
        at: datetime | None = None,
    ) -> list[dict[str, Reading]]:
        """For each entity, view → reading, all in one round trip. `views` None: all that are materialised.

        An entity names at least the parts of every view's key. Raises as `read` does.
        """
        moments = [to_us(at or self.clock())] * len(entities)
        if views is None:
            views = tuple(self.store.heads(model))
        found = self.read_each(model, dict.fromkeys(views, (entities, moments)))
        return [
            {view: readings[place] for view, (_, readings) in found.items()} for place in range(len(entities))
        ]

    def read_each(
        self, model: str, asks: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[int]]]
    ) -> dict[str, tuple[Head, list[Reading]]]:
        """For each view, what is known about its entities at their moments (µs), in one round trip for all views.

        With the head that the readings were made under. Raises as `read` does.
        """
        views = tuple(asks)
        known = self._learn(model, views)
        while True:
            keyed = [
                [head.key(entity, view) for entity in asks[view][0]]
                for view, head in zip(views, known, strict=True)
            ]
            answers = self.store.fetch(
                model,
                [
                    (view, [key for key in keys if key is not None])
                    for view, keys in zip(views, keyed, strict=True)
                ],
            )
            standing = [head for head, _ in answers if head is not None]
            if len(standing) < len(views):
                gone = [view for view, (head, _) in zip(views, answers, strict=True) if head is None]
                for view in gone:
                    self._heads.pop((model, view), None)
                raise self._unknown(model, gone)
            for view, head in zip(views, standing, strict=True):
                self._heads[model, view] = head
            if all((a.entity, a.kinds) == (b.entity, b.kinds) for a, b in zip(known, standing, strict=True)):
                break
            known = standing
        out: dict[str, tuple[Head, list[Reading]]] = {}
        for view, keys, head, (_, rows) in zip(views, keyed, standing, answers, strict=True):
            found = iter(rows)
            out[view] = (
                head,
                [
                    _reading(view, head, None, moment, _NULL_KEY)
                    if key is None
                    else _reading(view, head, next(found), moment)
                    for key, moment in zip(keys, asks[view][1], strict=True)
                ],
            )
        return out

    def _learn(self, model: str, views: Sequence[str]) -> list[Head]:
        if missing := [view for view in views if (model, view) not in self._heads]:
            heads = self.store.heads(model)
            if unknown := [view for view in missing if view not in heads]:
                raise self._unknown(model, unknown, heads)
            self._heads |= {(model, view): heads[view] for view in missing}
        return [self._heads[model, view] for view in views]

    def _unknown(self, model: str, views: Sequence[str], heads: Mapping[str, Head] | None = None) -> NotFound:
        known = self.store.heads(model) if heads is None else heads
        return NotFound(
            f"nothing is materialised for {', '.join(views)} of {model}", where=self.store.url,
            wanted=f"one of {', '.join(known)}" if known else "",
            next=did_you_mean(views[0], known) or f"loopwright features materialize {model}",
        )  # fmt: skip


def _reading(view: str, head: Head, row: bytes | None, moment: int, status: Status = _NOT_FOUND) -> Reading:
    if row is None:
        nothing = dict(zip(head.columns, head.absent or (None,) * len(head.columns), strict=True))
        return Reading(view, status, nothing, None, None, head.as_of, head.definition)
    found = _decode(row)
    if found[0] != head.schema or len(found) != 3 + len(head.columns):
        raise Unavailable(
            "a row was written under another schema than its view's", where=view, got=found[0], wanted=str(head.schema),
            next="Write the view anew: loopwright features materialize MODEL --full",
        )  # fmt: skip
    known_at = found[2]
    at = found[1] if head.timed else None if head.static else head.as_of
    age = None if at is None else (moment - at) / MICROSECONDS
    known_for = None if known_at is None else (moment - known_at) / MICROSECONDS
    values = dict(zip(head.columns, found[3:]))  # noqa: B905 - of one length, as was just made sure of
    status = _PRESENT
    if head.ttl is not None and at is not None and moment >= at + head.ttl:
        status = _EXPIRED
        for name in head.columns:
            if name not in head.lasting:
                values[name] = None
    return Reading(view, status, values, age, known_for, head.as_of, head.definition, head.lasting)


_TYPES: Mapping[str, type] = {"string": str, "int64": int, "float64": float, "bool": bool}
_WORDS = {"true": True, "false": False, "1": True, "0": False}


def _as_kind(value: Any, kind: str, where: str) -> Any:
    """`value` as a key's part: text is read as numbers where the key is a number, numbers are never taken for text."""
    try:
        if kind == "string" and hasattr(value, "isoformat"):
            return str(value)
        if kind == "bool" and str(value).lower() in _WORDS:
            return _WORDS[str(value).lower()]
        if (
            kind == "int64"
            and not isinstance(value, bool)
            and (isinstance(value, str) or int(value) == value)
        ):
            return int(value)
        if kind == "float64" and not isinstance(value, bool):
            return float(value) + 0.0
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput("a key of another type", where=where, got=value, wanted=kind)
