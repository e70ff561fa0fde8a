"""The audit chain: each row's hash covers the row and the hash before it. Pure; SQL is in `store`.

The hash of a row is the SHA-256 of the canonical JSON of [seq, at in microseconds, actor, action, subject, payload,
prev_hash]. A log is walked as the database holds it (`Stored`): its payloads are canonical JSON already, so the bytes
that are hashed are put together from the columns, and no object is built that nobody looks at.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Any

import msgspec

from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.kernel.errors import BadInput

GENESIS = "0" * 64
"""What the first row's `prev_hash` says."""

Stored = tuple[int, int, str, str, str, str, str, str]
"""A row as it is kept: seq, at (microseconds), actor, action, subject, payload (canonical JSON), prev_hash, hash."""


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

    @classmethod
    def of(cls, stored: Stored) -> "AuditRow":
        """The row as an object; the inverse of `stored`."""
        seq, at, actor, action, subject, payload, prev_hash, digest = stored
        return cls(seq, from_us(at), actor, action, subject, json.loads(payload), prev_hash, digest)

    @property
    def stored(self) -> Stored:
        """The row as it is kept."""
        payload = canonical_json(dict(self.payload)).decode()
        return (
            self.seq, to_us(self.at), self.actor, self.action, self.subject, payload, self.prev_hash, self.hash,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the row as exported; `at` is ISO 8601."""
        return {
            "seq": self.seq, "at": iso(self.at), "actor": self.actor, "action": self.action,
            "subject": self.subject, "payload": dict(self.payload),
            "prev_hash": self.prev_hash, "hash": self.hash,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a walk along the chain has come, so that it can be gone on with later.

    `seq` and `hash` are those of the last row that fits, `at` its time in microseconds. `backwards`: how many rows
    were written when the clock said an earlier time than for the row before; `furthest`: by how much at most.
    """

    seq: int = 0
    hash: str = GENESIS
    at: int | None = None
    backwards: int = 0
    furthest: timedelta = timedelta()

    def to_text(self) -> str:
        """Return what `from_text` reads back."""
        at = "" if self.at is None else str(self.at)
        return f"{self.seq}:{self.hash}:{at}:{self.backwards}:{self.furthest // timedelta(microseconds=1)}"

    @classmethod
    def from_text(cls, text: str) -> "Walk":
        """Read `to_text()`'s form; raises BadInput."""
        try:
            seq, digest, at, backwards, furthest = text.split(":")
            bytes.fromhex(digest)
            return cls(
                int(seq), digest, int(at) if at else None, int(backwards), timedelta(microseconds=int(furthest))
            )  # fmt: skip
        except (ValueError, OverflowError):
            raise BadInput(
                "not a place in the audit log", got=text, wanted="`reached` of an earlier answer"
            ) from None


START = Walk()
"""Before the first row."""


@dataclass(frozen=True, slots=True)
class Break:
    """Where the chain does not hold: the first number that does not fit, and why."""

    seq: int
    why: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Whether the chain holds. `broken_at`: the first number that does not fit; `head`: the last hash.

    `done` is false when only a part was walked: `reached` is where to go on. `remarks` break nothing.
    """

    rows: int
    ok: bool
    broken_at: int | None
    why: str
    head: str
    reached: Walk = START
    done: bool = True

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know about a log that holds: where the clock went backwards."""
        if not self.reached.backwards:
            return ()
        times = "once" if self.reached.backwards == 1 else f"{self.reached.backwards:,} times"
        return (
            f"the clock went backwards {times} between one row and the next, by {self.reached.furthest} at most; "
            "the order of the rows is that of their numbers",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report's fields."""
        return {
            "rows": self.rows, "ok": self.ok, "broken_at": self.broken_at, "why": self.why, "head": self.head,
            "done": self.done, "reached": self.reached.to_text(), "remarks": list(self.remarks),
            "clock_backwards": {
                "rows": self.reached.backwards, "most_seconds": self.reached.furthest.total_seconds(),
            },
        }  # fmt: skip


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
    digest = sha256_bytes(canonical_json([seq, to_us(at), actor, action, subject, dict(payload), prev_hash]))
    return AuditRow(seq, at, actor, action, subject, payload, prev_hash, digest)


def hashed_bytes(row: Stored) -> bytes:
    """Return what the hash of the row is taken of: with a canonical payload, the canonical JSON of its fields.

    Raises TypeError, AttributeError or UnicodeError for a row that holds something other than text.
    """
    seq, at, actor, action, subject, payload, prev_hash, _ = row
    return _HASHED % (
        seq, at, _quoted(actor), _quoted(action), _quoted(subject), payload.encode(), prev_hash.encode()
    )  # fmt: skip


# %a writes a number as it is; %d would make 1 of 1.5, which SQLite would keep.
_HASHED = b'[%a,%a,%b,%b,%b,%b,"%b"]'


@lru_cache(maxsize=8192)  # names and acts recur
def _quoted(text: str) -> bytes:
    return encode_basestring(text).encode()


def is_canonical(payload: bytes) -> bool:
    """Whether this is a JSON object in the one spelling of `canonical_json`."""
    if not payload.startswith(b"{"):
        return False
    try:
        # Five times as fast, and the same spelling for everything but floats, which it leaves to the slow way.
        if _sorted.encode(_without_floats.decode(payload)) == payload:
            return True
    except (ValueError, RecursionError, msgspec.MsgspecError):
        pass
    try:
        return canonical_json(json.loads(payload)) == payload
    except (ValueError, RecursionError, BadInput):
        return False


def _no_float(text: str) -> float:
    raise ValueError(text)


_without_floats = msgspec.json.Decoder(float_hook=_no_float)
_sorted = msgspec.json.Encoder(order="sorted")


def follow(rows: Iterable[Stored], since: Walk = START) -> tuple[Walk, Break | None]:
    """Walk on from `since` along `rows`; returns how far they fit, and the first that does not."""
    seq, previous, last, backwards, furthest = since.seq, since.hash, since.at, since.backwards, 0
    broken: Break | None = None
    for row in rows:
        # What `_misfit` and `hashed_bytes` say, as one expression: it is asked a hundred thousand times a second.
        number, at, actor, action, subject, payload, before, digest = row
        try:
            text = payload.encode()
            hashed = _HASHED % (
                number, at, _quoted(actor), _quoted(action), _quoted(subject), text, before.encode()
            )  # fmt: skip
            fits = (
                number == seq + 1
                and before == previous
                and sha256(hashed).hexdigest() == digest
                and is_canonical(text)
            )
        except (TypeError, AttributeError, UnicodeError):
            fits = False
        if not fits:
            broken = _misfit(row, seq, previous)
            break
        seq, previous = number, digest
        if last is not None and at < last:
            backwards, furthest = backwards + 1, max(furthest, last - at)
        last = at
    step = max(since.furthest, timedelta(microseconds=furthest))
    return Walk(seq, previous, last, backwards, step), broken


def _misfit(row: Stored, seq: int, previous: str) -> Break:
    """Say why `row` does not follow the row `seq` with the hash `previous`."""
    number = row[0]
    if number != seq + 1:
        why = f"row {seq + 1} is missing; row {number} follows"
        if number <= seq:
            why = f"row {number} stands where row {seq + 1} is expected"
        return Break(seq + 1, why)
    try:
        hashed = hashed_bytes(row)
    except (TypeError, AttributeError, UnicodeError):
        why = f"row {number} was changed after it was written: it holds something that is no text"
        return Break(number, why)
    if row[6] != previous:
        return Break(number, f"row {number} does not follow row {seq}: it names another hash before it")
    if sha256(hashed).hexdigest() != row[7]:
        return Break(number, f"row {number} was changed after it was written")
    return Break(number, f"the payload of row {number} is not canonical JSON: no release writes it so")


def conclude(walk: Walk, broken: Break | None, head: tuple[int, str] | None) -> ChainReport:
    """Judge a walk that came to the log's end or to a break; `head` is what was recorded apart as the last row."""
    if broken is not None:
        return ChainReport(walk.seq + 1, False, broken.seq, broken.why, walk.hash, walk)
    if head is None and walk.seq == 0:
        return ChainReport(0, True, None, "the log is empty", GENESIS, walk)
    if head != (walk.seq, walk.hash):
        recorded = f"row {head[0]}" if head else "no row"
        why = f"the log ends at row {walk.seq}, but {recorded} is recorded as the last"
        if head and head[0] == walk.seq:
            why = f"the log ends at row {walk.seq}, but with another hash than is recorded as the last"
        at = min(walk.seq, head[0] if head else 0) + 1
        return ChainReport(walk.seq, False, at, why, walk.hash, walk)
    return ChainReport(
        walk.seq, True, None, f"{walk.seq} rows, each following the one before", walk.hash, walk
    )


def check_chain(rows: Iterable[Stored], head: tuple[int, str] | None) -> ChainReport:
    """Walk all `rows` of a log in the order of their numbers.

    `head` is what was recorded apart as the last (seq, hash), None for an empty log. Any changed, removed,
    inserted or reordered row is found, the last ones by `head`.
    """
    return conclude(*follow(rows), head)
