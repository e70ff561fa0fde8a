from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.pipeline.intake import in_reference_order


@dataclass(frozen=True)
class Refers:
    """A contract as far as order is concerned."""

    to: frozenset[str] = field(default_factory=frozenset)

    def references(self) -> set[str]:
        return set(self.to)


@st.composite
def acyclic(draw: st.DrawFn) -> dict[str, Refers]:
    names = [f"t{n}" for n in range(draw(st.integers(1, 8)))]
    chosen = {
        name: Refers(frozenset(draw(st.sets(st.sampled_from(names[:place]))) if place else set()))
        for place, name in enumerate(names)
    }
    return {name: chosen[name] for name in draw(st.permutations(names))}


@given(acyclic())
def test_a_table_comes_after_every_table_it_refers_to(contracts: dict[str, Refers]) -> None:
    order = in_reference_order(contracts)
    assert sorted(order) == sorted(contracts)
    for name, contract in contracts.items():
        assert all(order.index(other) < order.index(name) for other in contract.references())


def test_a_table_may_refer_to_itself_and_to_tables_elsewhere() -> None:
    assert in_reference_order({"a": Refers(frozenset({"a", "elsewhere"}))}) == ["a"]


def test_a_circle_is_named() -> None:
    with pytest.raises(BadInput, match=r"circle.*a, b"):
        in_reference_order({"a": Refers(frozenset({"b"})), "b": Refers(frozenset({"a"})), "c": Refers()})
