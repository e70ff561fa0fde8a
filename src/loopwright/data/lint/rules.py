"""Advice on single rules: those that cannot fail or cannot hold, say the same twice, or take forever."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from re import _parser  # type: ignore[attr-defined]  # the only parser of Python's own dialect
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.data.document import Document
from loopwright.data.terms import NONE, Column, Limit, Rule, Severity, Terms

Advice = tuple[Literal["error", "warning", "note"], str, str, str]
_COUNTED = ("count", "nulls", "duplicates", "distinct", "category_share", "freshness", "stddev", "drift")


def rule_findings(document: Document, terms: Terms) -> Iterator[Advice]:
    """(level, where, what, next) of every rule there is something to say about."""
    yield from _said_twice(terms)
    yield from _impossible(terms)
    for rule in terms.rules:
        yield from _limit(rule)
        if rule.kind == "pattern" and backtracks(str(rule.arguments["value"])):
            what = (
                f"{rule.name}: the pattern can take exponential time where an engine backtracks (Spark, Java)"
            )
            yield "warning", rule.where, what, "Let nothing repeat inside a repetition, as (a+)+ does"
        if rule.kind == "outlier" and float(rule.arguments["threshold"]) < 2:
            what = f"{rule.name}: a threshold below 2 takes many good values for outliers"
            yield "warning", rule.where, what, ""
    yield from _other_types(document, terms)


def _said_twice(terms: Terms) -> Iterator[Advice]:
    seen: dict[str, Rule] = {}
    for rule in terms.rules:
        known = seen.setdefault(repr((rule.kind, rule.columns, _sorted(rule.arguments), rule.limit)), rule)
        if known is not rule:
            yield (
                "warning",
                rule.where,
                f"“{rule.name}” says the same as “{known.name}”",
                "Keep one of the two",
            )


def _limit(rule: Rule) -> Iterator[Advice]:
    """Counts and shares are never below 0, shares never above 100."""
    if rule.kind not in _COUNTED and rule.limit == NONE:
        return
    if rule.kind in ("query", "mean", "quantile", "minimum", "maximum", "sum", "bad rows"):
        return
    high = 100.0 if rule.limit.percent else 1e300
    ends = sorted({0.0, high, *(v for v in (rule.limit.value, rule.limit.high) if 0 <= v <= high)})
    probes = {*ends, *((a + b) / 2 for a, b in pairwise(ends))}
    passing = {Limit(rule.limit.op, rule.limit.value, rule.limit.high).holds(probe, 1) for probe in probes}
    if passing == {True}:
        yield (
            "warning",
            rule.where,
            f"“{rule.name}” can never fail: anything is {rule.limit}",
            "Set a limit that can",
        )
    elif passing == {False}:
        yield (
            "error",
            rule.where,
            f"“{rule.name}” always fails: nothing is {rule.limit}",
            "Set a limit that can hold",
        )


def _impossible(terms: Terms) -> Iterator[Advice]:
    """Rules of one column that leave no value, and listed values that other rules refuse."""
    by_column: dict[str, list[Rule]] = {}
    for rule in terms.rules:
        if len(rule.columns) == 1 and rule.limit == NONE:
            by_column.setdefault(rule.columns[0], []).append(rule)
    for name, rules in by_column.items():
        bounds = [
            rule for rule in rules if rule.kind in ("range", "minLength", "maxLength", "minItems", "maxItems")
        ]
        for i, one in enumerate(bounds):
            for other in bounds[i + 1 :]:
                if _contradict(one, other):
                    what = f"no value of {name} can keep both “{one.name}” and “{other.name}”"
                    yield _level(one, other), other.where, what, "Mend one of the two"
        for listed in (rule for rule in rules if rule.kind == "enum"):
            for other in rules:
                refused = [v for v in listed.arguments["validValues"] if _refuses(other, v)]
                if refused:
                    what = f"{_quoted(refused)} is listed as valid for {name}, and refused by “{other.name}”"
                    yield "warning", listed.where, what, "Mend one of the two"


def _level(one: Rule, other: Rule) -> Literal["error", "warning"]:
    return "warning" if Severity.WARN in (one.severity, other.severity) else "error"


def _contradict(one: Rule, other: Rule) -> bool:
    low, high = _as_bound(one), _as_bound(other)
    if low is None or high is None or low[0] == high[0]:
        return False
    (_, least, strict_low), (_, most, strict_high) = sorted((low, high), key=lambda bound: bound[0] == "max")
    try:
        return bool(least > most or (least == most and (strict_low or strict_high)))
    except TypeError:
        return False


def _as_bound(rule: Rule) -> tuple[str, Any, bool] | None:
    if rule.kind == "range":
        op = str(rule.arguments["op"])
        return ("min" if op[0] == ">" else "max"), rule.arguments["value"], len(op) == 1
    return rule.kind[:3], rule.arguments["value"], False


def _refuses(rule: Rule, value: Any) -> bool:
    """Whether a row rule of the same column is broken by `value`."""
    wanted = rule.arguments.get("value")
    match rule.kind:
        case "range" if isinstance(value, int | float) and isinstance(wanted, int | float):
            return not Limit(str(rule.arguments["op"]), float(wanted)).holds(float(value), 1)
        case "minLength" if isinstance(value, str):
            return len(value) < int(rule.arguments["value"])
        case "maxLength" if isinstance(value, str):
            return len(value) > int(rule.arguments["value"])
        case "pattern" if isinstance(value, str):
            return not _matches(str(wanted), value)
        case "enum":
            return value not in rule.arguments["validValues"]
        case _:
            return False


def _matches(pattern: str, value: str) -> bool:
    """Whether RE2 finds it: Python's own engine could be kept busy for ever by a stranger's pattern."""
    try:
        return bool(pc.match_substring_regex(pa.scalar(value), pattern).as_py())
    except pa.ArrowInvalid:
        return True  # not RE2's dialect: nothing can be said


def _other_types(document: Document, terms: Terms) -> Iterator[Advice]:
    """Values of a text column that YAML read as something else: `no` is false, `007` is 7."""
    entry: dict[str, Any] = next(
        (e for e in document.value["schema"] if str(e.get("name")) == terms.name), {}
    )
    index = document.value["schema"].index(entry) if entry else 0
    columns: Mapping[str, Column] = {column.name: column for column in terms.columns}
    for i, prop in enumerate(entry.get("properties") or ()):
        column = columns.get(str(prop.get("name")))
        if column is None or column.type != "string":
            continue
        for j, quality in enumerate(prop.get("quality") or ()):
            for key in ("validValues", "missingValues"):
                values = (quality.get("arguments") or {}).get(key)
                for k, value in enumerate(values if isinstance(values, list) else ()):
                    if value is not None and not isinstance(value, str):
                        path = ("schema", index, "properties", i, "quality", j, "arguments", key, k)
                        what = f"YAML reads a {type(value).__name__} here ({value!r}), and {column.name} holds texts"
                        yield "warning", document.where(path), what, "Write it in quotes"


def backtracks(pattern: str) -> bool:
    """Whether something repeats without end, alone or beside what may be empty, inside another repetition."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _nested(_parser.parse(pattern), inside=False)
    except (re.error, RecursionError, OverflowError):
        return False


def _nested(items: Any, *, inside: bool) -> bool:
    parts = list(items)
    # One part that must match and does not repeat keeps the repetitions apart, as the comma in (,\w+)* does.
    apart = any(not _endless(op, argument) and not _may_be_empty(op, argument) for op, argument in parts)
    for op, argument in parts:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            _, most, body = argument
            endless = int(most) > 1000
            if endless and inside and not apart:
                return True
            if _nested(body, inside=endless or (inside and not apart)):
                return True
        elif name in ("SUBPATTERN", "BRANCH"):
            bodies = [argument[3]] if name == "SUBPATTERN" else argument[1]
            if any(_nested(body, inside=inside and not apart) for body in bodies):
                return True
    return False


def _endless(op: Any, argument: Any) -> bool:
    if str(op) in ("MAX_REPEAT", "MIN_REPEAT"):
        return int(argument[1]) > 1000
    if str(op) == "SUBPATTERN":
        return any(_endless(*part) for part in argument[3])
    return str(op) == "BRANCH" and any(_endless(*part) for branch in argument[1] for part in branch)


def _may_be_empty(op: Any, argument: Any) -> bool:
    name = str(op)
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        return int(argument[0]) == 0
    if name == "SUBPATTERN":
        return all(_may_be_empty(*part) for part in argument[3])
    return name in ("AT", "ASSERT", "ASSERT_NOT")


def _sorted(arguments: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    return sorted((key, repr(value)) for key, value in arguments.items())


def _quoted(values: Sequence[Any]) -> str:
    return ", ".join(repr(value) for value in values[:3])
