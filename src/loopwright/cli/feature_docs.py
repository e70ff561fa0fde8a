"""The page about a model's feature views: one HTML file that loads nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loopwright.cli.show import text

Answer = Mapping[str, Any]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;width:100%;margin:.6rem 0}th,td{text-align:left;vertical-align:top;"
    "padding:.3rem .6rem;border-bottom:1px solid #ddd;overflow-wrap:anywhere}code{font-size:.92em}"
    "h2{margin-top:2.5rem;border-top:2px solid #ddd;padding-top:1rem}.stale{color:#8a4b00}"
)


def page(answer: Answer) -> str:
    """Return the page for what `features.docs` answers. Every word of a project is escaped."""
    title = f"Feature views of {answer['model']}"
    views = answer["views"]
    summary = [
        (
            _link(one["view"]), _list(_gives(one["definition"])), escape(text(one["definition"].get("owner"))),
            escape(text(one["online"]["rows"])), escape(text(one["online"]["as_of"])), _stale(one["online"]),
        )
        for one in views
    ]  # fmt: skip
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        f"<p>{len(views)} views; owner of the model: {escape(text(answer['owner']))}. Made at "
        f"{escape(text(answer['at']))} (UTC).</p>",
        _table(("view", "gives", "owner", "rows online", "as of", "stale"), summary),
        *(_section(one) for one in views),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(one: Answer) -> str:
    told = one["definition"]
    facts = {
        "definition": f"{one['number']} ({one['digest'][:12]})", "kind": told["kind"], "owner": told.get("owner"),
        "entity": [pair[0] for pair in told.get("entity", told.get("on", ()))], "table": told.get("table"),
        "source": told.get("source"), "event time": told.get("event_time"), "known at": told.get("available_at"),
        "known after": told.get("available_after"), "forgotten after": told.get("ttl"), "window": told.get("window"),
        "tags": told.get("tags"),
    }  # fmt: skip
    rows = [
        (escape(name), escape(text(value)))
        for name, value in facts.items()
        if value not in (None, "", [], {})
    ]
    made = {entry["name"]: entry for entry in one["lineage"]}
    given = [
        (escape(name), f"<code>{escape(sql)}</code>", escape(_reads(made.get(name))))
        for name, sql in _columns(told)
    ]
    tests = [
        (escape(name), f"<code>{escape(test['condition'])}</code>", escape(test["severity"]))
        for name, test in told.get("tests", {}).items()
    ]
    users = [
        (escape(f"version {use['version']}"), escape(text(use["stage"])), _list(use["inputs"]))
        for use in one["used_by"]
    ]
    runs = [
        tuple(
            escape(text(run[key])) for key in ("started_at", "kind", "state", "rows", "as_of", "why", "error")
        )
        for run in one["materializations"]
    ]
    past = [
        tuple(escape(text(each[key])) for key in ("number", "digest", "actor", "at"))
        for each in one["definitions"]
    ]
    return "\n".join([
        f'<h2 id="{escape(one["view"], quote=True)}">{escape(one["view"])}</h2>',
        f"<p>{escape(told['description'])}</p>" if told.get("description") else "",
        _table(("about", ""), rows),
        _table(("gives", "SQL", "made of"), given),
        _table(("test", "every row", "severity"), tests) if tests else "",
        _table(("used by", "stage", "inputs"), users) if users else "<p>No version uses it yet.</p>",
        _table(("materialised", "kind", "state", "rows", "as of", "why", "error"), runs)
        if runs else "<p>It was never materialised.</p>",
        _table(("definition", "digest", "by", "at"), past),
    ])  # fmt: skip


def _columns(told: Answer) -> list[tuple[str, str]]:
    if told["kind"] == "windowed rate":
        value = told.get("value") or "the label"
        given = [(told["name"], f"mean of {value} over {told['window']}")]
        return [*given, *([(told["count"], "rows in the window")] if told.get("count") else [])]
    columns = [(name, sql) for name, sql in told.get("columns", ())]
    for name, each in told.get("aggregations", ()):
        over = f" over {each['window']}" if each.get("window") else ""
        where = f" where {each['where']}" if each.get("where") else ""
        columns.append((name, f"{each['function']}({each.get('value', '*')}){over}{where}"))
    return columns


def _gives(told: Answer) -> list[str]:
    return [name for name, _ in _columns(told)]


def _reads(entry: Answer | None) -> str:
    return ", ".join(f"{read['table']}.{read['column']}" for read in entry["reads"]) if entry else "–"


def _stale(online: Answer) -> str:
    return f'<span class="stale">{escape(text(online["stale"]))}</span>' if online["stale"] else "no"


def _link(name: str) -> str:
    return f'<a href="#{escape(name, quote=True)}">{escape(name)}</a>'


def _list(names: Sequence[str]) -> str:
    return escape(", ".join(names))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"
