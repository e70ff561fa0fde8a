"""The audit log on its way out: JSON lines that anyone can verify without us, and CSV for spreadsheets. Pure."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any

from loopwright.kernel.clock import from_us, iso, parse_time
from loopwright.kernel.errors import BadInput
from loopwright.ledger.audit import GENESIS, AuditRow, Stored, Walk, follow, is_canonical

COLUMNS = ("seq", "at", "actor", "action", "subject", "payload", "prev_hash", "hash")

# A spreadsheet takes a cell that begins so for a formula, and would run it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def jsonl(rows: Iterable[Stored]) -> bytes:
    """Return one line a row: the canonical JSON of `AuditRow.to_json`."""
    return "".join(map(_line, rows)).encode()


def csv_head() -> bytes:
    """Return the line of headings."""
    return _csv([COLUMNS])


def csv_rows(rows: Iterable[Stored]) -> bytes:
    """Return one CSV line a row; `at` is ISO 8601, the payload JSON, and no cell is a formula."""
    return _csv((row[0], iso(from_us(row[1])), *map(_harmless, row[2:])) for row in rows)


def _line(row: Stored) -> str:
    seq, at, actor, action, subject, payload, prev_hash, digest = row
    quote = encode_basestring
    # What somebody spoiled in the database is sent as text, for the reader to find.
    document = payload if is_canonical(payload.encode()) else quote(payload)
    return (
        f'{{"action":{quote(action)},"actor":{quote(actor)},"at":"{iso(from_us(at))}","hash":{quote(digest)},'
        f'"payload":{document},"prev_hash":{quote(prev_hash)},"seq":{seq},"subject":{quote(subject)}}}\n'
    )


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _harmless(cell: object) -> str:
    text = str(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text


@dataclass(slots=True)
class ExportReport:
    """What a file of exported rows shows by itself.

    `kind`: "whole" from row 1 on, "part" with every row from `first` to `last`, or "selection" of single rows, which
    shows nothing about rows that are left out. `hashes`: of the rows that were asked for.
    """

    rows: int = 0
    ok: bool = True
    kind: str = "whole"
    first: int = 0
    last: int = 0
    line: int | None = None
    why: str = ""
    head: str = GENESIS
    remarks: tuple[str, ...] = ()
    hashes: dict[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "ok": self.ok, "kind": self.kind, "first": self.first, "last": self.last,
            "line": self.line, "why": self.why, "head": self.head, "remarks": list(self.remarks),
        }  # fmt: skip


def check_export(
    lines: Iterable[bytes], *, selection: bool = False, wanted: Set[int] = frozenset()
) -> ExportReport:
    """Verify exported JSON lines in flat memory, without any ledger.

    A file that begins later than at row 1 proves that its rows belong together, not what came before them. With
    `selection` rows may be left out: each is checked by itself. Keeps the hashes of the rows `wanted`.
    """
    report = ExportReport(kind="selection" if selection else "whole")
    walk: Walk | None = None
    for number, (line, row) in enumerate(_parsed(lines, report), start=1):
        if row is None:
            return report
        if walk is None:
            report.first = row[0]
            walk = Walk(row[0] - 1, row[6] if row[0] > 1 else GENESIS)
            report.kind = report.kind if selection or row[0] == 1 else "part"
        elif selection and row[0] > walk.seq:
            walk = Walk(row[0] - 1, row[6] if row[0] != walk.seq + 1 else walk.hash, walk.at, walk.backwards)
        walk, broken = follow([row], walk)
        if broken is not None:
            gap = not selection and row[0] > report.last + 1
            more = "; if only some rows were exported, say --selection" if gap else ""
            report.ok, report.line, report.why = False, line, f"{broken.why}{more}"
            return report
        report.rows, report.last, report.head = number, row[0], row[7]
        if row[0] in wanted:
            report.hashes[row[0]] = row[7]
    if walk is not None and walk.backwards:
        report.remarks = (f"the clock went backwards between {walk.backwards:,} rows and the ones before",)
    report.why = _told(report)
    return report


def _parsed(lines: Iterable[bytes], report: ExportReport) -> Iterator[tuple[int, Stored | None]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            row = AuditRow(**{**fields, "at": parse_time(fields["at"])})
            yield number, row.stored
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadInput) as error:
            report.ok, report.line = False, number
            report.why = f"line {number} is no row of an audit log ({type(error).__name__}: {error})"
            yield number, None
            return


def _told(report: ExportReport) -> str:
    if report.rows == 0:
        return "the file holds no rows"
    if report.kind == "selection":
        return f"{report.rows} single rows, each as it was written; rows that are left out are not missed"
    if report.kind == "part":
        return (
            f"rows {report.first} to {report.last}, each following the one before; "
            f"what came before row {report.first} is not in the file"
        )
    return f"the log from row 1 to row {report.last}, each following the one before; rows after it are not missed"
