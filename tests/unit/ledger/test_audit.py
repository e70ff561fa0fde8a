"""The chain finds every change, removal, insertion and reordering."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from loopwright.ledger.audit import GENESIS, AuditRow, check_chain, next_row

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
words = st.text("abcde", min_size=1, max_size=4)
acts = st.tuples(words, words, words, st.dictionaries(words, st.integers(), max_size=2))


def chain(entries: list[tuple[str, str, str, dict[str, int]]]) -> list[AuditRow]:
    rows: list[AuditRow] = []
    for number, (actor, action, subject, payload) in enumerate(entries):
        last = (rows[-1].seq, rows[-1].hash) if rows else None
        at = NOON + timedelta(seconds=number)
        rows.append(next_row(last, at=at, actor=actor, action=action, subject=subject, payload=payload))
    return rows


def head(rows: list[AuditRow]) -> tuple[int, str] | None:
    return (rows[-1].seq, rows[-1].hash) if rows else None


chains = st.lists(acts, min_size=1, max_size=12).map(chain)
long_chains = st.lists(acts, min_size=2, max_size=12).map(chain)


@given(st.lists(acts, max_size=12).map(chain))
def test_what_was_only_appended_holds(rows: list[AuditRow]) -> None:
    report = check_chain(rows, head(rows))
    assert report.ok
    assert report.rows == len(rows)
    assert report.head == (rows[-1].hash if rows else GENESIS)


@given(chains, st.data())
def test_a_changed_row_is_found_where_it_stands(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(["actor", "action", "subject", "at", "payload", "prev_hash", "hash"]))
    changed: dict[str, object] = {
        "at": rows[at].at + timedelta(microseconds=1),
        "payload": {**rows[at].payload, "z": 1},
        "prev_hash": "f" * 64,
        "hash": "f" * 64,
    }
    forged = replace(rows[at], **{field: changed.get(field, "eve")})  # type: ignore[arg-type]
    report = check_chain([*rows[:at], forged, *rows[at + 1 :]], head(rows))
    assert not report.ok
    assert report.broken_at == at + 1


@given(chains, st.data())
def test_a_changed_row_with_its_hash_made_right_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    last = (rows[at - 1].seq, rows[at - 1].hash) if at else None
    forged = next_row(last, at=NOON, actor="eve", action="x", subject="x", payload={})
    report = check_chain([*rows[:at], forged, *rows[at + 1 :]], head(rows))
    assert not report.ok


@given(chains, st.data())
def test_a_removed_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    report = check_chain([*rows[:at], *rows[at + 1 :]], head(rows))
    assert not report.ok
    assert report.broken_at == at + 1


@given(chains, st.data())
def test_a_removed_row_is_found_when_the_others_are_renumbered(
    rows: list[AuditRow], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    kept = [replace(row, seq=number) for number, row in enumerate([*rows[:at], *rows[at + 1 :]], start=1)]
    assert not check_chain(kept, head(rows)).ok


@given(chains, st.data())
def test_an_inserted_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows)))
    last = (rows[at - 1].seq, rows[at - 1].hash) if at else None
    inserted = next_row(last, at=NOON, actor="eve", action="x", subject="x", payload={})
    shifted = [replace(row, seq=row.seq + 1) for row in rows[at:]]
    assert not check_chain([*rows[:at], inserted, *shifted], head(rows)).ok
    assert not check_chain([*rows[:at], inserted, *rows[at:]], head(rows)).ok


@given(long_chains, st.data())
def test_reordered_rows_are_found(rows: list[AuditRow], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(rows))
    assume(mixed != rows)
    renumbered = [replace(row, seq=number) for number, row in enumerate(mixed, start=1)]
    assert not check_chain(mixed, head(rows)).ok
    assert not check_chain(renumbered, head(rows)).ok


@given(chains)
def test_an_emptied_log_is_found(rows: list[AuditRow]) -> None:
    assert not check_chain([], head(rows)).ok
    assert not check_chain(rows, None).ok


def test_the_same_act_twice_has_two_hashes() -> None:
    act: tuple[str, str, str, Mapping[str, int]] = ("ada", "note", "x", {})
    first, second = chain([act, act])  # type: ignore[list-item]
    assert first.hash != second.hash
    assert second.prev_hash == first.hash
