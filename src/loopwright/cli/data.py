"""data check|quarantine, and the groups and commands about data of the files beside it."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.contracts import contract
from loopwright.cli.incidents import incident
from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import table, text
from loopwright.cli.tables import COMMANDS as TABLES

_PROJECT = click.argument("project", type=click.Path(path_type=Path), default=".")


@subcommands()
def data() -> None:
    """Contracts, checks, tables, snapshots, incidents, quarantine."""


for each in (contract, incident, *TABLES):
    data.add_command(each)


@command("check", data)
@_PROJECT
@click.option("--table", "tables", multiple=True, help="Only this source; may be given again.")
@click.option("--rows", is_flag=True, help="Show examples of rows that break a rule.")
def check(session: Session, project: Path, tables: tuple[str, ...], rows: bool) -> int:
    """Check the sources of PROJECT against their contracts; nothing is landed.

    Exit code 1 when a contract blocks its batch; rows that would be set aside alone are no failure.
    """
    session.client(create=True)
    answer = session.call("data.check", project=str(project.absolute()), tables=list(tables) or None)
    session.show(answer, lambda a: _checked(a, rows))
    return 1 if any(one["blocked_by"] for one in answer["tables"]) else 0


@command("quarantine", data)
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
@click.option("--limit", type=int, default=20, show_default=True, help="So many rows.")
def quarantine(session: Session, model: str, table_name: str, limit: int) -> None:
    """Show rows that were set aside, and why."""
    session.show(session.call("data.quarantine", model=model, table=table_name, limit=limit), _quarantined)


def _checked(answer: dict[str, Any], rows: bool) -> str:
    parts = []
    for one in answer["tables"]:
        verdict = f"blocked by {', '.join(one['blocked_by'])}" if one["blocked_by"] else one["state"]
        parts.append(
            f"{one['table']}: {one['input_rows']:,} rows = {one['good_rows']:,} good + {one['bad_rows']:,} bad"
            f" · {verdict}"
        )
        broken = [rule for rule in one["rules"] if rule["state"] != "PASS"]
        if broken:
            parts.append(_indented(table(broken, [
                ("rule", "name"), ("column", "column"), ("severity", "severity"), ("state", "state"),
                ("rows", "failed"),
            ])))  # fmt: skip
        if rows:
            parts += [
                f"    {rule['name']}: {text(example)}" for rule in broken for example in rule["examples"]
            ]
    return "\n".join(parts)


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


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" for line in block.splitlines())
