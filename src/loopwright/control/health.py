"""What `doctor` looks at. Every finding says what to do."""

import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loopwright.bundle.depot import BundleDepot
from loopwright.control import anchors, store
from loopwright.control.context import Context
from loopwright.control.controllers.loop import LEASE
from loopwright.control.limits import Settings
from loopwright.control.oidc import Provider
from loopwright.control.seals import sealed
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger_store
from loopwright.ledger.anchor import tell
from loopwright.registry import versions

PACKAGES = ("mlflow", "deltalake", "duckdb", "lightgbm", "onnxruntime", "optuna", "fastapi", "sqlalchemy")
LEAST_FREE = 1 << 30
ENDING = timedelta(days=14)

Finding = tuple[bool, str, str]
"""(well, what was found, what to do when it is not well)"""


def examine(ctx: Context) -> list[dict[str, Any]]:
    """Run every check; one that fails to run is a finding too."""
    findings = []
    for name, check in _CHECKS.items():
        try:
            well, found, remedy = check(ctx)
        except (LoopwrightError, OSError) as error:
            well, found, remedy = False, str(error), ""
        findings.append({"check": name, "ok": well, "found": found, "next": "" if well else remedy})
    return findings


def _python(ctx: Context) -> Finding:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return sys.version_info >= (3, 11), found, "Use Python 3.11 or newer."


def _packages(ctx: Context) -> Finding:
    have, missing = [], []
    for name in PACKAGES:
        try:
            have.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    found = f"missing: {', '.join(missing)}" if missing else ", ".join(have)
    return not missing, found, f"Install them: pip install {' '.join(missing)}"


def _writable(ctx: Context) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=ctx.home.root):
            return True, str(ctx.home.root), ""
    except OSError as error:
        return (
            False,
            f"{ctx.home.root}: {error.strerror}",
            "Make the folder writable for this user, or name another.",
        )


def _private(ctx: Context) -> Finding:
    mode = stat.S_IMODE(ctx.home.root.stat().st_mode)
    return (
        mode & 0o007 == 0,
        f"mode {mode:o}",
        f"Everybody on this machine may look in: chmod o-rwx {ctx.home.root}",
    )


def _space(ctx: Context) -> Finding:
    free = shutil.disk_usage(ctx.home.root).free
    return free >= LEAST_FREE, f"{free / 1e9:.1f} GB free", "Free some space: runs and predictions need room."


def _tokens(ctx: Context) -> Finding:
    soon = ctx.now + ENDING
    with ctx.ledger.read() as conn:
        ending = [
            f"{token.id} of {token.user}"
            for token in store.list_tokens(conn)
            if token.revoked_at is None and token.last_used_at is not None and token.expires_at is not None
            and token.last_used_at > ctx.now - ENDING and token.expires_at < soon
        ]  # fmt: skip
    named = f"in use and ending within {ENDING.days} days, or ended: {', '.join(ending)}"
    found = named if ending else "none in use ends soon"
    return not ending, found, "Make new ones before they end: loopwright token create USER"


def _settings(ctx: Context) -> Finding:
    limits, oidc = ctx.home.setting("limits"), ctx.home.setting("oidc")
    if limits is not None:
        Settings.read(limits, where=f"{ctx.home.config}: limits")
    provider = None if oidc is None else Provider.read(oidc, where=f"{ctx.home.config}: oidc")
    return True, f"people sign in at {provider.issuer}" if provider else "people sign in with tokens", ""


def _key(ctx: Context) -> Finding:
    path = ctx.home.signing_key
    mode, folder = (stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent))
    states = [entry.state for entry in ctx.keyring.ring.keys]
    others = ", ".join(
        f"{states.count(state)} {state}" for state in ("retired", "revoked") if state in states
    )
    return (
        (mode | folder) & 0o077 == 0,
        f"{ctx.key.public.key_id}, mode {mode:o} in {folder:o}" + (f"; {others}" if others else ""),
        f"Close them to others: chmod 600 {path}; chmod 700 {path.parent}",
    )


def _seals(ctx: Context) -> Finding:
    counting = {key.key_id for key in ctx.keyring.public}
    with ctx.ledger.read() as conn:
        found = sealed(ctx, conn)
    lost = [f"{subject} ({by or 'no seal'})" for subject, _, by in found if by not in counting]
    named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    return (
        not lost,
        f"sealed by a key that counts no more: {named}"
        if lost
        else f"{len(found)} versions, all by trusted keys",
        "Seal anew what is as it was registered: loopwright keys reseal",
    )


def _ledger(ctx: Context) -> Finding:
    ctx.ledger.migrate()
    return True, ctx.ledger.engine.url.render_as_string(hide_password=True), ""


def _audit(ctx: Context) -> Finding:
    with ctx.ledger.read() as conn:
        report = ledger_store.verify(conn)
    return (
        report.ok,
        "; ".join((report.why, *report.remarks)),
        "Somebody changed the log outside of Loopwright: compare with an exported copy.",
    )


def _anchors(ctx: Context) -> Finding:
    anchors.schedule_of(ctx.home)  # says what is wrong with it
    wrong = [one for one in anchors.findings(ctx) if one.counts and not one.ok]
    if wrong:
        told = "; ".join(f"{one.where}: {one.why}" for one in wrong[:3])
        return (
            False,
            told,
            "Hold the log against anchors kept elsewhere: loopwright audit verify --anchor FILE",
        )
    with ctx.ledger.read() as conn:
        standing = anchors.last_anchor(conn)
    if standing is None:
        return True, "none yet (made by loopwright up, or now: loopwright audit anchor)", ""
    anchor, places = standing
    failed = tell(places)
    return (
        not failed,
        failed or f"row {anchor.seq} on {iso(anchor.at)}, in {len(places)} place" + "s" * (len(places) != 1),
        "Make these places writable, or name others in home.json under anchors.to; then: loopwright audit anchor",
    )


def _bundles(ctx: Context) -> Finding:
    depot = BundleDepot(ctx.home.bundles)
    with ctx.ledger.read() as conn:
        allowed = [
            version
            for model in versions.list_models(conn)
            for version in versions.list_versions(conn, model=model)
            if version.bundle and version.stage in (Stage.STAGING, Stage.PRODUCTION)
        ]
    changed = []
    for one in allowed:
        try:
            depot.verify(str(one.bundle), ctx.keyring.public)
        except LoopwrightError as error:
            changed.append(f"{one.subject}: {error}")
    found = "; ".join(changed) or f"{len(allowed)} in Staging or Production, every byte as sealed"
    return (
        not changed,
        found,
        "Serving refuses such a bundle. Restore it from a backup, or roll back.",
    )


def _leader(ctx: Context) -> Finding:
    with ctx.ledger.read() as conn:
        holder = ledger_store.holder_of(conn, LEASE, ctx.now)
    return True, holder or "none runs now (rollouts and monitoring move with: loopwright up)", ""


def _people(ctx: Context) -> Finding:
    with ctx.ledger.read() as conn:
        active = [user for user in store.list_users(conn) if user.disabled_at is None]
    people = [user for user in active if not user.service]  # machines review nothing
    everywhere = {user.name for user in people if user.role >= Role.APPROVER}
    there = Counter(
        team for user in people if user.name not in everywhere for team, role in user.teams if role >= Role.APPROVER
    )  # fmt: skip
    told = "".join(f", {count} more in team {team}" for team, count in sorted(there.items()))
    found = (
        f"{len(active)} active users, {len(everywhere)} who may approve{' everywhere' if told else ''}{told}"
    )
    remedy = (
        "Production wants two reviewers by default: loopwright user add NAME --role approver, or for a team's models: "
        "loopwright team grant TEAM NAME approver"
    )
    return len(everywhere) + max(there.values(), default=0) >= 2, found, remedy


_CHECKS: dict[str, Callable[[Context], Finding]] = {
    "python": _python, "packages": _packages, "home is writable": _writable, "home is private": _private,
    "disk": _space, "signing key": _key, "ledger": _ledger, "audit log": _audit, "anchors": _anchors,
    "bundles": _bundles, "seals": _seals, "reviewers": _people, "tokens": _tokens, "signing in": _settings,
    "controllers": _leader,
}  # fmt: skip
