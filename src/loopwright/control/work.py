"""`loopwright worker`: wires the workers of jobs to a home, its routes, its bundles and its prediction log."""

import os
import signal
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.routes import RouteTable, open_routes
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.intake import TOLERANCE
from loopwright.control.routes import current_routes
from loopwright.jobs.notify import Teller
from loopwright.jobs.settings import Settings
from loopwright.jobs.versions import Versions
from loopwright.jobs.worker import Options, Say, Worker
from loopwright.kernel.clock import Clock, from_us, to_us, utc_now
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.log import PredictionLog
from loopwright.registry import versions as registry_versions
from loopwright.serving.events import Event
from loopwright.serving.wire import Fold

HUNG = 70
"""The exit code of a worker that ended itself because nothing moved any more."""


@dataclass(frozen=True, slots=True)
class HomeRecorder:
    """Counts and logs a job's predictions in the home, as `intake` does with what servers ship."""

    log: PredictionLog
    clock: Clock

    def record(
        self, conn: Connection, events: Sequence[Event], name: str, uids: Sequence[str], folds: Sequence[Fold]
    ) -> None:
        self.log.append(events, name, uids)
        for fold in folds:
            monitoring_store.apply_fold(conn, fold)

    def reached(self, conn: Connection, model: str, latest: int) -> None:
        # Rows may carry event times of the future: what is known of the past does not end by them.
        if latest <= to_us(self.clock() + TOLERANCE):
            monitoring_store.raise_watermark(conn, model, from_us(latest))


def make_worker(
    ctx: Context, options: Options, say: Say, *, teller: dict[str, float] | None = None
) -> tuple[Worker, Teller]:
    """Return what works on the home's jobs, and what calls their webhooks. `teller`: its own options."""

    def routes() -> RouteTable:
        return open_routes(current_routes(ctx), ctx.keyring.public)

    def settings() -> Settings:
        try:
            return Settings.of(ctx.home)
        except BadInput as error:  # somebody is just mending it: no reason to give a job up for good
            raise Unavailable(str(error)) from error

    Settings.of(ctx.home)  # what cannot be used is said before the first job is taken
    worker = Worker(
        ctx.ledger,
        Versions(BundleDepot(ctx.home.bundles), routes, lambda: ctx.keyring.public),
        settings,
        ctx.home.staging / "jobs",
        HomeRecorder(PredictionLog(ctx.home.predictions), ctx.clock),
        options,
        ctx.clock,
        say,
        hung=lambda: _end_hung(say),
    )
    return worker, Teller(ctx.ledger, settings, ctx.clock, say)


def work(
    folder: Path,
    say: Say,
    *,
    once: bool = False,
    models: Collection[str] = (),
    lease: timedelta = timedelta(seconds=30),
    poll: float = 0.5,
    chunk_rows: int = 20_000,
    clock: Clock = utc_now,
) -> int:
    """Work on the jobs of the home in `folder` until a signal; returns the exit code.

    SIGTERM and SIGINT: what was answered is published, the job is given back, and 0 is returned. once: end when nothing
    is due; 1 when a job died of it.
    """
    ctx = open_context(folder, LOCAL, clock=clock)
    with ctx.ledger.read() as conn:
        for model in models:
            registry_versions.check_model(conn, model)
    options = Options(
        lease=lease, poll=poll, chunk_rows=chunk_rows, once=once, models=frozenset(models) or None
    )
    worker, teller = make_worker(ctx, options, say)

    def drain(number: int, _: Any) -> None:
        worker.draining.set()
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    stop = threading.Event()
    telling = threading.Thread(target=teller.run, args=(stop, poll), name="webhooks", daemon=True)
    if not once:
        telling.start()
    try:
        died = worker.run()
        if once:
            teller.all_due()
        return 1 if once and died else 0
    finally:
        stop.set()
        if telling.is_alive():
            telling.join(5)
        ctx.ledger.dispose()


def _end_hung(say: Say) -> None:
    """Ended at once: what hangs cannot be stopped in order, and whoever supervises starts another."""
    say({"event": "hung", "why": "nothing moved any more; another worker goes on"})
    sys.stdout.flush()
    os._exit(HUNG)
