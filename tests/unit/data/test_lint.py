from pathlib import Path

import pytest

from loopwright.data.contract import Contract
from loopwright.data.lint.findings import Finding, lint_file, lint_text
from loopwright.data.lint.rules import backtracks
from loopwright.kernel.errors import NotFound

HEAD = """apiVersion: v3.1.0
kind: DataContract
id: t
version: 1.0.0
team: {members: [{username: ada, role: Owner}]}
schema:
  - name: t
    description: Things
"""


def lint(*columns: str, more: str = "", key: bool = True) -> list[Finding]:
    lines = ["{name: id, description: d, logicalType: integer, primaryKey: true}"] if key else []
    lines += columns
    body = "    properties:\n" + "".join(f"      - {line}\n" for line in lines)
    return lint_text(HEAD + body + more, "t.yaml")


def told(findings: list[Finding], level: str) -> str:
    return " · ".join(f"{one.what}. {one.next}" for one in findings if one.level == level)


def column(options: str = "", quality: str = "", type_: str = "number") -> str:
    parts = ["name: a", "description: d", f"logicalType: {type_}"]
    parts += [f"logicalTypeOptions: {{{options}}}"] if options else []
    parts += [f"quality: [{{{quality}}}]"] if quality else []
    return "{" + ", ".join(parts) + "}"


def condition(sql: str) -> str:
    return f'    quality: [{{type: custom, engine: loopwright, implementation: "{sql}"}}]\n'


def query(sql: str, must: str = "mustBe: 0") -> str:
    return f'    quality: [{{type: sql, query: "{sql}", {must}}}]\n'


def test_a_contract_in_order_has_nothing_said_about_it() -> None:
    assert lint(column("minimum: 0, maximum: 9")) == []


@pytest.mark.parametrize(
    ("columns", "more", "said"),
    [
        ([column("minimum: 5, maximum: 4")], "", "no value of a can keep both “a >= 5” and “a <= 4”"),
        ([column("minimum: 5, exclusiveMaximum: 5")], "", "can keep both"),
        ([column("minLength: 5, maxLength: 4", type_="string")], "", "can keep both"),
        ([column(quality="metric: nullValues, mustBeLessThan: 0, unit: percent")], "", "always fails"),
        (
            [column(quality="metric: duplicateValues, mustBeGreaterThan: 100, unit: percent")],
            "",
            "always fails",
        ),
        ([], condition("idd > 0"), "names `idd`, which is no column of t. did you mean `id`?"),
        ([], condition("id >"), "is no SQL condition"),
        ([], condition("id > 0) OR (1 = 1"), "is no SQL condition"),
        ([], condition("id > 0; DROP TABLE t"), "is no SQL condition"),
        ([], condition("sum(id) > 3"), "a condition is about one row"),
        ([], condition("1 = 2"), "does not depend on the row"),
        ([], query("DELETE FROM t"), "is no query"),
        ([], query("SELECT count(*) FROM others"), "reads others, to which no relationship points"),
        ([], query("SELECT 1, 2 FROM {object}"), "gives 2 columns"),
        (["{name: a, logicalTyp: integer}"], "", "unknown key; got logicalTyp"),
        (["{name: a, logicalType: int}"], "", "unknown logicalType; got int, wanted one of"),
    ],
)
def test_what_cannot_be_judged_or_kept_is_an_error(columns: list[str], more: str, said: str) -> None:
    found = lint(*columns, more=more)
    assert said in told(found, "error")


@pytest.mark.parametrize(
    ("columns", "more", "said"),
    [
        ([column(quality="metric: nullValues, mustBeLessOrEqualTo: 100, unit: percent")], "", "can never fail"),
        ([], "    quality: [{metric: rowCount, mustBeGreaterOrEqualTo: 0}]\n", "can never fail"),
        ([], condition("1 = 1"), "can never fail"),
        ([column("pattern: '^(a+)+$'", type_="string")], "", "exponential time"),
        ([column(quality="metric: invalidValues, arguments: {validValues: [yes, 007]}", type_="string")], "",
         "YAML reads a bool here (True), and a holds texts"),
        ([column("maximum: 3", "metric: invalidValues, arguments: {validValues: [2, 4]}")], "",
         "4 is listed as valid for a, and refused by “a <= 3”"),
        ([column("pattern: '^x'", "metric: invalidValues, arguments: {validValues: [xa, b]}", "string")], "",
         "'b' is listed as valid for a"),
        ([column("minimum: 0", "type: custom, engine: loopwright, implementation: a > 0, mustBeLessThan: 9")], "",
         "put it into `implementation`"),
        (["{name: a, description: d, required: true, quality: [{metric: nullValues, mustBe: 0, name: full}]}"], "",
         "“full” says the same as “a present”"),
        ([column(quality="type: custom, engine: soda, implementation: x")], "", "not judged: a rule of soda"),
        (["{name: a, description: d, relationships: [{to: b.c, description: x}]}"], "", "no `description` of a rel"),
        ([], "support: [{url: http://x}]\n", "the standard wants `channel` here"),
        ([], "slaProperties: [{property: freshness, value: 1, unit: d}]\n", "freshness of no column"),
        ([column(quality="type: custom, engine: loopwright, implementation: {metric: outlier, threshold: 1}")], "",
         "takes many good values for outliers"),
        ([], "    relationships: [{from: id, to: other.id}]\n", "the standard wants table.column, not `id`"),
        ([], query("SELEC count(*) FROM {object}"), "is no SQL that DuckDB reads"),
    ],
)  # fmt: skip
def test_what_is_doubtful_is_a_warning(columns: list[str], more: str, said: str) -> None:
    found = lint(*columns, more=more)
    assert said in told(found, "warning")
    assert told(found, "error") == ""


@pytest.mark.parametrize(
    "sql",
    ["id IS NULL OR id > 0", "ID > 0", "a.b = 1", "list_contains(list_transform(l, x -> x + 1), 3)",
     "id IN (SELECT x FROM other)", "extract(hour FROM at AT TIME ZONE 'America/New_York') = id",
     "try_cast(s AS BIGINT) % 2 = 0"],
)  # fmt: skip
def test_conditions_over_columns_there_are_pass(sql: str) -> None:
    found = lint(
        "{name: a, description: d, logicalType: object, properties: [{name: b, logicalType: integer}]}",
        "{name: l, description: d, logicalType: array, items: {logicalType: integer}}",
        "{name: at, description: d, logicalType: timestamp}",
        "{name: s, description: d}",
        more=condition(sql),
    )
    assert found == []


def test_what_is_left_out_is_noted() -> None:
    text = "".join(line for line in HEAD.splitlines(True) if "Things" not in line and "ada" not in line)
    found = lint_text(text + "    properties: [{name: a, physicalName: A_1}]\n", "t.yaml")
    assert "t has no key" in told(found, "warning")
    assert "t has no owner" in told(found, "warning")
    assert "t has no description" in told(found, "note")
    assert "1 of 1 columns have no description: a" in told(found, "note")
    assert "looked for as a, not as A_1" in told(found, "note")


def test_errors_come_first_and_name_their_lines() -> None:
    found = lint(column("minimum: 5, maximum: 4"), key=False)
    assert [one.level for one in found][:1] == ["error"]
    assert found[0].where.startswith("t.yaml:10: schema[0].properties[0].logicalTypeOptions")


def test_several_tables_are_linted_each() -> None:
    text = HEAD + "    properties: [{name: a}]\n  - name: u\n    properties: [{name: b, logicalType: x}]\n"
    found = lint_text(text, "t.yaml")
    assert "unknown logicalType" in told(found, "error")
    assert "t has no key" in told(found, "warning")


def test_a_version_that_does_not_say_what_changed_is_warned_about() -> None:
    key = "{name: id, description: d, logicalType: integer, primaryKey: true}"
    body = f"    properties: [{key}, {{name: a, description: d%s}}]\n"
    old = Contract.parse(HEAD + body % "")
    found = lint_text(HEAD + body % ", required: true", "t.yaml", against=old)
    assert "a breaking change wants version 2.0.0 at least" in told(found, "warning")
    assert lint_text(HEAD.replace("1.0.0", "2.0.0") + body % ", required: true", "t.yaml", against=old) == []


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        lint_file(tmp_path / "none.yaml")


@pytest.mark.parametrize("pattern", ["(a+)+", "(a*)*b", "(.*)*x", "([a-z]+[0-9]*)+$", "((x+)y?)+", "(a|b+)+"])
def test_patterns_that_take_forever(pattern: str) -> None:
    assert backtracks(pattern)


@pytest.mark.parametrize(
    "pattern", ["^a+$", "(,[a-z]+)*", "(ab){2,5}", "[a-z]+@[a-z]+", r"^(\.[0-9]+){0,3}$", "("]
)
def test_patterns_that_do_not(pattern: str) -> None:
    assert not backtracks(pattern)
