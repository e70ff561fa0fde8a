"""retrains list|show."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs, table


@subcommands(default="list")
def retrains() -> None:
    """List what asked for a retraining, and what came of it."""


@command("list", retrains)
@click.argument("model", required=False)
def list_retrains(session: Session, model: str | None) -> None:
    """List proposals to train again, newest first."""
    columns = [("retrain", "id"), ("model", "model"), ("cause", "cause"), ("event time", "event_time"),
               ("decision", "decision"), ("why", "why"), ("state", "state"), ("version", "version")]  # fmt: skip
    session.show(
        session.call("retrains.list", model=model),
        lambda rows: table(rows, columns, empty="nothing has asked for a retraining yet"),
    )


@command("show", retrains)
@click.argument("retrain")
def show(session: Session, retrain: str) -> None:
    """Show one proposal whole."""
    session.show(session.call("retrains.show", retrain=retrain), _whole)


def _whole(answer: dict[str, Any]) -> str:
    return pairs(answer)
