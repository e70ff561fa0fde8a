"""Whether somebody may do something to a model: their role everywhere, or in the team the model belongs to."""

from sqlalchemy import Connection

from loopwright.kernel.actor import Actor, Role, require
from loopwright.registry import store


def require_on(conn: Connection, actor: Actor, role: Role, act: str, *, model: str) -> None:
    """Raise Refused unless `actor` holds `role` on `model`; a model without a project belongs to no team."""
    require(actor, role, act, model=model, team=store.team_of(conn, model))


def role_on(conn: Connection, actor: Actor, *, model: str) -> Role:
    """The role `actor` holds on `model`."""
    return actor.role_on(model=model, team=store.team_of(conn, model))
