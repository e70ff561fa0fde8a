"""labels add, drift, quality, alerts list|ack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, share, table, text


@subcommands()
def labels() -> None:
    """Add the outcomes of past predictions."""


@command("add", labels)
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--id-column", default="id", show_default=True, help="The column with the predictions' ids.")
@click.option("--label-column", default="label", show_default=True, help="The column with the outcomes.")
@click.option(
    "--available-at", metavar="COLUMN", help="The column that says when each became known; default: now."
)
def add(
    session: Session, model: str, file: Path, id_column: str, label_column: str, available_at: str | None
) -> None:
    """Add the outcomes in FILE (CSV, Parquet, JSONL) to the predictions of MODEL."""
    from loopwright.cli.label_file import batches, read

    rows, taken = 0, []
    for part in batches(read(file, id_column, label_column, available_at)):
        answer = session.call("monitoring.add_labels", model=model, labels=part)
        rows += answer["rows"]
        taken.append(answer["batch"])
    session.show(
        {"model": model, "rows": rows, "batches": taken},
        lambda a: f"{a['model']}: {a['rows']:,} outcomes added",
    )


@command("drift")
@click.argument("model")
@click.option("--version", type=int, help="Only this version; default: all.")
@click.option("--limit", type=int, default=10, show_default=True, help="So many windows, the newest.")
def drift(session: Session, model: str, version: int | None, limit: int) -> None:
    """Show how far features and predictions moved, window by window."""
    session.show(session.call("monitoring.drift", model=model, version=version, limit=limit), _drift)


@command("quality")
@click.argument("model")
@click.option("--version", type=int, help="Only this version; default: all.")
@click.option("--limit", type=int, default=52, show_default=True, help="So many windows, the newest.")
def quality(session: Session, model: str, version: int | None, limit: int) -> None:
    """Show quality over time, on the labels known so far."""
    columns: list[Column] = [
        ("from", "start"), ("to", "end"), ("version", "version"), ("verdict", "verdict"), ("metric", _of("metric")),
        ("value", _of("value")), ("at least", _of("low")), ("at most", _of("high")), ("expected", _of("expected")),
        ("limit", _of("limit")), ("labels", _of("labelled")), ("of answers", lambda w: share(_of("coverage")(w))),
    ]  # fmt: skip
    session.show(
        session.call("monitoring.quality", model=model, version=version, limit=limit),
        lambda rows: table(
            rows, columns, empty="no window has been judged yet; labels come with: loopwright labels add"
        ),
    )


@subcommands(default="list")
def alerts() -> None:
    """List and acknowledge alerts."""


@command("list", alerts)
@click.argument("model", required=False)
@click.option("--state", type=click.Choice(["open", "acknowledged", "resolved"]), help="Only these.")
def list_alerts(session: Session, model: str | None, state: str | None) -> None:
    """List alerts, worst tier first."""
    columns: list[Column] = [
        ("alert", "id"), ("tier", "tier"), ("model", "model"), ("version", "version"), ("what", "title"),
        ("state", "state"), ("by", "by"), ("event time", "event_time"),
    ]  # fmt: skip
    session.show(
        session.call("monitoring.alerts", model=model, state=state),
        lambda rows: table(rows, columns, empty="no alerts"),
    )


@command("ack", alerts)
@click.argument("alert")
def ack(session: Session, alert: str) -> None:
    """Say that somebody looks after ALERT."""
    session.show(
        session.call("monitoring.acknowledge", alert=alert),
        lambda a: f"{a['title']}: {a['state']} by {a['by']}",
    )


def _of(name: str) -> Callable[[dict[str, Any]], Any]:
    """Pick a figure of a judged window."""
    return lambda window: window["payload"].get(name)


def _drift(windows: list[dict[str, Any]]) -> str:
    """One line per window, then the columns of the newest one."""
    if not windows:
        return "no window has been judged yet"
    listed = table(
        windows,
        [("from", "start"), ("to", "end"), ("of", "kind"), ("version", "version"), ("verdict", "verdict"),
         ("rows", _of("rows")), ("moved most (PSI, bias-corrected)", _moved_most)],
    )  # fmt: skip
    newest = max(window["start"] for window in windows)
    columns = [
        {"column": name, **found}
        for window in windows
        if window["start"] == newest
        for name, found in (window["payload"].get("columns") or {}).items()
    ]
    columns.sort(key=lambda found: -(found.get("corrected") or 0))
    shown = table(
        columns,
        [("column", "column"), ("level", "level"), ("PSI", "psi"), ("corrected", "corrected"),
         ("p adjusted", "adjusted"), ("KS", "ks"), ("nulls", lambda c: share(c["null_share"])),
         ("were", lambda c: share(c["reference_null_share"])), ("novel", lambda c: share(c["novel_share"]))],
    )  # fmt: skip
    return f"{listed}\n\nnewest window, column by column\n{shown}"


def _moved_most(window: dict[str, Any], count: int = 4) -> str:
    columns = window["payload"].get("columns") or {}
    moved = sorted(columns.items(), key=lambda item: -(item[1].get("corrected") or 0))[:count]
    return ", ".join(f"{name} {text(found.get('corrected'))}" for name, found in moved)
