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


def check_team(conn: Connection, actor: Actor, *, model: str, team: str) -> None:
    """Raise Refused unless `actor` may say that `model` is of `team`: whoever says so says who decides about it.

    A new model may be of any team in which the actor develops. One that is of another team, or was registered without
    a project, changes hands by an admin only.
    """
    standing = store.team_of(conn, model)
    if standing == team:
        return
    if standing is None and not store.list_versions(conn, model, limit=1):
        require(actor, Role.DEVELOPER, f"begin {model} in the team {team}", model=model, team=team)
        return
    require(actor, Role.ADMIN, f"make {model} the team {team}'s", model=model)


def require_somewhere(actor: Actor, role: Role, act: str) -> None:
    """Raise Refused unless `actor` holds `role` everywhere, in one of their teams or, by scope, on one model.

    For what belongs to no model: tracking, and the way to acts that check the model themselves.
    """
    if actor.role_on() >= role:
        return
    places = [(team, model) for team in _teams(actor) for model in _models(actor)]
    if not any(actor.role_on(model=model, team=team) >= role for team, model in places):
        require(actor, role, act)


def _teams(actor: Actor) -> list[str | None]:
    return [None, *(team for team, _ in actor.teams)]


def _models(actor: Actor) -> list[str | None]:
    return [None, *(scope.model for scope in actor.scopes or () if scope.model is not None)]
