"""Anchors: signed statements of where the audit log stood, kept where the log's database cannot be reached.

Whoever owns the database could write the whole chain anew, with a new head. An anchor kept elsewhere still names the
hash that a row had; no chain of other rows leads to it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from loopwright.kernel.clock import iso, parse_time
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, LoopwrightError, Tampered, Unavailable
from loopwright.kernel.files import append_line, write_atomic

KIND = "loopwright-anchor/1"
COLLECTED = "anchors.jsonl"

Sign = Callable[[bytes], str]
"""Returns the home's signature over the bytes."""

Keys = Mapping[str, Callable[[bytes, str], None]]
"""For each trusted key's id, what returns when a signature over bytes is that key's, and raises Tampered otherwise."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """At `at`, the audit log of `home` had a row `seq` with the hash `hash`; signed by the key `key_id`."""

    home: str
    seq: int
    hash: str
    at: datetime
    key_id: str
    signature: str

    @property
    def statement(self) -> bytes:
        """The bytes that are signed."""
        return canonical_json(self._stated())

    def to_json(self) -> dict[str, Any]:
        """Return the statement and its signature."""
        return {**self._stated(), "signature": self.signature}

    def _stated(self) -> dict[str, Any]:
        return {
            "kind": KIND, "home": self.home, "seq": self.seq, "hash": self.hash, "at": iso(self.at),
            "key_id": self.key_id,
        }  # fmt: skip

    @classmethod
    def from_json(cls, document: object, where: str) -> "Anchor":
        """Read `to_json()`'s form; raises Tampered. The signature is not looked at."""
        match document:
            case {
                "kind": str() as kind, "home": str() as home, "seq": int() as seq, "hash": str() as digest,
                "at": str() as at, "key_id": str() as key_id, "signature": str() as signature,
            } if kind == KIND:  # fmt: skip
                try:
                    return cls(home, seq, digest, parse_time(at), key_id, signature)
                except BadInput as error:
                    raise Tampered(error.what, where=where, got=at) from None
        raise Tampered("not an anchor of an audit log", where=where)


@dataclass(frozen=True, slots=True)
class Finding:
    """What an anchor, read at `where`, says of a log. `counts` is false for one signed by a key nobody trusts."""

    where: str
    seq: int
    ok: bool
    why: str
    counts: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where, "seq": self.seq, "ok": self.ok, "why": self.why, "counts": self.counts,
        }  # fmt: skip


def make_anchor(head: tuple[int, str], *, home: str, at: datetime, key_id: str, sign: Sign) -> Anchor:
    """Return the signed statement that the log had the row `head` = (seq, hash)."""
    unsigned = Anchor(home, *head, at, key_id, "")
    return Anchor(home, *head, at, key_id, sign(unsigned.statement))


def judge(anchor: Anchor, where: str, found: str | None, home: str | None, keys: Keys) -> Finding:
    """Hold `anchor` against the log of `home`, whose row `anchor.seq` has the hash `found` (None: no such row)."""
    if anchor.key_id not in keys:
        # A revoked key's, or another home's: it counts neither for the log nor against it.
        why = f"it is signed by key {anchor.key_id}, which is not trusted here"
        return Finding(where, anchor.seq, False, why, counts=False)
    try:
        keys[anchor.key_id](anchor.statement, anchor.signature)
    except Tampered:
        why = f"it was changed: the signature is not key {anchor.key_id}'s over these words"
        return Finding(where, anchor.seq, False, why)
    if home is not None and anchor.home != home:
        return Finding(where, anchor.seq, False, f"it is about another home ({anchor.home}, not {home})")
    if found is None:
        return Finding(
            where, anchor.seq, False, f"on {iso(anchor.at)} there was a row {anchor.seq}; it is gone"
        )
    if found != anchor.hash:
        why = f"on {iso(anchor.at)} row {anchor.seq} had another hash: rows up to it were written anew"
        return Finding(where, anchor.seq, False, why)
    return Finding(where, anchor.seq, True, f"row {anchor.seq} is as it was on {iso(anchor.at)}")


def write_anchor(anchor: Anchor, place: Path) -> None:
    """Keep `anchor` at `place`: a file *.jsonl gets one more line; a folder that, and a small file of its own.

    Raises Unavailable when the place cannot be written.
    """
    line = canonical_json(anchor.to_json())
    if is_file(place):
        append_line(place, line)
        return
    write_atomic(place / f"{anchor.seq:012d}-{anchor.hash[:12]}.json", line + b"\n")
    append_line(place / COLLECTED, line)


def read_anchors(place: Path) -> list[tuple[str, Anchor]]:
    """Return every anchor at `place`, a file or a folder, and where each stood.

    Raises Unavailable for a file that cannot be read, Tampered for one that holds something else.
    """
    if place.is_dir():
        files = [*sorted(place.glob("*.json")), *sorted(place.glob("*.jsonl"))]
        return [found for file in files for found in read_anchors(file)]
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"cannot read the anchor ({error})", where=str(place)) from error
    found = []
    for number, line in enumerate(lines, start=1):
        where = str(place) if len(lines) == 1 else f"{place}:{number}"
        if line.strip():
            found.append((where, parse_anchor(line, where)))
    return found


def parse_anchor(text: str, where: str) -> Anchor:
    """Read one anchor's JSON; raises Tampered."""
    try:
        return Anchor.from_json(json.loads(text), where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, LoopwrightError):
            raise
        raise Tampered(f"not an anchor of an audit log ({error})", where=where) from None


def distinct(anchors: Iterable[tuple[str, Anchor]]) -> list[tuple[str, Anchor]]:
    """Return each anchor once, with the first place it was found at, in the order of their rows."""
    first: dict[Anchor, str] = {}
    for where, anchor in anchors:
        first.setdefault(anchor, where)
    return sorted(((where, anchor) for anchor, where in first.items()), key=lambda pair: pair[1].seq)


def is_file(place: Path) -> bool:
    """Whether anchors are appended to this one file, rather than put into a folder of this name."""
    return not place.is_dir() and place.suffix in (".jsonl", ".json", ".txt", ".log")


def tell(places: Mapping[str, str]) -> str:
    """One sentence on where an anchor could not be written; "" when it could be everywhere."""
    return "; ".join(f"{place}: {why}" for place, why in places.items() if why)
