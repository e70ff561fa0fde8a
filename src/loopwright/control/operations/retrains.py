"""What asked for a retraining, and what came of it."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.errors import NotFound
from loopwright.registry import versions
from loopwright.retraining import store as retraining_store


@operation("retrains.list", "GET", "/retrains")
def list_retrains(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """List proposals to train again, newest first; of one model when given."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        found = retraining_store.list_retrains(conn, model=model)
    return [one.to_json() for one in found]


@operation("retrains.show", "GET", "/retrains/{retrain}")
def show(ctx: Context, retrain: str) -> dict[str, Any]:
    """Show one proposal whole; `retrain` is its id or the beginning of it."""
    with ctx.ledger.read() as conn:
        found = [one for one in retraining_store.list_retrains(conn) if one.id.startswith(retrain)]
    if len(found) != 1:
        raise NotFound(
            "no such retraining" if not found else "the id is not unique",
            got=retrain,
            next="loopwright retrains list",
        )
    return found[0].to_json()
