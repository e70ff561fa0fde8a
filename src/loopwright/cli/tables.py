"""data snapshot|show|tables: tables and their versions."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import table


@command("snapshot")
@click.argument("project", type=click.Path(path_type=Path), default=".")
def snapshot(session: Session, project: Path) -> None:
    """Land the sources of PROJECT, check them, and pin the good rows under one digest."""
    session.client(create=True)
    session.show(session.call("data.snapshot", project=str(project.absolute())), _pinned)


@command("show")
@click.argument("digest")
@click.option("--verify", is_flag=True, help="Read every row again and compare the content.")
def show(session: Session, digest: str, verify: bool) -> None:
    """Show what the snapshot DIGEST pins."""
    session.show(
        session.call("data.show_snapshot", digest=digest, verify=verify),
        lambda a: f"snapshot {a['digest']}: {a['rows']:,} rows" + (", content verified" if a["verified"] else "")
        + "\n" + _manifest(a["manifest"]),
    )  # fmt: skip


@command("tables")
@click.argument("model", required=False)
def tables(session: Session, model: str | None) -> None:
    """List tables: rows in, good, set aside, and their versions."""
    columns = [("model", "model"), ("table", "table"), ("in", "input_rows"), ("good", "good_rows"),
               ("quarantined", "bad_rows"), ("batches", "batches"), ("bronze", "bronze_version"),
               ("silver", "silver_version"), ("last", "at")]  # fmt: skip
    session.show(
        session.call("data.tables", model=model),
        lambda rows: table(rows, columns, empty="no tables yet; land some: loopwright data snapshot DIR"),
    )


def _pinned(answer: dict[str, Any]) -> str:
    lines = [
        f"{one['table']}: {one['input_rows']:,} rows = {one['good_rows']:,} good + {one['bad_rows']:,} quarantined"
        + (" (landed before)" if one["already_landed"] else "")
        for one in answer["ingests"]
    ]
    return "\n".join([*lines, f"snapshot {answer['digest']}: {answer['rows']:,} rows"])


def _manifest(manifest: dict[str, Any]) -> str:
    rows = [{"table": name, **entry} for name, entry in manifest["tables"].items()]
    return table(rows, [("table", "table"), ("version", "version"), ("rows", "rows"),
                        ("content", lambda r: r["content_digest"][:16])])  # fmt: skip


COMMANDS = (snapshot, show, tables)
"""What the group `data` takes in."""
