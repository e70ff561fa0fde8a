"""Compares the rules of two contracts: which belong together, and whether one asks more than the other."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from loopwright.data.terms import Limit, Rule, Scope

Verdict = Literal["same", "tighter", "looser", "other"]
_IDENTIFYING = {"quantile": "q", "category_share": "value", "drift": "metric", "outlier": "method"}


def rules_compared(old: Sequence[Rule], new: Sequence[Rule]) -> Iterator[tuple[Rule | None, Rule | None]]:
    """Pairs of rules about the same thing; None where one side has no such rule. Equal rules come as pairs too."""
    waiting: defaultdict[Any, list[Rule]] = defaultdict(list)
    for rule in old:
        waiting[_subject(rule)].append(rule)
    left = []
    for rule in new:
        # The very same rule first: two patterns on a column must not be paired crosswise.
        same = waiting[_subject(rule)]
        twin = next(
            (one for one in same if one.arguments == rule.arguments and one.limit == rule.limit), None
        )
        if twin is not None:
            same.remove(twin)
            yield twin, rule
        else:
            left.append(rule)
    for rule in left:
        same = waiting[_subject(rule)]
        yield (same.pop(0) if same else None), rule
    for remaining in waiting.values():
        for rule in remaining:
            yield rule, None


def limits_compared(old: Rule, new: Rule) -> tuple[Verdict, str]:
    """Whether `new` asks more of the same thing than `old`, and the change in words."""
    verdicts = [_arguments(old, new), _limits(old.limit, new.limit), _scopes(old.scope, new.scope)]
    found = {verdict for verdict in verdicts if verdict != "same"}
    verdict: Verdict = "same" if not found else found.pop() if len(found) == 1 else "other"
    said = {"tighter": "asks more", "looser": "asks less", "other": "asks something else", "same": ""}[
        verdict
    ]
    return verdict, f"{new.name}: {said} than {_told(old)}" if said else ""


def _told(rule: Rule) -> str:
    limit = "" if rule.limit == Limit("==", 0) else f" ({rule.limit})"
    return f"“{rule.name}”{limit}"


def _subject(rule: Rule) -> Any:
    columns = tuple(sorted(rule.columns)) if rule.kind in ("unique", "duplicates") else rule.columns
    which: Any = None
    if rule.kind == "range":
        which = str(rule.arguments["op"])[0]
    elif rule.kind in ("condition", "query"):
        which = " ".join(str(rule.arguments[rule.kind]).split())
    elif rule.kind == "relationship":
        which = rule.arguments["table"]
    elif rule.kind in _IDENTIFYING:
        which = str(rule.arguments[_IDENTIFYING[rule.kind]])
    return rule.kind, columns, which


def _arguments(old: Rule, new: Rule) -> Verdict:
    was, now = old.arguments, new.arguments
    if was == now or old.kind in ("condition", "query"):
        return "same"
    match old.kind:
        case "range":
            return _range(was, now)
        case "enum":
            before, after = set(map(str, was["validValues"])), set(map(str, now["validValues"]))
            return _sets(before, after)
        case "missing":
            # More texts that count as missing ask more.
            return _sets(set(now.get("missingValues", ())), set(was.get("missingValues", ())))
        case "minLength" | "minItems":
            return _ordered(was["value"], now["value"])
        case "maxLength" | "maxItems":
            return _ordered(now["value"], was["value"])
        case "outlier":
            return _ordered(now["threshold"], was["threshold"])
        case "multipleOf":
            if _divides(was["value"], now["value"]):
                return "tighter"
            return "looser" if _divides(now["value"], was["value"]) else "other"
        case _:
            return "other"


def _range(was: Any, now: Any) -> Verdict:
    upward = was["op"].startswith(">")
    before, after = was["value"], now["value"]
    if before == after:
        return "same" if was["op"] == now["op"] else "tighter" if len(now["op"]) == 1 else "looser"
    try:
        return _ordered(before, after) if upward else _ordered(after, before)
    except TypeError:
        return "other"


def _ordered(less: Any, more: Any) -> Verdict:
    return "same" if less == more else "tighter" if more > less else "looser"


def _sets(before: set[str], after: set[str]) -> Verdict:
    return (
        "same"
        if before == after
        else "tighter"
        if after < before
        else "looser"
        if before < after
        else "other"
    )


def _divides(part: float, whole: float) -> bool:
    quotient = whole / part
    return math.isclose(quotient, round(quotient)) and round(quotient) >= 1


def _limits(old: Limit, new: Limit) -> Verdict:
    """Compare what two limits let pass: exact, since both are unions of intervals that end at these few numbers."""
    if old.percent != new.percent and {old.value, new.value} != {0}:
        return "other"
    ends = sorted({old.value, new.value, *((limit.high) for limit in (old, new) if "between" in limit.op)})
    probes = [ends[0] - 1, *ends, ends[-1] + 1, *((a + b) / 2 for a, b in pairwise(ends))]
    before = {probe for probe in probes if _passes(old, probe)}
    after = {probe for probe in probes if _passes(new, probe)}
    return (
        "same"
        if before == after
        else "tighter"
        if after < before
        else "looser"
        if before < after
        else "other"
    )


def _passes(limit: Limit, number: float) -> bool:
    return Limit(limit.op, limit.value, limit.high).holds(number, 1)


def _scopes(old: Scope, new: Scope) -> Verdict:
    if old is new or Scope.ROW in (old, new):
        return "same"
    return "tighter" if new is Scope.TABLE else "looser"
