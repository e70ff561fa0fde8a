"""Compiles a contract to SQL: the rows in their types, one query that measures every rule, one that names bad rows.

The text is engine-neutral (DuckDB's dialect, a subset that sqlglot renders for Spark; what engines spell differently
is in `check_cells`). It reads these relations, which whoever runs it provides: `_lw_raw` (the rows as they came, with
`_row` from 1), `_lw_typed` (a view: `Compiled.typed`), `_lw_bounds` (one row: the outlier rules' `lowN` and `highN`,
from `Compiled.outliers`), `_lw_landed` (key columns of other batches' rows) and the referenced tables by their names.

Uniqueness and relationships are measured by subqueries that read their key columns again: a group-by over one column
is several times cheaper, in time and memory, than a distinct aggregate beside the other measures.
"""

from collections.abc import Callable, Sequence, Set
from datetime import datetime
from typing import Any

import pyarrow as pa

from loopwright.data.check_cells import (
    Cell,
    Place,
    cell,
    epoch,
    literal,
    matches,
    nested_type,
    place,
    quantile,
    quote,
    sql_type,
    text,
    unfolded,
)  # fmt: skip
from loopwright.data.check_queries import EXAMPLES, Compiled, Outlier
from loopwright.data.contract import Column, Contract, Rule

__all__ = ["BY_QUERY", "EXAMPLES", "WHOLE", "Compiled", "Outlier", "compile_rules"]

BY_QUERY = ("query", "drift")
"""Kinds that are whole statements of their own, run beside the pass."""
NEVER = "FALSE"
SKEW = 300
"""So many seconds a clock elsewhere may be ahead; what is later still is a mistake, and no sign of freshness."""
WHOLE = ("count", "bad rows")
"""Kinds that need no SQL: the pass counts rows anyway."""


def compile_rules(
    contract: Contract,
    schema: pa.Schema,
    *,
    landed: Sequence[str] = (),
    in_memory: bool = True,
    finite: Set[str] = frozenset(),
    now: datetime | None = None,
) -> Compiled:
    """Compile the contract for rows that come as `schema`.

    `landed`: the columns that `_lw_landed` has. `in_memory`: quantiles may hold a column's values in memory; else they
    sort, which spills to disk. `finite`: columns of doubles that are known to hold no infinity. `now`: later moments,
    but for the skew of clocks, tell nothing of freshness (None: all do).
    """
    return _Compiler(contract, schema, tuple(landed), in_memory, finite, now).compile()


class _Compiler:
    def __init__(
        self,
        contract: Contract,
        schema: pa.Schema,
        landed: tuple[str, ...],
        in_memory: bool,
        finite: Set[str],
        now: datetime | None,
    ) -> None:
        self.now = now
        self.finite = finite
        self.contract = contract
        self.types = {f.name: f.type for f in schema}
        self.landed = landed
        self.in_memory = in_memory
        self.flags: dict[str, str] = {}  # alias -> SQL over _lw_raw
        self.known: dict[tuple[str, str], str] = {}
        self.outliers: list[Outlier] = []
        self.measures: dict[str, str] = {}
        self.conditions: dict[str, str] = {}
        self.joins: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.unbroken: set[str] = set()

    def compile(self) -> Compiled:
        cells = [f"{self.cell(column).typed} AS {quote(column.name)}" for column in self.contract.columns]
        for index, rule in enumerate(self.contract.rules):
            if rule.kind in BY_QUERY or rule.kind in WHOLE:
                continue
            try:
                self.rule(rule, index)
            except (KeyError, ValueError) as error:
                self.errors[rule.name] = (
                    f"no such column: {error.args[0]}" if isinstance(error, KeyError) else str(error)
                )
        flags = [f"{sql} AS {alias}" for alias, sql in self.flags.items()]
        return Compiled(
            typed=f"SELECT {', '.join([*cells, *flags])}, _row FROM _lw_raw",
            measures=self.measures,
            conditions=self.conditions,
            joins=self.joins,
            outliers=tuple(self.outliers),
            errors=self.errors,
            unbroken=frozenset(self.unbroken),
        )

    # Cells.

    def cell(self, column: Column) -> Cell:
        if column.name not in self.types:
            return Cell(f"CAST(NULL AS {sql_type(column)})", None)
        made = cell(quote(column.name), column, self.types[column.name])
        return Cell(made.typed, None) if column.name in self.finite and column.type == "number" else made

    def typed(self, path: str) -> Place:
        return place(path, self.contract.columns, lambda name: f"_lw_t.{quote(name)}")

    def flag(self, kind: str, path: str) -> str | None:
        """The column of `_lw_typed` that says `kind` ("unfit", "absent") of the cells at a path; None: never true."""
        found = self.known.get((kind, path))
        if found is None:
            sql = self.unfit(path) if kind == "unfit" else self.absent(path)
            found = f"_lw_{kind}{len(self.flags)}" if sql else ""
            if sql:
                self.flags[found] = f"coalesce({sql}, FALSE)"
            self.known[kind, path] = found
        return f"_lw_t.{found}" if found else None

    def raw(self, path: str) -> tuple[Place, Cell]:
        """Where a path leads in the rows as they came, and the cell there."""
        named = {c.name: c for c in self.contract.columns}
        column = named.get(path) or named.get(path.split(".")[0].split("[")[0])
        if column is None:
            raise KeyError(path)
        if column.name not in self.types:
            found = place(path, self.contract.columns, lambda name: self.cell(column).typed)
            return found, Cell(f"CAST(NULL AS {sql_type(found.column)})", None)
        base, arrow = unfolded(quote(column.name), column, self.types[column.name])
        if path == column.name:
            base, arrow = quote(column.name), self.types[column.name]
        found = place(path, self.contract.columns, lambda name: base)
        inner = nested_type(arrow, path.removeprefix(column.name))
        if inner is None:  # an object's field that no row has
            return found, Cell(f"CAST(NULL AS {sql_type(found.column)})", None)
        made = cell(found.cell, found.column, inner, depth=path.count("["))
        return found, Cell(
            made.typed, None
        ) if path in self.finite and found.column.type == "number" else made

    def unfit(self, path: str) -> str | None:
        found, inner = self.raw(path)
        column = found.column
        parted = any(
            rule.kind == "type"
            and any(name != path and name.startswith((f"{path}.", f"{path}[")) for name in rule.columns)
            for rule in self.contract.rules
        )
        if parted and column.name in self.types and path == column.name:
            # What does not fit inside has rules of its own.
            shallow = Column(column.name, column.type, optional=column.optional)
            inner = cell(found.cell, shallow, self.types[column.name])
        elif parted:
            return None
        return found.wrap(inner.unfit) if inner.unfit else None

    def absent(self, path: str) -> str | None:
        """Nothing there, where there could be: of an object that is null, nothing is missing."""
        found, inner = self.raw(path)
        missing = f"{inner.typed} IS NULL" + (
            # A test of what is null is null itself.
            f" AND NOT coalesce({inner.unfit}, FALSE)" if inner.unfit else ""
        )
        return found.wrap(f"{found.parent} IS NOT NULL AND {missing}" if found.parent else missing)

    def null(self, path: str) -> str:
        if "." in path or "[" in path:
            return self.flag("absent", path) or NEVER
        unfit = self.flag("unfit", path)
        return f"{self.typed(path).cell} IS NULL" + (f" AND NOT {unfit}" if unfit else "")

    def value(self, rule: Rule) -> Place:
        """The one cell a rule on numbers is about."""
        (path,) = rule.columns or (None,)
        if path is None:
            raise ValueError("it names no column")
        found = self.typed(path)
        if not found.single:
            raise ValueError(f"`{path}` has several values in a row; a rule of this kind wants one")
        return found

    # Rules.

    def rule(self, rule: Rule, index: int) -> None:
        name = rule.name
        match rule.kind:
            case "unique" | "duplicates":
                self.measures[name] = self.duplicates(rule)
                self.conditions[name], self.joins[name] = self.repeated(rule, f"_lw_j{index}")
            case "relationship":
                self.measures[name] = self.orphans(rule)
                self.conditions[name], self.joins[name] = self.orphan(rule, f"_lw_j{index}")
            case "condition":
                self.row(name, f"NOT (\n{rule.arguments['condition']}\n)")
            case "outlier":
                self.row(name, self.outlier(rule))
            case "nulls":
                self.row(name, self.any(rule, self.null))
            case "category_share":
                found = self.value(rule)
                value = literal(rule.arguments["value"], found.column)
                self.measures[name] = f"count(*) FILTER (WHERE {found.cell} = {value})"
            case kind if kind in _STATISTICS:
                self.measures[name] = self.statistic(rule)
            case _:
                self.row(name, self.any(rule, lambda path: self.breaks(rule, path)))

    def row(self, name: str, condition: str) -> None:
        self.conditions[name] = condition
        if condition == NEVER:
            self.unbroken.add(name)

    def any(self, rule: Rule, of: Callable[[str], str]) -> str:
        parts = [part for path in rule.columns if (part := of(path)) != NEVER] or [NEVER]
        return parts[0] if len(parts) == 1 else " OR ".join(f"coalesce({part}, FALSE)" for part in parts)

    def breaks(self, rule: Rule, path: str) -> str:
        """SQL that is true where the cell at `path` breaks the rule; null and false where it does not."""
        if rule.kind == "type":
            return self.flag("unfit", path) or NEVER
        if rule.kind == "required":
            return self.null(path)
        found = self.typed(path)
        if rule.kind == "missing":
            return (
                f"{self.null(path)} OR coalesce({found.wrap(_is_one_of(found, self.missing(rule)))}, FALSE)"
            )
        return found.wrap(_breaks(rule, found))

    def missing(self, rule: Rule) -> Sequence[Any]:
        return [v for v in rule.arguments.get("missingValues", [""]) if v is not None]

    def duplicates(self, rule: Rule) -> str:
        """How many rows come after another of their key, in this batch or in what has landed."""
        cells, present, keys = self.keys(rule)
        grouped = f"SELECT {cells}, count(*) AS _lw_n FROM _lw_typed AS _lw_t WHERE {present} GROUP BY {keys}"
        if not self.lands(rule):
            return f"(SELECT coalesce(sum(_lw_n - 1), 0) FROM ({grouped} HAVING count(*) > 1) AS _lw_g)"
        on = " AND ".join(f"_lw_g._lw_k{i} = _lw_l._lw_k{i}" for i in range(len(rule.columns)))
        named = ", ".join(f"{quote(c)} AS _lw_k{i}" for i, c in enumerate(rule.columns))
        return (
            f"(SELECT coalesce(sum(CASE WHEN _lw_hit THEN _lw_n ELSE _lw_n - 1 END), 0) FROM ({grouped}) AS _lw_g"
            f" LEFT JOIN (SELECT DISTINCT {named}, TRUE AS _lw_hit FROM _lw_landed) AS _lw_l ON {on})"
        )

    def repeated(self, rule: Rule, alias: str) -> tuple[str, str]:
        # Joined columns get names of ours, so that a condition of the contract may name its columns plainly.
        cells, present, keys = self.keys(rule)
        mine = [self.key(path) for path in rule.columns]
        on = " AND ".join(f"{{0}}._lw_k{i} = {cell}" for i, cell in enumerate(mine))
        join = (
            f"LEFT JOIN (SELECT {cells}, min(_row) AS _lw_first FROM _lw_typed AS _lw_t WHERE {present}"
            f" GROUP BY {keys} HAVING count(*) > 1) AS {alias} ON {on.format(alias)}"
        )
        condition = f"{alias}._lw_first <> _lw_t._row"
        if self.lands(rule):
            named = ", ".join(f"{quote(c)} AS _lw_k{i}" for i, c in enumerate(rule.columns))
            join += (
                f" LEFT JOIN (SELECT DISTINCT {named}, TRUE AS _lw_hit FROM _lw_landed) AS {alias}l"
                f" ON {on.format(alias + 'l')}"
            )
            condition = f"coalesce({alias}l._lw_hit, FALSE) OR coalesce({condition}, FALSE)"
        return condition, join

    def lands(self, rule: Rule) -> bool:
        return rule.over_table and bool(self.landed) and set(rule.columns) <= set(self.landed)

    def key(self, path: str) -> str:
        found = self.typed(path)
        if not found.single:
            raise ValueError(f"`{path}` has several values in a row; a key wants one")
        return found.cell

    def keys(self, rule: Rule) -> tuple[str, str, str]:
        cells = [self.key(path) for path in rule.columns]
        return (
            ", ".join(f"{cell} AS _lw_k{i}" for i, cell in enumerate(cells)),
            " AND ".join(f"{cell} IS NOT NULL" for cell in cells),
            ", ".join(cells),
        )

    def orphans(self, rule: Rule) -> str:
        """How many rows point to a row that is not there."""
        cells, present, keys = self.keys(rule)
        table, on = self.target(rule, "_lw_g._lw_k{0}")
        return (
            f"(SELECT coalesce(sum(_lw_n), 0) FROM (SELECT {cells}, count(*) AS _lw_n FROM _lw_typed AS _lw_t"
            f" WHERE {present} GROUP BY {keys}) AS _lw_g WHERE NOT EXISTS (SELECT 1 FROM {table} AS _lw_r WHERE {on}))"
        )

    def orphan(self, rule: Rule, alias: str) -> tuple[str, str]:
        _, present, _ = self.keys(rule)
        table, _ = self.target(rule, "")
        named = ", ".join(f"{quote(c)} AS _lw_k{i}" for i, c in enumerate(rule.arguments["columns"]))
        on = " AND ".join(f"{alias}._lw_k{i} = {self.key(mine)}" for i, mine in enumerate(rule.columns))
        join = f"LEFT JOIN (SELECT DISTINCT {named}, TRUE AS _lw_hit FROM {table}) AS {alias} ON {on}"
        return f"{present} AND {alias}._lw_hit IS NULL", join

    def target(self, rule: Rule, key: str) -> tuple[str, str]:
        table = str(rule.arguments["table"])
        on = " AND ".join(
            f"_lw_r.{quote(c)} = {key.format(i)}" for i, c in enumerate(rule.arguments["columns"])
        )
        return ("_lw_typed" if table == self.contract.name else quote(table)), on

    def outlier(self, rule: Rule) -> str:
        value = self.numeric(rule)
        index = len(self.outliers)
        source = "_lw_typed AS _lw_t"

        def at(of: str, q: float) -> str:
            return quantile(of, source, q, in_memory=self.in_memory)

        if rule.arguments["method"] == "iqr":
            self.outliers.append(Outlier(index, rule, at(value, 0.25), at(value, 0.75), None))
        else:
            away = f"abs({value} - {{center}})"
            mean = f"(SELECT avg({away}) FROM {source})"
            self.outliers.append(Outlier(index, rule, at(value, 0.5), at(away, 0.5), mean))
        return f"{value} < _lw_bounds.low{index} OR {value} > _lw_bounds.high{index}"

    def numeric(self, rule: Rule) -> str:
        found = self.value(rule)
        if found.column.type not in ("integer", "number"):
            raise ValueError(
                f"`{rule.columns[0]}` is a {found.column.type}; a rule of this kind wants numbers"
            )
        return found.cell

    def statistic(self, rule: Rule) -> str:
        if rule.kind == "distinct":
            value = self.value(rule).cell
            values = f"SELECT 1 FROM _lw_typed AS _lw_t WHERE {value} IS NOT NULL GROUP BY {value}"
            return f"(SELECT count(*) FROM ({values}) AS _lw_g)"
        if rule.kind == "freshness":
            found = self.value(rule)
            if found.column.type not in ("timestamp", "date"):
                raise ValueError(f"`{rule.columns[0]}` is a {found.column.type}; freshness wants a time")
            moment = f"CAST({found.cell} AS TIMESTAMPTZ)"
            if self.now is None:
                return epoch(f"max({moment})")
            latest = self.now.timestamp() + SKEW
            return epoch(f"max(CASE WHEN {epoch(moment)} <= {latest!r} THEN {moment} END)")
        value = self.numeric(rule)
        if rule.kind == "quantile":
            q = float(rule.arguments["q"])
            if self.in_memory:
                return f"quantile_cont({value}, {q!r})"
            return quantile(value, "_lw_typed AS _lw_t", q, in_memory=False)
        return _STATISTICS[rule.kind].format(value)


_STATISTICS = {
    "mean": "avg({0})",
    "stddev": "stddev_samp({0})",
    "minimum": "min({0})",
    "maximum": "max({0})",
    "sum": "sum(CAST({0} AS DOUBLE))",
    "quantile": "",
    "distinct": "",
    "freshness": "",
}


def _breaks(rule: Rule, found: Place) -> str:
    cell, column, value = found.cell, found.column, rule.arguments.get("value")
    as_text = cell if column.type == "string" else f"CAST({cell} AS VARCHAR)"
    match rule.kind:
        case "range":
            return f"NOT ({cell} {rule.arguments['op']} {literal(value, column)})"
        case "multipleOf" if column.type == "integer" and float(str(value)).is_integer():
            return f"{cell} % {int(float(str(value)))} <> 0"
        case "multipleOf":
            share = f"({cell} / {literal(value, column)})"
            return f"abs({share} - round({share})) > 1e-9 * greatest(1.0, abs({share}))"
        case "minLength":
            return f"length({as_text}) < {value}"
        case "maxLength":
            return f"length({as_text}) > {value}"
        case "pattern":
            return f"NOT {matches(as_text, str(value))}"
        case "enum":
            valid = [v for v in rule.arguments["validValues"] if v is not None]
            return f"NOT ({_is_one_of(found, valid, parsed=True)})"
        case "minItems":
            return f"len({cell}) < {value}"
        case "maxItems":
            return f"len({cell}) > {value}"
        case "uniqueItems":
            items = f"list_filter({cell}, lambda _lw_x: _lw_x IS NOT NULL)"
            return f"len({items}) <> len(list_distinct({items}))" if value is not False else NEVER
        case unknown:
            raise ValueError(f"a rule of an unknown kind, {unknown}")


def _is_one_of(found: Place, values: Sequence[Any], *, parsed: bool = False) -> str:
    """Whether the cell is one of the values; unless `parsed`, texts that the column cannot hold are skipped."""
    cell, column = found.cell, found.column
    if not values:
        return "FALSE"
    if parsed or column.type == "string":
        return f"{cell} IN ({', '.join(literal(v, column) for v in values)})"
    if column.type in ("integer", "number"):
        numbers = [lit for v in values if not (lit := literal(v, column)).startswith("CAST")]
        return f"{cell} IN ({', '.join(numbers)})" if numbers else "FALSE"
    return f"CAST({cell} AS VARCHAR) IN ({', '.join(text(v) for v in values)})"
