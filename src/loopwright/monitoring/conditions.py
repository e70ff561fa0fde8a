"""What a model's judged windows and hours say about it: the conditions alerts are made of. Pure."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.alerts import Cleared, Condition, Kind, Raised
from loopwright.monitoring.windows import LATEST, SUSTAINED, StableHour, Window, sustained
from loopwright.stats.drift import Level
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import PREDICTION
from loopwright.stats.proportions import wilson

# Google's SRE workbook, ch. 5: at 14.4 times the tolerated rate a month's error budget is gone in two days.
FAST_BURN = 14.4
MIN_REQUESTS = 20
MIN_ERRORS = 3
MIN_MEASURED = 300
"""Fewer predictions say nothing of a p99."""


class Judged(Protocol):
    """A verdict on one version in one window."""

    @property
    def version(self) -> int: ...
    @property
    def window(self) -> Window: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def payload(self) -> Mapping[str, Any]: ...


def drift_condition(latest: Sequence[Judged]) -> Condition | None:
    """From the latest conclusive drift windows of the version in service, oldest first.

    Raised while any feature was at the alarm level in two of its last three windows; cleared when every
    feature has been below it in the last two.
    """
    if not latest:
        return None
    newest = latest[-1]
    columns: dict[str, Mapping[str, Any]] = dict(newest.payload["columns"])
    states = {name: sustained(_alarms(latest, name)) for name in columns}
    for name in (name for name, bad in states.items() if bad):
        columns[name] = _told(latest, partial(_is_alarm, name)).payload["columns"][name]
    moved = sorted(
        (name for name, bad in states.items() if bad), key=lambda name: -float(columns[name]["corrected"])
    )
    if moved:
        named = ", ".join(f"{name} (PSI {columns[name]['corrected']:.2f})" for name in moved[:5])
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        return Raised(
            Kind.DRIFT,
            newest.version,
            newest.window.end,
            f"{len(moved)} of {len(columns)} features have moved away from the training data: {named}{more}",
            {"columns": {name: dict(columns[name]) for name in moved}, "windows": _spans(latest)},
        )
    if states and all(bad is False for bad in states.values()):
        return Cleared(Kind.DRIFT, newest.window.end, "every feature is back within its limits")
    return None


def prediction_condition(latest: Sequence[Judged]) -> Condition | None:
    """The same for the model's first output."""
    if not latest:
        return None
    newest = latest[-1]
    bad = sustained(_alarms(latest, PREDICTION))
    if bad:
        drift = _told(latest, partial(_is_alarm, PREDICTION)).payload["columns"][PREDICTION]
        return Raised(
            Kind.PREDICTION,
            newest.version,
            newest.window.end,
            f"predictions have moved away from those on the training data (PSI {drift['corrected']:.2f})",
            {"drift": dict(drift), "windows": _spans(latest)},
        )
    return (
        Cleared(Kind.PREDICTION, newest.window.end, "predictions are back within limits")
        if bad is False
        else None
    )


def quality_condition(latest: Sequence[Judged]) -> Condition | None:
    """From the latest conclusive quality windows of the version in service, oldest first."""
    if not latest:
        return None
    newest = latest[-1]
    figures = newest.payload
    bad = sustained([each.verdict is Verdict.FAIL for each in latest])
    if bad:
        count = sum(each.verdict is Verdict.FAIL for each in latest)
        figures = _told(latest, lambda each: each.verdict is Verdict.FAIL).payload
        lost = abs(figures["value"] - figures["expected"]) / abs(figures["expected"])
        return Raised(
            Kind.QUALITY,
            newest.version,
            newest.window.end,
            f"{figures['metric']} is {figures['value']:.4f}, {lost:.1%} worse than the "
            f"{figures['expected']:.4f} expected (bad in {count} of the last {len(latest)} windows)",
            {"figures": dict(figures), "windows": _spans(latest)},
        )
    if bad is False:
        return Cleared(
            Kind.QUALITY, newest.window.end, f"{figures['metric']} is back at {figures['value']:.4f}"
        )
    return None


def availability_conditions(hours: Sequence[StableHour], availability: float) -> list[Condition]:
    """From the stable arm's hours, oldest first: the newest that hold 20 requests.

    `availability` is the promised share (0.999). Two things are told apart: requests that got no answer at all, and
    requests that got a stand-in (a kept or the default answer) because no model answered. Nobody who looks at errors
    alone would see the second, so it is an alert of its own, as soon as it would have been an outage.
    """
    n = errors = stood_in = 0
    newest, version = None, 0
    for each in reversed(hours):
        if newest is None:
            newest, version = each.hour, each.version
        n, errors, stood_in = n + each.n, errors + each.errors, stood_in + each.stood_in
        if n >= MIN_REQUESTS:
            break
    if newest is None or n < MIN_REQUESTS:
        return []
    budget, failed = 1 - availability, errors - stood_in
    found: list[Condition] = []
    for kind, count, told, over in (
        (Kind.UNAVAILABLE, failed, "got no answer", f"{n - failed} of the last {n} requests were answered"),
        (Kind.DEGRADED, stood_in, "got a kept or the default answer instead of a model's",
         f"{n - errors} of the last {n} requests were answered by the model"),
    ):  # fmt: skip
        share = count / n
        if count >= MIN_ERRORS and share >= FAST_BURN * budget:
            title = f"{share:.1%} of requests {told} ({count} of {n}), {budget:.2%} is promised at most"
            figures = {"errors": errors, "stood_in": stood_in, "requests": n}
            burn = share / budget if budget else None
            found.append(Raised(kind, version, newest, title, {**figures, "burn_rate": burn}))
        elif share <= budget:
            found.append(Cleared(kind, newest, over))
    return found


def latency_conditions(hours: Sequence[StableHour], p99_ms: float) -> list[Condition]:
    """From the stable arm's hours, oldest first: the newest that hold 300 measured predictions.

    p99 below `p99_ms` is promised, so at most one in a hundred may take longer. It holds when more did with 95 %
    confidence (Wilson's interval), and is over when no more did. What a request waits besides is not in it: the promise
    cannot be kept when the model alone breaks it.
    """
    latency, newest, version = LatencyHistogram(), None, 0
    for each in reversed(hours):
        if newest is None:
            newest, version = each.hour, each.version
        latency = latency + each.latency
        if latency.n >= MIN_MEASURED:
            break
    n = latency.n
    if newest is None or n < MIN_MEASURED:
        return []
    over = latency.above(1000 * p99_ms)
    p99 = latency.quantile(0.99) / 1000
    if wilson(over, n).low > 0.01:
        title = (
            f"{over / n:.1%} of predictions took over {p99_ms:g} ms ({over} of {n}), 1% is promised at most"
        )
        figures = {"over": over, "predictions": n, "p99_ms": p99, "promised_ms": p99_ms}
        return [Raised(Kind.SLOW, version, newest, title, figures)]
    if over <= 0.01 * n:
        return [Cleared(Kind.SLOW, newest, f"p99 of the last {n} predictions is {p99:.3g} ms")]
    return []


def _told(latest: Sequence[Judged], is_bad: Callable[[Judged], bool]) -> Judged:
    """The newest window that was bad: the newest of all may have been a good one, and its figures no reason."""
    return next(each for each in reversed(latest) if is_bad(each))


def _is_alarm(column: str, judged: Judged) -> bool:
    return _level(judged, column) == Level.ALARM


def _level(judged: Judged, column: str) -> str:
    return str(judged.payload["columns"].get(column, {}).get("level", Level.UNKNOWN))


def _alarms(latest: Sequence[Judged], column: str) -> list[bool]:
    levels = [_level(each, column) for each in latest]
    return [level == Level.ALARM for level in levels if level != Level.UNKNOWN][-LATEST:]


def _spans(latest: Sequence[Judged]) -> list[str]:
    return [f"{each.window.start:%Y-%m-%d}: {each.verdict}" for each in latest[-max(LATEST, SUSTAINED) :]]
