"""The post-mortem of an incident as Markdown: facts and timeline are filled in, what only people know is asked for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loopwright.data.incidents.model import ASKED, Event, Incident
from loopwright.data.incidents.proposals import propose
from loopwright.kernel.clock import iso


def post_mortem(incident: Incident, events: Sequence[Event]) -> str:
    """Markdown with: summary, impact, what happened, timeline, cause, what is done so that it does not come back."""
    triage = incident.triage
    parts = [
        f"# Post-mortem: {_line(incident.title)}",
        _pairs(
            {
                "Incident": incident.id,
                "Model": incident.model,
                "Table": incident.table,
                "State": incident.state.value,
                "Impact": incident.impact,
                "Owner": incident.owner or "nobody yet",
                "Opened": iso(incident.opened_at),
                "Closed": iso(incident.closed_at) if incident.closed_at else "not yet",
                "Seen": f"{triage.get('count', 1)} times, last at {triage.get('last_seen', '')}",
            }
        ),
        "## What happened",
        _line(triage.get("why", "")),
        *_source(triage),
        *_rules(triage),
        *_rows(triage),
        *_listed("### What was other than before", triage.get("changes", ())),
        *_listed("### Upstream", [f"`{one['table']}`: {one['why']}" for one in triage.get("upstream", ())]),
        "## Who was hit",
        *_consumers(incident.consumers),
        "## Timeline",
        _timeline(events),
        "## Cause",
        ASKED,
        "## What went well, what did not",
        ASKED,
        "## So that it does not happen again",
        *_proposals(triage),
        f"- [ ] {ASKED}",
    ]
    if incident.post_mortem:
        parts += ["## As it was written at the closing", incident.post_mortem]
    return "\n\n".join(part for part in parts if part) + "\n"


def _source(triage: Mapping[str, Any]) -> list[str]:
    source, good = triage.get("source") or {}, triage.get("last_good")
    told = {
        "Source": source.get("uri", ""),
        "Batch": source.get("batch") or "none",
        "First bad delivery": triage.get("first_seen", ""),
        "Last good delivery": "none is known"
        if not good
        else f"{good['at']}, batch {str(good['batch'])[:12]}, {good['rows']:,} rows",
    }
    origin = {f"Origin: {name}": str(value) for name, value in (source.get("origin") or {}).items()}
    return [_pairs(told | origin)]


def _rules(triage: Mapping[str, Any]) -> list[str]:
    rules = triage.get("rules") or []
    if not rules:
        return []
    rows = [[r["name"], r["column"], r["severity"], r["state"], f"{r['failed']:,}", r["why"]] for r in rules]
    lines = [
        "### Rules that were broken",
        _grid(["rule", "column", "severity", "state", "rows", "why"], rows),
    ]
    shown = [
        f"- {_line(rule['name'])}: `{_line(json.dumps(example, ensure_ascii=False, default=str)).replace('`', ' ')}`"
        for rule in rules
        for example in rule["examples"][:3]
    ]
    return [*lines, *(["Examples:", "\n".join(shown)] if shown else [])]


def _rows(triage: Mapping[str, Any]) -> list[str]:
    rows = triage.get("rows") or {}
    if not rows.get("failing"):
        return []
    said = [
        f"{rows['failing']:,} of {rows['input']:,} rows fail, the first is row {rows['first']}, "
        f"the last row {rows['last']}" + (", without a gap." if rows.get("contiguous") else ".")
    ]
    spread = [
        f"`{_line(one['column'])}` is `{_line(one['value'])}` in {one['share']:.0%} of them "
        f"({one['of_all']:.0%} of all rows)"
        for one in rows.get("spread", ())
    ]
    return ["### Where the failures lie", *said, "\n".join(f"- {line}" for line in spread)]


def _consumers(consumers: Mapping[str, Any] | None) -> list[str]:
    if not consumers:
        return ["Nothing that is known here reads the table."]
    named = [one["name"] for one in consumers.get("features", ())]
    return [
        _pairs(
            {
                "Features": ", ".join(named) or "none",
                "Models": ", ".join(consumers.get("models", ())) or "none",
                "Versions trained on it": str(len(consumers.get("versions", ()))),
                "In service": ", ".join(consumers.get("live", ())) or "none",
            }
        )
    ]


def _timeline(events: Sequence[Event]) -> str:
    rows = [[iso(one.at), one.actor, one.event, _told(one.payload)] for one in events]
    return _grid(["when", "who", "what", "more"], rows)


def _told(payload: Mapping[str, Any]) -> str:
    kept = (
        "reason",
        "batch",
        "rows",
        "bad",
        "count",
        "released",
        "dropped",
        "written",
        "gold_version",
        "live",
    )
    return ", ".join(
        f"{name} {str(value)[:60]}"
        for name, value in payload.items()
        if name in kept and value not in (None, "")
    )


def _proposals(triage: Mapping[str, Any]) -> list[str]:
    lines = []
    for one in propose(triage):
        lines += [
            f"- [ ] {_line(one.title)} (in the contract, under {_line(one.where)}):",
            f"```yaml\n{one.yaml}```",
        ]
    return lines


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [title, "\n".join(f"- {_line(line)}" for line in lines)] if lines else []


def _pairs(items: Mapping[str, str]) -> str:
    return _grid(["", ""], [[name, str(value)] for name, value in items.items()])


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)


def _line(text: object) -> str:
    """One line that cannot end a cell or begin markup of its own: values of data are others' words."""
    flat = " ".join(str(text).split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
