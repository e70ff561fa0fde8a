"""Advice on the SQL of a contract: that it parses, names columns there are, and does not hold for every row."""

from collections.abc import Iterator

import sqlglot
from sqlglot import expressions as exp
from sqlglot.optimizer.simplify import simplify

from loopwright.data.lint.rules import Advice
from loopwright.data.terms import Rule, Terms
from loopwright.kernel.errors import did_you_mean

_LONGEST = 10_000
_DEEPEST = 60
_MOST_PARTS = 300


def condition_findings(terms: Terms) -> Iterator[Advice]:
    """(level, where, what, next) of conditions and queries."""
    for rule in terms.rules:
        if rule.kind == "condition":
            yield from _condition(rule, terms)
        elif rule.kind == "query":
            yield from _query(rule, terms)


def _condition(rule: Rule, terms: Terms) -> Iterator[Advice]:
    text = str(rule.arguments["condition"])
    if _too_large(text):
        yield (
            "warning",
            rule.where,
            f"“{rule.name[:60]}…” is too long or nested too deep to be looked at",
            "Split it",
        )
        return
    tree = _parsed(f"SELECT 1 WHERE ({text}\n)")
    where = tree.args.get("where") if isinstance(tree, exp.Select) else None
    closes_ours = _parsed(f"SELECT 1 WHERE {text}\n") is None
    if tree is None or where is None or closes_ours or tree.args.get("joins") or tree.args.get("group"):
        yield (
            "error",
            rule.where,
            f"“{rule.name}” is no SQL condition",
            "Mend it: it must be true or false of a row",
        )
        return
    if where.find(exp.AggFunc) and not where.find(exp.Window):
        yield (
            "error",
            rule.where,
            f"“{rule.name}” aggregates; a condition is about one row",
            "Say it as type: sql",
        )
        return
    names = {column.name.lower(): column.name for column in terms.columns}
    for name in _unknown(where, set(names)):
        what = f"“{rule.name}” names `{name}`, which is no column of {terms.name}"
        yield (
            "error",
            rule.where,
            what,
            did_you_mean(name, names.values()) or f"One of {', '.join(names.values())}",
        )
    # Simplifying takes time that grows much faster than the condition.
    small = sum(1 for _ in where.walk()) <= _MOST_PARTS
    plain = simplify(where.this.unnest().copy()) if small else where.this
    if isinstance(plain, exp.Boolean) or not list(where.find_all(exp.Column)):
        holds = isinstance(plain, exp.Boolean) and bool(plain.this)
        what = f"“{rule.name}” " + (
            "can never fail: it holds for every row" if holds else "does not depend on the row"
        )
        yield ("warning" if holds else "error"), rule.where, what, "Name a column"


def _query(rule: Rule, terms: Terms) -> Iterator[Advice]:
    tree = _parsed(
        str(rule.arguments["query"]).replace("{object}", '"' + terms.name.replace('"', '""') + '"')
    )
    if tree is None:
        yield (
            "warning",
            rule.where,
            f"“{rule.name}” is no SQL that DuckDB reads",
            "Each delivery would be an ERROR",
        )
        return
    if not isinstance(tree, exp.Query):
        yield "error", rule.where, f"“{rule.name}” is no query", "It must SELECT one number"
        return
    inside = {cte.alias_or_name for cte in tree.find_all(exp.CTE)}
    known = {terms.name, *terms.references(), *inside}
    for table in sorted({one.name for one in tree.find_all(exp.Table)} - known):
        what = f"“{rule.name}” reads {table}, to which no relationship points: it is not there when rows are judged"
        yield "error", rule.where, what, "Read {object}, or point a relationship at it"
    if len(tree.selects) != 1:
        yield (
            "error",
            rule.where,
            f"“{rule.name}” gives {len(tree.selects)} columns",
            "It must SELECT one number",
        )


def _unknown(tree: exp.Expr, columns: set[str]) -> list[str]:
    bound = {name.name.lower() for one in tree.find_all(exp.Lambda) for name in one.expressions}
    # What a subquery reads is its own affair.
    inner = {
        id(column)
        for query in tree.find_all(exp.Subquery, exp.Exists)
        for column in query.find_all(exp.Column)
    }
    found = []
    for column in tree.find_all(exp.Column):
        parts = [part.name for part in column.parts]
        if id(column) in inner or parts[0].lower() in columns | bound or parts[0] in found:
            continue
        found.append(parts[0])
    return found


def _too_large(text: str) -> bool:
    return len(text) > _LONGEST or text.count("(") > _DEEPEST


def _parsed(text: str) -> exp.Expr | None:
    """The statement, if it is one that sqlglot reads as DuckDB's."""
    if _too_large(text):
        return None
    try:
        found = sqlglot.parse(text, dialect="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    return found[0] if len(found) == 1 else None
