"""`quality` entries: metrics of the standard's library, SQL queries, and our own measures."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from loopwright.data.odcs import words
from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.measures import add_measure
from loopwright.data.odcs.shape import Path
from loopwright.data.odcs.values import read_pattern, valid_values
from loopwright.data.terms import NONE, Column, Limit, Rule, Scope, Severity, find_column
from loopwright.kernel.errors import did_you_mean

METRICS = ("rowCount", "nullValues", "missingValues", "invalidValues", "duplicateValues")
_FORMER = {
    "duplicateCount": "duplicateValues",
    "uniqueCheck": "duplicateValues",
    "nullCheck": "nullValues",
    "nullCount": "nullValues",
    "validValues": "invalidValues",
}
"""What `rule` said before version 3.1."""
ENGINE = "loopwright"


def add_quality(
    draft: Draft, owner: Mapping[str, Any], path: Path, name: str = "", column: Column | None = None
) -> None:
    """The rules of an element: of a column (`name`: its dotted path) or, without one, of the table."""
    for i, entry in enumerate(owner.get("quality", ())):
        at = (*path, "quality", i)
        kind = entry.get("type", "library" if "metric" in entry or "rule" in entry else "text")
        match kind:
            case "text":  # for people
                continue
            case "library":
                _library(draft, entry, at, name, column)
            case "sql":
                _sql(draft, entry, at, name)
            case "custom":
                _custom(draft, entry, at, name, column)
            case _:
                raise draft.fail(
                    "unknown type of rule", (*at, "type"), kind, "library, sql, custom or text",
                    did_you_mean(kind, ("library", "sql", "custom", "text")) or "Mend it",
                )  # fmt: skip


def add_rule(
    draft: Draft,
    entry: Mapping[str, Any],
    path: Path,
    name: str,
    kind: str,
    columns: tuple[str, ...],
    scope: Scope,
    arguments: Mapping[str, Any],
    limit: Limit = NONE,
) -> None:
    """Keep one rule, with what every quality entry may say: name, description, dimension, severity, scope."""
    by_row = scope is not Scope.BATCH and limit == NONE
    ours = draft.ours(entry, path, "quality")
    default = Severity.QUARANTINE if by_row else Severity.BLOCK
    severity = draft.severity(ours, path, default, entry.get("severity", ""))
    if severity is Severity.QUARANTINE and not by_row:
        raise draft.fail(
            "a rule on counts names no row to set aside",
            path,
            "severity: quarantine",
            "severity: warn or block",
            "Or say mustBe: 0",
        )
    rule = Rule(
        name=entry.get("name", name),
        kind=kind,
        columns=columns,
        severity=severity,
        scope=draft.scope(ours, path, scope),
        arguments=arguments,
        limit=limit,
        description=entry.get("description", ""),
        dimension=entry.get("dimension", ""),
    )
    draft.add(rule, path)


def read_limit(
    draft: Draft, entry: Mapping[str, Any], path: Path, *, units: tuple[str, ...] = ("rows", "percent")
) -> Limit | None:
    """The limit that an entry sets; None when it sets none. A unit of time makes seconds of it."""
    unit = entry.get("unit", units[0])
    if unit not in units:
        raise draft.fail(
            "unknown unit", (*path, "unit"), unit, " or ".join(dict.fromkeys(("rows", "percent", *units)))
        )
    limit, fault = words.limit_of(entry, percent=unit == "percent")
    if fault:
        raise draft.fail(fault, path, {key: entry[key] for key in words.LIMITS if key in entry})
    return NONE if limit == Limit("==", 0, percent=True) else limit


def _library(draft: Draft, entry: Mapping[str, Any], path: Path, name: str, column: Column | None) -> None:
    given = entry.get("metric", entry.get("rule", ""))
    metric = _FORMER.get(given, given)
    if metric not in METRICS:
        raise draft.fail(
            "unknown metric",
            (*path, "metric"),
            given,
            f"one of {', '.join(METRICS)}",
            did_you_mean(str(given), METRICS) or "Mend it",
        )
    arguments = dict(entry.get("arguments", {}))
    if "validValues" in entry:
        arguments.setdefault("validValues", entry["validValues"])
    columns = (name,) if name else _properties(draft, arguments.pop("properties", ()), path)
    if metric != "rowCount" and not columns:
        raise draft.fail("which columns?", path, wanted="the rule on a property, or arguments.properties")
    limit = read_limit(draft, entry, path)
    if metric == "rowCount":
        if limit is None:
            raise draft.fail("how many rows?", path, wanted=f"one of {', '.join(words.LIMITS)}")
        add_rule(draft, entry, path, "row count", "count", (), Scope.BATCH, {}, limit)
        return
    limit = limit or NONE
    said = ", ".join(columns)
    match metric:
        case "nullValues" if limit == NONE:
            add_rule(draft, entry, path, f"{said} present", "required", columns, Scope.ROW, {})
        case "nullValues":
            for one in columns:
                add_rule(draft, entry, path, f"{one} nulls {limit}", "nulls", (one,), Scope.BATCH, {}, limit)
        case "duplicateValues" if limit == NONE:
            add_rule(draft, entry, path, f"{said} unique", "unique", columns, Scope.TABLE, {})
        case "duplicateValues":
            add_rule(
                draft,
                entry,
                path,
                f"{said} duplicates {limit}",
                "duplicates",
                columns,
                Scope.BATCH,
                {},
                limit,
            )
        case "missingValues":
            missing = arguments.get("missingValues", [""])
            if not isinstance(missing, list) or any(isinstance(one, dict | list) for one in missing):
                raise draft.fail("not a list of values", (*path, "arguments", "missingValues"), missing)
            texts = [_plain(one) for one in missing if one is not None]
            add_rule(
                draft, entry, path, f"{said} not missing", "missing", columns, Scope.ROW,
                {"missingValues": texts}, limit,
            )  # fmt: skip
        case _:
            kind, found = _valid(draft, arguments, path, columns, column)
            add_rule(draft, entry, path, f"{said} valid", kind, columns, Scope.ROW, found, limit)


def _valid(
    draft: Draft, arguments: Mapping[str, Any], path: Path, columns: tuple[str, ...], column: Column | None
) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of an `invalidValues` rule."""
    at = (*path, "arguments")
    if "pattern" in arguments:
        return "pattern", {"value": read_pattern(draft, arguments["pattern"], (*at, "pattern"))}
    values = arguments.get("validValues")
    if not isinstance(values, list) or not values:
        raise draft.fail("what is valid?", at, wanted="arguments.validValues or arguments.pattern")
    of = column or find_column(draft.columns.values(), columns[0])
    return "enum", {"validValues": valid_values(draft, values, of, (*at, "validValues"))}


def _properties(draft: Draft, given: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(given, list | tuple):
        raise draft.fail("not a list", (*path, "arguments", "properties"), given, "a list of columns")
    at = (*path, "arguments", "properties")
    return tuple(draft.known(str(name), (*at, i)) for i, name in enumerate(given))


def _sql(draft: Draft, entry: Mapping[str, Any], path: Path, name: str) -> None:
    query = entry.get("query", "").strip()
    if not query:
        raise draft.fail("missing or not text", (*path, "query"), entry.get("query"), "a SQL query")
    limit, fault = words.limit_of(entry, percent=False)
    if fault:
        raise draft.fail(fault, path)
    if limit is None:
        raise draft.fail("what must the query give?", path, wanted=f"one of {', '.join(words.LIMITS)}")
    query = re.sub(r"\$?\{(object|table|model|schema)\}", "{object}", query)
    query = re.sub(r"\$?\{(property|column|field)\}", lambda _: _quoted(name), query)
    columns = (name,) if name else ()
    add_rule(
        draft, entry, path, f"{name or 'table'} query", "query", columns, Scope.BATCH, {"query": query}, limit
    )


def _custom(draft: Draft, entry: Mapping[str, Any], path: Path, name: str, column: Column | None) -> None:
    engine = entry.get("engine", "")
    if engine != ENGINE:
        if not engine or did_you_mean(engine, [ENGINE]):
            raise draft.fail("a custom rule of which engine?", (*path, "engine"), engine, f"engine: {ENGINE}")
        # Another tool's to run. Great Expectations' words can be brought over by `data contract import-ge`.
        draft.leave(path, f"a rule of {engine}, which is not judged here")
        return
    implementation = entry.get("implementation")
    if isinstance(implementation, str) and implementation.lstrip().startswith("metric:"):
        implementation = _parsed(draft, implementation, (*path, "implementation"))
    if isinstance(implementation, dict) and "condition" not in implementation:
        add_measure(draft, {**entry, **implementation}, path, name, column, add_rule, read_limit)
        return
    at, said = (*path, "implementation"), dict(entry)
    if isinstance(implementation, dict):
        for key in set(implementation) - {"condition", "unit", *words.LIMITS}:
            raise draft.fail("unknown key", (*at, key), key, next="Known: condition, unit, mustBe…")
        said |= implementation
    condition = said["condition"] if isinstance(implementation, dict) else implementation
    if not isinstance(condition, str) or not condition.strip():
        raise draft.fail("missing or not text", at, implementation, "a SQL condition, or {metric: …}")
    limit = read_limit(draft, said, path) or NONE
    columns = (name,) if name else ()
    add_rule(
        draft,
        entry,
        path,
        condition.strip(),
        "condition",
        columns,
        Scope.ROW,
        {"condition": condition},
        limit,
    )


def _parsed(draft: Draft, text: str, path: Path) -> Any:
    """A block of YAML in a text, as tools that only take texts write it."""
    if len(text) > 10_000:
        raise draft.fail("too long", path, f"{len(text)} characters")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise draft.fail("not valid YAML", path, str(error)) from None


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(name: str) -> str:
    """A dotted path as SQL names it; a list's elements have no name of their own."""
    return ".".join('"' + part.removesuffix("[]").replace('"', '""') + '"' for part in name.split("."))
