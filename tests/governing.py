"""What a promotion asks for, given in one call: for tests about something else."""

from datetime import datetime

from sqlalchemy import Connection

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.verdict import Verdict
from loopwright.pipeline.store import save_project
from loopwright.registry.evidence import record_evidence
from loopwright.registry.policies import set_document, waive

ADMIN = Actor("root", Role.ADMIN)
SAID = "This is what a person wrote about the model, at some length, so that others may know."
CARD = dict.fromkeys(("intended_use", "limitations", "training_data", "risks"), SAID)


def vouch(
    conn: Connection, model: str, bundle: str, *, at: datetime, gates: Verdict | None = Verdict.PASS
) -> None:
    """Record all evidence that the strictest tier asks for these bytes. `gates` None: no gates have run."""
    if gates is not None:
        record(conn, "gates", model, bundle, at=at, verdict=gates, payload={"bundle": bundle})
    record(
        conn, "fairness", model, bundle, at=at, payload={"not_applicable": "it is about machines, not people"}
    )
    record(
        conn, "explainability", model, bundle, at=at, payload={"method": "exact", "rows": 100, "features": []}
    )
    record(conn, "card", model, bundle, at=at, payload={"file": "card.md", "sections": CARD})


def record(
    conn: Connection,
    kind: str,
    model: str,
    bundle: str,
    *,
    at: datetime,
    verdict: Verdict = Verdict.PASS,
    payload: dict[str, object] | None = None,
) -> str:
    """Record one piece of evidence about the bytes."""
    return record_evidence(
        conn, kind=kind, model=model, version=None, bundle=bundle, verdict=verdict, payload=payload or {}, at=at
    )  # fmt: skip


def ask_for_nothing(conn: Connection, model: str, *, at: datetime) -> None:
    """Let every promotion of `model` take effect when it is requested."""
    nothing = {"approvals": {"staging": 0, "production": 0}, "evidence": {"staging": {}, "production": {}}}
    set_document(
        conn, {"tier": "low", **nothing}, actor=ADMIN, reason="this test is about other things", now=at
    )
    save_project(conn, model, "", {"policy": {"tier": "low"}}, "", at)
    waive(conn, model, ("tier",), actor=ADMIN, now=at)
