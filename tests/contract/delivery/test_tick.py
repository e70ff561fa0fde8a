"""The controller's round: from recorded folds to moved traffic, on SQLite and PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import open_routes
from loopwright.delivery import store, tick
from loopwright.delivery.evidence import gather
from loopwright.delivery.plan import Plan, Require, Step, Strategy
from loopwright.delivery.rollout import Smoke
from loopwright.delivery.routes import current_routes
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.monitoring.store import apply_fold, raise_watermark
from loopwright.registry.evidence import evidence_of
from loopwright.registry.promotion import request_promotion
from loopwright.registry.versions import get_version, register_version
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from tests.governing import ask_for_nothing

KEY = SigningKey.generate()
WALL = datetime(2026, 1, 1, tzinfo=UTC)
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLAN = Plan(shadow_first=HOUR, steps=(Step(0.05, HOUR), Step(0.25, HOUR, Require.PASS), Step(1.0)))


def promote_next(conn: Connection, model: str) -> None:
    author = Actor("dev", Role.DEVELOPER)
    ask_for_nothing(conn, model, at=WALL)
    bundle = digest_json([model, len(store.list_rollouts(conn, model))])
    version = register_version(
        conn, model=model, bundle=bundle, run_id="r", snapshot="s", author=author, metrics={}, now=WALL
    )
    request_promotion(
        conn, model=model, version=version.version, stage=Stage.PRODUCTION, actor=author, reason="better",
        now=WALL,
    )  # fmt: skip


def answer(ledger: Ledger, model: str, hour: float, *arms: tuple[str, int, int, int]) -> None:
    """Record answers (arm, version, n, errors) in the hour that `hour` hours after noon lies in."""
    with ledger.write() as conn:
        for arm, version, n, errors in arms:
            latency = LatencyHistogram()
            latency.add(np.full(n, 200.0))
            apply_fold(
                conn,
                Fold(
                    model=model, version=version, arm=arm, bucket=to_us(NOON + int(hour) * HOUR), n=n,
                    errors=errors, fallbacks=0, latency=latency.to_json(), profile=None,
                ),
            )  # fmt: skip
        raise_watermark(conn, model, NOON + hour * HOUR)


def run(ledger: Ledger, model: str, plan: Plan = PLAN, **kwargs: Any) -> list[str]:
    found = tick.tick(ledger, key=KEY, now=WALL, plan_for=lambda _: plan, **kwargs)
    return [one.at for one in found if one.model == model]


def split(ledger: Ledger, model: str) -> dict[str, tuple[int, float]]:
    with ledger.read() as conn:
        current = current_routes(conn)
    assert current is not None
    return {
        one.name: (one.version, one.weight)
        for one in open_routes(current[1], [KEY.public]).models[model].arms
    }


@pytest.fixture
def serving(ledger: Ledger, model: str) -> None:
    """Version 1 answers; version 2 has been promoted."""
    with ledger.write() as conn:
        promote_next(conn, model)
    assert run(ledger, model) == ["complete"]
    answer(ledger, model, 0, ("stable", 1, 5_000, 0))
    with ledger.write() as conn:
        promote_next(conn, model)


@pytest.mark.usefixtures("serving")
def test_a_promotion_is_carried_to_all_traffic_by_ticks_alone(ledger: Ledger, model: str) -> None:
    assert run(ledger, model) == ["shadow"]
    assert run(ledger, model) == []
    answer(ledger, model, 1, ("stable", 1, 900, 0), ("shadow", 2, 900, 0))
    assert run(ledger, model, agreement=lambda rollout, until: {"pairs": 900}) == ["canary 5 %"]
    answer(ledger, model, 2.5, ("stable", 1, 900, 0), ("canary", 2, 45, 0))
    assert run(ledger, model) == ["canary 25 %"]
    answer(ledger, model, 4, ("stable", 1, 900, 0), ("canary", 2, 300, 0))
    assert run(ledger, model) == []
    answer(ledger, model, 50, ("stable", 1, 30_000, 0), ("canary", 2, 9_000, 0))
    assert run(ledger, model) == ["complete"]
    assert split(ledger, model) == {"stable": (2, 1.0)}
    with ledger.read() as conn:
        assert get_version(conn, model=model, version=1).stage is Stage.ARCHIVED
        shadow = evidence_of(conn, model=model, version=2, kind="shadow")
    assert shadow[0].payload["evidence"]["agreement"] == {"pairs": 900}


@pytest.mark.usefixtures("serving")
def test_a_canary_that_raises_is_rolled_back_by_a_tick(ledger: Ledger, model: str) -> None:
    run(ledger, model)
    answer(ledger, model, 1, ("stable", 1, 900, 0), ("shadow", 2, 900, 0))
    run(ledger, model)
    answer(ledger, model, 2.2, ("stable", 1, 40_000, 0), ("canary", 2, 6_000, 42))
    assert run(ledger, model) == ["rolled back"]
    assert split(ledger, model) == {"stable": (1, 1.0)}
    assert run(ledger, model) == []


@pytest.mark.usefixtures("serving")
def test_counts_before_the_phase_do_not_belong_to_it(ledger: Ledger, model: str) -> None:
    run(ledger, model)
    answer(ledger, model, 1, ("stable", 1, 900, 0), ("shadow", 2, 900, 0))
    run(ledger, model)
    with ledger.read() as conn:
        running = store.active_rollout(conn, model)
        assert running is not None
        evidence = gather(conn, running, until=NOON + HOUR)
    # The 5,000 answers of noon came before; the hour in which the canary began counts whole.
    assert (evidence.baseline.n, evidence.candidate.n) == (900, 0)


@pytest.mark.usefixtures("serving")
def test_of_two_controllers_the_later_decides_on_what_the_earlier_left(ledger: Ledger, model: str) -> None:
    plan = Plan(shadow_first=HOUR, steps=(Step(0.05), Step(0.25, HOUR, Require.PASS), Step(1.0)))
    run(ledger, model, plan)
    answer(ledger, model, 1, ("stable", 1, 900, 0), ("shadow", 2, 900, 0))

    def overtaken(rollout: store.Rollout, until: datetime) -> None:
        assert run(ledger, model, plan) == ["canary 5 %"]

    # The shadow's 900 requests are no requests of the canary, which has answered none.
    assert run(ledger, model, plan, agreement=overtaken) == []
    assert split(ledger, model)["canary"] == (2, 0.05)


@pytest.mark.usefixtures("serving")
def test_a_second_promotion_waits_for_the_first_rollout(ledger: Ledger, model: str) -> None:
    run(ledger, model)
    with ledger.write() as conn:
        promote_next(conn, model)
    assert run(ledger, model) == []
    answer(ledger, model, 3, ("stable", 1, 900, 0), ("shadow", 2, 900, 0))
    assert run(ledger, model) == ["canary 5 %"]
    with ledger.read() as conn:
        assert [due.version for due in store.due_promotions(conn) if due.model == model] == [3]


@pytest.mark.usefixtures("serving")
def test_blue_green_waits_for_its_smoke_test_and_keeps_blue_when_it_fails(ledger: Ledger, model: str) -> None:
    plan = Plan(strategy=Strategy.BLUE_GREEN, steps=(Step(1.0, HOUR),))
    assert run(ledger, model, plan) == ["smoke test"]
    assert split(ledger, model) == {"stable": (1, 1.0), "canary": (2, 0.0)}
    assert run(ledger, model, plan, smoke=lambda rollout: Verdict.FAIL) == ["rolled back"]
    assert split(ledger, model) == {"stable": (1, 1.0)}


@pytest.mark.usefixtures("serving")
def test_blue_green_is_compared_with_blues_last_day(ledger: Ledger, model: str) -> None:
    plan = Plan(strategy=Strategy.BLUE_GREEN, steps=(Step(1.0, HOUR),))
    run(ledger, model, plan)
    assert run(ledger, model, plan, smoke=lambda rollout: Verdict.PASS) == ["canary 100 %"]
    answer(ledger, model, 1, ("canary", 2, 300, 100))
    assert run(ledger, model, plan) == ["rolled back"]


@pytest.mark.usefixtures("serving")
def test_a_tick_with_nothing_new_reads_no_folds(
    ledger: Ledger, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ledger, model)
    memory: dict[str, tick.Seen] = {}
    run(ledger, model, memory=memory)
    run(ledger, model, memory=memory)
    read: list[str] = []

    def counting(conn: Connection, rollout: store.Rollout, **kwargs: Any) -> Any:
        read.append(rollout.model)
        return gather(conn, rollout, **kwargs)

    monkeypatch.setattr(tick, "gather", counting)
    run(ledger, model, memory=memory)
    assert model not in read
    answer(ledger, model, 0.5, ("shadow", 2, 10, 0))
    run(ledger, model, memory=memory)
    assert model in read


@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize("error", [BadInput("the project is gone"), RuntimeError("the project is gone")])
def test_one_models_bad_plan_does_not_keep_the_others_waiting(
    ledger: Ledger, model: str, error: Exception
) -> None:
    def plan_for(name: str) -> Plan:
        if name == model:
            raise error
        return PLAN

    other = f"{model}-other"
    with ledger.write() as conn:
        promote_next(conn, other)
    with pytest.raises(type(error), match="the project is gone"):
        tick.tick(ledger, key=KEY, now=WALL, plan_for=plan_for)
    assert split(ledger, other) == {"stable": (1, 1.0)}
    assert run(ledger, model) == ["shadow"]


@pytest.mark.usefixtures("serving")
def test_a_green_version_waits_while_nobody_tests_it(ledger: Ledger, model: str) -> None:
    plan = Plan(strategy=Strategy.BLUE_GREEN, steps=(Step(1.0),))
    run(ledger, model, plan)
    run(ledger, model, plan)
    with ledger.read() as conn:
        running = store.active_rollout(conn, model)
    assert running is not None
    assert isinstance(running.state, Smoke)
    assert running.reason == "the smoke test has not run"
