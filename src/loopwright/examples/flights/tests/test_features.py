"""The project's own tests: pytest tests/test_features.py"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


transform, strict = load("transform"), load("transform_strict")


def flights(dests):
    rows = len(dests)
    numbers = {name: np.full(rows, 0.5) for name in transform.NUMBERS}
    names = {"carrier": ["UA"] * rows, "origin": ["EWR"] * rows, "dest": dests}
    return numbers | {name: np.array(values, dtype=object) for name, values in names.items()}


def test_the_most_frequent_name_has_the_first_code():
    state = transform.fit(flights(["ORD", "ATL", "ATL", "BOS"]))
    assert state["codes"]["dest"] == {"ATL": 0, "BOS": 1, "ORD": 2}


def test_a_row_alone_has_the_features_it_has_among_others():
    rows = flights(["ORD", "ATL", "ATL", None])
    state = transform.fit(rows)
    whole = transform.transform(rows, state)
    for row in range(4):
        alone = transform.transform({name: values[row : row + 1] for name, values in rows.items()}, state)
        for name, values in alone.items():
            np.testing.assert_array_equal(values, whole[name][row : row + 1])
            assert values.dtype == np.float32


def test_an_airport_never_seen_in_training_is_no_error():
    state = transform.fit(flights(["ORD", "ATL"]))
    assert transform.transform(flights(["ANC"]), state)["dest"].tolist() == [-1.0]


def test_an_impossible_wind_is_not_known():
    rows = flights(["ORD"]) | {"wind_speed": np.array([1048.0])}
    assert np.isnan(transform.transform(rows, transform.fit(rows))["wind_speed"][0])


def test_the_strict_transform_agrees_on_what_training_saw():
    rows = flights(["ORD", "ATL", "ATL"])
    assert strict.fit(rows) == transform.fit(rows)
    expected = transform.transform(rows, transform.fit(rows))
    for name, values in strict.transform(rows, strict.fit(rows)).items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_strict_transform_breaks_on_what_training_did_not_see():
    with pytest.raises(KeyError, match="ANC"):
        strict.transform(flights(["ANC"]), strict.fit(flights(["ORD"])))
