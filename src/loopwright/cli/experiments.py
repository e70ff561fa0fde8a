"""experiment start|show|list|stop."""

from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs, share, table


@subcommands()
def experiment() -> None:
    """Split traffic between approved versions, and see what comes of it."""


@command("start", experiment)
@click.argument("model")
@click.option(
    "--variant", "variants", multiple=True, required=True, metavar="NAME=VERSION:SHARE%",
    help="A version beside stable, like b=7:30%. May be given several times; stable takes the rest.",
)  # fmt: skip
@click.option("--salt", default="", help="Split units as an earlier experiment with this salt did.")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def start(session: Session, model: str, variants: tuple[str, ...], salt: str, reason: str) -> None:
    """Answer a share of units with other versions of MODEL, from now on."""
    session.show(
        session.call("experiments.start", model=model, variants=list(variants), salt=salt, reason=reason),
        _line,
    )


@command("show", experiment)
@click.argument("model")
@click.option("--id", default=None, help="An experiment that has ended; default: the newest.")
def show(session: Session, model: str, id: str | None) -> int:
    """Show what an experiment on MODEL says so far; 1 when units did not come as its shares say."""
    answer = session.call("experiments.show", model=model, id=id)
    session.show(answer, _one)
    return 1 if answer["sample_ratio"]["sound"] is False else 0


@command("list", experiment)
@click.argument("model", required=False)
def list_(session: Session, model: str | None) -> None:
    """List experiments, newest first."""
    session.show(session.call("experiments.list", model=model), _listed)


@command("stop", experiment)
@click.argument("model")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def stop(session: Session, model: str, reason: str) -> None:
    """Give all traffic of MODEL back to its stable version."""
    session.show(session.call("experiments.stop", model=model, reason=reason), _line)


def _line(answer: dict[str, Any]) -> str:
    return f"{answer['model']}: {_split(answer)} ({answer['status']}, {answer['id']})"


def _split(answer: dict[str, Any]) -> str:
    return ", ".join(
        f"{arm['arm']}=version {arm['version']} {share(arm['weight'])}" for arm in answer["arms"]
    )


def _listed(rows: list[dict[str, Any]]) -> str:
    return table(
        rows,
        [("model", "model"), ("split", _split), ("status", "status"), ("started", "started_at"),
         ("ended", "ended_at"), ("by", "by"), ("id", "id")],
        empty="no experiments yet; one begins with: loopwright experiment start MODEL --variant b=VERSION:30%",
    )  # fmt: skip


def _one(answer: dict[str, Any]) -> str:
    ratio = answer["sample_ratio"]
    head = pairs({
        "experiment": answer["id"], "model": answer["model"], "status": answer["status"],
        "since": answer["began"], "until": answer["until"], "why": answer["ended_why"] or answer["reason"],
        "split": ratio["why"] or f"as the shares say (p = {ratio['p']:.3g})",
    })  # fmt: skip
    arms = table(
        answer["arms"],
        [("arm", "arm"), ("version", "version"), ("share", lambda a: share(a["weight"])), ("answers", "answers"),
         ("errors", lambda a: _interval(a["error_rate"], percent=True)), ("units", "units"),
         ("labelled", "labelled"), ("label", lambda a: _interval(a["label"])),
         ("against stable", lambda a: _interval(a.get("against_stable", {}).get("label"))),
         ("output", lambda a: _interval(a["output"])), ("", _remark)],
    )  # fmt: skip
    held = f"Intervals of units hold at {answer['confidence']:.0%} at every moment, so looking often does no harm."
    return f"{head}\n\n{arms}\n\n{held}"


def _remark(arm: dict[str, Any]) -> str:
    said = [] if arm["approved"] else ["may not be served any more: stable answers its units"]
    return "; ".join(said + ([f"{arm['crossed']} units crossed"] if arm["crossed"] else []))


def _interval(found: dict[str, Any] | None, *, percent: bool = False) -> str:
    if found is None:
        return "–"

    def one(value: float) -> str:
        return f"{100 * value:.3g}%" if percent else f"{value:.4g}"

    return one(found["value"]) + (
        f" ({one(found['low'])} to {one(found['high'])})" if found["low"] is not None else ""
    )
