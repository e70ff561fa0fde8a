"""Training sets on every engine, against an oracle that looks at every row by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.features import FeatureView
from loopwright.features.lookup import DUCKDB, Dialect
from loopwright.features.portable import PORTABLE
from loopwright.features.training_set import training_set
from tests.contract.features import oracle
from tests.contract.features.oracle import Fact, asked_table, facts_table

pytestmark = pytest.mark.parametrize("dialect", [DUCKDB, PORTABLE], ids=["asof", "portable"])


@settings(max_examples=40)
@given(facts=oracle.facts, asked=oracle.asked, view=oracle.views)
def test_every_row_holds_what_was_known_at_its_moment(
    dialect: Dialect, facts: list[Fact], asked: list[tuple], view: FeatureView  # type: ignore[type-arg]
) -> None:  # fmt: skip
    rows = asked_table(asked)
    found = training_set(rows, [view], {"facts": facts_table(facts)}, status=True, dialect=dialect)
    assert found.select(rows.column_names).equals(rows)  # each row, in order, duplicates too
    wanted = [oracle.answer(view, facts, row) for row in asked]
    given = found.drop_columns(rows.column_names).to_pylist()
    for row, (got, want) in enumerate(zip(given, wanted, strict=True)):
        assert got.keys() == want.keys()
        for name, value in want.items():
            exact = value is None or not name.startswith("stddev")
            assert got[name] == (value if exact else pytest.approx(value, rel=1e-12)), (row, name)


@settings(max_examples=15)
@given(facts=oracle.facts, asked=oracle.asked, view=oracle.views, order=st.randoms(use_true_random=False))
def test_neither_the_order_of_facts_nor_what_comes_later_changes_an_answer(
    dialect: Dialect, facts: list[Fact], asked: list[tuple], view: FeatureView, order  # type: ignore[no-untyped-def, type-arg]
) -> None:  # fmt: skip
    rows = asked_table(asked)
    before = training_set(rows, [view], {"facts": facts_table(facts)}, dialect=dialect)
    latest = max((row[2] for row in asked), default=oracle.START)
    # Happened by then and known later, where rows say when they were known; else both later.
    happened = latest if view.available_at is not None else latest + oracle.HOUR
    late = [Fact(k, j, happened, latest + oracle.HOUR, 99.0, 99, "z") for k in ("a", "b") for j in (1, 2)]
    shuffled = [*facts, *late]
    order.shuffle(shuffled)
    after = training_set(rows, [view], {"facts": facts_table(shuffled)}, dialect=dialect)
    assert after.equals(before)
