"""data check."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import table, text
from loopwright.kernel.errors import BadInput, NotFound

LONGEST = 3600.0
"""Seconds: a check of many rows may take its time."""
SHOWN = 6
"""So many cells of a row are printed; the others are counted."""


@command("check")
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
@click.option("--contract", metavar="FILE", help="Judge by this contract (FILE#TABLE: one of several in it).")
@click.option("--table", "tables", multiple=True, help="Only this source of a project; may be given again.")
@click.option("--model", help="With a file: whose tables the contract's relationships point to.")
@click.option("--rows", is_flag=True, help="Show rows that break a rule.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="So many rows.")
@click.option(
    "--memory", metavar="SIZE", help="What the engine may take; more goes to disk.  [default: 256MB]"
)
@click.option(
    "--engine", metavar="URL", help="duckdb, spark://HOST:PORT or local[2]; default: as configured."
)
def check(
    session: Session,
    targets: tuple[str, ...],
    contract: str | None,
    tables: tuple[str, ...],
    model: str | None,
    rows: bool,
    limit: int,
    memory: str | None,
    engine: str | None,
) -> int:
    """Check data against its contract; nothing is landed.

    TARGET is a project's folder (the default: this one), whose sources are checked; with --contract a file or a URI; or
    MODEL/TABLE, the rows of a table as they stand, by default against the contract they were landed by.

    Exit code 1 when a contract blocks its batch, or a rule could not be evaluated; rows that would be set aside alone
    are no failure.
    """
    shared = {"memory": memory, "engine": engine, "rows": limit if rows else None}
    calls = [_call(session, target, contract, tables, model) for target in targets or (".",)]
    client = session.client(create=True)
    if session.url is not None:
        from loopwright.control.client import HttpClient

        assert isinstance(client, HttpClient)
        client.timeout = LONGEST
    answers = []
    with _progress(session):
        for operation, arguments in calls:
            answers.append(session.call(operation, **arguments, **shared))
    found = [one for answer in answers for one in answer["tables"]]
    session.show(
        answers[0] if len(answers) == 1 else {"tables": found}, lambda a: _checked(a["tables"], rows)
    )
    return 1 if any(one["blocked_by"] for one in found) else 0


def _call(
    session: Session, target: str, contract: str | None, tables: tuple[str, ...], model: str | None
) -> tuple[str, dict[str, Any]]:
    """Which operation a target asks for, and with what."""
    path = Path(target)
    named = None if contract is None else str(Path(contract).absolute())
    if path.is_dir() and contract is None:
        return "data.check", {"project": str(path.absolute()), "tables": list(tables) or None}
    if tables:
        raise BadInput("--table is for the sources of a project", where=target, wanted="a project's folder")
    found = re.fullmatch(r"([\w.-]+)/([\w.-]+)", target)
    if found and not path.exists() and not path.suffix:
        return "data.check_table", {"model": found[1], "table": found[2], "contract": named}
    if "://" not in target and not path.exists() and not set(target) & set("*?[") and session.url is None:
        raise NotFound(
            "there is nothing to check here", got=target, wanted="a project's folder, a file, or MODEL/TABLE"
        )
    if named is None:
        raise BadInput(
            "by which contract?", where=target, wanted="--contract FILE",
            next=f"Draft one from the data: loopwright data contract infer {target}",
        )  # fmt: skip
    uri = target if "://" in target else str(path.absolute())
    return "data.check_source", {"uri": uri, "contract": named, "model": model}


@contextmanager
def _progress(session: Session) -> Iterator[None]:
    """At a terminal, show what is being checked while it is."""
    if not session.at_terminal:
        yield
        return
    from loopwright.cli.progress import Live
    from loopwright.kernel.progress import watching

    with Live() as live:
        token = watching.set(live)
        try:
            yield
        finally:
            watching.reset(token)


def _checked(found: list[dict[str, Any]], rows: bool) -> str:
    return "\n".join(line for one in found for line in _table(one, rows))


def _table(one: dict[str, Any], rows: bool) -> Iterator[str]:
    verdict = f"blocked by {', '.join(one['blocked_by'])}" if one["blocked_by"] else one["state"]
    yield (
        f"{one['table']}: {one['input_rows']:,} rows = {one['good_rows']:,} good + {one['bad_rows']:,} bad · {verdict}"
    )
    states = [rule["state"] for rule in one["rules"]]
    broken = [rule for rule in one["rules"] if rule["state"] != "PASS"]
    if broken:
        yield _indented(table(broken, [
            ("rule", "name"), ("column", "column"), ("severity", "severity"), ("state", "state"),
            ("rows", lambda r: r["failed"] if r["measured"] is None else None), ("found", _found),
        ]))  # fmt: skip
    told = ", ".join(f"{states.count(s)} {s}" for s in ("PASS", "WARN", "FAIL", "ERROR") if s in states)
    yield f"    {len(states)} rules: {told or 'none'}"
    if rows:
        yield from _rows(one, broken)


def _found(rule: dict[str, Any]) -> str:
    why = str(rule["why"])
    return "" if re.fullmatch(r"\d+ of \d+ rows", why) else why


def _rows(one: dict[str, Any], broken: list[dict[str, Any]]) -> Iterator[str]:
    columns = {rule["name"]: rule["column"].split(", ") for rule in one["rules"]}
    for row in one.get("broken", ()):
        about = [c for name in row["reasons"] for c in columns.get(name, ()) if c in row["cells"]]
        cells = {name: row["cells"][name] for name in dict.fromkeys([*about, *row["cells"]])}
        yield f"    row {row['row']}: {', '.join(row['reasons'])} · {_cells(cells)}"
    if one["bad_rows"] > len(one.get("broken", ())) > 0:
        yield f"    … {one['bad_rows'] - len(one['broken']):,} more"
    for rule in broken:
        if one.get("broken") and rule["severity"] == "quarantine":
            continue  # these rows are above
        for example in rule["examples"]:
            cells = {name: value for name, value in example.items() if name != "row"}
            yield f"    row {example['row']}: {rule['name']} · {_cells(cells)}"


def _cells(cells: dict[str, Any]) -> str:
    shown = ", ".join(f"{name}={text(value)}" for name, value in list(cells.items())[:SHOWN])
    return shown + (f", … {len(cells) - SHOWN} more" if len(cells) > SHOWN else "")


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" for line in block.splitlines())
