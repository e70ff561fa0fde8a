"""Who is hit by an incident, and how they are told: consumers by lineage, one alert for each consuming model."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.signals import event_time_of
from loopwright.data.incidents import store
from loopwright.data.incidents.model import STANDING, Incident
from loopwright.data.incidents.record import save_consumers
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import LoopwrightError, NotFound
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import Kind, Raised
from loopwright.pipeline import store as pipeline_store
from loopwright.registry import lineage as registry_lineage

log = logging.getLogger("loopwright.control")


def consumers_of(conn: Connection, incident: Incident) -> dict[str, Any]:
    """{"features", "reads_label", "models", "versions", "live", "runs"} downstream of the incident's table.

    features: [{"name", "view", "columns", "hit"}] of the newest run that tells; `hit`: a broken rule is about one of
    the columns. versions: all that were trained on the table, as MODEL/VERSION; live: those that answer requests.
    """
    model, _, table = incident.table.partition("/")
    try:
        found = registry_lineage.impact(conn, source=incident.table, model=model)
    except NotFound:
        # Nothing of it was ever trained on.
        found = {"affected": [], "live": [], "runs": 0}
    told = _newest_lineage(conn, model)
    broken = {
        name.strip()
        for rule in incident.triage.get("rules", ())
        for name in str(rule.get("column", "")).split(",")
    }
    features = []
    for one in told.get("inputs", ()):
        columns = sorted({read["column"] for read in one["reads"] if read["table"] == table})
        if columns:
            hit = bool(broken & set(columns)) or "*" in columns or not broken - {""}
            features.append({"name": one["name"], "view": one["view"], "columns": columns, "hit": hit})
    label = told.get("label") or {}
    affected = [f"{one['model']}/{one['version']}" for one in found["affected"]]
    live = [f"{one['model']}/{one['version']}" for one in found["affected"] if one.get("live")]
    return {
        "features": features,
        "reads_label": any(read["table"] == table for read in label.get("reads", ())),
        "models": sorted({one["model"] for one in found["affected"]}),
        "versions": affected,
        "live": live,
        "runs": found["runs"],
    }


def notice(ctx: Context) -> list[Incident]:
    """Look for the consumers of new incidents, open their alerts, and resolve those of incidents that are over.

    Is idempotent; an idle call costs two reads.
    """
    with ctx.ledger.read() as conn:
        new = store.unnoticed(conn)
        over = _over(conn)
    if not new and not over:
        return []
    with ctx.ledger.write() as conn:
        for incident in store.unnoticed(conn):
            known = save_consumers(conn, incident, consumers_of(conn, incident), actor=SYSTEM, now=ctx.now)
            if known.state in STANDING:
                _alert(conn, known, ctx)
        _settle(conn, ctx)
    return new


def renotice(conn: Connection, ctx: Context, incident: Incident) -> Incident:
    """Look again for the consumers of an incident that was opened again, and open their alerts again."""
    known = save_consumers(conn, incident, consumers_of(conn, incident), actor=SYSTEM, now=ctx.now)
    _alert(conn, known, ctx)
    return known


@contextmanager
def noticing(ctx: Context) -> Iterator[None]:
    """Tell consumers of what the body opened or ended, on a folder that no control plane looks after."""
    try:
        yield
    finally:
        try:
            notice(ctx)
        except LoopwrightError as error:
            # What the body did stands, whether or not anybody could be told; the next command tells them.
            log.warning("incidents: %s", error)


def _newest_lineage(conn: Connection, model: str) -> Mapping[str, Any]:
    for run in pipeline_store.list_runs(conn, model, 20):
        told = (run["context"] or {}).get("lineage")
        if told:
            return dict(told)
    return {}


def _alert(conn: Connection, incident: Incident, ctx: Context) -> None:
    consumers = incident.consumers or {}
    versions: dict[str, list[int]] = {}
    for named in consumers.get("live") or consumers.get("versions", ()):
        model, _, number = str(named).rpartition("/")
        versions.setdefault(model, []).append(int(number))
    for model, numbers in sorted(versions.items()):
        raised = Raised(
            Kind.DATA, max(numbers), event_time_of(conn, model, ctx.now), incident.title,
            {"incident": incident.id, "table": incident.table, "live": list(consumers.get("live", ())),
             "features": [one["name"] for one in consumers.get("features", ()) if one["hit"]],
             "next": f"loopwright data incident show {incident.id}"},
        )  # fmt: skip
        # An incident that is opened again is told again.
        key = f"{Kind.DATA}@{incident.id}#{sum(e.event == 'reopened' for e in store.events_of(conn, incident.id))}"
        alert = monitoring_store.open_alert(conn, model, raised, key, ctx.now)
        if alert is not None:
            ledger_store.append(
                conn, at=ctx.now, actor=SYSTEM.name, action="alert.open", subject=model,
                payload={"alert": alert.id, "tier": alert.tier.value, "title": alert.title, "key": key},
            )  # fmt: skip


def _over(conn: Connection) -> bool:
    """Whether an alert stands about an incident that does not."""
    return bool(_ended(conn))


def _ended(conn: Connection) -> list[tuple[Any, Incident]]:
    found = []
    for alert in monitoring_store.list_alerts(conn, standing=True):
        if alert.kind is Kind.DATA:
            incident = store.get_incident(conn, str(alert.detail["incident"]))
            if not incident.standing:
                found.append((alert, incident))
    return found


def _settle(conn: Connection, ctx: Context) -> None:
    for alert, incident in _ended(conn):
        why = f"the incident is {incident.state.value}"
        monitoring_store.resolve_alert(conn, alert, why, ctx.now)
        ledger_store.append(
            conn, at=ctx.now, actor=SYSTEM.name, action="alert.resolve", subject=alert.model,
            payload={"alert": alert.id, "why": why},
        )  # fmt: skip
