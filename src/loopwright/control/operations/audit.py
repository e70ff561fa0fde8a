"""The audit log: look, verify, anchor, export, report."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from loopwright.control import anchors
from loopwright.control.audit_report import report_on
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.stream import Stream
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import month as month_of
from loopwright.kernel.errors import BadInput
from loopwright.ledger import store as ledger_store
from loopwright.ledger.anchor import Anchor, Finding
from loopwright.ledger.audit import START, Stored, Walk
from loopwright.ledger.export import csv_head, csv_rows, jsonl
from loopwright.ledger.store import Wanted


@operation("audit.show", "GET", "/audit")
def show(
    ctx: Context,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    model: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return audit rows, oldest first: the newest `limit` of those that fit."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000; `audit export` gives all")
    with ctx.ledger.read() as conn:
        rows = ledger_store.rows(
            conn, subject=subject, actor=actor, action=action, since=since, until=until, limit=limit,
            model=model,
        )  # fmt: skip
    return [row.to_json() for row in rows]


@operation("audit.known", "GET", "/audit/known")
def known(ctx: Context) -> dict[str, Any]:
    """List the acts and the actors that the log has rows of: what it can be searched for."""
    with ctx.ledger.read() as conn:
        return {"actions": ledger_store.known(conn, "action"), "actors": ledger_store.known(conn, "actor")}


@operation("audit.verify", "GET", "/audit/verify")
def verify(ctx: Context, after: str = "", rows: int | None = None) -> dict[str, Any]:
    """Walk the chain and say whether every row follows the one before, and whether the anchors here agree.

    `rows`: walk only so many; `after`: go on from what an earlier answer `reached`. Anchors are held against the log
    once its end is reached.
    """
    if rows is not None and rows < 1:
        raise BadInput("`rows` is out of range", got=rows, wanted="at least 1")
    since = Walk.from_text(after) if after else START
    with ctx.ledger.read() as conn:
        report = ledger_store.verify(conn, since=since, limit=rows)
        last = ledger_store.head(conn)
    answer = report.to_json() | {"total": last[0] if last else 0}
    if report.done:
        answer["anchors"] = _told(anchors.findings(ctx))
        if report.ok and answer["anchors"]["wrong"]:
            first = answer["anchors"]["wrong"][0]
            answer |= {
                "ok": False,
                "broken_at": first["seq"],
                "why": f"the chain is whole, but not the one that was anchored ({first['where']}): {first['why']}",
            }
    return answer


@operation("audit.check_anchors", "POST", "/audit/anchors/check")
def check_anchors(ctx: Context, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold anchors that were kept elsewhere against the log. Says of each what it found; changes nothing."""
    given = [(f"document {n}", Anchor.from_json(one, f"document {n}")) for n, one in enumerate(documents, 1)]
    by_place = {finding.where: finding for finding in anchors.hold(ctx, given)}
    return [by_place[where].to_json() for where, _ in given]


@operation("audit.anchor", "POST", "/audit/anchors", role=Role.APPROVER)
def anchor(ctx: Context) -> dict[str, Any]:
    """Sign where the log stands now, and keep that in every place home.json names. Keep a copy elsewhere."""
    made = anchors.anchor_now(ctx)
    with ctx.ledger.read() as conn:
        standing = anchors.last_anchor(conn)
    return {"anchor": made.to_json(), "places": standing[1] if standing else {}}


@operation("audit.export", "GET", "/audit/export", role=Role.APPROVER)
def export(
    ctx: Context,
    format: str = "jsonl",
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    model: str | None = None,
) -> Stream:
    """Send every row that fits with its hashes, oldest first: as JSON lines that others can verify, or as CSV.

    Wants the role approver: on the model when it is about one, else everywhere.
    """
    if format not in _FORMATS:
        raise BadInput("not a format of the audit log", got=format, wanted=" or ".join(_FORMATS))
    media_type, head, write = _FORMATS[format]
    wanted = Wanted(subject, actor, action, since, until, model)
    return Stream(media_type, f"audit.{format}", _chunks(ctx, wanted, head, write))


@operation("audit.report", "GET", "/audit/report")
def report(ctx: Context, month: str, model: str | None = None) -> dict[str, Any]:
    """Report on a month (YYYY-MM, UTC): promotions, exceptions, refusals, changes of policy, keys and access."""
    since, until = month_of(month)
    with ctx.ledger.read() as conn:
        rows = ledger_store.iterate(conn, since=since, until=until, model=model)
        made = report_on(rows, month=month.strip(), model=model)
    return made.to_json() | {"chain": verify(ctx)}


def _chunks(
    ctx: Context, wanted: Wanted, head: Callable[[], bytes], write: Callable[[Iterable[Stored]], bytes]
) -> Iterator[bytes]:
    """Each page in a transaction of its own: rows never change, and a slow reader must not hold the database."""
    with ctx.ledger.read() as conn:
        after, upto = ledger_store.span(conn, wanted)
    yield head()
    while True:
        with ctx.ledger.read() as conn:
            page = ledger_store.stored_page(conn, wanted, after, upto)
        if not page:
            return
        yield write(page)
        after = page[-1][0]


_FORMATS: dict[str, tuple[str, Callable[[], bytes], Callable[[Iterable[Stored]], bytes]]] = {
    "jsonl": ("application/x-ndjson", bytes, jsonl),
    "csv": ("text/csv; charset=utf-8", csv_head, csv_rows),
}


def _told(found: list[Finding]) -> dict[str, Any]:
    counted = [one for one in found if one.counts]
    return {
        "checked": len(counted),
        "newest": max((one.seq for one in counted if one.ok), default=None),
        "wrong": [one.to_json() for one in counted if not one.ok],
        "ignored": [one.to_json() for one in found if not one.counts],
    }
