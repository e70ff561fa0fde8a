"""What is being read: the rules so far, how errors are worded, and the custom properties that are ours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loopwright.data.document import Document
from loopwright.data.odcs.shape import Path
from loopwright.data.terms import Column, Rule, Scope, Severity, find_column
from loopwright.kernel.errors import BadInput, did_you_mean

_TABLE = (
    "load",
    "versionColumn",
    "eventTime",
    "nullValues",
    "maxBadShare",
    "owner",
    "producers",
    "consumers",
)
_OURS = {
    "contract": _TABLE,
    "table": (*_TABLE, "severity", "scope"),
    "column": ("severity", "scope", "optional"),
    "quality": ("severity", "scope"),
    "relationship": ("severity", "description"),
    "sla": ("severity",),
}
_ALIASES = {"producer": "producers", "consumer": "consumers"}
_MILD = ("warn", "warning", "info", "information", "informational", "notice")


@dataclass
class Draft:
    """One table of a document on its way to `Terms`. `unchecked`: what was read and is not judged, with the reason."""

    document: Document
    tables: list[dict[str, Any]]
    name: str
    columns: dict[str, Column] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def fail(
        self,
        what: str,
        path: Path,
        got: object = None,
        wanted: str = "",
        next: str = "Mend the contract",
    ) -> BadInput:
        return BadInput(what, where=self.document.where(path), got=got, wanted=wanted, next=next)

    def leave(self, path: Path, why: str) -> None:
        """Note a promise that is read and not judged."""
        self.unchecked.append(f"{self.document.where(path)}: {why}")

    def add(self, rule: Rule, path: Path) -> None:
        """Keep a rule; the same promise said twice, as `unique` on the only column of the key, is kept once."""
        same = [known for known in self.rules if known.name == rule.name]
        if any(
            (rule.kind, rule.columns, rule.arguments, rule.limit, rule.severity, rule.scope)
            == (known.kind, known.columns, known.arguments, known.limit, known.severity, known.scope)
            for known in same
        ):
            return
        name = rule.name
        while any(known.name == name for known in self.rules):
            name = f"{rule.name} ({len(self.rules)})" if name == rule.name else f"{name}'"
        self.rules.append(replace(rule, name=name, where=self.document.where(path)))

    def known(self, name: str, path: Path) -> str:
        """`name` (maybe dotted) if it is a column of this table, written with or without the table's own name."""
        table, _, rest = name.partition(".")
        for candidate in (name, rest if table in self.own_names() else ""):
            if candidate and find_column(self.columns.values(), candidate) is not None:
                return candidate
        raise self.fail(
            "no such column",
            path,
            name,
            f"one of {', '.join(list(self.columns)[:30])}",
            did_you_mean(name, self.columns) or "Mend it",
        )

    def own_names(self) -> set[str]:
        """What this table may be called in a reference."""
        entry = next(table for table in self.tables if table.get("name") == self.name)
        return {str(entry[key]) for key in ("name", "id", "physicalName") if key in entry}

    def ours(self, owner: Mapping[str, Any], path: Path, kind: str) -> dict[str, Any]:
        """Our custom properties as a mapping. A name next to one of ours is an error; foreign ones are kept out."""
        found: dict[str, Any] = {}
        for i, entry in enumerate(owner.get("customProperties", ())):
            name = _ALIASES.get(entry.get("property", ""), entry.get("property", ""))
            at = (*path, "customProperties", i)
            if name in _OURS[kind]:
                if name in found and kind != "relationship":
                    raise self.fail("custom property given twice", at, name, next="Keep one of the two")
                if entry.get("value") is not None:
                    found[name] = entry["value"]
            elif "vendor" not in entry and (near := _misspelt(name, _OURS[kind])):
                raise self.fail("unknown custom property", (*at, "property"), name, next=near)
        return found

    def severity(self, ours: Mapping[str, Any], path: Path, default: Severity, theirs: str = "") -> Severity:
        """Ours, or what the standard's own `severity` says about mildness."""
        if "severity" not in ours:
            return Severity.WARN if theirs.strip().lower() in _MILD else default
        text = ours["severity"]
        if text not in list(Severity):
            raise self.fail(
                "unknown severity",
                (*path, "customProperties"),
                text,
                "warn, quarantine or block",
                did_you_mean(str(text), list(Severity)) or "Mend it",
            )
        return Severity(text)

    def scope(self, ours: Mapping[str, Any], path: Path, default: Scope) -> Scope:
        """Where uniqueness is judged: on the table as landed, or within a delivery; other rules have no choice."""
        text = ours.get("scope", default.value)
        allowed = (Scope.TABLE, Scope.BATCH) if default is Scope.TABLE else (default,)
        if text not in allowed:
            raise self.fail(
                "this rule cannot be judged so",
                (*path, "customProperties"),
                f"scope: {text}",
                " or ".join(f"scope: {one.value}" for one in allowed),
            )
        return Scope(text)


def _misspelt(name: str, known: Iterable[str]) -> str:
    """`did_you_mean`, for names that can hardly be another tool's own: a letter or two off."""
    near = did_you_mean(name, known)
    meant = near.partition("`")[2].partition("`")[0]
    return (
        near if near and abs(len(meant) - len(name)) <= 2 and _apart(name.lower(), meant.lower()) <= 2 else ""
    )


def _apart(one: str, other: str) -> int:
    """Letters to insert, drop or change to make one of the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
