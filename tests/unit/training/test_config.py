import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.training.config import compose
from loopwright.training.seeds import child_environment, derive, seed_everything

VALUES = {"rounds": 100, "tree": {"leaves": 15, "rate": 0.1}}


def test_overrides_are_typed_as_yaml_and_later_ones_win() -> None:
    composed = compose(VALUES, ["tree.rate=0.2", "rounds=5", "rounds=7"], "conf")
    assert composed == {"rounds": 7, "tree": {"leaves": 15, "rate": 0.2}}
    assert VALUES["tree"] == {"leaves": 15, "rate": 0.1}


def test_a_misspelt_parameter_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"`tree\.leafs`.*did you mean `leaves`"):
        compose(VALUES, ["tree.leafs=3"], "conf")


@pytest.mark.parametrize("override", ["rounds", "=3", "tree..rate=3", "rounds.deeper=1"])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(BadInput):
        compose(VALUES, [override], "conf")


def test_values_that_cannot_be_stored_with_the_run_are_refused() -> None:
    with pytest.raises(BadInput, match="canonical JSON"):
        compose({"rate": float("nan")}, [], "conf")


@given(st.integers(0, 2**32 - 1), st.text(max_size=10))
def test_a_derived_seed_depends_on_both_seed_and_name(seed: int, name: str) -> None:
    assert derive(seed, name) == derive(seed, name)
    assert 0 <= derive(seed, name) < 2**32
    assert derive(seed, name) != derive(seed, name, "other")


def test_seeding_repeats_what_is_drawn() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(11)
        drawn.append((random.random(), np.random.random()))
    assert drawn[0] == drawn[1]


def test_a_child_interpreter_gets_its_hash_seed_and_threads() -> None:
    assert child_environment(7, 2)["PYTHONHASHSEED"] == "7"
    assert child_environment(7, 2)["OMP_NUM_THREADS"] == "2"
