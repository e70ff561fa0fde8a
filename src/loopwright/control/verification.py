"""What can be shown about a version's bytes: whole, sealed by whom, approved for what, and what MLflow points at."""

from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.approval import verify_record
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.folder import check_contents
from loopwright.bundle.routes import open_routes
from loopwright.control.context import Context
from loopwright.delivery.routes import current_routes
from loopwright.kernel.errors import LoopwrightError, Refused
from loopwright.kernel.stage import Stage
from loopwright.registry import store, versions
from loopwright.registry.approval import approval_record
from loopwright.registry.records import Version, source_of

Check = dict[str, Any]
"""check, ok (None: does not apply), found"""


def verify_version(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """Check bytes, seal, approval, route and MLflow's source of a version; `ok` when none of them is wrong."""
    with ctx.ledger.read() as conn:
        one = versions.get_version(conn, model=model, version=version)
        if one.bundle is None:
            checks = [_check("bytes", False, "registered by a plain MLflow client: nothing of it is sealed")]
        else:
            checks = [
                _bytes(ctx, one.bundle),
                _seal(ctx, one.bundle),
                _approval(conn, one),
                _route(ctx, conn, one),
                _source(conn, one),
            ]
    return {
        "model": model, "version": version, "bundle": one.bundle, "stage": one.stage.value, "checks": checks,
        "ok": all(check["ok"] is not False for check in checks),
    }  # fmt: skip


def _check(check: str, ok: bool | None, found: str) -> Check:
    return {"check": check, "ok": ok, "found": found}


def _bytes(ctx: Context, digest: str) -> Check:
    try:
        check_contents(BundleDepot(ctx.home.bundles).path(digest), digest)
    except LoopwrightError as error:
        return _check("bytes", False, str(error))
    return _check("bytes", True, f"every file is as bundle {digest[:12]} names it")


def _seal(ctx: Context, digest: str) -> Check:
    depot = BundleDepot(ctx.home.bundles)
    states = {entry.key_id: entry.state for entry in ctx.keyring.ring.keys}
    try:
        key_id = depot.sealed_by(digest)
        depot.verify(digest, ctx.keyring.public)
    except LoopwrightError as error:
        return _check("seal", False, str(error))
    return _check("seal", True, f"key {key_id}, {states[key_id]}")


def _approval(conn: Connection, version: Version) -> Check:
    if version.stage is not Stage.PRODUCTION:
        return _check("approval", None, f"in stage {version.stage.value}: no record lets it answer")
    try:
        record = approval_record(conn, model=version.model, version=version.version)
    except Refused as error:
        return _check("approval", False, str(error))
    people = ", ".join(name for name, _ in record.approvals) or "nobody had to"
    return _check("approval", record.bundle == version.bundle, f"{record.promotion_id}: approved by {people}")


def _route(ctx: Context, conn: Connection, version: Version) -> Check:
    standing = current_routes(conn)
    if standing is None:
        return _check("route", None, "no route table yet")
    try:
        table = open_routes(standing[1], ctx.keyring.public)
        route = table.models.get(version.model)
        entry = route.versions.get(str(version.version)) if route else None
        if entry is None:
            return _check("route", None, "takes no traffic now")
        record = verify_record(entry.approval, ctx.keyring.public)
    except LoopwrightError as error:
        return _check("route", False, str(error))
    right = entry.bundle == record.bundle == version.bundle
    return _check("route", right, f"table {table.serial}, record signed by key {entry.approval.key_id}")


def _source(conn: Connection, version: Version) -> Check:
    found = store.ml_source(conn, version.model, version.version)
    wanted = source_of(str(version.bundle))
    if found is None:
        return _check("MLflow source", None, "MLflow does not list this version")
    return _check("MLflow source", found == wanted, found if found == wanted else f"{found}, wanted {wanted}")
