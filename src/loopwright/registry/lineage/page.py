"""The data lineage page of a version: one HTML file that needs nothing else, with the graph drawn in it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from loopwright.registry.lineage.query import serves
from loopwright.registry.lineage.svg import draw, printable

Node = Mapping[str, Any]
_STYLE = """
:root{color-scheme:light dark;--ink:#0f172a;--soft:#475569;--line:#e2e8f0;--paper:#ffffff;--wash:#f8fafc;--blue:#1d4ed8}
@media (prefers-color-scheme:dark){:root{--ink:#f1f5f9;--soft:#94a3b8;--line:#334155;--paper:#0f172a;--wash:#1e293b;
--blue:#93c5fd}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px}h2{font-size:19px;margin:44px 0 10px}
.chips{display:flex;gap:8px;flex-wrap:wrap;margin:10px 0 22px}
.chip{border:1px solid var(--line);background:var(--wash);border-radius:99px;padding:2px 12px;font-size:13px}
.chip.live{border-color:#16a34a;color:#16a34a;font-weight:600}
.says p{margin:4px 0;max-width:75ch}
figure{margin:18px 0 0;border:1px solid var(--line);border-radius:12px;overflow:auto;max-height:78vh;
background:var(--paper)}figure svg{display:block}
figcaption,.note{color:var(--soft);font-size:13px;margin:8px 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--soft);font-weight:600;border-bottom:1px solid var(--line);padding:7px 14px 7px 0}
td{border-bottom:1px solid var(--line);padding:7px 14px 7px 0;vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.role{color:var(--soft);font-size:12px}
@media print{figure{max-height:none}}
"""


def page(answer: Mapping[str, Any]) -> str:
    """The page of one version, from `lineage(…, direction="both")`. All that was recorded is escaped."""
    nodes: Sequence[Node] = answer["nodes"]
    name = f"{answer['model']} {answer['version']}"
    here = next((node for node in nodes if node["id"] in answer["focus"]), {})
    run_ids = _sources_of(answer, answer["focus"], ("bundle", "run"))
    sections = [
        _sources(nodes), _tables(nodes), _inputs(nodes, run_ids), _run(nodes, run_ids), _people(nodes, here),
        _became(nodes), _versions(nodes, answer["focus"]),
    ]  # fmt: skip
    folded = "".join(f'<p class="note">{_t(line[:1].upper() + line[1:])}.</p>' for line in answer["folded"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Data lineage of {_t(name)}</title><style>{_STYLE}</style></head>
<body><main>
<h1>Data lineage of {_t(name)}</h1>
<div class="chips">{_chips(here)}</div>
<div class="says">{"".join(f"<p>{_t(line)}</p>" for line in answer["says"])}</div>
<figure>{draw(answer, title=f"{name}: where it comes from, what became of it")}</figure>
<p class="note">Rest the pointer on a box or a line for what is known of it.</p>{folded}
{"".join(section for section in sections if section)}
</main></body></html>
"""


def _chips(here: Node) -> str:
    chips = [("", f"stage {here.get('stage', 'unknown')}")]
    chips += [("", str(here["semver"]))] if here.get("semver") else []
    chips += [(" live" if here.get("live") else "", serves(dict(here)))]
    return "".join(f'<span class="chip{mark}">{_t(text)}</span>' for mark, text in chips)


def _sources(nodes: Iterable[Node]) -> str:
    rows = [
        (_t(str(n.get("table", n["label"]))), _code(n.get("uri", n["label"])), _number(n.get("rows")),
         _number(n.get("quarantined")), _t(str(n.get("at", n.get("from", "")))), _t(str(n.get("by", ""))),
         _code(str(n.get("batch", ""))[:12]))
        for n in _of(nodes, "batch")
    ]  # fmt: skip
    return _section(
        "Where the data came from",
        ("table", "source", "#good rows", "#set aside", "landed", "by", "batch"),
        rows,
    )


def _tables(nodes: Iterable[Node]) -> str:
    rows = [
        (
            _t(str(n["table"])),
            _number(n["version"]),
            _number(n.get("rows")),
            _code(str(n.get("content", ""))[:16]),
        )
        for n in _of(nodes, "table")
        if n.get("pinned")
    ]
    return _section("Tables as they were pinned", ("table", "#version", "#rows", "content (SHA-256)"), rows)


def _inputs(nodes: Iterable[Node], runs: set[str]) -> str:
    read = [
        n
        for n in nodes
        if n["kind"] in ("feature", "label", "rows") and n.get("run") in runs and n.get("reads")
    ]
    rows = []
    for n in read:
        roles: dict[str, list[str]] = {}
        for each in n["reads"]:
            for how in each["for"]:
                roles.setdefault(how, []).append(f"{each['table']}.{each['column']}")
        told = "<br>".join(
            f'<span class="role">{_t(how)}</span> {", ".join(_code(c) for c in columns)}'
            for how, columns in sorted(roles.items(), key=lambda pair: pair[0] != "value")
        )
        why = f'<br><span class="role">{_t(n["why"])}</span>' if n.get("why") else ""
        rows.append((_t(n["label"]), _t(n["view"]), _t(n["level"]) + why, told, _code(n.get("sql", ""))))
    transforms = [n for n in _of(nodes, "transform") if n["id"].removeprefix("transform:") in runs]
    note = "".join(
        f'<p class="note">{_t(n["label"])}. It is Python, so of it only this much is known: every feature may '
        "depend on every input.</p>"
        for n in transforms
    )
    return (
        _section(
            "Inputs, and the columns they read", ("input", "view", "known to the", "columns", "SQL"), rows
        )
        + note
    )


def _run(nodes: Iterable[Node], runs: set[str]) -> str:
    rows = []
    for n in nodes:
        if n["id"] in runs:
            rows += [("run", _code(n["id"])), ("trained", _t(f"{n.get('at', '')} by {n.get('actor', '')}")),
                     ("why", _t(str(n.get("reason", "")))), ("ended as", _t(str(n.get("status", ""))))]  # fmt: skip
    rows += [("code", _code(n.get("commit") or n.get("digest", ""))) for n in _of(nodes, "code")]
    rows += [("loop.yaml", _code(n["digest"])) for n in _of(nodes, "config")]
    rows += [("snapshot", _code(n.get("digest", n["id"]))) for n in _of(nodes, "snapshot")]
    return _section("How it was made", ("", ""), rows)


def _people(nodes: Iterable[Node], here: Node) -> str:
    did: dict[tuple[str, str], int] = {}

    def note(who: object, what: str) -> None:
        if who:
            did[str(who), what] = did.get((str(who), what), 0) + 1

    for n in nodes:
        match n["kind"]:
            case "batch":
                note(n.get("by"), "brought in batches")
            case "run":
                note(n.get("actor"), "trained")
            case "promotion" if n.get("version") == here.get("version"):
                note(n["requested_by"], f"asked for {n['stage']}")
                for reviewer in n.get("approved_by", ()):
                    note(reviewer, f"approved for {n['stage']}")
                for reviewer in n.get("rejected_by", ()):
                    note(reviewer, f"refused {n['stage']}")
    note(here.get("author"), "registered this version")
    rows = [
        (_t(who), _t(what), _number(count) if count > 1 else "") for (who, what), count in sorted(did.items())
    ]
    return _section("People", ("who", "did", "#times"), rows)


def _became(nodes: Iterable[Node]) -> str:
    rows = [
        (_t(n["kind"]), _t(n["label"]), _number(n.get("version")), _t(str(n.get("at", n.get("from", "")))),
         _t(str(n.get("until", n.get("ended", "")))))
        for kind in ("promotion", "rollout", "predictions", "labels", "windows", "alert", "retrain", "evidence")
        for n in _of(nodes, kind)
    ]  # fmt: skip
    return _section("What was decided and seen", ("what", "", "#version", "from", "until"), rows)


def _versions(nodes: Iterable[Node], focus: Sequence[str]) -> str:
    rows = [
        (
            _t(n["label"]),
            _t(str(n.get("stage", ""))),
            _t("" if n.get("folded") else serves(dict(n))),
            _t(str(n.get("at", ""))),
        )
        for n in _of(nodes, "version")
        if n["id"] not in focus
    ]
    return _section("Versions before and after", ("version", "stage", "now", "registered"), rows)


def _sources_of(answer: Mapping[str, Any], start: Iterable[str], kinds: Sequence[str]) -> set[str]:
    """Ids reached by going back one edge per kind, from `start` on."""
    at, of = set(start), {node["id"]: node["kind"] for node in answer["nodes"]}
    for kind in kinds:
        came = {edge["from"] for edge in answer["edges"] if edge["to"] in at and of[edge["from"]] == kind}
        at = came or at  # a version without a bundle hangs on its run
    return at


def _of(nodes: Iterable[Node], kind: str) -> list[Node]:
    return [node for node in nodes if node["kind"] == kind]


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading and a table; heads that begin with # are of numbers. Cells are HTML already."""
    if not rows:
        return ""
    numeric = [head.startswith("#") for head in heads]

    def line(tag: str, cells: Iterable[str], wrap: Callable[[str], str]) -> str:
        pairs = zip(cells, numeric, strict=True)
        mark = {True: ' class="number"', False: ""}
        return "".join(f"<{tag}{mark[number]}>{wrap(cell)}</{tag}>" for cell, number in pairs)

    head = line("th", heads, lambda cell: _t(cell.removeprefix("#")))
    body = "".join(f"<tr>{line('td', row, lambda cell: cell)}</tr>" for row in rows)
    headed = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<h2>{_t(title)}</h2><div class="scroll"><table>{headed}<tbody>{body}</tbody></table></div>'


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _code(text: object) -> str:
    return f"<code>{_t(str(text))}</code>" if text else ""


def _t(text: str) -> str:
    return escape(printable(text), quote=True)
