"""The semantic version a change asks for, and the one that is given."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.manifest import FORMAT, Manifest
from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, Refused
from loopwright.registry.semver import Bump, Change, check_free, choose, compare, parse, propose

DORA = Actor("dora", Role.DEVELOPER)
INPUTS = (Field("distance", "float64"), Field("hour", "int64"), Field("carrier", "string"))
RECIPE = {
    "label": "late",
    "entry": "train.py:train",
    "search": None,
    "files": {"train.py": "a", "features.py": "b"},
}


def manifest(
    *,
    inputs: tuple[Field, ...] = INPUTS,
    features: tuple[str, ...] = ("distance", "hour"),
    outputs: tuple[str, ...] = ("probability",),
    task: Any = "binary",
    classes: tuple[str, ...] = (),
    files: dict[str, str] | None = None,
    **origin: Any,
) -> Manifest:
    schema = Schema(inputs=inputs, features=features, outputs=outputs, task=task, classes=classes)
    provenance = {
        "snapshot": "s1",
        "seed": 7,
        "params": {"leaves": 15},
        "recipe": RECIPE,
        "algorithm": "lightgbm.Booster",
    }
    return Manifest(
        format=FORMAT, model="late", created_at="2013-04-01T00:00:00Z", files=files or {"model.onnx": "0" * 64},
        schema=schema, provenance={**provenance, **origin},
    )  # fmt: skip


BASE = manifest()


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (manifest(inputs=INPUTS[:2]), "no longer bring carrier"),
        (manifest(inputs=(*INPUTS, Field("origin", "string"))), "must bring origin"),
        (manifest(inputs=(*INPUTS[:2], Field("carrier", "float64"))), "carrier is float64 instead of string"),
        (manifest(inputs=(Field("distance", "int64"), *INPUTS[1:])), "distance is int64 instead of float64"),
        (manifest(inputs=(Field("distance", "float64", nullable=False), *INPUTS[1:])), "no longer be null"),
        (manifest(task="regression", outputs=("prediction",)), "regression instead of binary"),
        (manifest(recipe={**RECIPE, "label": "cancelled"}), "predicts cancelled instead of late"),
    ],
)
def test_what_callers_trip_over_is_major(new: Manifest, said: str) -> None:
    change = compare(BASE, new)
    assert change.bump is Bump.MAJOR and said in change.why


def test_another_class_is_major() -> None:
    old = manifest(task="multiclass", outputs=("a", "b", "c"), classes=("a", "b", "c"))
    new = manifest(task="multiclass", outputs=("a", "b", "c", "d"), classes=("a", "b", "c", "d"))
    assert compare(old, new).bump is Bump.MAJOR


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (manifest(features=("distance", "hour", "rain")), "features added: rain"),
        (manifest(features=("distance",)), "features removed: hour"),
        (manifest(features=("hour", "distance")), "features in another order"),
        (manifest(recipe={**RECIPE, "files": {**RECIPE["files"], "train.py": "c"}}), "changed: train.py"),  # type: ignore[dict-item]
        (manifest(recipe={**RECIPE, "search": {"metric": "roc_auc"}}), "another search"),
        (manifest(algorithm="sklearn.LogisticRegression"), "sklearn.LogisticRegression instead of lightgbm.Booster"),
        (manifest(inputs=(INPUTS[0], Field("hour", "float64"), INPUTS[2])), "inputs take more than before"),
    ],
)  # fmt: skip
def test_a_model_made_another_way_is_minor(new: Manifest, said: str) -> None:
    change = compare(BASE, new)
    assert change.bump is Bump.MINOR and said in change.why


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (manifest(snapshot="s2"), "another snapshot"),
        (manifest(seed=8), "another seed"),
        (manifest(params={"leaves": 31}), "the search found other hyperparameters"),
        (manifest(inputs=INPUTS[::-1]), "the same recipe on the same data"),
    ],
)
def test_a_retrain_is_a_patch(new: Manifest, said: str) -> None:
    change = compare(BASE, new)
    assert change.bump is Bump.PATCH and said in change.why


def test_bundles_that_do_not_tell_their_recipe_are_judged_by_what_they_hold() -> None:
    old, new = manifest(recipe=None), manifest(recipe=None, params={"leaves": 31})
    assert compare(old, new) == Change(Bump.MINOR, "other hyperparameters")
    assert compare(old, manifest(recipe=None, seed=8)).bump is Bump.PATCH


def test_the_first_version_is_one() -> None:
    assert propose([], {}).version == "1.0.0"


def test_the_number_follows_the_highest_and_the_larger_change_counts() -> None:
    """In Production is 1.2.0; 2.0.0 was tried and is not. A fix of 1.2.0 is not like 2.0.0, so it is 3.0.0."""
    changes = {
        "version 3 (1.2.0)": Change(Bump.PATCH, "the same recipe"),
        "version 4 (2.0.0)": Change(Bump.MAJOR, "requests no longer bring carrier"),
    }
    found = propose(["1.0.0", "1.2.0", "2.0.0"], changes)
    assert found.version == "3.0.0"
    assert found.why == "major over version 4 (2.0.0): requests no longer bring carrier"


def test_nothing_to_compare_with_is_minor() -> None:
    assert propose(["1.0.9"], {}).version == "1.1.0"


def test_a_person_may_ask_for_more_than_changed_but_not_for_less() -> None:
    asked = propose(["1.3.0"], {"version 2": Change(Bump.MAJOR, "the task is regression")})
    assert choose("5.0.0", asked, ["1.3.0"], actor=DORA, admin=False).version == "5.0.0"
    with pytest.raises(Refused, match="promises less than changed"):
        choose("1.4.0", asked, ["1.3.0"], actor=DORA, admin=False)
    by_admin = choose("1.4.0", asked, ["1.3.0"], actor=DORA, admin=True)
    assert by_admin.version == "1.4.0" and "proposed was 2.0.0" in by_admin.why


def test_nobody_may_reuse_a_number_or_go_back() -> None:
    for number in ("1.3.0", "1.2.9", "0.9.0"):
        with pytest.raises(Conflict, match=r"above 1\.3\.0"):
            choose(number, propose(["1.3.0"], {}), ["1.3.0"], actor=DORA, admin=True)


def test_a_first_version_may_be_a_zero() -> None:
    assert choose("0.1.0", propose([], {}), [], actor=DORA, admin=False).version == "0.1.0"


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "v1.0.0", "1.0.0-rc1", "01.0.0", "1.0.-1", "1.0.0\n2", "1" * 20 + ".0.0"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


numbers = st.tuples(*[st.integers(0, 30)] * 3)
bumps = st.sampled_from(list(Bump))


@given(taken=st.lists(numbers, min_size=1, max_size=30), line=st.lists(bumps, max_size=20))
def test_numbers_only_rise_and_none_is_used_twice(
    taken: list[tuple[int, int, int]], line: list[Bump]
) -> None:
    given_so_far = [".".join(map(str, number)) for number in taken]
    for bump in line:
        following = propose(given_so_far, {"x": Change(bump, "")}).version
        check_free(following, given_so_far)
        assert parse(following) > max(map(parse, given_so_far))
        given_so_far.append(following)


@given(standing=numbers, first=bumps, second=bumps)
def test_the_larger_of_two_changes_decides(standing: tuple[int, int, int], first: Bump, second: Bump) -> None:
    text = ".".join(map(str, standing))
    both = propose([text], {"a": Change(first, ""), "b": Change(second, "")})
    assert both.version == propose([text], {"a": Change(max(first, second), "")}).version
