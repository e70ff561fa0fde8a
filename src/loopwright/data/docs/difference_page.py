"""The page of what changed between two versions of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from loopwright.data.docs.layout import (
    chip,
    code,
    example,
    facts,
    number,
    page,
    section,
    share,
    state_tone,
    table,
    text,
)
from loopwright.data.docs.pictures import distribution
from loopwright.data.versions.difference import ColumnDifference, Difference

_LEGEND = (
    '<p class="note"><span class="before">■</span> before <span class="after">■</span> after; '
    "each interval holds a twentieth of the rows before</p>"
)


def difference_page(
    before: str, after: str, found: Mapping[str, Difference], *, values: bool, footer: str = ""
) -> str:
    """Of each table rows, columns, distributions, the columns that moved most first. Escapes what is from data."""
    body = [
        "<h1>What changed</h1>",
        f'<p class="lead">{code(before)} → {code(after)}</p>',
        "".join(_table(name, one, values) for name, one in found.items()),
    ]
    note = (
        "PSI is corrected for chance and counts only beyond it (p < 0.01, Benjamini-Hochberg): over 0.1 warn, "
        "over 0.25 alarm."
    )
    return page(f"{before} → {after}", body, footer=f"{note} {footer}".strip())


def _table(name: str, one: Difference, values: bool) -> str:
    by = f"rows told by {', '.join(one.key)}" if one.key else f"whole rows compared: {one.why_no_key}"
    boxes = {
        "rows before": number(one.rows[0]), "rows after": number(one.rows[1]), "added": number(one.added),
        "removed": number(one.removed), "changed": number(one.changed) if one.key else "–",
    }  # fmt: skip
    changes = [
        (code(each["column"]), text(each["change"]), code(each["before"]), code(each["after"]))
        for each in one.schema
    ]
    columns = [] if one.same else sorted(one.columns, key=lambda c: (-c.corrected, -(c.changed or 0), c.name))
    rows = [_line(each, values) for each in columns]
    cards = "".join(_card(each, values) for each in columns)
    head = (
        "column", "level", "#PSI", "#rows changed", "#null before", "#null after", "#distinct before",
        "#distinct after", "#mean before", "#mean after",
    )  # fmt: skip
    parts = [
        f'<div class="chips">{chip("same" if one.same else "changed", "good" if one.same else "warn")}{chip(by)}</div>',
        facts(boxes),
        section("Columns of the table", table(("column", "change", "before", "after"), changes)),
        section(
            "What the columns hold", table(head, rows),
            f'{_LEGEND}<div class="cards">{cards}</div>' if cards else "",
        ),
        _examples(one) if values else "",
    ]  # fmt: skip
    return section(name, *parts)


def _line(one: ColumnDifference, values: bool) -> Sequence[str]:
    mark = "" if one.before.exact and one.after.exact else "≈ "
    old, new = one.before.to_json(values=values), one.after.to_json(values=values)
    return (
        code(one.name), f'<span class="{state_tone(one.level)}">{text(one.level)}</span>',
        number(round(one.corrected, 4)), number(one.changed), share(old["null_share"]), share(new["null_share"]),
        mark + number(one.before.distinct), mark + number(one.after.distinct), _mean(old["mean"]), _mean(new["mean"]),
    )  # fmt: skip


def _card(one: ColumnDifference, values: bool) -> str:
    if one.spreads is None:
        return ""
    picture = distribution(one.before if one.before.rows > one.before.nulls else one.after, one.spreads[0],
                           one.spreads[1], values=values)  # fmt: skip
    words = f"PSI {number(round(one.corrected, 4))}" + (
        f", KS {number(round(one.ks, 4))}" if one.ks is not None else ""
    )
    head = f"<header><h3>{text(one.name)}</h3><span>{text(words)}</span></header>"
    return f"<article class=card>{head}{picture}</article>"


def _examples(one: Difference) -> str:
    parts = []
    for what in ("added", "removed"):
        rows = "".join(f"<li>{example(row)}</li>" for row in one.examples.get(what, ()))
        parts.append(f"<details open><summary>{what}</summary><ul>{rows}</ul></details>" if rows else "")
    changed = "".join(f"<li>{_pair(row)}</li>" for row in one.examples.get("changed", ()))
    parts.append(f"<details open><summary>changed</summary><ul>{changed}</ul></details>" if changed else "")
    return section("Examples of rows", *[part for part in parts if part])


def _pair(row: Mapping[str, Any]) -> str:
    moved = "; ".join(
        f"{text(name)}: {code(_null(pair['before']))} → {code(_null(pair['after']))}"
        for name, pair in row["columns"].items()
    )
    return f"{example(row['key'])}: {moved}"


def _null(value: Any) -> Any:
    return "null" if value is None else "(empty text)" if value == "" else value


def _mean(value: object) -> str:
    return text(str(value)[:16].replace("T", " ")) if isinstance(value, str) else number(value)  # type: ignore[arg-type]
