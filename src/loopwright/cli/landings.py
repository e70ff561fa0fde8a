"""data land|contracts: sources into tables, and the contracts that judged them."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.progress import watch
from loopwright.cli.session import Session, command
from loopwright.cli.show import table

LONGEST = 24 * 3600.0
"""A landing over HTTP may take long; the answer comes at its end."""


@command("land")
@click.argument("project", type=click.Path(path_type=Path), default=".")
@click.option("--table", "tables", multiple=True, help="Only this source; may be given again.")
@click.option(
    "--rebuild", multiple=True, metavar="TABLE",
    help="Judge what has landed in TABLE anew, under its contract as it is now; may be given again.",
)  # fmt: skip
def land(session: Session, project: Path, tables: tuple[str, ...], rebuild: tuple[str, ...]) -> None:
    """Land the sources of PROJECT and check them; nothing is pinned.

    What has landed is not read again. --rebuild is the way out when a contract breaks with rows that have landed:
    bronze has every row that came, and silver and quarantine are made again from it; their older versions stay.
    """
    from loopwright.control.client import HttpClient

    client = session.client(create=True)
    arguments: dict[str, Any] = {
        "project": str(project.absolute()), "tables": list(tables) or None, "rebuild": list(rebuild) or None,
    }  # fmt: skip
    if isinstance(client, HttpClient):
        client.timeout = LONGEST
    if session.as_json or isinstance(client, HttpClient):
        answer = session.call("landings.land", **arguments)
    else:
        from loopwright.kernel.progress import watching

        with watch() as progress:
            progress.step("Land the data")
            token = watching.set(progress)
            try:
                answer = session.call("landings.land", **arguments)
            finally:
                watching.reset(token)
            progress.done(f"{sum(one['good_rows'] for one in answer['tables']):,} good rows")
    session.show(answer, _landed)


@command("contracts")
@click.argument("model")
@click.argument("table_name", metavar="TABLE")
def contracts(session: Session, model: str, table_name: str) -> None:
    """List the contracts that TABLE was judged by, and what each one changed."""
    session.show(
        session.call("landings.contracts", model=model, table=table_name),
        lambda rows: table(rows, [
            ("no", "number"), ("contract", lambda r: r["digest"][:12]), ("version", "version"), ("change", "change"),
            ("since", "at"), ("by", "actor"),
            ("what", lambda r: "; ".join(f"{d['where']}: {d['what']}" for d in r["differences"])),
        ]),
    )  # fmt: skip


def _landed(answer: dict[str, Any]) -> str:
    return "\n".join(line for one in answer["tables"] for line in _table(one))


def _table(one: dict[str, Any]) -> list[str]:
    text = f"{one['table']}: {one['input_rows']:,} rows = {one['good_rows']:,} good + {one['bad_rows']:,} quarantined"
    if one["already_landed"]:
        return [f"{text} (landed before)"]
    if one["inserted"] is not None:
        text += f" · {one['inserted']:,} inserted, {one['updated']:,} updated, {one['ignored_late']:,} ignored as late"
    if one["late_rows"]:
        text += f" · {one['late_rows']:,} happened before rows of earlier batches"
    return [text, *(f"    {note}" for note in one["notes"])]


COMMANDS = (land, contracts)
