"""`relationships`: foreign keys, on a column or (composite) on the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from loopwright.data.odcs import words
from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.shape import Path
from loopwright.data.terms import Rule, Scope, Severity


def add_relationships(draft: Draft, owner: Mapping[str, Any], path: Path, name: str = "") -> None:
    """The rules of an element's relationships; `name` is the column's dotted path, "" for the table."""
    for i, entry in enumerate(owner.get("relationships", ())):
        _add(draft, entry, (*path, "relationships", i), name)


def _add(draft: Draft, entry: Mapping[str, Any], at: Path, name: str) -> None:
    if entry.get("type", "foreignKey") != "foreignKey":
        raise draft.fail("unknown relationship", (*at, "type"), entry["type"], "foreignKey")
    if name and "from" in entry:
        raise draft.fail(
            "a column's relationship has no `from`", (*at, "from"), entry["from"], next="Leave it out"
        )
    mine = (name,) if name else tuple(_own(draft, text, (*at, "from")) for text in entry.get("from", ()))
    found = [_target(draft, text, (*at, "to")) for text in entry.get("to", ())]
    if not mine or len(mine) != len(found) or len({table for table, _ in found}) != 1:
        raise draft.fail(
            "not a relationship",
            (*at, "to"),
            entry.get("to"),
            "table.column, one for each column of `from`, of one table",
        )
    table, columns = found[0][0], tuple(column for _, column in found)
    ours = draft.ours(entry, at, "relationship")
    severity = draft.severity(ours, at, Severity.QUARANTINE)
    if severity is Severity.BLOCK:
        raise draft.fail("a relationship cannot block", at, wanted="severity: warn or quarantine")
    rule = Rule(
        f"{', '.join(mine)} in {table}.{', '.join(columns)}",
        "relationship",
        mine,
        severity,
        Scope.ROW,
        {"table": table, "columns": columns},
        description=entry.get("description") or str(ours.get("description", "")),
    )
    draft.add(rule, at)


def _own(draft: Draft, text: str, path: Path) -> str:
    if "/" in text:
        table, column = _target(draft, text, path)
        if table != draft.name:
            raise draft.fail("`from` is of another table", path, text, f"a column of {draft.name}")
        return draft.known(column, path)
    return draft.known(text, path)


def _target(draft: Draft, text: str, path: Path) -> tuple[str, str]:
    """(table, dotted path) of a reference, ids read as the names they stand for in this document."""
    try:
        table, names, by_id = words.reference(text)
    except ValueError:
        raise draft.fail(
            "not a relationship", path, text, "table.column, or schema/TABLE/properties/COLUMN (by ids)"
        ) from None
    entry = next(
        (
            one
            for one in draft.tables
            if table in (one.get("id") if by_id else one.get("name"), one.get("name"))
        ),
        None,
    )
    if entry is None or ".yaml#" in text or ".yml#" in text:
        return table, ".".join(names)  # in another contract: ids are taken to be the names
    found: list[str] = []
    properties: Sequence[Mapping[str, Any]] = entry.get("properties", ())
    for name in names:
        part = next(
            (
                one
                for one in properties
                if name in ((one.get("id"),) if by_id else ()) or name == one.get("name")
            ),
            None,
        )
        if part is None:
            known = ", ".join(str(one.get("id" if by_id else "name", one.get("name"))) for one in properties)
            raise draft.fail(f"{entry.get('name')} has no such column", path, name, f"one of {known}")
        found.append(str(part.get("name", name)))
        properties = part.get("properties", ()) or part.get("items", {}).get("properties", ())
    return str(entry.get("name", table)), ".".join(found)
