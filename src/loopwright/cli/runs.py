"""runs list|show|compare, reproduce."""

import json
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table, text


@subcommands()
def runs() -> None:
    """List, show and compare training runs."""


@command("list", runs)
@click.argument("model", required=False)
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many, the newest.")
def list_runs(session: Session, model: str | None, limit: int) -> None:
    """List runs, newest first."""
    columns: list[Column] = [("run", "run_id"), ("model", "model"), ("status", "status"), ("started", "started_at"),
               ("by", "actor"), ("why", "reason"), ("metrics", lambda r: _first(r["metrics"])),
               ("bundle", lambda r: (r["bundle"] or "")[:12])]  # fmt: skip
    session.show(
        session.call("runs.list", model=model, limit=limit),
        lambda rows: table(rows, columns, empty="no runs yet; make one: loopwright run DIR"),
    )


@command("show", runs)
@click.argument("run")
def show(session: Session, run: str) -> None:
    """Show one run with its captured context. RUN is its id or the beginning of it."""
    session.show(session.call("runs.show", run=run), _run)


@command("compare", runs)
@click.argument("run", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Also show what is equal.")
def compare(session: Session, run: tuple[str, ...], everything: bool) -> None:
    """Put two or more runs side by side."""
    session.show(session.call("runs.compare", runs=list(run)), lambda a: _side_by_side(a, everything))


@command("reproduce")
@click.argument("run")
def reproduce(session: Session, run: str) -> int:
    """Run a recorded run again and compare the results.

    Exit code 1 when they diverge.
    """
    answer = session.call("runs.reproduce", run=run) if session.url else _rerun(session, run)
    session.show(answer, _reproduced)
    return 1 if answer["verdict"] == "diverged" else 0


def _rerun(session: Session, run: str) -> dict[str, Any]:
    """On a folder the training runs here, so its progress can be shown."""
    from loopwright.cli.progress import watch
    from loopwright.control.folder import FolderClient
    from loopwright.kernel.actor import Role, require
    from loopwright.kernel.progress import Silent
    from loopwright.pipeline.reproduce import reproduce as rerun

    client = session.client()
    assert isinstance(client, FolderClient)
    ctx = client.context
    require(ctx.actor, Role.DEVELOPER, "reproduce a run")
    if session.as_json:
        return rerun(home=ctx.home, ledger=ctx.ledger, run_id=run, progress=Silent()).to_json()
    with watch() as progress:
        return rerun(home=ctx.home, ledger=ctx.ledger, run_id=run, progress=progress).to_json()


def _reproduced(answer: dict[str, Any]) -> str:
    columns: list[Column] = [
        ("metric", "name"),
        ("then", "first"),
        ("now", "again"),
        ("difference", "difference"),
    ]
    lines = [
        f"run {answer['run_id']}: {answer['verdict']} ({answer['why']})",
        table(answer["metrics"], columns),
    ]
    if answer["differences"]:
        named = ", ".join(difference["name"] for difference in answer["differences"])
        lines.append(f"what is different from then: {named}")
    return "\n".join(lines)


def _first(metrics: dict[str, float], count: int = 3) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in sorted(metrics.items())[:count])


def _run(answer: dict[str, Any]) -> str:
    head = pairs(
        {name: value for name, value in answer.items() if name not in ("context", "params", "metrics")}
    )
    parts = [head, "", "metrics", pairs(dict(sorted(answer["metrics"].items()))), "", "parameters",
             pairs(dict(sorted(answer["params"].items())))]  # fmt: skip
    if answer["context"]:
        context = {key: value for key, value in answer["context"].items() if key != "packages"}
        parts += ["", "context", json.dumps(context, indent=2, ensure_ascii=False)]
    return "\n".join(parts)


def _side_by_side(answer: dict[str, Any], everything: bool) -> str:
    rows = [row for row in answer["rows"] if everything or row["differs"]]
    columns: list[Any] = [("", "name")]
    for index, run in enumerate(answer["runs"]):
        columns.append((run[:16], lambda row, index=index: text(row["values"][index])))
    return table(rows, columns, empty="these runs do not differ in anything recorded")
