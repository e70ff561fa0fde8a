"""data incident|quarantine …, data backfill"""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table, text, times
from loopwright.kernel.clock import parse_time
from loopwright.kernel.errors import BadInput, Unavailable

LONGEST = 200_000


@subcommands()
def incident() -> None:
    """Show and work on data-quality incidents."""


@subcommands("show")
def quarantine() -> None:
    """Show rows that were set aside, let them in, or give them up."""


@command("list", incident)
@click.argument("model", required=False)
@click.option("--table", "table_name", metavar="TABLE", help="Only about this table.")
@click.option("--state", help="Only in this state.")
@click.option("--all", "every", is_flag=True, help="Closed ones too.")
@click.option("--limit", type=int, default=100, show_default=True, help="At most so many, the newest.")
def list_incidents(
    session: Session, model: str | None, table_name: str | None, state: str | None, every: bool, limit: int
) -> int:
    """List incidents that are not closed, newest first.

    Exit code 1 when one of them keeps a model from being trained.
    """
    answer = session.call(
        "incidents.list", model=model, table=table_name, state=state, every=every or None, limit=limit
    )
    columns: list[Column] = [
        ("incident", "id"), ("table", "table"), ("state", "state"), ("kind", "kind"), ("seen", "count"),
        ("opened", "opened_at"), ("last", "last_seen"), ("owner", "owner"), ("what", "title"),
    ]  # fmt: skip
    session.show(answer, lambda rows: table(rows, columns, empty="no incidents"))
    return 1 if any(one["blocking"] for one in answer) else 0


@command("show", incident)
@click.argument("incident_id", metavar="INCIDENT")
def show(session: Session, incident_id: str) -> None:
    """Show what is known: the upstream, the rows, what changed, who is hit, what was done."""
    session.show(session.call("incidents.show", incident=incident_id), _incident)


@command("ack", incident)
@click.argument("incident_id", metavar="INCIDENT")
@click.option("--reason", default="", help="What you are about to do.")
def ack(session: Session, incident_id: str, reason: str) -> None:
    """Say that you look after INCIDENT."""
    session.show(session.call("incidents.ack", incident=incident_id, reason=reason), _moved)


@command("resolve", incident)
@click.argument("incident_id", metavar="INCIDENT")
@click.option("--reason", required=True, help="What became of the cause.")
def resolve(session: Session, incident_id: str, reason: str) -> None:
    """Say that the cause of INCIDENT is gone: training goes on, alerts end."""
    session.show(session.call("incidents.resolve", incident=incident_id, reason=reason), _moved)


@command("close", incident)
@click.argument("incident_id", metavar="INCIDENT")
@click.option(
    "--post-mortem", "file", type=click.Path(path_type=Path, dir_okay=False), help="What was learnt."
)
@click.option("--reason", default="", help="Anything else to be kept.")
def close(session: Session, incident_id: str, file: Path | None, reason: str) -> None:
    """Close INCIDENT.

    One that reached a version in service needs its post-mortem: begin with `data incident post-mortem INCIDENT`.
    """
    told = _read(file) if file else ""
    session.show(session.call("incidents.close", incident=incident_id, reason=reason, text=told), _moved)


@command("reopen", incident)
@click.argument("incident_id", metavar="INCIDENT")
@click.option("--reason", required=True, help="Why it is not over.")
def reopen(session: Session, incident_id: str, reason: str) -> None:
    """Say that INCIDENT is not over after all."""
    session.show(session.call("incidents.reopen", incident=incident_id, reason=reason), _moved)


@command("post-mortem", incident)
@click.argument("incident_id", metavar="INCIDENT")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file.")
@click.option("--html", is_flag=True, help="As a page instead of Markdown.")
def post_mortem(session: Session, incident_id: str, out: Path | None, html: bool) -> None:
    """Draft the post-mortem of INCIDENT: facts, timeline, proposed rules for the contract."""
    answer = session.call("incidents.post_mortem", incident=incident_id, html=html or None)
    if out is None:
        session.show(answer, lambda a: str(a["text"]))
        return
    try:
        out.write_text(answer["text"], encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"cannot write ({error.strerror or error})", where=str(out)) from error
    session.show(answer | {"file": str(out)}, lambda a: f"{a['incident']}: {a['file']}")


@command("list", quarantine)
@click.argument("place", metavar="[MODEL[/TABLE]]", required=False)
def held(session: Session, place: str | None) -> None:
    """List tables with rows in quarantine."""
    model, _, name = (place or "").partition("/")
    columns: list[Column] = [
        ("model", "model"), ("table", "table"), ("rows", "rows"), ("batches", lambda r: len(r["batches"])),
        ("rules", lambda r: ", ".join(f"{rule} {n:,}" for rule, n in list(r["reasons"].items())[:4])),
    ]  # fmt: skip
    session.show(
        session.call("incidents.quarantined", model=model or None, table=name or None),
        lambda rows: table(rows, columns, empty="nothing is in quarantine"),
    )


def _chosen(function: Any) -> Any:
    """The options by which rows are chosen."""
    for option in (
        click.option(
            "--row", "rows", type=int, multiple=True, help="This row of its source; may be given again."
        ),
        click.option("--batch", "batches", multiple=True, help="Rows of this batch (or its first letters)."),
        click.option("--rule", "rules", multiple=True, help="Rows that broke this rule; may be given again."),
    ):
        function = option(function)
    return function


@command("show", quarantine)
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
@click.option("--limit", type=int, default=20, show_default=True, help="So many rows.")
@_chosen
def show_held(
    session: Session,
    model: str,
    table_name: str,
    limit: int,
    rows: tuple[int, ...],
    batches: tuple[str, ...],
    rules: tuple[str, ...],
) -> None:
    """Show rows that were set aside, and why."""
    session.show(
        session.call(
            "incidents.held", model=model, table=table_name, limit=limit, **_choice(rows, batches, rules)
        ),
        _quarantined,
    )


@command("release", quarantine)
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
@_chosen
@click.option("--dry-run", is_flag=True, help="Only say what would be let in.")
@click.option("--force", is_flag=True, help="Let rows in that break nothing but the rules named by --rule.")
@click.option("--reason", default="", help="Why; it is kept. Needed with --force.")
@click.option(
    "--project", type=click.Path(path_type=Path), help="Where the contract lies; default: as trained last."
)
def release(
    session: Session,
    model: str,
    table_name: str,
    rows: tuple[int, ...],
    batches: tuple[str, ...],
    rules: tuple[str, ...],
    dry_run: bool,
    force: bool,
    reason: str,
    project: Path | None,
) -> int:
    """Judge rows in quarantine by the contract in force: those that keep it go into the table.

    Exit code 1 when rows were meant and none was let in.
    """
    answer = session.call(
        "incidents.release", model=model, table=table_name, dry_run=dry_run, force=force, reason=reason,
        project=str(project.absolute()) if project else None, **_choice(rows, batches, rules),
    )  # fmt: skip
    session.show(answer, _released)
    return 1 if answer["chosen"] and not answer["released"] else 0


@command("drop", quarantine)
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
@_chosen
@click.option("--dry-run", is_flag=True, help="Only say how many would go.")
@click.option("--reason", default="", help="Why; it is kept.")
def drop(
    session: Session,
    model: str,
    table_name: str,
    rows: tuple[int, ...],
    batches: tuple[str, ...],
    rules: tuple[str, ...],
    dry_run: bool,
    reason: str,
) -> None:
    """Give rows in quarantine up. They stay in bronze, and in older versions of the quarantine."""
    answer = session.call(
        "incidents.drop", model=model, table=table_name, dry_run=dry_run, reason=reason,
        **_choice(rows, batches, rules),
    )  # fmt: skip
    session.show(
        answer,
        lambda a: (
            f"{a['dropped']:,} rows {'would be' if a['dry_run'] else 'are'} dropped, {a['held']:,} stay"
        ),
    )


@command("backfill")
@click.argument("model")
@click.option(
    "--incident", "incident_id", metavar="INCIDENT", help="What it is for; it is backfilled afterwards."
)
@click.option(
    "--since", type=str, metavar="TIME", help="Build these days again in any case, from this moment."
)
@click.option("--until", type=str, metavar="TIME", help="… and before this one.")
@click.option("--dry-run", is_flag=True, help="Only say which days would be built again.")
@click.option(
    "--project", type=click.Path(path_type=Path), help="The project's folder; default: as trained last."
)
def backfill(
    session: Session,
    model: str,
    incident_id: str | None,
    since: str | None,
    until: str | None,
    dry_run: bool,
    project: Path | None,
) -> None:
    """Compute anew what changed rows reach downstream: those days of the gold table, then features online."""
    answer = session.call(
        "incidents.backfill", model=model, incident=incident_id, since=_time(since), until=_time(until),
        dry_run=dry_run, project=str(project.absolute()) if project else None,
    )  # fmt: skip
    session.show(answer, _backfilled)


COMMANDS = (incident, quarantine, backfill)


def _choice(rows: tuple[int, ...], batches: tuple[str, ...], rules: tuple[str, ...]) -> dict[str, Any]:
    return {"rows": list(rows) or None, "batches": list(batches) or None, "rules": list(rules) or None}


def _time(given: str | None) -> datetime | str | None:
    if given is None:
        return None
    return parse_time(given if "T" in given or " " in given else f"{given}T00:00:00Z").isoformat()


def _read(file: Path) -> str:
    try:
        told = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(file), wanted="a text file") from error
    if len(told) > LONGEST:
        raise BadInput("too long for a post-mortem", where=str(file), got=f"{len(told):,} characters",
                       wanted=f"at most {LONGEST:,}")  # fmt: skip
    return told


def _moved(answer: dict[str, Any]) -> str:
    owner = f" by {answer['owner']}" if answer["state"] == "acknowledged" else ""
    return f"{answer['id']}: {answer['state']}{owner} · {answer['title']}"


def _incident(answer: dict[str, Any]) -> str:
    triage, consumers = answer["triage"], answer["consumers"] or {}
    good = triage.get("last_good") or {}
    parts = [
        f"{answer['id']}: {answer['title']}",
        pairs(
            {
                "state": answer["state"] + (", training is refused" if answer["blocking"] else ""),
                "impact": answer["impact"],
                "owner": answer["owner"],
                "source": triage["source"]["uri"],
                "batch": (triage["source"]["batch"] or "")[:16],
                "seen": f"{_many(answer['count'], 'time')}, first {triage['first_seen']}, last {triage['last_seen']}",
                "last good": f"{good['at']}, batch {str(good['batch'])[:12]}, {good['rows']:,} rows"
                if good
                else "none",
            }
        ),
    ]  # fmt: skip
    if triage["rules"]:
        columns: list[Column] = [("rule", "name"), ("column", "column"), ("severity", "severity"),
                                 ("state", "state"), ("rows", "failed"), ("why", "why")]  # fmt: skip
        parts.append(table(triage["rules"], columns))
        parts += [
            f"  {rule['name']}: {text(example)}"
            for rule in triage["rules"]
            for example in rule.get("examples", ())
        ]
    elif triage["why"]:
        parts.append(triage["why"])
    rows = triage["rows"]
    if rows.get("failing"):
        parts.append(
            f"{rows['failing']:,} of {rows['input']:,} rows fail, from row {rows['first']} to row {rows['last']}"
            + (" without a gap" if rows.get("contiguous") else "")
        )
        parts += [
            f"  {one['column']} = {one['value']}: {one['share']:.0%} of them, {one['of_all']:.0%} of all rows"
            for one in rows.get("spread", ())
        ]
    parts += [f"  changed: {line}" for line in triage["changes"]]
    parts += [f"  upstream {one['table']}: {one['why']}" for one in triage["upstream"]]
    parts += _hit(consumers)
    timeline: list[Column] = [
        ("when", "at"),
        ("who", "actor"),
        ("what", "event"),
        ("more", lambda e: _more(e["payload"])),
    ]
    parts += ["", table(answer["timeline"], timeline)]
    for one in answer["proposals"]:
        parts += ["", f"proposed, under {one['where']}: {one['title']}", one["yaml"].rstrip()]
    return times("\n".join(parts))


def _hit(consumers: dict[str, Any]) -> list[str]:
    features = consumers.get("features", ())
    told = [f"  feature {one['name']} ({', '.join(one['columns'])})" for one in features if one["hit"]]
    quiet = sum(not one["hit"] for one in features)
    told += [f"  and {_many(quiet, 'feature')} of columns that no broken rule is about"] if quiet else []
    versions = consumers.get("versions", ())
    told += [f"  trained on it: {_many(len(versions), 'version')}"] if versions else []
    told += [f"  in service: {', '.join(consumers['live'])}"] if consumers.get("live") else []
    return ["who is hit", *(told or ["  nobody that is known here"])]


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _more(payload: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {text(value)[:12] if name in ('batch', 'snapshot', 'decision') else text(value)[:60]}"
        for name, value in payload.items()
        if name not in ("model", "cause", "uri") and value not in (None, "", [], {}, 0)
    )


def _quarantined(answer: dict[str, Any]) -> str:
    head = f"{answer['model']}/{answer['table']}: {_many(answer['rows'], 'row')} set aside"
    if answer["chosen"] != answer["rows"]:
        head += f", {answer['chosen']:,} of them chosen"
    if not answer["rows"]:
        return head
    reasons = [{"rule": rule, "rows": count} for rule, count in answer["reasons"].items()]
    lines = [
        f"  row {row.get('_row')}: {', '.join(row.get('_reasons') or [])} · "
        + ", ".join(f"{k}={text(v)}" for k, v in row.items() if not k.startswith("_"))
        for row in answer["examples"]
    ]
    return "\n".join([head, "", table(reasons, [("rule", "rule"), ("rows", "rows")]), "", *lines])


def _released(answer: dict[str, Any]) -> str:
    verb = "would be let in" if answer["dry_run"] else "are let in"
    lines = [
        f"{_many(answer['chosen'], 'row')} judged: {answer['released']:,} {verb}, {answer['kept']:,} still break a rule"
        + (f", {answer['malformed']:,} are no rows" if answer["malformed"] else "")
    ]
    if answer["waived"]:
        lines.append(f"  waived: {answer['waived']:,} times a rule was broken")
    lines += [f"  row {one['row']}: {', '.join(one['reasons'])}" for one in answer["examples"]]
    if answer["silver_version"] is not None:
        lines.append(
            f"silver is at version {answer['silver_version']}, {answer['held']:,} rows stay in quarantine; "
            f"next: loopwright data backfill {answer['model']}"
        )
    return "\n".join(lines)


def _backfilled(answer: dict[str, Any]) -> str:
    lines = [
        f"{one['table']}: {one['came']:,} rows came, {one['gone']:,} are gone"
        + (f", {text(one['first'])} to {text(one['last'])}" if one["first"] else "")
        for one in answer["changes"]
    ] or ["no rows changed"]
    days = answer["considered"]
    lines.append(
        f"all days are built again: {answer['why']}" if days is None
        else f"{len(days)} days are built again" + (f": {days[0]} to {days[-1]}" if days else "")
    )  # fmt: skip
    if answer["dry_run"]:
        return "\n".join([*lines, "nothing was done"])
    lines.append(
        f"{len(answer['written'])} came out other and were written, {answer['unchanged']} files are as they were"
    )
    lines += [
        f"online {one['view']}: {one['entities']:,} entities ({one['kind']})" for one in answer["online"]
    ]
    if answer["incident"]:
        lines.append(
            f"{answer['incident']}: backfilled; next: loopwright data incident close {answer['incident']}"
        )
    return "\n".join(lines)
