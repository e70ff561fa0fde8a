import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.check import CheckReport, RuleResult, check, examine
from loopwright.data.contract import Contract
from loopwright.kernel.errors import BadInput

HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: t\nschema:\n  - name: t\n    properties:\n"
WARN = "customProperties: [{property: severity, value: warn}]"


def contract(*columns: str, quality: str = "", custom: str = "{property: maxBadShare, value: 1}") -> Contract:
    text = HEAD + "".join(f"      - {column}\n" for column in columns)
    text += f"    quality: [{quality}]\n    customProperties: [{custom}]\n"
    return Contract.parse(text, "t.odcs.yaml")


def rule(report: CheckReport, name: str) -> RuleResult:
    return next(r for r in report.rules if r.name == name)


def test_texts_become_typed_rows_and_misfits_are_bad() -> None:
    rows = pa.table({"a": ["1", "x", "2.5", "3.0", None], "b": ["1.5", "2", "inf", None, "4"]})
    checked = examine(rows, contract("{name: a, logicalType: integer}", "{name: b, logicalType: number}"), {})
    assert checked.good.to_pydict() == {"a": [1, 3, None], "b": [1.5, None, 4.0], "_row": [0, 3, 4]}
    assert checked.bad == {1: ("a is an integer",), 2: ("a is an integer", "b is a number")}
    assert checked.report.state == "FAIL"


def test_null_passes_every_rule_but_required() -> None:
    rows = pa.table({"a": pa.array([None, None], pa.string())})
    loose = contract("{name: a, logicalType: integer, logicalTypeOptions: {minimum: 5}}")
    strict = contract("{name: a, logicalType: integer, required: true}")
    assert check(rows, loose).bad_rows == 0
    assert check(rows, strict).reasons == {"a present": 2}


def test_a_cell_that_does_not_fit_is_not_also_missing() -> None:
    assert check(
        pa.table({"a": ["x"]}), contract("{name: a, logicalType: integer, required: true}")
    ).reasons == {"a is an integer": 1}


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [  # the column "a", values that pass, values that do not
        ("logicalType: number, logicalTypeOptions: {minimum: 0, maximum: 9}", ["0", "9"], ["-0.1", "9.01"]),
        (
            "logicalType: number, logicalTypeOptions: {exclusiveMinimum: 0, maximum: 9, exclusiveMaximum: true}",
            ["1"],
            ["0", "9"],
        ),
        ("logicalType: integer, logicalTypeOptions: {multipleOf: 5}", ["0", "-5"], ["3"]),
        ("logicalTypeOptions: {minLength: 2, maxLength: 3}", ["ab", "äöü"], ["a", "abcd"]),
        ("logicalTypeOptions: {pattern: '^[A-Z]{3}$'}", ["JFK"], ["jfk", "JFKX"]),
        (
            'quality: [{metric: invalidValues, arguments: {validValues: [x, "it\'s"]}, mustBe: 0}]',
            ["x", "it's"],
            ["y"],
        ),
        (
            "logicalType: integer, quality: [{metric: invalidValues, arguments: {validValues: [1, 2]}}]",
            ["1"],
            ["3"],
        ),
        ("quality: [{metric: missingValues, arguments: {missingValues: [none]}}]", ["x"], ["none"]),
        ("logicalType: boolean", ["true", "False"], ["maybe"]),
        (
            "logicalType: date, logicalTypeOptions: {format: dd.MM.yyyy}",
            ["31.12.2013"],
            ["12/31/2013", "32.01.2013"],
        ),
        ("logicalType: timestamp", ["2013-01-01T00:00:00Z", "2013-01-01 00:00"], ["yesterday"]),
        (
            "logicalType: timestamp, logicalTypeOptions: {minimum: '2013-01-01T00:00:00Z'}",
            ["2013-01-01T00:00:00Z"],
            ["2012-12-31"],
        ),
        ("quality: [{type: custom, engine: loopwright, implementation: a <> 'x'}]", ["y"], ["x"]),
    ],
)
def test_rules_part_good_values_from_bad(column: str, good: list[str], bad: list[str]) -> None:
    checked = examine(pa.table({"a": [*good, *bad]}), contract(f"{{name: a, {column}}}"), {})
    assert sorted(checked.bad) == list(range(len(good), len(good) + len(bad)))


def test_a_local_time_is_read_in_its_zone_and_an_offset_wins() -> None:
    column = "{name: a, logicalType: timestamp, logicalTypeOptions: {defaultTimezone: America/New_York}}"
    rows = pa.table({"a": ["2013-07-01 00:00:00", "2013-07-01T00:00:00Z", "2013-07-01"]})
    times = examine(rows, contract(column), {}).good.column("a").cast(pa.int64()).to_pylist()
    assert [(t - times[1]) / 3.6e9 for t in times] == [4.0, 0.0, 4.0]


def test_the_first_row_of_a_key_stays_and_the_others_are_duplicates() -> None:
    report = examine(
        pa.table({"a": ["x", "y", "x", "x", None, None]}), contract("{name: a, unique: true}"), {}
    )
    assert report.bad == {2: ("a unique",), 3: ("a unique",)}


def test_uniqueness_is_judged_with_what_landed_before() -> None:
    rows = pa.table({"a": ["1", "2", "2"]})
    checked = examine(
        rows, contract("{name: a, logicalType: integer, unique: true}"), {}, landed=pa.table({"a": [1, 1]})
    )
    assert sorted(checked.bad) == [0, 2]


def test_a_relationship_counts_the_rows_that_point_nowhere() -> None:
    rows = pa.table({"a": ["1", "2", None], "b": ["x", "x", "x"]})
    table = pa.table({"id": [1], "kind": ["x"]})
    one = contract("{name: a, logicalType: integer, relationships: [{to: other.id}]}", "{name: b}")
    assert check(rows, one, {"other": table}).reasons == {"a in other.id": 1}


def test_a_relationship_over_two_columns_needs_both() -> None:
    text = (
        HEAD + "      - {name: a}\n      - {name: b}\n    relationships: [{from: [a, b], to: [o.x, o.y]}]\n"
    )
    both = Contract.parse(text, "t")
    rows = pa.table({"a": ["1", "1", "2", None], "b": ["p", "q", "p", "q"]})
    report = check(rows, both, {"o": pa.table({"x": ["1", "2"], "y": ["p", "q"]})})
    assert rule(report, "a, b in o.x, y").failed == 2


def test_a_table_that_is_not_there_is_no_pass() -> None:
    with pytest.raises(BadInput, match="Ingest other first"):
        check(pa.table({"a": ["1"]}), contract("{name: a, relationships: [{to: other.id}]}"))


def test_a_warning_leaves_the_row_in_use() -> None:
    report = check(pa.table({"a": [None, "1"]}), contract(f"{{name: a, required: true, {WARN}}}"))
    assert (report.state, report.bad_rows) == ("PASS", 0)
    assert [(r.name, r.state, r.failed) for r in report.warnings] == [("a present", "WARN", 1)]


def test_a_rule_on_counts_blocks_the_batch() -> None:
    report = check(
        pa.table({"a": ["1"]}), contract("{name: a}", quality="{metric: rowCount, mustBeGreaterThan: 5}")
    )
    assert [r.name for r in report.blocked_by] == ["row count"]
    assert "measured 1" in report.blocked_by[0].why


def test_too_many_bad_rows_block_the_batch() -> None:
    strict = contract("{name: a, logicalType: integer}", custom="{property: maxBadShare, value: 0.3}")
    assert not check(pa.table({"a": ["1", "2", "3", "x"]}), strict).blocked_by
    assert check(pa.table({"a": ["1", "x", "y", "z"]}), strict).blocked_by


def test_a_query_is_measured_against_its_limit() -> None:
    query = "{type: sql, query: 'SELECT max(a) FROM {object}', mustBeLessThan: 9, name: small}"
    assert (
        check(pa.table({"a": ["8"]}), contract("{name: a, logicalType: integer}", quality=query)).state
        == "PASS"
    )
    assert (
        rule(
            check(pa.table({"a": ["9"]}), contract("{name: a, logicalType: integer}", quality=query)), "small"
        ).state
        == "FAIL"
    )


@pytest.mark.parametrize(
    "quality",
    [
        "{type: custom, engine: loopwright, implementation: no_such_column > 1}",
        "{type: custom, engine: loopwright, implementation: 'a::INTEGER > 1'}",  # fails on the data, not on binding
        "{type: sql, query: 'SELECT no FROM nowhere', mustBe: 0}",
        "{type: sql, query: 'SELECT NULL', mustBe: 0}",
    ],
)
def test_a_rule_that_cannot_be_evaluated_is_an_error_and_never_a_pass(quality: str) -> None:
    report = check(
        pa.table({"a": ["x", "y"], "b": ["1", "oops"]}),
        contract("{name: a}", "{name: b, logicalType: integer}", quality=quality),
    )
    assert report.state == "ERROR"
    assert len(report.blocked_by) == 1
    assert report.reasons == {"b is an integer": 1}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM read_csv('/etc/passwd')",
        "COPY t TO '/tmp/leak.csv'",
        "SET enable_external_access = true",
    ],
)
def test_a_contract_cannot_read_or_write_the_machine(sql: str) -> None:
    report = check(
        pa.table({"a": ["x"]}), contract("{name: a}", quality=f'{{type: sql, query: "{sql}", mustBe: 0}}')
    )
    assert report.state == "ERROR"


def test_a_condition_may_name_columns_that_keys_and_relationships_join_on() -> None:
    quality = "{type: custom, engine: loopwright, implementation: a <> 'z'}"
    keyed = contract("{name: a, primaryKey: true, relationships: [{to: o.a}]}", quality=quality)
    assert check(pa.table({"a": ["x", "x", "z"]}), keyed, {"o": pa.table({"a": ["x", "z"]})}).reasons == {
        "a unique": 1,
        "a <> 'z'": 1,
    }


def test_a_vanished_column_names_the_one_it_may_have_become() -> None:
    with pytest.raises(BadInput, match=r"`distance` vanished; got columns distnce.*did you mean `distnce`"):
        check(pa.table({"distnce": ["1"]}), contract("{name: distance}"))


def test_an_optional_column_may_be_absent() -> None:
    column = "{name: b, logicalType: integer, customProperties: [{property: optional, value: true}]}"
    checked = examine(pa.table({"a": ["1"]}), contract("{name: a}", column), {})
    assert checked.good.to_pydict() == {"a": ["1"], "b": [None], "_row": [0]}


def test_examples_show_the_cell_as_it_was_written() -> None:
    report = check(pa.table({"a": ["1", "seven"]}), contract("{name: a, logicalType: integer}"))
    assert rule(report, "a is an integer").examples == ({"row": 2, "a": "seven"},)


def test_typed_rows_are_judged_like_texts() -> None:
    rows = pa.table({"a": [1.0, 2.5, float("nan"), None], "b": [math.inf, 1.0, math.nan, None]})
    checked = examine(rows, contract("{name: a, logicalType: integer}", "{name: b, logicalType: number}"), {})
    assert checked.bad == {0: ("b is a number",), 1: ("a is an integer",)}
    assert checked.good.column("a").to_pylist() == [None, None]


NUMBERS = st.one_of(st.none(), st.integers(-20, 20).map(str), st.sampled_from(["x", "1.5", "", "1e1", " 7"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40))
def test_good_and_bad_rows_make_the_input_and_agree_with_plain_python(
    pairs: list[tuple[str | None, str | None]],
) -> None:
    rows = pa.table(
        {"a": pa.array([p[0] for p in pairs], pa.string()), "b": pa.array([p[1] for p in pairs], pa.string())}
    )
    checked = examine(
        rows,
        contract(
            "{name: a, logicalType: integer, required: true, logicalTypeOptions: {minimum: 0}}", "{name: b}"
        ),
        {},
        malformed=2,
    )
    report = checked.report
    assert report.good_rows + report.bad_rows == report.input_rows == len(pairs) + 2

    def fits(text: str | None) -> bool:
        try:
            number = float(text or "")
        except ValueError:
            return False
        return number == int(number) and number >= 0

    expected = [i for i, (a, _) in enumerate(pairs) if not fits(a)]
    assert sorted(checked.bad) == expected
    assert checked.good.column("_row").to_pylist() == [i for i in range(len(pairs)) if i not in expected]
