"""Models and versions: list, show, lineage, and the acts of governance."""

from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.control import glass
from loopwright.control.context import Context
from loopwright.control.desired import deliver_due
from loopwright.control.operation import operation
from loopwright.control.reviewers import may_review
from loopwright.control.signals import event_time_of
from loopwright.control.verification import verify_version
from loopwright.delivery import conduct
from loopwright.delivery.routes import stable_version
from loopwright.delivery.store import active_rollout, list_rollouts, standing_versions
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound
from loopwright.kernel.stage import Stage
from loopwright.registry import evidence as registry_evidence
from loopwright.registry import lineage as registry_lineage
from loopwright.registry import promotion, retention, versions
from loopwright.registry import review as registry_review
from loopwright.registry.policy import Promotion


@operation("models.list", "GET", "/models")
def list_models(ctx: Context) -> list[dict[str, Any]]:
    """List models with their newest version and the versions in each stage."""
    with ctx.ledger.read() as conn:
        found, serving = versions.overviews(conn), standing_versions(conn)
    return [
        {
            "model": model, "versions": one.versions, "newest": one.newest, "production": one.production,
            "staging": one.staging, "serving": serving.get(model),
        }
        for model, one in found.items()
    ]  # fmt: skip


@operation("models.show", "GET", "/models/{model}")
def show(
    ctx: Context, model: str, version: int | None = None, limit: int = 50, before: int | None = None
) -> dict[str, Any]:
    """Show a model's versions, or one version with its promotions, approvals and evidence.

    Of many versions the newest `limit`, oldest first: under `before`, when that is given; `total` says how many
    there are.
    """
    if not 1 <= limit <= 1000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 1000")
    with ctx.ledger.read() as conn:
        if version is None:
            versions.check_model(conn, model)
            found = versions.list_versions(conn, model=model, before=before, limit=limit)
            shown = (found[0].version, found[-1].version) if found else (0, 0)
            return {
                "model": model,
                "total": versions.overviews(conn, model=model)[model].versions,
                "versions": [one.to_json() for one in found],
                "promotions": [
                    one.to_json() for one in promotion.list_promotions(conn, model=model, between=shown)
                ],
                "serving": stable_version(conn, model),
            }
        one = versions.get_version(conn, model=model, version=version)
        asked = promotion.list_promotions(conn, model=model, version=version)
        return {
            **one.to_json(),
            "promotions": [promoted.to_json() for promoted in asked],
            "missing": {
                stage.value: list(
                    promotion.assessment(conn, model=model, version=version, stage=stage, now=ctx.now).missing
                )
                for stage in (Stage.STAGING, Stage.PRODUCTION)
            },
            "evidence": [
                found.to_json() for found in registry_evidence.evidence_of(conn, model=model, version=version)
            ],
            "rollouts": [
                rollout.to_json() for rollout in list_rollouts(conn, model) if rollout.version == version
            ],
        }


@operation("models.lineage", "GET", "/models/{model}/{version}/lineage")
def lineage(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """Show what a version came from: run, code, data, parent; and who let it through."""
    with ctx.ledger.read() as conn:
        return registry_lineage.lineage(conn, model=model, version=version)


@operation("models.verify", "GET", "/models/{model}/{version}/verify")
def verify(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """Check a version's bytes, seal, approval, route and MLflow's source."""
    return verify_version(ctx, model, version)


@operation("models.promote", "POST", "/models/{model}/{version}/promote", role=Role.DEVELOPER)
def promote(
    ctx: Context, model: str, version: int, to: str = "Production", reason: str = ""
) -> dict[str, Any]:
    """Ask for a version to be moved to a stage. It moves once the policy is satisfied."""
    stage = Stage.parse(to)
    if stage not in (Stage.STAGING, Stage.PRODUCTION):
        raise BadInput("nobody is promoted to this stage", got=to, wanted="staging or production")
    with ctx.ledger.write() as conn:
        versions.get_version(conn, model=model, version=version)
        if stage is Stage.PRODUCTION:
            conduct.refuse_while_rolling(conn, model)
        asked = promotion.request_promotion(
            conn, model=model, version=version, stage=stage, actor=ctx.actor, reason=reason, now=ctx.now
        )
        deliver_due(ctx, conn, model)
        return _answer(ctx, conn, asked)


@operation("models.approve", "POST", "/models/{model}/{version}/approve", role=Role.VIEWER)
def approve(
    ctx: Context, model: str, version: int, comment: str = "", to: str | None = None
) -> dict[str, Any]:
    """Say yes to the pending promotion of a version; the last yes it needs makes it effective.

    `to`: staging or production; needed when requests for both wait, so that a yes to one is never taken for the other.
    """
    with ctx.ledger.write() as conn:
        asked = promotion.approve(
            conn, model=model, version=version, reviewer=ctx.actor, now=ctx.now, comment=comment,
            promotion=_meant(conn, model, version, to),
        )  # fmt: skip
        deliver_due(ctx, conn, model)
        return _answer(ctx, conn, asked)


@operation("models.reject", "POST", "/models/{model}/{version}/reject", role=Role.VIEWER)
def reject(
    ctx: Context, model: str, version: int, comment: str = "", to: str | None = None
) -> dict[str, Any]:
    """Say no to the pending promotion of a version, which ends it. `to` as in `models.approve`."""
    with ctx.ledger.write() as conn:
        asked = promotion.reject(
            conn, model=model, version=version, reviewer=ctx.actor, now=ctx.now, comment=comment,
            promotion=_meant(conn, model, version, to),
        )  # fmt: skip
        return _answer(ctx, conn, asked)


@operation("models.withdraw", "POST", "/models/{model}/{version}/withdraw", role=Role.DEVELOPER)
def withdraw(
    ctx: Context, model: str, version: int, reason: str = "", to: str | None = None
) -> dict[str, Any]:
    """Take back the pending promotion of a version. `to` as in `models.approve`."""
    with ctx.ledger.write() as conn:
        asked = promotion.withdraw(
            conn, model=model, version=version, actor=ctx.actor, now=ctx.now, reason=reason,
            promotion=_meant(conn, model, version, to),
        )  # fmt: skip
        return _answer(ctx, conn, asked)


@operation("models.break_glass", "POST", "/models/{model}/{version}/break-glass", role=Role.DEVELOPER)
def break_glass(ctx: Context, model: str, version: int, reason: str) -> dict[str, Any]:
    """Move a version to Production without approvals, in an emergency. It raises an alert; a review must follow."""
    with ctx.ledger.write() as conn:
        versions.get_version(conn, model=model, version=version)
        conduct.refuse_while_rolling(conn, model)
        moved, review = registry_review.break_glass(
            conn, model=model, version=version, actor=ctx.actor, reason=reason, now=ctx.now
        )
        glass.tell_broken(conn, review, event_time_of(conn, model, ctx.now), ctx.now)
        deliver_due(ctx, conn, model)
        return _answer(ctx, conn, moved) | {"review": review.to_json()}


@operation("models.annotate", "POST", "/models/{model}/{version}/annotate", role=Role.DEVELOPER)
def annotate(ctx: Context, model: str, version: int, key: str, value: str) -> dict[str, Any]:
    """Pin a note to a version, like `approved by SRE`."""
    with ctx.ledger.write() as conn:
        versions.annotate(
            conn, model=model, version=version, key=key, value=value, actor=ctx.actor, now=ctx.now
        )
        return versions.get_version(conn, model=model, version=version).to_json()


@operation("models.rollback", "POST", "/models/{model}/rollback", role=Role.APPROVER)
def rollback(ctx: Context, model: str, to_version: int | None = None, reason: str = "") -> dict[str, Any]:
    """Bring back the version that was in production before, or `to_version`, for all traffic at once."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        was_active = active_rollout(conn, model)
        leaving = was_active.version if was_active else stable_version(conn, model)
        rollout = conduct.rollback_now(
            conn, model, to_version, actor=ctx.actor, why=reason or f"rolled back by {ctx.actor.name}",
            event_time=event_time_of(conn, model, ctx.now), now=ctx.now, key=ctx.key,
        )  # fmt: skip
        serving = stable_version(conn, model)
    return {"model": model, "from_version": leaving, "to_version": serving, "rollout": rollout.to_json()}


@operation("models.retention", "GET", "/retention")
def show_retention(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """Show until when each version is kept, and which may go."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        found = retention.standings(conn, model=model)
        return [{**one.to_json(), "may_go": one.may_go(ctx.now)} for one in found]


@operation("models.delete", "POST", "/models/{model}/{version}/delete", role=Role.ADMIN)
def delete(ctx: Context, model: str, version: int, reason: str, dry_run: bool = False) -> dict[str, Any]:
    """Delete a version whose retention is over, and its bundle when no other version has the same bytes.

    Asked again after it was killed or answered, it finishes what is left and says when the version was deleted.
    """
    if dry_run:
        with ctx.ledger.read() as conn:
            one = retention.standing(conn, model=model, version=version)
        return {**one.to_json(), "may_go": one.may_go(ctx.now), "deleted": False, "dropped": []}
    with ctx.ledger.write() as conn:
        gone = retention.deleted_at(conn, model=model, version=version)
        if gone is None:
            retention.delete_version(
                conn, model=model, version=version, actor=ctx.actor, now=ctx.now, reason=reason
            )
    dropped = retention.drop_bytes(ctx.ledger, BundleDepot(ctx.home.bundles))
    return {"model": model, "version": version, "deleted": True, "at": gone or ctx.now, "dropped": dropped}


def _meant(conn: Connection, model: str, version: int, to: str | None) -> str | None:
    """Which of a version's waiting promotions is spoken of; None where none waits, which the registry tells."""
    waiting = promotion.list_promotions(conn, model=model, version=version, state="pending")
    stages = ", ".join(one.stage.value for one in waiting)
    if to is None:
        if len(waiting) > 1:
            raise Conflict(
                "more than one promotion waits; say which one you mean", where=f"{model}/{version}", got=stages,
                wanted="--to staging or --to production",
            )  # fmt: skip
        return waiting[0].id if waiting else None
    stage = Stage.parse(to)
    meant = [one.id for one in waiting if one.stage is stage]
    if not meant and waiting:
        raise NotFound(f"no promotion to {stage.value} waits", where=f"{model}/{version}", wanted=stages)
    return meant[0] if meant else None


def _answer(ctx: Context, conn: Connection, asked: Promotion) -> dict[str, Any]:
    after = [
        p
        for p in promotion.list_promotions(conn, model=asked.model, version=asked.version)
        if p.id == asked.id
    ]
    current = after[0] if after else asked
    answer = current.to_json() | {"missing": [], "requirements": [], "reviewers": []}
    if current.state == "pending":
        lacking = promotion.assessment(
            conn, model=asked.model, version=asked.version, stage=asked.stage, now=ctx.now
        )
        answer |= lacking.to_json()
        if any(each.kind == "approvals" and not each.met for each in lacking.requirements):
            answer["reviewers"] = may_review(conn, current, ctx.now)
    running = active_rollout(conn, asked.model)
    answer["rollout"] = running.to_json() if running and running.version == asked.version else None
    return answer
