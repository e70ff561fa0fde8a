"""Labels, drift, quality, alerts."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.control.context import Context
from loopwright.control.operation import check_numbers, operation
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import AlertState
from loopwright.monitoring.labels import LabelLog
from loopwright.registry import versions
from loopwright.registry.authority import require_on

MAX_LABELS = 200_000
_TIERS = {"P0": 0, "P1": 1, "P2": 2}


class Label(BaseModel):
    """One outcome. `label`: 0/1, a number, or the name of a class; null when it will never come."""

    model_config = ConfigDict(extra="forbid")

    id: str
    label: float | str | None
    available_at: datetime | None = None


@operation("monitoring.add_labels", "POST", "/models/{model}/labels", role=Role.DEVELOPER)
def add_labels(ctx: Context, model: str, labels: list[Label]) -> dict[str, Any]:
    """Add the outcomes of past predictions by their ids; a later outcome of the same id replaces the earlier.

    `available_at` says when it became known, default now. Is idempotent: the same outcomes again change nothing.
    """
    if not labels or len(labels) > MAX_LABELS:
        what = "too much at once" if labels else "nothing to add"
        raise BadInput(what, got=len(labels), wanted=f"1 to {MAX_LABELS} labels")
    moments = [each.available_at or ctx.now for each in labels]
    if any(moment.tzinfo is None for moment in moments):
        raise BadInput("a time without a zone", where="available_at", wanted="an offset or Z")
    for moment in moments:
        check_numbers("monitoring.add_labels", {"available_at": moment})
    ids = [each.id for each in labels]
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        numbers = _numbers(ctx, conn, model, [each.label for each in labels])
        # Named by content: the same outcomes sent again, after a lost answer say, are there once.
        batch = f"lb_{digest_json([model, ids, numbers, [iso(moment) for moment in moments]])[:32]}"
        path = LabelLog(ctx.home.labels).append(model, batch, ids, numbers, moments)
        is_new = monitoring_store.record_label_batch(
            conn, batch_id=batch, model=model, rows=len(ids), available_from=min(moments), available_to=max(moments),
            path=str(path), now=ctx.now,
        )  # fmt: skip
        if is_new:
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action="labels.added", subject=model,
                payload={"batch": batch, "rows": len(ids)},
            )  # fmt: skip
    return {"model": model, "rows": len(ids), "batch": batch}


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
            versions.check_model(conn, model)
        found = [alert.to_json() for alert in monitoring_store.list_alerts(conn, model, state=state)]
    return sorted(found, key=lambda alert: (alert["state"] == "resolved", _TIERS[alert["tier"]]))


@operation("monitoring.acknowledge", "POST", "/alerts/{alert}/acknowledge")
def acknowledge(ctx: Context, alert: str) -> dict[str, Any]:
    """Say that somebody looks after an alert."""
    with ctx.ledger.write() as conn:
        after = monitoring_store.acknowledge(conn, alert, ctx.actor, ctx.now)
        # Only now is it known whose alert it is; a refusal takes the acknowledgement back.
        require_on(conn, ctx.actor, Role.DEVELOPER, f"acknowledge alerts of {after.model}", model=after.model)
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
        versions.check_model(conn, model)
        if version is not None:
            versions.get_version(conn, model=model, version=version)
        found = [
            window
            for kind in kinds
            for window in monitoring_store.list_windows(conn, model, kind=kind, version=version, limit=limit)
        ]
    found.sort(key=lambda judged: (judged.window.start, judged.version, judged.kind))
    return [judged.to_json() for judged in found[-limit:]]


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
    depot = BundleDepot(ctx.home.bundles)
    sealed = [v.bundle for v in versions.list_versions(conn, model=model) if v.bundle and depot.has(v.bundle)]
    if not sealed:
        return ()
    file = depot.path(sealed[-1]) / MANIFEST
    return parse_manifest(file.read_bytes(), where=str(file)).schema.classes
