from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from loopwright.kernel.clock import to_us
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import evaluate as module
from loopwright.monitoring import store
from loopwright.monitoring.labels import outcomes
from loopwright.serving.events import Event
from loopwright.serving.fold import fold_events
from loopwright.stats.profile import build_reference

MONDAY = datetime(2013, 4, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def verdicts(world: Any, kind: str, version: int | None = None) -> list[Verdict]:
    with world.ledger.read() as conn:
        return [each.verdict for each in store.list_windows(conn, "flight-late", kind=kind, version=version)]


def standing(world: Any) -> dict[str, Any]:
    with world.ledger.read() as conn:
        return {alert.kind.value: alert for alert in store.list_alerts(conn, "flight-late", standing=True)}


def test_quiet_weeks_pass_and_raise_nothing(world: Any) -> None:
    world.expected = 0.77
    world.weeks(4)
    assert verdicts(world, "drift") == [Verdict.PASS] * 4
    assert verdicts(world, "prediction") == [Verdict.PASS] * 4
    assert verdicts(world, "quality") == [Verdict.PASS] * 4
    assert standing(world) == {}


def test_drift_is_an_alert_in_the_second_bad_week_and_ends_after_two_good_ones(world: Any) -> None:
    world.weeks(1, shift=1.5)
    assert "drift" not in standing(world)
    (second,) = world.weeks(1, first=1, shift=1.5)
    assert [(a.tier, a.kind) for a in second.opened] == [("P2", "drift")]
    assert "distance" in standing(world)["drift"].title
    assert "wind" not in standing(world)["drift"].title
    world.weeks(1, first=2)
    assert "drift" in standing(world)
    (last,) = world.weeks(1, first=3)
    assert [a.kind for a in last.resolved] == ["drift"]
    assert standing(world) == {}


def test_a_condition_that_lasts_is_one_alert_and_one_that_returns_another(world: Any) -> None:
    world.weeks(4, shift=1.5)
    world.weeks(3, first=4)
    world.weeks(2, first=7, shift=1.5)
    with world.ledger.read() as conn:
        keys = [alert.key for alert in store.list_alerts(conn, "flight-late") if alert.kind == "drift"]
    assert len(keys) == len(set(keys)) == 2


def test_a_loss_of_quality_is_a_p1_once_confirmed_on_delayed_labels(world: Any) -> None:
    world.expected = 0.77
    looks = world.weeks(3, skill=0.3)
    assert verdicts(world, "quality") == [Verdict.FAIL] * 3
    assert [(a.tier, a.kind) for a in looks[1].opened if a.kind == "quality"] == [("P1", "quality")]
    assert not [a for look in (looks[0], looks[2]) for a in look.opened if a.kind == "quality"]


def test_quality_waits_for_nine_tenths_of_the_labels_but_not_for_ever(world: Any) -> None:
    start = MONDAY
    world.serve(start, 7, labelled=0.5)
    world.pass_time(start + timedelta(days=9))
    assert "quality" not in {each.kind for each in world.look().windows}
    missing = [event.id for event in world.sent]
    world.pass_time(start + timedelta(days=36))
    assert "quality" not in {each.kind for each in world.look().windows}
    world.pass_time(start + timedelta(days=38))
    (judged,) = [each for each in world.look().windows if each.kind == "quality"]
    assert judged.payload["coverage"] == pytest.approx(0.5, abs=0.05)
    assert len(missing) == judged.payload["answered"]


def test_labels_that_come_in_a_second_batch_complete_the_window(world: Any) -> None:
    start = MONDAY
    world.serve(start, 7, labelled=0.3)
    world.pass_time(start + timedelta(days=9))
    assert "quality" not in {each.kind for each in world.look().windows}
    rest = [event.id for event in world.sent]
    world.label(rest, [1.0] * len(rest), [start + timedelta(days=8)] * len(rest))
    assert "quality" in {each.kind for each in world.look().windows}


def test_a_look_when_nothing_has_become_complete_reads_no_folds(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.weeks(1)
    monkeypatch.setattr(store, "daily_counts", None)
    monkeypatch.setattr(module, "outcomes", None)
    monkeypatch.setattr(world.ledger.__class__, "write", None)
    assert world.look() == module.Evaluation("flight-late", MONDAY + timedelta(days=8, hours=12))


def test_windows_too_small_for_a_verdict_get_none(world: Any) -> None:
    world.weeks(3, rows=400, shift=3.0, skill=0.0)
    assert verdicts(world, "drift") == [Verdict.INCONCLUSIVE] * 3
    assert verdicts(world, "quality") == [Verdict.INCONCLUSIVE] * 3
    assert standing(world) == {}


def test_users_without_answers_are_a_p0_within_the_hour(world: Any) -> None:
    start = MONDAY
    world.serve(start, 0.5, rows=1200)
    assert world.look().opened == ()
    world.serve(start + timedelta(hours=12), 1 / 24, rows=100, errors=0.5)
    world.pass_time(start + timedelta(hours=13, minutes=1))
    (alert,) = world.look().opened
    assert (alert.tier, alert.kind) == ("P0", "unavailable")
    world.serve(start + timedelta(hours=13, minutes=2), 1 / 24, rows=100)
    world.pass_time(start + timedelta(hours=15))
    assert [a.kind for a in world.look().resolved] == ["unavailable"]


def stand_in(world: Any, start: datetime, rows: int) -> None:
    """Answers that no model gave: kept ones and the default, half each."""
    moments = [to_us(start) + number for number in range(rows)]
    events = [
        Event(
            f"s{moment}", "u", moment, moment, world.spec.model, 1, ("cache", "default")[place % 2], 0, "fallback", "",
            [1e9, 1e9], [0.5],
        )
        for place, moment in enumerate(moments)
    ]  # fmt: skip
    world.log.append(events, f"stand-in-{moments[0]}")
    with world.ledger.write() as conn:
        for fold in fold_events(events, lambda model, version: None):
            store.apply_fold(conn, fold)


def test_requests_that_a_stand_in_answered_are_no_outage_and_an_alert_of_their_own(world: Any) -> None:
    start = MONDAY
    world.serve(start, 0.5, rows=1200)
    world.look()
    # Half of the requests fail, and every one of those is given a kept or default answer.
    world.serve(start + timedelta(hours=12), 1 / 24, rows=100, errors=0.5)
    failed = sum(event.status == "error" for event in world.sent)
    stand_in(world, start + timedelta(hours=12, minutes=1), failed)
    world.pass_time(start + timedelta(hours=13, minutes=1))
    (alert,) = world.look().opened
    assert (alert.tier, alert.kind) == ("P1", "degraded")
    assert alert.detail["stood_in"] == alert.detail["errors"] == failed
    assert alert.detail["requests"] == 100
    # The breaker opens: stable is not asked any more, and nothing but stand-ins answers.
    stand_in(world, start + timedelta(hours=13, minutes=5), 60)
    world.pass_time(start + timedelta(hours=14, minutes=1))
    assert world.look().opened == ()
    assert standing(world)["degraded"].detail["stood_in"] == 60
    world.serve(start + timedelta(hours=14, minutes=2), 1 / 24, rows=100)
    world.pass_time(start + timedelta(hours=16))
    assert [each.kind for each in world.look().resolved] == ["degraded"]


def test_stand_ins_are_in_no_profile_no_quality_and_no_count_of_the_versions_answers(world: Any) -> None:
    world.weeks(1)
    with world.ledger.read() as conn:
        before = store.arm_counts(conn, world.spec.model, 1, None, MONDAY, MONDAY + timedelta(weeks=1))
    answered = outcomes(
        world.log,
        world.labels,
        model=world.spec.model,
        start=MONDAY,
        end=MONDAY + timedelta(weeks=1),
        until=NOW,
    ).answered
    stand_in(world, MONDAY + timedelta(days=1), 500)
    with world.ledger.read() as conn:
        after = store.arm_counts(conn, world.spec.model, 1, None, MONDAY, MONDAY + timedelta(weeks=1))
    assert (before.n, before.profile) == (after.n, after.profile)
    assert (
        answered
        == outcomes(
            world.log,
            world.labels,
            model=world.spec.model,
            start=MONDAY,
            end=MONDAY + timedelta(weeks=1),
            until=NOW,
        ).answered
    )


def test_answers_of_a_variant_are_the_versions_own(world: Any) -> None:
    world.serve(MONDAY, 7, rows=4000, version=2, arm="variant-b", shift=1.5)
    world.pass_time(MONDAY + timedelta(days=8, hours=12))
    judged = {each.kind: each for each in world.look().windows}
    assert judged["drift"].payload["n"] == 4000
    assert judged["drift"].verdict is Verdict.FAIL
    assert judged["quality"].payload["answered"] == 4000


def test_an_input_that_is_not_logged_raises_no_drift_and_the_others_are_still_watched(world: Any) -> None:
    world.serve(MONDAY, 3, rows=2000)
    # From Thursday on the distance is redacted: the week's profile has it for half of the rows.
    world.serve(MONDAY + timedelta(days=3), 4, rows=2000, redacted=["distance"], seed=1)
    world.pass_time(MONDAY + timedelta(days=8, hours=12))
    (drift,) = [each for each in world.look().windows if each.kind == "drift"]
    assert drift.verdict is Verdict.PASS
    assert drift.payload["columns"]["distance"]["rows"] == 2000
    assert drift.payload["columns"]["distance"]["null_share"] == 0.0
    assert drift.payload["unprofiled"] == 0
    world.serve(MONDAY + timedelta(weeks=1), 7, rows=2000, redacted=["distance"], seed=2)
    world.pass_time(MONDAY + timedelta(days=15, hours=12))
    (drift,) = [each for each in world.look().windows if each.kind == "drift"]
    assert set(drift.payload["columns"]) == {"wind"}
    assert drift.verdict is Verdict.PASS


def test_a_new_version_is_judged_against_its_own_training_data(world: Any) -> None:
    world.weeks(2, shift=1.5)
    assert standing(world)["drift"].version == 1
    old, world.reference = world.reference, shifted_reference()
    world.weeks(2, first=2, shift=1.5, version=2)
    assert verdicts(world, "drift", version=2) == [Verdict.PASS] * 2
    assert "drift" not in standing(world)
    assert old is not world.reference


def test_shadow_traffic_is_not_what_users_saw(world: Any) -> None:
    start = MONDAY
    world.serve(start, 7)
    world.serve(start, 7, version=2, arm="shadow", shift=3.0)
    world.pass_time(start + timedelta(days=9))
    assert {each.version for each in world.look().windows} == {1}


def test_an_alert_is_in_the_audit_log(world: Any) -> None:
    world.weeks(2, shift=1.5)
    with world.ledger.read() as conn:
        assert ledger_store.verify(conn).ok
        (row,) = ledger_store.rows(conn, action="alert.open")
    assert row.payload["tier"] == "P2"


def test_looking_twice_changes_nothing(world: Any) -> None:
    world.weeks(2, shift=1.5)
    before = standing(world)
    with world.ledger.write() as conn:
        store.save_progress(conn, "flight-late", {})
    again = world.look()
    assert again.windows == ()
    assert standing(world) == before


def shifted_reference() -> Any:
    random = np.random.default_rng(1)
    return build_reference(
        {
            "distance": random.normal(1450, 300, 20_000),
            "wind": random.gamma(2, 5, 20_000),
            "@prediction": random.random(20_000),
        }
    )
