"""keys list|rotate|revoke|reseal."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import table


@subcommands()
def keys() -> None:
    """List, rotate and revoke the keys that sign."""


@command("list", keys)
def list_keys(session: Session) -> None:
    """List the home's keys, newest first."""
    columns = [("key", "key_id"), ("state", "state"), ("made", "created_at"), ("retired", "retired_at"),
               ("revoked", "revoked_at"), ("why", "reason"), ("public", "public")]  # fmt: skip
    session.show(session.call("keys.list"), lambda rows: table(rows, columns))


@command("rotate", keys)
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def rotate(session: Session, reason: str) -> None:
    """Sign with a new key from now on; what older ones signed stays valid."""
    session.show(
        session.call("keys.rotate", reason=reason),
        lambda a: (
            f"key {a['key_id']} signs from now on; {a['retired']} is retired, its signatures stay valid.\n"
            "Running servers take it over by themselves. Back up the keys folder."
        ),
    )


@command("revoke", keys)
@click.argument("key_id")
@click.option("--reason", required=True, help="Why; it stays in the audit log.")
def revoke(session: Session, key_id: str, reason: str) -> None:
    """Let no signature of a retired key count any more."""
    session.show(session.call("keys.revoke", key_id=key_id, reason=reason), _revoked)


@command("reseal", keys)
@click.option("--retired", is_flag=True, help="Also what a retired key sealed.")
def reseal(session: Session, retired: bool) -> int:
    """Seal registered bundles anew whose seal counts no more."""
    answer = session.call("keys.reseal", retired=retired)
    session.show(answer, _resealed)
    return 1 if answer["refused"] else 0


def _revoked(answer: dict[str, Any]) -> str:
    text = f"key {answer['key_id']}: revoked."
    if answer["stranded"]:
        text += (
            f"\nIt alone sealed {', '.join(answer['stranded'])}: servers refuse these until they are sealed anew."
            "\nnext: loopwright keys reseal"
        )
    return text


def _resealed(answer: dict[str, Any]) -> str:
    lines = [f"{len(answer['resealed'])} bundles sealed anew by key {answer['key_id']}."]
    lines += [f"not {subject}: {why}" for subject, why in answer["refused"].items()]
    return "\n".join(lines)
