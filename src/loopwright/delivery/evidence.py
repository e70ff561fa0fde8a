"""Reads what a rollout's next decision rests on: counts from the folds, the smoke test from the bundle."""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.keys import PublicKey
from loopwright.delivery.judge import ArmCounts
from loopwright.delivery.rollout import Canary, Evidence, Moving, Paused, Shadow, Smoke, State
from loopwright.delivery.store import Rollout
from loopwright.kernel.errors import LoopwrightError, Refused
from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.store import arm_tally

# Blue-green leaves stable without traffic: it is compared with stable's last day before the switch.
_LOOK_BACK = timedelta(days=1)


def gather(
    conn: Connection,
    rollout: Rollout,
    *,
    until: datetime,
    smoke: Verdict | None = None,
    agreement: Mapping[str, Any] | None = None,
) -> Evidence:
    """Read the counts of both arms since the phase began, up to event time `until` (inclusive). Reads only.

    Counts lie in hours of event time: the hour in which the phase began counts whole.
    """
    at = _inside(rollout.state)
    if at is None or rollout.baseline is None or isinstance(at, Smoke):
        return Evidence(smoke=smoke)
    began = min(at.began if isinstance(at, Canary) else at.since, until)
    arm = "shadow" if isinstance(at, Shadow) else "canary"
    stable_since = began - _LOOK_BACK if isinstance(at, Canary) and at.weight == 1.0 else began
    end = until + timedelta(microseconds=1)
    return Evidence(
        baseline=_counts(conn, rollout.model, rollout.baseline, "stable", stable_since, end),
        candidate=_counts(conn, rollout.model, rollout.version, arm, began, end),
        agreement=dict(agreement) if agreement is not None else None,
    )


def smoke_test(path: Path, keys: Sequence[PublicKey], trusted: Container[str] | None = None) -> Verdict:
    """Predict the golden rows of the bundle at `path`: PASS, FAIL (other answers), ERROR (will not open).

    `trusted`: digests of pickled models that may be loaded now, as `open_bundle` takes them.
    """
    # ONNX Runtime is loaded only by the processes that really test.
    from loopwright.bundle.open import open_bundle

    try:
        bundle = open_bundle(path, keys, trusted=trusted)
    except LoopwrightError:
        return Verdict.ERROR
    try:
        bundle.smoke()
    except Refused:
        return Verdict.FAIL
    return Verdict.PASS


def _inside(state: State) -> Moving | None:
    if isinstance(state, Paused):
        return state.inner
    return state if isinstance(state, Moving) else None


def _counts(
    conn: Connection, model: str, version: int, arm: str, since: datetime, until: datetime
) -> ArmCounts:
    # Folds are by the hour; the one in which the span begins is part of it.
    hour = since.replace(minute=0, second=0, microsecond=0)
    n, errors, latency = arm_tally(conn, model, version, arm, hour, until)
    return ArmCounts(n, errors, latency)
