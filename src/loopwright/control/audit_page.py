"""The monthly report as Markdown, HTML and JSON: one list of sections, three ways to write it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a table, and what to say when it is empty."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    empty: str


def title_of(answer: Answer) -> str:
    """What the report is about."""
    about = f" of {answer['model']}" if answer["model"] else ""
    return f"Governance{about} in {answer['month']}"


def summary_of(answer: Answer) -> list[str]:
    """The sentences before the tables: how much there is, and whether it can be believed."""
    whose = f" about {answer['model']}" if answer["model"] else ""
    if answer["rows"]:
        lines = [f"{answer['rows']:,} audit rows{whose}, from {answer['first']} to {answer['last']}."]
        lines.append(f"The last of them has the hash {answer['head']}.")
    else:
        lines = [f"Nothing{whose} was written to the audit log in this month."]
    chain = answer.get("chain")
    if chain is not None:
        lines.append(
            f"The whole log was verified when this report was made: {chain['why']}; its head is {chain['head']}."
            if chain["ok"]
            else f"THE LOG DOES NOT HOLD: {chain['why']}."
        )
        told = chain.get("anchors") or {"checked": 0, "newest": None}
        lines.append(
            f"{told['checked']} {'anchor was' if told['checked'] == 1 else 'anchors were'} held against it"
            + (f", the newest that agrees at row {told['newest']}." if told["newest"] else "; none agrees.")
            if told["checked"]
            else "No anchor could be held against it."
        )
    back = answer["clock_backwards"]
    if back["rows"]:
        lines.append(
            f"The clock went backwards between rows {back['rows']} times, by {back['most_seconds']:g} s at most; "
            "rows stand in the order they were written."
        )
    return lines


def sections_of(answer: Answer) -> list[Section]:
    """The report's tables."""
    return [
        Section("Promotions", ("version", "to", "requested", "approved", "outcome", "policy"),
                [_promotion(one) for one in answer["promotions"]], "No promotion was requested or decided."),
        Section("Broken glass", ("version", "by", "at", "why", "passed over", "review"),
                [_emergency(one) for one in answer["emergencies"]], "Nobody broke the glass."),
        Section("Rollbacks", ("version", "back to", "by", "at", "why"),
                [(one["subject"], _text(one["to"]), one["by"], _at(one), one["why"]) for one in answer["rollbacks"]],
                "No version was rolled back."),
        Section("Refused and denied", ("who", "times", "what", "first", "last", "the last time because"),
                [_refusal(one) for one in answer["refusals"]], "Nobody was refused anything."),
        Section("Policy", ("at", "by", "to", "what", "how"), _acts(answer["policy"]), "No policy was changed."),
        Section("Keys and trust", ("at", "by", "to", "what", "how"), _acts(answer["keys"]),
                "No key and no trust was changed."),
        Section("Access", ("at", "by", "to", "what", "how"), _acts(answer["access"]),
                "Nobody's access was changed."),
        Section("Under another's name", ("who", "as", "times", "acts", "first", "last"),
                [_assumed(one) for one in answer.get("assumed", ())], "Nobody acted under another's name."),
        Section("Versions", ("at", "by", "version", "what"),
                [(_at(one), one["by"], one["subject"], one["what"]) for one in answer["versions"]],
                "No version was registered, archived or deleted."),
        Section("Anchors", ("at", "by", "row", "hash", "not written to"),
                [(_at(one), one["by"], _text(one["to"]), str(one["hash"])[:16],
                  ", ".join(one["failed"])) for one in answer["anchors"]], "The log was not anchored."),
        Section("Everything else", ("act", "times"),
                [(name, str(count)) for name, count in answer["others"].items()], "Nothing else happened."),
    ]  # fmt: skip


def markdown(answer: Answer) -> str:
    """Return the report as Markdown."""
    parts = [f"# {title_of(answer)}", "", *summary_of(answer), ""]
    for section in sections_of(answer):
        parts += [f"## {section.title}", ""]
        if section.rows:
            parts.append(_line(section.heads))
            parts.append(_line(["---"] * len(section.heads)))
            parts += [_line([_cell(text) for text in row]) for row in section.rows]
        else:
            parts.append(section.empty)
        parts.append("")
    return "\n".join(parts)


def html(answer: Answer) -> str:
    """Return the report as one HTML page that needs nothing else."""
    title = escape(title_of(answer))
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        *(f"<p>{escape(line)}</p>" for line in summary_of(answer)),
    ]
    for section in sections_of(answer):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if not section.rows:
            parts.append(f"<p>{escape(section.empty)}</p>")
            continue
        heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in section.heads)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in section.rows
        )
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>")
    return "\n".join([*parts, "</body></html>\n"])


def document(answer: Answer) -> str:
    """Return the report as JSON."""
    return json.dumps(answer, indent=2, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[Answer], str]] = {"md": markdown, "html": html, "json": document}

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;"
    "border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
)


def _promotion(one: Answer) -> tuple[str, ...]:
    asked, done = one["requested"], one["outcome"]
    by = f"{asked['by']}, {_at(asked)}" if asked else f"{_text(one.get('requested_by'))}, before this month"
    said = [f"{yes['by']}, {_at(yes)}" for yes in one["approvals"]]
    said += [f"{name}, before this month" for name in one.get("approved_by", ())
             if name not in {yes["by"] for yes in one["approvals"]}]  # fmt: skip
    outcome = f"{done['state']}, {done['by']}, {_at(done)}" if done else "waiting"
    if one["emergency"]:
        outcome += " (broken glass)"
    return (
        one["subject"],
        _text(one["stage"]),
        by,
        "; ".join(said) or "–",
        outcome,
        str(one["policy"] or "–")[:12],
    )


def _emergency(one: Answer) -> tuple[str, ...]:
    review = one["review"]
    if review is None:
        told = f"OPEN, due {_short(one['due'])}"
    else:
        late = ", late" if review["overdue"] else ""
        told = f"{review['state']} by {review['by']}, {_at(review)}{late}: {review['why']}"
    at = _at(one) if one["at"] else "before this month"
    return one["subject"], _text(one["by"]), at, one["why"], "; ".join(one["passed_over"]) or "–", told


def _refusal(one: Answer) -> tuple[str, ...]:
    acts = ", ".join(
        f"{act} ({count})" for act, count in sorted(one["acts"].items(), key=lambda kv: -kv[1])[:10]
    )
    return one["actor"], str(one["count"]), acts, _short(one["first"]), _short(one["last"]), one["why"][:200]


def _assumed(one: Answer) -> tuple[str, ...]:
    acts = ", ".join(
        f"{act} ({count})" for act, count in sorted(one["acts"].items(), key=lambda kv: -kv[1])[:10]
    )
    return one["by"], one["subject"], str(one["count"]), acts, _short(one["first"]), _short(one["last"])


def _acts(entries: Sequence[Answer]) -> list[tuple[str, ...]]:
    return [(_at(one), one["by"], one["subject"], one["what"], one["why"]) for one in entries]


def _at(one: Answer) -> str:
    return _short(one["at"])


def _short(moment: str | None) -> str:
    return "–" if not moment else f"{moment[:10]} {moment[11:16]}"


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    r"""Text that stays in its cell: no bar, no line break, and nothing that Markdown would take for HTML."""
    flat = " ".join(text.split())
    return escape(flat, quote=False).replace("\\", "\\\\").replace("|", "\\|")
