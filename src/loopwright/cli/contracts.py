"""data contract infer|lint|diff|list|show; the suites of Great Expectations are in `contract_suites`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table
from loopwright.kernel.errors import BadInput

if TYPE_CHECKING:
    from loopwright.data.contract import Contract

_FILE = click.Path(path_type=Path)


@subcommands()
def contract() -> None:
    """Infer, lint, compare and list data contracts."""


@command("infer", contract)
@click.argument("source", metavar="FILE|URI")
@click.option("--table", "table_name", metavar="NAME", help="What to call the table; default: as the file.")
@click.option("--key", metavar="COLUMN[,…]", help="Columns that name a row.")
@click.option(
    "--append", is_flag=True, help="Deliveries come beside each other; default: each is the whole table."
)
@click.option(
    "--suggest", is_flag=True, help="Take the candidates over: key, required columns, lists of values."
)
@click.option("--ranges", is_flag=True, help="Bound numbers by the least and the greatest seen.")
@click.option("--out", type=_FILE, help="Write the contract here; a file that is there is not touched.")
def infer(
    session: Session, source: str, table_name: str | None, key: str | None, append: bool, suggest: bool,
    ranges: bool, out: Path | None,
) -> None:  # fmt: skip
    """Write a contract for FILE: its columns, types, null texts; candidates for more as comments.

    Every row is looked at, in bounded memory. What has not been seen is no defect: ranges and lists of values are
    left out unless asked for.
    """
    from loopwright.data.infer import infer as look
    from loopwright.data.infer import infer_contract
    from loopwright.data.inferred import annotated, key_candidates
    from loopwright.data.source import resolve

    seen = look(resolve(source, Path.cwd()))
    columns = [name.strip() for name in key.split(",")] if key else []
    for name in columns:
        if seen.column(name) is None:
            known = ", ".join(c.name for c in seen.columns)
            raise BadInput("no such column", where="--key", got=name, wanted=known)
    name = table_name or table_name_of(source)
    document = infer_contract(seen, table=name, key=columns, full=not append, suggest=suggest, ranges=ranges)
    text = annotated(seen, document)
    if out is not None:
        write_new(out, text)
        session.note(f"wrote {out}")
    answer = {
        "contract": document, "rows": seen.rows, "malformed": seen.malformed, "keys": key_candidates(seen),
        "columns": [
            {"name": c.name, "type": c.type, "nulls": c.nulls, "distinct": c.distinct, "misfits": c.misfits}
            for c in seen.columns
        ],
    }  # fmt: skip
    session.show(answer, lambda _: "" if out is not None else text.rstrip("\n"))


@command("lint", contract)
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=_FILE)
@click.option(
    "--against", metavar="FILE|MODEL/TABLE[@N]", help="The contract before, whose version this one follows."
)
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings too.")
def lint(session: Session, files: tuple[Path, ...], against: str | None, strict: bool) -> int:
    """Check contracts before any row is judged: whether they can be read, and advice on what they say.

    Exit code 1 when one of them has an error: it cannot be read, names what is not there, or no delivery could pass.
    """
    from loopwright.data.lint.findings import lint_file

    before = open_contract(session, against) if against else None
    answer = [
        {"file": str(path), "findings": [one.to_json() for one in lint_file(path, before)]} for path in files
    ]
    session.show(answer, _linted)
    levels = {one["level"] for each in answer for one in each["findings"]}  # type: ignore[index]
    return 1 if "error" in levels or (strict and "warning" in levels) else 0


@command("diff", contract)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="[NEW]", required=False)
@click.option("--table", "table_name", metavar="NAME", help="Only this one of the tables in the files.")
def diff(session: Session, old: str, new: str | None, table_name: str | None) -> int:
    """Tell what changed between two contracts, and for whom: producers, consumers.

    OLD and NEW are files, or MODEL/TABLE[@N]: what a table was judged by, the newest or the Nth. MODEL/TABLE alone
    compares its newest contract with the one before. Exit code 1 when the change is breaking.
    """
    if new is None:
        model, name, number = _address(old)
        answer = [session.call("contracts.diff", model=model, table=name, new=number)]
    else:
        answer = _compared(session, old, new, table_name)
    session.show(answer, lambda told: "\n\n".join(map(_changed, told)))
    return 1 if any(one["kind"] == "breaking" for one in answer) else 0


@command("list", contract)
@click.argument("model", required=False)
def listing(session: Session, model: str | None) -> None:
    """List the contracts that tables were judged by."""
    columns: list[Column] = [("model", "model"), ("table", "table"), ("no.", "number"), ("version", "version"),
               ("change", "change"), ("differences", lambda row: len(row["differences"])), ("by", "actor"),
               ("at", "at"), ("digest", lambda row: row["digest"][:12])]  # fmt: skip
    session.show(
        session.call("contracts.list", model=model),
        lambda rows: table(
            rows, columns, empty="no contracts yet; land a table: loopwright data snapshot DIR"
        ),
    )


@command("show", contract)
@click.argument("address", metavar="FILE|MODEL/TABLE[@N]")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the contract itself.")
def show(session: Session, address: str, as_yaml: bool) -> None:
    """Show what a contract promises: of a file, or what a table was judged by."""
    if _is_file(address):
        from loopwright.data.described import described

        answer = {"model": None, "number": None, **described(open_contract(session, address))}
    else:
        model, name, number = _address(address)
        answer = session.call("contracts.show", model=model, table=name, number=number)
    session.show(answer, _yaml if as_yaml else _shown)


def _compared(session: Session, old: str, new: str, only: str | None) -> list[dict[str, Any]]:
    from loopwright.data.compatibility import classify

    before = {one.name: one for one in _contracts(session, old)}
    after = {one.name: one for one in _contracts(session, new)}
    if len(before) == len(after) == 1:
        pairs_ = [(*before.values(), *after.values())]
    else:
        names = [name for name in dict.fromkeys((*before, *after)) if only in (None, name)]
        pairs_ = [(before[name], after[name]) for name in names if name in before and name in after]
        if only is not None and not pairs_:
            known = ", ".join(sorted({*before} & {*after}))
            raise BadInput(
                "not in both contracts", where="--table", got=only, wanted=known or "a table in both"
            )
        answer = [_gone(name) for name in names if name not in after]
        answer += [_came(name) for name in names if name not in before]
        return answer + [_change(a, b, classify(a, b)) for a, b in pairs_]
    return [_change(a, b, classify(a, b)) for a, b in pairs_]


def _change(old: "Contract", new: "Contract", change: Any) -> dict[str, Any]:
    return {"table": new.name, "old": old.version, "new": new.version, **change.to_json()}


def _gone(name: str) -> dict[str, Any]:
    difference = {"where": "table", "what": "the table is gone", "kind": "breaking", "concerns": ["consumers"],
                  "landed": False}  # fmt: skip
    return {"table": name, "kind": "breaking", "differences": [difference], "advised": "major", "warning": ""}


def _came(name: str) -> dict[str, Any]:
    difference = {"where": "table", "what": "the table is new", "kind": "compatible", "concerns": ["consumers"],
                  "landed": False}  # fmt: skip
    return {
        "table": name,
        "kind": "compatible",
        "differences": [difference],
        "advised": "minor",
        "warning": "",
    }


def _contracts(session: Session, address: str) -> tuple["Contract", ...]:
    from loopwright.data.contract import Contract

    if _is_file(address) and "#" not in Path(address).name:
        return Contract.load_all(Path(address))
    return (open_contract(session, address),)


def open_contract(session: Session, address: str) -> "Contract":
    """The contract in a file (FILE#TABLE), or that a table was judged by (MODEL/TABLE[@N])."""
    from loopwright.data.contract import Contract

    if _is_file(address):
        return Contract.load(Path(address))
    model, name, number = _address(address)
    answer = session.call("contracts.show", model=model, table=name, number=number)
    return next(
        (
            found
            for entry in answer["document"]["schema"]
            if (found := Contract.from_json(answer["document"], address, entry["name"])).digest
            == answer["digest"]
        ),
        Contract.from_json(answer["document"], address, name),
    )


def _is_file(address: str) -> bool:
    path = address.rpartition("#")[0] or address
    return Path(address).exists() or path.endswith((".yaml", ".yml", ".json"))


def _address(text: str) -> tuple[str, str, int | None]:
    """(model, table, number) of MODEL/TABLE[@N]."""
    name, _, number = text.partition("@")
    model, _, table_name = name.rpartition("/")
    if not model or not table_name or (number and not number.isdecimal()):
        raise BadInput("neither a file nor a table", got=text, wanted="FILE.yaml, or MODEL/TABLE[@N]")
    return model, table_name, int(number) if number else None


def table_name_of(uri: str) -> str:
    """A table's name after the file that it comes from."""
    import re
    from urllib.parse import urlsplit

    stem = Path(urlsplit(uri).path if "://" in uri else uri).name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "data"


def write_new(path: Path, text: str) -> None:
    """Write a new file; raises Conflict when there is one."""
    from loopwright.kernel.errors import Conflict

    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise Conflict("is there already", where=str(path), next="Name another file") from None
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror or error}", where=str(path)) from None


def _shown(answer: dict[str, Any]) -> str:
    where = f"{answer['model']}/{answer['table']}" if answer["model"] else answer["table"]
    head = {
        "table": where, "version": answer["version"], "status": answer["status"], "owner": answer["owner"],
        "producers": answer["producers"], "consumers": answer["consumers"], "key": answer["key"],
        "load": answer["loading"], "event time": answer["event_time"],
        "service levels": [f"{s['property']} {s['value']} {s['unit']}".strip() for s in answer["service_levels"]],
        "digest": answer["digest"],
    }  # fmt: skip
    if "change" in answer:
        head["change"] = answer["change"]
    columns = table(answer["columns"], [("column", "name"), ("type", "type"), ("required", "required"),
                                        ("description", "description")])  # fmt: skip
    rules = table(answer["rules"], [("rule", "name"), ("severity", "severity"), ("scope", "scope")])
    parts = [pairs(head), answer["description"], columns, rules]
    if answer["unchecked"]:
        parts.append("not judged:\n" + "\n".join(f"  {one}" for one in answer["unchecked"]))
    return "\n\n".join(part for part in parts if part)


def _yaml(answer: dict[str, Any]) -> str:
    from loopwright.data.inferred import to_yaml

    return to_yaml(answer["document"]).rstrip("\n")


def _linted(answer: list[dict[str, Any]]) -> str:
    lines = []
    for each in answer:
        if not each["findings"]:
            lines.append(f"{each['file']}: nothing to say")
        for one in each["findings"]:
            advice = f". {one['next']}" if one["next"] else ""
            lines.append(f"{one['level']}: {one['where']}: {one['what']}{advice}")
    counts = {
        level: sum(one["level"] == level for each in answer for one in each["findings"])
        for level in ("error", "warning", "note")
    }
    return "\n".join(
        [*lines, ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())]
    )


def _changed(change: dict[str, Any]) -> str:
    versions = f" {change['old']} → {change['new']}" if "old" in change else ""
    lines = [f"{change['table']}{versions}: {change['kind']}"]
    for one in change["differences"]:
        whom = f" (for {' and '.join(one['concerns'])})" if one["concerns"] else ""
        lines.append(f"  {one['kind']}: {one['where']}: {one['what']}{whom}")
    if change["warning"]:
        lines.append(f"  version: {change['warning']}")
    return "\n".join(lines)
