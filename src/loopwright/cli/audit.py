"""audit show|verify|export."""

import json
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table, text
from loopwright.kernel.files import write_atomic


@subcommands()
def audit() -> None:
    """Show, verify and export the audit log."""


@command("show", audit)
@click.option("--subject", help="Only what was done to this, like flight-late/2.")
@click.option("--actor", help="Only what this actor did.")
@click.option("--action", help="Only this kind of act, like promotion.approved.")
@click.option("--since", metavar="TIME", help="From this time on (ISO 8601 with a zone).")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many, the newest.")
def show(session: Session, **filters: Any) -> None:
    """Show who did what to what, when, on which evidence."""
    columns: list[Column] = [("#", "seq"), ("at", "at"), ("who", "actor"), ("did", "action"), ("to", "subject"),
               ("with", lambda row: _brief(row["payload"]))]  # fmt: skip
    session.show(session.call("audit.show", **filters), lambda rows: table(rows, columns))


@command("verify", audit)
def verify(session: Session) -> int:
    """Walk the whole chain; exit code 1 when a row was changed, removed or inserted."""
    answer = session.call("audit.verify")
    session.show(
        answer,
        lambda a: (
            f"the audit log is whole: {a['why']}; head {a['head'][:16]}…"
            if a["ok"]
            else f"BROKEN: {a['why']}"
        ),
    )
    return 0 if answer["ok"] else 1


@command("export", audit)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; default: standard output.")
@click.option("--since", metavar="TIME", help="From this time on (ISO 8601 with a zone).")
@click.option("--until", metavar="TIME", help="Before this time.")
def export(session: Session, output: Path | None, since: str | None, until: str | None) -> None:
    """Write every row with its hashes, one JSON document a line."""
    rows = session.call("audit.export", since=since, until=until)
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    if output is None:
        click.echo(lines, nl=False)
        return
    write_atomic(output, lines.encode())
    session.show(
        {"rows": len(rows), "path": str(output)}, lambda a: f"{a['rows']} rows written to {a['path']}"
    )


def _brief(payload: dict[str, Any], limit: int = 80) -> str:
    flat = ", ".join(
        f"{k}={text(v)}" for k, v in payload.items() if not isinstance(v, dict | list) and v is not None
    )
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
