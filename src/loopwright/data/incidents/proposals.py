"""Which rules would have caught a failure earlier, or would let its rows in if they are right: as contract YAML. Pure.

Bounds are those of the last good delivery with room around them, or what the failing rows hold: a person decides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

ROOM = 2.0
"""A count may double or halve against the last good delivery before a proposed rule says no."""
LARGEST = 20


@dataclass(frozen=True, slots=True)
class Proposal:
    """`where`: the part of the contract (the table, or a column's name) that `yaml` is to be put under."""

    title: str
    where: str
    yaml: str

    def to_json(self) -> dict[str, str]:
        return {"title": self.title, "where": self.where, "yaml": self.yaml}


def propose(triage: Mapping[str, Any]) -> list[Proposal]:
    """Rules for the contract, the likeliest first; empty when what is known suggests none."""
    found = [*_count(triage), *_nulls(triage)]
    for rule in triage.get("rules", ()):
        values = triage.get("rows", {}).get("values", {}).get(rule["name"])
        found += _of_rule(rule, values) if values else []
    found += _fresh(triage) + _upstream(triage) + _bad_share(triage)
    return list({(one.where, one.yaml): one for one in found}.values())


def _count(triage: Mapping[str, Any]) -> list[Proposal]:
    """Rows fewer or more than usual."""
    good, came = (triage.get("last_good") or {}).get("rows") or 0, triage.get("rows", {}).get("input") or 0
    if not good or not came or 1 / ROOM <= came / good <= ROOM:
        return []
    least, most = max(1, math.floor(good / ROOM)), math.ceil(good * ROOM)
    return [_table("a delivery has about as many rows as the last good one",
                   {"metric": "rowCount", "mustBeBetween": [least, most]}, "block")]  # fmt: skip


def _nulls(triage: Mapping[str, Any]) -> list[Proposal]:
    """A column that has lost its values."""
    found = []
    for name, (then, now) in (triage.get("nulls") or {}).items():
        if now <= then:
            continue
        limit = max(1.0, round(100 * then * ROOM, 1))
        rule = {"metric": "nullValues", "unit": "percent", "mustBeLessOrEqualTo": limit}
        found.append(_column(name, f"`{name}` is null in {limit:g} % of the rows at most", rule, "block"))
    return found


def _of_rule(rule: Mapping[str, Any], values: Mapping[str, Any]) -> list[Proposal]:
    """What would let the failing rows in, if they are right."""
    column, kind, arguments = str(values["column"]), rule.get("kind"), rule.get("arguments") or {}
    most = [one["value"] for one in values.get("most", ()) if one["value"] is not None]
    low, high = values.get("minimum"), values.get("maximum")
    if kind == "range" and low is not None and high is not None:
        bound = {"maximum": high} if "<" in str(arguments.get("op")) else {"minimum": low}
        return [_option(column, f"if these values of `{column}` are right: a wider range", bound)]
    if kind == "enum" and most:
        known = list(arguments.get("validValues", ()))
        body = {"enum": [{"value": one} for one in [*known, *(v for v in most[:LARGEST] if v not in known)]]}
        return [Proposal(f"if these values of `{column}` are right: let them in", column,
                         yaml.safe_dump(body, sort_keys=False, allow_unicode=True))]  # fmt: skip
    return []


def _fresh(triage: Mapping[str, Any]) -> list[Proposal]:
    if triage.get("kind") != "unreadable":
        return []
    body = {
        "slaProperties": [{"property": "freshness", "value": 24, "unit": "h", "element": "TABLE.EVENT_TIME"}]
    }
    return [Proposal("say how old the data may be, so that silence is told too", "the contract",
                     yaml.safe_dump(body, sort_keys=False))]  # fmt: skip


def _upstream(triage: Mapping[str, Any]) -> list[Proposal]:
    return [
        Proposal(
            f"say how old `{one['table']}` may be: rows point to what it lacks",
            f"the contract of {one['table']}",
            yaml.safe_dump({"slaProperties": [{"property": "freshness", "value": 24, "unit": "h",
                                               "element": f"{one['table']}.EVENT_TIME"}]}, sort_keys=False),
        )
        for one in triage.get("upstream", ())
    ]  # fmt: skip


def _bad_share(triage: Mapping[str, Any]) -> list[Proposal]:
    """Many rows were set aside and nothing stopped the delivery."""
    rows = triage.get("rows", {})
    if triage.get("kind") != "quarantine" or not rows.get("input"):
        return []
    share = rows["bad"] / rows["input"]
    limit = round(max(0.01, share / ROOM), 3)
    body = yaml.safe_dump(
        {"customProperties": [{"property": "maxBadShare", "value": limit}]}, sort_keys=False
    )
    return [Proposal(f"refuse a delivery of which more than {limit:.1%} is bad", "the table", body)]


def _table(title: str, rule: dict[str, Any], severity: str) -> Proposal:
    return Proposal(title, "the table", _quality(rule, severity))


def _column(name: str, title: str, rule: dict[str, Any], severity: str) -> Proposal:
    return Proposal(title, name, _quality(rule, severity))


def _option(name: str, title: str, options: dict[str, Any]) -> Proposal:
    return Proposal(title, name, yaml.safe_dump({"logicalTypeOptions": options}, sort_keys=False))


def _quality(rule: dict[str, Any], severity: str) -> str:
    entry = {"type": "library", **rule, "customProperties": [{"property": "severity", "value": severity}]}
    return str(yaml.safe_dump({"quality": [entry]}, sort_keys=False, allow_unicode=True))
