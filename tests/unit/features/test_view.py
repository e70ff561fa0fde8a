"""What a view may say, what its document and digest hold, and how far its rows reach."""

from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings

from loopwright.features import Aggregate, FeatureView, Prior, ViewTest, WindowedRate
from loopwright.features.definition import definition_digest, document, reach
from loopwright.features.training_set import training_set
from loopwright.kernel.errors import BadInput
from tests.contract.features import oracle
from tests.contract.features.oracle import Fact, asked_table, facts_table

HOUR = timedelta(hours=1)
VIEW = FeatureView("seen", "facts", ("k",), ("v",), "t", ttl=4 * HOUR)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"entity": ()}, "nothing to look up by"),
        ({"columns": ()}, "it gives nothing"),
        ({"ttl": timedelta(0)}, "live longer than nothing"),
        ({"available_after": -HOUR}, "known before it happens"),
        ({"event_time": None}, "ttl mean nothing without an event time"),
        ({"event_time": None, "ttl": None, "available_at": "s"}, "available_at mean nothing"),
        ({"aggregations": {"v": Aggregate("count")}}, "two things have one name"),
        ({"reads": ("other",)}, "no source that reads them"),
        (
            {"available_after": 2 * HOUR, "aggregations": {"n": Aggregate("count", window=2 * HOUR)}},
            "over before a row is known",
        ),
    ],
)
def test_a_view_that_cannot_be_meant_is_bad_input(change: dict[str, object], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        replace(VIEW, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("maen", "v"), "did you mean `mean`"),
        (("sum",), "nothing to take the sum of"),
        (("sum", "v", timedelta(0)), "longer than nothing"),
        (("sum", "v", HOUR, None, "arrival"), "window over what"),
        (("sum", "v", HOUR, None, "event_time", 40), "decimals from 0 to 18"),
    ],
)
def test_an_aggregate_that_cannot_be_meant_is_bad_input(arguments: tuple[object, ...], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        Aggregate(*arguments)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="severity"):
        ViewTest("v > 0", "loud")  # type: ignore[arg-type]


def twice(facts: pa.Table) -> pa.Table:
    return pa.concat_tables([facts, facts])


def test_the_digest_follows_values_and_the_document_everything() -> None:
    whole = replace(
        VIEW, owner="ops@example.com", description="What was seen.", tags={"pii": "no"},
        tests={"positive": "v > 0", "small": ViewTest("v < 9", "warn")}, source=twice,
        aggregations={"mean_6h": Aggregate("mean", "v", 6 * HOUR)},
    )  # fmt: skip
    told = document(whole)
    assert told["owner"] == "ops@example.com" and told["tags"] == {"pii": "no"} and told["ttl"] == "4h"
    assert told["tests"]["small"] == {"condition": "v < 9", "severity": "warn"}
    assert told["source"]["python"] == "twice" and "concat_tables" in told["source"]["code"]
    assert told["aggregations"] == [
        ["mean_6h", {"function": "mean", "value": "v", "window": "6h", "over": "event_time", "decimals": 9}]
    ]
    same = replace(whole, owner="", description="", tags={}, tests={})
    assert definition_digest(same) == definition_digest(whole)
    others = [
        replace(whole, ttl=5 * HOUR), replace(whole, columns={"v": "v + 1"}), replace(whole, available_at="s"),
        replace(whole, aggregations={"mean_6h": Aggregate("mean", "v", 7 * HOUR)}), replace(whole, source=None),
        replace(whole, entity={"k": "kk"}), replace(whole, available_after=HOUR / 3),
        replace(whole, source="SELECT * FROM facts"),
    ]  # fmt: skip
    digests = {definition_digest(each) for each in [whole, *others]}
    assert len(digests) == len(others) + 1


def test_a_windowed_rate_has_a_document_too() -> None:
    rate = WindowedRate("late", 3 * HOUR, ("origin",), prior=Prior(0.2, 5), count="n", owner="ops")
    assert document(rate)["prior"] == {"rate": 0.2, "weight": 5}
    assert definition_digest(rate) != definition_digest(replace(rate, prior=None))
    assert definition_digest(rate) == definition_digest(replace(rate, owner=""))


def test_a_row_reaches_as_far_as_its_ttl_and_windows() -> None:
    both = replace(VIEW, aggregations={"n": Aggregate("count", window=9 * HOUR)})
    assert reach(VIEW) == 4 * HOUR and reach(both) == 9 * HOUR
    assert reach(replace(both, columns={}, ttl=None)) == 9 * HOUR
    for endless in (
        replace(VIEW, ttl=None), replace(both, aggregations={"n": Aggregate("count")}), replace(both, source=twice),
        FeatureView("place", "places", ("k",), ("v",)),
    ):  # fmt: skip
        assert reach(endless) is None
    assert reach(WindowedRate("late", 3 * HOUR)) == 3 * HOUR


@settings(max_examples=30)
@given(facts=oracle.facts.filter(bool), asked=oracle.asked, view=oracle.views)
def test_a_changed_row_changes_nothing_beyond_its_reach(
    facts: list[Fact], asked: list[tuple[str | None, int | None, object]], view: FeatureView
) -> None:
    rows, (gone, *others) = asked_table(asked), facts  # type: ignore[arg-type]
    before = training_set(rows, [view], {"facts": facts_table(facts)}).to_pylist()
    after = training_set(rows, [view], {"facts": facts_table(others)}).to_pylist()
    known = oracle.known_at(view, gone)
    for one, other in zip(before, after, strict=True):
        if one != other:
            assert gone.t is not None and known is not None and one["event_time"] >= known
            span = reach(view)
            assert span is None or one["event_time"] < max(gone.t, known) + span
