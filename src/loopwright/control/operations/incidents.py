"""Data-quality incidents, rows in quarantine, and recomputing what is downstream."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from html import escape
from typing import Any

from loopwright.control.context import Context
from loopwright.control.incidents import consumers_of, notice, renotice
from loopwright.control.operation import operation
from loopwright.control.projects import open_project
from loopwright.data.contract import Contract
from loopwright.data.incidents import store
from loopwright.data.incidents.model import Act, State, require_reason
from loopwright.data.incidents.post_mortem import post_mortem as written
from loopwright.data.incidents.proposals import propose
from loopwright.data.incidents.record import move
from loopwright.data.lake import Lake
from loopwright.data.quarantine import Choice, drop, look, release, summary
from loopwright.features import store as feature_store
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.pipeline import store as pipeline_store
from loopwright.pipeline.backfill import Online, backfill
from loopwright.pipeline.online import materialize_project
from loopwright.project.spec import Project
from loopwright.registry.authority import require_on, role_on
from loopwright.registry.documents.html import CSP, STYLE, prose


@operation("incidents.list", "GET", "/incidents")
def list_incidents(
    ctx: Context,
    model: str | None = None,
    table: str | None = None,
    state: str | None = None,
    every: bool = False,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """List incidents, the newest first: those that are not closed, one state, or with `every` all of them."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    names = [one.value for one in State]
    if state is not None and state not in names:
        raise BadInput("no such state of an incident", got=state, wanted=", ".join(names),
                       next=did_you_mean(state, names))  # fmt: skip
    states = [State(state)] if state else None if every else [one for one in State if one is not State.CLOSED]
    with ctx.ledger.read() as conn:
        found = store.list_incidents(conn, model=model, states=states, limit=limit)
    wanted = [one for one in found if table is None or table in (one.table, one.table.partition("/")[2])]
    dropped = ("triage", "post_mortem", "consumers")
    return [{k: v for k, v in one.to_json().items() if k not in dropped} for one in wanted]


@operation("incidents.show", "GET", "/incidents/{incident}")
def show(ctx: Context, incident: str) -> dict[str, Any]:
    """Show what is known about an incident: triage, who is hit, what was done, what could be promised in future.

    Values of data are for those who work on the model.
    """
    with ctx.ledger.read() as conn:
        found = store.get_incident(conn, incident)
        if found.consumers is None:
            found = replace(found, consumers=consumers_of(conn, found))
        events = store.events_of(conn, found.id)
        decisions = store.decisions(conn, found.table, limit=20)
        sees = role_on(conn, ctx.actor, model=found.model) >= Role.DEVELOPER
    told = found.to_json()
    if not sees:
        told["triage"] = _without_values(told["triage"])
    return {
        **told,
        "timeline": [event.to_json() for event in events],
        "decisions": [one.to_json() for one in decisions if one.at >= found.opened_at],
        "proposals": [one.to_json() for one in propose(found.triage)] if sees else [],
    }


@operation("incidents.ack", "POST", "/incidents/{incident}/ack")
def ack(ctx: Context, incident: str, reason: str = "") -> dict[str, Any]:
    """Say that you look after an incident."""
    return _moved(ctx, incident, "ack", reason=reason)


@operation("incidents.resolve", "POST", "/incidents/{incident}/resolve")
def resolve(ctx: Context, incident: str, reason: str) -> dict[str, Any]:
    """Say that the cause is gone, and how: training goes on, alerts end."""
    return _moved(ctx, incident, "resolve", reason=require_reason(reason, "resolve an incident"))


@operation("incidents.close", "POST", "/incidents/{incident}/close")
def close(ctx: Context, incident: str, reason: str = "", text: str = "") -> dict[str, Any]:
    """Close an incident. `text` is its post-mortem, which one that reached a version in service needs."""
    return _moved(ctx, incident, "close", reason=reason, text=text)


@operation("incidents.reopen", "POST", "/incidents/{incident}/reopen")
def reopen(ctx: Context, incident: str, reason: str) -> dict[str, Any]:
    """Say that it is not over after all: alerts stand again."""
    return _moved(ctx, incident, "reopen", reason=require_reason(reason, "open an incident again"))


@operation("incidents.post_mortem", "GET", "/incidents/{incident}/post-mortem")
def post_mortem(ctx: Context, incident: str, html: bool = False) -> dict[str, Any]:
    """Write the post-mortem's draft: facts, timeline, proposed rules; what only people know is asked for.

    {"incident", "text"}: Markdown, or a page of HTML that needs nothing else.
    """
    with ctx.ledger.read() as conn:
        found = store.get_incident(conn, incident)
        require_on(conn, ctx.actor, Role.DEVELOPER, "see rows of data", model=found.model)
        if found.consumers is None:
            found = replace(found, consumers=consumers_of(conn, found))
        events = store.events_of(conn, found.id)
    text = written(found, events)
    return {"incident": found.id, "text": _page(found.id, text) if html else text}


@operation("incidents.quarantined", "GET", "/quarantine")
def quarantined(ctx: Context, model: str | None = None, table: str | None = None) -> list[dict[str, Any]]:
    """List tables with rows in quarantine: how many, since when, and which rules they broke."""
    with ctx.ledger.read() as conn:
        known = store.landed_tables(conn)
    if model is not None and model not in {name.partition("/")[0] for name in known}:
        models = sorted({name.partition("/")[0] for name in known})
        raise NotFound("nothing has landed for such a model", got=model, wanted=", ".join(models) or "none yet",
                       next=did_you_mean(model, models))  # fmt: skip
    lake = Lake.of(ctx.home, ctx.ledger)
    found = []
    for name in known:
        owner, _, own = name.partition("/")
        if model not in (None, owner) or table not in (None, own):
            continue
        held = summary(lake, owner, own)
        if held["rows"]:
            found.append({"model": owner, "table": own, **held})
    return found


@operation("incidents.held", "GET", "/data/{model}/{table}/held", role=Role.DEVELOPER)
def held(
    ctx: Context,
    model: str,
    table: str,
    rules: list[str] | None = None,
    batches: list[str] | None = None,
    rows: list[int] | None = None,
    limit: int = 20,
) -> dict[str, Any]:
    """Show rows that were set aside, with the rules they broke, and what was decided about others before."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    _require_table(ctx, model, table)
    lake = Lake.of(ctx.home, ctx.ledger)
    known = summary(lake, model, table)
    chosen, examples = look(lake, model, table, _choice(rules, batches, rows), limit)
    with ctx.ledger.read() as conn:
        decided = store.decisions(conn, f"{model}/{table}", limit=20)
    return {
        "model": model,
        "table": table,
        "chosen": chosen,
        **known,
        "examples": examples,
        "decisions": [one.to_json() for one in decided],
    }


@operation("incidents.release", "POST", "/data/{model}/{table}/release", role=Role.DEVELOPER)
def let_in(
    ctx: Context,
    model: str,
    table: str,
    rules: list[str] | None = None,
    batches: list[str] | None = None,
    rows: list[int] | None = None,
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    project: str | None = None,
) -> dict[str, Any]:
    """Judge rows in quarantine by the contract in force: those that keep it go into silver, the others stay.

    `force` lets in rows that break nothing but the named `rules`; it takes an approver and a reason. `project`: the
    folder that holds the contract, on the machine that does the work; default: where the model was trained last.
    """
    _require_table(ctx, model, table)
    opened = _project(ctx, model, project)
    source = opened.spec.data.sources.get(table)
    if source is None:
        known = list(opened.spec.data.sources)
        raise NotFound(f"{model} has no table of this name", got=table, wanted=", ".join(known),
                       next=did_you_mean(table, known))  # fmt: skip
    with ctx.ledger.read() as conn:
        actor = replace(ctx.actor, role=role_on(conn, ctx.actor, model=model), teams=(), scopes=None)
    outcome = release(
        Lake.of(ctx.home, ctx.ledger),
        model=model,
        table=table,
        contract=Contract.load(opened.path(source.contract)),
        choice=_choice(rules, batches, rows),
        actor=actor,
        now=ctx.now,
        reason=reason,
        force=force,
        dry_run=dry_run,
    )
    return {"model": model, "table": table, **outcome.to_json()}


@operation("incidents.drop", "POST", "/data/{model}/{table}/drop", role=Role.DEVELOPER)
def give_up(
    ctx: Context,
    model: str,
    table: str,
    reason: str = "",
    rules: list[str] | None = None,
    batches: list[str] | None = None,
    rows: list[int] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Give rows in quarantine up, for a reason that is kept. They stay in bronze."""
    _require_table(ctx, model, table)
    with ctx.ledger.read() as conn:
        actor = replace(ctx.actor, role=role_on(conn, ctx.actor, model=model), teams=(), scopes=None)
    outcome = drop(
        Lake.of(ctx.home, ctx.ledger),
        model=model,
        table=table,
        choice=_choice(rules, batches, rows),
        actor=actor,
        now=ctx.now,
        reason=reason,
        dry_run=dry_run,
    )
    return {"model": model, "table": table, **outcome.to_json()}


@operation("incidents.backfill", "POST", "/models/{model}/backfill", role=Role.DEVELOPER)
def recompute(
    ctx: Context,
    model: str,
    incident: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    dry_run: bool = False,
    project: str | None = None,
) -> Any:
    """Compute anew what changed rows reach downstream: those days of the gold table, then the features online.

    `incident`: what it is for; it is backfilled afterwards. Runs the project's features.py.
    """
    opened = _project(ctx, model, project)
    with ctx.ledger.read() as conn:
        actor = replace(ctx.actor, role=role_on(conn, ctx.actor, model=model), teams=(), scopes=None)
    return backfill(
        project=opened,
        lake=Lake.of(ctx.home, ctx.ledger),
        actor=actor,
        clock=ctx.clock,
        incident=incident,
        since=since,
        until=until,
        dry_run=dry_run,
        online=_online(ctx, opened),
    )


def _online(ctx: Context, project: Project) -> Online:
    """Brings the views online that have been there before, each as of the moment it stands at."""
    model = project.spec.model

    def bring(
        views: Sequence[str], entities: Mapping[str, list[dict[str, Any]] | None]
    ) -> list[dict[str, Any]]:
        done = []
        for view in views:
            with ctx.ledger.read() as conn:
                last = feature_store.last(conn, model, view)
            if last is None:
                continue
            named = entities.get(view)
            if named == []:
                continue
            found = materialize_project(
                project, ctx.home, ctx.ledger, ctx.actor, ctx.clock, views=[view],
                as_of=None if named else last.as_of, entities=named,
            )  # fmt: skip
            done += [one.to_json() for one in found]
        return done

    return bring


def _page(title: str, markdown: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(CSP)}">\n'
        f"<title>Post-mortem of {escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{prose(markdown)}\n</main>\n</body>\n</html>\n"
    )


def _moved(ctx: Context, name: str, act: Act, *, reason: str = "", text: str = "") -> dict[str, Any]:
    with ctx.ledger.write() as conn:
        found = store.get_incident(conn, name)
        require_on(conn, ctx.actor, Role.DEVELOPER, f"{act} incidents of {found.model}", model=found.model)
        if found.consumers is None:
            # Whether it is of high impact must be known before it may be closed.
            found = replace(found, consumers=consumers_of(conn, found))
        moved = move(conn, found, act, actor=ctx.actor, now=ctx.now, reason=reason.strip(), post_mortem=text)
        if act == "reopen":
            moved = renotice(conn, ctx, moved)
    notice(ctx)
    return {k: v for k, v in moved.to_json().items() if k not in ("triage", "post_mortem")}


def _project(ctx: Context, model: str, folder: str | None) -> Project:
    """The project in `folder`, or where the model was trained from; raises BadInput for another model's."""
    if folder is None:
        with ctx.ledger.read() as conn:
            row = pipeline_store.find_project(conn, model)
        if row is None:
            raise NotFound(
                f"no project has run for the model `{model}`", where="projects", wanted="where its contracts lie",
                next="Name the folder: --project DIR",
            )  # fmt: skip
        folder = str(row["path"])
    opened = open_project(ctx, folder)
    if opened.spec.model != model:
        raise BadInput("the project is another model's", where=folder, got=opened.spec.model, wanted=model)
    return opened


def _require_table(ctx: Context, model: str, table: str) -> None:
    with ctx.ledger.read() as conn:
        known = store.landed_tables(conn)
    if f"{model}/{table}" not in known:
        own = [name.partition("/")[2] for name in known if name.startswith(f"{model}/")]
        raise NotFound("nothing has landed in such a table", where=model, got=table,
                       wanted=", ".join(own) or "none yet", next=did_you_mean(table, own))  # fmt: skip


def _choice(rules: list[str] | None, batches: list[str] | None, rows: list[int] | None) -> Choice:
    return Choice(tuple(batches or ()), tuple(rules or ()), tuple(rows or ()))


def _without_values(triage: Mapping[str, Any]) -> dict[str, Any]:
    """The triage without values of data."""
    rows = {k: v for k, v in dict(triage.get("rows") or {}).items() if k not in ("values", "spread")}
    rules = [{k: v for k, v in rule.items() if k != "examples"} for rule in triage.get("rules", ())]
    return {**triage, "rows": rows, "rules": rules}
