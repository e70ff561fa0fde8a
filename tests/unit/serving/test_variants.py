"""Arms with names of their own, as an A/B test has them: routed, forced, logged, counted and broken apart."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopwright.bundle.routes import Arm, Breaker, ServingPolicy
from loopwright.bundle.testing import STRICT
from loopwright.serving.counters import read_counters
from loopwright.serving.router import assign
from tests.unit.serving.inside import ROW, Inside, model_of, tiny

ARMS = (Arm("stable", 1, 0.4), Arm("blue", 2, 0.3), Arm("red", 3, 0.3), Arm("shadow", 2, 1.0))
UNITS = [f"user-{number}" for number in range(120)]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    bundles = {
        1: tiny(tmp_path / "one"),
        2: tiny(tmp_path / "two", transform=STRICT),
        3: tiny(tmp_path / "three"),
    }
    policy = ServingPolicy(breaker=Breaker(requests=10, open_s=60.0))
    site = Inside(tmp_path / "site", model_of("late", bundles, *ARMS, policy=policy))
    yield site
    site.close()


def ask(inside: Inside, unit: str, carrier: str = "UA", **headers: str) -> dict[str, object]:
    body = {"inputs": {**ROW, "carrier": carrier}, "unit": unit}
    answer: dict[str, object] = inside.post("/models/late/predict", body, **headers).json()
    return answer


def test_each_variant_gets_its_share_and_is_logged_by_name(inside: Inside) -> None:
    right = {unit: assign("salt", unit, ARMS) for unit in UNITS}
    for unit in UNITS:
        answer = ask(inside, unit)
        assert (answer["arm"], answer["version"]) == (right[unit].name, right[unit].version)
    logged = {event.unit: event for event in inside.events() if event.arm != "shadow"}
    assert {unit: event.arm for unit, event in logged.items()} == {
        unit: arm.name for unit, arm in right.items()
    }
    shares = Counter(arm.name for arm in right.values())
    assert set(shares) == {"stable", "blue", "red"}
    counted = {
        key[3]: series.count
        for key, series in read_counters(inside.folder).items()
        if key[0] == "predictions"
    }
    assert {name: counted[name] for name in shares} == shares


def test_a_variant_may_be_forced_and_a_shadow_may_not(inside: Inside) -> None:
    for name, version in (("blue", 2), ("red", 3), ("stable", 1)):
        answer = ask(inside, "anybody", **{"x-loopwright-arm": name})
        assert (answer["arm"], answer["version"]) == (name, version)
    assert "no arm of this name" in str(ask(inside, "anybody", **{"x-loopwright-arm": "shadow"})["error"])


def test_one_variants_errors_are_its_own(inside: Inside) -> None:
    blue = [unit for unit in UNITS if assign("salt", unit, ARMS).name == "blue"][:12]
    red = [unit for unit in UNITS if assign("salt", unit, ARMS).name == "red"][:12]
    for unit in blue:
        answer = ask(inside, unit, carrier="ZZ")
        assert (answer["arm"], answer["version"], answer["fallback"]) == ("stable", 1, True)
    assert [ask(inside, unit, carrier="ZZ")["arm"] for unit in red] == ["red"] * len(red)
    states = {arm: breaker.state for (_, _, arm), breaker in inside.engine.breakers.items()}
    assert states["blue"] == "open"
    assert states["red"] == "closed"
    tried = Counter((event.arm, event.status) for event in inside.events() if event.arm != "shadow")
    assert tried["blue", "error"] == len(blue)
    assert tried["stable", "fallback"] == len(blue)
    assert tried["red", "ok"] == len(red)
