"""Sends a home's prediction log to a sink. On its folder only: no request says where data is to go."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from loopwright.control.context import Context
from loopwright.control.inputs import input_names
from loopwright.kernel.actor import Role, require
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.replay import replay
from loopwright.monitoring.store import load_spec
from loopwright.serving.sinks.address import open_sink, parse_sink


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. rejected: (uid, why) of rows that the sink will never take."""

    model: str
    sink: str
    start: datetime
    end: datetime
    rows: int
    rejected: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "sink": self.sink, "since": iso(self.start), "until": iso(self.end),
            "rows": self.rows, "rejected": [{"uid": uid, "why": why} for uid, why in self.rejected],
        }  # fmt: skip


def replay_log(
    ctx: Context,
    *,
    model: str,
    to: str,
    start: datetime,
    end: datetime,
    watch: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Send the model's logged predictions with event time in [start, end) to the sink at `to`; it is audited first.

    Raises BadInput, NotFound for a model without a log, Refused for who is no admin, Unavailable when the sink is away.
    """
    require(ctx.actor, Role.ADMIN, f"send the predictions of {model} elsewhere", model=model)
    address = parse_sink(to, "--to")
    if not start < end:
        raise BadInput("an empty span of time", where="--since, --until", got=f"{iso(start)} to {iso(end)}")
    log = PredictionLog(ctx.home.predictions)
    if not log.files(model, start, end):
        raise NotFound(f"no predictions of {model} are logged in that time", where=str(log.root))
    with ctx.ledger.read() as conn:
        spec = load_spec(conn, model)

    @lru_cache(maxsize=1024)
    def names(version: int) -> tuple[str, ...] | None:
        with ctx.ledger.read() as conn:
            return input_names(ctx, conn, model, version)

    sink = open_sink(address)
    span = {"since": iso(start), "until": iso(end)}
    ctx.record("log.replay", subject=model, payload={"to": address.name, **span})
    try:
        rows, rejected = replay(
            log, sink, model=model, start=start, end=end, names=names, watch=watch,
            unlogged=spec.serving.log.redact if spec else (),
        )  # fmt: skip
    finally:
        sink.close()
    return Replayed(
        model, address.name, start, end, rows, tuple((each.row.uid, each.why) for each in rejected)
    )
