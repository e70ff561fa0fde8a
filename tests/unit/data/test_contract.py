from pathlib import Path

import pytest

from loopwright.data.contract import Contract, Limit, Scope, Severity
from loopwright.kernel.errors import BadInput, NotFound

HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: t\nversion: 1.0.0\nstatus: active\nschema:\n  - name: t\n"


SEVERE = "customProperties: [{property: severity, value: quarantine}]"


def contract(body: str) -> Contract:
    return Contract.parse((HEAD + body), "t.odcs.yaml")


def columns(*lines: str, more: str = "") -> Contract:
    return contract("    properties:\n" + "".join(f"      - {line}\n" for line in lines) + more)


def test_columns_bring_their_rules() -> None:
    found = columns(
        "{name: a, logicalType: integer, required: true, logicalTypeOptions: {minimum: 0, exclusiveMaximum: 9}}"
    )
    assert [rule.name for rule in found.rules] == [
        "a is an integer", "a present", "a >= 0", "a < 9", "share of bad rows",
    ]  # fmt: skip
    assert {rule.severity for rule in found.rules[:-1]} == {Severity.QUARANTINE}


def test_a_primary_key_is_ordered_by_its_positions_and_judged_on_the_table() -> None:
    found = columns(
        "{name: a, primaryKey: true, primaryKeyPosition: 2}",
        "{name: b, primaryKey: true, primaryKeyPosition: 1}",
    )
    assert found.key == ("b", "a")
    assert next(r for r in found.rules if r.kind == "unique").scope is Scope.TABLE


def test_severity_of_a_column_covers_its_rules() -> None:
    found = columns("{name: a, required: true, customProperties: [{property: severity, value: warn}]}")
    assert found.rules[0].severity is Severity.WARN


def test_relationships_name_the_tables_they_need() -> None:
    found = columns("{name: a, relationships: [{to: other.id}]}", "{name: b, relationships: [{to: t.a}]}")
    assert found.references() == {"other"}


def test_the_digest_follows_the_content_not_the_layout() -> None:
    one = columns("{name: a, logicalType: integer}")
    same = contract("    properties:\n      # a comment\n      - name: a\n        logicalType: integer\n")
    other = columns("{name: a, logicalType: number}")
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{name: a, requird: true}"], r"t.odcs.yaml:9: schema\[0\].properties\[0\].requird: unknown key.*`required`"),
        (["{name: a, logicalType: int}"], "unknown logicalType.*did you mean `integer`"),
        (["{name: a}", "{name: A}"], "column given twice"),
        (["{name: a, required: yes please}"], "not true or false"),
        (["{name: a, logicalType: number, logicalTypeOptions: {minimum: x}}"], "not a number"),
        (["{name: a, logicalTypeOptions: {pattern: '('}}"], "not a regular expression"),
        (["{name: a, logicalTypeOptions: {minmum: 1}}"], "did you mean `minimum`"),
        (["{name: a, logicalType: date, logicalTypeOptions: {format: QQ}}"], "date format that is not understood"),
        (["{name: a, quality: [{metric: nulValues}]}"], "did you mean `nullValues`"),
        (["{name: a, quality: [{metric: invalidValues}]}"], "what is valid"),
        (["{name: a, quality: [{type: sql, query: SELECT 1}]}"], "what must the query give"),
        (["{name: a, quality: [{type: custom, engine: loopwrite, implementation: x}]}"], "of which engine"),
        (["{name: a, quality: [{metric: nullValues, mustBe: 0, mustBeLessThan: 3}]}"], "two limits"),
        (["{name: a, quality: [{metric: nullValues, mustBeBetween: 3}]}"], "not a limit"),
        (["{name: a, relationships: [{to: nowhere}]}"], "not a relationship"),
        (["{name: a, customProperties: [{property: severty, value: warn}]}"], "did you mean `severity`"),
        (["{name: a, customProperties: [{property: severity, value: fatal}]}"], "unknown severity"),
        (
            ["{name: a, quality: [{metric: nullValues, mustBeLessThan: 3, " + SEVERE + "}]}"],
            "names no row to set aside",
        ),
    ],
)  # fmt: skip
def test_a_contract_that_is_not_understood_says_where(lines: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        columns(*lines)
    assert str(caught.value).startswith("t.odcs.yaml:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: DataContract\nschema: []\n", "not an ODCS 3 contract"),
        ("apiVersion: v3.1.0\nkind: Contract\n", "not a data contract"),
        ("apiVersion: v3.1.0\nkind: DataContract\nschema: []\n", "wanted one table"),
        (HEAD, "the table has no columns"),
        ("schema: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_contract_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.odcs.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        Contract.load(path)


def test_a_missing_contract_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        Contract.load(tmp_path / "c.odcs.yaml")


def test_foreign_custom_properties_are_left_alone() -> None:
    assert (
        columns("{name: a, customProperties: [{property: dataSteward, value: Ada}]}").columns[0].name == "a"
    )


@pytest.mark.parametrize(
    ("limit", "measured", "rows", "holds"),
    [
        (Limit("==", 0), 0, 10, True),
        (Limit("<", 5, percent=True), 4, 100, True),
        (Limit("<", 5, percent=True), 5, 100, False),
        (Limit("between", 1, 3), 3, 10, True),
        (Limit("not between", 1, 3), 3, 10, False),
        (Limit(">=", 10), 9, 9, False),
        (Limit("!=", 0), 1, 9, True),
        (Limit(">", 1), 1, 9, False),
        (Limit("<=", 1), 1, 9, True),
    ],
)
def test_limits_hold_as_they_read(limit: Limit, measured: float, rows: int, holds: bool) -> None:
    assert limit.holds(measured, rows) is holds
