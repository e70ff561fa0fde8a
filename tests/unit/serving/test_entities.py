"""Requests that name entities: what is looked up, what wins, what is refused, and what nothing may be given."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import OnlineView
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Arm, FeaturePolicy, ServingPolicy
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import tiny_answer, tiny_bundle
from loopwright.features.online import Head, open_store, pack, pack_key
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import Unavailable
from loopwright.serving import inference_pb2 as pb
from loopwright.serving import v2
from loopwright.serving.app import App, Bounds
from loopwright.serving.counters import Counters, read_counters
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.engine import Engine, Model, Served
from loopwright.serving.entities import EntityFeatures
from loopwright.serving.events import Event, SegmentWriter, read_frames
from loopwright.serving.grpc_server import SERVICE, server_of
from loopwright.serving.lookups import TIMEOUTS, Lookups

KEY = SigningKey.generate()
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = 3_600_000_000
STABLE = Arm("stable", 1, 1.0)

PLANE = OnlineView(
    name="plane", definition="plane-1", basis="plane-b", view="plane-v", entity=("tailnum",), kinds=("string",),
    inputs={"distance": "distance"},
)  # fmt: skip
PLACE = OnlineView(
    name="place", definition="place-1", basis="place-b", view="place-v", entity=("carrier", "number"),
    kinds=("string", "int64"), inputs={"hour": "hour"}, parts={"carrier": "carrier"},
)  # fmt: skip
NULLABLE = Schema(
    inputs=(Field("distance", "float64"), Field("hour", "int64"), Field("carrier", "string")),
    features=("distance", "hour", "carrier"), outputs=("probability",), task="binary",
)  # fmt: skip
NO_HOUR = """
import numpy as np

def transform(inputs, state):
    codes = state["carriers"]
    return {
        "distance": np.nan_to_num(inputs["distance"]) / 1000,
        "hour": np.nan_to_num(inputs["hour"]) / 24,
        "carrier": np.array([codes.get(c, -1) for c in inputs["carrier"]], dtype=np.float32),
    }
"""


def head(view: OnlineView, **changes: Any) -> Head:
    (column,) = view.inputs.values()
    dtype = {"distance": "float64", "hour": "int64"}[column]
    return msgspec.structs.replace(
        Head(
            definition=view.definition, schema=7, generation=0, change=0, entity=view.entity, kinds=view.kinds,
            columns=(column,), dtypes=(dtype,), as_of=to_us(NOON), ttl=6 * HOUR, view=view.view, basis=view.basis,
        ),
        **changes,
    )  # fmt: skip


class Host:
    def __init__(self) -> None:
        self.features: EntityFeatures | None = None

    def not_started(self) -> str:
        return ""

    def not_ready(self) -> str:
        return ""

    def warnings(self) -> list[str]:
        return self.features.warnings() if self.features else []

    def gauges(self) -> Mapping[str, float]:
        return {}

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        return 200, {}


class Site:
    """A worker's inside with tiny models whose distance comes from `plane` and whose hour comes from `place`."""

    def __init__(
        self, folder: Path, bundles: dict[int, Bundle], *arms: Arm, policy: ServingPolicy | None = None,
        online: bool = True,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.url = f"sqlite:///{folder / 'online.db'}"
        self.store = open_store(self.url)
        self.host = Host()
        self.counters = Counters(folder / "w0.counters")
        self.engine = Engine(
            SegmentWriter(folder, "w0"), self.counters, now_us=lambda: to_us(NOON), limit=NoDeadline()
        )
        versions = {number: Served.of(number, bundle) for number, bundle in bundles.items()}
        model = Model("late", "salt", arms or (STABLE,), versions, policy=policy or ServingPolicy())
        self.engine.serve({"late": model})
        self.app = App(self.engine, self.counters, self.host, folder, Bounds())
        if online:
            lookups = Lookups(open_store(self.url), inline=True)
            self.host.features = EntityFeatures(lookups, self.counters, clock=lambda: NOON)
            self.app.front.entities = self.host.features
        self.app.publish()

    def online(
        self, view: OnlineView, rows: Mapping[Any, Any], *, hours_old: float = 1.0, **changes: Any
    ) -> None:
        at = to_us(NOON) - int(hours_old * HOUR)
        writing = self.store.begin("late", view.name, f"b{len(list(self.folder.iterdir()))}{at}{changes}")
        packed = [
            (pack_key(key if isinstance(key, tuple) else (key,)), pack(7, at, at, (value,)))
            for key, value in rows.items()
        ]
        writing.put(packed, [], len(packed))
        writing.publish(head(view, **changes))

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                answer = await http.request(method, path, **options)
            await self.engine.drained()
            return answer

        return asyncio.run(run())

    def infer(self, path: str = "/v2/models/late/infer", **tensors: Any) -> httpx.Response:
        parameters = tensors.pop("parameters", None)
        body = {"inputs": [tensor(name, values) for name, values in tensors.items()]}
        return self.call("POST", path, json=body | ({"parameters": parameters} if parameters else {}))

    def events(self) -> list[Event]:
        return [
            event for path in sorted(self.folder.glob("*.seg")) for event in read_frames(path.read_bytes())
        ]

    def count(self, *key: str) -> int:
        found = read_counters(self.folder).get(key)
        return found.count if found else 0


def tensor(name: str, values: Any) -> dict[str, Any]:
    values = values if isinstance(values, list) else [values]
    name = name.replace("entity_", "_entity.")
    kind = next((type(value) for value in values if value is not None), float if name == "distance" else str)
    datatype = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}[kind]
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}


def told(answer: httpx.Response, what: str) -> Any:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.json()["parameters"][what])


def probability(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["outputs"][0]["data"])


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(name: str, *views: OnlineView, **options: Any) -> Bundle:
        full = {"schema": NULLABLE, "transform": NO_HOUR, "views": views or (PLANE, PLACE), **options}
        return open_bundle(tiny_bundle(tmp_path / name, KEY, **full).path, [KEY.public])

    return make


@pytest.fixture
def site(tmp_path: Path, bundle: Callable[..., Bundle]) -> Site:
    made = Site(tmp_path, {1: bundle("one")})
    made.online(PLANE, {"N1": 500.0, "N2": None})
    made.online(PLACE, {("UA", 5): 6, ("AA", 7): 23}, ttl=None, lasting=("hour",))
    return made


def test_what_is_looked_up_answers_as_what_is_sent_and_is_what_is_logged(site: Site) -> None:
    raw = site.infer(distance=500.0, hour=6, carrier="UA")
    by_entity = site.infer(entity_tailnum="N1", entity_carrier="UA", entity_number=5)
    assert probability(raw) == probability(by_entity) == [pytest.approx(tiny_answer(500.0, 6, "UA"))]
    assert [event.inputs for event in site.events()] == [[500.0, 6, "UA"]] * 2
    assert told(by_entity, "feature_ages") == {"plane": [3600.0], "place": [3600.0]}
    assert told(by_entity, "feature_statuses") == {"plane": ["PRESENT"], "place": ["PRESENT"]}
    assert "feature_ages" not in raw.json()["parameters"]
    assert site.count("features", "late", "PRESENT") == 2


def test_an_input_may_be_the_key_of_others_and_what_is_sent_wins(site: Site) -> None:
    answer = site.infer(entity_number=[5, 7], carrier=["UA", "AA"], distance=[1.0, None])
    assert [event.inputs for event in site.events()] == [[1.0, 6, "UA"], [None, 23, "AA"]]
    assert told(answer, "feature_ages") == {"place": [3600.0, 3600.0]}


@pytest.mark.parametrize(
    ("tailnum", "hours_old", "status", "age"),
    [
        ("N1", 1.0, "PRESENT", 3600.0),
        ("N1", 6.0, "EXPIRED", 6 * 3600.0),
        ("N2", 1.0, "PRESENT", 3600.0),
        ("N9", 1.0, "NOT_FOUND", None),
        (None, 1.0, "NULL_KEY", None),
    ],
)
def test_a_value_that_is_not_there_is_null_and_told(
    site: Site, tailnum: str | None, hours_old: float, status: str, age: float | None
) -> None:
    site.online(PLANE, {"N1": 500.0, "N2": None}, hours_old=hours_old)
    answer = site.infer(entity_tailnum=tailnum, hour=6, carrier="UA")
    assert (told(answer, "feature_statuses"), told(answer, "feature_ages")) == (
        {"plane": [status]},
        {"plane": [age]},
    )
    present = tailnum == "N1" and status == "PRESENT"
    assert site.events()[0].inputs == [500.0 if present else None, 6, "UA"]


def test_a_null_where_the_model_takes_none_names_the_entity_and_the_view(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    strict = Schema(inputs=(Field("distance", "float64", nullable=False), *NULLABLE.inputs[1:]),
                    features=NULLABLE.features, outputs=NULLABLE.outputs, task="binary")  # fmt: skip
    site = Site(tmp_path, {1: bundle("one", schema=strict)})
    site.online(PLANE, {"N2": None})
    for tailnum, status in (("N9", "NOT_FOUND"), ("N2", "NULL")):
        answer = site.infer(entity_tailnum=tailnum, hour=6, carrier="UA")
        assert answer.status_code == 422
        assert f"plane knows no `distance` of this entity ({status})" in answer.json()["error"]
        assert tailnum in answer.json()["error"]
    assert site.events() == []


def test_a_moment_of_the_past_is_judged_as_it_was(site: Site) -> None:
    then = "2013-07-01T18:30:00Z"  # the row is from 11:00 and lives six hours
    answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA", parameters={"event_time": then})
    assert told(answer, "feature_statuses") == {"plane": ["EXPIRED"]}
    assert told(answer, "feature_ages") == {"plane": [7.5 * 3600]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"entity_tailnmu": "N1", "hour": 6, "carrier": "UA"}, "did you mean `tailnum`?"),
        ({"entity_tailnum": "N1", "hour": 6}, "input `carrier` is missing, and it comes from no online view"),
        ({"entity_tailnum": "N1", "carrier": "UA"}, "place is looked up by `number`, which is missing"),
        ({"entity_carrier": "UA", "carrier": "AA", "entity_number": 5, "distance": 1.0}, "differ; got 'UA' and 'AA'"),
        ({"entity_tailnum": 5, "hour": 6, "carrier": "UA"}, "a key of another type; got 5, wanted string"),
        ({"entity_tailnum": "N" * 5000, "hour": 6, "carrier": "UA"}, "not a key"),
        ({"entity_tailnum": ["N1", "N2"], "hour": 6, "carrier": "UA"}, "another number of rows"),
        ({"entity_tailnum": [], "carrier": []}, "no rows"),
        ({"entity_tailnum": "N1", "hours": 6, "carrier": "UA"}, "the model has no input `hours`"),
        ({"entity_carrier": 5, "entity_number": 5, "distance": 1.0}, "a value of another kind"),
    ],
)  # fmt: skip
def test_what_names_nothing_is_told_so(site: Site, tensors: dict[str, Any], message: str) -> None:
    answer = site.infer(**tensors)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert site.events() == []


def test_a_server_without_a_store_and_a_version_without_views_say_so(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    (tmp_path / "a").mkdir()
    without = Site(tmp_path / "a", {1: bundle("one")}, online=False).infer(entity_tailnum="N1")
    assert (without.status_code, "start the server with --online" in without.json()["error"]) == (422, True)
    (tmp_path / "b").mkdir()
    old = Site(tmp_path / "b", {1: open_bundle(tiny_bundle(tmp_path / "old", KEY).path, [KEY.public])})
    answer = old.infer(entity_tailnum="N1")
    assert (answer.status_code, "takes no input from an online view" in answer.json()["error"]) == (422, True)


def test_metadata_tells_what_may_be_left_out(site: Site) -> None:
    told = site.call("GET", "/v2/models/late").json()["parameters"]["online"]
    assert told == {
        "plane": {"entity": ["tailnum"], "inputs": ["distance"]},
        "place": {"entity": ["carrier", "number"], "inputs": ["hour"]},
    }


@pytest.mark.parametrize("raw", [False, True])
def test_grpc_takes_entities_as_rest_does(site: Site, raw: bool) -> None:
    given: dict[str, list[Any]] = {"_entity.tailnum": ["N1"], "_entity.number": [5], "carrier": ["UA"]}
    request = pb.ModelInferRequest(model_name="late")
    for name, values in given.items():
        datatype = "INT64" if name == "_entity.number" else "BYTES"
        sent = request.inputs.add(name=name, datatype=datatype, shape=[1])
        if raw:
            request.raw_input_contents.append(v2.pack_tensor(values, datatype))
        elif datatype == "INT64":
            sent.contents.int64_contents.extend(values)
        else:
            sent.contents.bytes_contents.extend(value.encode() for value in values)

    async def ask() -> pb.ModelInferResponse:
        server = server_of(site.app.front)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            answer: pb.ModelInferResponse = await method(request)
        await server.stop(None)
        return answer

    answer = asyncio.run(ask())
    ages = answer.parameters["feature_ages"].string_param
    assert json.loads(ages) == {"plane": [3600.0], "place": [3600.0]}
    assert [event.inputs for event in site.events()] == [[500.0, 6, "UA"]]


def predict(site: Site, **body: Any) -> httpx.Response:
    return site.call("POST", "/models/late/predict", json=body)


def test_the_typed_route_takes_entities_beside_inputs_and_tells_each_rows_ages(site: Site) -> None:
    answer = predict(
        site,
        entities=[{"tailnum": "N1", "carrier": "UA", "number": 5}, {"tailnum": "N9"}],
        inputs=[{"_id": "a"}, {"hour": 23, "carrier": "AA"}],
    )
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["predictions"]
    assert first["outputs"] == {"probability": pytest.approx(tiny_answer(500.0, 6, "UA"))}
    present = {"status": "PRESENT", "age": 3600.0}
    assert (first["id"], first["features"]) == ("a", {"plane": present, "place": present})
    assert second["features"] == {"plane": {"status": "NOT_FOUND", "age": None}}
    assert [event.inputs for event in site.events()] == [[500.0, 6, "UA"], [None, 23, "AA"]]
    alone = predict(site, entities={"tailnum": "N1", "carrier": "UA", "number": 5}, unit="u", id="x")
    assert alone.json()["predictions"][0]["outputs"] == first["outputs"]
    assert (site.events()[-1].id, site.events()[-1].unit) == ("x", "u")
    assert "features" not in predict(site, inputs={"distance": 1.0, "hour": 6, "carrier": "UA"}).text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"entities": {"tailnum": "N1"}, "inputs": [{}]}, "differ in number; got 1 rows, wanted one object"),
        ({"entities": [{"tailnum": "N1"}, {}], "inputs": [{}]}, "got 1 rows, wanted a list of 2"),
        ({"entities": "N1"}, "entities: not an entity"),
        ({"entities": []}, "entities: no rows"),
        ({"entities": {"tailnum": {"a": 1}}}, "entities.tailnum: not a key"),
        ({"entities": {"tailnum": "N1"}, "inputs": {"_entity.tailnum": "N1"}}, "entities have a place of their own"),
        ({"entities": {"tailnum": "N1"}, "inputs": {"hour": "six"}}, "inputs.hour: a value of another kind"),
        ({"entities": {"tailnum": "N1"}, "inputs": {"hours": 6}}, "inputs.hours: the model has no input `hours`"),
        ({"entities": {"tailnum": "N1"}, "input": {}}, "did you mean `inputs`?"),
    ],
)  # fmt: skip
def test_the_typed_route_says_where_entities_are_wrong(
    site: Site, body: dict[str, Any], message: str
) -> None:
    answer = predict(site, **body)
    assert (answer.status_code, site.events()) == (422, [])
    assert message in answer.json()["error"]


def test_the_document_of_the_typed_route_says_what_may_be_left_out(site: Site) -> None:
    schemas = site.call("GET", "/openapi.json").text
    document = json.loads(schemas)
    bodies = [
        one["content"]["application/json"]["schema"]
        for path, calls in document["paths"].items()
        if path == "/models/late/predict"
        for one in [calls["post"]["requestBody"]]
    ]
    (body,) = bodies
    forms = (
        document["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]["oneOf"]
        if "$ref" in body
        else body["oneOf"]
    )
    entity = forms[1]["properties"]["entities"]["oneOf"][0]
    assert entity["properties"] == {
        "tailnum": {"type": ["string", "null"], "maxLength": 4096},
        "carrier": {"type": ["string", "null"], "maxLength": 4096},
        "number": {"type": ["integer", "null"], "minimum": -(2**63 - 1), "maximum": 2**63 - 1},
    }
    assert "place (carrier, number) gives hour" in entity["description"]


# What is online may not be what a version was trained on.


def test_features_of_another_definition_are_refused_and_said_on_readyz(site: Site) -> None:
    site.online(PLANE, {"N1": 7.0}, definition="plane-2", basis="other", hours_old=0.5)
    answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
    assert answer.status_code == 503
    assert "made by another definition (plane-2) than it was trained with (plane-1)" in answer.json()["error"]
    assert "loopwright features materialize late" in answer.json()["error"]
    assert (site.events(), site.count("features_unfit", "late", "1")) == ([], 1)
    assert probability(site.infer(distance=7.0, hour=6, carrier="UA"))  # nothing is looked up for this one
    assert site.host.features is not None
    asyncio.run(site.host.features.look(site.engine.models))
    (said,) = site.call("GET", "/readyz").json()["warnings"]
    assert said.startswith("late version 1: what is online as plane")
    site.online(PLANE, {"N1": 500.0}, hours_old=0.25)
    asyncio.run(site.host.features.look(site.engine.models))
    assert "warnings" not in site.call("GET", "/readyz").json()


def test_the_same_definition_with_more_columns_is_the_same(site: Site) -> None:
    site.online(PLANE, {"N1": 7.0}, definition="plane-2", hours_old=0.5)  # its basis is plane-b still
    assert told(site.infer(entity_tailnum="N1", hour=6, carrier="UA"), "feature_ages") == {"plane": [1800.0]}


@pytest.mark.parametrize("why", ["definition", "max_age", "nothing"])
def test_a_policy_may_answer_with_nulls_instead(
    tmp_path: Path, bundle: Callable[..., Bundle], why: str
) -> None:
    policy = ServingPolicy(features=FeaturePolicy(missing="nulls", max_age_s=3600.0))
    site = Site(tmp_path, {1: bundle("one")}, policy=policy)
    site.online(PLACE, {("UA", 5): 6}, ttl=None)
    if why == "definition":
        site.online(PLANE, {"N1": 7.0}, definition="plane-2", basis="other")
    elif why == "max_age":
        site.online(PLANE, {"N1": 7.0}, as_of=to_us(NOON) - 2 * HOUR)
    answer = site.infer(entity_tailnum="N1", entity_carrier="UA", entity_number=5)
    assert told(answer, "feature_statuses") == {"plane": ["UNAVAILABLE"], "place": ["PRESENT"]}
    assert site.events()[0].inputs == [None, 6, "UA"]


def test_what_is_known_up_to_too_long_ago_is_refused(tmp_path: Path, bundle: Callable[..., Bundle]) -> None:
    site = Site(tmp_path, {1: bundle("one")}, policy=ServingPolicy(features=FeaturePolicy(max_age_s=3600.0)))
    site.online(PLANE, {"N1": 7.0}, as_of=to_us(NOON) - 2 * HOUR)
    answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
    assert answer.status_code == 503
    assert "plane is known up to 7200 s ago; wanted at most 3600 s" in answer.json()["error"]


def test_a_canary_of_another_definition_errs_stable_stands_in_and_its_shadow_gets_no_copy(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    changed = msgspec.structs.replace(PLANE, definition="plane-2", basis="plane-2b")
    bundles = {1: bundle("one"), 2: bundle("two", changed, PLACE), 3: bundle("three", changed, PLACE)}
    arms = (Arm("stable", 1, 0.0), Arm("canary", 2, 1.0), Arm("shadow", 3, 1.0))
    site = Site(tmp_path, bundles, *arms)
    site.online(PLANE, {"N1": 500.0})
    answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
    assert (answer.json()["model_version"], answer.json()["parameters"]["fallback"]) == ("1", True)
    assert [(event.arm, event.status) for event in site.events()] == [
        ("canary", "error"),
        ("stable", "fallback"),
    ]
    assert "another definition" in site.events()[0].error
    assert site.count("shadow_dropped", "late", "3") == 1
    direct = site.infer("/v2/models/late/versions/2/infer", entity_tailnum="N1", hour=6, carrier="UA")
    assert direct.status_code == 503  # who asks for a version gets it, or an error


def test_a_configured_answer_stands_in_when_nothing_can_be_looked_up(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    site = Site(
        tmp_path, {1: bundle("one")}, policy=ServingPolicy(default={"probability": 0.25}, cached_answers=9)
    )
    assert probability(site.infer(distance=None, hour=6, carrier="UA")) != [0.25]  # and is kept
    answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
    assert (probability(answer), answer.json()["parameters"]["arm"]) == ([0.25], "default")
    assert "nothing is online for plane" in site.events()[1].error


# A store that is away.


class Broken:
    """A store that answers with an error, or not before it is let go."""

    url = "redis://x"

    def __init__(self, wait: float = 0.0) -> None:
        self.wait, self.calls = wait, 0

    def heads(self, model: str) -> dict[str, Head]:
        self.calls += 1
        time.sleep(self.wait)
        raise Unavailable("Redis does not answer", where=self.url)

    def close(self) -> None:
        pass


@pytest.fixture
def broken(tmp_path: Path, bundle: Callable[..., Bundle]) -> Iterator[Callable[..., tuple[Site, Broken]]]:
    opened: list[Lookups] = []

    def make(wait: float = 0.0, **features: Any) -> tuple[Site, Broken]:
        policy = ServingPolicy(features=FeaturePolicy(**features))
        site, store = Site(tmp_path, {1: bundle("one")}, policy=policy), Broken(wait)
        lookups = Lookups(store, inline=False)  # type: ignore[arg-type]
        opened.append(lookups)
        site.host.features = site.app.front.entities = EntityFeatures(
            lookups, site.counters, clock=lambda: NOON
        )
        return site, store

    yield make
    for lookups in opened:
        lookups.close()


def test_a_store_that_is_away_is_told_with_when_to_come_again_and_left_alone(
    broken: Callable[..., tuple[Site, Broken]],
) -> None:
    site, store = broken()
    for _ in range(3):
        answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "Redis does not answer" in answer.json()["error"]
    assert store.calls == 1
    assert "Redis does not answer" in site.call("GET", "/readyz").json()["warnings"][0]
    assert probability(site.infer(distance=1.0, hour=6, carrier="UA"))


def test_a_store_that_hangs_holds_a_request_no_longer_than_its_policy_says(
    broken: Callable[..., tuple[Site, Broken]],
) -> None:
    site, store = broken(wait=1.0, timeout_ms=10.0, missing="nulls")
    for _ in range(TIMEOUTS + 2):
        answer = site.infer(entity_tailnum="N1", hour=6, carrier="UA")
        assert told(answer, "feature_statuses") == {"plane": ["UNAVAILABLE"]}
    assert store.calls <= TIMEOUTS
    assert site.host.warnings() != []


def test_a_caller_in_a_hurry_does_not_make_the_store_look_away(
    broken: Callable[..., tuple[Site, Broken]],
) -> None:
    site, _ = broken(wait=1.0, timeout_ms=5000.0)
    for _ in range(TIMEOUTS + 1):
        answer = site.call(
            "POST", "/v2/models/late/infer", headers={"X-Loopwright-Timeout-Ms": "5"},
            json={"inputs": [tensor("entity_tailnum", "N1"), tensor("hour", 6), tensor("carrier", "UA")]},
        )  # fmt: skip
        assert answer.status_code == 504
    assert site.host.warnings() == []


# Whatever is sent and whatever is looked up, the answer is that of all inputs.

KNOWN = {"N1": 500.0, "N2": None, "N3": -1.5}
HOURS = {("UA", 5): 6, ("AA", 7): 23, ("UA", 7): 0}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([*KNOWN, "N9"]), st.sampled_from(["UA", "AA"]), st.sampled_from([5, 7])),
        min_size=1, max_size=4,
    ),
    sent=st.sets(st.sampled_from(["distance", "hour"]), max_size=1),
    as_input=st.booleans(), as_entity=st.booleans(),
)  # fmt: skip
def test_any_mix_of_values_and_entities_answers_as_all_values_do(
    site: Site, rows: list[tuple[str, str, int]], sent: set[str], as_input: bool, as_entity: bool
) -> None:
    site.online(PLANE, KNOWN)
    site.online(PLACE, HOURS, ttl=None)
    tails, carriers, numbers = (list(column) for column in zip(*rows, strict=True))
    distances = [KNOWN.get(tail) for tail in tails]
    hours = [HOURS.get((carrier, number)) for carrier, number in zip(carriers, numbers, strict=True)]
    whole: dict[str, list[Any]] = {"distance": distances, "hour": hours, "carrier": carriers}
    typed = {"distance": "FP64", "hour": "INT64", "carrier": "BYTES"}
    mixed: dict[str, list[Any]] = {name: whole[name] for name in sent} | (
        {"carrier": carriers} if as_input or not as_entity else {}
    )
    entities = {"tailnum": tails, "number": numbers} | ({"carrier": carriers} if as_entity else {})

    def tensors(given: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "datatype": typed[name], "shape": [len(rows)], "data": values}
            for name, values in given.items()
        ]

    raw = site.call("POST", "/v2/models/late/infer", json={"inputs": tensors(whole)})
    asked = [tensor(f"entity_{name}", values) for name, values in entities.items()]
    looked_up = site.call("POST", "/v2/models/late/infer", json={"inputs": tensors(mixed) + asked})
    assert probability(looked_up) == probability(raw)
    events = site.events()
    assert [event.inputs for event in events[-len(rows) :]] == [
        event.inputs for event in events[-2 * len(rows) : -len(rows)]
    ]
