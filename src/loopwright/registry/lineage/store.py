"""SQL of lineage: it only reads. A model is read whole, by a fixed number of queries, whatever it has been through."""

import json
from collections import defaultdict
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from loopwright.kernel.clock import from_us, to_us
from loopwright.ledger.schema import (
    alerts,
    approvals,
    audit,
    batches,
    evidence,
    folds,
    label_batches,
    landings,
    projects,
    promotions,
    retrains,
    rollouts,
    route_tables,
    runs,
    snapshots,
    versions,
    windows,
)
from loopwright.registry.lineage.records import (
    Alarm,
    Answers,
    Arm,
    Judged,
    Landing,
    Outcomes,
    Pinned,
    Promoted,
    Records,
    Registered,
    Retraining,
    Rolled,
    Run,
    Snap,
    Windows,
)


def load(conn: Connection, model: str) -> Records:
    """All that lineage knows of `model`; empty for a model nobody has heard of."""
    spec = conn.execute(select(projects.c.spec).where(projects.c.model == model)).scalar_one_or_none()
    about = json.loads(spec) if spec else {}
    return Records(
        model=model,
        owner=str(about.get("owner") or ""),
        team=str(about.get("team") or ""),
        landings=_landings(conn, model),
        snapshots=_snapshots(conn, model),
        runs=_runs(conn, model),
        versions=_versions(conn, model),
        evidence=_evidence(conn, model),
        promotions=_promotions(conn, model),
        rollouts=_rollouts(conn, model),
        answers=_answers(conn, model),
        labels=_labels(conn, model),
        windows=_windows(conn, model),
        alerts=_alerts(conn, model),
        retrains=_retrains(conn, model),
        arms=_arms(conn, model),
    )


def models(conn: Connection) -> list[str]:
    """Models that have a project, a version or a run, sorted."""
    found: set[str] = set()
    for column in (projects.c.model, versions.c.model, runs.c.model, snapshots.c.model):
        found |= {str(name) for name in conn.execute(select(column).distinct()).scalars()}
    return sorted(found)


def tables(conn: Connection) -> list[str]:
    """Every "model/table" that a batch has landed in, sorted."""
    return sorted(str(name) for name in conn.execute(select(landings.c.table_name).distinct()).scalars())


def batches_like(conn: Connection, table: str, prefix: str) -> list[str]:
    """Ids of the batches of "model/table" that begin with `prefix`, at most ten."""
    query = (
        select(landings.c.batch_id)
        .where(landings.c.table_name == table, landings.c.batch_id.startswith(prefix, autoescape=True))
        .distinct()
        .limit(10)
    )
    return sorted(str(batch) for batch in conn.execute(query).scalars())


def newest_batches(conn: Connection, table: str, limit: int = 5) -> list[str]:
    """Ids of the batches that landed last in "model/table"."""
    query = (
        select(landings.c.batch_id).where(landings.c.table_name == table).order_by(landings.c.id.desc()).limit(limit)
    )  # fmt: skip
    return list(dict.fromkeys(str(batch) for batch in conn.execute(query).scalars()))


def uris(conn: Connection) -> dict[str, set[str]]:
    """Every source's URI and the "model/table"s it landed in."""
    found: dict[str, set[str]] = defaultdict(set)
    for uri, table in conn.execute(select(landings.c.uri, landings.c.table_name).distinct()):
        found[str(uri)].add(str(table))
    return dict(found)


def snapshots_like(conn: Connection, prefix: str) -> list[tuple[str, str]]:
    """(digest, model) of the snapshots that begin with `prefix`, at most ten."""
    query = select(snapshots.c.digest, snapshots.c.model).where(
        snapshots.c.digest.startswith(prefix, autoescape=True)
    )
    return [(str(digest), str(model)) for digest, model in conn.execute(query.limit(10))]


def runs_like(conn: Connection, prefix: str) -> list[tuple[str, str]]:
    """(id, model) of the runs that begin with `prefix`, at most ten."""
    query = select(runs.c.run_id, runs.c.model).where(runs.c.run_id.startswith(prefix, autoescape=True))
    return [(str(run), str(model)) for run, model in conn.execute(query.limit(10))]


def newest(conn: Connection, what: str, limit: int = 200) -> list[str]:
    """The newest snapshot digests or run ids, for "did you mean"."""
    column, order = {
        "snapshot": (snapshots.c.digest, snapshots.c.created_at),
        "run": (runs.c.run_id, runs.c.started_at),
    }[what]
    return [str(name) for name in conn.execute(select(column).order_by(order.desc()).limit(limit)).scalars()]


def _landings(conn: Connection, model: str) -> tuple[Landing, ...]:
    here = landings.c.table_name.startswith(f"{model}/", autoescape=True)
    return tuple(
        Landing(
            row.table_name.removeprefix(f"{model}/"), row.silver_version, row.batch_id, row.uri, row.loading, row.good,
            row.bad, row.contract, row.actor, from_us(row.at),
        )
        for row in conn.execute(select(landings).where(here).order_by(landings.c.id))
    )  # fmt: skip


class _Table(msgspec.Struct):
    version: int
    rows: int
    content_digest: str = ""
    schema: dict[str, str] = {}


class _Manifest(msgspec.Struct):
    tables: dict[str, _Table]


def _snapshots(conn: Connection, model: str) -> tuple[Snap, ...]:
    query = select(snapshots).where(snapshots.c.model == model).order_by(snapshots.c.created_at)
    return tuple(
        Snap(
            row.digest,
            row.rows,
            from_us(row.created_at),
            {
                name: Pinned(table.version, table.rows, table.content_digest, table.schema)
                for name, table in msgspec.json.decode(row.manifest, type=_Manifest).tables.items()
            },
        )
        for row in conn.execute(query)
    )


def schemas(conn: Connection, model: str) -> list[dict[str, list[str]]]:
    """The column names of every table, snapshot by snapshot."""
    query = select(snapshots.c.manifest).where(snapshots.c.model == model)
    return [
        {name: list(table.schema) for name, table in msgspec.json.decode(text, type=_Manifest).tables.items()}
        for text in conn.execute(query).scalars()
    ]


class _Git(msgspec.Struct):
    commit: str = ""
    snapshot: str = ""
    dirty: bool = False


class _Code(msgspec.Struct):
    digest: str = ""
    git: _Git | None = None


class _Project(msgspec.Struct):
    digest: str = ""


class _Context(msgspec.Struct):
    """What lineage takes of a run's context; the rest (packages, hardware) is skipped, not parsed."""

    code: _Code | None = None
    project: _Project | None = None
    lineage: Any = None


def _runs(conn: Connection, model: str) -> tuple[Run, ...]:
    wanted = [column for column in runs.c if column.name not in ("params", "metrics")]
    query = select(*wanted).where(runs.c.model == model).order_by(runs.c.started_at)
    return tuple(_run(row) for row in conn.execute(query))


def _run(row: Row[Any]) -> Run:
    context = _context(row.context)
    code = context.code or _Code()
    git = code.git or _Git()
    return Run(
        row.run_id, row.status, row.actor, row.reason, row.experiment, from_us(row.started_at),
        from_us(row.ended_at) if row.ended_at is not None else None, row.snapshot, row.bundle, git.commit,
        code.digest, context.project.digest if context.project else "", git.dirty,
        context.lineage if isinstance(context.lineage, dict) else None,
    )  # fmt: skip


def _context(text: str | None) -> _Context:
    try:
        return msgspec.json.decode(text or "{}", type=_Context)
    except msgspec.MsgspecError:  # somebody else's run, with a context of another shape
        return _Context()


def _versions(conn: Connection, model: str) -> tuple[Registered, ...]:
    query = select(versions).where(versions.c.model == model).order_by(versions.c.version)
    return tuple(
        Registered(
            row.version, row.bundle, row.run_id, row.snapshot, row.semver, row.stage, row.author,
            from_us(row.created_at), row.parent, json.loads(row.metrics), row.deleted_at is not None,
        )
        for row in conn.execute(query)
    )  # fmt: skip


def _evidence(conn: Connection, model: str) -> tuple[Judged, ...]:
    wanted = (
        evidence.c.digest, evidence.c.kind, evidence.c.version, evidence.c.bundle, evidence.c.verdict, evidence.c.at,
    )  # fmt: skip
    query = select(*wanted).where(evidence.c.model == model).order_by(evidence.c.at, evidence.c.digest)
    return tuple(
        Judged(row.digest, row.kind, row.version, row.bundle, row.verdict, from_us(row.at))
        for row in conn.execute(query)
    )


def _promotions(conn: Connection, model: str) -> tuple[Promoted, ...]:
    said: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    spoken = (
        select(approvals.c.promotion_id, approvals.c.reviewer, approvals.c.decision, approvals.c.comment)
        .join(promotions, promotions.c.id == approvals.c.promotion_id)
        .where(promotions.c.model == model)
        .order_by(approvals.c.at, approvals.c.id)
    )
    for row in conn.execute(spoken):
        said[row.promotion_id].append((row.reviewer, row.decision, row.comment))
    wanted = [column for column in promotions.c if column.name not in ("policy", "policy_digest")]
    query = (
        select(*wanted)
        .where(promotions.c.model == model)
        .order_by(promotions.c.requested_at, promotions.c.id)
    )
    return tuple(
        Promoted(
            row.id, row.version, row.stage, row.state, row.requested_by, from_us(row.requested_at),
            from_us(row.decided_at) if row.decided_at is not None else None, row.reason, row.emergency,
            tuple(said[row.id]),
        )
        for row in conn.execute(query)
    )  # fmt: skip


def _rollouts(conn: Connection, model: str) -> tuple[Rolled, ...]:
    query = select(rollouts).where(rollouts.c.model == model).order_by(rollouts.c.started_at, rollouts.c.id)
    return tuple(
        Rolled(
            row.id, row.version, row.baseline, row.promotion_id, str(json.loads(row.plan).get("strategy") or ""),
            row.status, from_us(row.started_at), from_us(row.ended_at) if row.ended_at is not None else None,
            row.reason,
        )
        for row in conn.execute(query)
    )  # fmt: skip


def _answers(conn: Connection, model: str) -> tuple[Answers, ...]:
    query = (
        select(
            folds.c.version, folds.c.arm, func.sum(folds.c.answers).label("answers"),
            func.sum(folds.c.errors).label("errors"), func.min(folds.c.bucket).label("first"),
            func.max(folds.c.bucket).label("last"),
        )
        .where(folds.c.model == model)
        .group_by(folds.c.version, folds.c.arm)
        .order_by(folds.c.version, folds.c.arm)
    )  # fmt: skip
    return tuple(
        Answers(
            row.version, row.arm, int(row.answers), int(row.errors), from_us(row.first), from_us(row.last)
        )
        for row in conn.execute(query)
    )


def _labels(conn: Connection, model: str) -> tuple[Outcomes, ...]:
    day = label_batches.c.event_to // 86_400_000_000
    query = (
        select(
            func.count().label("batches"), func.sum(label_batches.c.rows).label("labels"),
            func.min(label_batches.c.event_from).label("first"), func.max(label_batches.c.event_to).label("last"),
        )
        .where(label_batches.c.model == model, label_batches.c.event_from.is_not(None), day.is_not(None))
        .group_by(day)
        .order_by(day)
    )  # fmt: skip
    return tuple(
        Outcomes(int(row.batches), int(row.labels), from_us(row.first), from_us(row.last))
        for row in conn.execute(query)
    )


def _windows(conn: Connection, model: str) -> tuple[Windows, ...]:
    keys = (windows.c.version, windows.c.kind, windows.c.verdict)
    query = (
        select(
            *keys,
            func.count().label("count"),
            func.min(windows.c.start).label("first"),
            func.max(windows.c.end).label("last"),
        )
        .where(windows.c.model == model)
        .group_by(*keys)
        .order_by(*keys)
    )
    return tuple(
        # `count` of a row is the tuple's own method
        Windows(row.version, row.kind, row.verdict, int(row[3]), from_us(row.first), from_us(row.last))
        for row in conn.execute(query)
    )


def _alerts(conn: Connection, model: str) -> tuple[Alarm, ...]:
    wanted = [column for column in alerts.c if column.name != "detail"]
    query = select(*wanted).where(alerts.c.model == model).order_by(alerts.c.event_time, alerts.c.id)
    return tuple(
        Alarm(row.id, row.version, row.tier, row.kind, row.title, row.state, from_us(row.event_time))
        for row in conn.execute(query)
    )


def _retrains(conn: Connection, model: str) -> tuple[Retraining, ...]:
    wanted = [column for column in retrains.c if column.name != "plan"]
    query = select(*wanted).where(retrains.c.model == model).order_by(retrains.c.created_at, retrains.c.id)
    return tuple(
        Retraining(
            row.id, row.cause, row.key, row.decision, row.why, row.state, row.run_id, row.version,
            from_us(row.event_time),
        )
        for row in conn.execute(query)
    )  # fmt: skip


class _Envelope(msgspec.Struct):
    table: str


class _Arm(msgspec.Struct):
    name: str
    version: int
    weight: float


class _Route(msgspec.Struct):
    arms: list[_Arm]


class _Routes(msgspec.Struct):
    """The part of a route table that lineage tells of. Nothing is served on our word, so no signature is checked."""

    models: dict[str, _Route]


def _arms(conn: Connection, model: str) -> tuple[Arm, ...] | None:
    query = select(route_tables.c.document).order_by(route_tables.c.serial.desc()).limit(1)
    document = conn.execute(query).scalar_one_or_none()
    if document is None:
        return None
    envelope = msgspec.json.decode(json.loads(document)["signed"], type=_Envelope)
    found = msgspec.json.decode(envelope.table, type=_Routes).models.get(model)
    return tuple(Arm(arm.version, arm.name, arm.weight) for arm in found.arms) if found else None


# What OpenLineage is told


TOLD = (
    "data.ingest", "data.refused", "run.start", "run.finished", "run.refused", "run.failed", "promotion.requested",
    "promotion.effective", "promotion.rejected", "promotion.withdrawn", "approval.given", "rollout.started",
    "rollout.moved", "rollout.paused", "rollout.resumed", "rollout.promoted", "rollout.completed", "rollout.aborted",
    "rollout.rolled_back",
)  # fmt: skip
"""Actions of the audit log that are events of lineage."""


def acts(
    conn: Connection,
    *,
    after: int = 0,
    until: int | None = None,
    since: datetime | None = None,
    limit: int = 1000,
) -> list[tuple[int, datetime, str, str, str, dict[str, Any]]]:
    """(seq, at, actor, action, subject, payload) of the next `limit` rows of the audit log that lineage tells of.

    after, until: numbers of rows, the first left out and the last included.
    """
    query = (
        select(audit).where(audit.c.seq > after, audit.c.action.in_(TOLD)).order_by(audit.c.seq).limit(limit)
    )
    if until is not None:
        query = query.where(audit.c.seq <= until)
    if since is not None:
        query = query.where(audit.c.at >= to_us(since))
    return [
        (row.seq, from_us(row.at), row.actor, row.action, row.subject, json.loads(row.payload))
        for row in conn.execute(query)
    ]


def last_act(conn: Connection) -> int:
    """The number of the audit log's newest row; 0 when there is none."""
    return int(conn.execute(select(func.max(audit.c.seq))).scalar() or 0)


class Facts:
    """What the ledger knows of the things that events name. Each is read once."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._specs: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, dict[str, Pinned]] = {}

    def owner(self, model: str) -> str:
        """Who answers for the model, as its loop.yaml says."""
        if model not in self._specs:
            query = select(projects.c.spec).where(projects.c.model == model)
            text = self._conn.execute(query).scalar_one_or_none()
            self._specs[model] = json.loads(text) if text else {}
        return str(self._specs[model].get("owner") or "")

    def tables(self, snapshot: str) -> dict[str, Pinned]:
        """What the snapshot pins."""
        if snapshot not in self._tables:
            query = select(snapshots.c.manifest).where(snapshots.c.digest == snapshot)
            text = self._conn.execute(query).scalar_one_or_none()
            held = msgspec.json.decode(text, type=_Manifest).tables if text else {}
            self._tables[snapshot] = {
                name: Pinned(table.version, table.rows, table.content_digest, table.schema)
                for name, table in held.items()
            }
        return self._tables[snapshot]

    def rules(self, table: str, batch: str) -> list[dict[str, Any]]:
        """The rules of a contract that the batch was judged by last, with their verdicts."""
        query = select(batches.c.report).where(batches.c.table_name == table, batches.c.batch_id == batch)
        text = self._conn.execute(query).scalar_one_or_none()
        return list(json.loads(text).get("rules") or []) if text else []

    def run(self, run: str) -> tuple[Run, dict[str, float]] | None:
        """The run and its metrics; None when the ledger does not know it."""
        row = self._conn.execute(select(runs).where(runs.c.run_id == run)).one_or_none()
        return (_run(row), json.loads(row.metrics)) if row else None
