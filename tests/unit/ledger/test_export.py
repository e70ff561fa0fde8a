"""What is exported can be verified by anyone, and does no harm in a spreadsheet."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.digest import canonical_json
from loopwright.ledger.audit import AuditRow, Stored, next_row
from loopwright.ledger.export import check_export, csv_head, csv_rows, jsonl

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
texts = st.text(st.characters(codec="utf-8"))


def rows(count: int, **more: str) -> list[Stored]:
    made: list[AuditRow] = []
    for number in range(count):
        last = (made[-1].seq, made[-1].hash) if made else None
        fields = {"actor": "ada", "action": "note", "subject": "x", **more}
        at = NOON + timedelta(seconds=number)
        made.append(next_row(last, at=at, payload={"n": number}, **fields))
    return [row.stored for row in made]


def lines(exported: list[Stored]) -> list[bytes]:
    return jsonl(exported).splitlines(keepends=True)


@given(texts, texts, texts, st.dictionaries(texts, texts | st.floats(allow_nan=False, allow_infinity=False)))
def test_a_line_is_the_canonical_json_of_the_row(
    actor: str, action: str, subject: str, payload: dict[str, object]
) -> None:
    row = next_row(None, at=NOON, actor=actor, action=action, subject=subject, payload=payload)
    line = jsonl([row.stored])
    assert line == canonical_json(row.to_json()) + b"\n"
    assert check_export([line]).ok


def test_the_whole_log_verifies_offline() -> None:
    report = check_export(lines(rows(5)), wanted={3})
    assert (report.ok, report.kind, report.rows, report.first, report.last) == (True, "whole", 5, 1, 5)
    assert report.hashes == {3: rows(5)[2][7]}


def test_a_part_says_which_rows_it_proves() -> None:
    report = check_export(lines(rows(5))[2:4])
    assert (report.ok, report.kind, report.first, report.last) == (True, "part", 3, 4)
    assert "before row 3 is not in the file" in report.why


def test_a_row_that_is_left_out_is_missed_unless_single_rows_are_asked_for() -> None:
    some = [*lines(rows(5))[:1], *lines(rows(5))[3:]]
    report = check_export(some)
    assert (report.ok, report.line) == (False, 2)
    assert "row 2 is missing" in report.why and "--selection" in report.why
    chosen = check_export(some, selection=True)
    assert (chosen.ok, chosen.kind, chosen.rows) == (True, "selection", 3)


@pytest.mark.parametrize("selection", [False, True])
@pytest.mark.parametrize("change", [
    lambda line: line.replace(b'"n":2', b'"n":9'), lambda line: line.replace(b"ada", b"eve"),
    lambda line: line.replace(b"12:00:02", b"12:00:03"), lambda line: line[:-20], lambda _: b"[]\n",
    lambda line: line.replace(b'"seq":3', b'"seq":4'), lambda line: line.replace(b'"x"', b'{"y":1}'),
])  # fmt: skip
def test_any_changed_line_is_found_where_it_stands(change: object, selection: bool) -> None:
    changed = lines(rows(5))
    changed[2] = change(changed[2])  # type: ignore[operator]
    report = check_export(changed, selection=selection)
    assert not report.ok
    assert report.line == 3


def test_rows_out_of_order_are_found_also_among_single_ones() -> None:
    one, two, three = lines(rows(3))
    assert not check_export([one, three, two], selection=True).ok
    assert not check_export([one, one], selection=True).ok


def test_an_empty_file_holds_nothing() -> None:
    report = check_export([b"\n"])
    assert report.ok and report.why == "the file holds no rows"


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_spreadsheet_is_a_formula(cell: str) -> None:
    text = (csv_head() + csv_rows(rows(2, actor=cell))).decode()
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["actor"] for row in read] == [f"'{cell}"] * 2
    assert read[1]["at"] == "2026-11-01T12:00:01Z"
    assert json.loads(read[1]["payload"]) == {"n": 1}


def test_a_payload_somebody_spoiled_is_exported_so_that_it_is_found() -> None:
    row = rows(1)[0]
    spoiled = (*row[:5], '{"n":0', *row[6:])
    assert check_export([jsonl([spoiled])]).line == 1  # type: ignore[list-item]
