"""data contract import-ge|export-ge."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.contracts import open_contract, table_name_of, write_new
from loopwright.cli.session import Session, command

_FILE = click.Path(path_type=Path)


@command("import-ge")
@click.argument("suite", metavar="SUITE.json", type=_FILE)
@click.option("--table", "table_name", metavar="NAME", help="What to call the table; default: as the suite.")
@click.option("--data", metavar="FILE|URI", help="Rows to read the columns and their types from.")
@click.option("--out", type=_FILE, help="Write the contract here; a file that is there is not touched.")
def import_ge(
    session: Session, suite: Path, table_name: str | None, data: str | None, out: Path | None
) -> int:
    """Make a contract of a suite of Great Expectations (the JSON of 0.x or 1.x).

    Each expectation becomes rules or is listed with the reason why not; exit code 1 when one was not mapped.
    """
    from loopwright.data.document import read_bytes
    from loopwright.data.expectations.importing import import_suite
    from loopwright.data.expectations.suite import read_suite
    from loopwright.data.inferred import to_yaml

    read = read_suite(read_bytes(suite), str(suite))
    name = table_name or table_name_of(read.name)
    onto = None
    if data is not None:
        from loopwright.data.infer import infer as look
        from loopwright.data.infer import infer_contract
        from loopwright.data.source import resolve

        onto = infer_contract(look(resolve(data, Path.cwd())), table=name)
    found = import_suite(read, table=name, onto=onto)
    text = to_yaml(found.document) if found.document else ""
    if out is not None and text:
        write_new(out, text)
    answer = {
        "contract": found.document, "mapped": [one.to_json() for one in found.mapped],
        "unmapped": [one.to_json() for one in found.unmapped], "untyped": list(found.untyped),
    }  # fmt: skip
    if not session.as_json:
        session.note(_brought(answer) + (f"\nwrote {out}" if out is not None and text else ""))
    session.show(answer, lambda _: "" if out is not None else text.rstrip("\n"))
    return 1 if found.unmapped else 0


@command("export-ge")
@click.argument("file", metavar="FILE[#TABLE]")
@click.option("--out", type=_FILE, help="Write the suite here; a file that is there is not touched.")
def export_ge(session: Session, file: str, out: Path | None) -> None:
    """Write a contract as a suite that Great Expectations 1 reads; what it has no words for goes to stderr."""
    import json

    from loopwright.data.expectations.exporting import export_suite

    found = export_suite(open_contract(session, file))
    text = json.dumps(found.suite, indent=2, ensure_ascii=False)
    if out is not None:
        write_new(out, text + "\n")
    for rule, why in found.left:
        session.note(f"left out: {rule} ({why})")
    answer = {"suite": found.suite, "left": [{"rule": rule, "why": why} for rule, why in found.left]}
    session.show(answer, lambda _: "" if out is not None else text)


COMMANDS = (import_ge, export_ge)


def _brought(answer: dict[str, Any]) -> str:
    lines = [f"{len(answer['mapped'])} expectations mapped, {len(answer['unmapped'])} not"]
    for one in answer["unmapped"]:
        column = f" of {one['column']}" if one["column"] else ""
        lines.append(f"  not mapped: {one['number']}. {one['type']}{column}: {one['why']}")
    for one in answer["mapped"]:
        if one["note"]:
            lines.append(f"  {one['number']}. {one['type']} {one['column']}: {one['note']}")
    if answer["untyped"]:
        lines.append(
            f"  taken for text, since nothing tells their type (see --data): {', '.join(answer['untyped'])}"
        )
    return "\n".join(lines)
