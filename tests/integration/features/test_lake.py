"""Feature views over a lake's own tables: versions, both engines, frames, and tests that block training."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from loopwright.data.lake import Lake
from loopwright.features import Aggregate, FeatureView
from loopwright.features.module import load_features
from loopwright.features.spark import training_set_on, training_set_on_spark
from loopwright.features.training_set import training_set
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import Refused
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Silent
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.frames import known_rows
from loopwright.pipeline.intake import bring_in
from loopwright.pipeline.scaffold import init_project
from loopwright.project.spec import Project, load_project

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    home = Home.at(tmp_path / "home")
    home.create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    yield Lake(home.lake, ledger)
    ledger.dispose()


def batch(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    table = table.append_column("_batch", pa.array([name] * len(rows)))
    return table.append_column("_row", pa.array(range(1, len(rows) + 1), pa.int64()))


def test_a_table_version_gives_the_training_set_of_that_day_on_both_engines(lake: Lake, spark: Any) -> None:
    chance = np.random.default_rng(3)

    def rows(day: int) -> list[dict[str, Any]]:
        return [
            {"shop": f"s{chance.integers(4)}", "sold": START + day * DAY + int(chance.integers(86_400)) * DAY / 86_400,
             "euro": float(chance.normal())}
            for _ in range(40)
        ]  # fmt: skip

    lake.write("silver", "m", "sales", batch("one", rows(0)))
    first = lake.version("silver", "m", "sales")
    lake.write("silver", "m", "sales", batch("two", rows(1)))
    view = FeatureView(
        "sales", "sales", ("shop",), {"last_euro": "euro"}, "sold", ttl=DAY,
        aggregations={"n_1d": Aggregate("count", window=DAY), "sum_1d": Aggregate("sum", "euro", DAY)},
    )  # fmt: skip
    asked = pa.table({"shop": ["s0", "s1", "s9", "s0"], "event_time": [START + 2 * DAY] * 3 + [START + DAY]})
    then, now = lake.files("silver", "m", "sales", version=first), lake.files("silver", "m", "sales")
    found = {}
    for name, files in (("then", then), ("now", now)):
        found[name] = training_set(asked, [view], {"sales": files}, status=True)
        whole = training_set(asked, [view], {"sales": files.table(["shop", "sold", "euro"])}, status=True)
        assert found[name].equals(whole)
    assert training_set_on_spark(spark, asked, [view], {"sales": then}, status=True).equals(found["then"])
    for engine in ("local[2]", "duckdb"):  # as a home names it
        assert training_set_on(engine, asked, [view], {"sales": now}, status=True).equals(found["now"])
    assert found["then"].column("n_1d").to_pylist()[0] == 0 < found["now"].column("n_1d").to_pylist()[0]
    assert found["then"].slice(3).equals(found["now"].slice(3))  # what came later does not change what was
    assert spark.range(1).count() == 1  # a session that was open stays open


FEATURES = """
from datetime import timedelta

import pyarrow as pa

from loopwright.features import Aggregate, FeatureView, Spine, ViewTest

def doubled(shop):
    return shop.set_column(shop.column_names.index("x"), "x", pa.compute.multiply(shop["x"], 2.0))

import pyarrow.compute  # noqa: E402

spine = Spine(table="shop", key=("order",), event_time="placed", label="bought > 0",
              label_available_at="placed + INTERVAL 20 HOUR", inputs={"x": "x"})
views = [
    FeatureView(
        "place", "shop", ("place",), {"before": "x"}, "placed",
        ttl=timedelta(days=2), available_after=timedelta(hours=1),
        aggregations={"orders_3d": Aggregate("count", window=timedelta(days=3)),
                      "mean_3d": Aggregate("mean", "x", timedelta(days=3), where="bought > 0")},
        source=doubled, tests={"few": ViewTest("orders_3d < LIMIT", "SEVERITY"), "counted": "orders_3d >= 0"},
    ),
]
INPUTS = {"x": "float64", "before": "float64", "orders_3d": "int64", "mean_3d": "float64"}
"""


@dataclass
class Shop:
    project: Project
    lake: Lake
    snapshot: str
    rows: list[dict[str, Any]]
    cache: Path

    def features(self, limit: int, severity: str) -> Any:
        text = FEATURES.replace("LIMIT", str(limit)).replace("SEVERITY", severity)
        (self.project.dir / "features.py").write_text(text)
        return load_features(self.project)


@pytest.fixture
def shop(tmp_path: Path, lake: Lake) -> Shop:
    chance = np.random.default_rng(5)
    hours = np.sort(chance.integers(0, 10 * 24, 80))
    rows = [
        {"order": n, "placed": START + timedelta(hours=int(hour)), "x": float(n % 7), "place": "ab"[n % 2],
         "bought": int(chance.integers(2))}
        for n, hour in enumerate(hours)
    ]  # fmt: skip
    told = [{**row, "placed": row["placed"].strftime("%Y-%m-%dT%H:%M:%SZ")} for row in rows]
    pa_csv.write_csv(pa.Table.from_pylist(told), tmp_path / "shop.csv")
    init_project(
        tmp_path / "shop",
        name="shop",
        data=tmp_path / "shop.csv",
        target="bought",
        time="placed",
        key=["order"],
    )
    project = load_project(tmp_path / "shop")
    _, snapshot = bring_in(project, lake, Actor("ada", Role.DEVELOPER), utc_now, Silent())
    return Shop(project, lake, snapshot.digest, rows, tmp_path / "frames")


def test_a_frame_holds_windows_and_rows_of_a_python_function(shop: Shop) -> None:
    module = shop.features(1000, "block")
    frame = known_rows(shop.project, module, shop.lake, shop.snapshot, until=None, cache=shop.cache)
    assert frame.rows == len(shop.rows) and [result.state for result in frame.tests] == ["PASS", "PASS"]
    for got in frame.table.to_pylist():
        row = shop.rows[int(got["_id"])]
        known = [
            r for r in shop.rows if r["place"] == row["place"] and r["placed"] + DAY / 24 <= row["placed"]
        ]
        recent = [r for r in known if r["placed"] > row["placed"] - 3 * DAY]
        bought = [2 * r["x"] for r in recent if r["bought"]]
        best = max(known, key=lambda r: (r["placed"], r["x"]), default=None)
        fresh = best is not None and row["placed"] < best["placed"] + 2 * DAY
        assert got["orders_3d"] == len(recent)
        assert got["mean_3d"] == (pytest.approx(sum(bought) / len(bought)) if bought else None)
        assert got["before"] == (2 * best["x"] if fresh and best else None)


def test_a_failed_test_of_a_view_blocks_training_and_a_warning_is_kept(shop: Shop) -> None:
    module = shop.features(5, "block")
    for _ in range(2):
        with pytest.raises(
            Refused, match=r"place, `few`: \d+ of 80 rows \(first: .*do not meet orders_3d < 5"
        ):
            known_rows(shop.project, module, shop.lake, shop.snapshot, until=None, cache=shop.cache)
    assert not shop.cache.exists()
    module = shop.features(5, "warn")
    built, cached = (
        known_rows(shop.project, module, shop.lake, shop.snapshot, until=None, cache=shop.cache)
        for _ in range(2)
    )
    assert [(r.name, r.state) for r in built.tests] == [("few", "WARN"), ("counted", "PASS")]
    assert cached.tests == built.tests and built.tests[0].failed > 0
