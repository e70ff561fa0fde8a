"""Routing: fixed by unit and salt, monotone under ramps, true to its weights."""

from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.routes import Arm
from loopwright.serving.router import assign, is_shadowed, pick, position

weights = st.floats(0, 1)


@given(st.text(), st.text())
def test_a_unit_has_one_place(salt: str, unit: str) -> None:
    place = position(salt, unit)
    assert 0.0 <= place < 1.0
    assert position(salt, unit) == place


@given(st.text(), weights, weights, st.booleans())
def test_who_was_in_the_canary_stays_in_it_as_it_grows(
    unit: str, one: float, other: float, first: bool
) -> None:
    small, large = sorted((one, other))
    arms = [[Arm("canary", 2, w), Arm("stable", 1, 1 - w)][:: 1 if first else -1] for w in (small, large)]
    place = position("salt", unit)
    if pick(place, arms[0]).name == "canary":
        assert pick(place, arms[1]).name == "canary"


@given(st.floats(0, 1, exclude_max=True))
def test_nobody_is_in_an_arm_without_weight_and_everybody_in_a_full_one(place: float) -> None:
    assert pick(place, [Arm("canary", 2, 0.0), Arm("stable", 1, 1.0)]).name == "stable"
    assert pick(place, [Arm("canary", 2, 1.0), Arm("stable", 1, 0.0)]).name == "canary"
    assert pick(place, [Arm("shadow", 2, 1.0), Arm("stable", 1, 1.0)]).name == "stable"


def test_shares_are_true_and_splits_of_other_salts_independent() -> None:
    arms = [Arm("canary", 2, 0.05), Arm("stable", 1, 0.95)]
    units = [f"u{i}" for i in range(20_000)]
    canary = {unit for unit in units if pick(position("a", unit), arms).name == "canary"}
    other = {unit for unit in units if pick(position("b", unit), arms).name == "canary"}
    shadow = {unit for unit in canary if is_shadowed("a", unit, 0.5)}
    assert 900 < len(canary) < 1100
    assert len(canary & other) < 100
    assert 0.4 < len(shadow) / len(canary) < 0.6


@given(st.text(max_size=20), weights, weights, weights, st.permutations(["stable", "blue", "red"]))
def test_nobody_moves_between_two_variants_while_one_of_them_grows(
    unit: str, one: float, other: float, fixed: float, order: list[str]
) -> None:
    small, large = sorted((one * (1 - fixed), other * (1 - fixed)))

    def arm_of(blue: float) -> str:
        shares = {"blue": blue, "red": fixed, "stable": max(0.0, 1 - blue - fixed)}
        versions = {"stable": 1, "blue": 2, "red": 3}
        return assign("salt", unit, [Arm(name, versions[name], shares[name]) for name in order]).name

    before, after = arm_of(small), arm_of(large)
    assert before == after or (before, after) == ("stable", "blue")
