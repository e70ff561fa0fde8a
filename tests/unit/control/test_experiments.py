"""Experiments: who may start one, what traffic becomes, what stands in their way, and what they show."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from loopwright.bundle.approval import verify_record
from loopwright.bundle.routes import ModelRoute, open_routes
from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.delivery.routes import current_routes, route_table
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused
from loopwright.ledger import store as ledger_store
from loopwright.monitoring.labels import LabelLog
from loopwright.monitoring.log import PredictionLog
from loopwright.pipeline.store import save_project
from loopwright.serving.events import Event
from loopwright.serving.router import assign
from tests.unit.cli.conftest import Type, loopwright

__all__ = ["loopwright"]

Register = Callable[..., int]
People = dict[str, Context]


def call(ctx: Context, name: str, **arguments: Any) -> Any:
    return find(name)(ctx, **arguments)


def to_traffic(people: People, version: int) -> None:
    call(people["dora"], "models.promote", model="late", version=version)
    for name in ("ada", "bob"):
        call(people[name], "models.approve", model="late", version=version)
    if version > 1:
        call(people["ada"], "delivery.promote", model="late")


@pytest.fixture
def delivered(people: People, register: Register) -> People:
    """Versions 1 and 2 have had all traffic, one after the other; 3 was never approved."""
    for version in (register(), register()):
        to_traffic(people, version)
    register()
    return people


def route(ctx: Context) -> ModelRoute:
    with ctx.ledger.read() as conn:
        standing = current_routes(conn)
    assert standing is not None
    return open_routes(standing[1], [ctx.key.public]).models["late"]


def start(people: People, *variants: str, by: str = "ada", **more: Any) -> Any:
    return call(people[by], "experiments.start", model="late", variants=list(variants or ["b=1:30%"]), **more)


def test_an_approved_version_takes_its_share_and_gives_it_back(delivered: People) -> None:
    began = start(delivered, reason="does the old one sell more?")
    now = route(delivered["ada"])
    assert [(arm.name, arm.version, arm.weight) for arm in now.arms] == [("stable", 2, 0.7), ("b", 1, 0.3)]
    assert now.salt == began["salt"] == began["id"]
    record = verify_record(now.versions["1"].approval, [delivered["ada"].key.public])
    assert (record.version, record.stage, len(record.approvals)) == (1, "Production", 2)
    stopped = call(delivered["bob"], "experiments.stop", model="late")
    assert (stopped["status"], stopped["ended_why"]) == ("stopped", "stopped by bob")
    assert [(arm.name, arm.version) for arm in route(delivered["ada"]).arms] == [("stable", 2)]
    with delivered["ada"].ledger.read() as conn:
        rows = [row for row in ledger_store.iterate(conn) if row.action.startswith("experiment.")]
    assert [(row.action, row.actor, row.subject) for row in rows] == [
        ("experiment.started", "ada", "late"),
        ("experiment.stopped", "bob", "late"),
    ]
    again = start(delivered, salt=began["salt"])
    assert (again["id"] != began["id"], route(delivered["ada"]).salt) == (True, began["salt"])


def test_only_approvers_and_only_approved_versions(delivered: People) -> None:
    for name in ("dora", "vera"):
        with pytest.raises(Refused, match=f"{name} may not"):
            start(delivered, by=name)
    with pytest.raises(Refused, match="not in Production by an effective promotion"):
        start(delivered, "b=1:10%", "c=3:10%")
    with pytest.raises(NotFound):
        start(delivered, "b=77:10%")
    with pytest.raises(BadInput, match="not a variant"):
        start(delivered, "b")
    assert len(route(delivered["ada"]).arms) == 1
    with pytest.raises(NotFound, match="no experiment on late is running"):
        call(delivered["ada"], "experiments.stop", model="late")


def test_a_model_without_traffic_has_nothing_to_compare_with(people: People, register: Register) -> None:
    register()
    with pytest.raises(NotFound, match="nothing answers yet"):
        start(people)


def test_rollouts_and_experiments_keep_out_of_each_others_way(delivered: People, register: Register) -> None:
    call(delivered["dora"], "models.promote", model="late", version=3)  # asked for before, decided meanwhile
    start(delivered)
    with pytest.raises(Conflict, match="loopwright experiment stop late"):
        start(delivered, "c=1:10%")
    register()
    with pytest.raises(Conflict, match="loopwright experiment stop late"):
        call(delivered["dora"], "models.promote", model="late", version=4)
    for name in ("ada", "bob"):
        call(delivered[name], "models.approve", model="late", version=3)
    assert [arm.name for arm in route(delivered["ada"]).arms] == ["stable", "b"]
    call(delivered["ada"], "experiments.stop", model="late")
    assert {arm.version for arm in route(delivered["ada"]).arms} == {2, 3}  # what waited has begun
    with pytest.raises(Conflict, match="version 3 of late is being rolled out"):
        start(delivered)


def test_a_rollback_does_not_wait_for_an_experiment(delivered: People) -> None:
    start(delivered, "b=1:50%")
    call(delivered["ada"], "models.rollback", model="late", reason="it burns")
    assert [(arm.name, arm.version) for arm in route(delivered["ada"]).arms] == [("stable", 1)]
    (ended,) = call(delivered["vera"], "experiments.list", model="late")
    assert (ended["status"], ended["ended_why"]) == ("stopped", "rolled back: it burns")


def test_a_variant_that_loses_its_approval_leaves_its_units_to_stable_and_moves_no_other(
    delivered: People,
) -> None:
    start(delivered, "b=1:30%", "c=2:20%")
    ada = delivered["ada"]
    with ada.ledger.write() as conn:
        conn.exec_driver_sql(
            "UPDATE lw_promotions SET state = 'reverted' WHERE model = 'late' AND version = 1"
        )
        route_table(conn, ada.key, ada.now)
    now = route(ada)
    assert [(arm.name, arm.version) for arm in now.arms] == [("stable", 2), ("b", 2), ("c", 2)]
    assert (now.arms[1].weight, set(now.versions)) == (0.3, {"2"})
    arms = call(ada, "experiments.show", model="late")["arms"]
    assert [arm["approved"] for arm in arms] == [True, False, True]


def test_a_stored_spec_that_cannot_be_read_keeps_nobodys_traffic_where_it_is(delivered: People) -> None:
    ada = delivered["ada"]
    spec = {
        "model": "late", "task": "binary", "serving": {"timeout_ms": 77},
        "data": {"sources": {"t": {"uri": "t.csv", "contract": "t.yaml"}}, "label": {"name": "late"}},
    }  # fmt: skip
    with ada.ledger.write() as conn:
        save_project(conn, "late", "", spec, "", ada.now)
        route_table(conn, ada.key, ada.now)
    assert route(ada).serving.timeout_ms == 77
    with ada.ledger.write() as conn:
        save_project(conn, "late", "", {**spec, "of_another_release": True}, "", ada.now)
    start(delivered)
    assert (len(route(ada).arms), route(ada).serving.timeout_ms) == (2, 77)


# What it shows.


def answer(ctx: Context, began: Any, *, units: int, rates: dict[str, float], forced: int = 0) -> None:
    """Log an answer for each of so many units, and as many outcomes as their arms' rates say."""
    arms = route(ctx).arms
    rng = np.random.default_rng(5)
    events, ids, outcomes = [], [], []
    for n in range(units):
        arm = assign(began["salt"], f"u{n}", arms)
        at = to_us(ctx.now) + n
        name = "b" if n < forced else arm.name
        events.append(
            Event(f"r{n}", f"u{n}", at, at, "late", arm.version, name, 900, "ok", "", [1.0], [0.25])
        )
        ids.append(f"r{n}")
        outcomes.append(float(rng.random() < rates[arm.name]))
    PredictionLog(ctx.home.predictions).append(events, "batch")
    LabelLog(ctx.home.labels).append("late", "labels", ids, outcomes, [ctx.now + timedelta(hours=1)] * units)


def test_units_are_compared_as_they_were_assigned(delivered: People, clock: Any) -> None:
    ada = delivered["ada"]
    clock.move(timedelta(minutes=1))
    began = start(delivered, "b=1:30%", salt="the same in every run")
    empty = call(delivered["vera"], "experiments.show", model="late")
    assert (empty["sample_ratio"]["why"], empty["arms"][1]["label"]) == ("no units yet", None)
    answer(ada, began, units=4000, rates={"stable": 0.2, "b": 0.4}, forced=10)
    clock.move(timedelta(hours=2))
    shown = call(delivered["vera"], "experiments.show", model="late")
    stable, b = shown["arms"]
    assert stable["units"] + b["units"] == 4000
    assert 1100 < b["units"] < 1300
    assert shown["sample_ratio"]["sound"] is True
    assert b["label"]["low"] < 0.4 < b["label"]["high"]
    assert stable["label"]["low"] < 0.2 < stable["label"]["high"]
    gap = b["against_stable"]["label"]
    assert 0 < gap["low"] < 0.2 < gap["high"]
    assert (b["output"]["value"], b["approved"], stable["crossed"] > 0) == (0.25, True, True)
    assert stable["crossed"] + b["crossed"] == sum(
        1 for n in range(10) if assign(began["salt"], f"u{n}", route(ada).arms).name == "stable"
    )


def test_a_split_that_did_not_come_as_it_was_meant_is_said_and_fails_the_command(
    delivered: People, clock: Any, loopwright: Type
) -> None:
    ada = delivered["ada"]
    clock.move(timedelta(minutes=1))
    began = start(delivered, "b=1:50%")
    arms = route(ada).arms
    lost = [n for n in range(900) if assign(began["salt"], f"u{n}", arms).name == "stable" or n % 2]
    at = to_us(ada.now)
    PredictionLog(ada.home.predictions).append(
        [Event(f"r{n}", f"u{n}", at, at, "late", 2, "stable", 9, "ok", "", [1.0], [0.5]) for n in lost],
        "batch",
    )
    clock.move(timedelta(hours=2))
    shown = call(ada, "experiments.show", model="late")
    assert shown["sample_ratio"]["sound"] is False
    assert shown["sample_ratio"]["p"] < 0.001
    typed = loopwright("--home", str(ada.home.root), "experiment", "show", "late")
    assert typed.code == 1
    assert "units did not come as the weights say" in typed.out


def test_the_command_line_starts_shows_lists_and_stops(
    delivered: People, loopwright: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_HOME", str(delivered["ada"].home.root))
    started = loopwright("experiment", "start", "late", "--variant", "b=1:30%", "--variant", "c=2:10.5%")
    assert started.code == 0, started.err
    assert "stable=version 2 59.5 %, b=version 1 30 %, c=version 2 10.5 % (running" in started.out
    shown = loopwright("experiment", "show", "late")
    assert shown.code == 0
    assert "no units yet" in shown.out
    assert "running" in loopwright("experiment", "list").out
    assert "(stopped" in loopwright("experiment", "stop", "late", "--reason", "enough").out
    assert loopwright("experiment", "stop", "late").code == 2
    assert loopwright("experiment", "start", "late", "--variant", "b=3:30%").code == 1
