"""Judges rows against a contract: one pass of DuckDB over the batch counts every rule, a second one, taken only when
rows must be set aside, names the rules each bad row broke.

A null passes every rule but `required`. A rule that cannot be evaluated is an ERROR, never a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from loopwright.data.contract import Column, Contract, Rule, Scope, Severity
from loopwright.data.duck import connect
from loopwright.kernel.errors import BadInput, did_you_mean

State = Literal["PASS", "WARN", "FAIL", "ERROR"]
SQL_TYPES = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
    "time": "TIME",
}
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class RuleResult:
    """`failed` rows (of a uniqueness rule: the rows beyond the first of their key) and up to three of them as examples.

    For rules on counts and queries `failed` is what was measured.
    """

    name: str
    column: str
    severity: Severity
    scope: Scope
    state: State
    failed: int
    examples: tuple[Mapping[str, Any], ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "column": self.column,
            "severity": self.severity.value,
            "scope": self.scope.value,
            "state": self.state,
            "failed": self.failed,
            "examples": [dict(e) for e in self.examples],
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a batch is worth. FAIL: rows were set aside or the batch is blocked; ERROR: a rule could not be evaluated.

    `good_rows + bad_rows == input_rows`, always. `reasons` counts, per rule, the bad rows that broke it.
    """

    state: Literal["PASS", "FAIL", "ERROR"]
    input_rows: int
    good_rows: int
    bad_rows: int
    rules: tuple[RuleResult, ...]
    reasons: Mapping[str, int]

    @property
    def blocked_by(self) -> tuple[RuleResult, ...]:
        """Rules that keep the whole batch out."""
        return tuple(
            r
            for r in self.rules
            if r.state == "ERROR" or (r.state == "FAIL" and r.severity is Severity.BLOCK)
        )

    @property
    def warnings(self) -> tuple[RuleResult, ...]:
        return tuple(r for r in self.rules if r.state == "WARN")

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "input_rows": self.input_rows,
            "good_rows": self.good_rows,
            "bad_rows": self.bad_rows,
            "rules": [rule.to_json() for rule in self.rules],
            "reasons": dict(self.reasons),
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """`good`: typed rows in input order, with `_row`. `bad`: positions of bad rows, and the rules they broke."""

    report: CheckReport
    good: pa.Table
    bad: Mapping[int, tuple[str, ...]]


def check(rows: pa.Table, contract: Contract, refs: Mapping[str, pa.Table] | None = None) -> CheckReport:
    """Judge `rows` (text cells or typed); `refs` are the tables that relationships point to."""
    return examine(rows, contract, refs or {}).report


def require_columns(names: Sequence[str], contract: Contract, where: str) -> None:
    """Raise BadInput when a column the contract promises is not there."""
    missing = [c.name for c in contract.columns if c.name not in names and not c.optional]
    if missing:
        near = did_you_mean(missing[0], [n for n in names if n not in {c.name for c in contract.columns}])
        raise BadInput(
            f"the column `{missing[0]}` vanished"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            where=where,
            got=f"columns {', '.join(names)}",
            wanted=f"`{missing[0]}`, as {contract.source} says",
            next=near or "Ask who delivers it, or change the contract",
        )


def examine(
    rows: pa.Table,
    contract: Contract,
    refs: Mapping[str, pa.Table],
    *,
    landed: pa.Table | None = None,
    malformed: int = 0,
) -> Checked:
    """Judge and type `rows`. `landed`: what the table holds from other batches (uniqueness is judged with it).

    `malformed` lines are bad rows too, and count as such. Raises BadInput when a column vanished
    or a table that a relationship needs is not among `refs`.
    """
    require_columns(rows.column_names, contract, contract.name)
    for table in sorted(contract.references()):
        if table not in refs:
            raise BadInput(
                f"the contract of {contract.name} points to a table that is not there",
                where=contract.source,
                got=table,
                wanted="it ingested before",
                next=f"Ingest {table} first, or add it to data.sources",
            )
    with connect() as engine:
        return _Examination(engine, rows, contract, refs, landed, malformed).run()


class _Examination:
    def __init__(
        self,
        engine: duckdb.DuckDBPyConnection,
        rows: pa.Table,
        contract: Contract,
        refs: Mapping[str, pa.Table],
        landed: pa.Table | None,
        malformed: int,
    ) -> None:
        self.engine = engine
        self.rows = rows
        self.contract = contract
        self.landed = landed
        self.malformed = malformed
        self.count = rows.num_rows
        self.errors: dict[str, str] = {}
        engine.register("_lw_raw", rows.append_column("_row", pa.array(np.arange(self.count))))
        for name, table in refs.items():
            if name != contract.name:
                engine.register(name, table)
        # A contract's SQL sees the tables and nothing else of this machine.
        engine.execute("SET enable_external_access = false")
        engine.execute("SET lock_configuration = true")

    def run(self) -> Checked:
        self._type()
        if self.landed is not None:
            self.engine.register("_lw_landed", self.landed)
        by_row = {
            rule.name: rule for rule in self.contract.rules if rule.kind not in ("count", "query", "bad rows")
        }
        fails, joins = self._conditions(by_row)
        counts = self._count(fails, joins)
        stopping = [n for n in fails if counts.get(n) and by_row[n].severity is Severity.QUARANTINE]
        bad = self._bad_rows(stopping, fails, joins)
        results = []
        for rule in self.contract.rules:
            if rule.name in self.errors:
                results.append(self._error(rule))
            elif rule.name in by_row:
                results.append(self._row_result(rule, counts[rule.name], fails, joins))
            else:
                results.append(self._batch_result(rule, len(bad) + self.malformed))
        reasons: dict[str, int] = {}
        for broken in bad.values():
            for name in broken:
                reasons[name] = reasons.get(name, 0) + 1
        if self.malformed:
            reasons["malformed line"] = self.malformed
            results.append(
                RuleResult("malformed line", "", Severity.QUARANTINE, Scope.ROW, "FAIL", self.malformed)
            )
        total = self.count + self.malformed
        states = {result.state for result in results}
        report = CheckReport(
            state="ERROR" if "ERROR" in states else "FAIL" if "FAIL" in states else "PASS",
            input_rows=total,
            good_rows=self.count - len(bad),
            bad_rows=len(bad) + self.malformed,
            rules=tuple(results),
            reasons=reasons,
        )
        names = ", ".join(_quote(c.name) for c in self.contract.columns)
        good = self.engine.sql(f"SELECT {names}, _row FROM _lw_typed").to_arrow_table()
        if bad:
            keep = np.ones(self.count, dtype=bool)
            keep[list(bad)] = False
            good = good.filter(pa.array(keep[good.column("_row").to_numpy()]))
        return Checked(report, good, bad)

    def _type(self) -> None:
        """Create `_lw_typed`: the columns in their types, and for each a flag `_lw_tN` where the cell did not fit."""
        columns = []
        for i, column in enumerate(self.contract.columns):
            name = _quote(column.name)
            if column.name not in self.rows.column_names:
                columns.append(f"NULL::{SQL_TYPES[column.type]} AS {name}, FALSE AS _lw_t{i}")
                continue
            typed, unfit = _cast(column, self.rows.schema.field(column.name).type)
            columns.append(f"{typed} AS {name}, {unfit} AS _lw_t{i}")
        self.engine.execute(f"CREATE TEMP TABLE _lw_typed AS SELECT {', '.join(columns)}, _row FROM _lw_raw")
        names = ", ".join(_quote(c.name) for c in self.contract.columns)
        self.engine.execute(f"CREATE TEMP VIEW {_quote(self.contract.name)} AS SELECT {names} FROM _lw_typed")

    def _conditions(self, rules: Mapping[str, Rule]) -> tuple[dict[str, str], dict[str, str]]:
        """For each rule that can be evaluated, the SQL that is true where a row fails, and the joins it needs."""
        fails: dict[str, str] = {}
        joins: dict[str, str] = {}
        for i, (name, rule) in enumerate(rules.items()):
            condition, join = self._condition(rule, f"_lw_j{i}")
            condition = f"coalesce({condition}, FALSE)"
            try:
                self._all(f"SELECT ({condition}) FROM _lw_typed AS _lw_t {join} LIMIT 0")
            except duckdb.Error as error:
                self.errors[name] = str(error).split("\n")[0]
                continue
            fails[name] = condition
            if join:
                joins[name] = join
        return fails, joins

    def _condition(self, rule: Rule, alias: str) -> tuple[str, str]:
        arguments = rule.arguments
        if rule.kind == "condition":
            return f"NOT ({arguments['condition']})", ""
        if rule.kind in ("unique", "duplicates"):
            return self._unique(rule, alias)
        if rule.kind == "relationship":
            return _relationship(rule, alias, self.contract)
        parts = [self._cell(rule, name) for name in rule.columns]
        return " OR ".join(f"coalesce({part}, FALSE)" for part in parts), ""

    def _cell(self, rule: Rule, name: str) -> str:
        index = next(i for i, c in enumerate(self.contract.columns) if c.name == name)
        column, cell = self.contract.columns[index], f"_lw_t.{_quote(name)}"
        value = rule.arguments.get("value")
        match rule.kind:
            case "type":
                return f"_lw_t{index}"
            case "required" | "nulls":
                return f"{cell} IS NULL AND NOT _lw_t{index}"
            case "missing":
                texts = ", ".join(_text(v) for v in rule.arguments.get("missingValues", [""]))
                return f"({cell} IS NULL AND NOT _lw_t{index}) OR {cell}::VARCHAR IN ({texts})"
            case "range":
                bound = (
                    str(value)
                    if column.type in ("integer", "number")
                    else f"{_text(value)}::{SQL_TYPES[column.type]}"
                )
                return f"NOT ({cell} {rule.arguments['op']} {bound})"
            case "multipleOf":
                return f"{cell} % {value} <> 0"
            case "minLength":
                return f"length({cell}) < {value}"
            case "maxLength":
                return f"length({cell}) > {value}"
            case "pattern":
                return f"NOT regexp_matches({cell}::VARCHAR, {_text(value)})"
            case "enum":
                literals = ", ".join(
                    str(v) if isinstance(v, int | float) and not isinstance(v, bool) else _text(v)
                    for v in rule.arguments["validValues"]
                )
                return f"{cell} NOT IN ({literals})"
            case unknown:
                raise AssertionError(unknown)

    def _unique(self, rule: Rule, alias: str) -> tuple[str, str]:
        # Joined columns get names of ours, so that a condition of the contract may name its columns plainly.
        named = ", ".join(f"{_quote(c)} AS _lw_k{i}" for i, c in enumerate(rule.columns))
        keys = ", ".join(f"_lw_k{i}" for i in range(len(rule.columns)))
        on = " AND ".join(f"{{0}}._lw_k{i} = _lw_t.{_quote(c)}" for i, c in enumerate(rule.columns))
        join = (
            f"LEFT JOIN (SELECT {named}, min(_row) AS _lw_first FROM _lw_typed GROUP BY {keys} HAVING count(*) > 1)"
            f" AS {alias} ON {on.format(alias)}"
        )
        condition = f"{alias}._lw_first <> _lw_t._row"
        if self.landed is not None and set(rule.columns) <= set(self.landed.column_names):
            join += (
                f" LEFT JOIN (SELECT DISTINCT {named}, TRUE AS _lw_hit FROM _lw_landed)"
                f" AS {alias}l ON {on.format(alias + 'l')}"
            )
            condition = f"coalesce({alias}l._lw_hit, FALSE) OR coalesce({condition}, FALSE)"
        return condition, join

    def _count(self, fails: dict[str, str], joins: Mapping[str, str]) -> dict[str, int]:
        try:
            return self._count_together(list(fails), fails, joins)
        except duckdb.Error:
            # One rule breaks the pass; ask one by one to name it.
            counts: dict[str, int] = {}
            for name in list(fails):
                try:
                    counts |= self._count_together([name], fails, joins)
                except duckdb.Error as error:
                    self.errors[name] = str(error).split("\n")[0]
                    del fails[name]
            return counts

    def _count_together(
        self, names: Sequence[str], fails: Mapping[str, str], joins: Mapping[str, str]
    ) -> dict[str, int]:
        if not names:
            return {}
        counted = ", ".join(f"count(*) FILTER (WHERE {fails[name]})" for name in names)
        used = " ".join(joins[name] for name in names if name in joins)
        (found,) = self._all(f"SELECT {counted} FROM _lw_typed AS _lw_t {used}")
        return dict(zip(names, (int(n) for n in found), strict=True))

    def _bad_rows(
        self, names: Sequence[str], fails: Mapping[str, str], joins: Mapping[str, str]
    ) -> dict[int, tuple[str, ...]]:
        if not names:
            return {}
        flags = ", ".join(f"{fails[name]} AS _lw_f{i}" for i, name in enumerate(names))
        any_ = " OR ".join(f"_lw_f{i}" for i in range(len(names)))
        used = " ".join(joins[name] for name in names if name in joins)
        found = self._all(
            f"SELECT * FROM (SELECT _lw_t._row, {flags} FROM _lw_typed AS _lw_t {used}) WHERE {any_} ORDER BY _row"
        )
        return {row[0]: tuple(n for n, broken in zip(names, row[1:], strict=True) if broken) for row in found}

    def _row_result(
        self, rule: Rule, failed: int, fails: Mapping[str, str], joins: Mapping[str, str]
    ) -> RuleResult:
        holds = rule.limit.holds(failed, self.count)
        state: State = "PASS" if holds else "WARN" if rule.severity is Severity.WARN else "FAIL"
        examples: list[dict[str, Any]] = []
        if failed:
            found = self._all(
                f"SELECT _lw_t._row FROM _lw_typed AS _lw_t {joins.get(rule.name, '')}"
                f" WHERE {fails[rule.name]} ORDER BY 1 LIMIT {EXAMPLES}"
            )
            shown = [c for c in (*rule.columns, *self.contract.key) if c in self.rows.column_names]
            if not shown:
                shown = [c.name for c in self.contract.columns if c.name in self.rows.column_names][:8]
            for (row,) in found:
                cells = {name: _plain(self.rows.column(name)[row].as_py()) for name in shown}
                examples.append({"row": row + 1, **cells})
        why = (
            ""
            if holds
            else f"{failed} of {self.count} rows"
            + ("" if str(rule.limit) == "== 0" else f", wanted {rule.limit}")
        )
        return RuleResult(
            rule.name, ", ".join(rule.columns), rule.severity, rule.scope, state, failed, tuple(examples), why
        )

    def _batch_result(self, rule: Rule, bad: int) -> RuleResult:
        rows = self.count + self.malformed
        measured: float
        if rule.kind == "bad rows":
            measured = bad
        elif rule.kind == "count":
            measured = rows
        else:
            try:
                query = str(rule.arguments["query"]).replace("{object}", _quote(self.contract.name))
                ((found,),) = self._all(query)
                measured = float(found)
            except (duckdb.Error, TypeError, ValueError) as error:
                self.errors[rule.name] = str(error).split("\n")[0]
                return self._error(rule)
        holds = rule.limit.holds(measured, rows)
        state: State = "PASS" if holds else "WARN" if rule.severity is Severity.WARN else "FAIL"
        why = "" if holds else f"measured {measured:g} of {rows} rows, wanted {rule.limit}"
        return RuleResult(
            rule.name, ", ".join(rule.columns), rule.severity, rule.scope, state, int(measured), (), why
        )

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query; a result left half-read would block the connection."""
        return self.engine.execute(query).fetchall()

    def _error(self, rule: Rule) -> RuleResult:
        why = f"cannot be evaluated: {self.errors[rule.name]}"
        return RuleResult(rule.name, ", ".join(rule.columns), rule.severity, rule.scope, "ERROR", 0, (), why)


def _relationship(rule: Rule, alias: str, contract: Contract) -> tuple[str, str]:
    table, columns = str(rule.arguments["table"]), rule.arguments["columns"]
    source = "_lw_typed" if table == contract.name else _quote(table)
    names = ", ".join(f"{_quote(c)} AS _lw_k{i}" for i, c in enumerate(columns))
    on = " AND ".join(f"{alias}._lw_k{i} = _lw_t.{_quote(mine)}" for i, mine in enumerate(rule.columns))
    present = " AND ".join(f"_lw_t.{_quote(mine)} IS NOT NULL" for mine in rule.columns)
    return (
        f"{present} AND {alias}._lw_hit IS NULL",
        f"LEFT JOIN (SELECT DISTINCT {names}, TRUE AS _lw_hit FROM {source}) AS {alias} ON {on}",
    )


def _cast(column: Column, arrow: pa.DataType) -> tuple[str, str]:
    """SQL of the typed cell, and of "there was a value, and it does not fit"."""
    cell, type_ = _quote(column.name), SQL_TYPES[column.type]
    text = pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)
    if column.type == "string":
        return (cell if text else f"{cell}::VARCHAR"), "FALSE"
    typed = f"TRY_CAST({cell} AS {type_})"
    if column.type == "timestamp" and text:
        if column.format:
            read = f"try_strptime({cell}, {_text(column.format)})"
            typed = f"TRY_CAST({read} AS TIMESTAMP) AT TIME ZONE {_text(column.timezone)}"
        elif column.timezone != "UTC":
            offset = r"':\d\d(\.\d+)?\s*(Z|[+-]\d\d(:?\d\d)?)$'"
            local = f"TRY_CAST({cell} AS TIMESTAMP) AT TIME ZONE {_text(column.timezone)}"
            typed = f"CASE WHEN regexp_matches({cell}, {offset}) THEN {typed} ELSE {local} END"
    elif (
        column.type == "timestamp"
        and column.timezone != "UTC"
        and pa.types.is_timestamp(arrow)
        and arrow.tz is None
    ):
        typed = f"{cell} AT TIME ZONE {_text(column.timezone)}"
    elif column.type == "date" and text and column.format:
        typed = f"TRY_CAST(try_strptime({cell}, {_text(column.format)}) AS DATE)"
    unfit = f"({cell} IS NOT NULL AND {typed} IS NULL)"
    if column.type == "integer" and text:
        # A cast rounds 1.5 to 2; only texts that could hold a fraction pay for the second look.
        rounded = f"TRY_CAST({cell} AS DOUBLE) IS DISTINCT FROM {typed}::DOUBLE"
        unfit = f"({unfit} OR (regexp_matches({cell}, '[.eE]') AND {rounded}))"
    elif column.type == "integer" and pa.types.is_floating(arrow):
        typed = f"TRY_CAST(nullif({cell}, 'nan'::DOUBLE) AS BIGINT)"
        unfit = f"({cell} IS NOT NULL AND NOT isnan({cell}) AND {cell} IS DISTINCT FROM {typed}::DOUBLE)"
    elif column.type == "number":
        # Not a number is no value; infinity is a value that fits nowhere.
        unfit = f"({unfit} OR isinf({typed}))"
        typed = f"(CASE WHEN isfinite({typed}) THEN {typed} END)"
    return typed, unfit


def _plain(value: Any) -> Any:
    return (
        value
        if value is None
        or isinstance(value, str | int | bool)
        or (isinstance(value, float) and value == value and abs(value) != float("inf"))
        else str(value)
    )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"
