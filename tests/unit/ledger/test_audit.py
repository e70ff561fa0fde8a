"""The chain finds every change, removal, insertion and reordering, and where it is."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput
from loopwright.ledger.audit import (
    GENESIS,
    AuditRow,
    ChainReport,
    Stored,
    Walk,
    check_chain,
    conclude,
    follow,
    hashed_bytes,
    is_canonical,
    next_row,
)

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
words = st.text("abcde", min_size=1, max_size=4)
acts = st.tuples(words, words, words, st.dictionaries(words, st.integers(), max_size=2))
Entry = tuple[str, str, str, dict[str, int]]


def chain(entries: list[Entry]) -> list[AuditRow]:
    rows: list[AuditRow] = []
    for number, (actor, action, subject, payload) in enumerate(entries):
        last = (rows[-1].seq, rows[-1].hash) if rows else None
        at = NOON + timedelta(seconds=number)
        rows.append(next_row(last, at=at, actor=actor, action=action, subject=subject, payload=payload))
    return rows


def head(rows: list[AuditRow]) -> tuple[int, str] | None:
    return (rows[-1].seq, rows[-1].hash) if rows else None


def check(rows: list[AuditRow], recorded: tuple[int, str] | None) -> ChainReport:
    return check_chain([row.stored for row in rows], recorded)


chains = st.lists(acts, min_size=1, max_size=12).map(chain)
long_chains = st.lists(acts, min_size=2, max_size=12).map(chain)


@given(st.lists(acts, max_size=12).map(chain))
def test_what_was_only_appended_holds(rows: list[AuditRow]) -> None:
    report = check(rows, head(rows))
    assert report.ok and report.done
    assert report.rows == len(rows)
    assert report.head == (rows[-1].hash if rows else GENESIS)
    assert report.remarks == ()


texts = st.text(st.characters(codec="utf-8"))
payloads = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(
    st.integers(1, 2**62), st.datetimes(timezones=st.just(UTC)), texts, texts, texts, payloads,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)  # fmt: skip
@example(1, NOON, "\x00\x1f\x7f\u2028\\\"'/", "é😀", "", {"n": 1e16, "m": 1e-5, "z": -0.0}, GENESIS)
@example(1, NOON, "a", "b", "c", {"big": 2**70, "": {"\u0000": [-0.0, 0.1, 1e300]}}, GENESIS)
def test_the_bytes_that_are_hashed_are_the_canonical_json_of_the_fields(
    seq: int, at: datetime, actor: str, action: str, subject: str, payload: dict[str, object], before: str
) -> None:
    row = next_row((seq, before), at=at, actor=actor, action=action, subject=subject, payload=payload)
    stored = row.stored
    wanted = canonical_json([stored[0], stored[1], actor, action, subject, payload, before])
    assert hashed_bytes(stored) == wanted
    assert row.hash == hashlib.sha256(wanted).hexdigest()
    assert is_canonical(stored[5].encode())
    assert AuditRow.of(stored) == replace(row, payload=json.loads(stored[5]))


@given(payloads.map(canonical_json) | payloads.map(lambda p: json.dumps(p).encode()) | st.binary())
@example(b'{"a": 1}')
@example(b'{"b":1,"a":2}')
@example(b'{"a":1,"a":1}')
@example(b'{"a":1e16}')
@example(b'{"a":0.00001}')
@example(b'{"a":1.0}')
@example(b'{"a":-0}')
@example(b'{"a":100000000000000000000}')
@example(b'{"a":NaN}')
@example(b'{"a":"\\u00e9"}')
@example(b'{"a":"\\ud800"}')
@example(b'{"a":"\\/"}')
@example(b'{"a":"\\u001F"}')
@example(b"[1]")
@example(b'{"a":1} ')
def test_a_payload_is_canonical_exactly_when_it_is_spelled_as_we_spell_it(payload: bytes) -> None:
    try:
        read = json.loads(payload)
        spelled = canonical_json(read) == payload and isinstance(read, dict)
    except (ValueError, BadInput):
        spelled = False
    assert is_canonical(payload) == spelled


def test_text_that_has_no_utf8_form_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(BadInput):
        next_row(None, at=NOON, actor="\ud800", action="x", subject="x", payload={})


def _put(column: int, change: Callable[[object], object]) -> Callable[[Stored], Stored]:
    return lambda row: (*row[:column], change(row[column]), *row[column + 1 :])  # type: ignore[return-value]


CHANGES: dict[str, Callable[[Stored], Stored]] = {
    "time": _put(1, lambda at: at + 1),  # type: ignore[operator]
    "time with a fraction": _put(1, lambda at: at + 0.5),  # type: ignore[operator]
    "no time": _put(1, lambda at: None),
    "actor": _put(2, lambda _: "eve"),
    "action": _put(3, lambda action: f"{action} "),
    "subject": _put(4, lambda subject: f"{subject}x"),
    "a subject that takes from the action": lambda r: (*r[:3], r[3][:-1], r[3][-1] + r[4], *r[5:]),
    "payload": _put(5, lambda _: '{"z":1}'),
    "payload with a space": _put(5, lambda payload: f"{payload} "),
    "payload that goes on": _put(5, lambda payload: f'{payload},"x"'),
    "bytes for text": _put(2, lambda actor: str(actor).encode()),
    "no text": _put(4, lambda _: None),
    "half a character": _put(2, lambda _: "\ud800"),
    "the hash before": _put(6, lambda _: "f" * 64),
    "its hash": _put(7, lambda _: "f" * 64),
}


@given(chains, st.sampled_from(sorted(CHANGES)), st.data())
def test_a_changed_row_is_found_where_it_stands(
    rows: list[AuditRow], change: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    stored = [row.stored for row in rows]
    stored[at] = CHANGES[change](stored[at])
    report = check_chain(stored, head(rows))
    assert not report.ok
    assert report.broken_at == at + 1
    assert f"row {at + 1} " in report.why


@given(chains, st.data())
def test_a_changed_row_with_its_hash_made_right_is_found_by_the_next(
    rows: list[AuditRow], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    last = (rows[at - 1].seq, rows[at - 1].hash) if at else None
    forged = next_row(last, at=NOON, actor="eve", action="x", subject="x", payload={})
    report = check([*rows[:at], forged, *rows[at + 1 :]], head(rows))
    assert not report.ok
    assert report.broken_at == at + 2


@given(
    chains, st.sampled_from(['{"b":1,"a":2}', '{"a": 1}', '{"a":1,"a":2}', '{"a":1E2}', '{"a":NaN}', "[]"])
)
def test_a_payload_that_is_not_canonical_is_found_under_a_right_hash_too(
    rows: list[AuditRow], payload: str
) -> None:
    seq, before = head(rows)  # type: ignore[misc]
    row: Stored = (seq + 1, 0, "eve", "x", "x", payload, before, "")
    forged = (*row[:7], hashlib.sha256(hashed_bytes(row)).hexdigest())
    report = check_chain([*(row.stored for row in rows), forged], (seq + 1, forged[7]))
    assert not report.ok
    assert report.broken_at == seq + 1
    assert "not canonical" in report.why


@given(long_chains, st.data())
def test_swapped_times_are_found(rows: list[AuditRow], data: st.DataObject) -> None:
    one, other = sorted(data.draw(st.permutations(range(len(rows))))[:2])
    changed = list(rows)
    changed[one] = replace(rows[one], at=rows[other].at)
    changed[other] = replace(rows[other], at=rows[one].at)
    report = check(changed, head(rows))
    assert not report.ok
    assert report.broken_at == one + 1


@given(chains, st.data())
def test_a_removed_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    report = check([*rows[:at], *rows[at + 1 :]], head(rows))
    assert not report.ok
    assert report.broken_at == at + 1


@given(chains, st.data())
def test_a_cut_end_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(rows) - 1))
    report = check(rows[:kept], head(rows))
    assert not report.ok
    assert report.broken_at == kept + 1


@given(chains, st.data())
def test_a_removed_row_is_found_when_the_others_are_renumbered(
    rows: list[AuditRow], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    kept = [replace(row, seq=number) for number, row in enumerate([*rows[:at], *rows[at + 1 :]], start=1)]
    report = check(kept, head(rows))
    assert not report.ok
    assert report.broken_at == at + 1


@given(chains, st.data())
def test_an_inserted_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows)))
    last = (rows[at - 1].seq, rows[at - 1].hash) if at else None
    inserted = next_row(last, at=NOON, actor="eve", action="x", subject="x", payload={})
    shifted = [replace(row, seq=row.seq + 1) for row in rows[at:]]
    for forged in ([*rows[:at], inserted, *shifted], [*rows[:at], inserted, *rows[at:]]):
        report = check(forged, head(rows))
        assert not report.ok
        # The row after it no longer follows; after the last row, it is the one too many.
        assert report.broken_at == min(at + 2, len(rows) + 1)


@given(chains, st.data())
def test_a_doubled_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    report = check([*rows[: at + 1], *rows[at:]], head(rows))
    assert not report.ok
    assert report.broken_at == at + 2


@given(long_chains, st.data())
def test_reordered_rows_are_found(rows: list[AuditRow], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(rows))
    assume(mixed != rows)
    first = next(number for number, row in enumerate(mixed) if row != rows[number]) + 1
    renumbered = [replace(row, seq=number) for number, row in enumerate(mixed, start=1)]
    assert check(mixed, head(rows)).broken_at == first
    assert check(renumbered, head(rows)).broken_at == first


@given(chains)
def test_an_emptied_log_is_found(rows: list[AuditRow]) -> None:
    assert not check([], head(rows)).ok
    assert not check(rows, None).ok


@given(chains)
def test_a_head_with_another_hash_is_found(rows: list[AuditRow]) -> None:
    report = check(rows, (len(rows), "f" * 64))
    assert not report.ok
    assert "another hash" in report.why


def test_the_same_act_twice_has_two_hashes() -> None:
    act: Entry = ("ada", "note", "x", {})
    first, second = chain([act, act])
    assert first.hash != second.hash
    assert second.prev_hash == first.hash


@given(chains, st.data())
def test_a_walk_in_parts_comes_to_the_same_end(rows: list[AuditRow], data: st.DataObject) -> None:
    parts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    stored, walk = [row.stored for row in rows], Walk()
    for low, high in zip([0, *parts], [*parts, len(rows)], strict=True):
        walk, broken = follow(stored[low:high], Walk.from_text(walk.to_text()))
        assert broken is None
    assert conclude(walk, None, head(rows)) == check_chain(stored, head(rows))


@pytest.mark.parametrize("text", ["", "1", "1:zz::0:0", "x:00::0:0", "1:00::0:0:0"])
def test_a_place_to_go_on_from_is_checked(text: str) -> None:
    with pytest.raises(BadInput, match="not a place in the audit log"):
        Walk.from_text(text)


def test_a_clock_that_goes_backwards_is_remarked_and_breaks_nothing() -> None:
    rows: list[AuditRow] = []
    for seconds in (0, 10, 4, 5, 3, 20):
        rows.append(
            next_row(
                head(rows),
                at=NOON + timedelta(seconds=seconds),
                actor="ada",
                action="x",
                subject="x",
                payload={},
            )
        )
    report = check(rows, head(rows))
    assert report.ok
    assert report.reached.backwards == 2
    assert report.reached.furthest == timedelta(seconds=6)
    assert "went backwards 2 times between one row and the next, by 0:00:06 at most" in report.remarks[0]
