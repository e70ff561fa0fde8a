"""data snapshot|show|tables: tables and their versions."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table
from loopwright.kernel.errors import BadInput


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


@command("snapshots")
@click.argument("model", required=False)
@click.option("--limit", type=int, default=50, show_default=True, help="So many, the newest first.")
def snapshots(session: Session, model: str | None, limit: int) -> None:
    """List snapshots (of MODEL), and what rests on them."""
    columns: list[Column] = [
        ("snapshot", lambda r: r["digest"][:12]), ("model", "model"), ("rows", "rows"), ("taken", "at"),
        ("tables", lambda r: ", ".join(f"{t}@{v}" for t, v in r["tables"].items())),
        ("used by", lambda r: _some(r["used_by"])),
    ]  # fmt: skip
    session.show(
        session.call("tables.snapshots", model=model, limit=limit),
        lambda rows: table(rows, columns, empty="no snapshots yet; take one: loopwright data snapshot DIR"),
    )


@command("vacuum")
@click.argument("model", required=False)
@click.option(
    "--older-than",
    metavar="SPAN",
    help="Keep what was in force within it: 30d. Default: the policy's retain.",
)
@click.option("--yes", is_flag=True, help="Delete. Without it, nothing is: the command lists what would go.")
@click.option("--dry-run", is_flag=True, help="Only list; this is the default.")
def vacuum(session: Session, model: str | None, older_than: str | None, yes: bool, dry_run: bool) -> None:
    """List, and with --yes delete, files of table versions that nobody rests on any more.

    What a registered version, a run or an online store was made from stays, however old it is. So does the newest
    version of each table. To keep less than the policy says takes an admin.
    """
    if yes and dry_run:
        raise BadInput("both --yes and --dry-run are given", wanted="one of them")
    answer = session.call("tables.vacuum", model=model, older_than=older_than, delete=yes)
    session.show(answer, _vacuumed)


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


def _vacuumed(answer: dict[str, Any]) -> str:
    columns: list[Column] = [
        ("table", lambda r: f"{r['layer']}/{r['model']}/{r['table']}"), ("newest", "newest"),
        ("versions kept", lambda r: len(r["kept"])), ("versions gone", "versions_gone"), ("files", "files"),
        ("of no commit", "unnamed_files"), ("to go", lambda r: _bytes(r["bytes"])),
        ("stays", lambda r: _bytes(r["kept_bytes"])), ("retain", "retain"),
    ]  # fmt: skip
    lines = [table(answer["tables"], columns, empty="no tables yet")]
    lines += [
        f"{one['layer']}/{one['model']}/{one['table']}: version {lost['version']} is pinned ({', '.join(lost['why'])}) "
        "and the table does not have it"
        for one in answer["tables"]
        for lost in one["lost"]
    ]
    count = f"{answer['files']:,} files, {_bytes(answer['bytes'])}"
    if answer["deleted"]:
        lines.append(f"deleted {count}")
    elif answer["files"]:
        lines.append(f"{count} would go; delete them with --yes")
    else:
        lines.append("nothing may go")
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


COMMANDS = (snapshot, show, tables, snapshots, vacuum)
"""What the group `data` takes in."""
