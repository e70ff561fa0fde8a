"""Expectations about the values of rows, one small function each.

Where the two differ a `note` says how: `mostly` is a share of the values that are there, a limit here one of all rows.
"""

from loopwright.data.expectations.effect import (
    BATCH,
    Effect,
    Unmapped,
    bad_rows,
    column_of,
    condition_effect,
    listed,
    literal,
    logical,
    maps,
    mostly_of,
    number,
    pair_of,
    percent,
    shared,
    text_of,
    texts_of,
    type_of,
    values_of,
)  # fmt: skip
from loopwright.data.expectations.suite import Expectation
from loopwright.data.sql import quote as quoted


@maps("expect_column_to_exist")
def _exists(one: Expectation) -> Effect:
    note = "its position is not checked" if one.kwargs.get("column_index") is not None else ""
    return Effect([column_of(one)], note=note)


@maps("expect_table_columns_to_match_set", "expect_table_columns_to_match_ordered_list")
def _columns(one: Expectation) -> Effect:
    note = "more columns than these are no fault here" if one.kwargs.get("exact_match", True) else ""
    return Effect(texts_of(one, "column_set" if "column_set" in one.kwargs else "column_list"), note=note)


@maps("expect_column_values_to_not_be_null")
def _not_null(one: Expectation) -> Effect:
    column, mostly = column_of(one), mostly_of(one)
    if mostly == 1:
        return Effect([column], {column: {"required": True}})
    limit = {"mustBeLessOrEqualTo": percent(1 - mostly), "unit": "percent"}
    return Effect([column], quality=[(column, {"type": "library", "metric": "nullValues", **limit})])


@maps("expect_column_values_to_be_null")
def _null(one: Expectation) -> Effect:
    return condition_effect(one, [column_of(one)], f"{quoted(column_of(one))} IS NULL")


@maps("expect_column_values_to_be_unique")
def _unique(one: Expectation) -> Effect:
    column = column_of(one)
    if mostly_of(one) != 1:
        raise Unmapped("it counts every row of a repeated value, `duplicateValues` those beyond the first")
    entry = {"type": "library", "metric": "duplicateValues", "mustBe": 0, "customProperties": [*BATCH]}
    return Effect([column], quality=[(column, entry)], note=_ONE_BATCH)


_ONE_BATCH = "within one delivery; take `scope: batch` out to keep it across all that has landed"


@maps("expect_compound_columns_to_be_unique")
def _compound(one: Expectation) -> Effect:
    columns = texts_of(one, "column_list")
    if mostly_of(one) != 1:
        raise Unmapped("it counts every row of a repeated key, `duplicateValues` those beyond the first")
    entry = {
        "type": "library", "metric": "duplicateValues", "arguments": {"properties": columns}, "mustBe": 0,
        "customProperties": [*BATCH],
    }  # fmt: skip
    return Effect(columns, quality=[("", entry)], note=_ONE_BATCH)


@maps("expect_select_column_values_to_be_unique_within_record", "expect_multicolumn_values_to_be_unique")
def _within(one: Expectation) -> Effect:
    columns = texts_of(one, "column_list")
    pairs = [(a, b) for i, a in enumerate(columns) for b in columns[i + 1 :]]
    return condition_effect(one, columns, " AND ".join(f"{quoted(a)} <> {quoted(b)}" for a, b in pairs))


@maps("expect_column_values_to_be_in_set", "expect_column_distinct_values_to_be_in_set")
def _in_set(one: Expectation) -> Effect:
    column, values = column_of(one), values_of(one)
    entry = {"type": "library", "metric": "invalidValues", "arguments": {"validValues": values}}
    return Effect(
        [column], quality=[(column, entry | bad_rows(one))], types=type_of(column, values), note=shared(one)
    )


@maps("expect_column_values_to_not_be_in_set")
def _not_in_set(one: Expectation) -> Effect:
    column, values = column_of(one), values_of(one)
    effect = condition_effect(one, [column], f"{quoted(column)} NOT IN ({listed(values)})")
    effect.types = type_of(column, values)
    return effect


@maps("expect_column_values_to_be_between")
def _between(one: Expectation) -> Effect:
    column = column_of(one)
    low, high = one.kwargs.get("min_value"), one.kwargs.get("max_value")
    types = type_of(column, [v for v in (low, high) if v is not None], ordered=True)
    if mostly_of(one) == 1:
        options = {}
        for value, strict, plain in ((low, "strict_min", "minimum"), (high, "strict_max", "maximum")):
            if value is not None:
                strictly = one.kwargs.get(strict)
                options[f"exclusive{plain.capitalize()}" if strictly else plain] = value
        if not options:
            raise Unmapped("it has neither min_value nor max_value")
        return Effect([column], options={column: options}, types=types)
    parts = []
    for value, key, op in ((low, "strict_min", ">"), (high, "strict_max", "<")):
        if value is not None:
            parts.append(f"{quoted(column)} {op}{'' if one.kwargs.get(key) else '='} {literal(value)}")
    if not parts:
        raise Unmapped("it has neither min_value nor max_value")
    effect = condition_effect(one, [column], " AND ".join(parts))
    effect.types = types
    return effect


@maps("expect_column_value_lengths_to_be_between", "expect_column_value_lengths_to_equal")
def _lengths(one: Expectation) -> Effect:
    column = column_of(one)
    low = one.kwargs.get("value", one.kwargs.get("min_value"))
    high = one.kwargs.get("value", one.kwargs.get("max_value"))
    options = {}
    if low is not None:
        options["minLength"] = int(number(low)) + bool(one.kwargs.get("strict_min"))
    if high is not None:
        options["maxLength"] = int(number(high)) - bool(one.kwargs.get("strict_max"))
    if not options:
        raise Unmapped("it has neither min_value nor max_value")
    if mostly_of(one) == 1:
        return Effect([column], options={column: options}, types={column: "string"})
    ops = {"minLength": ">=", "maxLength": "<="}
    sql = " AND ".join(f"length({quoted(column)}) {ops[key]} {value}" for key, value in options.items())
    return condition_effect(one, [column], sql)


@maps("expect_column_values_to_match_regex")
def _regex(one: Expectation) -> Effect:
    column = column_of(one)
    entry = {"type": "library", "metric": "invalidValues", "arguments": {"pattern": text_of(one, "regex")}}
    return Effect(
        [column], quality=[(column, entry | bad_rows(one))], types={column: "string"}, note=shared(one)
    )


@maps(
    "expect_column_values_to_not_match_regex",
    "expect_column_values_to_match_regex_list",
    "expect_column_values_to_not_match_regex_list",
    "expect_column_values_to_match_like_pattern",
    "expect_column_values_to_not_match_like_pattern",
    "expect_column_values_to_match_like_pattern_list",
    "expect_column_values_to_not_match_like_pattern_list",
)
def _patterns(one: Expectation) -> Effect:
    column = column_of(one)
    key = next(k for k in ("regex_list", "like_pattern_list", "regex", "like_pattern") if k in one.kwargs)
    patterns = texts_of(one, key) if key.endswith("list") else [text_of(one, key)]
    if one.kwargs.get("escape"):
        raise Unmapped("its escape character; write the pattern without")
    cell = quoted(column)
    tests = [
        f"{cell} LIKE {literal(p)}" if "like" in key else f"regexp_matches({cell}, {literal(p)})"
        for p in patterns
    ]
    if "_not_" in one.type:
        sql = " AND ".join(f"NOT {test}" for test in tests)
    else:
        sql = (" AND " if one.kwargs.get("match_on") == "all" else " OR ").join(tests)
    effect = condition_effect(one, [column], sql)
    effect.types = {column: "string"}
    return effect


@maps("expect_column_values_to_match_strftime_format")
def _strftime(one: Expectation) -> Effect:
    column, format_ = column_of(one), text_of(one, "strftime_format")
    if mostly_of(one) == 1:
        return Effect([column], options={column: {"format": format_}}, types={column: "timestamp"})
    return condition_effect(one, [column], f"try_strptime({quoted(column)}, {literal(format_)}) IS NOT NULL")


@maps(
    "expect_column_values_to_be_of_type",
    "expect_column_values_to_be_in_type_list",
    "expect_column_type_to_be",
)
def _typed(one: Expectation) -> Effect:
    column = column_of(one)
    names = texts_of(one, "type_list") if "type_list" in one.kwargs else [text_of(one, "type_")]
    found = {logical(name) for name in names}
    type_ = "number" if found == {"integer", "number"} else found.pop() if len(found) == 1 else None
    if type_ is None:
        raise Unmapped(f"no one type is meant by {', '.join(names)}")
    return Effect([column], {column: {"logicalType": type_}}, types={column: type_})


@maps("expect_column_pair_values_to_be_equal", "expect_multicolumn_values_to_be_equal")
def _equal(one: Expectation) -> Effect:
    columns = texts_of(one, "column_list") if "column_list" in one.kwargs else pair_of(one)
    first = quoted(columns[0])
    return condition_effect(
        one, columns, " AND ".join(f"{first} IS NOT DISTINCT FROM {quoted(c)}" for c in columns[1:])
    )


@maps("expect_column_pair_values_a_to_be_greater_than_b", "expect_column_pair_values_to_be_greater_than")
def _greater(one: Expectation) -> Effect:
    a, b = pair_of(one)
    effect = condition_effect(
        one, [a, b], f"{quoted(a)} >{'=' if one.kwargs.get('or_equal') else ''} {quoted(b)}"
    )
    effect.types = {a: "number", b: "number"}
    effect.note = effect.note or "taken for numbers, unless something else says their type"
    return effect


@maps("expect_column_pair_values_to_be_in_set")
def _pair_in(one: Expectation) -> Effect:
    a, b = pair_of(one)
    pairs = one.kwargs.get("value_pairs_set")
    if not isinstance(pairs, list) or not pairs or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        raise Unmapped("it has no value_pairs_set")
    tests = [f"({quoted(a)} = {literal(x)} AND {quoted(b)} = {literal(y)})" for x, y in pairs]
    return condition_effect(one, [a, b], " OR ".join(tests))


@maps("expect_multicolumn_sum_to_equal")
def _sum(one: Expectation) -> Effect:
    columns = texts_of(one, "column_list")
    total = number(one.kwargs.get("sum_total"))
    effect = condition_effect(one, columns, f"{' + '.join(map(quoted, columns))} = {total:g}")
    effect.types = dict.fromkeys(columns, "number")
    return effect
