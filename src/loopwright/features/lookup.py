"""Looks a feature view up: what it knew about an entity at a moment. Written as SQL once, for every engine.

Times are whole microseconds since 1970 (UTC), so comparisons are exact. A question is a row of `_p{n}`: `_key0`, … and
`_e`. The answer is `_f{n}`: the question, `_status` where asked for, and a column for each name that the view gives.

Rows that can ever be the answer are found first: a row that is not the newest at the moment it becomes known never
will be. What is left is ordered by event time and by when it became known at once, so one comparison decides. Where
the engine has an ASOF join, that finds it; elsewhere a window over questions and rows together does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from loopwright.features.status import Status
from loopwright.features.view import Aggregate, FeatureView, as_mapping, quoted
from loopwright.kernel.errors import BadInput

Family = Literal["integer", "float", "decimal", "boolean", "text", "time", "other"]
MICROSECOND = timedelta(microseconds=1)
FEW_RIVALS = 4
"""So many rows of one entity and one moment may be joined to a question before the best of them is taken."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an engine spells what its SQL says differently. `translate`: what is done to SQL that a project wrote."""

    asof: bool
    quote: str
    integer: str
    micros: str
    struct: str
    distinct: str
    translate: Callable[[str, str], str]

    def name(self, name: str) -> str:
        """`name` as an identifier."""
        return self.quote + name.replace(self.quote, self.quote * 2) + self.quote

    def moment(self, sql: str, where: str) -> str:
        """Microseconds since 1970 of an expression that a project wrote."""
        return self.micros.format(self.translate(sql, where))


DUCKDB = Dialect(
    asof=True,
    quote='"',
    integer="HUGEINT",
    micros="epoch_us(CAST(({}) AS TIMESTAMPTZ))",
    struct="struct_pack(t := {}, k := {}, v := {})",
    distinct="count(DISTINCT {}){}",
    translate=lambda sql, where: sql,
)


class Engine(Protocol):
    """Where relations are made. Names of relations made here start with `_`."""

    dialect: Dialect

    def make(self, name: str, sql: str, where: str, *, lazy: bool = False) -> None:
        """Make the relation `name`; `lazy`: it is read once. Raises BadInput, naming `where`, for SQL that fails."""

    def types(self, name: str) -> dict[str, Family]:
        """The columns of a relation."""

    def count(self, sql: str) -> int:
        """The one number that a query gives."""


def look_up(
    engine: Engine, view: FeatureView, index: int, rows: str, *, where: str, status: bool = False
) -> None:
    """Make `_f{index}` from `_p{index}` and the relation `rows` (SQL for a FROM). Questions with null keys get no
    answer there."""
    work = _LookUp(engine, view, index, where)
    # What is cheap to say again is not kept; a query's rows are.
    work.facts(rows, lazy=not view.aggregations and not isinstance(view.source, str))
    work.check_keys()
    parts = [work.newest(status)] if as_mapping(view.columns) or status else []
    if view.aggregations:
        work.prepare()
        parts += work.windows() + work.joins()
    work.answer(parts)


class _LookUp:
    def __init__(self, engine: Engine, view: FeatureView, index: int, where: str) -> None:
        self.engine, self.view, self.index, self.where = engine, view, index, where
        self.d = engine.dialect
        self.keys = [f"_key{n}" for n in range(len(as_mapping(view.entity)))]
        self.columns = [self.d.name(name) for name in as_mapping(view.columns)]
        self.after = view.available_after // MICROSECOND
        self.timed = view.event_time is not None
        self.families: dict[str, Family] = {}

    def facts(self, rows: str, *, lazy: bool) -> None:
        """Make `_c`: keys, `_t`, `_known`, the columns, and `_g0`, … the aggregates' values."""
        view, d = self.view, self.d

        def user(sql: str) -> str:
            return f"({d.translate(sql, self.where)})"

        selected = [f"{user(sql)} AS {key}" for sql, key in zip(as_mapping(view.entity).values(), self.keys)]  # noqa: B905
        selected.append(
            f"{d.moment(view.event_time, self.where) if view.event_time else 'CAST(0 AS BIGINT)'} AS _t"
        )
        if view.available_at is not None:
            selected.append(f"{d.moment(view.available_at, self.where)} AS _a")
        selected += [f"{user(sql)} AS {d.name(name)}" for name, sql in as_mapping(view.columns).items()]
        for n, aggregate in enumerate(view.aggregations.values()):
            value = "1" if aggregate.value is None else user(aggregate.value)
            if aggregate.where is not None:
                value = f"CASE WHEN {user(aggregate.where)} THEN {value} END"
            selected.append(f"{value} AS _g{n}")
        known = f"_t + {self.after}" if self.after else "_t"
        if view.available_at is not None:
            known = f"CASE WHEN _a IS NOT NULL THEN greatest(_a, {known}) END"
        values = [*self.columns, *(f"_g{n}" for n in range(len(view.aggregations)))]
        present = " AND ".join(f"{key} IS NOT NULL" for key in [*self.keys, "_t"])
        self._make(
            "_c",
            f"SELECT {', '.join([*self.keys, '_t', f'{known} AS _known', *values])} "
            f"FROM (SELECT {', '.join(selected)} FROM {rows} AS {d.name(view.table)}) AS _s WHERE {present}",
            lazy=lazy,
        )

    def check_keys(self) -> None:
        """Raise BadInput where a question's key and a row's are of two kinds: engines compare them differently."""
        self.families = self.engine.types(f"_c{self.index}")
        asked = self.engine.types(f"_p{self.index}")
        numbers = ("integer", "float", "decimal")
        for key, name in zip(self.keys, as_mapping(self.view.entity), strict=True):
            ours, theirs = asked[key], self.families[key]
            if ours != theirs and "other" not in (ours, theirs) and not {ours, theirs} <= {*numbers}:
                raise BadInput(
                    f"the entity `{name}` is {ours} in the question and {theirs} in the rows of {self.view.table}",
                    where=self.where, wanted="one type", next="Cast one of them in `entity`.",
                )  # fmt: skip

    def newest(self, status: bool) -> str:
        """Make `_n`: the newest row known at each question; return its name."""
        keys = ", ".join(self.keys)
        weighed_late = self._candidates()
        fresh = ""
        if self.view.ttl is not None:
            fresh = f"_q._e < _r._t + {self.view.ttl // MICROSECOND}"
        given = [f"CASE WHEN {fresh} THEN _r.{c} END AS {c}" if fresh else f"_r.{c}" for c in self.columns]
        join = self._hits()
        if status:
            self._make("_k", f"SELECT DISTINCT {keys} FROM {self._of('_c')}")
            found = " ".join([
                f"CASE WHEN _r._t IS NULL AND _k.{self.keys[0]} IS NULL THEN '{Status.NOT_FOUND}'",
                f"WHEN _r._t IS NULL THEN '{Status.NOT_YET_KNOWN}'",
                *([f"WHEN NOT ({fresh}) THEN '{Status.EXPIRED}'"] if fresh else []),
                f"ELSE '{Status.PRESENT}' END AS _status",
            ])  # fmt: skip
            given.append(found)
            join += f" LEFT JOIN {self._of('_k')} AS _k ON {self._same('_q', '_k')}"
        asked = [f"_q.{name}" for name in self._question()]
        if not weighed_late:
            self._make("_n", f"SELECT {', '.join([*asked, *given])} FROM {join}")
            return self._of("_n")
        self._make("_x", f"SELECT {', '.join([*asked, '_r._t', *given])} FROM {join}")
        names = ", ".join([*self._question(), *self.columns, *(["_status"] if status else [])])
        rivals = f"{self._of('_d')} USING ({keys}, _t)"
        self._make(
            "_n",
            f"""SELECT {names} FROM {self._of("_x")} ANTI JOIN {rivals} UNION ALL
            SELECT {names} FROM (SELECT *, row_number() OVER (
                PARTITION BY {", ".join(self._question())} ORDER BY {self._best("DESC NULLS LAST")}
            ) AS _at_top FROM {self._of("_x")} SEMI JOIN {rivals}) WHERE _at_top = 1""",
        )
        return self._of("_n")

    def _candidates(self) -> bool:
        """Make `_r`: the rows that can be an answer; return whether several of one moment are left among them.

        To weigh rows by all their columns costs more than the rest together, and hardly any have a rival (`_d`): where
        asking is cheap and they are few, only answers that do are weighed, in the end.
        """
        keys = ", ".join(self.keys)
        carried = ", ".join([*self.keys, "_t", "_known", *self.columns])
        if self.view.available_at is not None:
            # The later in this order, the better; whoever is not the best on becoming known never will be.
            up = self._best("ASC NULLS FIRST")
            self._make(
                "_r",
                f"""SELECT {carried} FROM (
                SELECT *, lead(_known) OVER (PARTITION BY {keys} ORDER BY _rank) AS _next FROM (
                SELECT *, max(_rank) OVER (
                    PARTITION BY {keys} ORDER BY _known, _rank ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS _top FROM (
                SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY _t, _known, {up}) AS _rank
                FROM {self._of("_c")} WHERE _known IS NOT NULL) AS _s1) AS _s2 WHERE _rank = _top
                ) AS _s3 WHERE _next IS NULL OR _next <> _known""",
            )
            return False
        if self.d.asof:
            self._make(
                "_d",
                f"SELECT {keys}, _t, count(*) AS _rivals FROM {self._of('_c')} GROUP BY {keys}, _t HAVING count(*) > 1",
            )
            rivals = self.engine.count(f"SELECT coalesce(max(_rivals), 0) FROM {self._of('_d')}")
            if rivals <= FEW_RIVALS:
                self._make("_r", f"SELECT {carried} FROM {self._of('_c')}", lazy=True)
                return rivals > 0
        self._make(
            "_r",
            f"SELECT {carried} FROM (SELECT {carried}, row_number() OVER (PARTITION BY {keys}, _t "
            f"ORDER BY {self._best('DESC NULLS LAST')}) AS _at_top FROM {self._of('_c')}) AS _s WHERE _at_top = 1",
        )
        return False

    def _best(self, order: str) -> str:
        """ORDER BY: the view's columns in their order."""
        return ", ".join(f"{column} {order}" for column in self.columns) or "_t"

    def _hits(self) -> str:
        """FROM … : each question as `_q` with the row that answers it as `_r`."""
        same = self._same("_q", "_r")
        if not self.timed:
            return f"{self._of('_p')} AS _q LEFT JOIN {self._of('_r')} AS _r ON {same}"
        # Which row it is is found among moments alone; its columns are fetched afterwards, without being sorted.
        moments = self._of("_c" if self.view.available_at is None else "_r")
        keys = ", ".join(self.keys)
        if self.d.asof:
            asked = ", ".join(f"_q.{name}" for name in self._question())
            hits = (
                f"SELECT {asked}, _m._known AS _hit FROM {self._of('_p')} AS _q ASOF LEFT JOIN "
                f"(SELECT {keys}, _known FROM {moments}) AS _m ON {self._same('_q', '_m')} AND _q._e >= _m._known"
            )
        else:
            present = " AND ".join(f"{key} IS NOT NULL" for key in self.keys)
            hits = f"""SELECT {keys}, _x AS _e, _hit FROM (
            SELECT {keys}, _x, _k, max(_k) OVER (
                PARTITION BY {keys} ORDER BY _x RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ) AS _hit FROM (
                SELECT {keys}, _known AS _x, _known AS _k FROM {moments} UNION ALL
                SELECT {keys}, _e AS _x, CAST(NULL AS BIGINT) AS _k FROM {self._of("_p")} WHERE {present}
            ) AS _u) AS _v WHERE _k IS NULL"""
        self._make("_h", hits)
        return f"{self._of('_h')} AS _q LEFT JOIN {self._of('_r')} AS _r ON {same} AND _q._hit = _r._known"

    def prepare(self) -> None:
        """Make `_v`: of each aggregate the numbers to be summed, counted or compared, null where a row counts not."""
        cells = []
        for n, (name, aggregate) in enumerate(self.view.aggregations.items()):
            family = self.families[f"_g{n}"]
            if aggregate.function in ("sum", "mean", "stddev") and family in ("text", "time", "other"):
                raise BadInput(
                    f"`{name}`: there is no {aggregate.function} of what is no number", where=self.where, got=family,
                    wanted="numbers or booleans", next="Cast the value.",
                )  # fmt: skip
            g = f"CASE WHEN isnan(_g{n}) THEN NULL ELSE _g{n} END" if family == "float" else f"_g{n}"
            match aggregate.function:
                case "sum" | "mean" | "stddev" if aggregate.function == "stddev" or family in (
                    "float",
                    "decimal",
                ):
                    scaled = f"round(CAST({g} AS DOUBLE) * 1e{aggregate.decimals})"
                    g = f"CAST({scaled} AS {self.d.integer})"
                case "sum" | "mean":
                    g = f"CAST({g} AS BIGINT)"
                case "last":
                    row = self.d.struct.format("_t", "_known", f"_g{n}")
                    g = f"CASE WHEN {g} IS NOT NULL THEN {row} END"
            cells.append(f"{g} AS _g{n}")
        self._make("_v", f"SELECT {', '.join([*self.keys, '_t', '_known', *cells])} FROM {self._of('_c')} "
                         "WHERE _known IS NOT NULL", lazy=True)  # fmt: skip

    def windows(self) -> list[str]:
        """Make `_w`: aggregates whose rows are told by when they became known alone; its name in a list, or none."""
        chosen = [(n, name, a) for n, name, a in self._aggregates() if not self._needs_join(a)]
        if not chosen:
            return []
        keys = ", ".join(self.keys)
        inner, outer = [], []
        for n, name, aggregate in chosen:
            frame = "UNBOUNDED"
            if aggregate.window is not None:
                later = 0 if aggregate.over == "available_at" else self.after
                frame = str(aggregate.window // MICROSECOND - later - 1)
            over = f" OVER (PARTITION BY {keys} ORDER BY _x RANGE BETWEEN {frame} PRECEDING AND CURRENT ROW)"
            inner += self._reduced(n, aggregate, over)
            outer.append(f"{self._measured(n, aggregate)} AS {self.d.name(name)}")
        values = ", ".join(f"_g{n}" for n, _, _ in chosen)
        nothing = ", ".join(f"NULL AS _g{n}" for n, _, _ in chosen)
        self._make(
            "_w",
            f"""SELECT {keys}, _x AS _e, {", ".join(outer)} FROM (
            SELECT {keys}, _x, _asked, {", ".join(inner)} FROM (
                SELECT {keys}, _known AS _x, 0 AS _asked, {values} FROM {self._of("_v")} UNION ALL
                SELECT {keys}, _e AS _x, 1 AS _asked, {nothing} FROM {self._of("_p")}
            ) AS _u) AS _i WHERE _asked = 1""",
        )
        return [self._of("_w")]

    def joins(self) -> list[str]:
        """Make `_b…`: aggregates over event time of rows that became known at times of their own.

        Rows lie in stretches as long as the window: those of a question's stretch and the one before hold all of its
        own, so that pairs grow with the rows of two windows, not of all time.
        """
        chosen = [each for each in self._aggregates() if self._needs_join(each[2])]
        made: list[str] = []
        for window in sorted({a.window // MICROSECOND for _, _, a in chosen if a.window is not None}):
            these = [each for each in chosen if each[2].window == window * MICROSECOND]
            inner = [text for n, _, a in these for text in self._reduced(n, a, "")]
            outer = [f"{self._measured(n, a)} AS {self.d.name(name)}" for n, name, a in these]
            stretch = f"{{0}} - (({{0}} % {window}) + {window}) % {window}"
            keys = ", ".join(self.keys)
            asked = ", ".join(f"_q.{name}" for name in self._question())
            name = f"_b{len(made)}_"
            self._make(
                name,
                f"""SELECT {keys}, _e, {", ".join(outer)} FROM (
                SELECT {asked}, {", ".join(inner)}
                FROM (SELECT *, {stretch.format("_e")} AS _stretch FROM {self._of("_p")}) AS _q
                JOIN (
                    SELECT *, {stretch.format("_t")} AS _stretch FROM {self._of("_v")} UNION ALL
                    SELECT *, {stretch.format("_t")} + {window} AS _stretch FROM {self._of("_v")}
                ) AS _f ON {self._same("_q", "_f")} AND _q._stretch = _f._stretch
                    AND _f._t > _q._e - {window} AND _f._known <= _q._e
                GROUP BY {asked}) AS _i""",
            )
            made.append(self._of(name))
        return made

    def answer(self, parts: list[str]) -> None:
        """Make `_f` of the parts."""
        if len(parts) == 1 and not self.view.aggregations:
            self._make("_f", f"SELECT * FROM {parts[0]}", lazy=True)
            return
        given = [*self.columns]
        for name, aggregate in self.view.aggregations.items():
            column = self.d.name(name)
            given.append(f"coalesce({column}, 0) AS {column}" if aggregate.function in ZERO else column)
        joins = ""
        for n, part in enumerate(parts):
            joins += f" LEFT JOIN {part} AS _j{n} ON {self._same('_q', f'_j{n}')} AND _q._e = _j{n}._e"
        asked = ", ".join(f"_q.{name} AS {name}" for name in self._question())
        # Made in two steps: the names of the view's columns must not be mistaken for the question's.
        status = ["_status"] if self._has_status(parts) else []
        self._make("_f", f"SELECT {', '.join([asked, *given, *status])} FROM {self._of('_p')} AS _q{joins}")

    def _has_status(self, parts: list[str]) -> bool:
        return self._of("_n") in parts and "_status" in self.engine.types(self._of("_n"))

    def _aggregates(self) -> list[tuple[int, str, Aggregate]]:
        return [(n, name, a) for n, (name, a) in enumerate(self.view.aggregations.items())]

    def _needs_join(self, aggregate: Aggregate) -> bool:
        own_times = self.view.available_at is not None and aggregate.over == "event_time"
        return own_times and aggregate.window is not None

    def _reduced(self, n: int, aggregate: Aggregate, over: str) -> list[str]:
        """SELECT items: what is taken over the rows of a window."""
        match aggregate.function:
            case "count":
                return [f"count(_g{n}){over} AS _n{n}"]
            case "distinct":
                return [f"{self.d.distinct.format(f'_g{n}', over)} AS _n{n}"]
            case "sum":
                return [f"sum(_g{n}){over} AS _s{n}"]
            case "mean":
                return [f"sum(_g{n}){over} AS _s{n}", f"count(_g{n}){over} AS _n{n}"]
            case "stddev":
                return [f"sum(_g{n}){over} AS _s{n}", f"sum(_g{n} * _g{n}){over} AS _z{n}",
                        f"count(_g{n}){over} AS _n{n}"]  # fmt: skip
            case "min":
                return [f"min(_g{n}){over} AS _s{n}"]
        return [f"max(_g{n}){over} AS _s{n}"]

    def _measured(self, n: int, aggregate: Aggregate) -> str:
        """The aggregate, from what `_reduced` took."""
        scaled = self.families[f"_g{n}"] in ("float", "decimal")
        unit = f" / 1e{aggregate.decimals}"
        match aggregate.function:
            case "count" | "distinct":
                return f"_n{n}"
            case "sum":
                return f"CAST(_s{n} AS DOUBLE){unit}" if scaled else f"CAST(_s{n} AS BIGINT)"
            case "mean":
                return f"CAST(_s{n} AS DOUBLE){unit if scaled else ''} / NULLIF(_n{n}, 0)"
            case "stddev":
                # Squares about a whole number near the mean: exact, and nothing cancels in the division.
                mean = f"CAST(round(CAST(_s{n} AS DOUBLE) / NULLIF(_n{n}, 0)) AS {self.d.integer})"
                around = f"(_z{n} - 2 * {mean} * _s{n} + _n{n} * {mean} * {mean})"
                off = f"CAST(_s{n} - _n{n} * {mean} AS DOUBLE)"
                squares = f"(CAST({around} AS DOUBLE) - {off} * {off} / NULLIF(_n{n}, 0))"
                spread = f"sqrt(greatest({squares}, 0e0) / NULLIF(_n{n} - 1, 0)){unit}"
                return f"CASE WHEN _n{n} > 1 THEN {spread} END"
            case "last":
                return f"_s{n}.v"
        return f"_s{n}"

    def _question(self) -> list[str]:
        return [*self.keys, *(["_e"] if self.timed else [])]

    def _same(self, one: str, other: str) -> str:
        return " AND ".join(f"{one}.{key} = {other}.{key}" for key in self.keys)

    def _of(self, name: str) -> str:
        return f"{name}{self.index}"

    def _make(self, name: str, sql: str, *, lazy: bool = False) -> None:
        self.engine.make(self._of(name), sql, self.where, lazy=lazy)


ZERO = ("count", "distinct")
"""Aggregates that are 0, not null, where no row counts."""


def answers(view: FeatureView, relation: str, dialect: Dialect = DUCKDB) -> list[str]:
    """SQL for each of `view.names()`, where the answer LEFT JOINed as `relation` may be missing."""
    given = [f"{relation}.{dialect.name(name)}" for name in as_mapping(view.columns)]
    for name, aggregate in view.aggregations.items():
        column = f"{relation}.{dialect.name(name)}"
        given.append(f"coalesce({column}, 0)" if aggregate.function in ZERO else column)
    return given


def asked_side(view: FeatureView) -> list[str]:
    """The entity as SQL over the table of questions: a name that both tables share is quoted."""
    named = not isinstance(view.entity, Mapping)
    return [quoted(name) if named else name for name in as_mapping(view.entity)]
