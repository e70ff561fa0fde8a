"""SQL of the ledger's `projects` and `runs`."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.ledger.schema import projects, runs


def _json(value: object) -> str:
    return canonical_json(value).decode()


def save_project(
    conn: Connection, model: str, path: str, spec: Mapping[str, Any], digest: str, now: datetime
) -> None:
    """Remember where the project of `model` lives and what its loop.yaml says. Is idempotent."""
    values = {
        "path": path,
        "spec": _json(spec),
        "spec_digest": digest,
        "updated_at": to_us(now),
        "team": spec.get("team"),
    }
    changed = conn.execute(update(projects).where(projects.c.model == model).values(**values))
    if changed.rowcount == 0:
        conn.execute(projects.insert().values(model=model, **values))


def find_project(conn: Connection, model: str) -> dict[str, Any] | None:
    """Return `{model, path, spec, spec_digest}`, or None when no project of `model` has got that far."""
    row = conn.execute(select(projects).where(projects.c.model == model)).mappings().first()
    return None if row is None else {**row, "spec": json.loads(row["spec"])}


def load_project_row(conn: Connection, model: str) -> dict[str, Any]:
    """What `find_project` returns; raises NotFound with the nearest known model."""
    row = find_project(conn, model)
    if row is None:
        known = [str(name) for name in conn.execute(select(projects.c.model)).scalars()]
        raise NotFound(
            f"no project has run for the model `{model}`",
            where="projects",
            got=model,
            wanted=f"one of {', '.join(known)}" if known else "a model that has been trained",
            next=did_you_mean(model, known) or "Train it first: loopwright run DIR",
        )
    return row


def list_projects(conn: Connection) -> list[dict[str, Any]]:
    """All projects of the home, by model name; `spec` parsed."""
    rows = conn.execute(select(projects).order_by(projects.c.model)).mappings()
    return [{**row, "spec": json.loads(row["spec"])} for row in rows]


def explained_models(conn: Connection) -> list[str]:
    """Models whose project asks for explanations of its whole log (`explain: {log: all}`), by name."""
    # The stored spec is canonical JSON: sorted keys, no spaces. No document has to be parsed twice a second.
    asks = projects.c.spec.contains('"explain":{"log":"all"', autoescape=True)
    query = select(projects.c.model).where(asks).order_by(projects.c.model)
    return [str(name) for name in conn.execute(query).scalars()]


def online_models(conn: Connection) -> list[str]:
    """Models whose project asks to be kept online (`online: {every: …}`), by name."""
    asks = projects.c.spec.contains('"online":{"after_run":', autoescape=True)
    query = select(projects.c.model).where(asks).order_by(projects.c.model)
    return [str(name) for name in conn.execute(query).scalars()]


def start_run(
    conn: Connection,
    *,
    run_id: str,
    model: str,
    project: str,
    experiment: str,
    actor: str,
    reason: str,
    snapshot: str | None,
    now: datetime,
) -> None:
    conn.execute(
        runs.insert().values(
            run_id=run_id,
            model=model,
            project=project,
            experiment=experiment,
            status="RUNNING",
            started_at=to_us(now),
            actor=actor,
            snapshot=snapshot,
            params=_json({}),
            metrics=_json({}),
            context=_json({}),
            reason=reason,
        )
    )


def finish_run(
    conn: Connection,
    run_id: str,
    *,
    status: str,
    now: datetime,
    bundle: str | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Close the run with `status` FINISHED, REFUSED or FAILED; what is None stays as it was."""
    values: dict[str, Any] = {"status": status, "ended_at": to_us(now)}
    if bundle is not None:
        values["bundle"] = bundle
    for name, value in (("params", params), ("metrics", metrics), ("context", context)):
        if value is not None:
            values[name] = _json(value)
    conn.execute(update(runs).where(runs.c.run_id == run_id).values(**values))


def _as_dict(row: Row[Any]) -> dict[str, Any]:
    found = dict(row._mapping)
    for name in ("params", "metrics", "context"):
        found[name] = json.loads(found[name] or "{}")
    for name in ("started_at", "ended_at"):
        found[name] = iso(from_us(found[name])) if found[name] is not None else None
    return found


def list_runs(conn: Connection, model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The newest `limit` runs, newest first."""
    query = select(runs).order_by(runs.c.started_at.desc(), runs.c.run_id).limit(limit)
    if model is not None:
        query = query.where(runs.c.model == model)
    return [_as_dict(row) for row in conn.execute(query)]


def find_run(conn: Connection, prefix: str) -> dict[str, Any]:
    """The one run whose id starts with `prefix`; raises NotFound, or BadInput when several do."""
    found = conn.execute(select(runs).where(runs.c.run_id.startswith(prefix, autoescape=True)).limit(2)).all()
    if len(found) == 1:
        return _as_dict(found[0])
    if found:
        raise BadInput(
            "the run id is not unique",
            where="runs",
            got=prefix,
            wanted="more characters of the id",
            next="loopwright runs list",
        )
    known = [
        str(run)
        for run in conn.execute(select(runs.c.run_id).order_by(runs.c.started_at.desc()).limit(200)).scalars()
    ]
    raise NotFound(
        "no such run",
        where="runs",
        got=prefix,
        wanted="the id of a recorded run",
        next=did_you_mean(prefix, known) or "loopwright runs list",
    )
