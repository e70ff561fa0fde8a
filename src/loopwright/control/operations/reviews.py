"""Reviews of broken glass: what waits, and what a reviewer makes of it."""

from typing import Any, Literal

from sqlalchemy import Connection

from loopwright.control import glass
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.signals import event_time_of
from loopwright.delivery import conduct
from loopwright.delivery.routes import rollback_targets, stable_version
from loopwright.delivery.store import active_rollout
from loopwright.kernel.errors import Conflict
from loopwright.registry import review, versions


@operation("reviews.list", "GET", "/reviews")
def list_reviews(ctx: Context, model: str | None = None, open: bool = False) -> list[dict[str, Any]]:
    """List reviews of broken glass, the first due first."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        found = review.list_reviews(conn, model=model, state="open" if open else None)
    return [{**one.to_json(), "overdue": one.overdue(ctx.now)} for one in found]


@operation("reviews.decide", "POST", "/models/{model}/{version}/review")
def decide(
    ctx: Context, model: str, version: int, outcome: Literal["uphold", "revoke"], comment: str = ""
) -> dict[str, Any]:
    """Uphold or revoke a promotion for which the glass was broken. A revoked version leaves traffic at once."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        decided = review.decide(
            conn, model=model, version=version, reviewer=ctx.actor, outcome=outcome, comment=comment, now=ctx.now
        )  # fmt: skip
        serving = (
            _take_out(ctx, conn, model, version, comment)
            if outcome == "revoke"
            else stable_version(conn, model)
        )
        glass.settle_alerts(conn, decided, ctx.now)
    return {**decided.to_json(), "serving": serving}


def _take_out(ctx: Context, conn: Connection, model: str, version: int, why: str) -> int | None:
    """Send traffic back to where it was before a revoked version; return who answers then.

    With nothing to go back to the version keeps answering: no answer at all is not for a review to choose.
    """
    running, stable = active_rollout(conn, model), stable_version(conn, model)
    if running is not None and running.version != version and stable == version:
        raise Conflict(
            f"version {running.version} is being rolled out over version {version}", where=f"{model}/{version}",
            wanted="no rollout in progress",
            next=f"Finish or end it first: loopwright rollout promote {model}, loopwright rollout abort {model}.",
        )  # fmt: skip
    rolling = running is not None and running.version == version
    if rolling or (stable == version and rollback_targets(conn, model)):
        conduct.rollback_now(
            conn, model, actor=ctx.actor, why=f"its broken glass was not upheld: {why}",
            event_time=event_time_of(conn, model, ctx.now), now=ctx.now, key=ctx.key,
        )  # fmt: skip
    return stable_version(conn, model)
