"""A backfill writes the days that changed rows reach, no other, and comes to what a whole computation does."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.data.incidents import store
from loopwright.data.incidents.record import move, record_incident
from loopwright.data.lake import Lake
from loopwright.data.snapshot import take_snapshot
from loopwright.features.module import load_features
from loopwright.features.offline import build_frame
from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import Conflict, Refused
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.backfill import BackfillReport, backfill
from loopwright.pipeline.gold import gold_files, refresh_gold
from loopwright.pipeline.intake import pinned_tables
from loopwright.project.spec import Project, load_project

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, PLACES = 20, ("a", "b", "c")
LOOP = """
model: shop
team: t
project: p
owner: o@example.com
task: binary
data:
  sources:
    orders: {uri: orders.csv, contract: c.yaml}
    prices: {uri: prices.csv, contract: c.yaml}
    stock: {uri: stock.csv, contract: c.yaml}
    places: {uri: places.csv, contract: c.yaml}
  label: {name: bought, available_after: 3h}
features: features.py
train: {entry: "train.py:train", seed: 1}
gates: {metrics: {roc_auc: ">= 0.5"}}
"""
FEATURES = """
from datetime import timedelta
from loopwright.features import Aggregate, FeatureView, Spine, WindowedRate

spine = Spine(table="orders", key=("order",), event_time="placed", label="bought > 0", where="x > -5",
              inputs={"x": "x", "place": "place"})
views = [
    FeatureView(name="price", table="prices", entity=("place",), columns=("price",), event_time="seen",
                available_after=timedelta(hours=2)),
    FeatureView(name="stock", table="stock", entity=("place",), columns=("stock",), event_time="seen",
                available_at="told", ttl=timedelta(days=2),
                aggregations={"stock_3d": Aggregate("sum", "stock", window=timedelta(days=3))}),
    FeatureView(name="where", table="places", entity=("place",), columns={"size": "size"}),
    WindowedRate(name="lately", on=("place",), window=timedelta(days=2)),
]
INPUTS = {"x": "float64", "place": "string", "price": "float64", "stock": "float64", "stock_3d": "float64",
          "size": "float64", "lately": "float64"}
"""
TRANSFORM = "def fit(rows):\n    return {}\n\n\ndef transform(rows, state):\n    return rows\n"

Row = dict[str, Any]


def moment(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def tables() -> dict[str, list[Row]]:
    """Three orders a day, prices every other day, stock told late, one row for each place."""
    orders = [
        {"order": n, "placed": moment(8 * n + 1), "x": float(n % 7), "place": PLACES[n % 3], "bought": n % 2}
        for n in range(3 * DAYS)
    ]
    prices = [
        {"place": PLACES[n % 3], "seen": moment(16 * n), "price": float(n)} for n in range(int(1.5 * DAYS))
    ]
    stock = [
        {
            "place": PLACES[n % 3],
            "seen": moment(12 * n),
            "told": moment(12 * n + 5 * (n % 4)),
            "stock": float(n),
        }
        for n in range(2 * DAYS)
    ]
    places = [{"place": place, "size": float(n)} for n, place in enumerate(PLACES)]
    return {"orders": orders, "prices": prices, "stock": stock, "places": places}


@dataclass
class Shop:
    project: Project
    lake: Lake
    rows: dict[str, list[Row]]

    def put(self, table: str, rows: Sequence[Row]) -> None:
        """Make `rows` the silver table's content: one batch for each day, so that files are many."""
        self.rows[table] = list(rows)
        numbered = [row | {"_row": n, "_batch": f"{n % 4}"} for n, row in enumerate(rows, 1)]
        schema = (
            self.lake.files("silver", "shop", table).schema
            if self.lake.exists("silver", "shop", table)
            else None
        )
        self.lake.write("silver", "shop", table, pa.Table.from_pylist(numbered, schema=schema), whole=True)

    def gold(self) -> None:
        snapshot = take_snapshot(self.lake, model="shop", tables=list(self.rows), now=utc_now())
        refresh_gold(
            self.project,
            load_features(self.project),
            self.lake,
            snapshot,
            self.whole(),
            actor=SYSTEM,
            now=utc_now(),
        )

    def whole(self) -> Any:
        """The frame computed from nothing but the tables as they stand."""
        snapshot = take_snapshot(self.lake, model="shop", tables=list(self.rows), now=utc_now())
        module = load_features(self.project)
        pinned = pinned_tables(self.lake, snapshot.digest, module.tables())
        return build_frame(module, pinned, label_available_after=timedelta(hours=3))

    def backfill(self, **named: Any) -> BackfillReport:
        named.setdefault("actor", SYSTEM)
        return backfill(project=self.project, lake=self.lake, clock=utc_now, **named)

    def held(self) -> list[Row]:
        rows = gold_files(self.lake, "shop").table()
        return sorted(rows.drop_columns(["_day"]).to_pylist(), key=lambda row: str(row["_id"]))

    def expected(self) -> list[Row]:
        return sorted(self.whole().table.to_pylist(), key=lambda row: str(row["_id"]))

    def files(self) -> set[str]:
        return set(gold_files(self.lake, "shop").uris)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with its gold table, to be copied."""
    folder = tmp_path_factory.mktemp("template") / "shop"
    code = folder / "code"
    code.mkdir(parents=True)
    for name, text in {"loop.yaml": LOOP, "features.py": FEATURES, "transform.py": TRANSFORM}.items():
        (code / name).write_text(text)
    made = open_shop(folder)
    for name, rows in tables().items():
        made.put(name, rows)
    made.gold()
    made.lake.ledger.dispose()
    return folder


def open_shop(folder: Path) -> Shop:
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    ledger.migrate()
    return Shop(load_project(folder / "code"), Lake(folder / "lake", ledger), tables())


@pytest.fixture
def shop(template: Path, tmp_path: Path) -> Iterator[Shop]:
    opened = open_shop(Path(shutil.copytree(template, tmp_path / "shop")))
    yield opened
    opened.lake.ledger.dispose()


@pytest.fixture(scope="module")
def lasting(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One shop for all examples: each begins with what the last one left."""
    return open_shop(Path(shutil.copytree(template, tmp_path_factory.mktemp("lasting") / "shop")))


def test_gold_has_a_row_for_each_question_and_a_file_for_each_day(shop: Shop) -> None:
    rows = gold_files(shop.lake, "shop").table()
    assert rows.num_rows == 3 * DAYS
    assert len(shop.files()) == DAYS
    assert {row["_event_time"].date() == row["_day"] for row in rows.to_pylist()} == {True}
    assert shop.held() == shop.expected()


def test_writing_the_same_gold_again_writes_nothing(shop: Shop) -> None:
    before = shop.lake.version("gold", "shop", "frame")
    shop.gold()
    assert shop.lake.version("gold", "shop", "frame") == before


def test_without_a_change_nothing_is_written(shop: Shop) -> None:
    before = shop.files()
    report = shop.backfill()
    assert (report.considered, report.written, report.changes) == ((), (), ())
    assert shop.files() == before


def test_a_corrected_price_reaches_its_place_until_the_next_one(shop: Shop) -> None:
    before = shop.files()
    prices = [dict(row) for row in shop.rows["prices"]]
    # Of a, known from 02:00 on day 7 until the next one is, at 02:00 on day 9; a is asked about at 01:00.
    prices[9]["price"] = 1000.0
    shop.put("prices", prices)
    report = shop.backfill()
    assert report.considered == ("2024-01-08", "2024-01-09")
    assert set(report.written) <= set(report.considered) and report.written
    assert shop.held() == shop.expected()
    kept = before & shop.files()
    assert len(kept) == DAYS - len(report.written)
    (change,) = report.changes
    assert (change["table"], change["gone"], change["came"]) == ("prices", 1, 1)
    assert shop.backfill().written == ()


def test_a_row_that_was_released_late_counts_from_when_it_was_known(shop: Shop) -> None:
    late = {"place": "b", "seen": moment(100), "told": moment(150), "stock": 500.0}
    shop.put("stock", [*shop.rows["stock"], late])
    report = shop.backfill()
    # Known at 06:00 on day 7, out of the window of three days at 04:00 on day 8; b is asked about at 09:00.
    assert report.considered == ("2024-01-07",)
    assert shop.held() == shop.expected()


def test_facts_without_time_reach_every_question_about_them(shop: Shop) -> None:
    places = [row | ({"size": 99.0} if row["place"] == "c" else {}) for row in shop.rows["places"]]
    shop.put("places", places)
    report = shop.backfill()
    assert len(report.considered or ()) == DAYS
    assert shop.held() == shop.expected()


def test_changed_features_make_everything_new(shop: Shop) -> None:
    (shop.project.dir / "features.py").write_text(
        FEATURES.replace("timedelta(days=2))", "timedelta(days=1))")
    )
    report = shop.backfill()
    assert (report.considered, report.why) == (None, "the features changed since")
    assert shop.held() == shop.expected()


def test_a_source_of_its_own_makes_everything_new(shop: Shop) -> None:
    own = 'event_time="seen",\n                available_after'
    text = FEATURES.replace(own, f'source="SELECT * FROM prices WHERE price >= 0", {own}')
    assert text != FEATURES
    (shop.project.dir / "features.py").write_text(text)
    shop.backfill()
    shop.put("prices", shop.rows["prices"][:-1])
    assert "rows of its own" in shop.backfill().why
    assert shop.held() == shop.expected()


def test_a_span_that_is_asked_for_is_built_again_though_nothing_changed(shop: Shop) -> None:
    report = shop.backfill(since=moment(24), until=moment(72))
    assert report.considered == ("2024-01-02", "2024-01-03")
    assert report.written == ()


def test_a_dry_run_tells_the_days_and_leaves_gold_alone(shop: Shop) -> None:
    shop.put("orders", shop.rows["orders"][1:])
    before = shop.files()
    report = shop.backfill(dry_run=True)
    assert report.dry_run and "2024-01-01" in (report.considered or ())
    assert shop.files() == before
    assert shop.backfill().written[0] == "2024-01-01"


@settings(max_examples=6)
@given(data=st.data())
def test_a_backfill_comes_to_what_a_whole_computation_does(lasting: Shop, data: st.DataObject) -> None:
    shop = lasting
    for name, rows in tables().items():
        gone = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2), label=f"gone from {name}")
        changed = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2), label=f"changed in {name}")
        column = {"orders": "bought", "prices": "price", "stock": "stock", "places": "size"}[name]
        new = [
            row
            | ({column: 1 - row[column] if name == "orders" else row[column] + 1000} if n in changed else {})
            for n, row in enumerate(rows)
            if n not in gone
        ]
        shop.put(name, new)
    before = shop.files()
    report = shop.backfill()
    assert shop.held() == shop.expected()
    assert len(before - shop.files()) <= len(report.written)


def test_an_incident_is_backfilled_when_it_is_resolved_and_not_before(shop: Shop) -> None:
    with shop.lake.ledger.write() as conn:
        triage = {"kind": "blocked", "count": 1, "first_seen": "x", "last_seen": "x", "last_good": None, "changes": [],
                  "deliveries": [{"uri": "u", "batch": "b", "rows": 1, "bad": 1}]}  # fmt: skip
        incident = record_incident(
            conn,
            table="shop/prices",
            cause="blocked: price",
            title="t",
            triage=triage,
            actor=SYSTEM,
            now=START,
        )
    with pytest.raises(Conflict, match="nothing is mended yet"):
        shop.backfill(incident=incident.id)
    with shop.lake.ledger.write() as conn:
        move(conn, incident, "resolve", actor=SYSTEM, now=START, reason="mended")
    shop.put("prices", shop.rows["prices"][:-3])
    report = shop.backfill(incident=incident.id)
    with shop.lake.ledger.read() as conn:
        told = store.get_incident(conn, incident.id)
        events = store.events_of(conn, incident.id)
    assert told.state == "backfilled"
    assert events[-1].payload["written"] == len(report.written) > 0
    assert events[-1].payload["snapshot"] == report.snapshot


def test_viewers_do_not_backfill(shop: Shop) -> None:
    with pytest.raises(Refused, match="may not backfill"):
        shop.backfill(actor=Actor("vera", Role.VIEWER))


CHILD = """
import os, signal, sys
from pathlib import Path
from loopwright.data.lake import Lake
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import utc_now
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import gold
from loopwright.pipeline.backfill import backfill
from loopwright.project.spec import load_project

folder, deadly = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")

def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if deadly == "before the commit":
    Lake.commit = die
else:
    gold.ledger_store.put_meta = die
backfill(project=load_project(folder / "code"), lake=Lake(folder / "lake", ledger), actor=SYSTEM, clock=utc_now)
"""


@pytest.mark.parametrize("deadly", ["before the commit", "before the ledger knows"])
def test_a_backfill_that_is_killed_is_finished_by_the_next(shop: Shop, tmp_path: Path, deadly: str) -> None:
    prices = [row | ({"price": 500.0} if n == 9 else {}) for n, row in enumerate(shop.rows["prices"])]
    shop.put("prices", prices)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "shop"), deadly], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    shop.backfill()
    assert shop.held() == shop.expected()
    assert shop.backfill().considered == ()
