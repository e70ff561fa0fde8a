"""data quarantine, and the groups and commands about data of the files beside it."""

from typing import Any

import click

from loopwright.cli.checks import check
from loopwright.cli.contracts import contract
from loopwright.cli.incidents import incident
from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import table, text
from loopwright.cli.tables import COMMANDS as TABLES


@subcommands()
def data() -> None:
    """Contracts, checks, tables, snapshots, incidents, quarantine."""


for each in (check, contract, incident, *TABLES):
    data.add_command(each)


@command("quarantine", data)
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
@click.option("--limit", type=int, default=20, show_default=True, help="So many rows.")
def quarantine(session: Session, model: str, table_name: str, limit: int) -> None:
    """Show rows that were set aside, and why."""
    session.show(session.call("data.quarantine", model=model, table=table_name, limit=limit), _quarantined)


def _quarantined(answer: dict[str, Any]) -> str:
    head = f"{answer['model']}/{answer['table']}: {answer['rows']:,} rows set aside"
    if not answer["rows"]:
        return head
    reasons = [{"rule": rule, "rows": count} for rule, count in answer["reasons"].items()]
    lines = [
        f"  row {row.get('_row')}: {', '.join(row.get('_reasons') or [])} · "
        + ", ".join(f"{k}={text(v)}" for k, v in row.items() if not k.startswith("_"))
        for row in answer["examples"]
    ]
    return "\n".join([head, "", table(reasons, [("rule", "rule"), ("rows", "rows")]), "", *lines])
