"""Takes in what serving ships: each event exactly once, its counts, its row and its offset together."""

import re
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection

from loopwright.control import store
from loopwright.control.context import Context
from loopwright.kernel.clock import from_us, to_us
from loopwright.kernel.errors import BadInput
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.log import PredictionLog
from loopwright.serving.events import Event
from loopwright.serving.rows import EARLIEST_US, LATEST_US
from loopwright.serving.wire import Batch, BatchHeader, open_batch

TOLERANCE = timedelta(hours=1)
"""How far ahead of our clock an event may be: one wrong clock must not carry event time into the future."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ARM = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def take_in(ctx: Context, body: bytes) -> int:
    """Apply a shipped batch and return the offset reached in its segment.

    A batch that does not begin where the last one ended (a retry after a lost answer, say) changes nothing.
    Raises BadInput for a body that is damaged, names what may not be a file name, or holds what no server sends;
    Conflict for one in another release's format.

    The Parquet file is named by where the batch begins. Should the process die between writing it and committing,
    the sender comes again from the same offset, and the file is written over: never twice in the log.
    """
    batch = open_batch(body)
    header = batch.header
    for name in (header.source, header.segment):
        if not _NAME.fullmatch(name) or ".." in name:
            raise BadInput("not a name", where="event batch", got=name, wanted="letters, digits and . _ -")
    _check(batch.events, header)
    with ctx.ledger.write() as conn:
        reached = store.shipped(conn, header.source, header.segment)
        if header.start != reached or header.end == header.start:
            return reached
        PredictionLog(ctx.home.predictions).append(
            batch.events, f"{header.source}_{header.segment}_{header.start:012d}", batch.uids
        )
        _count(conn, batch)
        # The sender's clock may be wrong: event time never runs ahead of ours.
        latest = to_us(ctx.now + TOLERANCE)
        for model, moment in header.event_times.items():
            if EARLIEST_US <= moment <= latest:
                monitoring_store.raise_watermark(conn, model, from_us(moment))
        store.set_shipped(conn, header.source, header.segment, header.end)
    return header.end


def _check(events: Sequence[Event], header: BatchHeader) -> None:
    """Refuse what no server sends, and no file or column holds."""
    for event in events:
        if not EARLIEST_US <= event.event_time < LATEST_US or not EARLIEST_US <= event.at < LATEST_US:
            raise BadInput("a time outside 1900 to 2200", where="event batch", got=event.event_time)
        if not 0 <= event.version < 2**31 or not 0 <= event.latency_us < 2**53:
            raise BadInput("a number no server has", where="event batch", got=event.version)
        _check_arm(event.arm)
    for fold in header.folds:
        counts = (fold.n, fold.errors, fold.fallbacks)
        _check_arm(fold.arm)
        if not all(0 <= count <= 2**40 for count in counts):
            raise BadInput("counts no server has", where="event batch", got=f"{fold.arm} {counts}")
        if not EARLIEST_US <= fold.bucket < LATEST_US or not 0 <= fold.version < 2**31:
            raise BadInput("an hour outside 1900 to 2200", where="event batch", got=fold.bucket)
    models = {*header.event_times, *(fold.model for fold in header.folds), *(event.model for event in events)}
    for name in models:
        if len(name.encode()) > 200 or not name.isprintable():
            raise BadInput("not a model's name", where="event batch", got=name)


def _check_arm(arm: str) -> None:
    """Raise BadInput for what is neither an arm (stable, canary, shadow, a variant) nor direct, cache or default."""
    if not _ARM.fullmatch(arm):
        raise BadInput(
            "not an arm", where="event batch", got=arm[:40], wanted="lower-case letters, digits, - and _, 32 at most"
        )  # fmt: skip


def _count(conn: Connection, batch: Batch) -> None:
    for fold in batch.header.folds:
        monitoring_store.apply_fold(conn, fold)
