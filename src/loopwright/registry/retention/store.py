"""SQL of retention: what a version was last used for, what still needs it, and how its rows go."""

import json
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, column, delete, func, select, table, update

from loopwright.kernel.clock import from_us, to_us
from loopwright.ledger.schema import audit, reviews, rollout_events, rollouts, route_tables, versions
from loopwright.registry.mlflow_rows.store import ml_sources_at
from loopwright.registry.records import source_of
from loopwright.registry.store import (
    ML_DELETED,
    WORKSPACE,
    ml_aliases,
    ml_models,
    ml_tags,
)

_MOVES = (
    "promotion.effective",
    "version.archived",
    "version.demoted",
    "version.reverted",
    "version.restored",
)

_ml_rows = table(
    "model_versions",
    *map(
        column,
        (
            "workspace", "name", "version", "last_updated_time", "description", "user_id", "current_stage", "source",
            "storage_location", "run_id", "run_link", "status_message",
        ),
    ),
)  # fmt: skip


def last_moved(conn: Connection, subject: str) -> datetime | None:
    """When the version last came to a stage or left one."""
    query = select(func.max(audit.c.at)).where(audit.c.subject == subject, audit.c.action.in_(_MOVES))
    moment = conn.execute(query).scalar()
    return None if moment is None else from_us(moment)


def rollouts_with(conn: Connection, model: str, version: int) -> list[str]:
    """Rollouts under way that bring the version or would go back to it."""
    query = select(rollouts.c.id).where(
        rollouts.c.model == model,
        rollouts.c.status.in_(("running", "paused")),
        (rollouts.c.version == version) | (rollouts.c.baseline == version),
    )
    return [str(one) for one in conn.execute(query).scalars()]


def routed(conn: Connection, model: str) -> set[int]:
    """The versions that the newest route table lets servers answer with."""
    query = select(route_tables.c.document).order_by(route_tables.c.serial.desc()).limit(1)
    document = conn.execute(query).scalar_one_or_none()
    if document is None:
        return set()
    # Kept as it was signed: text inside an envelope, which is text itself.
    table = json.loads(json.loads(json.loads(document)["signed"])["table"])
    return {int(number) for number in table["models"].get(model, {}).get("versions", ())}


def answered(conn: Connection, model: str) -> list[int]:
    """The versions that all traffic came to, the last one first."""
    last = func.max(rollout_events.c.id)
    query = (
        select(rollouts.c.version)
        .join(rollout_events, rollout_events.c.rollout_id == rollouts.c.id)
        .where(rollouts.c.model == model, rollout_events.c.kind == "completed")
        .group_by(rollouts.c.version)
        .order_by(last.desc())
    )
    return [int(number) for number in conn.execute(query).scalars()]


def open_reviews(conn: Connection, model: str, version: int) -> list[str]:
    """Promotions of the version that broke the glass and wait for their review."""
    query = select(reviews.c.promotion_id).where(
        reviews.c.model == model, reviews.c.version == version, reviews.c.state == "open"
    )
    return [str(one) for one in conn.execute(query).scalars()]


def mark_deleted(conn: Connection, model: str, version: int, now: datetime) -> None:
    """Hide our row; make MLflow's one that keeps the number only, as its own delete does, and forget where it lay."""
    conn.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.version == version)
        .values(deleted_at=to_us(now))
    )
    millis = to_us(now) // 1000
    conn.execute(
        delete(ml_tags).where(*(ml_tags.c[name] == value for name, value in _key(model, version).items()))
    )
    conn.execute(
        delete(ml_aliases).where(
            *(ml_aliases.c[name] == value for name, value in _key(model, version).items())
        )
    )
    conn.execute(
        update(_ml_rows)
        .where(*(_ml_rows.c[name] == value for name, value in _key(model, version).items()))
        .values(
            current_stage=ML_DELETED, last_updated_time=millis, description=None, user_id=None, source=None,
            storage_location=None, run_id=None, run_link=None, status_message=None,
        )
    )  # fmt: skip
    conn.execute(
        update(ml_models)
        .where(ml_models.c.workspace == WORKSPACE, ml_models.c.name == model)
        .values(last_updated_time=millis)
    )


def unused_bundles(conn: Connection) -> Iterator[str]:
    """Digests of deleted versions' bundles that no other version has, here or among what MLflow's clients copied."""
    used = select(versions.c.bundle).where(versions.c.deleted_at.is_(None), versions.c.bundle.is_not(None))
    query = select(versions.c.bundle).where(
        versions.c.deleted_at.is_not(None), versions.c.bundle.is_not(None), versions.c.bundle.not_in(used)
    )
    for digest in conn.execute(query.distinct()).scalars().all():
        place = source_of(digest)
        if not ml_sources_at(conn, [place], f"{place}/"):
            yield str(digest)


def _key(model: str, version: int) -> dict[str, str | int]:
    return {"workspace": WORKSPACE, "name": model, "version": version}
