"""Writes a contract as an expectation suite that Great Expectations 1 reads; what it has no words for is listed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopwright.data.terms import NONE, Limit, Rule, Severity, Terms

VERSION = "1.24.1"
"""Of Great Expectations, whose names and keys these are."""
_MEASURES = {
    "count": "expect_table_row_count_to_be_between",
    "mean": "expect_column_mean_to_be_between",
    "stddev": "expect_column_stdev_to_be_between",
    "sum": "expect_column_sum_to_be_between",
    "minimum": "expect_column_min_to_be_between",
    "maximum": "expect_column_max_to_be_between",
    "distinct": "expect_column_unique_value_count_to_be_between",
}
_LEFT = {
    "type": "types have other names in each of its engines",
    "multipleOf": "no expectation says it",
    "relationship": "an expectation sees one table",
    "outlier": "its outliers are told by other measures",
    "query": "its queries give rows, not a number",
    "category_share": "no expectation says it",
    "freshness": "it knows no clock",
    "drift": "it has no snapshots",
    "bad rows": "it sets no rows aside",
    "minItems": "no expectation looks into lists",
    "maxItems": "no expectation looks into lists",
    "uniqueItems": "no expectation looks into lists",
    "duplicates": "it counts every row of a repeated value",
    "missing": "it has no list of texts that mean missing",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """`suite`: its JSON. `left`: (rule, why) of what could not be said."""

    suite: dict[str, Any]
    left: tuple[tuple[str, str], ...]


def export_suite(terms: Terms, name: str | None = None) -> Exported:
    """The contract as a suite of layout 1.x. Quarantine and block are both `critical` there, warn is `warning`."""
    expectations = [
        {"type": "expect_column_to_exist", "kwargs": {"column": column.name}, "meta": {}}
        for column in terms.columns
        if not column.optional
    ]
    left: list[tuple[str, str]] = []
    for rule in terms.rules:
        found, why = _said(rule)
        if why:
            left.append((rule.name, why))
        for type_, kwargs in found:
            expectations.append(
                {
                    "type": type_,
                    "kwargs": kwargs,
                    "severity": "warning" if rule.severity is Severity.WARN else "critical",
                    "meta": {"loopwright": {"rule": rule.name, "severity": rule.severity.value}},
                    **({"notes": rule.description} if rule.description else {}),
                }
            )
    suite = {
        "name": name or terms.name,
        "expectations": expectations,
        "meta": {
            "great_expectations_version": VERSION,
            "loopwright": {"contract": terms.id, "version": terms.version, "digest": terms.digest},
        },
        "notes": terms.description or None,
    }
    return Exported(suite, tuple(left))


def _said(rule: Rule) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """Expectations that say a rule, and why there are none."""
    if rule.kind in _LEFT:
        return [], _LEFT[rule.kind]
    if any("[]" in column or "." in column for column in rule.columns):
        return [], "no expectation looks into objects"
    if rule.kind in _MEASURES or rule.kind == "quantile":
        return _measure(rule)
    if rule.kind == "nulls":
        return _nulls(rule)
    mostly = _mostly(rule.limit)
    if mostly is None:
        return [], f"no expectation says “{rule.limit}” of rows"
    if rule.kind == "unique":
        if len(rule.columns) == 1:
            return [("expect_column_values_to_be_unique", {"column": rule.columns[0], **mostly})], ""
        return [("expect_compound_columns_to_be_unique", {"column_list": list(rule.columns), **mostly})], ""
    if rule.kind == "condition":
        if mostly:
            return [], f"no expectation says “{rule.limit}” of rows"
        query = f"SELECT * FROM {{batch}} WHERE NOT ({rule.arguments['condition']})"
        return [("unexpected_rows_expectation", {"unexpected_rows_query": query})], ""
    return [
        (type_, {"column": c, **kwargs, **mostly}) for c in rule.columns for type_, kwargs in _values(rule)
    ], ""


def _values(rule: Rule) -> list[tuple[str, dict[str, Any]]]:
    """Of a rule on the values of each column."""
    value = rule.arguments.get("value")
    match rule.kind:
        case "required":
            return [("expect_column_values_to_not_be_null", {})]
        case "enum":
            return [("expect_column_values_to_be_in_set", {"value_set": list(rule.arguments["validValues"])})]
        case "pattern":
            return [("expect_column_values_to_match_regex", {"regex": value})]
        case "minLength":
            return [("expect_column_value_lengths_to_be_between", {"min_value": value})]
        case "maxLength":
            return [("expect_column_value_lengths_to_be_between", {"max_value": value})]
        case "range":
            end = "min" if str(rule.arguments["op"])[0] == ">" else "max"
            strict = {f"strict_{end}": True} if len(str(rule.arguments["op"])) == 1 else {}
            return [("expect_column_values_to_be_between", {f"{end}_value": value, **strict})]
        case _:
            raise AssertionError(rule.kind)


def _measure(rule: Rule) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    bounds = _bounds(rule.limit)
    if bounds is None or rule.limit.percent:
        return [], f"no expectation says “{rule.limit}”"
    if rule.kind == "quantile":
        if any(key.startswith("strict") for key in bounds):
            return [], f"no expectation says “{rule.limit}” of a quantile"
        ranges = {
            "quantiles": [rule.arguments["q"]],
            "value_ranges": [[bounds.get("min_value"), bounds.get("max_value")]],
        }
        return [
            (
                "expect_column_quantile_values_to_be_between",
                {"column": rule.columns[0], "quantile_ranges": ranges},
            )
        ], ""
    column = {"column": rule.columns[0]} if rule.columns else {}
    if rule.kind in ("count", "distinct"):
        bounds = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in bounds.items()}
    return [(_MEASURES[rule.kind], {**column, **bounds})], ""


def _nulls(rule: Rule) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    if not rule.limit.percent:
        return [], "no expectation counts nulls"
    bounds = _bounds(rule.limit)
    if bounds is None:
        return [], f"no expectation says “{rule.limit}”"
    turned = {
        _mirrored(key): (v if isinstance(v, bool) else round(1 - v / 100, 9)) for key, v in bounds.items()
    }
    kwargs = {"column": rule.columns[0], **turned}
    return [("expect_column_proportion_of_non_null_values_to_be_between", kwargs)], ""


def _mirrored(key: str) -> str:
    return key.replace("min", "MAX").replace("max", "min").replace("MAX", "max")


def _bounds(limit: Limit) -> dict[str, Any] | None:
    """The limit as min_value and max_value; None for what is no interval."""
    match limit.op:
        case "<" | "<=":
            return {"max_value": limit.value, **({"strict_max": True} if limit.op == "<" else {})}
        case ">" | ">=":
            return {"min_value": limit.value, **({"strict_min": True} if limit.op == ">" else {})}
        case "==":
            return {"min_value": limit.value, "max_value": limit.value}
        case "between":
            return {"min_value": limit.value, "max_value": limit.high}
        case _:
            return None


def _mostly(limit: Limit) -> Mapping[str, float] | None:
    """The share that must pass; {} for all; None when the limit cannot be said so."""
    if limit == NONE:
        return {}
    if limit.percent and limit.op == "<=" and 0 <= limit.value <= 100:
        return {"mostly": round(1 - limit.value / 100, 9)}
    return None
