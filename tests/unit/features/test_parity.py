"""Train/serve skew: which pairs count as equal, and how far others are apart."""

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopwright.features.parity import compare, ulps_between
from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict

finite = st.floats(allow_nan=False, allow_infinity=False)


def one(request: list, offline: list, dtype: str = "float64", **options: int):  # type: ignore[no-untyped-def,type-arg]
    kind = object if dtype == "string" else np.float64
    columns = [{"x": np.array(values, dtype=kind)} for values in (request, offline)]
    (found,) = compare(*columns, {"x": dtype}, [f"r{n}" for n in range(len(request))], **options)  # type: ignore[arg-type,dict-item]
    return found


def place(value: float) -> int:
    """Where a float64 stands among all of them, by its bits alone; 0 is 0."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits) if bits >= 0 else -(bits & (2**63 - 1))


@given(finite, finite)
@example(-0.0, 0.0)
@example(5e-324, -5e-324)
@example(1.7976931348623157e308, -1.7976931348623157e308)
def test_ulps_are_the_floats_in_between(a: float, b: float) -> None:
    (found,) = ulps_between(np.array([a]), np.array([b]))
    assert int(found) == abs(place(a) - place(b))


@given(finite)
def test_the_next_float_is_one_step_away(a: float) -> None:
    after = math.nextafter(a, math.inf)
    if math.isfinite(after):
        assert int(ulps_between(np.array([a]), np.array([after]))[0]) == 1


def test_floats_may_differ_in_their_last_bits_and_no_further() -> None:
    close = 0.1 + 0.2  # one step from 0.3
    assert one([close], [0.3]).verdict is Verdict.PASS
    assert one([close], [0.3], ulps=0).verdict is Verdict.FAIL
    found = one([0.3, 0.3], [0.3, 0.3000001])
    assert (found.equal, found.different, found.verdict) == (1, 1, Verdict.FAIL)
    assert found.max_difference == pytest.approx(1e-7)
    assert found.max_ulps is not None
    assert found.max_ulps > 1e6


def test_a_number_that_travelled_as_float32_is_equal_and_counted() -> None:
    found = one([float(np.float32(0.1)), 0.5], [0.1, 0.5])
    assert (found.verdict, found.equal, found.as_float32, found.max_ulps) == (Verdict.PASS, 2, 1, 0)


def test_whole_numbers_and_texts_must_be_equal() -> None:
    assert one([3.0], [3.0], "int64").verdict is Verdict.PASS
    assert one([2.0**53], [2.0**53 + 2], "int64").verdict is Verdict.FAIL
    found = one(["JFK", "LGA", None], ["JFK", "EWR", None], "string")
    assert (found.equal, found.different, found.max_ulps, found.max_difference) == (2, 1, None, None)
    assert [(each.id, each.request, each.offline, each.difference) for each in found.examples] == [
        ("r1", "LGA", "EWR", "value")
    ]


def test_a_null_equals_only_a_null() -> None:
    nan = float("nan")
    found = one([nan, nan, 1.0], [nan, 2.0, nan])
    assert (found.equal, found.null_in_request, found.null_offline) == (1, 1, 1)
    assert {each.difference for each in found.examples} == {"only offline", "only in the request"}
    assert [each.request for each in found.examples] == [None, 1.0]


def test_infinity_equals_itself_alone() -> None:
    assert one([math.inf], [math.inf]).verdict is Verdict.PASS
    assert one([math.inf], [1.7976931348623157e308]).verdict is Verdict.FAIL


def test_no_pair_is_no_pass() -> None:
    found = one([], [])
    assert (found.verdict, found.share) == (Verdict.INCONCLUSIVE, None)


def test_the_most_different_feature_comes_first() -> None:
    columns = {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 2.0])}
    offline = {"a": np.array([1.0, 2.0]), "b": np.array([9.0, 9.0])}
    found = compare(columns, offline, {"a": "float64", "b": "float64"}, ["r0", "r1"])
    assert [each.name for each in found] == ["b", "a"]


def test_columns_that_do_not_pair_up_are_an_error() -> None:
    with pytest.raises(BadInput, match="`x` of the offline path does not pair up"):
        compare({"x": np.array([1.0])}, {"x": np.array([1.0, 2.0])}, {"x": "float64"}, ["r0"])
