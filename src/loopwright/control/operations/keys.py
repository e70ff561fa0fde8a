"""The home's keys: list, rotate, revoke, and new seals for what an untrusted key sealed."""

from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import TRUST
from loopwright.bundle.trust import SignedTrust, verify_trust
from loopwright.control.context import Context
from loopwright.control.controllers.keys import note_key_acts
from loopwright.control.operation import operation
from loopwright.control.routes import current_routes
from loopwright.control.seals import sealed
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import LoopwrightError, Refused
from loopwright.ledger import store as ledger_store


@operation("keys.list", "GET", "/keyring")
def list_keys(ctx: Context) -> list[dict[str, Any]]:
    """List the home's keys, newest first: which signs, which are retired, which are revoked."""
    return ctx.keyring.to_json()


@operation("keys.rotate", "POST", "/keyring/rotate", role=Role.ADMIN)
def rotate(ctx: Context, reason: str = "") -> dict[str, Any]:
    """Make a new signing key, endorsed by the present one. What older keys signed stays valid."""
    with ctx.ledger.write() as conn:
        note_key_acts(ctx, conn)
        before = ctx.key.public.key_id
        entry = ctx.keyring.rotate(ctx.now)
        _note(ctx, conn, "key.rotated", entry.key_id, {"from": before, "to": entry.key_id, "reason": reason})
    current_routes(ctx)
    return {"key_id": entry.key_id, "public": entry.public, "retired": before}


@operation("keys.revoke", "POST", "/keyring/{key_id}/revoke", role=Role.ADMIN)
def revoke(ctx: Context, key_id: str, reason: str) -> dict[str, Any]:
    """Let no signature of a retired key count any more, and say which bundles only it sealed."""
    with ctx.ledger.write() as conn:
        note_key_acts(ctx, conn)
        entry = ctx.keyring.revoke(key_id, ctx.now, reason)
        _note(ctx, conn, "key.revoked", key_id, {"key_id": key_id, "reason": entry.reason})
        stranded = [subject for subject, _, by in sealed(ctx, conn) if by == key_id]
    current_routes(ctx)
    return {"key_id": key_id, "state": entry.state, "reason": entry.reason, "stranded": stranded}


@operation("keys.reseal", "POST", "/keyring/reseal", role=Role.ADMIN)
def reseal(ctx: Context, retired: bool = False) -> dict[str, Any]:
    """Seal registered bundles anew whose seal counts no more and whose bytes match their digests.

    `retired`: also those that a retired key sealed.
    """
    depot, now = BundleDepot(ctx.home.bundles), ctx.key
    counting = {now.public.key_id} if retired else {key.key_id for key in ctx.keyring.public}
    done, refused = [], {}
    with ctx.ledger.write() as conn:
        for subject, digest, by in sealed(ctx, conn):
            if by in counting or digest in done:
                continue
            try:
                depot.reseal(digest, now)
                done.append(digest)
                _check_trust(ctx, depot, digest)
            except LoopwrightError as error:
                refused[subject] = str(error)
        if done:
            _note(
                ctx,
                conn,
                "bundle.resealed",
                now.public.key_id,
                {"key_id": now.public.key_id, "bundles": done},
            )
    return {"key_id": now.public.key_id, "resealed": done, "refused": refused}


def _check_trust(ctx: Context, depot: BundleDepot, digest: str) -> None:
    """Raise when a bundle's pickled model was trusted under a key that counts no more: no seal makes up for that."""
    place = depot.path(digest) / TRUST
    if place.is_file():
        try:
            verify_trust(SignedTrust.from_bytes(place.read_bytes(), where=digest[:12]), ctx.keyring.public)
        except Refused as error:
            raise Refused(
                f"sealed anew, but its pickled model is not trusted: {error}",
                next="Ask for trust again (loopwright trust revoke, then request) and build the version anew.",
            ) from None


def _note(ctx: Context, conn: Connection, action: str, key_id: str, payload: dict[str, Any]) -> None:
    ledger_store.append(
        conn, at=ctx.now, actor=ctx.actor.name, action=action, subject=f"key/{key_id}", payload=payload
    )
