"""Sends what is in the prediction log to a sink: again, or for the first time."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.kernel.clock import to_us
from loopwright.monitoring.log import MERGED, SCHEMA, PredictionLog
from loopwright.serving.events import Event
from loopwright.serving.sinks.base import Rejected, Row, Sink

BLOCK = 5_000


def replay(
    log: PredictionLog,
    sink: Sink,
    *,
    model: str,
    start: datetime,
    end: datetime,
    names: Callable[[int], tuple[str, ...] | None],
    unlogged: Collection[str] = (),
    watch: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Rejected]]:
    """Send every event of `model` with event time in [start, end); return (rows confirmed, rows never taken).

    Every row has the uid it had when it was first sent, so that receivers know those they have. names(version): its
    inputs; unlogged: those that the log is to be without. watch(files done, files): called after each. Raises
    Unavailable when the sink is away: begin again then, nothing is spoilt.
    """
    files = log.files(model, start, end)
    sent, rejected, done = 0, list[Rejected](), 0
    while done < len(files):
        file = files[done]
        done += 1
        try:
            table = pq.read_table(file, schema=SCHEMA, partitioning=None)
        except FileNotFoundError:
            merged = file.with_name(MERGED)  # into its day, meanwhile
            if merged != file and merged not in files[done:]:
                files.append(merged)
            continue
        for number, rows in enumerate(_blocks(table, model, to_us(start), to_us(end), names, unlogged)):
            token = f"replay/{model}/{file.parent.name}/{file.name}/{number}/{rows[0].uid}/{rows[-1].uid}/{len(rows)}"
            refused = sink.deliver(rows, token)
            rejected += refused
            sent += len(rows) - len(refused)
        if watch is not None:
            watch(done, len(files))
    return sent, rejected


def _blocks(
    table: pa.Table,
    model: str,
    start: int,
    end: int,
    names: Callable[[int], tuple[str, ...] | None],
    unlogged: Collection[str],
) -> Iterator[list[Row]]:
    for batch in table.to_batches(max_chunksize=BLOCK):
        columns = {name: batch.column(name) for name in SCHEMA.names}
        moments = {name: columns[name].cast("int64").to_pylist() for name in ("event_time", "at")}
        cells = {
            name: moments[name] if name in moments else column.to_pylist() for name, column in columns.items()
        }
        rows = [
            _row(model, {name: cells[name][place] for name in SCHEMA.names}, names, unlogged)
            for place in range(batch.num_rows)
            if start <= cells["event_time"][place] < end
        ]
        if rows:
            yield rows


def _row(
    model: str,
    cell: dict[str, Any],
    names: Callable[[int], tuple[str, ...] | None],
    unlogged: Collection[str],
) -> Row:
    event = Event(
        cell["id"], cell["unit"], cell["event_time"], cell["at"], model, cell["version"], cell["arm"],
        cell["latency_us"], cell["status"], cell["error"], msgspec.json.decode(cell["inputs"]), cell["outputs"],
    )  # fmt: skip
    known = names(event.version)
    hidden = tuple(
        name
        for name, value in zip(known or (), event.inputs, strict=False)
        if value is None and name in unlogged
    )
    uid = cell["uid"] or _uid_of(event)
    return Row(uid, uid.partition("/")[0], event, known, tuple(sorted(hidden)))


def _uid_of(event: Event) -> str:
    """A name for an event that was logged before events had one: the same each time."""
    digest = hashlib.sha256(msgspec.msgpack.encode(event)).hexdigest()
    return f"log/{digest[:32]}"
