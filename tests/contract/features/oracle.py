"""What a training set must hold, told by looking at every row by hand; and small worlds of rows to ask about.

Times are hours since START; nothing here knows how the product does it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import sqrt
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from loopwright.features import Aggregate, FeatureView

START = datetime(2024, 3, 9, 22, tzinfo=UTC)  # the night in which New York's clocks go forward
HOUR = timedelta(hours=1)
MOMENT = pa.timestamp("us", "UTC")
FACTS = pa.schema([("k", pa.string()), ("j", pa.int64()), ("t", MOMENT), ("seen", MOMENT), ("v", pa.float64()),
                   ("n", pa.int64()), ("w", pa.string())])  # fmt: skip
ASKED = pa.schema([("k", pa.string()), ("j", pa.int32()), ("event_time", MOMENT), ("x", pa.int64())])
FUNCTIONS = ("count", "sum", "mean", "min", "max", "stddev", "last", "distinct")


@dataclass(frozen=True)
class Fact:
    k: str | None
    j: int | None
    t: datetime | None
    seen: datetime | None
    v: float | None
    n: int | None
    w: str | None


def at(hours: float | None) -> datetime | None:
    return None if hours is None else START + hours * HOUR


def facts_table(facts: list[Fact]) -> pa.Table:
    names = FACTS.names
    return pa.table(
        {name: pa.array([getattr(f, name) for f in facts], FACTS.field(name).type) for name in names}
    )


def asked_table(asked: list[tuple[str | None, int | None, datetime]]) -> pa.Table:
    rows = [{"k": k, "j": j, "event_time": t, "x": n} for n, (k, j, t) in enumerate(asked)]
    return pa.Table.from_pylist(rows, schema=ASKED)


def view(
    *, ttl: int | None, after: float, own_times: bool, window: int | None, over: str, value: str = "v"
) -> FeatureView:
    """A view with everything: columns, and every aggregate there is."""
    return FeatureView(
        name="seen", table="facts", entity=("k", "j"), columns={"v": "v", "n": "n", "w": "w"}, event_time="t",
        ttl=None if ttl is None else ttl * HOUR, available_after=after * HOUR,
        available_at="seen" if own_times else None,
        aggregations={
            f"{function}_{value}": Aggregate(
                function, value, None if window is None else window * HOUR, over=over  # type: ignore[arg-type]
            )
            for function in FUNCTIONS
        } | {"rows": Aggregate("count", None, None if window is None else window * HOUR, "n > 1", over)},  # type: ignore[arg-type]
    )  # fmt: skip


def known_at(view: FeatureView, fact: Fact) -> datetime | None:
    if fact.t is None:
        return None
    floor = fact.t + view.available_after
    if view.available_at is None:
        return floor
    return None if fact.seen is None else max(fact.seen, floor)


def _order(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)


def answer(
    view: FeatureView, facts: list[Fact], asked: tuple[str | None, int | None, datetime]
) -> dict[str, Any]:
    """The columns, aggregates and status of one question."""
    k, j, e = asked
    nothing: dict[str, Any] = dict.fromkeys(("v", "n", "w"))
    aggregates = {name: measure(aggregate, view, [], e) for name, aggregate in view.aggregations.items()}
    if k is None or j is None:
        return {**nothing, **aggregates, "seen_status": "NULL_KEY"}
    ours = [f for f in facts if f.k == k and f.j == j and f.t is not None]
    known = [f for f in ours if (at := known_at(view, f)) is not None and at <= e]
    aggregates = {name: measure(aggregate, view, known, e) for name, aggregate in view.aggregations.items()}
    if not known:
        return {**nothing, **aggregates, "seen_status": "NOT_YET_KNOWN" if ours else "NOT_FOUND"}
    best = max(known, key=lambda f: (f.t, known_at(view, f), _order(f.v), _order(f.n), _order(f.w)))
    assert best.t is not None
    if view.ttl is not None and e >= best.t + view.ttl:
        return {**nothing, **aggregates, "seen_status": "EXPIRED"}
    return {"v": best.v, "n": best.n, "w": best.w, **aggregates, "seen_status": "PRESENT"}


def measure(aggregate: Aggregate, view: FeatureView, known: list[Fact], e: datetime) -> Any:
    rows = known
    if aggregate.window is not None:
        since = e - aggregate.window
        if aggregate.over == "event_time":
            rows = [f for f in rows if f.t is not None and f.t > since]
        else:
            rows = [f for f in rows if known_at(view, f) > since]  # type: ignore[operator]
    if aggregate.where is not None:
        rows = [f for f in rows if f.n is not None and f.n > 1]
    if aggregate.value is None:
        return len(rows)
    counted = [f for f in rows if getattr(f, aggregate.value) is not None]
    values = [getattr(f, aggregate.value) for f in counted]
    match aggregate.function:
        case "count":
            return len(values)
        case "distinct":
            return len(set(values))
    if not values:
        return None
    match aggregate.function:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "last":
            return max((f.t, known_at(view, f), getattr(f, aggregate.value)) for f in counted)[2]
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    if aggregate.function == "sum":
        return float(sum(exact)) if isinstance(values[0], float) else int(sum(exact))
    if aggregate.function == "mean":
        return float(mean)
    return sqrt(sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)) if len(exact) > 1 else None


# A handful of moments, some a microsecond apart: ties and edges are the rule here, not the exception.
hours = st.integers(0, 9)
moments = st.builds(
    lambda hour, edge: START + hour * HOUR + edge * timedelta(microseconds=1),
    hours,
    st.sampled_from([0, 0, 0, -1, 1]),
)
keys = st.sampled_from(["a", "a", "b", "ü", None])
numbers = st.sampled_from([1, 1, 2, None])
facts = st.lists(
    st.builds(
        Fact, keys, numbers, st.one_of(st.none(), moments, moments, moments), st.one_of(st.none(), moments, moments),
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, -1.5, 3.0, 1e6])), st.one_of(st.none(), st.integers(0, 4)),
        st.sampled_from([None, "", "x", "y"]),
    ),
    max_size=12,
)  # fmt: skip
asked = st.lists(st.tuples(keys, numbers, moments), max_size=8).map(lambda rows: rows + rows[:2])
views = st.builds(
    view,
    ttl=st.sampled_from([None, 1, 3]),
    after=st.sampled_from([0, 0.5]),
    own_times=st.booleans(),
    window=st.sampled_from([None, 1, 4]),
    over=st.sampled_from(["event_time", "available_at"]),
    value=st.sampled_from(["v", "n"]),
)
