"""Expectations about a delivery as a whole: counts, shares, distributions."""

from typing import Any

from loopwright.data.expectations.effect import (
    Effect,
    Unmapped,
    bad_rows,
    column_of,
    custom,
    limits,
    listed,
    maps,
    number,
    percent,
    shared,
    text_of,
    type_of,
    values_of,
)  # fmt: skip
from loopwright.data.expectations.suite import Expectation
from loopwright.data.sql import quote as quoted


@maps("expect_column_proportion_of_non_null_values_to_be_between")
def _filled(one: Expectation) -> Effect:
    column = column_of(one)
    low, high = one.kwargs.get("min_value"), one.kwargs.get("max_value")
    turned = {
        "min_value": None if high is None else percent(1 - number(high)),
        "max_value": None if low is None else percent(1 - number(low)),
        "strict_min": one.kwargs.get("strict_max"),
        "strict_max": one.kwargs.get("strict_min"),
    }
    entries = [
        {"type": "library", "metric": "nullValues", **limit, "unit": "percent"} for limit in limits(turned)
    ]
    return Effect([column], quality=[(column, entry) for entry in entries])


@maps("expect_column_distinct_values_to_contain_set", "expect_column_distinct_values_to_equal_set")
def _contains(one: Expectation) -> Effect:
    column, values = column_of(one), values_of(one)
    cell = quoted(column)
    query = f"SELECT count(DISTINCT CASE WHEN {cell} IN ({listed(values)}) THEN {cell} END) FROM {{object}}"
    found = [(column, {"type": "sql", "query": query, "mustBe": len({str(v) for v in values})})]
    if one.type.endswith("equal_set"):
        found.append((column, {"type": "library", "metric": "invalidValues",
                               "arguments": {"validValues": values}, "mustBe": 0}))  # fmt: skip
    return Effect([column], quality=found, types=type_of(column, values))


_MEASURES: dict[str, dict[str, Any]] = {
    "expect_column_mean_to_be_between": {"metric": "mean"},
    "expect_column_stdev_to_be_between": {"metric": "stddev"},
    "expect_column_sum_to_be_between": {"metric": "sum"},
    "expect_column_min_to_be_between": {"metric": "minimum"},
    "expect_column_max_to_be_between": {"metric": "maximum"},
    "expect_column_median_to_be_between": {"metric": "quantile", "q": 0.5},
    "expect_column_unique_value_count_to_be_between": {"metric": "distinct"},
}


@maps(*_MEASURES)
def _measure(one: Expectation) -> Effect:
    column, measure = column_of(one), _MEASURES[one.type]
    entries = [custom({**measure, **limit}) for limit in limits(one.kwargs)]
    types = {} if measure["metric"] == "distinct" else {column: "number"}
    return Effect([column], quality=[(column, entry) for entry in entries], types=types)


@maps("expect_column_quantile_values_to_be_between")
def _quantiles(one: Expectation) -> Effect:
    column, ranges = column_of(one), one.kwargs.get("quantile_ranges")
    if not isinstance(ranges, dict) or not isinstance(ranges.get("quantiles"), list):
        raise Unmapped("it has no quantile_ranges")
    found = []
    for q, pair in zip(ranges["quantiles"], ranges.get("value_ranges", ()), strict=False):
        for limit in limits({"min_value": pair[0], "max_value": pair[1]}):
            found.append((column, custom({"metric": "quantile", "q": q, **limit})))
    return Effect([column], quality=found, types={column: "number"})


@maps("expect_column_proportion_of_unique_values_to_be_between")
def _proportion(one: Expectation) -> Effect:
    column = column_of(one)
    query = f"SELECT coalesce(count(DISTINCT {quoted(column)}) / nullif(count({quoted(column)}), 0), 0) FROM {{object}}"
    return Effect(
        [column], quality=[(column, {"type": "sql", "query": query, **lim}) for lim in limits(one.kwargs)]
    )


@maps("expect_column_values_to_not_be_outliers")
def _outliers(one: Expectation) -> Effect:
    column = column_of(one)
    if str(one.kwargs.get("method", "iqr")).lower() != "iqr":
        raise Unmapped("outliers are told by robust z or IQR; say {metric: outlier, method: robustZ}")
    entry = custom(
        {
            "metric": "outlier",
            "method": "iqr",
            "threshold": one.kwargs.get("multiplier", 1.5),
            **bad_rows(one),
        }
    )
    entry["implementation"].pop("mustBe", None)
    return Effect([column], quality=[(column, entry)], types={column: "number"}, note=shared(one))


@maps("expect_table_row_count_to_be_between", "expect_table_row_count_to_equal")
def _rows(one: Expectation) -> Effect:
    found = [{"mustBe": one.kwargs["value"]}] if "value" in one.kwargs else limits(one.kwargs)
    return Effect(quality=[("", {"type": "library", "metric": "rowCount", **limit}) for limit in found])


@maps("unexpected_rows_expectation")
def _unexpected(one: Expectation) -> Effect:
    query = text_of(one, "unexpected_rows_query").strip().rstrip(";").replace("{batch}", "{object}")
    return Effect(quality=[("", {"type": "sql", "query": f"SELECT count(*) FROM ({query})", "mustBe": 0})])
