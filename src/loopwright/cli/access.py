"""user add|list|set|disable|enable, token create|list|revoke."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import table

_ROLES = click.Choice(["viewer", "developer", "approver", "admin"], case_sensitive=False)


@subcommands()
def user() -> None:
    """Add, list, change and disable users."""


@command("add", user)
@click.argument("name")
@click.option("--role", type=_ROLES, default="developer", show_default=True, help="What they may do.")
def add(session: Session, name: str, role: str) -> None:
    """Add a user."""
    session.client(create=True)
    session.show(session.call("access.add_user", name=name, role=role), _line)


@command("list", user)
def list_users(session: Session) -> None:
    """List users and their roles."""
    columns = [("user", "name"), ("role", "role"), ("state", "state"), ("since", "created_at")]
    empty = "no users yet; add one: loopwright user add NAME --role admin"
    session.show(session.call("access.users"), lambda rows: table(rows, columns, empty=empty))


@command("set", user)
@click.argument("name")
@click.option("--role", type=_ROLES, required=True, help="What they may do from now on.")
def set_role(session: Session, name: str, role: str) -> None:
    """Change a user's role."""
    session.show(session.call("access.set_user", name=name, role=role), _line)


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
def token() -> None:
    """Create, list and revoke access tokens."""


@command("create", token)
@click.argument("user")
@click.option("--days", type=float, help="How long it works; default: until revoked.")
def create(session: Session, user: str, days: float | None) -> None:
    """Make a token for USER. It is shown once."""
    answer = session.call("access.create_token", user=user, days=days)
    session.show(answer, lambda a: str(a["token"]))
    if not session.as_json:
        session.note(
            "Keep it: it is not shown again. Use it as LOOPWRIGHT_TOKEN, or MLFLOW_TRACKING_TOKEN for MLflow."
        )


@command("list", token)
@click.argument("user", required=False)
def list_tokens(session: Session, user: str | None) -> None:
    """List tokens, never their secrets."""
    columns = [("id", "id"), ("user", "user"), ("state", "state"), ("created", "created_at"),
               ("expires", "expires_at"), ("last used", "last_used_at")]  # fmt: skip
    empty = "no tokens yet; make one: loopwright token create USER"
    session.show(session.call("access.tokens", user=user), lambda rows: table(rows, columns, empty=empty))


@command("revoke", token)
@click.argument("id")
def revoke(session: Session, id: str) -> None:
    """Revoke a token by its id."""
    session.show(session.call("access.revoke_token", id=id), lambda a: f"{a['id']} ({a['user']}): revoked")


def _line(answer: dict[str, Any]) -> str:
    return f"{answer['name']}: {answer['role']}, {answer['state']}"
