"""What monitoring and retraining keep in the ledger, on every engine."""

from datetime import UTC, datetime, timedelta

import numpy as np

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store
from loopwright.monitoring.alerts import AlertState, Kind, Raised
from loopwright.monitoring.store import JudgedWindow
from loopwright.monitoring.windows import StableHour, Window
from loopwright.retraining import store as retrains
from loopwright.retraining.policy import Cause, Run, Suppress, Trigger
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import build_reference

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def fold(n: int) -> Fold:
    latency = LatencyHistogram()
    latency.add(np.full(n, 900.0))
    profile = build_reference({"x": np.arange(50.0)}).count({"x": np.zeros(n)})
    return Fold(
        model="m",
        version=1,
        arm="stable",
        bucket=to_us(NOON),
        n=n,
        errors=0,
        fallbacks=0,
        latency=latency.to_json(),
        profile=profile.to_json(),
    )


def test_folds_and_watermarks_add_up(any_ledger: Ledger) -> None:
    with any_ledger.write() as conn:
        for n in (3, 4):
            store.apply_fold(conn, fold(n))
            store.raise_watermark(conn, "m", NOON - timedelta(hours=n))
    with any_ledger.read() as conn:
        counts = store.arm_counts(conn, "m", 1, None, NOON, NOON + WEEK)
        assert (counts.n, counts.profile.rows, counts.latency.n) == (7, 7, 7)
        assert store.arm_tally(conn, "m", 1, "stable", NOON, NOON + WEEK)[0] == 7
        (hour,) = store.stable_hours(conn, "m", NOON, NOON + WEEK)
        assert hour == StableHour(NOON, 1, 7, 0, 0, counts.latency)
        assert store.first_hour(conn, "m", version=1) == NOON
        assert list(store.monitored_models(conn)) == [("m", NOON - timedelta(hours=3))]


def test_the_first_verdict_on_a_window_stands(any_ledger: Ledger) -> None:
    def judged(verdict: Verdict, week: int = 0) -> JudgedWindow:
        window = Window(NOON + week * WEEK, NOON + (week + 1) * WEEK)
        return JudgedWindow("m", 1, "drift", window, verdict, {"rows": 1}, NOON)

    with any_ledger.write() as conn:
        assert store.record_window(conn, judged(Verdict.PASS))
        assert not store.record_window(conn, judged(Verdict.FAIL))
        assert store.record_window(conn, judged(Verdict.FAIL, week=1))
        assert [each.verdict for each in store.list_windows(conn, "m")] == [Verdict.PASS, Verdict.FAIL]
        (newest,) = store.list_windows(conn, "m", kind="drift", version=1, limit=1)
        assert newest == judged(Verdict.FAIL, week=1)


def test_alerts_and_label_batches_are_recorded_once(any_ledger: Ledger) -> None:
    raised = Raised(Kind.QUALITY, 1, NOON, "worse", {"value": 0.6})
    with any_ledger.write() as conn:
        alert = store.open_alert(conn, "m", raised, "quality@1", NOON)
        assert alert is not None
        assert store.open_alert(conn, "m", raised, "quality@1", NOON) is None
        after = store.acknowledge(conn, alert.id, Actor("ann", Role.DEVELOPER), NOON)
        assert after.state is AlertState.ACKNOWLEDGED
        batch = {"batch_id": "lb_1", "model": "m", "rows": 3, "path": "p", "now": NOON}
        known = {"available_from": NOON, "available_to": NOON}
        assert store.record_label_batch(conn, **batch, **known)  # type: ignore[arg-type]
        assert not store.record_label_batch(conn, **batch, **known)  # type: ignore[arg-type]
        assert store.label_batch_count(conn, "m") == 1


def test_a_retrain_changes_its_mind_until_it_runs(any_ledger: Ledger) -> None:
    trigger = Trigger(Cause.DRIFT, NOON, "drift:al_1:v1", "moved")
    with any_ledger.write() as conn:
        first = retrains.record(conn, "m", trigger, Suppress("look first", "evaluate"), {"as_of": "x"}, NOON)
        assert first is not None
        assert first.state == "suppressed"
        assert retrains.record(conn, "m", trigger, Suppress("look again", "evaluate"), {}, NOON) is None
        second = retrains.record(conn, "m", trigger, Run("labels have come"), {"as_of": "y"}, NOON)
        assert second is not None
        assert (second.id, second.state, second.plan["as_of"]) == (first.id, "proposed", "y")
        assert retrains.record(conn, "m", trigger, Suppress("no", "cooldown"), {}, NOON) is None
        assert retrains.newest_run(conn, "m") == NOON
        assert retrains.busy_with(conn, "m") == f"run {first.id} is under way"
        before = retrains.fingerprint(conn, "m", NOON)
        retrains.mark(conn, first.id, "succeeded", run_id="r", version=2, now=NOON + WEEK)
        assert retrains.fingerprint(conn, "m", NOON) != before
        retrains.keep_fingerprint(conn, "m", before)
        assert retrains.last_fingerprint(conn, "m") == before
