"""Trust in pickled models: asked for by one person, given by another, withdrawn by whoever may give it."""

import re
from typing import Any

import msgspec
from sqlalchemy import Connection

from loopwright.bundle.archive import PROGRAM
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import TRUSTED_ONLY
from loopwright.bundle.gadgets import denied
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.bundle.pickles import split
from loopwright.bundle.trust import TrustRecord, sign_trust
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.delivery.routes import route_table
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, Conflict, Refused, did_you_mean
from loopwright.ledger import store as ledger_store
from loopwright.registry import versions
from loopwright.registry.trust import store
from loopwright.registry.trust.store import Trust

MAX_GLOBALS = 2_000
STATES = ("pending", "approved", "rejected", "revoked")


@operation("trust.list", "GET", "/trusts")
def list_trusts(ctx: Context, state: str | None = None) -> list[dict[str, Any]]:
    """List the pickled models somebody asked to be loaded, and who said yes."""
    if state is not None and state not in STATES:
        raise BadInput("no such state", got=state, wanted=", ".join(STATES), next=did_you_mean(state, STATES))
    with ctx.ledger.read() as conn:
        return [trust.to_json() for trust in store.list_trusts(conn, state)]


@operation("trust.request", "POST", "/trusts", role=Role.DEVELOPER)
def request(ctx: Context, digest: str, name: str, globals: list[str], reason: str) -> dict[str, Any]:
    """Ask that a file of pickled objects may be loaded, importing exactly `globals`; of an MLflow model, "any code".

    What is loaded later is scanned again and has to import exactly these: a list that says less or more is no use.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise BadInput(
            "not a digest", got=digest, wanted="64 lowercase hex digits: loopwright trust scan FILE"
        )
    if len(globals) > MAX_GLOBALS or any(len(each) > 300 for each in globals):
        raise BadInput("imports more than any plain model", got=len(globals))
    if not reason.strip():
        raise BadInput("trust is asked for with a reason", wanted="--reason")
    never = [f"{each}: {why}" for each in globals if each != PROGRAM and (why := denied(*split(each)))]
    if never:
        raise Refused("it imports what nobody can be trusted with", where=name, got="; ".join(never[:3]))
    with ctx.ledger.write() as conn:
        before = store.find_trust(conn, digest)
        if before is not None and before.state in ("pending", "approved"):
            raise Conflict(
                f"trust in this file is {before.state} already", got=digest[:12], where=before.name
            )
        asked = store.put_request(
            conn, digest, name=name, allowed=globals, by=ctx.actor.name, reason=reason.strip(), now=ctx.now
        )
        _note(
            ctx, conn, "trust.requested", asked, {"name": name, "globals": sorted(globals), "reason": reason}
        )
    return asked.to_json()


@operation("trust.approve", "POST", "/trusts/{digest}/approve", role=Role.APPROVER)
def approve(ctx: Context, digest: str) -> dict[str, Any]:
    """Say that a file of pickled objects may be loaded; not by who asked for it. The answer holds the signed record."""
    with ctx.ledger.write() as conn:
        asked = store.get_trust(conn, digest)
        if asked.state != "pending":
            raise Conflict(
                f"trust in this file is {asked.state}", where=asked.name, wanted="a pending request"
            )
        if asked.requested_by == ctx.actor.name:
            raise Refused("who asks for trust does not give it", got=ctx.actor.name, wanted="another person")
        if ctx.actor.service:
            raise Refused("a machine's account trusts nothing", got=ctx.actor.name, wanted="a person")
        record = TrustRecord(
            digest=asked.digest, globals=asked.globals, requested_by=asked.requested_by, approved_by=ctx.actor.name,
            reason=asked.reason, at=iso(ctx.now),
        )  # fmt: skip
        signed = sign_trust(record, ctx.key)
        given = store.decide(
            conn, asked.digest, "approved", by=ctx.actor.name, now=ctx.now, record=msgspec.to_builtins(signed)
        )
        _note(ctx, conn, "trust.approved", given, {"globals": list(asked.globals), "key_id": signed.key_id})
        route_table(conn, ctx.key, ctx.now)
    return given.to_json()


@operation("trust.revoke", "POST", "/trusts/{digest}/revoke", role=Role.APPROVER)
def revoke(ctx: Context, digest: str, reason: str) -> dict[str, Any]:
    """Withdraw trust, or turn a request down. Servers stop loading the file, and stop answering from it, at once."""
    if not reason.strip():
        raise BadInput("trust is withdrawn for a reason", wanted="--reason")
    with ctx.ledger.write() as conn:
        standing = store.get_trust(conn, digest)
        if standing.state not in ("pending", "approved"):
            raise Conflict(f"trust in this file is {standing.state} already", where=standing.name)
        state = "rejected" if standing.state == "pending" else "revoked"
        gone = store.decide(conn, standing.digest, state, by=ctx.actor.name, now=ctx.now)
        _note(ctx, conn, f"trust.{state}", gone, {"reason": reason.strip()})
        route_table(conn, ctx.key, ctx.now)
        stopped = _carriers(ctx, conn, standing.digest)
    return {**gone.to_json(), "stops": stopped}


def _carriers(ctx: Context, conn: Connection, digest: str) -> list[str]:
    """Versions whose bundle holds the file."""
    depot, found = BundleDepot(ctx.home.bundles), []
    for model in versions.list_models(conn):
        for version in versions.list_versions(conn, model=model):
            if not version.bundle or not depot.has(version.bundle):
                continue
            raw = (depot.path(version.bundle) / MANIFEST).read_bytes()
            files = parse_manifest(raw, where=version.subject).files
            if digest in (files.get(name) for name in TRUSTED_ONLY):
                found.append(version.subject)
    return found


def _note(ctx: Context, conn: Connection, action: str, trust: Trust, payload: dict[str, Any]) -> None:
    ledger_store.append(
        conn,
        at=ctx.now,
        actor=ctx.actor.name,
        action=action,
        subject=f"trust/{trust.digest}",
        payload=payload,
    )
