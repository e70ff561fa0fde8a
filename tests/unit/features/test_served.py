"""What a bundle says of the views its inputs come from, read off the flights example and small views."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import loopwright
from loopwright.bundle.manifest import FORMAT, Manifest, parse_manifest
from loopwright.bundle.testing import TINY_SCHEMA
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.newest import layout_of
from loopwright.features.served import online_views
from loopwright.features.view import Aggregate, FeatureView, Prior, Spine, WindowedRate
from loopwright.project.spec import load_project

FLIGHTS = Path(loopwright.__file__).parent / "examples" / "flights"
TYPES = {"flights": {"tailnum": "string", "flight": "int64", "origin": "string", "seats": "double"}}


def small(*views: Any, **inputs: str) -> FeatureModule:
    spine = Spine("flights", "id", "t", label="late", inputs={"place": '"origin"', "upper": "upper(origin)"})
    return FeatureModule(spine, views, {"place": "string", "upper": "string", **inputs})  # type: ignore[arg-type, dict-item]


def test_the_flights_example_says_where_its_inputs_come_from() -> None:
    module = load_features(load_project(FLIGHTS))
    views = {view.name: view for view in online_views(module, timedelta(hours=6), TYPES)}
    weather, plane, by_flight = views["weather"], views["plane"], views["late_flight_30d"]
    assert (weather.entity, weather.kinds, weather.parts) == (("origin",), ("string",), {"origin": "origin"})
    assert weather.ttl_us == 6 * 3_600_000_000
    assert list(weather.inputs) == ["temp", "humid", "wind_speed", "precip", "pressure", "visib"]
    assert (plane.entity, plane.kinds, plane.parts, plane.ttl_us) == (("tailnum",), ("string",), {}, None)
    assert (by_flight.entity, by_flight.kinds) == (("carrier", "flight"), ("string", "int64"))
    assert by_flight.parts == {"carrier": "carrier"}
    backed = {name for view in views.values() for name in view.inputs}
    assert set(module.inputs) - backed == {
        "carrier", "origin", "dest", "distance", "weekday", "sched_dep_minute", "sched_arr_minute",
    }  # fmt: skip


def test_an_input_that_is_computed_is_no_key_and_what_nobody_takes_is_no_view() -> None:
    rate = WindowedRate("late", timedelta(hours=6), on="origin", prior=Prior(0.2, 5), count="late_n")
    odd = FeatureView("odd", "t", {"upper(origin)": "o"}, {"temp": "temp"}, "t")
    unused = FeatureView("unused", "t", "origin", {"other": "other"}, "t")
    views = online_views(small(rate, odd, unused, late="float64", temp="float64"), timedelta(), TYPES)
    assert [view.name for view in views] == ["late", "odd"]
    assert (views[0].inputs, views[0].parts) == ({"late": "late"}, {"origin": "place"})
    assert (views[1].entity, views[1].kinds, views[1].parts) == (("upper(origin)",), ("",), {})


def test_taking_another_column_keeps_the_basis_and_changing_the_window_does_not() -> None:
    def view(window: int) -> FeatureView:
        return FeatureView("w", "t", "origin", {"temp": "temp"}, "t",
                           aggregations={"n": Aggregate("count", window=timedelta(hours=window))})  # fmt: skip

    temp = {"temp": "float64"}
    one, more, other = (
        layout_of(small(view(hours), **inputs), view(hours), timedelta())
        for hours, inputs in ((6, temp), (6, {**temp, "n": "int64"}), (7, temp))
    )
    assert (one.basis == more.basis, one.definition == more.definition) == (True, False)
    assert one.basis != other.basis


def test_a_manifest_from_before_there_were_views_still_opens() -> None:
    (view,) = online_views(
        small(WindowedRate("late", timedelta(1), on="origin"), late="float64"), timedelta(), TYPES
    )
    manifest = Manifest(format=FORMAT, model="m", created_at="2013-01-01T00:00:00Z", files={}, schema=TINY_SCHEMA,
                        provenance={}, views=(view,))  # fmt: skip
    assert parse_manifest(manifest.to_bytes(), where="m") == manifest
    before = manifest.to_bytes().replace(b'"views"', b'"something_else"')
    assert parse_manifest(before, where="m").views == ()
