from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.data.compatibility import Change, classify, version_warning
from loopwright.data.contract import Contract, Limit
from loopwright.data.rule_changes import _limits

HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: t\nversion: {version}\nstatus: active\nschema:\n  - name: t\n"
ID = "{name: id, logicalType: integer, primaryKey: true}"


def contract(*columns: str, more: str = "", version: str = "1.0.0") -> Contract:
    body = "    properties:\n" + "".join(f"      - {line}\n" for line in (ID, *columns))
    return Contract.parse(HEAD.format(version=version) + body + more, "t.odcs.yaml")


def change(old: str, new: str, **more: Any) -> Change:
    """From a table with the column `old` to one with `new`."""
    return classify(contract(old), contract(new, **more))


def custom(name: str, value: str) -> str:
    return f"customProperties: [{{property: {name}, value: {value}}}]"


def number(options: str, more: str = "") -> str:
    return f"{{name: a, logicalType: number, logicalTypeOptions: {{{options}}}{', ' + more if more else ''}}}"


WARN = custom("severity", "warn")


def quality(entry: str) -> str:
    return f"{{name: a, logicalType: integer, quality: [{{{entry}}}]}}"


def measure(entry: str) -> str:
    return quality(f"type: custom, engine: loopwright, implementation: {{{entry}}}")


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("{name: a}", "{name: a}", "same", None),
        ("{name: a}", "{name: a, description: the first}", "same", "other words"),
        ("{name: a}", "{name: b}", "breaking", "the column is gone"),
        ("{name: a, logicalType: integer}", "{name: a, logicalType: number}", "compatible", "the type is wider"),
        ("{name: a, logicalType: number}", "{name: a, logicalType: integer}", "breaking", "the type is narrower"),
        ("{name: a, logicalType: date}", "{name: a, logicalType: timestamp}", "compatible", "the type is wider"),
        ("{name: a, logicalType: integer}", "{name: a, logicalType: string}", "breaking", "the type is another"),
        ("{name: a}", "{name: a, required: true}", "breaking", "newly promised: a present"),
        ("{name: a, required: true}", "{name: a}", "compatible", "no longer promised: a present"),
        ("{name: a}", f"{{name: a, required: true, {WARN}}}", "compatible", "newly watched: a present"),
        (number("minimum: 0"), number("minimum: 1"), "breaking", "a >= 1: asks more than “a >= 0”"),
        (number("minimum: 1"), number("minimum: 0"), "compatible", "a >= 0: asks less"),
        (number("minimum: 0"), number("exclusiveMinimum: 0"), "breaking", "asks more"),
        (number("maximum: 9"), number("maximum: 8"), "breaking", "asks more"),
        (number("maximum: 9"), number("maximum: 9, minimum: 0"), "breaking", "newly promised: a >= 0"),
        (number("multipleOf: 2"), number("multipleOf: 4"), "breaking", "asks more"),
        (number("multipleOf: 4"), number("multipleOf: 2"), "compatible", "asks less"),
        (number("multipleOf: 4"), number("multipleOf: 3"), "breaking", "asks something else"),
        (number("minimum: 0", WARN), number("minimum: 0"), "breaking", "quarantine, was warn"),
        (number("minimum: 0"), number("minimum: 0", WARN), "compatible", "warn, was quarantine"),
        (number("minimum: 0", WARN), number("minimum: 1", WARN), "compatible", "asks more"),
        (quality("metric: invalidValues, arguments: {validValues: [1, 2]}"),
         quality("metric: invalidValues, arguments: {validValues: [1, 2, 3]}"), "compatible", "asks less"),
        (quality("metric: invalidValues, arguments: {validValues: [1, 2]}"),
         quality("metric: invalidValues, arguments: {validValues: [1, 3]}"), "breaking", "asks something else"),
        (quality("metric: nullValues, unit: percent, mustBeLessThan: 5"),
         quality("metric: nullValues, unit: percent, mustBeLessThan: 4"), "breaking", "asks more"),
        (quality("metric: nullValues, unit: percent, mustBeLessThan: 5"),
         quality("metric: nullValues, mustBeLessThan: 4"), "breaking", "asks something else"),
        (measure("metric: mean, mustBeBetween: [1, 9]"), measure("metric: mean, mustBeBetween: [2, 9]"),
         "breaking", "asks more"),
        (measure("metric: quantile, q: 0.5, mustBeLessThan: 9"),
         measure("metric: quantile, q: 0.9, mustBeLessThan: 9"), "breaking", "newly promised"),
        (measure("metric: outlier, threshold: 4"), measure("metric: outlier, threshold: 6"), "compatible", "asks less"),
        ("{name: a, unique: true, " + custom("scope", "batch") + "}", "{name: a, unique: true}", "breaking",
         "asks more"),
        ("{name: a, logicalType: date}", "{name: a, logicalType: date, logicalTypeOptions: {format: dd.MM.yyyy}}",
         "breaking", "texts are read as %d.%m.%Y"),
        ("{name: a, logicalType: timestamp}",
         "{name: a, logicalType: timestamp, logicalTypeOptions: {defaultTimezone: Europe/Berlin}}", "breaking",
         "they are other moments"),
        ("{name: a, " + custom("optional", "true") + "}", "{name: a}", "breaking", "may no longer be absent"),
        ("{name: a, logicalType: object, properties: [{name: x}]}",
         "{name: a, logicalType: object, properties: [{name: x}, {name: y}]}", "compatible", "new, and may be absent"),
        ("{name: a, logicalType: object, properties: [{name: x}]}",
         "{name: a, logicalType: object, properties: [{name: x, logicalType: integer}]}", "breaking", "another"),
        ("{name: a, logicalType: array, items: {logicalType: integer}}",
         "{name: a, logicalType: array, items: {logicalType: number}}", "compatible", "the type is wider"),
        ("{name: a, relationships: [{to: other.id}]}", "{name: a, relationships: [{to: other.key}]}", "breaking",
         "asks something else"),
    ],
)  # fmt: skip
def test_a_change_is_what_it_does_to_producers_and_consumers(
    old: str, new: str, kind: str, said: str | None
) -> None:
    found = change(old, new)
    assert found.kind == kind
    if said is None:
        assert found.differences == ()
    else:
        assert said in " · ".join(one.what for one in found.differences)


def test_the_first_contract_is_compared_with_none() -> None:
    assert classify(None, contract("{name: a}")).kind == "first"


def test_a_new_column_that_may_be_null_is_compatible_and_a_required_one_is_not() -> None:
    old = contract("{name: a}")
    added = classify(old, contract("{name: a}", "{name: b}"))
    assert added.kind == "compatible"
    assert [one.where for one in added.differences] == ["b"]
    found = classify(old, contract("{name: a}", "{name: b, required: true}"))
    assert found.kind == "breaking"
    assert [(one.where, one.landed) for one in found.breaking] == [("b", True)]


def test_what_breaks_says_for_whom_and_whether_rows_that_landed_are_touched() -> None:
    gone = classify(contract("{name: a}", "{name: b}"), contract("{name: a}")).breaking
    assert [(one.concerns, one.landed) for one in gone] == [(("consumers",), False)]
    tight = change(number("minimum: 0"), number("minimum: 1")).breaking
    assert [(one.concerns, one.landed) for one in tight] == [(("producers",), True)]
    count = "    quality: [{metric: rowCount, mustBeGreaterThan: 9}]\n"
    fewer = classify(contract("{name: a}"), contract("{name: a}", more=count))
    assert [(one.concerns, one.landed) for one in fewer.breaking] == [(("producers",), False)]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("load", "full", "breaking"),
        ("eventTime", "at", "compatible"),
        ("nullValues", "['', '-']", "breaking"),
        ("maxBadShare", "0.1", "breaking"),
        ("maxBadShare", "0.9", "compatible"),
        ("versionColumn", "at", "breaking"),
        ("owner", "ops@example.com", "same"),
        ("consumers", "[pricing]", "same"),
    ],
)
def test_what_the_table_says_about_itself_counts_too(name: str, value: str, kind: str) -> None:
    at = "{name: at, logicalType: timestamp}"
    assert classify(contract(at), contract(at, more=f"    {custom(name, value)}\n")).kind == kind


def test_another_key_breaks_both_sides() -> None:
    found = classify(contract("{name: a}"), contract("{name: a, primaryKey: true}"))
    key = next(one for one in found.breaking if one.where == "key")
    assert key.concerns == ("producers", "consumers")
    assert "id, a" in key.what


@pytest.mark.parametrize(
    ("old", "new", "advised", "said"),
    [
        ("1.2.3", "2.0.0", "major", ""),
        ("1.2.3", "1.3.0", "major", "wants version 2.0.0 at least"),
        ("1.2.3", "1.3.0", "minor", ""),
        ("1.2.3", "1.2.4", "minor", "wants version 1.3.0 at least"),
        ("1.2.3", "1.2.3", "patch", "wants version 1.2.4 at least"),
        ("1.2.3", "1.2.3", "none", ""),
        ("0.1.0", "0.2.0", "major", ""),
        ("0.1.0", "0.1.1", "major", "wants version 0.2.0 at least"),
        ("2.0.0", "1.9.0", "minor", "goes back"),
        ("v1", "1.0.0", "minor", "no semantic version"),
        ("1.0", "1.1", "minor", ""),
    ],
)
def test_the_version_says_what_changed(old: str, new: str, advised: str, said: str) -> None:
    warning = version_warning(old, new, advised)
    assert (said in warning) if said else warning == ""


def test_a_breaking_change_advises_a_major_version() -> None:
    found = change("{name: a}", "{name: a, required: true}", version="1.1.0")
    assert found.advised == "major"
    assert "2.0.0" in found.warning
    assert found.to_json()["differences"][0]["kind"] == "breaking"


OPS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
LIMITS = st.builds(Limit, OPS, st.integers(-3, 3).map(float)) | st.builds(
    lambda op, low, width: Limit(op, low, low + width),
    st.sampled_from(["between", "not between"]),
    st.integers(-3, 3).map(float),
    st.integers(0, 3).map(float),
)


@given(LIMITS, LIMITS)
def test_limits_are_compared_by_what_they_let_pass(old: Limit, new: Limit) -> None:
    numbers = [step / 4 for step in range(-40, 41)]
    before = {n for n in numbers if old.holds(n, 1)}
    after = {n for n in numbers if new.holds(n, 1)}
    wanted = (
        "same"
        if before == after
        else "tighter"
        if after < before
        else "looser"
        if before < after
        else "other"
    )
    assert _limits(old, new) == wanted


@given(st.lists(st.sampled_from(["minimum: 0", "maximum: 9", "multipleOf: 2"]), unique=True))
def test_no_contract_differs_from_itself(options: list[str]) -> None:
    one = contract(number(", ".join(options)), "{name: b, unique: true, required: true}")
    assert classify(one, one) == Change("same")
