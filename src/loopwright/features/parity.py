"""Train/serve skew as a number: what requests brought, beside what the offline path makes of the same moments.

Texts, whole numbers and truth values must be equal. Floats are compared by units in the last place (ulp): how many
float64 lie between the two. A number that travelled as float32 has lost its last 29 bits, which is no skew: where a
request brought one, the pair is equal when it is so as float32, and is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loopwright.features.module import Dtype
from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict

Array = NDArray[Any]
ULPS = 4
"""Sums taken in another order differ in their last bits."""
EXAMPLES = 5
Difference = Literal["value", "only in the request", "only offline"]


@dataclass(frozen=True, slots=True)
class Skew:
    """One pair that differs."""

    id: str
    request: Any
    offline: Any
    difference: Difference


@dataclass(frozen=True, slots=True)
class FeatureParity:
    """How one feature's values agree. `compared` = `equal` + `different`; null equals null.

    as_float32: pairs that are equal only as float32. max_ulps, max_difference: over pairs of finite numbers, beyond
    those; None for texts. null_in_request, null_offline: pairs in which only that side has no value.
    """

    name: str
    dtype: Dtype
    compared: int
    equal: int
    as_float32: int
    null_in_request: int
    null_offline: int
    max_ulps: int | None
    max_difference: float | None
    examples: tuple[Skew, ...]

    @property
    def different(self) -> int:
        return self.compared - self.equal

    @property
    def share(self) -> float | None:
        """The share of pairs that are equal; None without pairs."""
        return self.equal / self.compared if self.compared else None

    @property
    def verdict(self) -> Verdict:
        if not self.compared:
            return Verdict.INCONCLUSIVE
        return Verdict.FAIL if self.different else Verdict.PASS

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "dtype": self.dtype, "verdict": self.verdict.value, "compared": self.compared,
            "equal": self.equal, "different": self.different, "share": self.share, "as_float32": self.as_float32,
            "null_in_request": self.null_in_request, "null_offline": self.null_offline, "max_ulps": self.max_ulps,
            "max_difference": self.max_difference,
            "examples": [
                {"id": each.id, "request": each.request, "offline": each.offline, "difference": each.difference}
                for each in self.examples
            ],
        }  # fmt: skip


def compare(
    requests: Mapping[str, Array],
    offline: Mapping[str, Array],
    dtypes: Mapping[str, Dtype],
    ids: Sequence[str],
    *,
    ulps: int = ULPS,
) -> list[FeatureParity]:
    """Compare columns pair by pair, the most different feature first.

    Both sides hold a column of length len(ids) for every name of `dtypes`: numbers as floats with NaN for null, texts
    as objects with None. Raises BadInput for columns that are missing or of another length.
    """
    if ulps < 0:
        raise BadInput("a tolerance below zero", got=ulps, wanted="ulps >= 0")
    for side, columns in (("the requests", requests), ("the offline path", offline)):
        for name in dtypes:
            if name not in columns or len(columns[name]) != len(ids):
                raise BadInput(
                    f"`{name}` of {side} does not pair up", got=len(columns.get(name, ())), wanted=str(len(ids))
                )  # fmt: skip
    found = [
        _compare(name, dtype, requests[name], offline[name], ids, ulps) for name, dtype in dtypes.items()
    ]
    return sorted(found, key=lambda each: -each.different)


def _compare(
    name: str, dtype: Dtype, request: Array, offline: Array, ids: Sequence[str], ulps: int
) -> FeatureParity:
    if dtype == "string":
        left = np.array([value is None for value in request], dtype=bool)
        right = np.array([value is None for value in offline], dtype=bool)
        same = np.array([a == b for a, b in zip(request, offline, strict=True)], dtype=bool)
        near = np.zeros(len(ids), dtype=bool)
        distance = gap = None
    else:
        one, other = np.asarray(request, dtype=np.float64), np.asarray(offline, dtype=np.float64)
        left, right = np.isnan(one), np.isnan(other)
        same = (one == other) | (left & right)
        near = np.zeros(len(ids), dtype=bool)
        both = np.isfinite(one) & np.isfinite(other)
        steps = np.zeros(len(ids), dtype=np.uint64)
        steps[both] = ulps_between(one[both], other[both])
        if dtype == "float64":
            same |= both & (steps <= np.uint64(ulps))
            with np.errstate(over="ignore"):
                single = one.astype(np.float32)
                near = both & ~same & (one == single) & (single == other.astype(np.float32))
        apart = both & ~near
        distance = int(steps[apart].max(initial=0))
        gap = float(np.abs(one[apart] - other[apart]).max(initial=0.0))
    equal = same | near
    wrong = np.flatnonzero(~equal)
    return FeatureParity(
        name=name,
        dtype=dtype,
        compared=len(ids),
        equal=int(equal.sum()),
        as_float32=int(near.sum()),
        null_in_request=int((left & ~right).sum()),
        null_offline=int((right & ~left).sum()),
        max_ulps=distance,
        max_difference=gap,
        examples=tuple(
            Skew(
                str(ids[at]), _plain(request[at], dtype), _plain(offline[at], dtype),
                "only offline" if left[at] else "only in the request" if right[at] else "value",
            )
            for at in wrong[:EXAMPLES]
        ),
    )  # fmt: skip


def ulps_between(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.uint64]:
    """How many steps from one float64 to the next lie between the two, element by element; finite numbers only.

    Both zeros are one number. The order of IEEE 754 bit patterns (after Dawson, "Comparing Floating Point Numbers").
    """
    a, b = _ordered(one), _ordered(other)
    return np.where(a > b, a - b, b - a)


def _ordered(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    bits = (values + 0.0).view(np.uint64)  # + 0.0 makes -0.0 the positive zero
    top = np.uint64(1 << 63)
    # Negative patterns run backwards; without -0.0 the smallest of them is one below the middle.
    return np.where(bits & top != 0, top - (bits ^ top), bits | top)


def _plain(value: Any, dtype: Dtype) -> Any:
    if value is None or (not isinstance(value, str) and np.isnan(float(value))):
        return None
    match dtype:
        case "string":
            return str(value)
        case "bool":
            return bool(value)
        case "int64":
            return int(value)
        case _:
            return float(value)
