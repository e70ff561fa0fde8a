"""Flights asked for by tail number, flight and place, of real servers over SQLite and Redis, one of which dies."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import redis as client

import loopwright
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema, as_columns
from loopwright.bundle.testing import logistic_onnx, route_for
from loopwright.bundle.transform import stack
from loopwright.data.lake import Lake
from loopwright.features.materialize import Work, materialize
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.online import open_store
from loopwright.features.served import online_views
from loopwright.features.view import FeatureView
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import iso
from loopwright.ledger.engine import Ledger
from loopwright.project.spec import load_project
from tests.conftest import free_port
from tests.integration.serving.conftest import Control, Server, eventually

MODEL = "flight-late"
AS_OF = datetime(2013, 1, 3, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FLIGHTS = Path(loopwright.__file__).parent / "examples" / "flights"


@dataclass
class Place:
    """A lake with a few flights, the example's features, and a bundle whose inputs are theirs."""

    module: FeatureModule
    lake: Lake
    staging: Path
    flights: list[dict[str, Any]]
    available_after: timedelta

    def materialize(self, url: str, module: FeatureModule | None = None, **options: Any) -> None:
        store = open_store(url)
        try:
            materialize(
                Work(
                    module=module or self.module, model=MODEL, lake=self.lake, store=store, actor=SYSTEM,
                    clock=lambda: AS_OF, staging=self.staging, label_available_after=self.available_after,
                ),
                as_of=AS_OF, **options,
            )  # fmt: skip
        finally:
            store.close()

    def rate(self, hours: float, **on: Any) -> float:
        """What the example's rates are, reckoned again in plain Python."""
        late = [
            flight["arr_delay"] > 15
            for flight in self.flights
            if all(flight[name] == value for name, value in on.items())
            and AS_OF - hours * HOUR < self.known(flight) <= AS_OF
        ]
        return float((sum(late) + 0.2 * 5) / (len(late) + 5))

    def known(self, flight: Mapping[str, Any]) -> datetime:
        landed = int(flight["minute"] + flight["dep_delay"] + flight["air_time"] + 45)
        began: datetime = flight["time_hour"]
        return max(began + timedelta(minutes=landed), began + self.available_after)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("flights")
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    ledger.migrate()
    lake = Lake(folder / "lake", ledger)
    rng = np.random.default_rng(3)
    flights = [
        {
            "year": 2013, "month": 1, "day": 1 + hour // 24, "hour": hour % 24, "minute": 10,
            "flight": 7 if n else 1545,
            "carrier": "AA" if n else "UA", "origin": "JFK" if hour % 3 else "EWR", "dest": "MIA" if n else "IAH",
            "tailnum": f"N{hour % 5}", "distance": 1000.0, "sched_dep_time": 100 * (hour % 24) + 10,
            "sched_arr_time": 1015, "dep_delay": float(rng.integers(-5, 60)), "air_time": 120.0,
            "arr_delay": float(rng.integers(-10, 60)), "time_hour": datetime(2013, 1, 1, tzinfo=UTC) + hour * HOUR,
        }
        for hour in range(60) for n in (0, 1)
    ]  # fmt: skip
    weather = [
        {
            "origin": origin, "time_hour": datetime(2013, 1, 3, tzinfo=UTC) + hour * HOUR, "temp": 30.0 + hour,
            "humid": 60.0, "wind_speed": 5.0 + hour, "precip": 0.0, "pressure": 1010.0, "visib": 10.0,
        }
        for origin in ("EWR", "JFK") for hour in range(24)
    ]  # fmt: skip
    planes = [{"tailnum": f"N{n}", "year": 2000 + n, "seats": 100 + n} for n in range(5)]
    for name, rows in (("flights", flights), ("weather", weather), ("planes", planes)):
        table = pa.Table.from_pylist(rows)
        for at, field in enumerate(table.schema):
            if field.name == "time_hour":
                table = table.set_column(at, "time_hour", table["time_hour"].cast(pa.timestamp("us", "UTC")))
        lake.write("silver", MODEL, name, table)
    project = load_project(FLIGHTS)
    staging = folder / "staging"
    staging.mkdir()
    yield Place(load_features(project), lake, staging, flights, project.spec.data.label.available_after)
    ledger.dispose()


def deploy(place: Place, control: Control) -> None:
    """Put a version on the control plane whose inputs are the example's, views included."""
    module = place.module
    schema = Schema(inputs=tuple(Field(name, dtype) for name, dtype in module.inputs.items()),
                    features=tuple(module.inputs), outputs=("probability",), task="binary")  # fmt: skip
    sample: dict[str, list[Any]] = {
        name: ["JFK"] if dtype == "string" else [1.0] for name, dtype in module.inputs.items()
    }
    state = {
        "codes": {"carrier": {"UA": 1, "AA": 2}, "origin": {"EWR": 1, "JFK": 2}, "dest": {"IAH": 1, "MIA": 2}}
    }
    weights = np.linspace(-0.02, 0.03, len(module.inputs))[:, None] / 50
    columns = as_columns({name: np.array(values, dtype=object) for name, values in sample.items()}, schema)
    features = stack(module.transform.transform(columns, state), schema.features, 1)
    score = float((features.astype(np.float32) @ weights.astype(np.float32))[0, 0])
    types = {"flights": {"tailnum": "string", "flight": "int64"}}
    built = build_bundle(
        control.folder / "flights", model=MODEL, onnx=logistic_onnx(weights, 0.0), schema=schema,
        transform=module.transform_source, state=state, golden=Golden(sample, [[float(1 / (1 + np.exp(-score)))]]),
        reference={}, card="# flights\n", provenance={}, created_at=AS_OF, key=control.key,
        views=online_views(module, place.available_after, types),
    )  # fmt: skip
    assert open_bundle(built.path, [control.key.public]).manifest.views
    control.publish(
        route_for(control.key, {1: control.depot.add(built.path)}, [Arm("stable", 1, 1.0)], model=MODEL)
    )


ASKED: dict[str, list[Any]] = {
    "carrier": ["UA", "AA"], "origin": ["EWR", "JFK"], "dest": ["IAH", "MIA"], "distance": [1400.0, 1089.0],
    "weekday": [4, 4], "sched_dep_minute": [750.0, 760.0], "sched_arr_minute": [900.0, 1000.0],
}  # fmt: skip
ENTITIES: dict[str, list[Any]] = {"_entity.tailnum": ["N1", "N4"], "_entity.flight": [1545, 7]}


def infer(server: Server, tensors: Mapping[str, list[Any]]) -> httpx.Response:
    kinds = {str: "BYTES", int: "INT64", float: "FP64"}
    return server.http.post(f"/v2/models/{MODEL}/infer", json={
        "inputs": [
            {"name": name, "datatype": kinds[type(values[0])], "shape": [len(values)], "data": values}
            for name, values in tensors.items()
        ],
        "parameters": {"event_time": iso(AS_OF)},
    })  # fmt: skip


def by_values(place: Place) -> dict[str, list[Any]]:
    """All inputs of the flights in ASKED, the looked-up ones reckoned from the rows."""
    carriers, origins, dests = ASKED["carrier"], ASKED["origin"], ASKED["dest"]
    flights = ENTITIES["_entity.flight"]
    return ASKED | {
        # The newest observation that was an hour old by noon is that of eleven.
        "temp": [41.0, 41.0], "humid": [60.0, 60.0], "wind_speed": [16.0, 16.0], "precip": [0.0, 0.0],
        "pressure": [1010.0, 1010.0], "visib": [10.0, 10.0],
        "plane_year": [2001.0, 2004.0], "plane_seats": [101.0, 104.0],
        "late_origin_12h": [place.rate(12, origin=origin) for origin in origins],
        "late_dest_6h": [place.rate(6, dest=dest) for dest in dests],
        "late_origin_carrier_2d": [
            place.rate(48, origin=o, carrier=c) for o, c in zip(origins, carriers, strict=True)
        ],
        "late_flight_30d": [
            place.rate(720, carrier=c, flight=f) for c, f in zip(carriers, flights, strict=True)
        ],
        "late_carrier_14d": [place.rate(336, carrier=carrier) for carrier in carriers],
        "late_dest_14d": [place.rate(336, dest=dest) for dest in dests],
    }  # fmt: skip


def probabilities(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["outputs"][0]["data"])


def test_a_flight_asked_for_by_its_entities_is_answered_as_by_its_values(
    place: Place, control: Control, serve: Callable[..., Server], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'online.db'}"
    deploy(place, control)
    server = serve(online=url, workers=2)
    early = infer(server, ASKED | ENTITIES)
    assert (early.status_code, "nothing is online for weather" in early.json()["error"]) == (503, True)
    place.materialize(url)
    looked_up, sent = infer(server, ASKED | ENTITIES), infer(server, by_values(place))
    assert probabilities(looked_up) == probabilities(sent)
    parameters = looked_up.json()["parameters"]
    ages = json.loads(parameters["feature_ages"])
    assert ages["weather"] == [3600.0, 3600.0]
    assert ages["plane"] == [None, None]  # a plane's year has no time
    assert set(json.loads(parameters["feature_statuses"])["late_flight_30d"]) == {"PRESENT"}
    typed = server.http.post(f"/models/{MODEL}/predict", json={
        "inputs": {name: values[0] for name, values in ASKED.items()},
        "entities": {"tailnum": "N1", "flight": 1545}, "event_time": iso(AS_OF),
    })  # fmt: skip
    assert typed.json()["predictions"][0]["outputs"]["probability"] == probabilities(sent)[0]
    server.admin("flush")
    one, two, three, four, five = (event.inputs for event in control.events)
    assert (one, two, five) == (three, four, one)
    assert one == [values[0] for values in by_values(place).values()]

    # The view is changed and brought online again: this version was not trained on that.
    (weather, *others) = place.module.views
    assert isinstance(weather, FeatureView)
    changed = replace(place.module, views=(replace(weather, ttl=5 * HOUR), *others))
    place.materialize(url, changed, views=["weather"])
    refused = infer(server, ASKED | ENTITIES)
    assert (refused.status_code, "another definition" in refused.json()["error"]) == (503, True)
    eventually(
        lambda: any("weather" in said for said in server.http.get("/readyz").json().get("warnings", ()))
    )
    assert probabilities(infer(server, by_values(place))) == probabilities(sent)
    place.materialize(url, views=["weather"])
    assert probabilities(infer(server, ASKED | ENTITIES)) == probabilities(sent)
    metrics = server.http.get("/metrics").text
    assert f'loopwright_feature_lookups_total{{model="{MODEL}",status="PRESENT"}}' in metrics
    assert f'loopwright_features_unfit_total{{model="{MODEL}",version="1"}} 2' in metrics


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a Redis of the test's own, which it may kill and start again on the same port."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Redis is not installed. Run scripts/test-services, or: apt-get install redis-server")
    started: list[subprocess.Popen[bytes]] = []
    port = free_port()

    def start() -> subprocess.Popen[bytes]:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
        process = subprocess.Popen([program, *options, "--requirepass", "hidden"], stdout=subprocess.DEVNULL)
        process.port = port  # type: ignore[attr-defined]
        started.append(process)
        eventually(lambda: _pings(port))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _pings(port: int) -> bool:
    try:
        return bool(client.Redis(port=port, password="hidden").ping())
    except client.ConnectionError:
        return False


def test_a_redis_that_dies_and_comes_back_takes_only_those_with_it_who_need_it(
    place: Place, control: Control, serve: Callable[..., Server], redis: Callable[[], subprocess.Popen[bytes]]
) -> None:
    store = redis()
    url = f"redis://:hidden@127.0.0.1:{store.port}/0"  # type: ignore[attr-defined]
    place.materialize(url, full=True)
    deploy(place, control)
    server = serve(online=url)
    eventually(lambda: infer(server, ASKED | ENTITIES).status_code == 200)  # the first one connects, too
    assert probabilities(infer(server, ASKED | ENTITIES)) == probabilities(infer(server, by_values(place)))
    for pid in server.workers():
        assert b"hidden" not in Path(f"/proc/{pid}/cmdline").read_bytes()

    store.send_signal(signal.SIGSTOP)  # hangs: connections stay open, nothing answers
    began = time.monotonic()
    hung = infer(server, ASKED | ENTITIES)
    assert (hung.status_code, hung.headers["retry-after"]) == (503, "1")
    assert 0.15 < time.monotonic() - began < 10.0  # without a limit: 30 s
    store.send_signal(signal.SIGCONT)
    eventually(lambda: infer(server, ASKED | ENTITIES).status_code == 200)

    store.kill()
    store.wait()
    gone = infer(server, ASKED | ENTITIES)
    assert (gone.status_code, "hidden" in gone.text) == (503, False)
    assert probabilities(infer(server, by_values(place)))
    assert "the online store does not answer" in server.http.get("/readyz").json()["warnings"][0]
    redis()
    place.materialize(url, full=True)
    eventually(lambda: infer(server, ASKED | ENTITIES).status_code == 200)
    # Which worker is asked is the kernel's choice, and each looks for itself.
    eventually(lambda: "warnings" not in server.http.get("/readyz").json())
    assert "hidden" not in server.log.read_text()
