"""Reads one table of a contract into `Terms`."""

from collections.abc import Mapping
from typing import Any

from loopwright.data.document import Document
from loopwright.data.odcs import words
from loopwright.data.odcs.columns import add_column_rules, read_columns
from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.quality import add_quality
from loopwright.data.odcs.relations import add_relationships
from loopwright.data.odcs.shape import Path, plain, shaped
from loopwright.data.odcs.values import check_number
from loopwright.data.source import NULLS
from loopwright.data.terms import Limit, Rule, Scope, ServiceLevel, Severity, Terms
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, did_you_mean


def table_names(document: Document) -> list[str]:
    """Names of the tables that a contract holds, in their order. Raises BadInput as `parse_terms` does."""
    return [str(entry.get("name")) for entry in _tables(document)[1]]


def parse_terms(document: Document, table: str | None = None) -> Terms:
    """Parse the (only, or the named) table of a contract document; raises BadInput naming line and key.

    The name may be left out, or be another, when there is one table.
    """
    top, tables = _tables(document)
    names = [entry.get("name") for entry in tables]
    if len(tables) == 1:
        index = 0
    elif table in names:
        index = names.index(table)
    else:
        raise BadInput(
            "wanted one table",
            where=document.where(("schema",)),
            got=", ".join(map(str, names)) or "none",
            wanted="one entry" if table is None else f"an entry named {table}",
            next=did_you_mean(table, map(str, names)) if table else "Name it: FILE#TABLE",
        )
    return _Reading(document, top, tables, index).terms()


def _tables(document: Document) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole document, every key known, and its tables."""
    value = document.value
    version, kind = value.get("apiVersion"), value.get("kind")
    if not str(version).startswith("v3."):
        raise BadInput("not an ODCS 3 contract", where=document.where(("apiVersion",)), got=version,
                       wanted="apiVersion: v3.1.0", next="Mend the contract")  # fmt: skip
    if kind != "DataContract":
        raise BadInput("not a data contract", where=document.where(("kind",)), got=kind,
                       wanted="kind: DataContract", next="Mend the contract")  # fmt: skip
    top = shaped(document)
    tables = top.get("schema", [])
    seen: set[str] = set()
    for i, entry in enumerate(tables):
        name = entry.get("name", "")
        if not name.strip() or name in seen:
            raise BadInput("table given twice" if name.strip() else "missing or not text",
                           where=document.where(("schema", i, "name")), got=name or None,
                           wanted="a name of its own", next="Mend the contract")  # fmt: skip
        seen.add(name)
    return top, tables


class _Reading:
    def __init__(
        self, document: Document, top: dict[str, Any], tables: list[dict[str, Any]], index: int
    ) -> None:
        self.top = top
        self.entry = tables[index]
        self.path: Path = ("schema", index)
        self.draft = Draft(document, tables, self.entry["name"])
        overall = self.draft.ours(top, (), "contract")
        self.ours = overall | self.draft.ours(self.entry, self.path, "table")

    def terms(self) -> Terms:
        draft, entry, path, ours = self.draft, self.entry, self.path, self.ours
        properties = entry.get("properties", [])
        if not properties:
            raise draft.fail(
                "the table has no columns", (*path, "properties"), wanted="at least one property"
            )
        columns = read_columns(draft, properties, (*path, "properties"))
        draft.columns = {column.name: column for column in columns}
        key = self.key(properties)
        for i, prop in enumerate(properties):
            column = draft.columns.get(prop["name"])
            if column is not None and prop.get("semanticType") != "measure":
                at = (*path, "properties", i)
                add_column_rules(draft, prop, column, at, column.name, is_key=column.name in key)
        if key:
            severity = draft.severity(ours, path, Severity.QUARANTINE)
            scope = draft.scope(ours, path, Scope.TABLE)
            draft.add(Rule(f"{', '.join(key)} unique", "unique", key, severity, scope, {}), path)
        add_quality(draft, entry, path)
        add_relationships(draft, entry, path)
        share = check_number(
            draft, ours.get("maxBadShare", 0.5), (*path, "customProperties"), least=0, most=1
        )
        limit = Limit("<=", 100 * share, percent=True)
        draft.add(Rule("share of bad rows", "bad rows", (), Severity.BLOCK, Scope.BATCH, {}, limit), path)
        event_time = self.own_column("eventTime", ("timestamp", "date"))
        sla = self.service_levels(event_time)
        loading = self.loading(key)
        top = self.top
        return Terms(
            name=draft.name,
            version=top.get("version", ""),
            columns=columns,
            key=key,
            rules=tuple(draft.rules),
            loading=loading,
            nulls=self.nulls(),
            digest=self.digest(),
            source=draft.document.source,
            version_column=self.own_column("versionColumn", ()),
            event_time=event_time,
            id=top.get("id", ""),
            title=top.get("name", ""),
            status=top.get("status", ""),
            description=entry.get("description") or top.get("description", {}).get("purpose", ""),
            owner=self.owner(),
            producers=_names(ours.get("producers")),
            consumers=_names(ours.get("consumers")),
            sla=sla,
            max_bad_share=share,
            unchecked=tuple(draft.unchecked),
            document=plain(draft.document.value),
        )

    def key(self, properties: list[dict[str, Any]]) -> tuple[str, ...]:
        """The columns of the primary key, by their positions; those without one come after, as they stand."""
        found = []
        for i, prop in enumerate(properties):
            if prop.get("primaryKey") and prop["name"] in self.draft.columns:
                position = prop.get("primaryKeyPosition", -1)
                found.append((position if position > 0 else 10_000 + i, i, prop["name"]))
        return tuple(name for _, _, name in sorted(found))

    def digest(self) -> str:
        """Of all that decides over rows: the table's entry, and what the contract's head adds to it."""
        head = {key: self.top[key] for key in ("slaProperties", "slaDefaultElement") if key in self.top}
        ours = {
            name: self.ours[name]
            for name in ("load", "versionColumn", "eventTime", "nullValues", "maxBadShare")
            if name in self.ours and name not in self.draft.ours(self.entry, self.path, "table")
        }
        entry = plain(self.draft.document.value["schema"][self.path[1]])
        return digest_json([entry, plain(head), plain(ours)] if head or ours else entry)

    def loading(self, key: tuple[str, ...]) -> Any:
        loading = self.ours.get("load", "append")
        at = (*self.path, "customProperties")
        if loading not in ("append", "full", "upsert"):
            raise self.draft.fail("unknown way to load", at, loading, "load: append, full or upsert")
        if loading == "upsert" and not key:
            raise self.draft.fail(
                "an upsert needs a key", at, wanted="primaryKey: true on the columns that name a row"
            )
        return loading

    def nulls(self) -> tuple[str, ...]:
        given = self.ours.get("nullValues", list(NULLS))
        if not isinstance(given, list) or any(isinstance(one, dict | list) for one in given):
            at = (*self.path, "customProperties")
            raise self.draft.fail("not a list", at, given, "nullValues: a list of texts")
        return tuple(str(one) for one in given if one is not None)

    def own_column(self, name: str, types: tuple[str, ...]) -> str | None:
        """The column that one of our properties names."""
        if name not in self.ours:
            return None
        at = (*self.path, "customProperties")
        found = self.draft.known(str(self.ours[name]), at)
        column = self.draft.columns.get(found)
        if column is None or (types and column.type not in types):
            type_ = column.type if column else "a part of another"
            raise self.draft.fail(
                f"no {name}", at, f"{found}: {type_}", f"a column of type {' or '.join(types) or 'its own'}"
            )
        return found

    def owner(self) -> str:
        """Ours, or the team's member whose role is owner, or the team."""
        if "owner" in self.ours:
            return ", ".join(_names(self.ours["owner"]))
        team = self.top.get("team", [])
        members = team if isinstance(team, list) else team.get("members", [])
        owners = [m for m in members if "owner" in m.get("role", "").lower() and "dateOut" not in m]
        if owners:
            return str(owners[0].get("name") or owners[0].get("username", ""))
        return "" if isinstance(team, list) else str(team.get("name", ""))

    def service_levels(self, event_time: str | None) -> tuple[ServiceLevel, ...]:
        """Those of this table; a freshness becomes a rule, a mild one unless it says `severity: block`."""
        found = []
        default = self.top.get("slaDefaultElement", "")
        for i, entry in enumerate(self.top.get("slaProperties", ())):
            at: Path = ("slaProperties", i)
            elements = [part.strip() for part in entry.get("element", default).split(",") if part.strip()]
            columns = tuple(c for c in map(self.element, elements) if c is not None)
            if elements and not columns:
                continue  # of another table
            unit = entry.get("unit", "")
            seconds = words.seconds(entry.get("value"), unit)
            level = ServiceLevel(
                entry.get("property", ""), entry.get("value"), unit, tuple(c for c in columns if c),
                entry.get("driver", ""), entry.get("description", ""), seconds,
            )  # fmt: skip
            found.append(level)
            if level.property.lower() in ("freshness", "fr"):
                self.freshness(entry, level, event_time, at)
        return tuple(found)

    def element(self, text: str) -> str | None:
        """The column that a service level names, "" for the table as a whole, None when it is another table's."""
        first, _, rest = text.partition(".")
        own = self.draft.own_names()
        if text in own:
            return ""
        physical = {
            str(prop.get("physicalName")): str(prop["name"]) for prop in self.entry.get("properties", ())
        }
        name = rest if first in own and rest else text
        name = physical.get(name, name)
        return name if name in self.draft.columns else None

    def freshness(
        self, entry: Mapping[str, Any], level: ServiceLevel, event_time: str | None, at: Path
    ) -> None:
        draft = self.draft
        if level.seconds is None:
            raise draft.fail(
                "not a duration", (*at, "value"), f"{level.value} {level.unit}".strip(), "6 with unit: h"
            )
        moments = [c for c in level.columns if draft.columns[c].type in ("timestamp", "date")]
        columns = moments or ([event_time] if event_time else [])
        if not columns:
            draft.leave(at, "freshness of no column: name a timestamp in `element`, or set eventTime")
            return
        severity = draft.severity(draft.ours(entry, at, "sla"), at, Severity.WARN)
        if severity is Severity.QUARANTINE:
            raise draft.fail("freshness names no row to set aside", at, wanted="severity: warn or block")
        for column in columns:
            name = f"{column} fresh within {level.value} {level.unit}".rstrip()
            limit = Limit("<=", level.seconds)
            draft.add(
                Rule(name, "freshness", (column,), severity, Scope.BATCH, {}, limit, level.description), at
            )


def _names(value: Any) -> tuple[str, ...]:
    """Texts of a name, a list of names, or of things that have one."""
    found = []
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        name = (
            next((one[k] for k in ("name", "username", "email", "id") if k in one), "")
            if isinstance(one, dict)
            else one
        )
        if str(name).strip():
            found.append(str(name))
    return tuple(found)
