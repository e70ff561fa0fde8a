"""Which columns each input, the label and the choice of rows read, told from the SQL that a project wrote.

Every expression is parsed as DuckDB would (sqlglot), through joins, windows and subqueries. Where SQL does not say it
- a star, a row as a whole, text that cannot be parsed - the answer is the table, never a guess. What the request-time
transform makes of its inputs is Python: of it only the table level is known, all inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from loopwright.features.module import FeatureModule
from loopwright.features.view import FeatureView, WindowedRate, as_mapping, quoted
from loopwright.kernel.clock import format_duration

How = Literal["value", "joined on", "as of", "known at", "filtered by", "named by"]
"""What a column is read for. "value" goes into the number itself; the others decide which rows count."""

WHOLE = "*"
"""Stands for a column's name where only the table is known."""

Schemas = Mapping[str, Iterable[str]]


@dataclass(slots=True)
class Reading:
    """What one input (or the label) is made of. `columns`: (table, column) → what it is read for."""

    name: str
    view: str
    sql: str = ""
    columns: dict[tuple[str, str], set[How]] = field(default_factory=dict)
    why: str = ""

    @property
    def level(self) -> Literal["column", "table"]:
        return "table" if any(column == WHOLE for _, column in self.columns) else "column"

    def add(self, found: "Found", how: How) -> None:
        """Count what an expression reads towards this."""
        for place in found.columns:
            self.columns.setdefault(place, set()).add(how)
        self.why = self.why or found.why

    def to_json(self) -> dict[str, Any]:
        reads = [
            {"table": table, "column": column, "for": sorted(how)}
            for (table, column), how in sorted(self.columns.items())
        ]
        told = {"name": self.name, "view": self.view, "level": self.level, "reads": reads}
        return told | ({"sql": self.sql} if self.sql else {}) | ({"why": self.why} if self.why else {})


@dataclass(frozen=True, slots=True)
class Found:
    """What an expression reads: (table, column), with WHOLE where only the table is known, and then why."""

    columns: frozenset[tuple[str, str]]
    why: str = ""


def feature_lineage(module: FeatureModule, schemas: Schemas) -> dict[str, Any]:
    """JSON: {"inputs": [...], "label": {...} or None, "rows": {...}, "transform": {...}}, each as `Reading.to_json`.

    `schemas`: column names of the module's tables. A view's tie between rows of one entity and one moment is broken
    by its other columns too; that is not counted.
    """
    reader = _Reader(module, schemas)
    transform = {"level": "table", "source": "transform.py", "reads": list(module.inputs)}
    return {
        "inputs": [reading.to_json() for reading in reader.inputs()],
        "label": reading.to_json() if (reading := reader.label()) else None,
        "rows": reader.rows().to_json(),
        "transform": transform,
    }


class _Reader:
    def __init__(self, module: FeatureModule, schemas: Schemas) -> None:
        self.module, self.spine, self.schemas = module, module.spine, schemas

    def inputs(self) -> list[Reading]:
        """One reading per input, in the order a request brings them."""
        made: dict[str, Reading] = {}
        for name, sql in as_mapping(self.spine.inputs).items():
            made[name] = Reading(name, "spine", sql)
            made[name].add(self._of_spine(sql), "value")
        for view in self.module.views:
            for reading in self._joined(view) if isinstance(view, FeatureView) else self._rated(view):
                made[reading.name] = reading
        return [made[name] for name in self.module.inputs]

    def label(self) -> Reading | None:
        """The label, with what says when it is known."""
        if self.spine.label is None:
            return None
        reading = Reading("label", "spine", self.spine.label)
        reading.add(self._of_spine(self.spine.label), "value")
        self._known(reading)
        return reading

    def rows(self) -> Reading:
        """What decides which rows there are and how they are called."""
        reading = Reading("rows", "spine", self.spine.where or "")
        for sql in as_mapping(self.spine.key).values():
            reading.add(self._of_spine(sql), "named by")
        for wanted, how in ((self.spine.unit, "named by"), (self.spine.event_time, "as of")):
            if wanted:
                reading.add(self._of_spine(wanted), how)  # type: ignore[arg-type]  # the words above
        if self.spine.where:
            reading.add(self._of_spine(self.spine.where), "filtered by")
        return reading

    def _joined(self, view: FeatureView) -> Iterable[Reading]:
        for name, sql in as_mapping(view.columns).items():
            reading = Reading(name, view.name, sql)
            reading.add(self._of_view(sql, view), "value")
            self._looked_up(reading, view)
            yield reading
        for name, aggregate in view.aggregations.items():
            over = "all time" if aggregate.window is None else format_duration(aggregate.window)
            said = f"{aggregate.function} of {aggregate.value or 'rows'} over {over}"
            reading = Reading(name, view.name, said)
            if aggregate.value is not None:
                reading.add(self._of_view(aggregate.value, view), "value")
            if aggregate.where is not None:
                reading.add(self._of_view(aggregate.where, view), "filtered by")
            self._looked_up(reading, view)
            yield reading

    def _looked_up(self, reading: Reading, view: FeatureView) -> None:
        named = not isinstance(view.entity, Mapping)
        for ours, theirs in as_mapping(view.entity).items():
            reading.add(self._of_spine(quoted(ours) if named else ours), "joined on")
            reading.add(self._of_view(theirs, view), "joined on")
        if view.event_time:
            reading.add(self._of_view(view.event_time, view), "as of")
            self._at_event(reading)
        if view.available_at:
            reading.add(self._of_view(view.available_at, view), "known at")

    def _of_view(self, sql: str, view: FeatureView) -> Found:
        """What an expression over a view's rows reads: through its source, where that is SQL that tells."""
        if view.source is None:
            return columns_read(sql, view.table, self.schemas)
        whole = frozenset((table, WHOLE) for table in view.tables())
        if not isinstance(view.source, str):
            return Found(whole, "a Python function stands between")
        return columns_made(sql, view, self.schemas)

    def _rated(self, view: WindowedRate) -> Iterable[Reading]:
        value = view.value if view.value is not None else self.spine.label
        for name in [view.name, *([view.count] if view.count else [])]:
            reading = Reading(name, view.name, f"mean of {value} over {format_duration(view.window)}")
            if value:
                reading.add(self._of_spine(value), "value")
            for sql in as_mapping(view.on).values():
                reading.add(self._of_spine(sql), "joined on")
            if view.available_at is not None:
                reading.add(self._of_spine(view.available_at), "known at")
            else:
                self._known(reading)
            self._at_event(reading)
            yield reading

    def _known(self, reading: Reading) -> None:
        if self.spine.label_available_at:
            reading.add(self._of_spine(self.spine.label_available_at), "known at")
        elif self.spine.event_time:
            reading.add(self._of_spine(self.spine.event_time), "known at")

    def _at_event(self, reading: Reading) -> None:
        if self.spine.event_time:
            reading.add(self._of_spine(self.spine.event_time), "as of")

    def _of_spine(self, sql: str) -> Found:
        return columns_read(sql, self.spine.table, self.schemas, alias="_t")


def columns_read(sql: str, table: str, schemas: Schemas, alias: str | None = None) -> Found:
    """What the expression `sql` over `table` reads, subqueries over other tables of `schemas` included.

    Names are matched as DuckDB does, whatever their case, and told as the tables spell them.
    """
    whole = frozenset({(table, WHOLE)})
    try:
        parsed = sqlglot.parse(
            f"SELECT ({sql}) FROM {quoted(table)}{f' AS {alias}' if alias else ''}", read="duckdb"
        )
    except (SqlglotError, RecursionError):
        return Found(whole, "the SQL could not be parsed")
    tree = parsed[0] if len(parsed) == 1 else None
    if not isinstance(tree, exp.Select):
        return Found(whole, "the SQL is not one expression")
    names = {name.casefold(): (name, {c.casefold(): c for c in columns}) for name, columns in schemas.items()}
    columns: set[tuple[str, str]] = set()
    why = ""
    for star in tree.find_all(exp.Star, exp.Columns):
        for name in _base_tables(star, names).values():
            columns.add((names[name][0], WHOLE))
            why = "it reads whole rows"
    for column in tree.find_all(exp.Column):
        found = _resolve(column, names)
        if found is None:
            columns.add((table, WHOLE))
            why = why or f"nothing says where `{column.sql(dialect='duckdb')}` comes from"
        elif found:
            columns.add(found)
            why = why or ("it reads whole rows" if found[1] == WHOLE else "")
    return Found(frozenset(columns), why)


def columns_made(sql: str, view: FeatureView, schemas: Schemas) -> Found:
    """What the expression `sql` over the rows of a view's SQL source reads of the tables below it.

    Each column of the source that it names is followed to what it is made of; what decides which rows the source has
    (joins, conditions, groups) is read by every one of them.
    """
    assert isinstance(view.source, str)
    whole = Found(
        frozenset((table, WHOLE) for table in view.tables()), "the source's SQL does not tell its columns"
    )
    try:
        tree = sqlglot.parse_one(view.source.strip().rstrip(";"), read="duckdb")
    except (SqlglotError, RecursionError):
        return whole
    if not isinstance(tree, exp.Select) or any(isinstance(each, exp.Star) for each in tree.expressions):
        return whole
    made = {each.alias_or_name.casefold(): each.unalias() for each in tree.expressions}
    over = columns_read(sql, view.table, {view.table: [each.alias_or_name for each in tree.expressions]})
    if over.why:
        return whole
    names = {name.casefold(): (name, {c.casefold(): c for c in columns}) for name, columns in schemas.items()}
    columns: set[tuple[str, str]] = set()
    wanted = [made[column.casefold()] for _, column in over.columns]
    shape = [part for key, part in tree.args.items() if key != "expressions" and isinstance(part, exp.Expr)]
    shape += [part for key in ("joins", "laterals") for part in tree.args.get(key) or []]
    if tree.args.get("group") is not None:  # by name, by number or ALL: what is no aggregate
        shape += [each for each in tree.expressions if not each.find(exp.AggFunc)]
    for join in tree.args.get("joins") or []:
        for shared in join.args.get("using") or []:
            for name in _base_tables(shared, names, tree).values():
                if shared.name.casefold() in names[name][1]:
                    columns.add((names[name][0], names[name][1][shared.name.casefold()]))
    for part in [*wanted, *shape]:
        if any(not isinstance(star.parent, exp.Count) for star in part.find_all(exp.Star)):
            return whole
        for column in part.find_all(exp.Column):
            found = _resolve(column, names)
            if found is None:
                return whole
            if found:
                columns.add(found)
    return Found(frozenset(columns))


Names = Mapping[str, tuple[str, Mapping[str, str]]]


def _resolve(column: exp.Column, names: Names) -> tuple[str, str] | tuple[()] | None:
    """(table, column); () for what a subquery, a lambda or an alias brings, which is read where it is made; None
    for what is not known."""
    parts = [part.name.casefold() for part in column.parts]
    select = column.find_ancestor(exp.Select)
    while select is not None:
        tables = _base_tables(column, names, select)
        if len(parts) > 1 and parts[0] in tables:
            real, known = names[tables[parts[0]]]
            return (real, known.get(parts[1], WHOLE))
        for name in tables.values():
            real, known = names[name]
            if parts[0] in known:  # for a struct's field, the struct
                return (real, known[parts[0]])
        if len(parts) == 1 and parts[0] in tables:
            return (names[tables[parts[0]]][0], WHOLE)
        if parts[0] in _made_here(select):
            return ()
        select = select.find_ancestor(exp.Select)
    return () if column.find_ancestor(exp.Comprehension) else None


def _base_tables(node: exp.Expression, names: Names, select: exp.Select | None = None) -> dict[str, str]:
    """Name in the innermost SELECT around `node` → table, for the tables that are no subqueries."""
    select = select or node.find_ancestor(exp.Select)
    if select is None:
        return {}
    sources = [select.args.get("from_") or select.args.get("from"), *(select.args.get("joins") or [])]
    found = [source.this for source in sources if source is not None]
    return {
        table.alias_or_name.casefold(): table.name.casefold()
        for table in found
        if isinstance(table, exp.Table) and table.name.casefold() in names
    }


def _made_here(select: exp.Select) -> set[str]:
    """Names that a SELECT makes itself: its columns, and those of the subqueries it reads, with these' own names."""
    made = {name.casefold() for name in select.named_selects}
    inner: list[exp.Expression] = [cte.this for cte in select.find_all(exp.CTE)]
    for derived in select.find_all(exp.Subquery, exp.CTE):
        made.add(derived.alias_or_name.casefold())
        if isinstance(derived, exp.Subquery):
            inner.append(derived.this)
    for query in inner:
        if isinstance(query, exp.Query):
            made |= {name.casefold() for name in query.named_selects}
    return made - {""}
