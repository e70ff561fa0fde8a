"""What is kept of experiments, on SQLite and PostgreSQL."""

from datetime import UTC, datetime, timedelta

from loopwright.bundle.routes import Arm
from loopwright.delivery.store import (
    Experiment,
    active_experiment,
    add_experiment,
    end_experiment,
    list_experiments,
)
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ADA = Actor("ada", Role.APPROVER)


def experiment(model: str, at: datetime) -> Experiment:
    variants = (Arm("b", 1, 0.3), Arm("c", 3, 0.1))
    return Experiment(
        new_id("exp"), model, 2, variants, "salt", "running", at, at - timedelta(days=1), None, None, "ada", "why", ""
    )  # fmt: skip


def test_an_experiment_is_kept_until_it_ends_and_told_afterwards(ledger: Ledger, model: str) -> None:
    one = experiment(model, NOON)
    with ledger.write() as conn:
        add_experiment(conn, one)
    with ledger.read() as conn:
        assert active_experiment(conn, model) == one
        assert active_experiment(conn, f"{model}-other") is None
    with ledger.write() as conn:
        ended = end_experiment(conn, one, why="enough", now=NOON, event_time=NOON, actor=ADA)
    other = experiment(model, NOON + timedelta(hours=1))
    with ledger.write() as conn:
        add_experiment(conn, other)
    with ledger.read() as conn:
        assert list_experiments(conn, model) == [other, ended]
        (row,) = ledger_store.rows(conn, subject=model, action="experiment.stopped")
    assert (ended.status, ended.until, ended.ended_why, row.actor) == ("stopped", NOON, "enough", "ada")
    assert [(arm.name, round(arm.weight, 9)) for arm in other.arms] == [
        ("stable", 0.6),
        ("b", 0.3),
        ("c", 0.1),
    ]
