"""Requests replayed through the offline path: found again by id, or looked up again by the entities they name."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loopwright.bundle.signature import Field
from loopwright.data.lake import Lake
from loopwright.features.module import FeatureModule
from loopwright.features.view import Aggregate, FeatureView, Spine
from loopwright.kernel.clock import to_us
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.requests import Requests
from loopwright.monitoring.windows import Window
from loopwright.pipeline.feature_watch import measure
from loopwright.pipeline.parity import ParityReport, parity
from loopwright.project.spec import Project, Spec
from loopwright.serving.events import Event

MODEL = "rides"
START = datetime(2026, 3, 2, tzinfo=UTC)
DTYPES = {"driver": "string", "hour": "int64", "rating": "float64", "trips": "int64", "surge": "float64"}


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    made = Lake(tmp_path / "lake", ledger)
    moments = pa.timestamp("us", "UTC")
    made.write("silver", MODEL, "rides", pa.table({
        "ride": ["a", "b"], "driver": ["ann", "bob"], "zone": ["north", "south"],
        "asked": pa.array([at(5), at(6)], moments), "tip": [1.0, 0.0],
    }))  # fmt: skip
    made.write("silver", MODEL, "drivers", pa.table({
        "driver": ["ann", "ann", "bob"], "t": pa.array([at(1), at(4), at(2)], moments), "rating": [4.5, 4.75, 3.0],
    }))  # fmt: skip
    made.write("silver", MODEL, "zones", pa.table({"zone": ["north", "south"], "surge": [1.5, 1.0]}))
    yield made
    ledger.dispose()


@pytest.fixture
def module() -> FeatureModule:
    return FeatureModule(
        spine=Spine(table="rides", key=("ride",), event_time="asked", label="tip > 0", unit="driver",
                    inputs={"driver": "driver", "hour": "hour(asked)"}),
        views=(
            FeatureView(name="driver", table="drivers", entity=("driver",), columns=("rating",), event_time="t",
                        aggregations={"trips": Aggregate("count", window=timedelta(days=1))}),
            FeatureView(name="zone", table="zones", entity=("zone",), columns=("surge",)),
        ),
        inputs=DTYPES,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    spec = Spec.model_validate({
        "model": MODEL, "task": "binary",
        "data": {"sources": {"rides": {"uri": "rides.csv", "contract": "rides.yaml"}}, "label": {"name": "tip"}},
    })  # fmt: skip
    return Project(tmp_path, spec, "")


def asked(rows: list[tuple[str, float, str, float, float, float, float]]) -> Requests:
    """(id, hours, driver, hour, rating, trips, surge)"""
    columns = list(zip(*rows, strict=True))
    inputs: dict[str, Any] = {"driver": np.array(columns[2], dtype=object)}
    inputs |= {
        name: np.array(columns[3 + n], float) for n, name in enumerate(("hour", "rating", "trips", "surge"))
    }
    return Requests(
        total=len(rows), ids=list(columns[0]), units=[str(each) for each in columns[2]],
        event_times=np.array([at(hours).replace(tzinfo=None) for hours in columns[1]], "datetime64[us]"),
        versions=[1] * len(rows), inputs=inputs, outputs=[[] for _ in rows],
    )  # fmt: skip


def replayed(project: Project, module: FeatureModule, lake: Lake, requests: Requests) -> ParityReport:
    return parity(project, module, lake, None, requests, version=1, start=START, end=at(24))


def told(report: ParityReport) -> dict[str, tuple[int, int]]:
    return {each.name: (each.compared, each.different) for each in report.features}


def test_a_request_with_the_key_of_a_row_is_compared_in_every_feature(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    report = replayed(
        project, module, lake, asked([("a", 5, "ann", 5, 4.75, 2, 1.5), ("b", 6, "bob", 6, 3.0, 1, 1.0)])
    )
    assert (report.verdict, report.matched, report.by_key, report.moved) == (Verdict.PASS, 2, 0, 0)
    assert told(report) == dict.fromkeys(DTYPES, (2, 0))
    assert report.sources == {
        "driver": "spine",
        "hour": "spine",
        "rating": "driver",
        "trips": "driver",
        "surge": "zone",
    }


def test_any_other_request_is_compared_where_it_names_the_entity(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    requests = asked([
        ("b", 6, "bob", 6, 3.0, 1, 1.0),
        ("3f2a", 3, "ann", 3, 4.5, 1, 9.9),  # before the correction at four
        ("91bc", 3, "eve", 3, float("nan"), 0, 9.9),  # nobody knows her
    ])  # fmt: skip
    report = replayed(project, module, lake, requests)
    assert (report.verdict, report.matched, report.by_key) == (Verdict.PASS, 1, 2)
    # Where a ride was asked for, its zone, only the rides' own rows tell.
    assert told(report) == {
        "driver": (1, 0),
        "hour": (1, 0),
        "rating": (3, 0),
        "trips": (3, 0),
        "surge": (1, 0),
    }


def test_an_entity_is_looked_up_in_the_type_of_its_column(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    # Identifiers come as text, since a model's numbers cannot hold them; the tables have whole numbers.
    large = 2**53 + 1
    moments = pa.timestamp("us", "UTC")
    lake.write("silver", MODEL, "calls", pa.table({
        "call": ["a"], "account": [large], "asked": pa.array([at(5)], moments), "tip": [1.0],
    }))  # fmt: skip
    lake.write("silver", MODEL, "accounts", pa.table({
        "account": [large, large + 1], "t": pa.array([at(1), at(1)], moments), "rating": [4.5, 3.0],
    }))  # fmt: skip
    asks = FeatureModule(
        spine=Spine(table="calls", key=("call",), event_time="asked", label="tip > 0",
                    inputs={"driver": "CAST(account AS VARCHAR)", "hour": "hour(asked)"}),
        views=(FeatureView("account", "accounts", ("account",), ("rating",), event_time="t"),),
        inputs={"driver": "string", "hour": "int64", "rating": "float64"},
    )  # fmt: skip
    report = replayed(project, asks, lake, asked([
        ("3f2a", 3, str(large), 3, 4.5, 0, 0), ("91bc", 3, str(large + 1), 3, 3.0, 0, 0),
    ]))  # fmt: skip
    assert (report.verdict, report.by_key) == (Verdict.PASS, 2)
    assert told(report)["rating"] == (2, 0)
    report = replayed(project, asks, lake, asked([("3f2a", 3, "no number", 3, 4.5, 0, 0)]))
    assert (report.verdict, report.by_key) == (Verdict.INCONCLUSIVE, 0)


def test_an_input_made_of_a_column_does_not_name_it(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    spine = replace(module.spine, unit=None, inputs={"driver": "upper(driver)", "hour": "hour(asked)"})
    report = replayed(
        project, replace(module, spine=spine), lake, asked([("3f2a", 3, "ANN", 3, 4.5, 1, 9.9)])
    )
    assert (report.verdict, report.by_key) == (Verdict.INCONCLUSIVE, 0)


def test_a_whole_number_that_was_not_logged_exactly_names_no_entity(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    requests = asked([("3f2a", 3, "ann", 2.0**63, 4.5, 1, 1.0), ("91bc", 3, "eve", 2.0**53, np.nan, 0, 1.0)])
    report = replayed(project, module, lake, requests)
    assert (report.verdict, report.matched, report.by_key) == (Verdict.PASS, 0, 2)


def test_skew_is_told_with_the_request_that_shows_it(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    # The serving path took the rating that became known an hour later, and counts no trips.
    report = replayed(project, module, lake, asked([("3f2a", 3, "ann", 3, 4.75, 0, 1.5)]))
    assert report.verdict is Verdict.FAIL
    found = {each.name: each for each in report.features if each.different}
    assert set(found) == {"rating", "trips"}
    (example,) = found["rating"].examples
    assert (example.id, example.request, example.offline) == ("3f2a", 4.75, 4.5)


def test_a_request_asked_at_another_time_than_its_row_is_told(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    report = replayed(project, module, lake, asked([("a", 5.5, "ann", 5, 4.75, 2, 1.5)]))
    assert (report.matched, report.moved) == (1, 1)


def test_nothing_to_compare_is_no_pass(project: Project, module: FeatureModule, lake: Lake) -> None:
    none = asked([("a", 5, "ann", 5, 4.75, 2, 1.5)])
    empty = Requests(0, [], [], none.event_times[:0], [], {k: v[:0] for k, v in none.inputs.items()}, [])
    assert replayed(project, module, lake, empty).verdict is Verdict.INCONCLUSIVE


def test_an_input_that_is_not_logged_is_neither_compared_nor_a_key(
    project: Project, module: FeatureModule, lake: Lake
) -> None:
    requests = asked([("b", 6, "bob", 6, float("nan"), 1, 1.0), ("3f2a", 3, "ann", 3, float("nan"), 1, 9.9)])
    requests.inputs["driver"][:] = None
    skewed = replayed(project, module, lake, requests)
    assert skewed.verdict is Verdict.FAIL
    report = parity(
        project,
        module,
        lake,
        None,
        requests,
        version=1,
        start=START,
        end=at(24),
        unlogged=["rating", "driver"],
    )
    assert report.verdict is Verdict.PASS
    assert set(told(report)) == {"hour", "trips", "surge"}
    # The unit still names the driver.
    assert told(report)["trips"] == (2, 0)


def test_nothing_is_said_of_how_requests_had_an_input_that_is_not_logged(
    module: FeatureModule, lake: Lake, tmp_path: Path
) -> None:
    log = PredictionLog(tmp_path / "predictions")
    moment = to_us(at(6))
    log.append(
        [Event("b", "bob", moment, moment, MODEL, 1, "stable", 1, "ok", "", [None, 6, 3.0, 1, 1.0], [0.5])],
        "one",
    )
    fields = [Field(name, dtype) for name, dtype in DTYPES.items()]  # type: ignore[arg-type]
    window = Window(START, at(24))
    for unlogged, seen in (([], set(DTYPES)), (["driver"], set(DTYPES) - {"driver"})):
        found = measure(
            module, lake, log, model=MODEL, version=1, fields=fields, window=window, unlogged=unlogged
        )
        assert {each.feature for each in found if each.source == "requests"} == seen
