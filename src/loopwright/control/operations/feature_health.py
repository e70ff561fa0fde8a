"""How a model's features are, over time, and whether they are served as they are trained on."""

from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection

from loopwright.control.context import Context
from loopwright.control.explaining import open_version
from loopwright.control.feature_watching import definition_of, measure_window
from loopwright.control.operation import operation
from loopwright.data.lake import Lake
from loopwright.features import store as feature_store
from loopwright.features.parity import ULPS
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso, parse_duration, parse_time
from loopwright.kernel.errors import BadInput, NotFound, Refused
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.feature_health import store
from loopwright.monitoring.feature_health.rules import broken_rules
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.requests import logged_requests
from loopwright.monitoring.windows import Window
from loopwright.pipeline.feature_watch import lives_of
from loopwright.pipeline.keep import kept_project
from loopwright.pipeline.parity import parity as replay
from loopwright.project.spec import Spec
from loopwright.registry import versions
from loopwright.registry.authority import require_on
from loopwright.registry.evidence import record_evidence

MAX_WINDOWS = 400
MAX_REQUESTS = 1_000_000
LONGEST = timedelta(days=366)


@operation("feature_health.show", "GET", "/models/{model}/features/health")
def show(
    ctx: Context,
    model: str,
    windows: int = 1,
    feature: str | None = None,
    source: Literal["requests", "offline"] | None = None,
) -> dict[str, Any]:
    """Show what was counted about the features in the newest windows, and which rules the newest ones break.

    Texts of rows, as the most frequent values are, are shown to those who work on the model.
    """
    if not 1 <= windows <= MAX_WINDOWS:
        raise BadInput("`windows` is out of range", got=windows, wanted=f"1 to {MAX_WINDOWS}")
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        spec = monitoring_store.load_spec(conn, model)
        found = store.load_statistics(conn, model, feature=feature, source=source, windows=windows)
        newest = max((one.window for one in found), default=None)
        version = store.main_version(conn, model, newest) if newest else None
        lives = _recorded_lives(conn, model)
    sees = _may_see(ctx, model)
    rules = spec.monitoring.features if spec else {}
    broken = broken_rules([one for one in found if one.window == newest], rules, lives=lives) if spec else []
    return {
        "model": model, "version": version, "broken": [each.to_json() for each in broken],
        "statistics": [one.to_json() if sees else one.to_json() | {"top": []} for one in found],
    }  # fmt: skip


@operation("feature_health.measure", "POST", "/models/{model}/features/health", role=Role.DEVELOPER)
def measure(
    ctx: Context, model: str, version: int | None = None, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """Count a version's features in any span of event time, now; nothing is kept.

    Without a span: the last monitoring window up to the newest request (up to now where there is none).
    """
    spec, chosen = _spec(ctx, model), _version(ctx, model, version)
    window = _span(ctx, spec, since, until)
    made = definition_of(ctx, model, chosen)
    found = measure_window(ctx, model, chosen, made, window)
    broken = broken_rules(found, spec.monitoring.features, lives=lives_of(made.module))
    return {
        "model": model, "version": chosen, "start": iso(window.start), "end": iso(window.end),
        "broken": [each.to_json() for each in broken],
        "statistics": [one.to_json() for one in found],
    }  # fmt: skip


@operation("feature_health.parity", "POST", "/models/{model}/features/parity", role=Role.DEVELOPER)
def parity(
    ctx: Context,
    model: str,
    version: int | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 50_000,
    ulps: int = ULPS,
) -> dict[str, Any]:
    """Replay logged requests through the offline path, and tell how far each feature agrees.

    The finding becomes evidence of the version. Without a span: the last monitoring window up to the newest request.
    Of more than `limit` requests a fixed sample is replayed.
    """
    if not 1 <= limit <= MAX_REQUESTS:
        raise BadInput("`limit` is out of range", got=limit, wanted=f"1 to {MAX_REQUESTS}")
    spec, chosen = _spec(ctx, model), _version(ctx, model, version)
    window = _span(ctx, spec, since, until)
    made = definition_of(ctx, model, chosen)
    with ctx.ledger.read() as conn:
        registered = versions.get_version(conn, model=model, version=chosen)
    requests = logged_requests(
        PredictionLog(ctx.home.predictions), model, made.fields, start=window.start, end=window.end,
        version=chosen, limit=limit,
    )  # fmt: skip
    report = replay(
        kept_project(ctx.home, str(registered.run_id)), made.module, Lake.of(ctx.home, ctx.ledger),
        open_version(ctx, model, chosen).bundle, requests, version=chosen, start=window.start, end=window.end,
        ulps=ulps, unlogged=spec.serving.log.redact,
    )  # fmt: skip
    told = report.to_json()
    with ctx.ledger.write() as conn:
        digest = record_evidence(
            conn, kind="parity", model=model, version=chosen, bundle=registered.bundle, verdict=report.verdict,
            payload=told, at=ctx.now, actor=ctx.actor,
        )  # fmt: skip
    return {**told, "evidence": digest}


def _may_see(ctx: Context, model: str) -> bool:
    try:
        with ctx.ledger.read() as conn:
            require_on(conn, ctx.actor, Role.DEVELOPER, "see rows of data", model=model)
    except Refused:
        return False
    return True


def _recorded_lives(conn: Connection, model: str) -> dict[str, timedelta]:
    """View → TTL, as the ledger knows the views in force: to look runs no project's code."""
    documents = {one.name: one.document for one in feature_store.definitions(conn, model)}
    return {name: parse_duration(told["ttl"]) for name, told in documents.items() if told.get("ttl")}


def _spec(ctx: Context, model: str) -> Spec:
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        spec = monitoring_store.load_spec(conn, model)
    if spec is None:
        raise NotFound("no project of this home makes the model", got=model, next="loopwright run DIR")
    return spec


def _version(ctx: Context, model: str, version: int | None) -> int:
    """The version asked for, or the one that answered last, or the newest."""
    with ctx.ledger.read() as conn:
        if version is not None:
            return versions.get_version(conn, model=model, version=version).version
        reached = monitoring_store.watermark(conn, model)
        answering = (
            store.main_version(conn, model, Window(reached - timedelta(days=7), reached + timedelta(hours=1)))
            if reached
            else None
        )
        if answering is not None:
            return answering
        every = versions.list_versions(conn, model=model)
    if not every:
        raise NotFound("the model has no version yet", got=model, next="loopwright run DIR")
    return max(one.version for one in every)


def _span(ctx: Context, spec: Spec, since: str | None, until: str | None) -> Window:
    end = parse_time(until) if until else _reached(ctx.ledger, spec.model) or ctx.now
    start = parse_time(since) if since else end - spec.monitoring.window
    if not start < end or end - start > LONGEST:
        raise BadInput(
            "not a span of time", got=f"{iso(start)} to {iso(end)}",
            wanted=f"since before until, at most {LONGEST.days} days apart",
        )  # fmt: skip
    return Window(start, end)


def _reached(ledger: Ledger, model: str) -> datetime | None:
    with ledger.read() as conn:
        reached = monitoring_store.watermark(conn, model)
    # Spans leave their end out; the newest request is to be in.
    return None if reached is None else reached + timedelta(microseconds=1)
