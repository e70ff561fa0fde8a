"""Lints a contract file: what keeps it from being read, and advice on what it says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loopwright.data.compatibility import classify, version_warning
from loopwright.data.contract import Contract
from loopwright.data.document import Document, parse_document, read_document
from loopwright.data.lint.conditions import condition_findings
from loopwright.data.lint.rules import rule_findings
from loopwright.data.odcs.shape import PARTS, WANTED_BY_STANDARD, shaped
from loopwright.data.odcs.table import table_names
from loopwright.kernel.errors import BadInput

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: error (it cannot be judged, or no delivery can pass), warning (doubtful), note (left out)."""

    level: Level
    where: str
    what: str
    next: str = ""

    def to_json(self) -> dict[str, str]:
        return {"level": self.level, "where": self.where, "what": self.what, "next": self.next}


def lint_file(path: Path, against: Contract | None = None) -> list[Finding]:
    """As `lint`, of a file; raises NotFound when there is none."""
    try:
        return lint(read_document(path), against)
    except BadInput as error:
        return [_unreadable(error)]


def lint_text(text: str, source: str, against: Contract | None = None) -> list[Finding]:
    """As `lint`, of a text; `source` is what findings name."""
    try:
        return lint(parse_document(text.encode(), source), against)
    except BadInput as error:
        return [_unreadable(error)]


def lint(document: Document, against: Contract | None = None) -> list[Finding]:
    """What is to be said about a contract, errors first. `against`: the contract that it follows."""
    try:
        names = table_names(document)
    except BadInput as error:
        return [_unreadable(error)]
    found = [*_head(document)]
    if not names:
        found.append(Finding("warning", document.where(("schema",)), "no table: nothing can be judged"))
    tables = []
    for index, name in enumerate(names):
        try:
            contract = Contract.from_document(document, name)
        except BadInput as error:
            found.append(_unreadable(error))
            continue
        tables.append(contract)
        found += [
            Finding(level, where, what, advice)
            for level, where, what, advice in _table(document, index, contract)
        ]
    found += _versions(document, tables, against)
    return sorted(dict.fromkeys(found), key=lambda one: LEVELS.index(one.level))


def _unreadable(error: BadInput) -> Finding:
    got = f"; got {error.to_json().get('got', 'nothing')}" if error.got is not None else ""
    wanted = f", wanted {error.wanted}" if error.wanted else ""
    return Finding("error", error.where, f"{error.what}{got}{wanted}", error.next)


def _head(document: Document) -> Iterator[Finding]:
    top = shaped(document)
    yield from (Finding(*one) for one in _left_out(document, top, (), "contract"))
    if top.get("status", "").lower() in ("deprecated", "retired"):
        yield Finding("note", document.where(("status",)), f"the contract is {top['status']}")
    if version_warning(top.get("version", ""), top.get("version", ""), "patch").endswith("MAJOR.MINOR.PATCH"):
        what = f"version {top.get('version', '(none)')} is no semantic version"
        yield Finding("warning", document.where(("version",)), what, "Say MAJOR.MINOR.PATCH")


def _left_out(
    document: Document, value: Any, path: tuple[Any, ...], part: str
) -> Iterator[tuple[Level, str, str]]:
    """Keys that the standard wants, and those it has no place for: other tools refuse the file over them."""
    if not isinstance(value, dict):
        return
    for key in WANTED_BY_STANDARD.get(part, ()):
        if key not in value:
            yield (
                "warning",
                document.where(path),
                f"the standard wants `{key}` here; other tools refuse the file",
            )
    if part == "relationship" and "description" in value:
        what = "the standard has no `description` of a relationship"
        yield "warning", document.where((*path, "description")), f"{what}: say it in customProperties"
    for end in ("from", "to") if part == "relationship" else ():
        for reference in value.get(end, ()):
            if "." not in reference and "/" not in reference:
                what = f"the standard wants table.column, not `{reference}`; other tools refuse the file"
                yield "warning", document.where((*path, end)), what
    limits = [key for key in value if key.startswith("must")] if part == "quality" else []
    if limits and value.get("type") == "custom":
        what = f"the standard has no place for `{limits[0]}` beside `engine`: put it into `implementation`"
        yield "warning", document.where((*path, limits[0])), what
    for key, item in value.items():
        kind = PARTS[part].get(key, "")
        if kind.startswith("["):
            for i, one in enumerate(item):
                yield from _left_out(document, one, (*path, key, i), kind[1:-1])
        elif kind == "team" and isinstance(item, list):
            for i, one in enumerate(item):
                yield from _left_out(document, one, (*path, key, i), "member")
        elif kind in PARTS:
            yield from _left_out(document, item, (*path, key), kind)


def _table(document: Document, index: int, contract: Contract) -> Iterator[tuple[Level, str, str, str]]:
    path = ("schema", index)
    here = document.where(path)
    if not contract.key:
        yield (
            "warning",
            here,
            f"{contract.name} has no key: the same row twice goes unseen",
            "Set primaryKey: true",
        )
    if not contract.owner:
        what = f"{contract.name} has no owner: nobody to ask when it breaks"
        yield "warning", here, what, "Name a member of `team` with role owner"
    if not contract.description:
        yield "note", here, f"{contract.name} has no description", ""
    silent = [column.name for column in contract.columns if not column.description]
    if silent:
        what = f"{len(silent)} of {len(contract.columns)} columns have no description: {_some(silent)}"
        yield "note", here, what, ""
    for said in contract.unchecked:
        where, _, why = said.partition(": ")
        place, _, rest = why.partition(": ")
        yield "warning", f"{where}: {place}" if rest else where, f"not judged: {rest or why}", ""
    others = {name for name in contract.references() if name not in table_names(document)}
    if others:
        yield "note", here, f"needs {_some(sorted(others))} to be ingested before it", ""
    for i, prop in enumerate(document.value["schema"][index].get("properties") or ()):
        if prop.get("physicalName") not in (None, prop.get("name")):
            where = document.where((*path, "properties", i, "physicalName"))
            what = f"the column is looked for as {prop['name']}, not as {prop['physicalName']}"
            yield "note", where, what, ""
    yield from rule_findings(document, contract)
    yield from condition_findings(contract)


def _versions(document: Document, tables: list[Contract], against: Contract | None) -> Iterator[Finding]:
    new = next((one for one in tables if against and one.name == against.name), tables[0] if tables else None)
    if against is None or new is None:
        return
    change = classify(against, new)
    if change.warning:
        what = f"since version {against.version}: {change.warning}"
        yield Finding("warning", document.where(("version",)), what, "Raise the version")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
