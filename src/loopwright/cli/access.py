"""user add|list|set|disable|enable, team list|grant|revoke, token create|list|revoke, whoami."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import table
from loopwright.kernel.errors import BadInput

_ROLES = click.Choice(["viewer", "developer", "approver", "admin"], case_sensitive=False)


@subcommands()
def user() -> None:
    """Add, list, change and disable users."""


@command("add", user)
@click.argument("name")
@click.option("--role", type=_ROLES, default="developer", show_default=True, help="What they may do.")
@click.option("--service", is_flag=True, help="A machine's account: tokens only, no sessions, no reviews.")
@click.option("--identity", metavar="ISSUER SUBJECT", help="Who they are at the OIDC provider.")
def add(session: Session, name: str, role: str, service: bool, identity: str | None) -> None:
    """Add a user."""
    session.client(create=True)
    answer = session.call("access.add_user", name=name, role=role, service=service, identity=identity)
    session.show(answer, _line)


@command("list", user)
def list_users(session: Session) -> None:
    """List users, their roles and their teams."""
    columns = [("user", "name"), ("kind", "kind"), ("role", "role"), ("teams", "teams"), ("state", "state"),
               ("since", "created_at")]  # fmt: skip
    empty = "no users yet; add one: loopwright user add NAME --role admin"

    def render(found: list[dict[str, Any]]) -> str:
        rows = [
            row | {"teams": _pairs(row["teams"]), "kind": "service" if row["service"] else "person"}
            for row in found
        ]
        return table(rows, columns, empty=empty)

    session.show(session.call("access.users"), render)


@command("set", user)
@click.argument("name")
@click.option("--role", type=_ROLES, help="What they may do from now on.")
@click.option("--identity", metavar="ISSUER SUBJECT", help="Who they are at the OIDC provider.")
def set_role(session: Session, name: str, role: str | None, identity: str | None) -> None:
    """Change a user's role, or who they are at the OIDC provider."""
    if role is None and identity is None:
        raise BadInput("nothing to change", wanted="--role or --identity")
    session.show(session.call("access.set_user", name=name, role=role, identity=identity), _line)


@command("disable", user)
@click.argument("name")
def disable(session: Session, name: str) -> None:
    """Let nobody in by this name; their tokens stop working."""
    session.show(session.call("access.set_user", name=name, disabled=True), _line)


@command("enable", user)
@click.argument("name")
def enable(session: Session, name: str) -> None:
    """Let a disabled user in again."""
    session.show(session.call("access.set_user", name=name, disabled=False), _line)


@subcommands()
def team() -> None:
    """Say who may do what with a team's models."""


@command("list", team)
def list_teams(session: Session) -> None:
    """List teams: their people with their roles, and their models."""

    def render(found: list[dict[str, Any]]) -> str:
        rows = [row | {"people": _pairs(row["people"]), "models": ", ".join(row["models"])} for row in found]
        columns = [("team", "team"), ("people", "people"), ("models", "models")]
        return table(rows, columns, empty="no teams yet; a loop.yaml names its model's team: `team: NAME`")

    session.show(session.call("access.teams"), render)


@command("grant", team)
@click.argument("team")
@click.argument("user")
@click.argument("role", type=_ROLES)
def grant(session: Session, team: str, user: str, role: str) -> None:
    """Give USER a role on the models of TEAM."""
    session.show(session.call("access.grant_team", team=team, user=user, role=role), _line)


@command("revoke", team)
@click.argument("team")
@click.argument("user")
def revoke_team(session: Session, team: str, user: str) -> None:
    """Take USER's role in TEAM away; their role everywhere stays."""
    session.show(session.call("access.revoke_team", team=team, user=user), _line)


@subcommands()
def token() -> None:
    """Create, list and revoke access tokens."""


@command("create", token)
@click.argument("user")
@click.option("--days", type=float, help="How long it works; default: 90 days.")
@click.option("--forever", is_flag=True, help="Until it is revoked.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="SCOPE",
    help="What it is for: serve, read, write, approve, admin, or one of them for one model, as approve:MODEL. "
    "May be given more than once; default: all that USER may do.",
)  # fmt: skip
@click.option("--note", default="", help="What it is for, in words.")
def create(
    session: Session, user: str, days: float | None, forever: bool, scopes: tuple[str, ...], note: str
) -> None:
    """Make a token for USER. It is shown once."""
    answer = session.call(
        "access.create_token", user=user, days=days, forever=forever, scopes=list(scopes) or None, note=note
    )
    session.show(answer, lambda a: str(a["token"]))
    if not session.as_json:
        end = f"works until {answer['expires_at']}" if answer["expires_at"] else "works until it is revoked"
        scoped = f" and is for {', '.join(answer['scopes'])}" if answer["scopes"] else ""
        session.note(
            f"It {end}{scoped}. Keep it: it is not shown again. Use it as LOOPWRIGHT_TOKEN, or "
            "MLFLOW_TRACKING_TOKEN for MLflow."
        )
    for model in answer.get("unknown_models", ()):
        session.note(f"note: there is no model {model} yet; the scope counts once there is one of this name")


@command("list", token)
@click.argument("user", required=False)
def list_tokens(session: Session, user: str | None) -> None:
    """List tokens, never their secrets."""
    columns = [("id", "id"), ("user", "user"), ("state", "state"), ("scopes", "scopes"), ("created", "created_at"),
               ("expires", "expires_at"), ("last used", "last_used_at"), ("note", "note")]  # fmt: skip
    empty = "no tokens yet; make one: loopwright token create USER"

    def render(found: list[dict[str, Any]]) -> str:
        rows = [
            row | {"scopes": "all" if row["scopes"] is None else ", ".join(row["scopes"])} for row in found
        ]
        return table(rows, columns, empty=empty)

    session.show(session.call("access.tokens", user=user), render)


@command("revoke", token)
@click.argument("id")
def revoke(session: Session, id: str) -> None:
    """Revoke a token by its id, and the sessions opened with it."""
    # Who pastes the token itself must not write it into an address: addresses are logged.
    known = id.split("_")[1] if id.startswith("lw_") and id.count("_") > 1 else id
    session.show(session.call("access.revoke_token", id=known), lambda a: f"{a['id']} ({a['user']}): revoked")


@command("whoami")
def whoami(session: Session) -> None:
    """Say who you are here, and what you may do."""

    def render(answer: dict[str, Any]) -> str:
        lines = [f"{answer['name']}: {answer['role']} ({answer['via']})"]
        lines += [f"teams: {_pairs(answer['teams'])}"] if answer["teams"] else []
        if answer["scopes"] is not None:
            lines.append(f"this token is for {', '.join(answer['scopes']) or 'nothing'}")
        return "\n".join(lines)

    session.show(session.call("access.whoami"), render)


def _line(answer: dict[str, Any]) -> str:
    teams = f" ({_pairs(answer['teams'])})" if answer["teams"] else ""
    service = ", service" if answer["service"] else ""
    return f"{answer['name']}: {answer['role']}{teams}{service}, {answer['state']}"


def _pairs(roles: dict[str, str]) -> str:
    return ", ".join(f"{name}: {role}" for name, role in roles.items())
