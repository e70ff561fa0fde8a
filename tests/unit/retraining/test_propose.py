from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused
from loopwright.kernel.home import Home
from loopwright.ledger import schema
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import Alert, AlertState, Kind, Raised, Tier
from loopwright.project.spec import Spec
from loopwright.retraining import store
from loopwright.retraining.propose import propose, retrain_now, tick
from loopwright.retraining.triggers import Broken, Landed, Situation

NOW = datetime(2026, 11, 22, tzinfo=UTC)
JULY = datetime(2013, 7, 1, tzinfo=UTC)
MODEL = "flight-late"


def spec(**retraining: Any) -> Spec:
    section = {"on": ["drift", "quality_drop", "source_change"], "cooldown": "2d", **retraining}
    return Spec.from_json(
        {
            "model": MODEL,
            "task": "binary",
            "data": {
                "sources": {"flights": {"uri": "f.csv", "contract": "c.yaml"}},
                "label": {"name": "late"},
            },
            "retraining": section,
        }
    )


def alert(kind: Kind, id: str = "al_1", version: int = 1) -> Alert:
    return Alert(
        id,
        MODEL,
        version,
        Tier.P1,
        kind,
        f"{kind}@x",
        f"{kind} went wrong",
        {},
        JULY,
        NOW,
        AlertState.OPEN,
        None,
        NOW,
    )


def situation(*alerts: Alert, at: datetime = JULY, **facts: Any) -> Situation:
    return Situation(at, facts.pop("learned_until", at - timedelta(days=3)), alerts, **facts)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    opened.migrate()
    yield opened
    opened.dispose()


def look(
    ledger: Ledger, what: Situation, *, busy: str | None = None, rows: int = 0, **section: Any
) -> list[store.Retrain]:
    with ledger.write() as conn:
        return propose(conn, spec=spec(**section), situation=what, trained_rows=rows, busy=busy, now=NOW)


def test_a_loss_of_quality_proposes_a_run_with_its_reason_and_an_audit_row(ledger: Ledger) -> None:
    (retrain,) = look(ledger, situation(alert(Kind.QUALITY), fresh_labels=4000))
    assert (retrain.decision, retrain.state, retrain.cause) == ("run", "proposed", "quality drop")
    assert retrain.plan["as_of"] == "2013-07-01T00:00:00Z"
    assert retrain.plan["reason"].startswith("quality drop: quality went wrong")
    with ledger.read() as conn:
        (row,) = ledger_store.rows(conn, action="retrain.run")
    assert row.payload["retrain"] == retrain.id


def test_the_same_alert_is_answered_once_and_for_a_new_version_again(ledger: Ledger) -> None:
    look(ledger, situation(alert(Kind.QUALITY)))
    later = JULY + timedelta(days=20)
    assert [r.decision for r in look(ledger, situation(alert(Kind.QUALITY), at=later))] == []
    assert [r.decision for r in look(ledger, situation(alert(Kind.QUALITY, version=2), at=later))] == ["run"]


def test_drift_waits_for_labels_in_one_row_that_changes_its_mind(ledger: Ledger) -> None:
    (first,) = look(ledger, situation(alert(Kind.DRIFT), fresh_labels=100), rows=50_000)
    assert (first.decision, first.plan["rule"]) == ("suppress", "evaluate")
    assert look(ledger, situation(alert(Kind.DRIFT), fresh_labels=4_999), rows=50_000) == []
    (second,) = look(ledger, situation(alert(Kind.DRIFT), fresh_labels=5_000), rows=50_000)
    assert (second.id, second.decision) == (first.id, "run")


def test_a_schedule_fires_when_its_time_has_passed_and_there_is_something_new(ledger: Ledger) -> None:
    early = situation(learned_until=JULY - timedelta(days=6), fresh_labels=10)
    assert look(ledger, early, schedule="weekly") == []
    due = situation(learned_until=JULY - timedelta(days=7), fresh_labels=10)
    (retrain,) = look(ledger, due, schedule="weekly")
    assert retrain.cause == "schedule"
    assert "since 2013-06-24" in retrain.why


def test_only_one_of_several_causes_starts_a_run(ledger: Ledger) -> None:
    everything = situation(
        alert(Kind.QUALITY),
        alert(Kind.DRIFT, "al_2"),
        learned_until=JULY - timedelta(days=40),
        fresh_labels=10**6,
    )
    assert [r.cause for r in look(ledger, everything, schedule="weekly")] == ["quality drop"]


def test_a_model_with_a_version_on_its_way_is_left_alone(ledger: Ledger) -> None:
    assert look(ledger, situation(alert(Kind.QUALITY)), busy="version 2 waits for approval") == []


def test_a_broken_contract_asks_even_then(ledger: Ledger) -> None:
    broken = situation(alert(Kind.QUALITY), broken=[Broken("flights", "b1", "a column vanished")])
    (retrain,) = look(ledger, broken, busy="something")
    assert (retrain.decision, retrain.state) == ("ask", "waiting")
    assert "a column vanished" in retrain.why


def test_a_major_batch_is_a_source_change_and_a_small_one_is_not(ledger: Ledger) -> None:
    assert look(ledger, situation(landed=[Landed("flights", "b1", 10, 1000)])) == []
    (retrain,) = look(ledger, situation(landed=[Landed("flights", "b2", 500, 1000)]))
    assert retrain.cause == "source change"


def test_causes_that_the_project_does_not_heed_do_nothing(ledger: Ledger) -> None:
    assert look(ledger, situation(alert(Kind.DRIFT), fresh_labels=10**6), on=["quality_drop"]) == []


def test_a_person_may_ask_at_any_time_but_not_twice_at_once(ledger: Ledger) -> None:
    ann = Actor("ann", Role.DEVELOPER)
    with ledger.write() as conn:
        asked = retrain_now(conn, model=MODEL, actor=ann, why="new carrier", event_time=JULY, now=NOW)
        assert asked.state == "proposed"
        with pytest.raises(Conflict):
            retrain_now(conn, model=MODEL, actor=ann, why="again", event_time=JULY, now=NOW)
        with pytest.raises(Refused):
            retrain_now(
                conn, model=MODEL, actor=Actor("eve", Role.VIEWER), why="me", event_time=JULY, now=NOW
            )


def test_what_became_of_a_run_is_kept(ledger: Ledger) -> None:
    (retrain,) = look(ledger, situation(alert(Kind.QUALITY)))
    with ledger.write() as conn:
        assert store.busy_with(conn, MODEL) == f"run {retrain.id} is under way"
        done = store.mark(conn, retrain.id, "succeeded", run_id="r1", version=2, now=NOW)
        assert (done.state, done.run_id, done.version) == ("succeeded", "r1", 2)
        assert store.mark(conn, retrain.id, "failed", now=NOW).run_id == "r1"
        assert store.busy_with(conn, MODEL) is None
        with pytest.raises(BadInput):
            store.mark(conn, retrain.id, "lost", now=NOW)
        with pytest.raises(NotFound):
            store.mark(conn, "rt_nothing", "failed", now=NOW)


def serve_a_project(ledger: Ledger, event_time: datetime) -> None:
    document = canonical_json(spec(schedule="weekly").to_json()).decode()
    with ledger.write() as conn:
        conn.execute(
            schema.projects.insert().values(
                model=MODEL, path="/p", spec=document, spec_digest="d", updated_at=0
            )
        )
        conn.execute(
            schema.versions.insert().values(
                model=MODEL, version=1, bundle="b" * 64, stage="Production", author="ann",
                created_at=0, metrics="{}", annotations="{}",
            )
        )  # fmt: skip
        monitoring_store.raise_watermark(conn, MODEL, event_time)


def test_a_tick_decides_once_and_is_quiet_until_something_happens(ledger: Ledger, tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    serve_a_project(ledger, JULY)
    assert tick(ledger, home=home, now=NOW) == []
    with ledger.read() as conn:
        seen = store.last_fingerprint(conn, MODEL)
    assert seen is not None
    assert tick(ledger, home=home, now=NOW) == []
    with ledger.write() as conn:
        monitoring_store.open_alert(
            conn,
            MODEL,
            Raised(Kind.QUALITY, 1, JULY, "roc_auc fell"),
            "quality@1",
            NOW,
        )
    (retrain,) = tick(ledger, home=home, now=NOW)
    assert retrain.cause == "quality drop"
    assert tick(ledger, home=home, now=NOW) == []
