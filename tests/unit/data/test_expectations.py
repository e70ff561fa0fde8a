"""Suites of Great Expectations. `suite_1x.json` and `known_1_24.json` were written by great_expectations 1.24.1; the
suite that `suite_1x.json` comes back as was loaded and run by it.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.data.check import check
from loopwright.data.contract import Contract, Limit, Severity
from loopwright.data.expectations.exporting import export_suite
from loopwright.data.expectations.importing import Imported, import_suite
from loopwright.data.expectations.suite import read_suite
from loopwright.kernel.errors import BadInput

HERE = Path(__file__).parent / "expectations"
KNOWN: dict[str, list[str]] = json.loads((HERE / "known_1_24.json").read_text())


def imported(name: str) -> Imported:
    return import_suite(read_suite((HERE / name).read_bytes(), name), table="t")


def brought(*expectations: dict[str, Any]) -> Imported:
    data = json.dumps({"name": "s", "expectations": list(expectations)}).encode()
    return import_suite(read_suite(data, "s.json"), table="t")


def contract(found: Imported) -> Contract:
    assert found.document is not None
    return Contract.from_json(found.document)


def test_each_expectation_is_mapped_or_listed_with_the_reason() -> None:
    found = imported("suite_1x.json")
    assert len(found.mapped) == 40
    assert {one.type: one.why for one in found.unmapped} == {
        "expect_column_values_to_be_increasing": "rows of a table have no order",
        "expect_column_kl_divergence_to_be_less_than": "say {metric: drift, distance: psi, against: SNAPSHOT}",
        "expect_table_row_count_to_equal_other_table": "say it as type: sql, with a relationship to the other table",
        "expect_column_values_to_be_between": "min_value is known only when the suite runs (low)",
        "expect_column_values_to_match_regex": "a regular expression that needs look-around or back-references",
    }
    assert found.untyped == ("id", "spare", "from", "tz")


def test_every_mapped_expectation_brings_a_rule_or_a_column() -> None:
    found = imported("suite_1x.json")
    kinds = {rule.kind for rule in contract(found).rules}
    assert {"required", "nulls", "unique", "enum", "range", "pattern", "condition", "mean", "stddev", "sum", "minimum",
            "maximum", "quantile", "distinct", "count", "query"} <= kinds  # fmt: skip
    assert all(
        one.rules for one in found.mapped if "to_exist" not in one.type and "match_set" not in one.type
    )


def test_the_layout_of_0x_is_read_too() -> None:
    found = imported("suite_0x.json")
    assert [one.number for one in found.unmapped] == [7, 8]
    assert "row_condition" in found.unmapped[0].why
    rules = {rule.name: rule for rule in contract(found).rules}
    assert rules["amount >= 1"].arguments == {"op": ">=", "value": 1}
    assert "amount >= 0" not in rules  # the tighter of two holds
    assert rules["state valid"].limit == Limit("<=", 2.5, percent=True)
    assert rules["state valid"].severity is Severity.BLOCK
    assert rules["state valid"].arguments == {"validValues": ["open", "paid"]}
    assert contract(found).column("amount").type == "number"  # type: ignore[union-attr]


def test_mostly_becomes_a_limit_and_severity_a_severity() -> None:
    null = {
        "type": "expect_column_values_to_not_be_null",
        "kwargs": {"column": "a", "mostly": 0.9},
        "meta": {},
    }
    (rule, *_) = contract(brought(null)).rules
    assert (rule.kind, rule.limit, rule.severity) == ("nulls", Limit("<=", 10, percent=True), Severity.BLOCK)
    mild = {**null, "severity": "warning", "kwargs": {"column": "a"}}
    assert contract(brought(mild)).rules[0].severity is Severity.WARN


ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3, None], pa.int64()),
        "a": ["x", "y", "zz", None],
        "low": [1.0, 2.0, 3.0, None],
        "high": [2.0, 2.0, 1.0, 5.0],
    }
)


@pytest.mark.parametrize(
    ("type_", "kwargs", "failed"),
    [
        ("expect_column_values_to_not_be_null", {"column": "a"}, 1),
        ("expect_column_values_to_be_null", {"column": "a"}, 3),
        ("expect_column_values_to_be_in_set", {"column": "a", "value_set": ["x", "y"]}, 1),
        ("expect_column_values_to_not_be_in_set", {"column": "a", "value_set": ["x", "y"]}, 2),
        ("expect_column_values_to_match_regex", {"column": "a", "regex": "^.$"}, 1),
        ("expect_column_values_to_not_match_regex", {"column": "a", "regex": "z"}, 1),
        ("expect_column_values_to_match_regex_list", {"column": "a", "regex_list": ["x", "y"]}, 1),
        ("expect_column_values_to_match_like_pattern", {"column": "a", "like_pattern": "z%"}, 2),
        ("expect_column_value_lengths_to_equal", {"column": "a", "value": 1}, 1),
        ("expect_column_values_to_be_between", {"column": "low", "min_value": 1, "max_value": 2}, 1),
        ("expect_column_values_to_be_between", {"column": "low", "min_value": 1, "strict_min": True}, 1),
        ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "high", "column_B": "low"}, 2),
        ("expect_column_pair_values_a_to_be_greater_than_b",
         {"column_A": "high", "column_B": "low", "or_equal": True}, 1),
        ("expect_column_pair_values_to_be_equal", {"column_A": "high", "column_B": "low"}, 3),
        ("expect_select_column_values_to_be_unique_within_record", {"column_list": ["high", "low"]}, 1),
        ("expect_column_values_to_be_unique", {"column": "high"}, 1),
        ("expect_column_pair_values_to_be_in_set",
         {"column_A": "low", "column_B": "high", "value_pairs_set": [[1, 2], [2, 2]]}, 2),
    ],
)  # fmt: skip
def test_the_rules_find_the_rows_that_the_expectation_means(
    type_: str, kwargs: dict[str, Any], failed: int
) -> None:
    found = contract(brought({"type": type_, "kwargs": kwargs}))
    report = check(ROWS, found)
    results = [r for r in report.rules if r.name not in ("share of bad rows",) and " is a" not in r.name]
    assert [r.state for r in results if r.state == "ERROR"] == []
    assert sum(r.failed for r in results) == failed


def test_an_exported_suite_says_only_what_great_expectations_knows() -> None:
    found = export_suite(contract(imported("suite_1x.json")))
    assert len(found.suite["expectations"]) == 50
    for one in found.suite["expectations"]:
        assert set(one["kwargs"]) <= set(KNOWN[one["type"]]), one
    assert dict(found.left)["share of bad rows"] == "it sets no rows aside"


def test_what_goes_out_comes_back() -> None:
    first = contract(imported("suite_0x.json"))
    again = import_suite(read_suite(json.dumps(export_suite(first).suite).encode(), "again"), table="t")
    kept = [r for r in first.rules if r.kind not in ("type", "bad rows")]
    back = {(r.kind, r.columns, str(r.arguments), r.limit) for r in contract(again).rules}
    assert [r.name for r in kept if (r.kind, r.columns, str(r.arguments), r.limit) not in back] == []


def test_rules_without_words_there_are_listed() -> None:
    text = (
        "apiVersion: v3.1.0\nkind: DataContract\nid: t\nversion: 1.0.0\nschema:\n  - name: t\n    properties:\n"
        "      - {name: a, logicalType: integer, logicalTypeOptions: {multipleOf: 2}, relationships: [{to: b.c}],\n"
        "         quality: [{metric: nullValues, mustBeLessThan: 3},\n"
        "                   {metric: nullValues, unit: percent, mustBeLessThan: 30}]}\n"
    )
    found = export_suite(Contract.parse(text))
    assert [rule for rule, _ in found.left] == [
        "a is an integer", "a a multiple of 2", "a nulls < 3", "a in b.c", "share of bad rows",
    ]  # fmt: skip
    assert found.suite["expectations"][1]["kwargs"] == {"column": "a", "min_value": 0.7, "strict_min": True}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an expectation suite"),
        (b'{"expectations": {}}', "not an expectation suite"),
        (b'{"expectations": [{"type": 3}]}', r"expectations\[0\]: not an expectation"),
        (b'{"expectations": [{"type": "expect_x", "kwargs": []}]}', "not an expectation"),
    ],
)
def test_what_is_no_suite_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_suite(data, "s.json")


VALUE = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab'\"(%", max_size=3) | st.floats(-2, 2)
KWARGS = st.dictionaries(
    st.sampled_from(["column", "mostly", "value_set", "min_value", "max_value", "regex", "column_list", "column_A",
                     "column_B", "quantile_ranges", "value", "type_", "regex_list", "like_pattern"]),
    VALUE | st.lists(VALUE, max_size=2) | st.dictionaries(st.just("quantiles"), st.lists(VALUE), max_size=1),
)  # fmt: skip


@given(
    st.lists(st.fixed_dictionaries({"type": st.sampled_from(sorted(KNOWN)), "kwargs": KWARGS}), max_size=4)
)
def test_any_suite_is_mapped_into_a_valid_contract_or_listed(expectations: list[dict[str, Any]]) -> None:
    found = brought(*expectations)
    assert len(found.mapped) + len(found.unmapped) == len(expectations)
    if found.document is not None:
        assert Contract.from_json(found.document).columns
