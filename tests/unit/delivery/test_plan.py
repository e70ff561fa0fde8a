"""A plan from loop.yaml's delivery section."""

from datetime import timedelta
from typing import Any

import pytest

from loopwright.delivery.judge import Limits
from loopwright.delivery.plan import Plan, Require, Step, Strategy
from loopwright.kernel.errors import BadInput
from loopwright.project.sections import Delivery

HOUR = timedelta(hours=1)


def plan(**section: Any) -> Plan:
    return Plan.from_spec(Delivery.model_validate(section))


def test_a_project_that_says_nothing_gets_shadow_then_four_steps() -> None:
    found = plan()
    assert found.strategy is Strategy.CANARY
    assert found.shadow_first == HOUR
    assert [step.weight for step in found.steps] == [0.01, 0.05, 0.25, 1.0]
    assert found.steps[2].require is Require.PASS
    assert found.limits == Limits(error_rate=0.001, latency_p99=1.5)
    assert found.min_requests == 20


def test_limits_holds_and_minimum_are_read_as_written() -> None:
    found = plan(
        shadow_first="0s",
        steps=[{"weight": "10%", "hold": "2h", "require": "pass"}, {"weight": "100%"}],
        rollback={"error_rate": "+0.5pp", "latency_p99": "x2"},
        min_requests=7,
    )
    assert found.shadow_first == timedelta()
    assert found.steps == (Step(0.1, 2 * HOUR, Require.PASS), Step(1.0))
    assert found.limits == Limits(error_rate=0.005, latency_p99=2.0)
    assert found.min_requests == 7


def test_business_limits_are_named_as_not_judged_by_the_canary() -> None:
    found = plan(rollback={"business": {"on_time_notice": "-2%"}})
    assert found.to_json()["not_judged"] == ["on_time_notice"]


def test_blue_green_bakes_as_long_as_its_last_step_says() -> None:
    found = plan(strategy="blue_green", steps=[{"weight": "100%", "hold": "6h"}])
    assert found.steps == (Step(1.0, 6 * HOUR),)
    assert plan(strategy="blue_green").steps == (Step(1.0, HOUR),)


@pytest.mark.parametrize("wrong", [{"min_requests": 0}, {"alpha": 0.7}, {"shadow_share": 0.0}])
def test_a_plan_that_could_pass_on_silence_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Plan(**wrong)
