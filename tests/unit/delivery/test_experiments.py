"""Variants as people write them."""

from math import isclose

import pytest

from loopwright.bundle.routes import Arm
from loopwright.delivery.experiments import read_variants
from loopwright.kernel.errors import BadInput


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        (["b=1"], "wanted NAME=VERSION:SHARE%"),
        (["b=1:0%"], "not a share"),
        (["b=1:101%"], "not a share"),
        (["b=1:60%", "c=1:60%"], "shares that do not fit; got 120% in all"),
        (["b=1:10%", "b=2:10%"], "a variant named twice"),
        (["stable=1:10%"], "stable takes what the variants leave"),
        (["direct=1:10%"], "not an arm's name"),
        (["B=1:10%"], "not an arm's name"),
        ([f"v{n}=1:1%" for n in range(9)], "wanted 1 to 8"),
        ([], "wanted 1 to 8"),
    ],
)
def test_variants_that_make_no_sense_are_told_so(variants: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_variants(variants)


def test_shares_may_add_up_to_all() -> None:
    arms = read_variants(["a=1:33.3%", " b=2:66.7%"])
    assert [(arm.name, arm.version) for arm in arms] == [("a", 1), ("b", 2)]
    assert isclose(sum(arm.weight for arm in arms), 1.0)
    assert read_variants(["b=7:30%"]) == (Arm("b", 7, 0.3),)
