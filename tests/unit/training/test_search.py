import math

import pytest

from loopwright.kernel.errors import BadInput
from loopwright.training.search import search


def space(trial):  # type: ignore[no-untyped-def]
    return {"x": trial.suggest_float("x", -5, 5), "fixed": 3}


def hill(params) -> float:  # type: ignore[no-untyped-def]
    return -((params["x"] - 2) ** 2)


def test_the_same_seed_gives_the_same_trials() -> None:
    assert search(hill, space, trials=12, seed=5) == search(hill, space, trials=12, seed=5)
    assert search(hill, space, trials=12, seed=5) != search(hill, space, trials=12, seed=6)


def test_the_best_of_all_trials_is_found_with_everything_the_space_said() -> None:
    found = search(hill, space, trials=30, seed=1)
    assert found.best_value == max(trial.value for trial in found.trials)
    assert found.best_params["fixed"] == 3
    assert abs(found.best_params["x"] - 2) < 0.5


def test_minimizing_turns_the_comparison_round() -> None:
    found = search(lambda params: -hill(params), space, trials=30, direction="minimize", seed=1)
    assert found.best_value == min(trial.value for trial in found.trials)


def test_each_trial_is_reported_with_the_best_so_far() -> None:
    seen: list[tuple[int, float, float]] = []
    search(hill, space, trials=6, seed=1, on_trial=lambda *args: seen.append(args))
    assert [number for number, _, _ in seen] == list(range(6))
    assert all(best == max(value for _, value, _ in seen[: i + 1]) for i, (_, _, best) in enumerate(seen))


def test_a_trial_without_a_number_is_lost_and_the_search_goes_on() -> None:
    scores = iter([math.nan, 1.0, math.inf, 2.0])
    found = search(lambda _: next(scores), space, trials=4, seed=1)
    assert found.best_value == 2.0
    assert math.isnan(found.trials[0].value)


def test_no_number_at_all_is_an_error() -> None:
    with pytest.raises(BadInput, match="no trial gave a finite score"):
        search(lambda _: math.nan, space, trials=3, seed=1)


def test_an_error_in_the_objective_comes_back_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        search(lambda _: 1 / 0, space, trials=3, seed=1)
