"""Who is behind the current request. Set by authentication; never read from a payload."""

from contextvars import ContextVar

from loopwright.kernel.actor import Actor
from loopwright.kernel.errors import Unauthenticated

current_actor: ContextVar[Actor | None] = ContextVar("loopwright_current_actor", default=None)
"""The authenticated actor of this request; MLflow's worker threads inherit it."""


def acting() -> Actor:
    """Return the authenticated actor; raises Unauthenticated when there is none."""
    actor = current_actor.get()
    if actor is None:
        raise Unauthenticated(
            "nobody is signed in",
            where="registry",
            next="Send a token: MLFLOW_TRACKING_TOKEN, or the header `Authorization: Bearer …`.",
        )
    return actor
