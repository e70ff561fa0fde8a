"""What a project says about its features: a spine of rows, and views that know how things stood at a moment.

SQL expressions are DuckDB's, over the columns of the table they belong to. Times may be timestamps with or
without a zone (without one: UTC), dates or ISO 8601 text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args

from loopwright.kernel.errors import BadInput, did_you_mean

Columns = Sequence[str] | Mapping[str, str]
"""Column names, or new name → SQL expression."""


def as_mapping(columns: Columns) -> dict[str, str]:
    """Name → SQL expression; a plain name stands for itself, quoted."""
    if isinstance(columns, Mapping):
        return dict(columns)
    if isinstance(columns, str):
        return {columns: quoted(columns)}
    return {name: quoted(name) for name in columns}


def quoted(name: str) -> str:
    """`name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Spine:
    """The rows a model is asked about: one each, identified by `key`, at `event_time`.

    `key`: columns that together name a row, joined by "-"; empty: rows are named by a digest of their
    content. `event_time`: the moment of the question; None when the data has no time. `label`: the answer;
    null where it never comes. Text labels become the index of their class. `label_available_at`: when the
    answer is known; never earlier than the event plus the project's `available_after`, and never where it is
    null. Not given: at that earliest moment. `where`: which rows of the table are questions. `inputs`: what
    the question itself brings. `unit`: whom the row is about, for routing (an aircraft, a customer); the
    row's own key where null.
    """

    table: str
    key: Columns = ()
    event_time: str | None = None
    label: str | None = None
    label_available_at: str | None = None
    where: str | None = None
    inputs: Columns = ()
    unit: str | None = None


AggregateFunction = Literal["count", "sum", "mean", "min", "max", "stddev", "last", "distinct"]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One number made of the rows of an entity that lie in the `window` before a question and were known by then.

    `value`: SQL over the view's rows; only rows where it is not null (nor NaN) count. None: every row, for "count".
    `window` None: all rows known. `over`: a question at e takes the rows with e - window < event time <= e, or the
    same of the moment they became known. `where`: SQL that a row must meet. Where no row counts, "count" and
    "distinct" give 0, the others null.

    "last" is the value of the newest row by event time; ties go to the one known later, then to the greater value.
    "stddev" is the sample's (n - 1; null for one row). "sum", "mean" and "stddev" take numbers held to `decimals`
    places, so that they are exact and do not depend on the order of rows.
    """

    function: AggregateFunction
    value: str | None = None
    window: timedelta | None = None
    where: str | None = None
    over: Literal["event_time", "available_at"] = "event_time"
    decimals: int = 9

    def __post_init__(self) -> None:
        functions = get_args(AggregateFunction)
        if self.function not in functions:
            raise BadInput(
                "there is no such aggregate", got=self.function, wanted=f"one of {', '.join(functions)}",
                next=did_you_mean(str(self.function), functions),
            )  # fmt: skip
        if self.value is None and self.function != "count":
            raise BadInput(
                f"nothing to take the {self.function} of", wanted="value: SQL over the view's rows"
            )
        if self.window is not None and self.window <= timedelta(0):
            raise BadInput(
                "a window must be longer than nothing", got=self.window, wanted="window > 0, or None"
            )
        if self.over not in ("event_time", "available_at"):
            raise BadInput("a window over what?", got=self.over, wanted='"event_time" or "available_at"')
        if not 0 <= self.decimals <= 18:
            raise BadInput("so many places cannot be held", got=self.decimals, wanted="decimals from 0 to 18")


@dataclass(frozen=True, slots=True)
class ViewTest:
    """A SQL condition over a view's columns that every row of a frame must meet; null is not met.

    `severity`: "block" stops training, "warn" is only told.
    """

    condition: str
    severity: Literal["block", "warn"] = "block"

    def __post_init__(self) -> None:
        if self.severity not in ("block", "warn"):
            raise BadInput("no such severity of a test", got=self.severity, wanted='"block" or "warn"')


Source = str | Callable[..., Any]
"""A SQL query, or a Python function of Arrow tables."""


@dataclass(frozen=True, slots=True)
class FeatureView:
    """The newest row of `table` per `entity` that was known at the spine's event time, and aggregates over such rows.

    A row with event time t is known from `available_at` on, though never before t + `available_after` (not given:
    from then on; null: never), and its `columns` are forgotten at t + `ttl` (None: never). `entity`: columns that the
    spine's table and this one share, or {SQL over the spine's table: SQL over this table}; a null equals nothing.
    `event_time` None: facts that do not change (an airport's place).

    Of the rows known, the one with the newest event time wins; of several with the same, the one known last (a late
    correction replaces what it corrects from the moment it is known, and not before); then the greatest by its
    columns, in their order.

    `aggregations`: name → `Aggregate` over all rows of the entity that were known. `source`: the rows to look at
    instead of the table's own: a SQL query over `table` and the tables that it also `reads`, or a Python function that
    is called with these as Arrow tables, in that order, as they were pinned, and returns one. `tests`: name →
    condition (or `ViewTest`) over the view's columns in a frame.
    """

    name: str
    table: str
    entity: Columns
    columns: Columns = ()
    event_time: str | None = None
    ttl: timedelta | None = None
    available_after: timedelta = timedelta(0)
    owner: str = ""
    available_at: str | None = None
    aggregations: Mapping[str, Aggregate] = field(default_factory=dict)
    source: Source | None = None
    reads: Sequence[str] = ()
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    tests: Mapping[str, str | ViewTest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"feature view {self.name}"
        if self.available_after < timedelta(0):
            raise BadInput(
                "a fact cannot be known before it happens",
                where=where,
                got=self.available_after,
                wanted="available_after >= 0",
                next="remove the minus sign",
            )
        if not as_mapping(self.entity):
            raise BadInput("nothing to look up by", where=where, wanted="entity with at least one column")
        names = self.names()
        if not names:
            raise BadInput("it gives nothing", where=where, wanted="columns or aggregations")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput("two things have one name", where=where, got=twice, wanted="each name once")
        if self.ttl is not None and self.ttl <= timedelta(0):
            raise BadInput(
                "a fact must live longer than nothing", where=where, got=self.ttl, wanted="ttl > 0"
            )
        if self.event_time is None:
            self._require_time(where)
        self._require_windows(where)
        if self.source is None and self.reads:
            raise BadInput("tables to read, but no source that reads them", where=where, wanted="source")

    def names(self) -> tuple[str, ...]:
        """What the view gives: its columns, then its aggregations."""
        return (*as_mapping(self.columns), *self.aggregations)

    def tables(self) -> tuple[str, ...]:
        """Names of the tables that the view is made from, its own first."""
        return tuple(dict.fromkeys([self.table, *self.reads]))

    def all_tests(self) -> dict[str, ViewTest]:
        """Name → test; a bare condition blocks."""
        return {n: t if isinstance(t, ViewTest) else ViewTest(t) for n, t in self.tests.items()}

    def _require_time(self, where: str) -> None:
        timed = {
            "available_at": self.available_at is not None, "aggregations": bool(self.aggregations),
            "ttl": self.ttl is not None, "available_after": self.available_after > timedelta(0),
        }  # fmt: skip
        if wanting := [name for name, given in timed.items() if given]:
            raise BadInput(
                f"{' and '.join(wanting)} mean nothing without an event time",
                where=where,
                wanted="event_time: SQL for when a row happened",
            )

    def _require_windows(self, where: str) -> None:
        for name, aggregate in self.aggregations.items():
            seen = aggregate.window is None or aggregate.over == "available_at"
            if not seen and aggregate.window <= self.available_after:  # type: ignore[operator]
                raise BadInput(
                    f"no row can be in the window of `{name}`: it is over before a row is known",
                    where=where,
                    got=aggregate.window,
                    wanted=f'window > available_after ({self.available_after}), or over="available_at"',
                )


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before any label is seen: `rate`, worth `weight` labels."""

    rate: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class WindowedRate:
    """Mean of `value` over the spine table's rows with the same `on` whose value became known within
    `window`.

    For a question at e it takes exactly the rows with e - window < available_at <= e, and gives
    (sum + prior.rate * prior.weight) / (count + prior.weight); without a prior, null where there are no rows.
    `on`: columns of the spine's table, all equal (empty: all rows; a null equals nothing). `value`: SQL over
    the spine's table, numbers or booleans held to nine decimals, so that sums are exact; None: the label.
    `available_at`: SQL; None: the label's. It is held to the same floor, never before event time +
    available_after, so that no row sees its own value. `count`: name of a second input holding the number of
    rows; None: not wanted.
    """

    name: str
    window: timedelta
    on: Columns = field(default=())
    value: str | None = None
    available_at: str | None = None
    prior: Prior | None = None
    count: str | None = None
    owner: str = ""

    def __post_init__(self) -> None:
        if self.window <= timedelta(0):
            raise BadInput(
                "a window must be longer than nothing",
                where=f"windowed rate {self.name}",
                got=self.window,
                wanted="window > 0",
            )
