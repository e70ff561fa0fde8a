"""A frame cut from the cache is the frame that would have been built."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from loopwright.data.lake import Lake
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.offline import build_frame
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import parse_time, utc_now
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Silent
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.frames import KEPT, known_rows
from loopwright.pipeline.intake import bring_in, pinned_tables
from loopwright.pipeline.scaffold import init_project
from loopwright.project.spec import Project, load_project

FEATURES = """
from datetime import timedelta

from loopwright.features import Spine, WindowedRate

spine = Spine(
    table="shop",
    key=("order",),
    event_time="placed",
    label="bought > 0",
    label_available_at="placed + INTERVAL 20 HOUR",
    inputs={"x": "x", "place": "place"},
)
views = [WindowedRate(name="lately", on=("place",), window=timedelta(days=3))]
INPUTS = {"x": "float64", "place": "string", "lately": "float64"}
"""
MOMENTS = ("2024-01-03T00:00:00Z", "2024-01-09T07:30:00Z", "2024-01-20T00:00:00Z", None)


@dataclass
class Shop:
    project: Project
    module: FeatureModule
    lake: Lake
    snapshot: str
    cache: Path

    def cached(self, until: datetime | None) -> Frame:
        return known_rows(self.project, self.module, self.lake, self.snapshot, until=until, cache=self.cache)

    def direct(self, until: datetime | None) -> Frame:
        tables = pinned_tables(self.lake, self.snapshot, self.module.tables())
        after = self.project.spec.data.label.available_after
        return build_frame(self.module, tables, label_available_after=after, until=until, require_label=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("frames")
    chance = np.random.default_rng(11)
    hours = np.sort(chance.integers(0, 27 * 24, 400))
    start = parse_time("2024-01-01T00:00:00Z")
    rows = pa.table(
        {
            "order": list(range(400)),
            "placed": [(start + timedelta(hours=int(hour))).strftime("%Y-%m-%dT%H:%M:%SZ") for hour in hours],
            "x": chance.normal(size=400),
            "place": chance.choice(["a", "b"], 400).tolist(),
            "bought": chance.integers(0, 2, 400),
        }
    )
    pa_csv.write_csv(rows, folder / "shop.csv")
    init_project(
        folder / "shop", name="shop", data=folder / "shop.csv", target="bought", time="placed", key=["order"]
    )
    (folder / "shop" / "features.py").write_text(FEATURES)
    home = Home.at(folder / "home")
    home.create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    project = load_project(folder / "shop")
    lake = Lake(home.lake, ledger)
    _, snapshot = bring_in(project, lake, Actor("ada", Role.DEVELOPER), utc_now, Silent())
    yield Shop(project, load_features(project), lake, snapshot.digest, home.frames)
    ledger.dispose()


def same(one: Frame, other: Frame) -> bool:
    columns = [(one.ids(), other.ids()), (one.labels(), other.labels())]
    columns += [(one.inputs()[name], other.inputs()[name]) for name in one.inputs()]
    return one.rows == other.rows and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in columns
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_is_cut_equals_what_would_be_built(shop: Shop, moment: str | None) -> None:
    until = parse_time(moment) if moment else None
    direct = shop.direct(until)
    assert direct.rows > 5
    assert same(shop.cached(until), direct)
    assert same(shop.cached(until), direct)  # from the file this time


def test_one_file_serves_every_moment(shop: Shop) -> None:
    for moment in MOMENTS:
        shop.cached(parse_time(moment) if moment else None)
    assert len(list(shop.cache.glob("*.arrow"))) == 1


def test_a_damaged_file_is_built_again(shop: Shop) -> None:
    shop.cached(None)
    (file,) = shop.cache.glob("*.arrow")
    file.write_bytes(b"not a frame")
    assert same(shop.cached(None), shop.direct(None))


def test_changed_code_is_another_frame_and_old_ones_go(shop: Shop) -> None:
    code = shop.project.dir / "features.py"
    for number in range(KEPT + 2):
        code.write_text(FEATURES + f"# {number}\n")
        shop.cached(None)
    code.write_text(FEATURES)
    assert len(list(shop.cache.glob("*.arrow"))) == KEPT
