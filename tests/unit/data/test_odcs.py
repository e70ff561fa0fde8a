"""The standard as its makers publish it: what their model and schema allow is read here, or refused with its place."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from open_data_contract_standard import model as standard

from loopwright.data.contract import Contract, Limit, Rule, Scope, Severity
from loopwright.data.lint.findings import lint_text
from loopwright.data.odcs import words
from loopwright.data.odcs.shape import PARTS
from loopwright.kernel.errors import BadInput, NotFound

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.yaml"))
EXAMPLES = sorted((Path(__file__).parents[3] / "src/loopwright/examples").rglob("*.odcs.yaml"))
HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: t\nversion: 1.0.0\nstatus: active\nschema:\n  - name: t\n"


def columns(*lines: str, more: str = "", table: str | None = None) -> Contract:
    text = HEAD + "    properties:\n" + "".join(f"      - {line}\n" for line in lines) + more
    return Contract.parse(text, "t.odcs.yaml", table)


def rules(*lines: str, more: str = "") -> dict[str, Rule]:
    return {rule.name: rule for rule in columns(*lines, more=more).rules}


def measure(implementation: str, more: str = "", type_: str = "integer") -> Rule:
    line = f"{{name: a, logicalType: {type_}, quality: [{{type: custom, engine: loopwright, "
    found = rules(line + f"implementation: {{{implementation}}}{', ' + more if more else ''}}}]}}")
    return next(rule for rule in found.values() if rule.kind not in ("type", "bad rows"))


def place(path: Path) -> str:
    return path.name


# The files of the corpus pass `datacontract lint` (datacontract-cli 1.2.8).
@pytest.mark.parametrize("path", [*CORPUS, *EXAMPLES], ids=place)
def test_contracts_that_other_tools_take_are_taken(path: Path) -> None:
    standard.OpenDataContractStandard.from_file(str(path))
    if path.name == "empty.odcs.yaml":
        with pytest.raises(BadInput, match="wanted one table; got none"):
            Contract.load(path)
        return
    for contract in Contract.load_all(path):
        assert contract.columns
        assert Contract.from_json(contract.document, "json", contract.name).rules == contract.rules
        assert Contract.from_json(contract.document, "json", contract.name).digest == contract.digest


@pytest.mark.parametrize("path", [*CORPUS, *EXAMPLES], ids=place)
def test_linting_them_finds_no_error(path: Path) -> None:
    assert [one for one in lint_text(path.read_text(), path.name) if one.level == "error"] == []


def schema_keys() -> set[tuple[str, str]]:
    """(definition, key) of every property that the standard's JSON Schema names outside of servers."""
    schema = json.loads((files("open_data_contract_standard") / "schema.json").read_text())
    found = {("contract", key) for key in schema["properties"]}
    for name, definition in schema["$defs"].items():
        found |= {(name, key) for key in definition.get("properties", {})}
    for server in schema["$defs"]["ServerSource"].values():
        found |= {("Server", key) for key in server.get("properties", {})}
    operators = schema["$defs"]["DataQualityOperators"]["oneOf"]
    found |= {("DataQuality", key) for one in operators for key in one["properties"]}
    return found


OURS = {
    "contract": "contract", "Server": "server", "SchemaElement": "column", "SchemaObject": "table",
    "SchemaBaseProperty": "column", "SchemaItemProperty": "item", "DataQuality": "quality",
    "DataQualityLibrary": "quality", "DataQualitySql": "quality", "DataQualityCustom": "quality",
    "SupportItem": "support", "Pricing": "price", "TeamMember": "member", "Team": "team", "Role": "role",
    "ServiceLevelAgreementProperty": "sla", "EnumValue": "enum", "Synonym": "synonym", "CustomProperty": "custom",
    "RelationshipBase": "relationship",
}  # fmt: skip


@pytest.mark.parametrize(("definition", "key"), sorted(schema_keys()))
def test_every_key_of_the_standard_is_known(definition: str, key: str) -> None:
    assert key in PARTS[OURS[definition]]


def test_nested_columns_are_columns_and_bring_their_rules() -> None:
    contract = Contract.load(CORPUS[[p.name for p in CORPUS].index("everything.odcs.yaml")], "orders")
    ship = contract.column("ship_to")
    assert ship is not None
    assert [field.name for field in ship.fields] == ["street", "zip", "geo"]
    assert contract.column("ship_to.geo.lat").type == "number"  # type: ignore[union-attr]
    assert contract.column("parcels[].codes[]").type == "integer"  # type: ignore[union-attr]
    assert contract.column("parcels[].colour") is None
    names = {rule.name: rule for rule in contract.rules}
    assert names["ship_to.geo.lat >= -90"].columns == ("ship_to.geo.lat",)
    assert names["ship_to.street present"].kind == "required"
    assert names["parcels[].weight present"].columns == ("parcels[].weight",)
    assert names["tags[] length >= 1"].kind == "minLength"
    assert names["tags items <= 10"].kind == "maxItems"
    assert [rule.columns for rule in contract.rules if rule.kind == "type" and "ship_to" in rule.name] == [
        ("ship_to",)
    ]


def test_everything_said_beside_the_columns_is_kept() -> None:
    path = CORPUS[[p.name for p in CORPUS].index("everything.odcs.yaml")]
    with pytest.raises(NotFound, match="no such table in the contract; got order,"):
        Contract.load(path.with_name(f"{path.name}#order"))
    contract = Contract.load(path.with_name(f"{path.name}#orders"))
    assert (contract.owner, contract.producers, contract.consumers) == (
        "Ada", ("shop-backend",), ("forecast", "reporting"),
    )  # fmt: skip
    assert (contract.loading, contract.version_column, contract.event_time) == (
        "upsert",
        "changed_at",
        "ordered_at",
    )
    assert contract.key == ("order_id", "line")
    levels = {level.property: level for level in contract.sla}
    assert levels["retention"].seconds == 3 * 365 * 86_400
    assert levels["freshness"].columns == ("ordered_at",)
    assert any("soda" in said for said in contract.unchecked)
    fresh = next(rule for rule in contract.rules if rule.kind == "freshness")
    assert (fresh.limit, fresh.severity, fresh.columns) == (
        Limit("<=", 6 * 3600),
        Severity.WARN,
        ("ordered_at",),
    )
    relation = next(rule for rule in contract.rules if rule.kind == "relationship" and len(rule.columns) == 1)
    assert relation.arguments == {"table": "customers", "columns": ("id",)}
    assert contract.references() == {"customers", "accounts"}


def test_a_file_of_several_tables_must_say_which() -> None:
    path = next(p for p in CORPUS if p.name == "everything.odcs.yaml")
    with pytest.raises(BadInput, match=r"wanted one table; got orders, customers.*FILE#TABLE"):
        Contract.load(path)
    with pytest.raises(BadInput, match="did you mean `customers`"):
        Contract.load(path, "customer")
    assert Contract.load(path, "customers").name == "customers"


@pytest.mark.parametrize(
    ("implementation", "more", "kind", "arguments", "limit"),
    [
        ("metric: mean, mustBeBetween: [1, 2]", "", "mean", {}, Limit("between", 1, 2)),
        ("metric: stddev, mustBeLessThan: 2", "", "stddev", {}, Limit("<", 2)),
        ("metric: quantile, q: 0.95, mustBeLessThan: 2", "", "quantile", {"q": 0.95}, Limit("<", 2)),
        ("metric: categoryShare, value: '7', mustBeLessThan: 5", "", "category_share", {"value": 7},
         Limit("<", 5, percent=True)),
        ("metric: categoryShare, value: 7, mustBeLessThan: 5", "unit: rows", "category_share", {"value": 7},
         Limit("<", 5)),
        ("metric: outlier", "", "outlier", {"method": "robust_z", "threshold": 5.0}, Limit("==", 0)),
        ("metric: outlier, method: iqr, threshold: 2, mustBeLessThan: 1", "unit: percent", "outlier",
         {"method": "iqr", "threshold": 2.0}, Limit("<", 1, percent=True)),
        ("metric: drift, mustBeLessThan: 0.2", "", "drift", {"metric": "psi", "snapshot": "previous"},
         Limit("<", 0.2)),
        ("metric: drift, distance: ks, against: '012345ab', mustBeLessThan: 0.2", "", "drift",
         {"metric": "ks", "snapshot": "012345ab"}, Limit("<", 0.2)),
        ("metric: distinct, mustBeGreaterThan: 1", "", "distinct", {}, Limit(">", 1)),
        ("condition: a < 3, mustBeLessThan: 2", "unit: percent", "condition", {"condition": "a < 3"},
         Limit("<", 2, percent=True)),
    ],
)  # fmt: skip
def test_measures_of_our_own(
    implementation: str, more: str, kind: str, arguments: dict[str, Any], limit: Limit
) -> None:
    found = measure(implementation, more)
    assert (found.kind, dict(found.arguments), found.limit) == (kind, arguments, limit)


def test_freshness_counts_in_any_unit_of_time() -> None:
    found = measure("metric: freshness, mustBeLessThan: 2", "unit: days", "timestamp")
    assert found.limit == Limit("<", 2 * 86_400)


@pytest.mark.parametrize(
    ("line", "kind", "scope", "limit"),
    [
        ("metric: nullValues", "required", Scope.ROW, Limit("==", 0)),
        (
            "metric: nullValues, mustBeLessThan: 5, unit: percent",
            "nulls",
            Scope.BATCH,
            Limit("<", 5, percent=True),
        ),
        ("metric: duplicateValues, mustBe: 0", "unique", Scope.TABLE, Limit("==", 0)),
        ("metric: duplicateValues, mustBeLessThan: 5", "duplicates", Scope.BATCH, Limit("<", 5)),
        ("metric: missingValues, mustBe: 0", "missing", Scope.ROW, Limit("==", 0)),
        (
            "metric: invalidValues, arguments: {validValues: [a]}, mustBeLessThan: 5",
            "enum",
            Scope.ROW,
            Limit("<", 5),
        ),
        ("rule: duplicateCount, mustBe: 0", "unique", Scope.TABLE, Limit("==", 0)),
        ("rule: validValues, validValues: [a]", "enum", Scope.ROW, Limit("==", 0)),
    ],
)
def test_metrics_of_the_library(line: str, kind: str, scope: Scope, limit: Limit) -> None:
    found = next(r for r in columns(f"{{name: a, quality: [{{{line}}}]}}").rules if r.kind != "bad rows")
    assert (found.kind, found.scope, found.limit) == (kind, scope, limit)


def test_what_the_standard_calls_a_warning_is_one() -> None:
    found = columns("{name: a, quality: [{metric: nullValues, mustBe: 0, severity: warning}]}").rules[0]
    assert found.severity is Severity.WARN


def test_a_key_may_come_again_in_another_delivery_where_the_contract_says_so() -> None:
    scope = "customProperties: [{property: scope, value: batch}]"
    assert columns("{name: a, unique: true, " + scope + "}").rules[0].scope is Scope.BATCH
    with pytest.raises(BadInput, match="cannot be judged so; got scope: batch, wanted scope: row"):
        columns("{name: a, quality: [{metric: nullValues, mustBe: 0, " + scope + "}]}")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("logicalType: integer", ["1", 2]),
        ("logicalType: string", [1, "b"]),
        ("logicalType: boolean", [True, "false"]),
    ],
)
def test_valid_values_are_read_in_the_columns_type(column: str, values: list[Any]) -> None:
    line = yaml.safe_dump(values, default_flow_style=True).strip()
    found = columns(
        f"{{name: a, {column}, quality: [{{metric: invalidValues, arguments: {{validValues: {line}}}}}]}}"
    )
    types = {type(v) for rule in found.rules if rule.kind == "enum" for v in rule.arguments["validValues"]}
    assert len(types) == 1


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("{name: a, logicalType: timestamp, logicalTypeOptions: {minimum: 2020-01-02}}", "a >= 2020-01-02",
         "2020-01-02 00:00:00"),
        ("{name: a, logicalType: timestamp, logicalTypeOptions: {minimum: 2020-07-01, defaultTimezone: Europe/Berlin}}",
         "a >= 2020-07-01", "2020-07-01 00:00:00+02:00"),
        ("{name: a, logicalType: date, logicalTypeOptions: {minimum: 31.12.2019, format: dd.MM.yyyy}}",
         "a >= 31.12.2019", "2019-12-31"),
        ("{name: a, logicalType: time, logicalTypeOptions: {minimum: '06:30'}}", "a >= 06:30", "06:30:00"),
        ("{name: a, logicalType: integer, logicalTypeOptions: {format: u8}}", "a is of format u8: <= 255", 255),
        ("{name: a, logicalType: string, logicalTypeOptions: {format: ipv4}}", "a is of format ipv4",
         words.STRING_FORMATS["ipv4"]),
    ],
)  # fmt: skip
def test_bounds_and_formats_are_read_in_the_columns_type(line: str, name: str, value: Any) -> None:
    assert rules(line)[name].arguments["value"] == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "%Y-%m-%dT%H:%M:%S.%g%z"),
        ("dd.MM.yy", "%d.%m.%y"),
        ("d/M/yyyy h:mm a", "%-d/%-m/%Y %-I:%M %p"),
        ("EEE, dd MMM yyyy", "%a, %d %b %Y"),
        ("yyyy'Y'", "%YY"),
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("QQ yyyy", None),
        ("yyyy-MM-dd'T", None),
    ],
)
def test_date_formats_in_the_standards_letters(text: str, found: str | None) -> None:
    assert words.strptime(text) == found


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [(1, "d", 86_400), (6, "hours", 21_600), ("2", "m", 120), ("P1DT6H", "", 108_000), (1, "M", None),
     ("soon", "d", None), (True, "d", None), (1, "furlong", None), (1, "mo", 30 * 86_400)],
)  # fmt: skip
def test_durations(value: Any, unit: str, seconds: float | None) -> None:
    assert words.seconds(value, unit) == seconds


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{name: a, logicalType: integer, logicalTypeOptions: {pattern: x}}", "`pattern` says nothing about"),
        ("{name: a, logicalType: object, properties: [{name: b, logicalTyp: x}]}", r"properties\[0\].logicalTyp: unk"),
        ("{name: a, logicalType: object, properties: [{name: b}, {name: B}]}", "column given twice"),
        ("{name: on}", "not text; got True, wanted text. Write it in quotes"),
        ("{name: a, primaryKeyPosition: first}", "not a whole number"),
        ("{name: a, logicalTypeOptions: {pattern: '(?=a)'}}", "look-around"),
        ("{name: a, logicalTypeOptions: {maxLength: -1}}", "out of range"),
        ("{name: a, logicalType: timestamp, logicalTypeOptions: {minimum: soon}}", "not a timestamp"),
        ("{name: a, logicalType: timestamp, logicalTypeOptions: {defaultTimezone: Europe/Berln}}", "`Europe/Berlin`"),
        ("{name: a, relationships: [{from: t.a, to: b.c}]}", "has no `from`"),
        ("{name: a, relationships: [{to: schema/x}]}", "not a relationship"),
        ("{name: a, relationships: [{to: t.b}]}", "t has no such column"),
        ("{name: a, quality: [{metric: nullValues, mustBeBetween: [5, 1]}]}", "the smaller number first"),
        ("{name: a, quality: [{metric: nullValues, unit: furlongs, mustBe: 1}]}", "unknown unit"),
        ("{name: a, quality: [{metric: invalidValues, arguments: {validValues: [null]}}]}", "no value is valid"),
        ("{name: a, logicalType: integer, quality: [{metric: invalidValues, arguments: {validValues: [x]}}]}",
         "no value that a column of type integer can have"),
        ("{name: a, examples: [.nan], quality: [{metric: nullValues, mustBeLessThan: .nan}]}", "not a limit"),
        ("{name: a, customProperties: [{property: scope, value: row}], unique: true}", "cannot be judged so"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(line: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        columns(line)
    assert str(caught.value).startswith("t.odcs.yaml:9: schema[0].properties[0]")


@pytest.mark.parametrize(
    ("implementation", "said"),
    [
        ("metric: meen, mustBe: 1", "did you mean `mean`"),
        ("metric: mean", "what must the mean be"),
        ("metric: mean, mustBe: 1, q: 2", "unknown key"),
        ("metric: quantile, q: 2, mustBe: 1", "not a number in range; got 2, wanted a number from 0 to 1"),
        ("metric: drift, against: last, mustBe: 1", "drift from what"),
        ("metric: outlier, method: z", "unknown method"),
        ("condition: a < 3, mustBee: 2", "unknown key"),
        ("metric: freshness, mustBeLessThan: 1", "freshness is of a moment"),
    ],
)
def test_measures_that_are_not_understood(implementation: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        measure(implementation)


def test_an_upsert_needs_a_key() -> None:
    with pytest.raises(BadInput, match="an upsert needs a key"):
        columns("{name: a}", more="    customProperties: [{property: load, value: upsert}]\n")


def test_the_digest_follows_what_the_head_adds() -> None:
    text = HEAD + "    properties: [{name: a, logicalType: timestamp}]\n"
    plain = Contract.parse(text)
    level = Contract.parse(text + "slaProperties: [{property: freshness, value: 1, unit: d, element: a}]\n")
    renamed = Contract.parse(text + "domain: sales\n")
    assert plain.digest == renamed.digest != level.digest


TEXT = st.text("ab.c[]/ ({'\"%é\n", max_size=6) | st.sampled_from(
    ["a", "t.a", "h", "schema/t/properties/a", "v3.1.0"]
)
SCALAR = TEXT | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.dates().map(str)
ANY = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
                   max_leaves=4)  # fmt: skip
LOGICAL = st.sampled_from(
    [
        "string",
        "integer",
        "number",
        "boolean",
        "timestamp",
        "date",
        "time",
        "object",
        "array",
        "map",
        "vector",
    ]
)
CUSTOM = st.builds(
    standard.CustomProperty,
    property=TEXT | st.sampled_from(["severity", "scope", "optional", "load", "nullValues", "maxBadShare", "owner",
                                     "producers", "eventTime", "versionColumn"]),
    value=ANY | st.sampled_from(["warn", "quarantine", "block", "batch", "full", "upsert", "a"]),
)  # fmt: skip
CUSTOMS = st.none() | st.none() | st.lists(CUSTOM, max_size=1)
NUMBER = st.none() | st.integers(-5, 200) | st.floats(allow_nan=False)
IMPLEMENTATION = TEXT | st.fixed_dictionaries(
    {"metric": st.sampled_from(["mean", "quantile", "drift", "outlier", "categoryShare", "freshness", "x"])},
    optional={"q": ANY, "value": ANY, "against": ANY, "method": ANY, "threshold": ANY, "mustBeLessThan": ANY},
)
QUALITY = st.builds(
    standard.DataQuality,
    type=st.none() | st.sampled_from(["library", "sql", "text", "custom"]),
    metric=st.none() | st.sampled_from(["rowCount", "nullValues", "missingValues", "invalidValues", "duplicateValues"]),
    arguments=st.none() | st.dictionaries(
        st.sampled_from(["validValues", "missingValues", "pattern", "properties"]), ANY, max_size=2),
    query=st.none() | TEXT, engine=st.sampled_from(["loopwright", "soda", None]), implementation=IMPLEMENTATION,
    unit=st.sampled_from([None, "rows", "percent", "h"]), severity=st.none() | TEXT,
    mustBe=NUMBER | st.booleans(), mustBeLessThan=NUMBER,
    mustBeBetween=st.none() | st.lists(st.integers(-2, 2), min_size=2, max_size=2), customProperties=CUSTOMS,
)  # fmt: skip
RELATION = st.builds(
    standard.Relationship,
    **{"from": st.none() | TEXT | st.lists(TEXT, max_size=2)},
    to=st.none() | TEXT | st.lists(TEXT, max_size=2),
    type=st.none() | TEXT,
    customProperties=CUSTOMS,
)
RELATIONS = st.none() | st.none() | st.lists(RELATION, max_size=1)
NAME = st.sampled_from(["a", "b", "c.d", "e f", "Straße", "[]", "h"])
OPTIONS = st.none() | st.one_of(
    st.dictionaries(st.sampled_from(["minimum", "maximum", "exclusiveMinimum"]), NUMBER | SCALAR, max_size=2),
    st.dictionaries(
        st.sampled_from(["minLength", "maxItems", "multipleOf", "dimensions"]), st.integers(-1, 9), max_size=2
    ),
    st.fixed_dictionaries({"pattern": TEXT | st.sampled_from(["^a+$", "(a+)+", "(?=a)"])}),
    st.fixed_dictionaries({"format": TEXT | st.sampled_from(["email", "i8", "f32", "yyyy-MM-dd"])}),
    st.dictionaries(st.sampled_from(sorted(PARTS["options"])), ANY, max_size=1),
)


def properties(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        standard.SchemaProperty, name=NAME, logicalType=LOGICAL | st.none(), physicalType=TEXT,
        logicalTypeOptions=OPTIONS, required=st.booleans(), unique=st.booleans(), primaryKey=st.booleans(),
        primaryKeyPosition=st.none() | st.integers(-2, 3),
        quality=st.none() | st.lists(QUALITY, max_size=1), relationships=RELATIONS,
        customProperties=CUSTOMS, properties=st.none() | st.lists(inner, max_size=2), items=st.none() | inner,
    )  # fmt: skip


PROPERTY = properties(properties(st.builds(standard.SchemaProperty, name=NAME | TEXT, logicalType=LOGICAL)))
TABLE = st.builds(
    standard.SchemaObject, name=st.just("t") | TEXT, id=st.none() | TEXT,
    properties=st.lists(PROPERTY, min_size=1, max_size=3, unique_by=lambda one: one.name.lower()),
    quality=st.none() | st.lists(QUALITY, max_size=2), relationships=RELATIONS,
    customProperties=CUSTOMS,
)  # fmt: skip
LEVEL = st.builds(
    standard.ServiceLevelAgreementProperty, property=st.sampled_from(["freshness", "latency", None]),
    value=st.sampled_from([1, "P1D", "x", True, None]), unit=st.sampled_from(["h", "x", None]),
    element=st.none() | TEXT, customProperties=CUSTOMS,
)  # fmt: skip
CONTRACT = st.builds(
    standard.OpenDataContractStandard, apiVersion=st.just("v3.1.0"), kind=st.just("DataContract"), id=TEXT,
    version=st.none() | TEXT, schema=st.lists(TABLE, min_size=1, max_size=2),
    slaProperties=st.none() | st.lists(LEVEL, max_size=2), customProperties=CUSTOMS,
    team=st.none() | st.builds(standard.Team, name=TEXT, members=st.lists(
        st.builds(standard.TeamMember, username=TEXT, role=st.sampled_from(["Owner", None])), max_size=1)),
)  # fmt: skip


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None
)
@given(CONTRACT)
@example(standard.OpenDataContractStandard(apiVersion="v3.1.0", kind="DataContract"))
def test_what_the_model_allows_is_read_or_refused_with_its_place(
    model: standard.OpenDataContractStandard,
) -> None:
    text = model.to_yaml()
    refused, found = None, ()
    try:
        found = Contract.parse_all(text, "fuzz.yaml")
    except BadInput as error:
        refused = error
    assert refused is None or (refused.where.startswith("fuzz.yaml:") and refused.what)
    assert all(rule.name and rule.where.startswith("fuzz.yaml:") for one in found for rule in one.rules)
    assert all(one.column(name) for one in found for rule in one.rules for name in rule.columns)
    assert all(finding.where.startswith("fuzz.yaml:") for finding in lint_text(text, "fuzz.yaml"))
