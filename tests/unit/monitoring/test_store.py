from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import Conflict, NotFound
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store
from loopwright.monitoring.alerts import (
    Alert,
    AlertState,
    Cleared,
    Kind,
    Open,
    Raised,
    Renew,
    Resolve,
    Tier,
    changes,
)
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import Reference, build_reference

HOUR = timedelta(hours=1)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
REFERENCE = build_reference({"x": np.arange(100.0)})


def fold(
    hour: datetime, n: int, *, errors: int = 0, arm: str = "stable", reference: Reference = REFERENCE
) -> Fold:
    latency = LatencyHistogram()
    latency.add(np.full(n, 700.0))
    profile = reference.count({"x": np.full(n - errors, 3.0)})
    return Fold(
        model="m", version=1, arm=arm, bucket=to_us(hour), n=n, errors=errors, fallbacks=0,
        latency=latency.to_json(), profile=profile.to_json(),
    )  # fmt: skip


def test_folds_of_an_hour_add_up_and_hours_are_summed_half_open(ledger: Ledger) -> None:
    with ledger.write() as conn:
        for each in (
            fold(NOON, 10, errors=2),
            fold(NOON, 5),
            fold(NOON + HOUR, 7),
            fold(NOON, 3, arm="shadow"),
        ):
            store.apply_fold(conn, each)
        counts = store.arm_counts(conn, "m", 1, "stable", NOON, NOON + HOUR)
        assert (counts.n, counts.errors, counts.profile.rows, counts.latency.n) == (15, 2, 13, 15)
        assert store.arm_counts(conn, "m", 1, None, NOON, NOON + 2 * HOUR).n == 22
        assert store.arm_counts(conn, "m", 2, "stable", NOON, NOON + HOUR).n == 0
        assert store.served_hours(conn, "m", NOON, NOON + 5 * HOUR) == [(NOON, 1), (NOON + HOUR, 1)]
        beside = conn.exec_driver_sql(
            "SELECT arm, sum(answers), sum(errors) FROM lw_folds GROUP BY arm ORDER BY arm"
        )
        assert [tuple(row) for row in beside] == [("shadow", 3, 0), ("stable", 22, 2)]


def test_a_fold_on_other_bins_is_counted_but_not_profiled(ledger: Ledger) -> None:
    other = build_reference({"x": np.arange(10.0)}, bins=3)
    with ledger.write() as conn:
        store.apply_fold(conn, fold(NOON, 10))
        store.apply_fold(conn, fold(NOON, 4, reference=other))
        counts = store.arm_counts(conn, "m", 1, "stable", NOON, NOON + HOUR)
    assert (counts.n, counts.profile.rows, counts.unprofiled) == (14, 10, 4)


def test_columns_that_come_and_go_are_each_summed_and_do_not_grow_without_bound(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_COLUMNS", 3)

    def of(*names: str) -> Fold:
        made = build_reference({name: np.arange(100.0) for name in names})
        profile = made.count({name: np.full(4, 3.0) for name in names})
        return msgspec.structs.replace(fold(NOON, 4), profile=profile.to_json())

    with ledger.write() as conn:
        for each in (of("x", "y"), of("x"), of("x", "z"), of("invented", "names")):
            store.apply_fold(conn, each)
        counts = store.arm_counts(conn, "m", 1, "stable", NOON, NOON + HOUR)
    assert {name: int(column.sum()) for name, column in counts.profile.columns.items()} == {
        "x": 12,
        "y": 4,
        "z": 4,
    }
    assert (counts.n, counts.profile.rows, counts.unprofiled) == (16, 12, 4)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_counts_merge_in_any_order(sizes: list[int]) -> None:
    made = [
        store.FoldCounts(n, 0, 0, LatencyHistogram(), REFERENCE.count({"x": np.arange(float(n))}))
        for n in sizes
    ]
    forward, backward = sum(made, store.FoldCounts()), sum(made[::-1], store.FoldCounts())
    assert forward.n == backward.n == sum(sizes)
    assert forward.profile == backward.profile


def test_a_watermark_never_goes_back(ledger: Ledger) -> None:
    with ledger.write() as conn:
        assert store.watermark(conn, "m") is None
        for moment in (NOON, NOON + HOUR, NOON):
            store.raise_watermark(conn, "m", moment)
        assert store.watermark(conn, "m") == NOON + HOUR


def raised(kind: Kind = Kind.DRIFT, title: str = "moved", at: datetime = NOON) -> Raised:
    return Raised(kind, 1, at, title, {"psi": 0.4})


def test_an_alert_lives_from_open_over_acknowledged_to_resolved(ledger: Ledger) -> None:
    ann = Actor("ann", Role.DEVELOPER)
    with ledger.write() as conn:
        alert = store.open_alert(conn, "m", raised(), "drift@1", NOON)
        assert alert is not None
        assert store.open_alert(conn, "m", raised(), "drift@1", NOON) is None
        assert store.acknowledge(conn, alert.id, ann, NOON).by == "ann"
        store.renew_alert(conn, alert, raised(title="moved more"), NOON)
        (standing,) = store.list_alerts(conn, "m", standing=True)
        assert (standing.title, standing.state, standing.tier) == (
            "moved more",
            AlertState.ACKNOWLEDGED,
            Tier.P2,
        )
        store.resolve_alert(conn, standing, "back", NOON)
        assert store.list_alerts(conn, "m", standing=True) == []
        assert store.get_alert(conn, alert.id).detail["resolved"] == "back"
        with pytest.raises(Conflict):
            store.acknowledge(conn, alert.id, ann, NOON)
        with pytest.raises(NotFound):
            store.acknowledge(conn, "al_none", ann, NOON)


def standing(kind: Kind) -> Alert:
    return Alert("al", "m", 1, Tier.P2, kind, "k", "moved", {}, NOON, NOON, AlertState.OPEN, None, NOON)


def test_a_lasting_condition_renews_its_alert_and_says_nothing_when_equal() -> None:
    alert = standing(Kind.DRIFT)
    assert changes([], [raised()]) == [Open(raised(), "drift@2013-07-01T12:00:00Z")]
    assert changes([alert], [raised()]) == []
    more = raised(title="moved more")
    assert changes([alert], [more]) == [Renew(alert, more)]


def test_only_its_own_condition_ends_an_alert() -> None:
    alert = standing(Kind.DRIFT)
    assert changes([alert], []) == []
    assert changes([alert], [Cleared(Kind.QUALITY, NOON, "fine")]) == []
    assert changes([alert], [Cleared(Kind.DRIFT, NOON, "fine")]) == [Resolve(alert, "fine")]
