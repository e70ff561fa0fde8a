"""SQL of the ledger's `lw_feature_views` and `lw_materializations`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.schema import feature_views, materializations


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition that a view had; numbers count from 1 within the view."""

    model: str
    name: str
    number: int
    digest: str
    document: Mapping[str, Any]
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Materialization:
    """One time that a view was written to a store. `progress`: tables, rows done of how many, why, and what failed."""

    id: str
    model: str
    view: str
    store: str
    definition: str
    table_version: int
    as_of: datetime
    kind: str
    state: str
    rows: int
    progress: Mapping[str, Any]
    started_at: datetime
    ended_at: datetime | None


def register_view(
    conn: Connection,
    *,
    model: str,
    name: str,
    digest: str,
    document: Mapping[str, Any],
    actor: str,
    at: datetime,
) -> int:
    """Keep a view's definition and return its number. Is idempotent: one equal to the newest is not kept again."""
    newest = newest_definition(conn, model, name)
    if newest is not None and newest.digest == digest and dict(newest.document) == dict(document):
        return newest.number
    number = 1 if newest is None else newest.number + 1
    conn.execute(
        feature_views.insert().values(
            model=model, name=name, number=number, digest=digest, document=canonical_json(document).decode(),
            actor=actor, at=to_us(at),
        )
    )  # fmt: skip
    return number


def newest_definition(conn: Connection, model: str, name: str) -> Definition | None:
    """The definition in force."""
    query = (
        select(feature_views)
        .where(feature_views.c.model == model, feature_views.c.name == name)
        .order_by(feature_views.c.number.desc())
        .limit(1)
    )
    row = conn.execute(query).one_or_none()
    return None if row is None else _definition(row)


def definitions(conn: Connection, model: str | None = None, name: str | None = None) -> list[Definition]:
    """Every definition, by model and view, oldest first."""
    query = select(feature_views).order_by(
        feature_views.c.model, feature_views.c.name, feature_views.c.number
    )
    if model is not None:
        query = query.where(feature_views.c.model == model)
    if name is not None:
        query = query.where(feature_views.c.name == name)
    return [_definition(row) for row in conn.execute(query)]


def start(conn: Connection, one: Materialization) -> None:
    """Record a materialisation that begins."""
    conn.execute(
        materializations.insert().values(
            id=one.id, model=one.model, view=one.view, store=one.store, definition=one.definition,
            table_version=one.table_version, as_of=to_us(one.as_of), kind=one.kind, state=one.state, rows=one.rows,
            progress=canonical_json(one.progress).decode(), started_at=to_us(one.started_at), ended_at=None,
        )
    )  # fmt: skip


def set_progress(conn: Connection, id: str, rows: int, progress: Mapping[str, Any]) -> None:
    """Note how far it has come."""
    conn.execute(
        update(materializations)
        .where(materializations.c.id == id)
        .values(rows=rows, progress=canonical_json(progress).decode(), state="running")
    )


def finish(
    conn: Connection,
    id: str,
    *,
    state: str,
    at: datetime,
    rows: int | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Close it as done or failed; what is None stays."""
    values: dict[str, Any] = {"state": state, "ended_at": to_us(at)}
    if rows is not None:
        values["rows"] = rows
    if progress is not None:
        values["progress"] = canonical_json(progress).decode()
    conn.execute(update(materializations).where(materializations.c.id == id).values(**values))


def last(conn: Connection, model: str, view: str, store: str | None = None) -> Materialization | None:
    """The one that began last."""
    found = history(conn, model, view, store=store, limit=1)
    return found[0] if found else None


def history(
    conn: Connection, model: str, view: str | None = None, *, store: str | None = None, limit: int = 20
) -> list[Materialization]:
    """The newest `limit`, newest first."""
    query = (
        select(materializations)
        .where(materializations.c.model == model)
        .order_by(materializations.c.started_at.desc(), materializations.c.id.desc())
        .limit(limit)
    )
    if view is not None:
        query = query.where(materializations.c.view == view)
    if store is not None:
        query = query.where(materializations.c.store == store)
    return [_materialization(row) for row in conn.execute(query)]


def last_as_of(conn: Connection, model: str) -> datetime | None:
    """The newest moment that was brought online for any view of the model; None where there is none."""
    query = select(func.max(materializations.c.as_of)).where(
        materializations.c.model == model, materializations.c.state == "done"
    )
    found = conn.execute(query).scalar()
    return None if found is None else from_us(int(found))


def _definition(row: Row[Any]) -> Definition:
    return Definition(
        row.model, row.name, row.number, row.digest, json.loads(row.document), row.actor, from_us(row.at)
    )


def _materialization(row: Row[Any]) -> Materialization:
    return Materialization(
        row.id, row.model, row.view, row.store, row.definition, row.table_version, from_us(row.as_of), row.kind,
        row.state, row.rows, json.loads(row.progress), from_us(row.started_at),
        None if row.ended_at is None else from_us(row.ended_at),
    )  # fmt: skip
