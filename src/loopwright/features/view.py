"""What a project says about its features: a spine of rows, and views that know how things stood at a moment.

SQL expressions are DuckDB's, over the columns of the table they belong to. Times may be timestamps with or
without a zone (without one: UTC), dates or ISO 8601 text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from loopwright.kernel.errors import BadInput

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


@dataclass(frozen=True, slots=True)
class FeatureView:
    """The newest row of `table` per `entity` that was known at the spine's event time.

    A row with event time t is known from t + `available_after` on and forgotten at t + `ttl` (None: never).
    `entity`: columns that the spine's table and this one share, or {SQL over the spine's table: SQL over this
    table}. `event_time` None: facts that do not change (an airport's place). Of several rows with the same
    entity and time, one wins always the same way: the greatest by its columns, in their order.
    """

    name: str
    table: str
    entity: Columns
    columns: Columns
    event_time: str | None = None
    ttl: timedelta | None = None
    available_after: timedelta = timedelta(0)
    owner: str = ""

    def __post_init__(self) -> None:
        if self.available_after < timedelta(0):
            raise BadInput(
                "a fact cannot be known before it happens",
                where=f"feature view {self.name}",
                got=self.available_after,
                wanted="available_after >= 0",
                next="remove the minus sign",
            )
        if not as_mapping(self.entity):
            raise BadInput(
                "nothing to look up by",
                where=f"feature view {self.name}",
                wanted="entity with at least one column",
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
