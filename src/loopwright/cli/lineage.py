"""lineage [show]|columns|export."""

import json
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.output import check_place
from loopwright.cli.session import Session, command
from loopwright.cli.show import table, text
from loopwright.kernel.errors import BadInput, Unavailable

_WANTED = "MODEL VERSION, or one of --batch, --snapshot, --source, --run, --column"
_FILE = click.Path(path_type=Path, dir_okay=False)


@subcommands(default="show")
def lineage() -> None:
    """Show where a version comes from, and what data touched."""


@command("show", lineage)
@click.argument("model", required=False)
@click.argument("version", type=int, required=False)
@click.option("--downstream", is_flag=True, help="What became of the version.")
@click.option("--both", is_flag=True, help="Where it comes from and what became of it.")
@click.option("--batch", metavar="TABLE/ID", help="What this batch touched.")
@click.option("--snapshot", metavar="DIGEST", help="What this snapshot touched.")
@click.option("--source", metavar="NAME|URI", help="What all batches of a table, or of one source, touched.")
@click.option("--run", "run_id", metavar="ID", help="What came of this run.")
@click.option("--column", metavar="TABLE.COLUMN", help="What reads this column.")
@click.option("--generations", type=int, help="Go through so many versions; default: 1.")
@click.option("--whole", is_flag=True, help="Fold nothing.")
@click.option("--svg", type=_FILE, help="Draw it into FILE.")
@click.option("--html", type=_FILE, help="Write the version's data lineage page to FILE.")
def show(
    session: Session, model: str | None, version: int | None, downstream: bool, both: bool, batch: str | None,
    snapshot: str | None, source: str | None, run_id: str | None, column: str | None, generations: int | None,
    whole: bool, svg: Path | None, html: Path | None,
) -> None:  # fmt: skip
    """Show where VERSION of MODEL comes from; with an option, what became of it or what data touched.

    With --batch, --snapshot, --source, --run or --column no version is named; MODEL keeps to that model.
    """
    check_place(svg)
    check_place(html)
    things = {"batch": batch, "snapshot": snapshot, "source": source, "run": run_id, "column": column}
    if any(things.values()):
        if version is not None or downstream or both or html:
            raise BadInput("a version and a thing are both named", wanted=_WANTED)
        answer = session.call("lineage.impact", model=model, whole=whole or None, **things)
        title = f"What the {answer['kind']} {answer['label']} touched"
        render = _impact
    else:
        if model is None or version is None:
            raise BadInput("no version is named", wanted=_WANTED)
        direction = "both" if both or html else "down" if downstream else "up"
        answer = session.call(
            "lineage.version", model=model, version=version, direction=direction, generations=generations,
            whole=whole or None,
        )  # fmt: skip
        title = f"{model} {version}: " + {
            "up": "where it comes from", "down": "what became of it", "both": "where it comes from, what became of it",
        }[direction]  # fmt: skip
        render = version_text
    if svg is not None:
        from loopwright.registry.lineage.svg import draw

        _write(session, svg, draw(answer, title=title))
    if html is not None:
        from loopwright.registry.lineage.page import page

        _write(session, html, page(answer))
    if session.as_json or not (svg or html):
        session.show(answer, render)


@command("columns", lineage)
@click.argument("run")
@click.option("--recompute", is_flag=True, help="Tell it anew from the code kept with the run.")
def columns(session: Session, run: str, recompute: bool) -> int:
    """Show which columns each input of RUN reads, and what for.

    Exit code 1 when the code kept with the run tells otherwise than what was recorded.
    """
    answer = session.call("lineage.columns", run=run, recompute=recompute or None)
    session.show(answer, _columns)
    return 1 if answer["agrees"] is False else 0


@command("export", lineage)
@click.option("--since", metavar="TIME", help="Only what happened from then on, like 2013-07-01T00:00:00Z.")
@click.option("-o", "--out", type=_FILE, help="Where to; default: the screen.")
def export(session: Session, since: str | None, out: Path | None) -> None:
    """Write OpenLineage events, one JSON object a line, made anew from the ledger."""
    check_place(out)
    lines: list[str] = []
    going: int | None = 0
    while going is not None:
        answer = session.call("lineage.events", since=since, after=going)
        lines += [json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in answer["events"]]
        going = answer["next"]
    body = "".join(f"{line}\n" for line in lines)
    if out is None:
        click.echo(body, nl=False)
        return
    _save(out, body)
    session.show({"events": len(lines), "file": str(out)}, lambda a: f"{a['events']:,} events in {a['file']}")


def _write(session: Session, path: Path, body: str) -> None:
    _save(path, body)
    session.note(f"wrote {path}")


def _save(path: Path, body: str) -> None:
    try:
        path.write_text(body, encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"cannot write ({error.strerror or error})", where=str(path)) from None


# What a person reads

_WORDS = {"version": "", "batch": "", "table": "table", "promotion": "promotion", "evidence": "evidence"}
_SAID = frozenset({"baseline of", "started", "called for", "raised"})
# Told by `lineage columns`; a tree of them would hide the rest.
_APART = frozenset({"column", "feature", "label", "rows"})


def version_text(answer: dict[str, Any]) -> str:
    """A version's lineage as a tree."""
    parts = ["\n".join(answer["says"])]
    if answer["direction"] in ("up", "both"):
        parts.append("comes from\n" + _tree(answer, forward=False))
    if answer["direction"] in ("down", "both"):
        parts.append("led to\n" + _tree(answer, forward=True))
    reads = sorted(n["label"] for n in answer["nodes"] if n["kind"] == "column")
    if reads and answer["direction"] != "down":
        runs = sorted({n["run"] for n in answer["nodes"] if n["kind"] == "feature" and n.get("run")})
        how = f"loopwright lineage columns {runs[0][:12] if runs else 'RUN'}"
        parts.append(f"columns read: {', '.join(reads)}\nfor what: {how}")
    return "\n\n".join([*parts, *_notes(answer)])


def _impact(answer: dict[str, Any]) -> str:
    parts = ["\n".join(answer["says"])]
    if answer["affected"]:
        rows = answer["affected"]
        parts.append(table(rows[:20], [
            ("model", "model"), ("version", "version"), ("stage", "stage"),
            ("serves", lambda v: "now" if v["live"] else None), ("answers", "answers"), ("registered", "at"),
            ("author", "author"),
        ]) + (f"\n… and {len(rows) - 20:,} more (--json names them)" if len(rows) > 20 else ""))  # fmt: skip
    parts.append(_tree(answer, forward=True))
    return "\n\n".join([*parts, *_notes(answer)])


def _notes(answer: dict[str, Any]) -> list[str]:
    return ["folded: " + "; ".join(answer["folded"]) + " (--whole shows all)"] if answer["folded"] else []


def _tree(answer: dict[str, Any], *, forward: bool) -> str:
    """The graph as a tree from its focus; what was shown above is not shown twice."""
    nodes = {node["id"]: node for node in answer["nodes"]}
    ways: dict[str, list[tuple[str, str]]] = {}
    for edge in answer["edges"]:
        here, there = (edge["from"], edge["to"]) if forward else (edge["to"], edge["from"])
        ways.setdefault(here, []).append((there, edge["kind"]))
    shown: set[str] = set()
    lines: list[str] = []
    # An explicit stack: a long history is deeper than Python's own.
    waiting = [(key, "", "", "") for key in reversed(answer["focus"])]
    while waiting:
        key, lead, hang, kind = waiting.pop()
        again = key in shown
        why = f"  [{kind}]" if kind in _SAID else ""
        lines.append(f"{lead}{_line(nodes[key])}{why}{'  (see above)' if again and ways.get(key) else ''}")
        if again:
            continue
        shown.add(key)
        apart = _APART if nodes[key]["kind"] not in _APART else frozenset()
        children = [(child, why) for child, why in ways.get(key, ()) if nodes[child]["kind"] not in apart]
        for place, (child, edge) in enumerate(reversed(children)):
            last = place == 0
            waiting.append(
                (child, hang + ("└─ " if last else "├─ "), hang + ("   " if last else "│  "), edge)
            )
    return "\n".join(lines)


def _line(node: dict[str, Any]) -> str:
    kind = _WORDS.get(node["kind"], node["kind"])
    label = node["label"] if node["kind"] != "source" else node.get("uri", node["label"])
    named = label if not kind or kind in label.split()[:3] else f"{kind} {label}"
    facts = []
    if node["kind"] == "version" and node.get("stage"):
        facts.append(f"stage {node['stage']}")
    if node.get("live"):
        facts.append("serves now")
    if node.get("rows") is not None and node["kind"] != "labels":
        facts.append(f"{node['rows']:,} rows")
    if node["kind"] == "run":
        facts += [str(node[name]) for name in ("status", "reason") if node.get(name)]
    if node.get("requested_by"):
        facts.append(f"asked for by {node['requested_by']}")
    if node.get("approved_by"):
        facts.append(f"approved by {', '.join(node['approved_by'])}")
    if node.get("by") or node.get("actor") or node.get("author"):
        facts.append(f"by {node.get('by') or node.get('actor') or node.get('author')}")
    if node.get("at"):
        facts.append(text(node["at"]) + (f" to {text(node['until'])}" if node.get("until") else ""))
    return " · ".join([named, *facts])


def _columns(answer: dict[str, Any]) -> str:
    parts = [("input", each) for each in answer["inputs"]]
    parts += [(name, answer[name]) for name in ("label", "rows") if answer.get(name)]
    rows = [
        {
            "input": each["name"], "view": each["view"], "level": each["level"],
            "value": ", ".join(_names(each, "value")),
            "other": "; ".join(
                f"{how} {', '.join(_names(each, how))}"
                for how in ("joined on", "as of", "known at", "filtered by", "named by") if _names(each, how)
            ),
        }
        for _, each in parts
    ]  # fmt: skip
    transform = answer["transform"]
    origin = "as recorded with it" if answer["recorded"] else "told anew from the code kept with it"
    differs = {True: "; the same as recorded", False: "; NOT what was recorded", None: ""}[answer["agrees"]]
    return "\n".join([
        f"run {answer['run']} of {answer['model']}, {origin}{differs}",
        table(rows, [("input", "input"), ("view", "view"), ("level", "level"), ("value from", "value"),
                     ("and", "other")]),
        f"{transform['source']} reads all {len(transform['reads'])} inputs; which feature it makes of which, only its "
        "Python says",
    ])  # fmt: skip


def _names(each: dict[str, Any], how: str) -> list[str]:
    return [f"{read['table']}.{read['column']}" for read in each["reads"] if how in read["for"]]
