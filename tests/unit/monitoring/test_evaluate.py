from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import evaluate as module
from loopwright.monitoring import store
from loopwright.stats.profile import build_reference

MONDAY = datetime(2013, 4, 1, tzinfo=UTC)


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
