"""Makes a contract of an expectation suite: each expectation becomes rules, or is listed with the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopwright.data.contract import Contract
from loopwright.data.expectations.effect import Effect, Unmapped
from loopwright.data.expectations.mapping import map_expectation
from loopwright.data.expectations.suite import Expectation, Suite
from loopwright.kernel.errors import BadInput


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of one expectation. `rules`: their names. `why`: the reason when there are none."""

    number: int
    type: str
    column: str
    rules: tuple[str, ...] = ()
    note: str = ""
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "type": self.type,
            "column": self.column,
            "rules": list(self.rules),
            "note": self.note,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Imported:
    """`document`: the contract (ODCS 3.1); None when no expectation names a column.

    `untyped`: columns whose type nothing tells; they are taken for text.
    """

    document: dict[str, Any] | None
    expectations: tuple[Brought, ...]
    untyped: tuple[str, ...] = ()

    @property
    def mapped(self) -> tuple[Brought, ...]:
        return tuple(one for one in self.expectations if not one.why)

    @property
    def unmapped(self) -> tuple[Brought, ...]:
        return tuple(one for one in self.expectations if one.why)


def import_suite(suite: Suite, *, table: str, onto: Mapping[str, Any] | None = None) -> Imported:
    """`onto`: a document whose columns (and their types) are to be kept, as `infer_contract` makes one."""
    document = _start(table, suite.name, onto)
    types = {
        prop["name"]: prop["logicalType"]
        for prop in document["schema"][0]["properties"]
        if "logicalType" in prop
    }
    effects: list[tuple[Expectation, Effect | str]] = []
    for one in suite.expectations:
        try:
            effect = map_expectation(one)
        except Unmapped as reason:
            effects.append((one, str(reason)))
            continue
        effects.append((one, effect))
        for column, type_ in effect.types.items():
            _meet(types, column, type_)
    found = [_bring(document, one, effect, types) for one, effect in effects]
    columns = document["schema"][0]["properties"]
    untyped = tuple(prop["name"] for prop in columns if prop["name"] not in types)
    return Imported(document if columns else None, tuple(found), untyped)


def _bring(
    document: dict[str, Any], one: Expectation, effect: Effect | str, types: Mapping[str, str]
) -> Brought:
    if isinstance(effect, str):
        return Brought(one.number, one.type, one.column, why=effect)
    # Judged alone first: an expectation that makes no valid rule must not spoil the others.
    try:
        alone = _start("t", "", None)
        _apply(alone, effect, types)
        if not alone["schema"][0]["properties"]:
            alone["schema"][0]["properties"] = [{"name": "_"}]
        rules = [rule.name for rule in Contract.from_json(alone).rules if rule.kind != "bad rows"]
    except BadInput as error:
        return Brought(one.number, one.type, one.column, why=error.what)
    note = effect.note
    taken = _apply(document, effect, types)
    if taken:
        note = note or f"{taken} was set before; the tighter one holds"
    return Brought(one.number, one.type, one.column, tuple(rules), note)


def _apply(document: dict[str, Any], effect: Effect, types: Mapping[str, str]) -> str:
    """Add the effect; returns the option that was there already, if any."""
    entry = document["schema"][0]
    for name in effect.columns:
        _property(entry, name, types)
    for name, keys in effect.properties.items():
        prop = _property(entry, name, types)
        custom = [*prop.get("customProperties", [])]
        custom += [one for one in keys.get("customProperties", []) if one not in custom]
        prop |= {**keys, **({"customProperties": custom} if custom else {})}
    taken = ""
    for name, options in effect.options.items():
        prop = _property(entry, name, types)
        held = prop.setdefault("logicalTypeOptions", {})
        for key, value in options.items():
            if key in held and held[key] != value:
                taken = key
                value = (min if "aximum" in key or key.startswith("max") else max)(held[key], value)
            held[key] = value
    for name, rule in effect.quality:
        owner = _property(entry, name, types) if name else entry
        if rule not in owner.setdefault("quality", []):
            owner["quality"].append(rule)
    return taken


def _property(entry: dict[str, Any], name: str, types: Mapping[str, str]) -> dict[str, Any]:
    found = next((prop for prop in entry["properties"] if prop["name"] == name), None)
    if found is None:
        found = {"name": name, "logicalType": types.get(name, "string")}
        entry["properties"].append(found)
    return found


def _meet(types: dict[str, str], column: str, type_: str) -> None:
    """Of two hints the one that is said outright (a type first seen) stays, but a number may be an integer."""
    known = types.get(column)
    if known is None or (known, type_) in (("integer", "number"), ("string", "timestamp")):
        types[column] = type_ if known is None or known == "string" else known


def _start(table: str, suite: str, onto: Mapping[str, Any] | None) -> dict[str, Any]:
    if onto is not None:
        return {**onto}
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": f"imported/{table}",
        "name": table,
        "version": "0.1.0",
        "status": "draft",
        "description": {"purpose": f"Brought over from the expectation suite {suite}"},
        "schema": [{"name": table, "logicalType": "object", "properties": []}],
    }
