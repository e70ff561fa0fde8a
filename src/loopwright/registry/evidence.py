"""Records what gates, checks, comparisons and windows found, by digest, with the audit row in one transaction."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.kernel.actor import SYSTEM, Actor
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger
from loopwright.registry import store
from loopwright.registry.records import Evidence, subject


def record_evidence(
    conn: Connection,
    *,
    kind: str,
    model: str,
    version: int | None,
    bundle: str | None,
    verdict: Verdict,
    payload: Mapping[str, Any],
    at: datetime,
    actor: Actor = SYSTEM,
) -> str:
    """Keep the evidence and return its digest (SHA-256 over all its fields). Is idempotent.

    Raises BadInput when `payload` is not JSON (NaN included).
    """
    digest = digest_json([kind, model, version, bundle, str(verdict), dict(payload), iso(at)])
    row = ledger.append(
        conn, at=at, actor=actor.name, action="evidence.recorded", subject=subject(model, version),
        payload={"kind": kind, "verdict": str(verdict), "digest": digest, "bundle": bundle},
    )  # fmt: skip
    item = Evidence(digest, kind, model, version, bundle, Verdict(verdict), payload, at, row.seq)
    store.insert_evidence(conn, item)
    return digest


def evidence_of(
    conn: Connection, *, model: str, version: int | None = None, kind: str | None = None
) -> list[Evidence]:
    """Evidence of a model, oldest first; of a version: what names its number or exactly its bytes."""
    bundle = store.get_version(conn, model, version).bundle if version is not None else None
    return store.find_evidence(conn, model=model, version=version, bundle=bundle, kind=kind)
