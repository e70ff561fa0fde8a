"""SQL of the registry: our versions, promotions, approvals, evidence, and MLflow's rows beside them.

Every function works inside the caller's transaction. The ledger has one writer at a time, so reading and then
writing is safe. MLflow's tables are named here by hand, so that folder mode needs no MLflow import.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, column, delete, func, insert, select, table, update

from loopwright.kernel.actor import Role
from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import NotFound, Tampered, did_you_mean
from loopwright.kernel.ids import new_id
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.schema import approvals, evidence, projects, promotions, versions
from loopwright.ledger.schema import snapshots as snapshot_rows
from loopwright.registry.policy import Policy, Promotion, read_policy
from loopwright.registry.records import Approval, Evidence, Version, source_of

ML_DELETED = "Deleted_Internal"
"""The stage of a row that MLflow keeps for its number only."""

WORKSPACE = "default"  # MLflow's name for the only workspace of a server without workspaces

ml_models = table(
    "registered_models",
    *map(column, ("workspace", "name", "creation_time", "last_updated_time", "description")),
)
ml_versions = table(
    "model_versions",
    *map(
        column,
        (
            "workspace", "name", "version", "creation_time", "last_updated_time", "description", "user_id",
            "current_stage", "source", "storage_location", "run_id", "status",
        ),
    ),
)  # fmt: skip
ml_aliases = table("registered_model_aliases", *map(column, ("workspace", "name", "alias", "version")))
ml_model_tags = table("registered_model_tags", *map(column, ("workspace", "name", "key", "value")))
ml_tags = table("model_version_tags", *map(column, ("workspace", "name", "version", "key", "value")))
ml_runs = table(
    "runs", *map(column, ("run_uuid", "experiment_id", "lifecycle_stage", "artifact_uri", "user_id"))
)


# Versions

_KEPT = versions.c.deleted_at.is_(None)
"""Deleted versions keep their row, for the audit log and so that no number is given twice; nothing lists them."""


def insert_version(conn: Connection, version: Version) -> None:
    conn.execute(
        insert(versions).values(
            model=version.model, version=version.version, bundle=version.bundle, run_id=version.run_id,
            snapshot=version.snapshot, semver=version.semver, stage=version.stage.value, author=version.author,
            created_at=to_us(version.created_at), parent=version.parent, metrics=_json(version.metrics),
            annotations=_json(version.annotations),
        )
    )  # fmt: skip


def find_version(conn: Connection, model: str, version: int) -> Version | None:
    query = select(versions).where(versions.c.model == model, versions.c.version == version, _KEPT)
    row = conn.execute(query).one_or_none()
    return _version(row) if row else None


def get_version(conn: Connection, model: str, version: int) -> Version:
    """Return the version; raises NotFound naming what there is."""
    found = find_version(conn, model, version)
    if found is not None:
        return found
    gone = deleted_at(conn, model, version)
    if gone is not None:
        raise NotFound(
            f"`{model}` version {version} was deleted on {gone:%Y-%m-%d}, its retention over",
            where="registry",
        )
    known = [v.version for v in list_versions(conn, model, limit=10)]
    if known:
        listed = ", ".join(map(str, known))
        raise NotFound(f"`{model}` has no version {version}", where="registry", wanted=f"one of {listed}")
    names = list_models(conn)
    raise NotFound(
        f"no model `{model}` is registered",
        where="registry",
        wanted=f"one of {', '.join(names[:20])}" if names else "",
        next=did_you_mean(model, names) or "Train and register one first: loopwright run DIR",
    )


def deleted_at(conn: Connection, model: str, version: int) -> datetime | None:
    """When the version was deleted; None for one that is there, or never was."""
    query = select(versions.c.deleted_at).where(versions.c.model == model, versions.c.version == version)
    moment = conn.execute(query).scalar_one_or_none()
    return None if moment is None else from_us(moment)


def list_versions(
    conn: Connection,
    model: str,
    *,
    stage: Stage | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> list[Version]:
    """Versions of `model`, oldest first: those in `stage`, numbered under `before`, the newest `limit` of them."""
    query = select(versions).where(versions.c.model == model, _KEPT)
    if stage is not None:
        query = query.where(versions.c.stage == stage.value)
    if before is not None:
        query = query.where(versions.c.version < before)
    found = conn.execute(query.order_by(versions.c.version.desc()).limit(limit)).all()
    return [_version(row) for row in found[::-1]]


def current_version(conn: Connection, model: str, stage: Stage) -> Version | None:
    """Of the versions in `stage`, the one promoted there last by the audit log's numbers, whatever clocks said."""
    inside = select(versions.c.version).where(
        versions.c.model == model, versions.c.stage == stage.value, _KEPT
    )
    if conn.execute(inside.limit(1)).first() is None:
        return None
    of_version = (versions.c.model == promotions.c.model) & (versions.c.version == promotions.c.version)
    query = (
        select(versions)
        .join(promotions, of_version)
        .where(
            promotions.c.model == model, promotions.c.stage == stage.value, promotions.c.state == "effective",
            versions.c.stage == stage.value, _KEPT,
        )
        # Every effective promotion has one; the index has them in this order.
        .order_by(promotions.c.decided_seq.desc())
        .limit(1)
    )  # fmt: skip
    row = conn.execute(query).one_or_none()
    return _version(row) if row else None


@dataclass(slots=True)
class Overview:
    """A model at a glance: how many versions there are, and the numbers of those that matter now."""

    versions: int
    newest: int
    staging: list[int] = field(default_factory=list)
    production: list[int] = field(default_factory=list)


def overviews(conn: Connection, model: str | None = None) -> dict[str, Overview]:
    """Every model that has a version (or only `model`), by name."""
    only = [] if model is None else [versions.c.model == model]
    counted = (
        select(versions.c.model, func.count(), func.max(versions.c.version))
        .where(_KEPT, *only)
        .group_by(versions.c.model)
        .order_by(versions.c.model)
    )
    found = {str(name): Overview(int(count), int(newest)) for name, count, newest in conn.execute(counted)}
    staged = select(versions.c.model, versions.c.version, versions.c.stage).where(
        versions.c.stage.in_((Stage.STAGING.value, Stage.PRODUCTION.value)), _KEPT, *only
    )
    for name, number, stage in conn.execute(staged.order_by(versions.c.model, versions.c.version)):
        one = found[str(name)]
        (one.production if stage == Stage.PRODUCTION.value else one.staging).append(int(number))
    return found


def list_models(conn: Connection) -> list[str]:
    """The names of all models that have a version."""
    query = select(versions.c.model).where(_KEPT).distinct().order_by(versions.c.model)
    return [str(name) for name in conn.execute(query).scalars()]


def semvers(conn: Connection, model: str) -> list[str]:
    """Every semantic version the model has ever used, those of deleted versions included: none is used twice."""
    query = select(versions.c.semver).where(versions.c.model == model, versions.c.semver.is_not(None))
    return [str(semver) for semver in conn.execute(query).scalars()]


def version_of_bundle(conn: Connection, model: str, bundle: str) -> Version | None:
    query = select(versions).where(versions.c.model == model, versions.c.bundle == bundle, _KEPT)
    row = conn.execute(query.order_by(versions.c.version).limit(1)).one_or_none()
    return _version(row) if row else None


def versions_of_runs(conn: Connection, run_ids: list[str]) -> list[tuple[str, str, int]]:
    """(run, model, version) of every registered version that came from one of `run_ids`, in ours or MLflow's rows."""
    ours = select(versions.c.run_id, versions.c.model, versions.c.version).where(
        versions.c.run_id.in_(run_ids), _KEPT
    )
    theirs = select(ml_versions.c.run_id, ml_versions.c.name, ml_versions.c.version).where(
        ml_versions.c.run_id.in_(run_ids)
    )
    found = {(str(r), str(m), int(v)) for query in (ours, theirs) for r, m, v in conn.execute(query)}
    return sorted(found)


def set_annotations(conn: Connection, model: str, version: int, annotations: Mapping[str, str]) -> None:
    conn.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.version == version)
        .values(annotations=_json(annotations))
    )


def set_stage(conn: Connection, model: str, version: int, stage: Stage, now: datetime) -> None:
    """Set our stage and MLflow's together. Raises Tampered when MLflow has no such row: then nothing may change."""
    conn.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.version == version)
        .values(stage=stage.value)
    )
    changed = conn.execute(
        update(ml_versions)
        .where(*_ml_version(model, version))
        .values(current_stage=stage.value, last_updated_time=_millis(now))
    )
    if changed.rowcount != 1:
        raise Tampered(
            "MLflow's row of this version is gone; its stage was not changed",
            where=f"{model}/{version}",
            next="Restore the ledger from a backup; see: loopwright audit verify.",
        )


# MLflow's rows


def put_ml_model(conn: Connection, model: str, now: datetime) -> None:
    """Make MLflow's row of the model when there is none."""
    known = select(ml_models.c.name).where(ml_models.c.workspace == WORKSPACE, ml_models.c.name == model)
    if conn.execute(known).first() is None:
        values = {
            "workspace": WORKSPACE,
            "name": model,
            "creation_time": _millis(now),
            "last_updated_time": _millis(now),
        }
        conn.execute(insert(ml_models).values(**values))


def is_prompt(conn: Connection, model: str) -> bool:
    """Whether MLflow keeps a prompt, not a model, under the name."""
    where = (ml_model_tags.c.workspace == WORKSPACE, ml_model_tags.c.name == model)
    query = select(ml_model_tags.c.key).where(*where, ml_model_tags.c.key == "mlflow.prompt.is_prompt")
    return conn.execute(query).first() is not None


def next_version(conn: Connection, model: str) -> int:
    """The number after all that MLflow or we have ever given, deleted ones included."""
    theirs = select(func.max(ml_versions.c.version)).where(ml_versions.c.name == model)
    ours = select(func.max(versions.c.version)).where(versions.c.model == model)
    return max(conn.execute(theirs).scalar() or 0, conn.execute(ours).scalar() or 0) + 1


def insert_ml_version(
    conn: Connection, version: Version, *, description: str, tags: Mapping[str, str]
) -> None:
    """Make MLflow's row of a sealed version, so that its clients see and load it."""
    if version.bundle is None:
        raise ValueError("MLflow's own store writes the rows of versions without a bundle")
    now = _millis(version.created_at)
    source = source_of(version.bundle)
    # MLflow's column holds 32 characters: a run recorded while tracking was down has no MLflow run.
    run_id = version.run_id if version.run_id and len(version.run_id) <= 32 else None
    conn.execute(
        insert(ml_versions).values(
            workspace=WORKSPACE, name=version.model, version=version.version, creation_time=now,
            last_updated_time=now, description=description[:5000] or None, user_id=version.author,
            current_stage=version.stage.value, source=source, storage_location=source, run_id=run_id, status="READY",
        )
    )  # fmt: skip
    for key, value in tags.items():
        put_ml_tag(conn, version.model, version.version, key, value)


def put_ml_tag(conn: Connection, model: str, version: int, key: str, value: str) -> None:
    """Set a tag on MLflow's row of the version."""
    where = {"workspace": WORKSPACE, "name": model, "version": version, "key": key}
    conn.execute(delete(ml_tags).where(*(ml_tags.c[name] == part for name, part in where.items())))
    conn.execute(insert(ml_tags).values(**where, value=value))


def ml_source(conn: Connection, model: str, version: int) -> str | None:
    """Where MLflow's clients would load the version from, None when MLflow has no such row."""
    query = select(ml_versions.c.source, ml_versions.c.storage_location).where(*_ml_version(model, version))
    row = conn.execute(query).one_or_none()
    return None if row is None else str(row.storage_location or row.source)


def ml_stage(conn: Connection, model: str, version: int) -> str | None:
    query = select(ml_versions.c.current_stage).where(*_ml_version(model, version))
    return conn.execute(query).scalar_one_or_none()


def has_versions(conn: Connection, model: str) -> bool:
    """Whether a version was ever registered under the name, deleted ones included; prompts have none."""
    query = select(versions.c.version).where(versions.c.model == model)
    return conn.execute(query.limit(1)).first() is not None


def point_alias(conn: Connection, model: str, alias: str, version: int | None) -> None:
    """Make MLflow's alias name `version`, or remove it."""
    where = (ml_aliases.c.workspace == WORKSPACE, ml_aliases.c.name == model, ml_aliases.c.alias == alias)
    conn.execute(delete(ml_aliases).where(*where))
    if version is not None:
        conn.execute(insert(ml_aliases).values(workspace=WORKSPACE, name=model, alias=alias, version=version))


# Promotions


def insert_promotion(conn: Connection, promotion: Promotion) -> None:
    conn.execute(
        insert(promotions).values(
            id=promotion.id, model=promotion.model, version=promotion.version, stage=promotion.stage.value,
            bundle=promotion.bundle, requested_by=promotion.requested_by,
            requested_at=to_us(promotion.requested_at), reason=promotion.reason, state=promotion.state,
            decided_at=to_us(promotion.decided_at) if promotion.decided_at else None,
            policy=_json(promotion.policy.to_json()), policy_digest=promotion.policy_digest,
            emergency=promotion.emergency, seq=promotion.seq,
        )
    )  # fmt: skip


def insert_approval(conn: Connection, promotion_id: str, approval: Approval, seq: int) -> None:
    conn.execute(
        insert(approvals).values(
            id=new_id("ap"), promotion_id=promotion_id, reviewer=approval.reviewer, decision=approval.decision,
            comment=approval.comment, at=to_us(approval.at), bundle=approval.bundle, seq=seq,
            role=approval.role.name.lower(), policy_digest=approval.policy_digest,
        )
    )  # fmt: skip


def decide_promotion(
    conn: Connection,
    promotion_id: str,
    state: str,
    now: datetime,
    *,
    seq: int | None = None,
    policy: Policy | None = None,
) -> None:
    """Close a promotion; `seq` is the decision's audit row (kept when left out), `policy` what it was decided under."""
    under: dict[str, Any] = (
        {"policy": _json(policy.to_json()), "policy_digest": policy.digest} if policy else {}
    )
    under |= {} if seq is None else {"decided_seq": seq}
    conn.execute(
        update(promotions)
        .where(promotions.c.id == promotion_id)
        .values(state=state, decided_at=to_us(now), **under)
    )


def find_promotions(
    conn: Connection,
    *,
    model: str | None = None,
    version: int | None = None,
    stage: Stage | None = None,
    state: str | None = None,
    id: str | None = None,
    between: tuple[int, int] | None = None,
) -> list[Promotion]:
    """Promotions that match all that is given, in the order of their requests, with their approvals."""
    wanted = {"model": model, "version": version, "stage": stage and stage.value, "state": state, "id": id}
    where = [promotions.c[name] == value for name, value in wanted.items() if value is not None]
    if between is not None:
        where += [promotions.c.version >= between[0], promotions.c.version <= between[1]]
    query = select(promotions).where(*where).order_by(promotions.c.seq, promotions.c.id)
    rows = conn.execute(query).all()
    spoken: dict[str, list[Approval]] = {row.id: [] for row in rows}
    said = (
        select(approvals)
        .join(promotions, promotions.c.id == approvals.c.promotion_id)
        .where(*where)
        .order_by(approvals.c.seq, approvals.c.id)
    )
    for row in conn.execute(said):
        spoken[row.promotion_id].append(
            Approval(
                row.reviewer, row.decision, row.comment, from_us(row.at), row.bundle, Role.parse(row.role),
                row.policy_digest, row.seq,
            )
        )  # fmt: skip
    return [_promotion(row, tuple(spoken[row.id])) for row in rows]


def effective_productions(conn: Connection, model: str) -> list[Promotion]:
    """Effective promotions of `model` to Production, the latest decision first, whatever clocks said."""
    found = find_promotions(conn, model=model, stage=Stage.PRODUCTION, state="effective")
    return sorted(found, key=lambda p: p.decided_seq or p.seq, reverse=True)


def team_of(conn: Connection, model: str) -> str | None:
    """The team whose project makes `model`; None for a model no project of this home made."""
    return conn.execute(select(projects.c.team).where(projects.c.model == model)).scalar_one_or_none()


# Evidence and what lineage reads


def insert_evidence(conn: Connection, item: Evidence) -> None:
    """Keep the evidence; the same content twice is kept once."""
    if conn.execute(select(evidence.c.digest).where(evidence.c.digest == item.digest)).first() is None:
        conn.execute(
            insert(evidence).values(
                digest=item.digest, kind=item.kind, model=item.model, version=item.version, bundle=item.bundle,
                verdict=item.verdict.value, payload=_json(item.payload), at=to_us(item.at), seq=item.seq,
            )
        )  # fmt: skip


def find_evidence(
    conn: Connection,
    *,
    model: str,
    version: int | None = None,
    bundle: str | None = None,
    kind: str | None = None,
) -> list[Evidence]:
    """Evidence of a model, as it was recorded; that of a version is what names its number or its bundle."""
    query = select(evidence).where(evidence.c.model == model).order_by(evidence.c.seq, evidence.c.digest)
    if version is not None and bundle is not None:
        query = query.where((evidence.c.version == version) | (evidence.c.bundle == bundle))
    elif version is not None:
        query = query.where(evidence.c.version == version)
    elif bundle is not None:
        query = query.where(evidence.c.bundle == bundle)
    if kind is not None:
        query = query.where(evidence.c.kind == kind)
    return [
        Evidence(
            row.digest, row.kind, row.model, row.version, row.bundle, Verdict(row.verdict), json.loads(row.payload),
            from_us(row.at), row.seq,
        )
        for row in conn.execute(query)
    ]  # fmt: skip


def snapshot_manifest(conn: Connection, digest: str) -> dict[str, Any] | None:
    text = conn.execute(
        select(snapshot_rows.c.manifest).where(snapshot_rows.c.digest == digest)
    ).scalar_one_or_none()
    return json.loads(text) if text else None


def _ml_version(model: str, version: int) -> tuple[Any, ...]:
    return (
        ml_versions.c.workspace == WORKSPACE,
        ml_versions.c.name == model,
        ml_versions.c.version == version,
    )


def _json(value: object) -> str:
    return canonical_json(dict(value) if isinstance(value, Mapping) else value).decode()


def _millis(moment: datetime) -> int:
    return to_us(moment) // 1000


def _version(row: Row[Any]) -> Version:
    return Version(
        row.model, row.version, row.bundle, row.run_id, row.snapshot, row.semver, Stage(row.stage), row.author,
        from_us(row.created_at), row.parent, json.loads(row.metrics), json.loads(row.annotations),
    )  # fmt: skip


def _promotion(row: Row[Any], said: tuple[Approval, ...]) -> Promotion:
    return Promotion(
        row.id, row.model, row.version, Stage(row.stage), row.bundle, row.requested_by, from_us(row.requested_at),
        row.reason, row.state, from_us(row.decided_at) if row.decided_at is not None else None,
        read_policy(row.policy), row.policy_digest, said, row.emergency, row.seq, row.decided_seq,
    )  # fmt: skip
