"""Inputs that a request leaves out and names entities for: looked up online, checked to be what the model knows.

A value that a request brings wins over what is online. What is looked up is what is logged as the row's inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from loopwright.bundle.manifest import OnlineView
from loopwright.bundle.routes import FeaturePolicy
from loopwright.bundle.signature import Field
from loopwright.features.online import Head, Reading
from loopwright.kernel.clock import Clock, to_us, utc_now
from loopwright.kernel.errors import BadInput, Unavailable, did_you_mean
from loopwright.serving.answers import Call
from loopwright.serving.counters import Counters
from loopwright.serving.lookups import Away, Found, Lookups
from loopwright.serving.models import Model, Served
from loopwright.serving.rows import LookedUp, PartialRows, Rows, Value, check_values, short_name, v2_datatype

UNAVAILABLE = "UNAVAILABLE"
"""The status of a view that a row was answered without."""

MATERIALIZE = "Bring them up to date: loopwright features materialize {}"


class FeaturesUnavailable(Unavailable):
    """Inputs that are left to the online store cannot be had; `retry_after`: seconds, None where it may last."""

    def __init__(self, what: str, *, where: str, next: str, retry_after: float | None) -> None:
        super().__init__(what, where=where, next=next)
        self.retry_after = retry_after


@dataclass(slots=True)
class _Sources:
    """Where a version's inputs come from."""

    fields: dict[str, Field]
    views: dict[str, OnlineView]
    by_input: dict[str, OnlineView]
    parts: dict[str, str]
    entity: tuple[str, ...]

    @classmethod
    def of(cls, served: Served) -> "_Sources":
        views = {view.name: view for view in served.manifest.views}
        return cls(
            {field.name: field for field in served.schema.inputs},
            views,
            {name: view for view in views.values() for name in view.inputs},
            {part: name for view in views.values() for part, name in view.parts.items()},
            tuple(dict.fromkeys(part for view in views.values() for part in view.entity)),
        )

    def misfit(self, other: OnlineView, inputs: Sequence[str], head: Head) -> str:
        """Why what is online under `head` is not what this version knows as these inputs of `other`; "" when it is."""
        own = self.views.get(other.name)
        if own is None or any(own.inputs.get(name) != other.inputs[name] for name in inputs):
            return f"it takes {inputs[0]} from elsewhere"
        if head.definition == own.definition:
            return ""
        dtypes = dict(zip(head.columns, head.dtypes, strict=True))
        taken = all(dtypes.get(column) == self.fields[name].dtype for name, column in own.inputs.items())
        if head.basis and head.basis == own.basis and taken:
            return ""
        return (
            f"what is online as {other.name} was made by another definition ({head.definition[:12]}) than it was "
            f"trained with ({own.definition[:12]})"
        )


@dataclass(slots=True)
class _Asked:
    """A request's rows on their way: what is known of them, and which views each still needs."""

    known: list[dict[str, Value]]
    views: list[tuple[str, ...]]
    entities: dict[str, list[Mapping[str, Value]]] = field(default_factory=dict)
    moments: dict[str, list[int]] = field(default_factory=dict)
    inputs: dict[str, dict[str, None]] = field(default_factory=dict)
    """The inputs that are looked up, by view, in order."""


class EntityFeatures:
    """One worker's. Open it in the process that uses it. `lookups` reads the store."""

    def __init__(self, lookups: Lookups, counters: Counters, *, clock: Clock = utc_now) -> None:
        self.lookups = lookups
        self._counters = counters
        self._clock = clock
        # By digest: to hold on to a version would keep it in memory when it has left the routes.
        self._sources: dict[str, _Sources] = {}
        self._asked: set[str] = set()
        self._notes: dict[str, list[str]] = {}

    @classmethod
    def open(cls, url: str, counters: Counters) -> "EntityFeatures":
        """Read from the store at `url`; nothing is connected yet. Raises BadInput, Unavailable."""
        return cls(Lookups.open(url), counters)

    async def complete(
        self, model: Model, served: Served, chosen: Sequence[Served], asked: PartialRows, call: Call
    ) -> Rows:
        """Return rows with every input of `served`, in one round trip to the store for all of them.

        chosen: the version that answers each row, by the router. Raises BadInput for what names nothing, a
        contradiction, or a null where the model takes none; FeaturesUnavailable, unless the model's policy lets it be
        answered, or stable or a configured answer can stand in; what `Lookups.read` raises.
        """
        sources = self._known(served)
        if not sources.views:
            raise BadInput(
                f"version {served.version} of {model.name} takes no input from an online view", where="entities",
                next="Send every input, or train a version whose features have views.",
            )  # fmt: skip
        self._asked.add(model.name)
        now = to_us(self._clock())
        work = _ask(sources, asked, now)
        found = Found()
        if work.entities:
            asks = {view: (work.entities[view], work.moments[view]) for view in work.entities}
            seconds = model.policy.features.timeout_ms / 1000
            found = await self.lookups.read(model.name, asks, seconds, call.until)
            self._counters.observe(("lookup", model.name), found.took_us)
        versions = {*model.versions.values(), *chosen, served}
        blocked = self._blocked(sources, work, found, versions, model.policy.features)
        nulls: set[str] = set()
        if model.policy.features.missing == "nulls":
            nulls = {view for one in set(chosen) for view in blocked.get(one, ())}
        unfit = {
            one.version: next(iter(left.values()))
            for one, views in blocked.items()
            if (left := {view: why for view, why in views.items() if view not in nulls})
        }
        for version in unfit:
            self._counters.add(("features_unfit", model.name, str(version)))
        self._refuse(model, chosen, unfit, found.away, direct=call.version is not None)
        lost = nulls | {view for views in blocked.values() for view in views if view not in found.readings}
        return self._filled(model, served, sources, asked, work, found, lost, unfit)

    # What the store holds is not always what a version knows.

    def _known(self, served: Served) -> _Sources:
        found = self._sources.get(served.digest)
        if found is None:
            if len(self._sources) > 1000:  # of versions that are long gone
                self._sources.clear()
            found = self._sources[served.digest] = _Sources.of(served)
        return found

    def _blocked(
        self,
        sources: _Sources,
        work: _Asked,
        found: Found,
        versions: set[Served],
        policy: FeaturePolicy,
    ) -> dict[Served, dict[str, str]]:
        """Why, by view, for versions that must not be given what was looked up."""
        out: dict[Served, dict[str, str]] = {}
        for view, inputs in work.inputs.items():
            common = found.missing.get(view, "")
            reading = found.readings.get(view)
            if reading is not None and policy.max_age_s is not None:
                age = (max(work.moments[view]) - reading[0].as_of) / 1e6
                if age > policy.max_age_s:
                    common = f"{view} is known up to {age:.0f} s ago; wanted at most {policy.max_age_s:.0f} s"
            for one in versions:
                why = common
                if not why and reading is not None:
                    why = self._known(one).misfit(sources.views[view], list(inputs), reading[0])
                if why:
                    out.setdefault(one, {})[view] = why
        return out

    def _refuse(
        self,
        model: Model,
        chosen: Sequence[Served],
        unfit: Mapping[int, str],
        away: Away | None,
        *,
        direct: bool,
    ) -> None:
        """Raise FeaturesUnavailable when a row's version is unfit and nothing may stand in for it."""
        if not unfit:
            return
        stable = model.stable
        for one in chosen:
            why = unfit.get(one.version)
            if why is None:
                continue
            stands_in = stable is not None and stable.version not in unfit
            if not direct and (stands_in or model.default_for(one) is not None):
                continue
            raise FeaturesUnavailable(
                f"the features of version {one.version} cannot be had: {why}",
                where=model.name,
                next="" if away else MATERIALIZE.format(model.name),
                retry_after=away.retry_after if away else None,
            )

    # Rows.

    def _filled(
        self, model: Model, served: Served, sources: _Sources, asked: PartialRows, work: _Asked, found: Found,
        lost: set[str], unfit: Mapping[int, str],
    ) -> Rows:  # fmt: skip
        views = list(work.inputs)
        ages: dict[str, list[float | None]] = {view: [None] * asked.n for view in views}
        statuses: dict[str, list[str | None]] = {view: [None] * asked.n for view in views}
        places = dict.fromkeys(views, 0)
        values: list[list[Value]] = []
        for row, known in enumerate(work.known):
            mine: dict[str, tuple[Mapping[str, Value], Reading]] = {}
            for view in work.views[row]:
                place, places[view] = places[view], places[view] + 1
                if view in lost:
                    statuses[view][row] = UNAVAILABLE
                    continue
                reading = found.readings[view][1][place]
                mine[view] = work.entities[view][place], reading
                statuses[view][row] = reading.status.value
                ages[view][row] = None if reading.age is None else round(reading.age, 3)
            values.append([
                known[name] if name in known else _looked_up(sources, one, mine, row)
                for name, one in sources.fields.items()
            ])  # fmt: skip
        for given in statuses.values():
            for status in given:
                if status is not None:
                    self._counters.add(("features", model.name, status))
        return Rows(
            asked.request_id, asked.n, values, asked.ids, asked.units, asked.event_times,
            LookedUp(ages, statuses), dict(unfit) or None,
        )  # fmt: skip

    # What a person should know.

    def warnings(self) -> list[str]:
        """What keeps entities from being looked up, as of the last look."""
        said = [f"the online store does not answer: {self.lookups.why}"] if self.lookups.why else []
        return said + [note for notes in self._notes.values() for note in notes]

    async def look(self, models: Mapping[str, Model]) -> None:
        """Compare what is online with what the served versions know, for `warnings`."""
        notes: dict[str, list[str]] = {}
        for name, model in models.items():
            versions = [served for served in model.versions.values() if served.manifest.views]
            if not versions:
                continue
            heads = await self.lookups.heads(name)
            if heads is None:
                return  # away; what was said of the definitions stands
            said: list[str] = []
            for served in versions:
                sources = self._known(served)
                for view in sources.views.values():
                    head = heads.get(view.name)
                    why = sources.misfit(view, list(view.inputs), head) if head is not None else ""
                    if head is None and name in self._asked:
                        why = f"{view.name} is not online"
                    if why:
                        said.append(f"{name} version {served.version}: {why}. {MATERIALIZE.format(name)}")
            if said:
                notes[name] = said
        self._notes = notes


def _place(row: int, part: str, _: int) -> str:
    return f"row {row}: entity `{part}`"


def _looked_up(
    sources: _Sources, field: Field, mine: Mapping[str, tuple[Mapping[str, Value], Reading]], row: int
) -> Value:
    view = sources.by_input[field.name]
    entity, reading = mine.get(view.name, ({}, None))
    value: Value = None if reading is None else reading.values.get(view.inputs[field.name])
    if value is not None and value == value:
        return value
    if field.nullable:
        return None
    if reading is None:
        raise FeaturesUnavailable(
            f"input `{field.name}` may not be null, and {view.name} cannot be had", where=f"row {row}", next="",
            retry_after=None,
        )  # fmt: skip
    raise BadInput(
        f"{view.name} knows no `{field.name}` of this entity ({reading.status_of(field.name).value}), "
        "and it may not be null",
        where=f"row {row}", got=dict(entity), wanted="an entity that is known", next=f"Send `{field.name}` itself.",
    )  # fmt: skip


def _ask(sources: _Sources, asked: PartialRows, now: int) -> _Asked:
    """Find out which views each row needs, and their keys. Raises BadInput."""
    work = _Asked([], [])
    needs: dict[frozenset[str], tuple[dict[str, None], tuple[str, ...]]] = {}
    for row in range(asked.n):
        known, key = _keyed(sources, asked, row)
        work.known.append(known)
        signature = frozenset(known)
        if signature not in needs:
            missing = dict.fromkeys(name for name in sources.fields if name not in known)
            for name in missing:
                if name not in sources.by_input:
                    raise BadInput(
                        f"input `{name}` is missing, and it comes from no online view", where=f"row {row}",
                        wanted=f"all of {', '.join(each for each in sources.fields if each not in sources.by_input)}",
                    )  # fmt: skip
            views = tuple(dict.fromkeys(sources.by_input[name].name for name in missing))
            for name in missing:
                work.inputs.setdefault(sources.by_input[name].name, {})[name] = None
            needs[signature] = missing, views
        missing, views = needs[signature]
        work.views.append(views)
        for view in views:
            parts = sources.views[view].entity
            instead = [f"`{name}`" for name in missing if name in sources.views[view].inputs]
            for part in parts:
                if part not in key:
                    raise BadInput(
                        f"{view} is looked up by `{part}`, which is missing", where=f"row {row}",
                        got=", ".join(sorted(map(short_name, key))) or "no entity", wanted=", ".join(parts),
                        next=f"Or send {', '.join(instead)}.",
                    )  # fmt: skip
            work.entities.setdefault(view, []).append({part: key[part] for part in parts})
            work.moments.setdefault(view, []).append(asked.event_times[row] or now)
    return work


def _keyed(sources: _Sources, asked: PartialRows, row: int) -> tuple[dict[str, Value], dict[str, Value]]:
    """A row's inputs with those that its entities bring, and its key with the parts that its inputs bring."""
    known, entity = asked.given[row], asked.entities[row]
    if unknown := next((part for part in entity if part not in sources.entity), None):
        raise BadInput(
            f"no online view is looked up by `{short_name(unknown)}`", where=f"row {row}",
            wanted=", ".join(sources.entity), next=did_you_mean(unknown, sources.entity),
        )  # fmt: skip
    key = dict(entity)
    for part, name in sources.parts.items():
        if part not in entity:
            if name in known:
                key[part] = known[name]
            continue
        one = sources.fields[name]
        (value,) = check_values([entity[part]], one, v2_datatype(one), partial(_place, row, part))
        if name not in known:
            known[name] = value
        elif known[name] != value:
            raise BadInput(
                f"the entity `{part}` and the input `{name}` differ", where=f"row {row}",
                got=f"{entity[part]!r} and {known[name]!r}", wanted="one value, or one of them",
            )  # fmt: skip
    return known, key
