"""The audit chain: each row's hash covers the row and the hash before it. Pure; SQL is in `store`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loopwright.kernel.clock import iso, to_us
from loopwright.kernel.digest import digest_json

GENESIS = "0" * 64
"""What the first row's `prev_hash` says."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One act: who did what to what, when, on which evidence (`payload`, JSON-able)."""

    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    payload: Mapping[str, Any]
    prev_hash: str
    hash: str

    def to_json(self) -> dict[str, Any]:
        """Return the row as exported; `at` is ISO 8601."""
        return {
            "seq": self.seq, "at": iso(self.at), "actor": self.actor, "action": self.action,
            "subject": self.subject, "payload": dict(self.payload),
            "prev_hash": self.prev_hash, "hash": self.hash,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Whether the chain holds. `broken_at`: the first number that does not fit; `head`: the last hash."""

    rows: int
    ok: bool
    broken_at: int | None
    why: str
    head: str

    def to_json(self) -> dict[str, Any]:
        """Return the report's fields."""
        return {
            "rows": self.rows, "ok": self.ok, "broken_at": self.broken_at, "why": self.why, "head": self.head,
        }  # fmt: skip


def row_hash(
    seq: int, at: datetime, actor: str, action: str, subject: str, payload: Mapping[str, Any], prev_hash: str
) -> str:
    """SHA-256 of the canonical JSON of all fields, `at` as microseconds."""
    return digest_json([seq, to_us(at), actor, action, subject, dict(payload), prev_hash])


def next_row(
    last: tuple[int, str] | None,
    *,
    at: datetime,
    actor: str,
    action: str,
    subject: str,
    payload: Mapping[str, Any],
) -> AuditRow:
    """Return the row that follows `last` = (seq, hash), or the first row."""
    seq, prev_hash = (last[0] + 1, last[1]) if last else (1, GENESIS)
    digest = row_hash(seq, at, actor, action, subject, payload, prev_hash)
    return AuditRow(seq, at, actor, action, subject, payload, prev_hash, digest)


def check_chain(rows: Iterable[AuditRow], head: tuple[int, str] | None) -> ChainReport:
    """Walk `rows` in order of `seq`.

    `head` is what was recorded apart as the last (seq, hash), None for an empty log. Any changed, removed,
    inserted or reordered row is found, the last ones by `head`.
    """
    seq, previous, count = 0, GENESIS, 0
    for row in rows:
        count += 1
        if row.seq != seq + 1:
            return ChainReport(
                count, False, seq + 1, f"row {seq + 1} is missing; row {row.seq} follows", previous
            )
        if row.prev_hash != previous:
            why = f"row {row.seq} does not follow row {seq}: it names another hash before it"
            return ChainReport(count, False, row.seq, why, previous)
        expected = row_hash(row.seq, row.at, row.actor, row.action, row.subject, row.payload, row.prev_hash)
        if row.hash != expected:
            return ChainReport(
                count, False, row.seq, f"row {row.seq} was changed after it was written", previous
            )
        seq, previous = row.seq, row.hash
    if head is None and count == 0:
        return ChainReport(0, True, None, "the log is empty", GENESIS)
    if head != (seq, previous):
        recorded = f"row {head[0]}" if head else "no row"
        why = f"the log ends at row {seq}, but {recorded} is recorded as the last"
        return ChainReport(count, False, min(seq, head[0] if head else 0) + 1, why, previous)
    return ChainReport(count, True, None, f"{count} rows, each following the one before", previous)
