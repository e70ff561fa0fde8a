"""Labels, drift, quality, alerts."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import AlertState
from loopwright.monitoring.labels import LabelLog
from loopwright.registry import versions

MAX_LABELS = 200_000
_TIERS = {"P0": 0, "P1": 1, "P2": 2}


@operation("monitoring.add_labels", "POST", "/models/{model}/labels", role=Role.DEVELOPER)
def add_labels(
    ctx: Context,
    model: str,
    ids: list[str],
    labels: list[float | str | None],
    available_at: list[datetime] | None = None,
) -> dict[str, Any]:
    """Add the outcomes of past predictions by their ids; a later outcome of the same id replaces the earlier.

    `available_at` says when each became known, default now. Text outcomes are matched against the model's classes.
    """
    if len(ids) != len(labels) or (available_at is not None and len(available_at) != len(ids)):
        raise BadInput(
            "lists of different lengths",
            got=f"{len(ids)} ids, {len(labels)} labels",
            wanted="one label per id",
        )
    if not ids or len(ids) > MAX_LABELS:
        raise BadInput(
            "nothing to add" if not ids else "too much at once", got=len(ids), wanted=f"1 to {MAX_LABELS}"
        )
    moments = available_at or [ctx.now] * len(ids)
    if any(moment.tzinfo is None for moment in moments):
        raise BadInput("a time without a zone", where="available_at", wanted="an offset or Z")
    with ctx.ledger.write() as conn:
        _known(conn, model)
        numbers = _numbers(ctx, conn, model, labels)
        batch = LabelLog(ctx.home.labels).append(model, ids, numbers, moments, received_at=ctx.now)
        if monitoring_store.record_label_batch(conn, batch, ctx.now):
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action="labels.added", subject=model,
                payload={"batch": batch.name, "rows": batch.rows},
            )  # fmt: skip
    return {"model": model, "rows": batch.rows, "batch": batch.name}


@operation("monitoring.drift", "GET", "/models/{model}/drift")
def drift(ctx: Context, model: str, version: int | None = None, limit: int = 10) -> list[dict[str, Any]]:
    """List the windows judged for drift, oldest first: the newest `limit`."""
    return _windows(ctx, model, version, ("drift", "prediction"), limit)


@operation("monitoring.quality", "GET", "/models/{model}/quality")
def quality(ctx: Context, model: str, version: int | None = None, limit: int = 52) -> list[dict[str, Any]]:
    """List the windows judged for quality on labels known, oldest first: the newest `limit`."""
    return _windows(ctx, model, version, ("quality",), limit)


@operation("monitoring.alerts", "GET", "/alerts")
def alerts(ctx: Context, model: str | None = None, state: str | None = None) -> list[dict[str, Any]]:
    """List alerts, worst tier first, then newest."""
    if state is not None and state not in set(AlertState):
        raise BadInput("no such state of an alert", got=state, wanted="open, acknowledged or resolved")
    with ctx.ledger.read() as conn:
        if model is not None:
            _known(conn, model)
        states = None if state is None else [AlertState(state)]
        found = [alert.to_json() for alert in monitoring_store.list_alerts(conn, model, states=states)]
    return sorted(found, key=lambda alert: (alert["state"] == "resolved", _TIERS[alert["tier"]]))


@operation("monitoring.acknowledge", "POST", "/alerts/{alert}/acknowledge", role=Role.DEVELOPER)
def acknowledge(ctx: Context, alert: str) -> dict[str, Any]:
    """Say that somebody looks after an alert."""
    with ctx.ledger.write() as conn:
        after = monitoring_store.acknowledge(conn, alert, ctx.actor, ctx.now)
        ledger_store.append(
            conn,
            at=ctx.now,
            actor=ctx.actor.name,
            action="alert.acknowledged",
            subject=after.model,
            payload={"alert": alert},
        )
    return after.to_json()


def _windows(
    ctx: Context, model: str, version: int | None, kinds: tuple[str, ...], limit: int
) -> list[dict[str, Any]]:
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    with ctx.ledger.read() as conn:
        _known(conn, model)
        if version is not None:
            versions.get_version(conn, model=model, version=version)
        found = [
            window
            for kind in kinds
            for window in monitoring_store.list_windows(conn, model, kind=kind, version=version, limit=limit)
        ]
    found.sort(key=lambda judged: (judged.window.start, judged.version, judged.kind))
    return [judged.to_json() for judged in found[-limit:]]


def _known(conn: Connection, model: str) -> None:
    known = versions.list_models(conn)
    if model not in known:
        raise NotFound(f"no such model: {model}", next=did_you_mean(model, known) or "loopwright models list")


def _numbers(
    ctx: Context, conn: Connection, model: str, labels: list[float | str | None]
) -> list[float | None]:
    """Text outcomes become the index of their class, as in training."""
    if not any(isinstance(label, str) for label in labels):
        return [None if label is None else float(label) for label in labels]
    classes = _classes(ctx, conn, model)
    known = {name: float(index) for index, name in enumerate(classes)}
    numbers: list[float | None] = []
    for label in labels:
        if isinstance(label, str) and label not in known:
            raise BadInput("not a class of this model", where=model, got=label, wanted=", ".join(classes) or "a number",
                           next=did_you_mean(label, known))  # fmt: skip
        numbers.append(known[label] if isinstance(label, str) else None if label is None else float(label))
    return numbers


def _classes(ctx: Context, conn: Connection, model: str) -> tuple[str, ...]:
    newest = [version for version in versions.list_versions(conn, model=model) if version.bundle]
    if not newest or newest[-1].bundle is None:
        return ()
    file = BundleDepot(ctx.home.bundles).path(newest[-1].bundle) / MANIFEST
    manifest = parse_manifest(file.read_bytes(), where=str(file))
    return manifest.schema.classes
