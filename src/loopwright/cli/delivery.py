"""rollout show|pause|resume|abort|promote."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs, share, table


@subcommands()
def rollout() -> None:
    """Show, pause, resume, abort or promote a rollout."""


@command("show", rollout)
@click.argument("model", required=False)
def show(session: Session, model: str | None) -> None:
    """Show the rollout of MODEL with all that happened, or list every rollout."""
    if model is None:
        session.show(session.call("delivery.list"), _listed)
    else:
        session.show(session.call("delivery.show", model=model), _one)


@command("pause", rollout)
@click.argument("model")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def pause(session: Session, model: str, reason: str) -> None:
    """Keep traffic as it is until it is resumed; harm still rolls back."""
    session.show(session.call("delivery.pause", model=model, reason=reason), _line)


@command("resume", rollout)
@click.argument("model")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def resume(session: Session, model: str, reason: str) -> None:
    """Go on where it was paused."""
    session.show(session.call("delivery.resume", model=model, reason=reason), _line)


@command("abort", rollout)
@click.argument("model")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def abort(session: Session, model: str, reason: str) -> None:
    """Send all traffic back to the version before, now."""
    session.show(session.call("delivery.abort", model=model, reason=reason), _line)


@command("promote", rollout)
@click.argument("model")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def promote(session: Session, model: str, reason: str) -> None:
    """Send all traffic to the candidate, now; refused when the judge says FAIL."""
    session.show(session.call("delivery.promote", model=model, reason=reason), _line)


def _line(answer: dict[str, Any]) -> str:
    return f"{answer['model']} version {answer['version']}: {answer['at']} ({answer['reason']})"


def _listed(rows: list[dict[str, Any]]) -> str:
    return table(
        rows,
        [("model", "model"), ("version", "version"), ("against", "baseline"), ("strategy", "strategy"),
         ("status", "status"), ("at", "at"), ("canary", lambda r: share(r["weight"])),
         ("started", "started_at"), ("why", "reason")],
        empty="no rollouts yet; one begins when a promotion to Production takes effect",
    )  # fmt: skip


def _one(answer: dict[str, Any]) -> str:
    head = pairs({
        "rollout": answer["id"], "model": answer["model"], "version": answer["version"],
        "against": answer["baseline"], "strategy": answer["strategy"], "status": answer["status"],
        "at": answer["at"], "canary": share(answer["weight"]), "why": answer["reason"],
    })  # fmt: skip
    events = table(
        answer["events"],
        [("event time", "event_time"), ("what", "kind"),
         ("to", lambda e: e["payload"].get("to")), ("why", lambda e: e["payload"].get("why"))],
    )  # fmt: skip
    return f"{head}\n\n{events}"
