"""What is counted about features, and which promises it breaks."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput
from loopwright.monitoring.alerts import Cleared, Kind, Raised
from loopwright.monitoring.feature_health import store
from loopwright.monitoring.feature_health.rules import (
    MIN_ROWS,
    broken_rules,
    check_rules,
    feature_condition,
    rule_of,
)
from loopwright.monitoring.feature_health.statistics import FeatureStatistics, statistics_of
from loopwright.monitoring.windows import Window
from loopwright.project.sections import FeatureRule

DAY = Window(datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC))
NAN = float("nan")


def numbers(*values: float, dtype: str = "float64") -> FeatureStatistics:
    columns = {"x": np.array(values, dtype=np.float64)}
    (found,) = statistics_of(columns, {"x": dtype}, views={"x": "v"}, source="requests", window=DAY)  # type: ignore[dict-item]
    return found


def many(value: float = 1.0, rows: int = 100, nulls: int = 0, **changed: object) -> FeatureStatistics:
    made = numbers(*([value] * (rows - nulls)), *([NAN] * nulls))
    return FeatureStatistics(**{name: changed.get(name, getattr(made, name)) for name in made.__slots__})


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), max_size=60))
def test_counts_of_numbers_are_those_of_plain_python(values: list[float | None]) -> None:
    found = numbers(*[NAN if value is None else value for value in values])
    known = [value for value in values if value is not None]
    assert (found.rows, found.nulls, found.distinct) == (len(values), values.count(None), len(set(known)))
    assert found.minimum == (min(known) if known else None)
    assert found.maximum == (max(known) if known else None)
    if known:
        assert found.mean == pytest.approx(math.fsum(known) / len(known), rel=1e-9, abs=1e-6)
    assert found.null_rate == (values.count(None) / len(values) if values else None)


def test_infinity_is_a_value_but_in_no_range() -> None:
    found = numbers(1.0, math.inf, -math.inf, NAN)
    assert (found.distinct, found.infinite, found.minimum, found.maximum, found.nulls) == (3, 2, 1.0, 1.0, 1)


def test_texts_have_their_most_frequent_values() -> None:
    columns = {"x": np.array(["JFK", "LGA", None, "JFK", "EWR"], dtype=object)}
    (found,) = statistics_of(columns, {"x": "string"}, views={}, source="offline", window=DAY)
    assert (found.rows, found.nulls, found.distinct) == (5, 1, 3)
    assert found.top == (("JFK", 2), ("EWR", 1), ("LGA", 1))


def test_age_is_told_from_the_window_s_end() -> None:
    columns = {"x": np.array([1.0])}
    newest = {"v": DAY.end - timedelta(hours=3)}
    (found,) = statistics_of(
        columns, {"x": "float64"}, views={"x": "v"}, source="requests", window=DAY, newest=newest
    )
    assert found.age == 3 * 3600


@pytest.mark.parametrize(
    ("rule", "statistics", "told"),
    [
        (FeatureRule(null_rate=0.1), many(nulls=11), "null rate 11 %, wanted <= 10 %"),
        (FeatureRule(null_rate=0.1), many(nulls=10), None),
        (FeatureRule(distinct=">= 2"), many(), "distinct values 1, wanted >= 2"),
        (FeatureRule(distinct="<= 1"), many(), None),
        (FeatureRule(range=(0, 0.5)), many(), "maximum 1, wanted <= 0.5"),
        (FeatureRule(range=(2, None)), many(), "minimum 1, wanted >= 2"),
        (FeatureRule(range=(None, None)), many(infinite=3), "infinite values 3, wanted none"),
        (FeatureRule(range=(1, 1)), many(), None),
        (FeatureRule(null_rate=0.0), many(rows=MIN_ROWS - 1, nulls=5), None),  # too few to say
        (FeatureRule(freshness=timedelta(hours=2)), many(newest=DAY.end - timedelta(hours=3)),
         "freshness 3h, wanted <= 2h"),
        (FeatureRule(freshness=timedelta(hours=3)), many(newest=DAY.end - timedelta(hours=3)), None),
        (FeatureRule(freshness=timedelta(hours=2)), many(), None),  # no time is known
    ],
)  # fmt: skip
def test_a_rule_is_broken_or_kept(rule: FeatureRule, statistics: FeatureStatistics, told: str | None) -> None:
    found = broken_rules([statistics], {"x": rule})
    assert [str(each).partition(": ")[2].removesuffix(" (requests)") for each in found] == (
        [told] if told else []
    )


def test_without_a_rule_a_view_s_ttl_is_what_its_freshness_is_held_to() -> None:
    stale = [
        many(newest=DAY.end - timedelta(hours=7)),
        many(feature="y", newest=DAY.end - timedelta(hours=7)),
    ]
    (found,) = broken_rules(stale, {}, lives={"v": timedelta(hours=6)})  # once a view, not once a feature
    assert (found.feature, found.rule, found.found) == ("v", "freshness", "7h")
    assert (
        broken_rules(stale, {"v": FeatureRule(freshness=timedelta(hours=8))}, lives={"v": timedelta(hours=6)})
        == []
    )


def test_a_feature_s_own_rule_goes_before_its_view_s() -> None:
    rules = {"v": FeatureRule(null_rate=0.1, distinct=">= 2"), "x": FeatureRule(null_rate=0.5)}
    rule = rule_of("x", "v", rules)
    assert rule is not None
    assert (rule.null_rate, str(rule.distinct)) == (0.5, ">= 2")
    assert rule_of("other", "elsewhere", rules) is None


def test_a_rule_about_nothing_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean `weather`"):
        check_rules({"wether": FeatureRule()}, {"temp": "weather"})
    check_rules({"temp": FeatureRule(), "weather": FeatureRule()}, {"temp": "weather"})


def test_the_alert_is_raised_while_a_rule_is_broken_and_then_cleared() -> None:
    statistics = [many(nulls=50)]
    rules = {"x": FeatureRule(null_rate=0.1)}
    raised = feature_condition(statistics, broken_rules(statistics, rules), 3)
    assert isinstance(raised, Raised)
    assert (raised.kind, raised.version, raised.event_time) == (Kind.FEATURE, 3, DAY.end)
    assert raised.title == "1 rule about features broken: x: null rate 50 %, wanted <= 10 % (requests)"
    assert isinstance(feature_condition([many()], [], 3), Cleared)
    assert feature_condition([], [], 3) is None  # nothing counted is neither good nor bad


def test_statistics_are_kept_and_replaced_by_window(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from loopwright.ledger.engine import Ledger

    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    later = Window(DAY.end, DAY.end + timedelta(days=1))
    first, again = many(nulls=1, newest=DAY.start), many(nulls=2)
    with ledger.write() as conn:
        store.save_statistics(conn, "m", [first], DAY.end)
        store.save_statistics(conn, "m", [again, many(window=later), many(source="offline")], DAY.end)
    with ledger.read() as conn:
        assert store.newest_end(conn, "m", "requests") == later.end
        assert store.newest_end(conn, "other", "requests") is None
        newest = store.load_statistics(conn, "m", source="requests")
        assert [(each.window, each.nulls) for each in newest] == [(later, 0)]
        all_ = store.load_statistics(conn, "m", source="requests", windows=9)
        assert all_[0] == again
        assert len(store.load_statistics(conn, "m", windows=9)) == 3
    ledger.dispose()
