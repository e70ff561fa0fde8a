"""Our measures, in `custom` rules of engine loopwright: distributions, category shares, outliers, drift, freshness."""

from collections.abc import Callable, Mapping
from typing import Any

from loopwright.data.odcs import words
from loopwright.data.odcs.draft import Draft
from loopwright.data.odcs.shape import Path
from loopwright.data.odcs.values import check_number, valid_values
from loopwright.data.terms import NONE, Column, Limit, Scope, find_column
from loopwright.kernel.errors import did_you_mean

_PLAIN = ("mean", "stddev", "minimum", "maximum", "sum", "distinct")
_MEASURES: Mapping[str, frozenset[str]] = {
    **{metric: frozenset() for metric in _PLAIN},
    "quantile": frozenset({"q"}),
    "categoryShare": frozenset({"value"}),
    "outlier": frozenset({"method", "threshold"}),
    "drift": frozenset({"distance", "against"}),
    "freshness": frozenset(),
}
_COMMON = frozenset({"metric", "property", "unit", *words.LIMITS})
_NUMERIC = (*_PLAIN[:-1], "quantile", "outlier")
_METHODS = {"robustZ": "robust_z", "robust_z": "robust_z", "iqr": "iqr"}


def add_measure(
    draft: Draft,
    entry: Mapping[str, Any],
    path: Path,
    name: str,
    column: Column | None,
    add_rule: Callable[..., None],
    read_limit: Callable[..., Limit | None],
) -> None:
    """The rule of an `implementation` that is a mapping; `entry` holds its keys beside those of the quality entry."""
    at = (*path, "implementation")
    metric, name, column = _known(draft, entry, at, name, column)
    numeric = column.type in ("integer", "number")
    if (metric in _NUMERIC or entry.get("distance") == "ks") and not numeric:
        raise draft.fail(f"{metric} is of numbers", at, f"{name}: {column.type}", "a column of numbers")
    arguments: dict[str, Any] = {}
    units: tuple[str, ...] = ("rows",)
    kind = metric
    match metric:
        case "outlier":
            _outlier(draft, entry, path, name, add_rule, read_limit)
            return
        case "quantile":
            arguments["q"] = check_number(draft, entry.get("q"), (*at, "q"), least=0, most=1)
        case "categoryShare":
            kind, units = "category_share", ("percent", "rows")
            arguments["value"] = valid_values(draft, [entry.get("value")], column, (*at, "value"))[0]
        case "drift":
            arguments = _drift(draft, entry, at)
        case "freshness":
            if column.type not in ("timestamp", "date"):
                raise draft.fail(
                    "freshness is of a moment", at, f"{name}: {column.type}", "a timestamp or a date"
                )
            units = ("seconds", *words.SECONDS)
    limit = read_limit(draft, entry, path, units=units)
    if limit is None:
        raise draft.fail(
            f"what must the {metric} be?", at, wanted=f"one of {', '.join(words.LIMITS)}", next="Set a limit"
        )
    if metric == "freshness":
        size = words.SECONDS[entry.get("unit", "seconds")]
        limit = Limit(limit.op, limit.value * size, limit.high * size)
    said = {
        "quantile": f"quantile {arguments.get('q')}",
        "category_share": f"share of {arguments.get('value')}",
    }
    add_rule(
        draft,
        entry,
        path,
        f"{name} {said.get(kind, kind)} {limit}",
        kind,
        (name,),
        Scope.BATCH,
        arguments,
        limit,
    )


def _known(
    draft: Draft, entry: Mapping[str, Any], at: Path, name: str, column: Column | None
) -> tuple[str, str, Column]:
    """The metric, the column's dotted path and the column."""
    metric = entry.get("metric")
    if not isinstance(metric, str) or metric not in _MEASURES:
        raise draft.fail(
            "unknown metric",
            (*at, "metric"),
            metric,
            f"one of {', '.join(_MEASURES)}",
            did_you_mean(str(metric), _MEASURES) or "Mend it",
        )
    known = _COMMON | _MEASURES[metric]
    inside = draft.document.at(at)
    for key in inside if isinstance(inside, dict) else ():
        if key not in known:
            near = did_you_mean(key, known) or f"Known: {', '.join(sorted(known))}"
            raise draft.fail("unknown key", (*at, key), key, next=near)
    if "property" in entry:
        name = draft.known(str(entry["property"]), (*at, "property"))
        column = None
    column = column or find_column(draft.columns.values(), name)
    if not name or column is None:
        raise draft.fail("which column?", at, wanted="the rule on a property, or `property: COLUMN`")
    if "[]" in name:
        raise draft.fail(f"no {metric} of a list's elements", at, name, "a column, or a part of an object")
    return metric, name, column


def _outlier(
    draft: Draft,
    entry: Mapping[str, Any],
    path: Path,
    name: str,
    add_rule: Callable[..., None],
    read_limit: Callable[..., Limit | None],
) -> None:
    at = (*path, "implementation")
    method = _METHODS.get(str(entry.get("method", "robustZ")))
    if method is None:
        raise draft.fail("unknown method", (*at, "method"), entry["method"], "robustZ or iqr")
    default = 5.0 if method == "robust_z" else 3.0
    threshold = check_number(draft, entry.get("threshold", default), (*at, "threshold"), least=0.1, most=1e6)
    limit = read_limit(draft, entry, path) or NONE
    said = "robust z" if method == "robust_z" else "IQR"
    add_rule(
        draft, entry, path, f"{name} no outlier ({said} {threshold:g})", "outlier", (name,), Scope.ROW,
        {"method": method, "threshold": threshold}, limit,
    )  # fmt: skip


def _drift(draft: Draft, entry: Mapping[str, Any], at: Path) -> dict[str, Any]:
    distance = entry.get("distance", "psi")
    if distance not in ("psi", "ks"):
        raise draft.fail("unknown distance", (*at, "distance"), distance, "psi or ks")
    against = entry.get("against", "previous")
    letters = isinstance(against, str) and len(against) >= 6 and set(against) <= set("0123456789abcdef")
    if against != "previous" and not letters:
        raise draft.fail(
            "drift from what?", (*at, "against"), against, "previous, or at least 6 letters of a snapshot's digest",
            "If the digest is all digits, write it in quotes",
        )  # fmt: skip
    return {"metric": distance, "snapshot": against}
