"""Where a home's anchors go, how one is made, and what those that can be found say of its log."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Tampered, Unavailable
from loopwright.kernel.home import Home
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.ledger.anchor import (
    Anchor,
    Finding,
    Keys,
    distinct,
    judge,
    make_anchor,
    parse_anchor,
    read_anchors,
    tell,
    write_anchor,
)
from loopwright.ledger.audit import START, Walk

ACTION = "audit.anchored"
SETTING = "anchors"
_HOME_ID = "home.id"

log = logging.getLogger("loopwright.control")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to anchor, and where besides the home's own folder."""

    every: timedelta = timedelta(hours=1)
    to: tuple[Path, ...] = ()


def schedule_of(home: Home) -> Schedule:
    """What home.json says under "anchors": {"every": "1h", "to": ["/mnt/elsewhere"]}; raises BadInput."""
    said = home.setting(SETTING)
    wanted = '{"every": "1h", "to": ["/folder", "/file.jsonl"]}'
    if said is None:
        return Schedule()
    where = f"{home.config}: {SETTING}"
    if not isinstance(said, Mapping) or set(said) - {"every", "to"}:
        raise BadInput("not how to anchor the audit log", where=where, got=said, wanted=wanted)
    every, to = said.get("every", "1h"), said.get("to", [])
    if not isinstance(every, str) or not isinstance(to, list) or not all(isinstance(one, str) for one in to):
        raise BadInput("not how to anchor the audit log", where=where, got=said, wanted=wanted)
    pause = parse_duration(every)
    if pause < timedelta(seconds=1):
        raise BadInput("too often", where=f"{where}.every", got=every, wanted="at least 1s")
    return Schedule(pause, tuple((home.root / Path(one).expanduser()).absolute() for one in to))


def last_anchor(conn: Connection) -> tuple[Anchor, dict[str, str]] | None:
    """The newest anchor the ledger remembers, and for each place "" or why it could not be written."""
    found = ledger_store.last_anchor(conn)
    return None if found is None else (parse_anchor(found[0], "lw_anchors"), found[1])


def start_of(anchor: Anchor | None) -> Walk:
    """Where the rows begin that no anchor vouches for yet."""
    return START if anchor is None else Walk(anchor.seq, anchor.hash)


def anchor_now(ctx: Context, *, reached: Walk | None = None) -> Anchor:
    """Sign where the log stands, write that to every place, and remember it.

    The rows since the last anchor are walked first, unless `reached` says that the caller has done so: a log that does
    not hold gets no signature. A log that has not grown keeps its anchor. Places that cannot be written are logged
    and remembered, and keep no other from being written. Raises Tampered, and NotFound for an empty log.
    """
    with ctx.ledger.read() as conn:
        standing = last_anchor(conn)
        anchor = standing[0] if standing else None
        if (
            anchor is not None
            and not _grown(conn, anchor)
            and ledger_store.hash_at(conn, anchor.seq) == anchor.hash
        ):
            return anchor
        if reached is None:
            report = ledger_store.verify(conn, since=start_of(anchor))
            if not report.ok:
                raise Tampered(f"{report.why}; nothing was anchored", where="audit log", next=_NEXT)
            reached = report.reached
    if reached.seq == 0:
        raise NotFound("the audit log is empty: there is nothing to anchor")
    with ctx.ledger.write() as conn:
        home = home_id(conn)
    key = ctx.key
    made = make_anchor(
        (reached.seq, reached.hash), home=home, at=ctx.now, key_id=key.public.key_id, sign=key.sign
    )
    places = _written(made, (ctx.home.anchors, *schedule_of(ctx.home).to))
    with ctx.ledger.write() as conn:
        ledger_store.add_anchor(
            conn, seq=made.seq, head=made.hash, at=made.at, document=canonical_json(made.to_json()).decode(),
            places=places,
        )  # fmt: skip
        ledger_store.append(
            conn, at=ctx.now, actor=ctx.actor.name, action=ACTION, subject="audit",
            payload={"seq": made.seq, "hash": made.hash, "key_id": made.key_id, "places": places},
        )  # fmt: skip
    return made


_NEXT = "See: loopwright audit verify."


def findings(ctx: Context) -> list[Finding]:
    """What the anchors in the home's folder and in its ledger say of the log.

    A file in the folder that is no anchor is a finding too.
    """
    found: list[tuple[str, Anchor]] = []
    spoiled: list[Finding] = []
    for file in sorted(ctx.home.anchors.glob("*.json*")):
        try:
            found += read_anchors(file)
        except LoopwrightError as error:
            spoiled.append(Finding(str(file), 0, False, error.what))
    with ctx.ledger.read() as conn:
        documents = ledger_store.anchor_documents(conn)
    for document in documents:
        try:
            found.append(("the ledger", parse_anchor(document, "the ledger")))
        except Tampered as error:
            spoiled.append(Finding("the ledger", 0, False, error.what))
    return [*spoiled, *hold(ctx, distinct(found))]


def hold(ctx: Context, given: Sequence[tuple[str, Anchor]]) -> list[Finding]:
    """Hold anchors, each with the place it was found at, against the log."""
    with ctx.ledger.read() as conn:
        hashes = ledger_store.hashes_at(conn, {anchor.seq for _, anchor in given})
        home = ledger_store.get_meta(conn, _HOME_ID)
    keys = trusted(ctx)
    return [judge(anchor, where, hashes.get(anchor.seq), home, keys) for where, anchor in given]


def trusted(ctx: Context) -> Keys:
    """The keys whose anchors count."""
    return {key.key_id: key.verify for key in ctx.keyring.public}


def unanchored_since(conn: Connection, anchor: Anchor | None) -> int | None:
    """When (microseconds) the oldest row was written that no anchor covers, None when all are covered.

    The row that an anchoring leaves itself does not count: it would ask for the next one for ever.
    """
    return ledger_store.unanchored_since(conn, anchor.seq if anchor else 0, but=ACTION)


def home_id(conn: Connection) -> str:
    """The home's name in its anchors, given on first use. Needs a write transaction."""
    known = ledger_store.get_meta(conn, _HOME_ID)
    if known is None:
        known = new_id("home")
        ledger_store.put_meta(conn, _HOME_ID, known)
    return known


def _grown(conn: Connection, anchor: Anchor) -> bool:
    return unanchored_since(conn, anchor) is not None


def _written(anchor: Anchor, places: Iterable[Path]) -> dict[str, str]:
    said: dict[str, str] = {}
    for place in places:
        try:
            write_anchor(anchor, place)
            said[str(place)] = ""
        except Unavailable as error:
            said[str(place)] = error.what
    failed = tell(said)
    if failed:
        log.warning("the audit log's anchor %d could not be written everywhere: %s", anchor.seq, failed)
    return said
