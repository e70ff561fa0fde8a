"""Training sets for rows of one's own: names, times, files, sources and tests."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest

from loopwright.data.files import Files
from loopwright.features import Aggregate, FeatureView, ViewTest
from loopwright.features.training_set import training_set
from loopwright.features.viewtests import results_of
from loopwright.kernel.errors import BadInput, NotFound, Refused

HOUR = timedelta(hours=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


FACTS = pa.table({
    "shop": ["a", "a", "a", "b"],
    "t": [at("2024-03-01T10:00"), at("2024-03-01T12:00"), at("2024-03-01T12:00"), at("2024-03-01T09:00")],
    "seen": [at("2024-03-01T10:00"), at("2024-03-01T12:30"), at("2024-03-02T08:00"), at("2024-03-01T09:00")],
    "sales": [10.0, 30.0, 31.5, 7.0],
})  # fmt: skip
ASKED = pa.table({
    "shop": ["b", "a", "a", "zz", None, "a"],
    "event_time": [at(t) for t in ("2024-03-01T11:00", "2024-03-01T12:00", "2024-03-01T12:30", "2024-03-01T11:00",
                                   "2024-03-01T11:00", "2024-03-03T00:00")],
    "order": [6, 5, 4, 3, 2, 1],
})  # fmt: skip
SALES = FeatureView("sales", "shops", ("shop",), ("sales",), "t", available_at="seen")


def test_a_late_correction_counts_from_when_it_was_known() -> None:
    found = training_set(ASKED, [SALES], {"shops": FACTS}, status=True)
    assert found.drop_columns(["sales", "sales_status"]).equals(ASKED)
    assert found.column("sales").to_pylist() == [7.0, 10.0, 30.0, None, None, 31.5]
    wanted = ["PRESENT", "PRESENT", "PRESENT", "NOT_FOUND", "NULL_KEY", "PRESENT"]
    assert found.column("sales_status").to_pylist() == wanted


def test_a_moment_has_its_own_microsecond() -> None:
    edge = at("2024-03-01T12:30")
    asked = pa.table({"shop": ["a"] * 3, "when": [edge - timedelta(microseconds=1), edge, edge + 4 * HOUR]})
    view = replace(SALES, ttl=timedelta(hours=4, minutes=30))
    found = training_set(asked, [view], {"shops": FACTS}, "when", status=True)
    assert found.column("sales").to_pylist() == [10.0, 30.0, None]
    assert found.column("sales_status").to_pylist()[2] == "EXPIRED"


@pytest.mark.parametrize(
    "moments",
    [
        ["2024-11-03T01:30:00-04:00", "2024-11-03T01:30:00-05:00"],  # the hour that New York has twice
        pa.array([at("2024-11-03T05:30"), at("2024-11-03T06:30")], pa.timestamp("us", "America/New_York")),
        pa.array([at("2024-11-03T05:30"), at("2024-11-03T06:30")], pa.timestamp("ms", "UTC")),
        pa.array([at("2024-11-03T05:30"), at("2024-11-03T06:30")], pa.timestamp("ns", "UTC")),
        pa.array(
            [datetime(2024, 11, 3, 5, 30), datetime(2024, 11, 3, 6, 30)], pa.timestamp("s")
        ),  # no zone: UTC
    ],
    ids=["text", "new york", "milliseconds", "nanoseconds", "no zone"],
)
def test_times_are_moments_however_they_are_written(moments: object) -> None:
    facts = pa.table({"shop": ["a", "a"], "t": [at("2024-11-03T05:00"), at("2024-11-03T06:00")], "n": [1, 2]})
    view = FeatureView("shops", "shops", ("shop",), ("n",), "t", ttl=HOUR)
    asked = pa.table({"shop": ["a", "a"], "event_time": moments})
    assert training_set(asked, [view], {"shops": facts}).column("n").to_pylist() == [1, 2]


def test_rows_come_from_files_too(tmp_path: Path) -> None:
    wanted = training_set(ASKED, [SALES], {"shops": FACTS})
    pa_parquet.write_table(ASKED, tmp_path / "asked.parquet")
    pa_parquet.write_table(FACTS.slice(0, 2), tmp_path / "1.parquet")
    pa_parquet.write_table(FACTS.slice(2), tmp_path / "2.parquet")
    files = Files((str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")), FACTS.schema)
    assert training_set(tmp_path / "asked.parquet", [SALES], {"shops": files}).equals(wanted)
    pa_csv.write_csv(ASKED, tmp_path / "asked.csv")
    found = training_set(str(tmp_path / "asked.csv"), [SALES], {"shops": files})
    assert found.column("sales").to_pylist() == wanted.column("sales").to_pylist()
    with pytest.raises(NotFound, match="the rows are not there"):
        training_set(tmp_path / "no.parquet", [SALES], {"shops": files})
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInput, match=r"torn\.parquet: the rows cannot be read"):
        training_set(tmp_path / "torn.parquet", [SALES], {"shops": files})
    (tmp_path / "asked.xls").write_bytes(b"")
    with pytest.raises(BadInput, match="not a file of rows"):
        training_set(tmp_path / "asked.xls", [SALES], {"shops": files})


def test_no_question_is_a_question_too() -> None:
    found = training_set(ASKED.slice(0, 0), [SALES], {"shops": FACTS}, status=True)
    assert found.num_rows == 0 and found.column_names[-2:] == ["sales", "sales_status"]


def test_two_views_may_give_one_name_when_names_are_full() -> None:
    other = replace(SALES, name="later", available_at=None, available_after=2 * HOUR)
    with pytest.raises(BadInput, match=r"one name; got \['sales'\]"):
        training_set(ASKED, [SALES, other], {"shops": FACTS})
    found = training_set(ASKED, [SALES, other], {"shops": FACTS}, full_names=True)
    assert found.column("sales__sales").to_pylist()[:3] == [7.0, 10.0, 30.0]
    assert found.column("later__sales").to_pylist()[:3] == [7.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"columns": ("slaes",)}, r"feature view sales: .*slaes"),
        ({"table": "shop"}, "did you mean `shops`"),
        ({"entity": {'"order"': "shop"}}, "is integer in the question and text in the rows"),
        ({"entity": ("shpo",)}, "shpo"),
        ({"event_time": "sales IS NULL"}, "feature view sales"),
        ({"aggregations": {"m": Aggregate("mean", "shop")}}, "no mean of what is no number"),
        ({"aggregations": {"m": Aggregate("sum", "sales * 1e300")}}, "hold fewer `decimals`"),
        ({"columns": {"_x": "1"}}, "start with `_` are reserved"),
    ],
)
def test_a_view_that_does_not_fit_its_table_says_so(change: dict[str, object], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        training_set(ASKED, [replace(SALES, **change)], {"shops": FACTS})  # type: ignore[arg-type]


def test_rows_that_do_not_name_a_views_entity_say_which_view() -> None:
    rows = ASKED.rename_columns(["shp", "event_time", "order"])
    with pytest.raises(BadInput, match=r"view `sales`: no column `shop`.*wanted shop\. did you mean `shp`"):
        training_set(rows, [SALES], {"shops": FACTS})
    assert (
        training_set(
            ASKED.rename_columns(["SHOP", "event_time", "order"]), [SALES], {"shops": FACTS}
        ).num_rows
        == 6
    )


def test_a_row_without_a_moment_is_an_error_not_a_lost_row() -> None:
    asked = pa.table({"shop": ["a"], "event_time": pa.array([None], pa.timestamp("us", "UTC"))})
    with pytest.raises(BadInput, match="1 of 1 rows have no moment"):
        training_set(asked, [SALES], {"shops": FACTS})
    with pytest.raises(BadInput, match="did you mean `event_time`"):
        training_set(ASKED, [SALES], {"shops": FACTS}, "event_tiem")


def test_sums_do_not_depend_on_the_order_of_rows() -> None:
    values = [0.1, 0.2, 0.3, 1e9, -1e9, 0.7] * 30
    view = FeatureView(
        "s", "facts", ("k",), event_time="t",
        aggregations={"s": Aggregate("sum", "v"), "m": Aggregate("mean", "v"), "d": Aggregate("stddev", "v")},
    )  # fmt: skip
    asked = pa.table({"k": [1], "event_time": [at("2024-01-02")]})
    found = []
    for order in (values, values[::-1], sorted(values)):
        facts = pa.table({"k": [1] * len(order), "t": [at("2024-01-01")] * len(order), "v": order})
        found.append(
            training_set(asked, [view], {"facts": facts}).drop_columns(["k", "event_time"]).to_pylist()
        )
    assert found[0] == found[1] == found[2]
    assert found[0][0]["s"] == 39.0


@pytest.mark.parametrize("rivals", [2, 4, 5, 40])
def test_of_many_rows_of_one_moment_one_wins_always_the_same_way(rivals: int) -> None:
    rows = [
        {"shop": "a", "t": at("2024-03-01T10:00"), "x": None if n % 2 else 1, "y": n} for n in range(rivals)
    ]
    rows += [{"shop": "a", "t": at("2024-03-01T09:00"), "x": 7, "y": 7}]
    view = FeatureView("v", "shops", ("shop",), ("x", "y"), "t")
    for order in (rows, rows[::-1]):
        found = training_set(ASKED.slice(1, 2), [view], {"shops": pa.Table.from_pylist(order)})
        assert found.select(["x", "y"]).to_pylist() == [{"x": 1, "y": (rivals - 1) // 2 * 2}] * 2


def by_day(shops: pa.Table, rates: pa.Table) -> pa.Table:
    rate = rates.column("rate")[0].as_py()
    days = [moment.replace(hour=0) for moment in shops.column("t").to_pylist()]
    return pa.table(
        {"shop": shops.column("shop"), "day": days, "euro": [s * rate for s in shops["sales"].to_pylist()]}
    )


RATES = pa.table({"rate": [2.0]})
DAILY = FeatureView(
    "daily", "shops", ("shop",), ("euro",), "day", available_after=24 * HOUR, source=by_day, reads=("rates",)
)


def test_a_source_may_be_a_python_function_or_a_query() -> None:
    tables = {"shops": FACTS, "rates": RATES}
    found = training_set(ASKED, [DAILY], tables)
    assert found.column("euro").to_pylist() == [None, None, None, None, None, 63.0]
    query = "SELECT shop, date_trunc('day', t) AS day, sales * rate AS euro FROM shops, rates"
    assert training_set(ASKED, [replace(DAILY, source=query)], tables).equals(found)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (lambda shops, rates: 1 / 0, "failed: ZeroDivisionError"),
        (lambda shops, rates: 7, "gave no table; got int"),
        (lambda shops, rates: shops.select(["shop"]), "day"),
        (lambda shops, rates: by_day(shops, rates).append_column("x", pa.nulls(4)).set_column(
            0, "shop", pa.array([None, "a", "a", "b"])), "gave 1 of 4 rows without entity `shop`"),
        (lambda shops, rates: by_day(shops, rates).set_column(1, "day", pa.nulls(4, pa.timestamp("us"))),
         "gave 4 of 4 rows without event_time"),
        ("SELECT o.shop, t AS day, 1 AS euro FROM shops, other o", "reads `other`, which the view does not"),
        ("SELEKT", "source"),
    ],
)  # fmt: skip
def test_a_source_that_gives_no_rows_of_the_view_says_so(source: object, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        training_set(ASKED, [replace(DAILY, source=source)], {"shops": FACTS, "rates": RATES, "other": FACTS})  # type: ignore[arg-type]


def test_a_test_that_fails_blocks_or_warns_and_shows_rows() -> None:
    tested = replace(
        SALES, tests={"small": "sales < 20 OR sales IS NULL", "there": ViewTest("sales > 0", "warn")}
    )
    with pytest.raises(Refused, match=r"sales, `small`: 2 of 6 rows \(first: 2, 5\) do not meet sales < 20"):
        training_set(ASKED, [tested], {"shops": FACTS})
    found = training_set(ASKED, [tested], {"shops": FACTS}, failed_tests="tell", full_names=True)
    told = {result.name: (result.state, result.failed, result.examples) for result in results_of(found)}
    assert told == {"small": ("FAIL", 2, ("2", "5")), "there": ("WARN", 2, ("3", "4"))}
    calm = replace(tested, tests={"there": tested.tests["there"]})
    assert [r.state for r in results_of(training_set(ASKED, [calm], {"shops": FACTS}))] == ["WARN"]
    wrong = replace(SALES, tests={"odd": "slaes > 0"})
    with pytest.raises(BadInput, match=r"test `odd`.*slaes"):
        training_set(ASKED, [wrong], {"shops": FACTS})


def test_an_empty_cell_of_a_file_is_null_and_a_text_is_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("shop,event_time\n,2024-01-05T00:00:00Z\nNA,2024-01-05T00:00:00Z\n")
    found = training_set(tmp_path / "asked.csv", [SALES], {"shops": FACTS}, status=True)
    assert found.column("shop").to_pylist() == [None, "NA"]
    assert found.column("sales_status").to_pylist() == ["NULL_KEY", "NOT_FOUND"]
