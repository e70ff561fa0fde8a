"""A contract of the whole standard, judged: every rule that it writes finds the rows that it means."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from loopwright.data.check import check
from loopwright.data.contract import Contract

TEXT = """apiVersion: v3.1.0
kind: DataContract
id: t
version: 1.0.0
schema:
  - name: t
    properties:
      - {name: id, logicalType: integer, primaryKey: true}
      - {name: at, logicalType: timestamp}
      - name: v
        logicalType: number
        quality:
          - {name: mean, type: custom, engine: loopwright, implementation: {metric: mean, mustBeLessThan: 9}}
          - {name: stddev, type: custom, engine: loopwright, implementation: {metric: stddev, mustBeLessThan: 9}}
          - {name: median, type: custom, engine: loopwright, implementation: {metric: quantile, q: 0.5, mustBe: 1}}
          - {name: outlier, type: custom, engine: loopwright, implementation: {metric: outlier, method: iqr}}
          - {name: distinct, type: custom, engine: loopwright, implementation: {metric: distinct, mustBeLessThan: 9}}
          - {name: sum, type: custom, engine: loopwright, implementation: {metric: sum, mustBeLessThan: 99}}
          - {name: few, type: custom, engine: loopwright, unit: percent, implementation: {condition: v < 2, mustBe: 0}}
          - {name: nulls, metric: nullValues, mustBeLessThan: 5, unit: percent}
      - name: s
        logicalType: string
        enum: [{value: a}]
        quality:
          - name: share
            type: custom
            engine: loopwright
            implementation: {metric: categoryShare, value: a, mustBe: 100}
      - name: o
        logicalType: object
        logicalTypeOptions: {required: [zip]}
        properties:
          - {name: zip, logicalType: string, logicalTypeOptions: {pattern: "^[0-9]{5}$"}}
          - {name: lat, logicalType: number, logicalTypeOptions: {maximum: 90}}
      - name: tags
        logicalType: array
        logicalTypeOptions: {minItems: 1, maxItems: 2, uniqueItems: true}
        items: {logicalType: string, logicalTypeOptions: {minLength: 1}}
      - name: lines
        logicalType: array
        items:
          logicalType: object
          properties:
            - {name: w, logicalType: number, required: true, logicalTypeOptions: {exclusiveMinimum: 0}}
slaProperties: [{property: freshness, value: 1, unit: d, element: t.at}]
"""
GOOD: dict[str, Any] = {
    "at": datetime(2024, 1, 1, tzinfo=UTC), "v": 1.0, "s": "a", "o": {"zip": "12345", "lat": 1.0},
    "tags": ["x", "y"], "lines": [{"w": 1.0}],
}  # fmt: skip


def broken(**changes: Any) -> set[str]:
    """Rules that twenty rows break, the third of them changed."""
    rows = [{"id": i, **GOOD, **(changes if i == 2 else {})} for i in range(20)]
    report = check(pa.Table.from_pylist(rows), Contract.parse(TEXT))
    assert [rule.why for rule in report.rules if rule.state == "ERROR"] == []
    return {rule.name for rule in report.rules if rule.state in ("FAIL", "WARN")}


STALE = {"at fresh within 1 d"}  # the rows are of 2024


def test_good_rows_break_nothing_but_the_clock() -> None:
    assert broken() == STALE


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"v": 900.0}, {"mean", "stddev", "outlier", "sum", "few"}),
        ({"v": None}, {"nulls"}),
        ({"s": "b"}, {"s valid", "share"}),
        ({"o": {"zip": None, "lat": 91.0}}, {"o.zip present", "o.lat <= 90"}),
        ({"o": {"zip": "1234", "lat": None}}, {"o.zip matches ^[0-9]{5}$"}),
        ({"o": None}, set()),
        ({"tags": []}, {"tags items >= 1"}),
        ({"tags": ["a", "b", "c"]}, {"tags items <= 2"}),
        ({"tags": ["a", "a"]}, {"tags holds nothing twice"}),
        ({"tags": ["", "a"]}, {"tags[] length >= 1"}),
        ({"lines": [{"w": 1.0}, {"w": 0.0}]}, {"lines[].w > 0"}),
        ({"lines": [{"w": None}]}, {"lines[].w present"}),
        ({"lines": None}, set()),
        ({"id": 3}, {"id unique"}),
        ({"id": None}, {"id present"}),
    ],
)
def test_a_row_that_breaks_a_promise_breaks_that_rule(changes: dict[str, Any], rules: set[str]) -> None:
    assert broken(**changes) == rules | STALE
