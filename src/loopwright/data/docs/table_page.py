"""The page of one table: what was promised, how it is kept, what the rows hold, who rests on them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loopwright.data.contract import Column, Contract
from loopwright.data.docs.facts import TableFacts
from loopwright.data.docs.layout import (
    chip,
    code,
    example,
    facts,
    listed,
    moment,
    number,
    page,
    section,
    share,
    state_tone,
    table,
    text,
)
from loopwright.data.docs.pictures import distribution, trend
from loopwright.data.versions.describe import MANY, Facts, time_text
from loopwright.kernel.clock import iso

Link = Callable[[str | None], str]
"""Where the page of MODEL/TABLE lies; of None: the overview."""
MOST_RULES = 12
SENSITIVE = ("pii", "confidential", "restricted", "secret", "sensitive")


def table_page(told: TableFacts, *, link: Link, values: bool = True) -> str:
    """The whole page. Without `values`, no row and no value of one is shown."""
    one = told.summary
    rows = next(iter(told.columns.values())).rows if told.columns else 0
    body = [
        f'<nav><a href="{text(link(None))}">All tables</a> · {text(one.model)}</nav>',
        f"<h1>{text(f'{one.model}/{one.table}')}</h1>",
        f'<p class="lead">{text(told.contract.description)}</p>' if told.contract and told.contract.description else "",
        '<div class="chips">' + "".join(_chips(told)) + "</div>",
        facts({
            "rows": number(rows), "columns": number(len(told.columns)), "batches": number(one.batches),
            "set aside in the last batch": text(share(one.bad_share)), "last batch": moment(one.last),
            "table version": number(told.version),
        }),
        _incidents(told), _contract(told), _rules(told, values), _trend(told), _quarantine(told),
        _columns(told, values), _landings(told), _pins(told),
    ]  # fmt: skip
    footer = f"Made {iso(told.now)[:16].replace('T', ' ')} UTC from the ledger and version {told.version} of the table."
    if any(not one.exact for one in told.columns.values()):
        footer += " Distinct values and quantiles are estimates (≈)."
    if not values:
        footer += " Values of rows are shown to developers of the model only."
    return page(f"{one.model}/{one.table}", body, footer=footer)


def _chips(told: TableFacts) -> Iterator[str]:
    one, contract = told.summary, told.contract
    yield chip(f"last check {one.state or 'unknown'}", state_tone(one.state))
    if one.open_incidents:
        yield chip(f"{one.open_incidents} open incident{'s' if one.open_incidents > 1 else ''}", "bad")
    if contract is None:
        yield chip("no contract on record", "warn")
        return
    yield chip(f"contract {contract.version or '–'} (number {told.contract_number})")
    for words, value in (("status", contract.status), ("owner", contract.owner), ("loads", contract.loading)):
        if value:
            yield chip(f"{words} {value}")


def _contract(told: TableFacts) -> str:
    contract = told.contract
    if contract is None:
        return ""
    terms = {
        "owner": text(contract.owner), "producers": listed(contract.producers),
        "consumers": listed(contract.consumers), "key": listed(contract.key, code),
        "event time": code(contract.event_time), "newer row wins by": code(contract.version_column),
        "refused above": text(f"{contract.max_bad_share:.0%} bad rows"), "digest": code(contract.digest[:16]),
    }  # fmt: skip
    levels = [
        (text(each.property), text(f"{'' if each.value is None else each.value} {each.unit}".strip()),
         listed(each.columns, code), text(each.description))
        for each in contract.sla
    ]  # fmt: skip
    changes = [
        (number(each["number"]), text(each["version"]), _change(each["change"]), moment(iso(each["at"])),
         text(each["by"]), _differences(each["differences"]))
        for each in reversed(told.history)
    ]  # fmt: skip
    unchecked = (
        f"<details><summary>{len(contract.unchecked)} things the contract says that nothing judges</summary><ul>"
        + "".join(f"<li>{text(each)}</li>" for each in contract.unchecked)
        + "</ul></details>"
        if contract.unchecked
        else ""
    )
    return section(
        "Contract",
        table(("", ""), [(text(name), value) for name, value in terms.items() if value]),
        section("Service levels", table(("what", "how much", "columns", ""), levels)),
        unchecked,
        section("Its versions", table(("#number", "version", "change", "since", "by", "what"), changes))
        if len(changes) > 1
        else "",
    )


def _change(kind: str) -> str:
    tone = {"breaking": "bad", "compatible": "good"}.get(kind, "")
    return f'<span class="{tone}">{text(kind)}</span>'


def _differences(found: list[Any]) -> str:
    said = [
        str(each.get("what") or each.get("text") or each) if isinstance(each, Mapping) else str(each)
        for each in found
    ]
    return "<br>".join(text(each) for each in said[:8]) + (
        f"<br>and {len(said) - 8} more" if len(said) > 8 else ""
    )


def _rules(told: TableFacts, values: bool) -> str:
    rules = told.batches[-1]["report"].get("rules", [])
    rank = {"ERROR": 0, "FAIL": 1, "WARN": 2}
    broken = [rule for rule in rules if rule["state"] != "PASS"]
    kept = [rule for rule in rules if rule["state"] == "PASS"]
    heads = ("rule", "column", ".severity", ".of", ".state", "#rows or measure")
    rows = [
        _rule(rule, values) for rule in sorted(broken, key=lambda r: (rank.get(r["state"], 3), r["name"]))
    ]
    passed = table(heads, [_rule(rule, values) for rule in sorted(kept, key=lambda r: str(r["name"]))])
    words = "1 rule is kept" if len(kept) == 1 else f"{len(kept)} rules are kept"
    return section(
        "Last check, rule by rule",
        table(heads, rows),
        f"<details{'' if rows else ' open'}><summary>{words}</summary>{passed}</details>" if kept else "",
        empty="The last batch was judged by no rule.",
    )


def _rule(rule: Mapping[str, Any], values: bool) -> tuple[str, ...]:
    shown = "".join(f"<li>{example(each)}</li>" for each in rule.get("examples", ())) if values else ""
    examples = f"<details><summary>examples</summary><ul>{shown}</ul></details>" if shown else ""
    why = f'<div class="note">{text(rule["why"])}</div>' if rule.get("why") and values else ""
    measured = rule.get("measured")
    return (
        text(rule["name"]) + why + examples, code(rule.get("column", "")), text(rule["severity"]),
        text(rule["scope"]), f'<span class="{state_tone(rule["state"])}">{text(rule["state"])}</span>',
        number(rule["failed"] if measured is None else measured),
    )  # fmt: skip


def _trend(told: TableFacts) -> str:
    shares = [one["bad"] / one["rows"] if one["rows"] else 0.0 for one in told.batches]
    if len(shares) < 2:
        return ""
    first, last = told.batches[0], told.batches[-1]
    told_by = Counter[str]()
    for batch in told.batches:
        told_by.update(batch["report"].get("reasons", {}))
    rows = []
    for rule, total in told_by.most_common(MOST_RULES):
        line = [
            batch["report"].get("reasons", {}).get(rule, 0) / batch["rows"] if batch["rows"] else 0.0
            for batch in told.batches
        ]
        rows.append((text(rule), number(total), share(line[-1]), trend(line[-60:], width=260, height=40)))
    head = f"{len(told.batches)} batches, {first['at'][:10]} to {last['at'][:10]}"
    return section(
        "Violations over batches",
        trend(shares, label="rows set aside"),
        f'<p class="note">{text(head)}.</p>',
        table(("rule", "#rows in all", "#of the last batch", ""), rows),
    )


def _quarantine(told: TableFacts) -> str:
    counted = Counter[str]()
    for batch in told.batches:
        counted.update(batch["report"].get("reasons", {}))
    rows = [(text(rule), number(count)) for rule, count in counted.most_common()]
    return section(
        "Why rows were set aside",
        table(("reason", "#rows"), rows),
        empty="No row of these batches was set aside.",
    )


def _incidents(told: TableFacts) -> str:
    rows = [
        (code(each["id"]),
         f'<span class="{"good" if each["state"] == "closed" else "bad"}">{text(each["state"])}</span>',
         text(each["title"]), text(each["owner"]), moment(each["opened_at"]), moment(each["changed_at"]))
        for each in told.incidents
    ]  # fmt: skip
    return section("Incidents", table(("incident", "state", "what", "owner", "opened", "changed"), rows))


def _columns(told: TableFacts, values: bool) -> str:
    cards = [
        _card(facts_, told, values and not _sensitive(told.contract, name))
        for name, facts_ in told.columns.items()
    ]
    promised = told.contract.columns if told.contract else ()
    missing = [
        column for column in promised if column.name not in told.columns and not column.name.startswith("_")
    ]
    note = (
        f'<p class="note">Promised and not there: {listed((c.name for c in missing), code)}.</p>'
        if missing
        else ""
    )
    return section(
        "Columns",
        note,
        f'<div class="cards">{"".join(cards)}</div>' if cards else "",
        empty="The table is empty.",
    )


def _card(one: Facts, told: TableFacts, values: bool) -> str:
    promised = told.contract.column(one.name) if told.contract else None
    words = [f"<p>{text(promised.description)}</p>" if promised and promised.description else ""]
    if promised is not None:
        words.append(f"<p>{text(_promise(promised))}</p>")
    mark = "" if one.exact else "≈ "
    figures: dict[str, str] = {
        "null": share(one.nulls / one.rows if one.rows else None),
        "distinct": mark + number(one.distinct),
    }
    if one.kind != "category":
        show = _when if one.kind == "time" else number
        if values:
            figures |= {"least": show(one.low), "greatest": show(one.high)}
        if values or one.rows - one.nulls >= MANY:
            if one.kind == "number":
                figures |= {"mean": number(one.mean), "deviation": number(one.deviation)}
            figures |= {f"{mark}median": show(one.quantiles.get(0.5)), "5 %": show(one.quantiles.get(0.05)),
                        "95 %": show(one.quantiles.get(0.95))}  # fmt: skip
        if one.not_finite:
            figures["NaN or ∞"] = number(one.not_finite)
    told_ = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in figures.items()
    )
    return (
        f"<article class=card><header><h3>{text(one.name)}</h3><span>{text(one.type)}</span></header>"
        + "".join(words)
        + distribution(one, told.spreads.get(one.name), values=values)
        + f"<dl>{told_}</dl></article>"
    )


def _promise(column: Column) -> str:
    said = [column.type, "required" if column.required else "may be null"]
    if column.optional:
        said.append("may be absent")
    if column.classification:
        said.append(column.classification)
    return "promised: " + ", ".join(said)


def _sensitive(contract: Contract | None, name: str) -> bool:
    """Whether the contract classifies a column, or a part of it, so that its values belong on no page."""
    column = contract.column(name) if contract else None
    return column is not None and _classified(column)


def _classified(column: Column) -> bool:
    inside = (*column.fields, *([] if column.items is None else [column.items]))
    return any(word in column.classification.lower() for word in SENSITIVE) or any(map(_classified, inside))


def _when(value: float | None) -> str:
    return "–" if value is None else time_text(value)[:16].replace("T", " ")


def _landings(told: TableFacts) -> str:
    rows = [
        (moment(each["at"]), number(each["version"]), code(each["uri"]), text(each["loading"]),
         number(each["good"]), number(each["bad"]), text(each["by"]), code(each["batch"][:12]))
        for each in told.landings
    ]  # fmt: skip
    return section(
        "Where the rows came from",
        table(("landed", "#version", "source", "load", "#good", "#set aside", "by", "batch"), rows),
    )


def _pins(told: TableFacts) -> str:
    rows = [
        (code(pin.snapshot[:12]), number(pin.version), moment(iso(pin.taken)), listed(pin.by) or "–")
        for pin in sorted(told.pins, key=lambda pin: pin.taken, reverse=True)[:50]
    ]
    return section("Snapshots that pin it", table(("snapshot", "#version", "taken", "rests on it"), rows))
