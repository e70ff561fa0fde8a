"""data snapshot|show|tables|snapshots|diff|vacuum|docs: tables and their versions."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.output import check_folder, check_place
from loopwright.cli.progress import watch
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, share, table, text
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic


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
               ("silver", "silver_version"), ("gold", "gold_version"), ("last", "at")]  # fmt: skip
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


@command("diff")
@click.argument("before")
@click.argument("after")
@click.option("--table", help="Only this table of the snapshots.")
@click.option("--key", multiple=True, metavar="COLUMN", help="Tell rows by it; default: the contract's key.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Draw it: write a page to this file."
)
def diff(
    session: Session, before: str, after: str, table: str | None, key: tuple[str, ...], html: Path | None
) -> int:
    """Say what changed from BEFORE to AFTER: rows, columns, and what the columns hold.

    Each is a snapshot's digest (or its first letters), MODEL/TABLE, MODEL/TABLE@VERSION or a CSV, JSON or Parquet file.
    Exit code 1 when they differ.
    """
    check_place(html)
    words = [str(Path(word).absolute()) if Path(word).is_file() else word for word in (before, after)]
    answer = session.call(
        "tables.diff",
        before=words[0],
        after=words[1],
        table=table,
        key=list(key) or None,
        html=html is not None,
    )
    page = answer.pop("html", None)
    if html is not None and page is not None:
        write_atomic(html, page.encode())
        answer["page"] = str(html)
    session.show(answer, _differs)
    return 0 if answer["same"] else 1


@command("docs")
@click.argument("model", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), default="data-docs", show_default=True, help="The folder."
)
def docs(session: Session, model: str | None, out: Path) -> None:
    """Write pages about the tables (of MODEL, or a project's folder): contracts, checks, columns, trends, snapshots.

    They need no server and run no script; open index.html. A control plane shows the same at /api/v1/data/docs.html.
    """
    if out.exists() and not out.is_dir():
        raise BadInput("is a file", where=str(out), wanted="a folder")
    check_folder(out)
    listed = session.call("tables.overview", model=_model_of(model))
    out.mkdir(exist_ok=True)
    with watch() as seen:
        seen.step("Look at the tables")
        for done, one in enumerate(listed["tables"]):
            seen.update(done / len(listed["tables"]), f"{one['model']}/{one['table']}")
            made = session.call("tables.page", model=one["model"], table=one["table"])
            write_atomic(out / one["file"], made["content"].encode())
        # Last, so that it names no page that is not there.
        write_atomic(out / listed["name"], listed["content"].encode())
        seen.done(f"{len(listed['tables'])} tables")
    answer = {"path": str(out / listed["name"]), "pages": [one["file"] for one in listed["tables"]]}
    session.show(answer, lambda a: f"{len(a['pages'])} pages; open {a['path']}")


def _model_of(name: str | None) -> str | None:
    """The model that a project's folder is about; other words as they are."""
    if name is None or not (Path(name) / "loop.yaml").is_file():
        return name
    from loopwright.project.spec import load_project

    return load_project(Path(name)).spec.model


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


def _differs(answer: dict[str, Any]) -> str:
    lines = [f"{answer['before']} → {answer['after']}: {'the same' if answer['same'] else 'they differ'}"]
    for name, one in answer["tables"].items():
        lines += ["", *_table_differs(name, one)]
    for where in ("before", "after"):
        if answer[f"only_{where}"]:
            lines += ["", f"only {where}: {', '.join(answer[f'only_{where}'])}"]
    if "page" in answer:
        lines += ["", f"drawn in {answer['page']}"]
    return "\n".join(lines)


def _table_differs(name: str, one: dict[str, Any]) -> list[str]:
    rows = one["rows"]
    by = f"by {', '.join(one['key'])}" if one["key"] else f"whole rows; {one['why_no_key']}"
    changed = f", {rows['changed']:,} changed" if one["key"] else ""
    lines = [
        f"{name}: {rows['before']:,} → {rows['after']:,} rows ({by}): {rows['added']:,} added, "
        f"{rows['removed']:,} removed{changed}, {rows['unchanged']:,} the same"
    ]
    lines += [
        f"  column {each['column']}: {each['change']}, {text(each['before'])} → {text(each['after'])}"
        for each in one["schema"]
    ]
    moved = [] if one["same"] else sorted(one["columns"], key=lambda c: (-c["psi_corrected"], c["column"]))
    columns: list[Column] = [
        ("column", "column"), ("level", "level"), ("psi", "psi_corrected"), ("changed", "changed"),
        ("nulls", lambda c: f"{share(c['before']['null_share'])} → {share(c['after']['null_share'])}"),
        ("distinct", lambda c: f"{_about(c['before'])} → {_about(c['after'])}"),
        ("mean", lambda c: f"{text(c['before']['mean'])} → {text(c['after']['mean'])}"),
    ]  # fmt: skip
    if moved:
        lines.append("\n".join(f"  {line}" for line in table(moved, columns).splitlines()))
    for what, found in one.get("examples", {}).items():
        for row in found[:3]:
            if what == "changed":
                cells = ", ".join(
                    f"{c} {text(p['before'])} → {text(p['after'])}" for c, p in row["columns"].items()
                )
                lines.append(f"  changed: {text(row['key'])}: {cells}")
            else:
                lines.append(f"  {what}: {text(row)}")
    return lines


def _about(facts: dict[str, Any]) -> str:
    return f"{'' if facts['exact'] else '≈'}{facts['distinct']:,}"


COMMANDS = (snapshot, show, tables, snapshots, diff, vacuum, docs)
"""What the group `data` takes in."""
