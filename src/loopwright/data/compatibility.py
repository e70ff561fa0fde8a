"""Tells what changed between two versions of a contract, and for whom.

A contract binds both sides. What asks more of deliveries (a tighter rule, a new required column) breaks it for the
producers: rows that were good may be bad, those that have landed too. What gives readers less (a column gone, another
type or key) breaks it for the consumers. A change that only asks less, or only adds, is compatible; whom it concerns is
said all the same. Words, owners and service levels without a rule are neither.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loopwright.data.rule_changes import limits_compared, rules_compared
from loopwright.data.terms import NONE, Column, Rule, Scope, Severity, Terms

Kind = Literal["first", "same", "compatible", "breaking"]
Side = Literal["producers", "consumers"]
_ORDER = ("same", "compatible", "breaking")
_WIDER = {("integer", "number"), ("date", "timestamp")}


@dataclass(frozen=True, slots=True)
class Difference:
    """`where`: a column, or a part of the contract. `what`: in words. `concerns`: who should know.

    `landed`: whether rows that have landed may no longer be what the table promises.
    """

    where: str
    what: str
    kind: Kind
    concerns: tuple[Side, ...] = ()
    landed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "what": self.what,
            "kind": self.kind,
            "concerns": list(self.concerns),
            "landed": self.landed,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What a contract is to the one before it: `first` (there is none), `same` (in words only), compatible, breaking.

    `advised`: the part of a semantic version to raise. `warning`: what is wrong with the version it has; "" if nothing.
    """

    kind: Kind
    differences: tuple[Difference, ...] = ()
    advised: Literal["major", "minor", "patch", "none"] = "none"
    warning: str = ""

    @property
    def breaking(self) -> tuple[Difference, ...]:
        return tuple(one for one in self.differences if one.kind == "breaking")

    @property
    def landed(self) -> tuple[Difference, ...]:
        """The breaking differences that rows landed before may not stand; other ones are about deliveries to come."""
        return tuple(one for one in self.breaking if one.landed)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "differences": [one.to_json() for one in self.differences],
            "advised": self.advised,
            "warning": self.warning,
        }


def classify(old: Terms | None, new: Terms) -> Change:
    """Compare two contracts of one table; pure."""
    if old is None:
        return Change("first")
    found = [*_table(old, new), *_columns(old.columns, new.columns, ""), *_rules(old, new), *_words(old, new)]
    found.sort(key=lambda one: -_ORDER.index(one.kind))
    kind: Kind = found[0].kind if found else "same"
    advised: Literal["major", "minor", "patch", "none"] = "none"
    if found:
        advised = {"breaking": "major", "compatible": "minor", "same": "patch"}[kind]  # type: ignore[assignment]
    return Change(kind, tuple(found), advised, version_warning(old.version, new.version, advised))


def version_warning(old: str, new: str, advised: str) -> str:
    """What is wrong with going from version `old` to `new`, given what semantic versioning advises; "" if nothing."""
    before, after = _semantic(old), _semantic(new)
    if advised == "none":
        return ""
    if after is None or before is None:
        which = new if after is None else old
        return f"version {which or '(none)'} is no semantic version; say MAJOR.MINOR.PATCH"
    if after < before:
        return f"the version goes back from {old} to {new}"
    raised = next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), 3)
    # Before 1.0.0 the second number says what breaks.
    wanted = ("major", "minor", "patch").index(advised)
    if before[0] == 0:
        wanted = min(wanted + 1, 2)
    if raised <= wanted:
        return ""
    better = [*before[: wanted + 1], 0, 0][:3]
    better[wanted] += 1
    said = {"major": "a breaking change", "minor": "a compatible change", "patch": "a change in words"}[
        advised
    ]
    return f"{said} wants version {'.'.join(map(str, better))} at least, it has {new}"


def _semantic(text: str) -> tuple[int, int, int] | None:
    found = re.match(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?:[-+].*)?$", text.strip())
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _table(old: Terms, new: Terms) -> Iterator[Difference]:
    if old.name != new.name:
        what = f"the table is called {new.name}, was {old.name}"
        yield Difference("table", what, "breaking", ("consumers",))
    if old.key != new.key:
        was, now = ", ".join(old.key) or "none", ", ".join(new.key) or "none"
        if not old.key:
            yield Difference("key", f"rows are named by {now} now", "breaking", ("producers",), landed=True)
        else:
            what = f"what names a row is {now}, was {was}"
            yield Difference("key", what, "breaking", ("producers", "consumers"), landed=bool(new.key))
    if old.loading != new.loading:
        what = f"load is {new.loading}, was {old.loading}: the table holds other rows"
        yield Difference("load", what, "breaking", ("producers", "consumers"))
    if old.version_column != new.version_column:
        was, now = old.version_column or "arrival", new.version_column or "arrival"
        what = f"the later of two rows is told by {now}, was {was}"
        yield Difference("versionColumn", what, "breaking", ("producers",))
    if old.event_time != new.event_time:
        what = f"the event time is {new.event_time or 'none'}, was {old.event_time or 'none'}"
        if old.event_time is None:
            yield Difference("eventTime", what, "compatible", ("consumers",))
        else:
            yield Difference("eventTime", what, "breaking", ("consumers",))
    more, fewer = sorted(set(new.nulls) - set(old.nulls)), sorted(set(old.nulls) - set(new.nulls))
    if more:
        what = f"{_listed(more)} means null now: values are gone"
        yield Difference("nullValues", what, "breaking", ("producers", "consumers"), landed=True)
    if fewer:
        what = f"{_listed(fewer)} is a value now, no null"
        yield Difference("nullValues", what, "breaking", ("producers", "consumers"), landed=True)


def _columns(old: Sequence[Column], new: Sequence[Column], prefix: str) -> Iterator[Difference]:
    before = {column.name: column for column in old}
    after = {column.name: column for column in new}
    for name in before:
        if name not in after:
            yield Difference(prefix + name, "the column is gone", "breaking", ("consumers",))
    for name, column in after.items():
        where = prefix + name
        if name not in before:
            if column.required:
                what = "new and required: rows landed before, and deliveries as they are, have no value"
                yield Difference(where, what, "breaking", ("producers",), landed=True)
            elif column.optional or prefix:
                yield Difference(where, "new, and may be absent", "compatible", ("consumers",))
            else:
                what = "new; null in rows landed before, deliveries must bring it"
                yield Difference(where, what, "compatible", ("producers", "consumers"))
        else:
            yield from _column(before[name], column, where)


def _column(old: Column, new: Column, where: str) -> Iterator[Difference]:
    if old.type != new.type:
        change = f"{new.type}, was {old.type}"
        if (old.type, new.type) in _WIDER:
            yield Difference(where, f"the type is wider: {change}", "compatible", ("consumers",))
        elif (new.type, old.type) in _WIDER:
            what = f"the type is narrower: {change}"
            yield Difference(where, what, "breaking", ("producers",), landed=True)
        else:
            what = f"the type is another: {change}"
            yield Difference(where, what, "breaking", ("producers", "consumers"), landed=True)
        return
    if old.format != new.format:
        what = f"texts are read as {new.format or 'ISO 8601'}, were as {old.format or 'ISO 8601'}"
        yield Difference(where, what, "breaking", ("producers",))
    if old.timezone != new.timezone:
        what = f"times without a zone are of {new.timezone}, were of {old.timezone}: they are other moments"
        yield Difference(where, what, "breaking", ("producers", "consumers"), landed=True)
    if old.optional and not new.optional:
        yield Difference(where, "may no longer be absent", "breaking", ("producers",))
    if new.optional and not old.optional:
        yield Difference(where, "may be absent now", "compatible", ("consumers",))
    if old.fields and not new.fields:
        yield Difference(where, "its parts are no longer described", "breaking", ("consumers",))
    elif new.fields and not old.fields:
        yield Difference(where, "its parts are described now", "breaking", ("producers",), landed=True)
    else:
        yield from _columns(old.fields, new.fields, f"{where}.")
    if old.items is not None and new.items is not None:
        yield from _column(old.items, new.items, f"{where}[]")
    elif (old.items is None) != (new.items is None):
        kind: Kind = "compatible" if new.items is None else "breaking"
        what = f"its elements are {'described' if new.items else 'not described'} now"
        yield Difference(where, what, kind, ("consumers",) if new.items is None else ("producers",))


def _rules(old: Terms, new: Terms) -> Iterator[Difference]:
    # What a new column brings along is said by the column; the type and the key are compared above.
    known = {column.name for column in old.columns}
    gone = known - {column.name for column in new.columns}
    for before, after in rules_compared(
        [rule for rule in old.rules if not _said_elsewhere(rule, old, gone)],
        [rule for rule in new.rules if not _said_elsewhere(rule, new, {c.name for c in new.columns} - known)],
    ):
        yield from _rule(before, after)


def _said_elsewhere(rule: Rule, terms: Terms, columns: set[str]) -> bool:
    if rule.kind == "type" or (rule.kind == "unique" and rule.columns == terms.key):
        return True
    tops = {re.split(r"[.\[]", name)[0] for name in rule.columns} | set(rule.columns)
    return bool(rule.columns) and rule.kind == "required" and tops & columns != set()


def _rule(old: Rule | None, new: Rule | None) -> Iterator[Difference]:
    rule = new or old
    assert rule is not None
    where = ", ".join(rule.columns) or "table"
    if new is None:
        yield Difference(where, f"no longer promised: {rule.name}", "compatible", ("consumers",))
        return
    strict, landed = new.severity is not Severity.WARN, _about_rows(new)
    if old is None:
        if strict:
            yield Difference(where, f"newly promised: {rule.name}", "breaking", ("producers",), landed)
        else:
            yield Difference(where, f"newly watched: {rule.name}", "compatible", ("producers",))
        return
    order = list(Severity)
    if order.index(new.severity) > order.index(old.severity):
        what = f"{rule.name}: {new.severity.value}, was {old.severity.value}"
        yield Difference(where, what, "breaking", ("producers",), landed and old.severity is Severity.WARN)
    elif new.severity is not old.severity:
        what = f"{rule.name}: {new.severity.value}, was {old.severity.value}"
        yield Difference(where, what, "compatible", ("consumers",))
    verdict, what = limits_compared(old, new)
    if verdict == "tighter" or verdict == "other":
        kind: Kind = "breaking" if strict else "compatible"
        yield Difference(where, what, kind, ("producers",) if verdict == "tighter" else ("producers", "consumers"),
                         landed and strict)  # fmt: skip
    elif verdict == "looser":
        yield Difference(where, what, "compatible", ("consumers",))


def _about_rows(rule: Rule) -> bool:
    """Whether the rule parts good rows from bad ones, and not good deliveries from bad ones."""
    return rule.severity is not Severity.WARN and rule.scope is not Scope.BATCH and rule.limit == NONE


def _words(old: Terms, new: Terms) -> Iterator[Difference]:
    for where, was, now in (
        ("owner", old.owner, new.owner),
        ("producers", ", ".join(old.producers), ", ".join(new.producers)),
        ("consumers", ", ".join(old.consumers), ", ".join(new.consumers)),
        ("status", old.status, new.status),
    ):
        if was != now:
            yield Difference(where, f"{now or 'nobody'}, was {was or 'nobody'}", "same")
    if old.sla != new.sla:
        yield Difference("slaProperties", "other service levels", "same", ("consumers",))
    then, now_ = ({c.name: c.description for c in terms.columns} for terms in (old, new))
    both = then.keys() & now_.keys()
    if (old.title, old.description) != (new.title, new.description) or any(then[c] != now_[c] for c in both):
        yield Difference("description", "other words", "same")
    if [c.name for c in old.columns] != [c.name for c in new.columns] and {c.name for c in old.columns} == {
        c.name for c in new.columns
    }:
        yield Difference("columns", "another order", "same")


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)
