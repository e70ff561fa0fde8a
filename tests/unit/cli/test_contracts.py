"""data contract …: files are linted, compared, inferred without a home; what tables were judged by is in one."""

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import Type

SUITE = Path(__file__).parents[1] / "data" / "expectations" / "suite_1x.json"
CONTRACT = """apiVersion: v3.1.0
kind: DataContract
id: shop/orders
version: 1.0.0
description: {purpose: What was ordered}
team: {members: [{username: ada, role: Owner}]}
schema:
  - name: orders
    properties:
      - {name: id, description: number, logicalType: integer, primaryKey: true}
      - {name: amount, description: euros, logicalType: number, logicalTypeOptions: {minimum: 0}}
"""
LOOP = """
model: shop
task: regression
owner: ops@example.com
data:
  sources:
    orders: {uri: orders.csv, contract: orders.odcs.yaml, event_time: id}
  label: {name: amount, available_after: 1h}
features: features.py
train: {entry: "train.py:train"}
"""


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "orders.odcs.yaml"
    path.write_text(CONTRACT)
    return path


def other(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    found = path.with_name("new.odcs.yaml")
    found.write_text(text)
    return found


def test_linting_says_nothing_about_what_is_in_order_and_needs_no_home(
    loopwright: Type, contract: Path
) -> None:
    answer = loopwright("data", "contract", "lint", str(contract))
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "0 errors, 0 warnings, 0 notes")
    assert not (contract.parent / "home").exists()


def test_linting_fails_on_errors_and_strictly_on_warnings(loopwright: Type, contract: Path) -> None:
    broken = other(contract, ("logicalType: number", "logicalTyp: number"))
    answer = loopwright("data", "contract", "lint", str(contract), str(broken), "--json")
    assert answer.code == 1
    (found,) = json.loads(answer.out)[1]["findings"]
    assert found["where"].endswith("new.odcs.yaml:11: schema[0].properties[1].logicalTyp")
    assert found["next"] == "did you mean `logicalType`?"
    mild = other(contract, (", primaryKey: true", ""))
    assert loopwright("data", "contract", "lint", str(mild)).code == 0
    assert loopwright("data", "contract", "lint", str(mild), "--strict").code == 1
    assert loopwright("data", "contract", "lint", str(contract.with_name("none.yaml"))).code == 2


def test_linting_against_an_older_contract_looks_at_the_version(loopwright: Type, contract: Path) -> None:
    new = other(contract, ("minimum: 0", "minimum: 1"))
    answer = loopwright("data", "contract", "lint", str(new), "--against", str(contract))
    assert "a breaking change wants version 2.0.0 at least, it has 1.0.0" in answer.out


def test_a_diff_tells_what_breaks_and_for_whom(loopwright: Type, contract: Path) -> None:
    new = other(contract, ("minimum: 0", "minimum: 1"))
    answer = loopwright("data", "contract", "diff", str(contract), str(new))
    assert answer.code == 1
    assert "orders 1.0.0 → 1.0.0: breaking" in answer.out
    assert "breaking: amount: amount >= 1: asks more than “amount >= 0” (for producers)" in answer.out
    looser = other(contract, ("minimum: 0", "minimum: -1"), ("version: 1.0.0", "version: 1.1.0"))
    answer = loopwright("data", "contract", "diff", str(contract), str(looser), "--json")
    assert answer.code == 0
    assert [(one["kind"], one["advised"], one["warning"]) for one in json.loads(answer.out)] == [
        ("compatible", "minor", "")
    ]


def test_a_diff_of_files_with_several_tables_goes_table_by_table(loopwright: Type, contract: Path) -> None:
    more = other(contract, ("schema:\n", "schema:\n  - name: lines\n    properties: [{name: id}]\n"))
    answer = loopwright("data", "contract", "diff", str(contract), str(more))
    assert (answer.code, "lines: compatible" in answer.out, "the table is new" in answer.out) == (
        0,
        True,
        True,
    )
    answer = loopwright("data", "contract", "diff", str(more), str(contract))
    assert (answer.code, "the table is gone" in answer.out) == (1, True)
    one = loopwright("data", "contract", "diff", f"{more}#orders", str(contract))
    assert (one.code, one.out) == (0, "orders 1.0.0 → 1.0.0: same\n")


def test_inferring_writes_a_contract_that_lints(loopwright: Type, tmp_path: Path) -> None:
    rows = "".join(f"{i},{'ab'[i % 2]},{i}.5\n" for i in range(100))
    (tmp_path / "My Orders.csv").write_text("id,kind,amount\n" + rows)
    out = tmp_path / "c.odcs.yaml"
    source = str(tmp_path / "My Orders.csv")
    assert loopwright("data", "contract", "infer", source, "--suggest", "--out", str(out)).code == 0
    written = yaml.safe_load(out.read_text())["schema"][0]
    assert written["name"] == "my_orders"
    assert written["properties"][0] == {
        "name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1,
    }  # fmt: skip
    assert written["properties"][1]["quality"][0]["arguments"] == {"validValues": ["a", "b"]}
    assert "logicalTypeOptions" not in written["properties"][2]
    assert loopwright("data", "contract", "lint", str(out)).code == 0
    again = loopwright("data", "contract", "infer", source, "--out", str(out))
    assert (again.code, "is there already" in again.err) == (1, True)
    shown = loopwright("data", "contract", "infer", source, "--ranges").out
    assert "# every value is another: a candidate for primaryKey: true" in shown
    assert "# 2 values, a candidate for a list of valid ones: a, b" in shown
    assert yaml.safe_load(shown)["schema"][0]["properties"][2]["logicalTypeOptions"] == {
        "minimum": 0.5, "maximum": 99.5,
    }  # fmt: skip
    assert loopwright("data", "contract", "infer", source, "--key", "nr").code == 2


def test_a_suite_comes_in_and_goes_out(loopwright: Type, tmp_path: Path) -> None:
    out, suite = tmp_path / "t.odcs.yaml", tmp_path / "suite.json"
    answer = loopwright("data", "contract", "import-ge", str(SUITE), "--out", str(out))
    assert answer.code == 1  # not every expectation has a rule
    assert "40 expectations mapped, 5 not" in answer.err
    assert (
        "not mapped: 41. expect_column_values_to_be_increasing of id: rows of a table have no order"
        in answer.err
    )
    assert loopwright("data", "contract", "lint", str(out)).code == 0
    answer = loopwright("data", "contract", "export-ge", str(out), "--out", str(suite))
    assert "left out: share of bad rows (it sets no rows aside)" in answer.err
    assert len(json.loads(suite.read_text())["expectations"]) == 50


def test_types_for_a_suite_come_from_rows(loopwright: Type, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,spare,more\n1,,x\n2,,y\n")
    answer = loopwright(
        "data", "contract", "import-ge", str(SUITE), "--data", str(tmp_path / "a.csv"), "--json"
    )
    types = {
        p["name"]: p["logicalType"] for p in json.loads(answer.out)["contract"]["schema"][0]["properties"]
    }
    assert (types["id"], types["more"], types["delay"]) == ("integer", "string", "number")


def test_a_contract_is_shown_from_its_file(loopwright: Type, contract: Path) -> None:
    answer = loopwright("data", "contract", "show", str(contract))
    assert "owner           ada" in answer.out
    assert "amount >= 0" in answer.out
    assert yaml.safe_load(
        loopwright("data", "contract", "show", str(contract), "--yaml").out
    ) == yaml.safe_load(CONTRACT)


def test_what_a_table_was_judged_by_is_kept_listed_and_compared(
    loopwright: Type, contract: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop.yaml").write_text(LOOP)
    (tmp_path / "orders.csv").write_text("id,amount\n1,5\n2,7\n")
    for name in ("features.py", "train.py"):
        (tmp_path / name).write_text("")
    assert loopwright("data", "snapshot", str(tmp_path)).code == 0
    contract.write_text(CONTRACT.replace("minimum: 0", "minimum: -1").replace("1.0.0", "1.1.0"))
    assert loopwright("data", "snapshot", str(tmp_path)).code == 0
    listed = json.loads(loopwright("data", "contract", "list", "--json").out)
    assert [(one["number"], one["version"], one["change"]) for one in listed] == [
        (1, "1.0.0", "first"), (2, "1.1.0", "compatible"),
    ]  # fmt: skip
    assert "amount >= 0" in loopwright("data", "contract", "show", "shop/orders@1").out
    assert "amount >= -1" in loopwright("data", "contract", "show", "shop/orders").out
    answer = loopwright("data", "contract", "diff", "shop/orders")
    assert (answer.code, "1.0.0 → 1.1.0: compatible" in answer.out) == (0, True)
    back = loopwright("data", "contract", "diff", "shop/orders@2", "shop/orders@1")
    assert (back.code, "breaking" in back.out) == (1, True)
    tight = other(contract, ("minimum: -1", "minimum: 3"))
    assert loopwright("data", "contract", "diff", "shop/orders", str(tight)).code == 1
    missing = loopwright("data", "contract", "show", "shop/order")
    assert (missing.code, "did you mean `orders`?" in missing.err) == (2, True)
    assert loopwright("data", "contract", "show", "shop").code == 2
