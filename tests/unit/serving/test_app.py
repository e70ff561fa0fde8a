"""The HTTP side of a worker, called without a socket: paths, methods, bounds, fallback and shadows."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import STRICT, tiny_bundle
from loopwright.serving.app import App, Bounds
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.engine import SHADOW_QUEUE, Engine, Model, Served
from loopwright.serving.events import Event, SegmentWriter, read_frames

KEY = SigningKey.generate()
STABLE = Arm("stable", 1, 1.0)


class Host:
    def __init__(self) -> None:
        self.reason = ""
        self.said: list[str] = []

    def not_started(self) -> str:
        return ""

    def not_ready(self) -> str:
        return self.reason

    def warnings(self) -> list[str]:
        return self.said

    def gauges(self) -> Mapping[str, float]:
        return {"workers_ready": 1.0}

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        return 200, {"asked": what}


class Site:
    """A worker's inside with a tiny model, answering in process."""

    def __init__(
        self, folder: Path, bundles: dict[int, Bundle], *arms: Arm, bounds: Bounds | None = None
    ) -> None:
        self.folder = folder
        self.host = Host()
        counters = Counters(folder / "w0.counters")
        self.engine = Engine(
            SegmentWriter(folder, "w0"), counters, now_us=lambda: 1_000_000, limit=NoDeadline()
        )
        versions = {number: Served.of(number, bundle) for number, bundle in bundles.items()}
        self.engine.serve({"late": Model("late", "salt", arms, versions, {9: "not approved"})})
        self.app = App(self.engine, counters, self.host, folder, bounds or Bounds())
        self.app.publish()

    def call(self, method: str, path: str, *, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(client, 1))  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                answer = await http.request(method, path, **options)
            await self.engine.drained()
            return answer

        return asyncio.run(run())

    def infer(self, carrier: str = "UA", path: str = "/v2/models/late/infer", **more: Any) -> httpx.Response:
        return self.call("POST", path, json=request(carrier, **more))

    def events(self) -> list[Event]:
        return [
            event for path in sorted(self.folder.glob("*.seg")) for event in read_frames(path.read_bytes())
        ]


def request(*carriers: str, **more: Any) -> dict[str, Any]:
    n = len(carriers)
    return {
        "inputs": [
            {"name": "distance", "datatype": "FP64", "shape": [n], "data": [500.0] * n},
            {"name": "hour", "datatype": "INT64", "shape": [n], "data": [6] * n},
            {"name": "carrier", "datatype": "BYTES", "shape": [n], "data": list(carriers)},
        ],
        **more,
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(name: str, **options: Any) -> Bundle:
        return open_bundle(tiny_bundle(tmp_path / name, KEY, **options).path, [KEY.public])

    return make


@pytest.fixture
def site(tmp_path: Path, bundle: Callable[..., Bundle]) -> Site:
    return Site(tmp_path, {1: bundle("one")}, STABLE)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/early/infer", 404, "no model `early` is served here; wanted late"),
        ("POST", "/v2/models/late/versions/7/infer", 404, "version 7 of late is not served here; wanted 1"),
        ("POST", "/v2/models/late/versions/x/infer", 404, "not a version"),
        ("POST", "/v2/models/late/versions/9/infer", 503, "version 9: not approved"),
        ("GET", "/v2/models/late/infer", 405, "does not take that method; got GET, wanted POST"),
        ("POST", "/v2/models/late", 405, "wanted GET or HEAD"),
        ("GET", "/v2/models/late/nothing", 404, "no such path"),
        ("GET", "/favicon.ico", 404, "no such path; got /favicon.ico"),
        ("GET", "/v2/models/late%2f..%2fearly", 404, "no such path"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there(
    site: Site, method: str, path: str, status: int, message: str
) -> None:
    answer = site.call(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert site.events() == []


def test_a_compressed_body_is_turned_away(site: Site) -> None:
    answer = site.call("POST", "/v2/models/late/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "compressed" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("Content-Encoding", b"\xff", 415), ("Inference-Header-Content-Length", b"1" * 5000, 400)],
)
def test_a_header_that_makes_no_sense_is_told_so(site: Site, header: str, value: bytes, status: int) -> None:
    answer = site.call("POST", "/v2/models/late/infer", json=request("UA"), headers={header: value})
    assert answer.status_code == status


def test_too_many_rows_are_turned_away(tmp_path: Path, bundle: Callable[..., Bundle]) -> None:
    site = Site(tmp_path, {1: bundle("one")}, STABLE, bounds=Bounds(rows=2))
    answer = site.call("POST", "/v2/models/late/infer", json=request("UA", "UA", "UA"))
    assert (answer.status_code, answer.json()["error"]) == (
        413,
        "inputs[0].shape: too many rows; got 3, wanted at most 2",
    )


@pytest.mark.parametrize("pieces", [1, 5])
def test_a_body_without_a_length_is_bounded_however_it_arrives(site: Site, pieces: int) -> None:
    messages = [
        {"type": "http.request", "body": b" " * ((9 << 20) // pieces), "more_body": i < pieces - 1}
        for i in range(pieces)
    ]
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v2/models/late/infer", "headers": []}
        await site.app(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


def test_where_a_mistake_is_stands_in_the_answer(site: Site) -> None:
    body = request("UA")
    body["inputs"][1]["data"] = ["six"]
    answer = site.call("POST", "/v2/models/late/infer", json=body)
    assert (answer.status_code, answer.json()["where"]) == (422, "inputs[1].data[0]")


def test_admin_calls_are_for_this_machine(site: Site) -> None:
    assert site.call("POST", "/admin/flush").json() == {"asked": "flush"}
    assert site.call("POST", "/admin/refresh", client="::1").json() == {"asked": "refresh"}
    assert site.call("POST", "/admin/flush", client="10.0.0.7").status_code == 403
    assert site.call("GET", "/admin/flush").status_code == 405


def test_readiness_tells_why_not(site: Site) -> None:
    assert site.call("GET", "/readyz").status_code == 200
    site.host.reason = "shutting down"
    answer = site.call("GET", "/v2/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "error": "shutting down"})
    assert site.call("GET", "/healthz").status_code == 200


def test_when_no_version_answers_the_error_is_logged_and_said(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    site = Site(tmp_path, {1: bundle("strict", transform=STRICT)}, STABLE)
    answer = site.infer("ZZ")
    assert answer.status_code == 500
    assert "version 1 of late gave no answer; got KeyError: 'ZZ'" in answer.json()["error"]
    assert [(event.status, event.outputs) for event in site.events()] == [("error", [])]
    batch = site.call("POST", "/v2/models/late/infer", json=request("UA", "ZZ"))
    assert batch.status_code == 500
    assert "row 1: late gave no answer for 1 of 2 rows" in batch.json()["error"]


def test_a_version_may_be_asked_directly_and_is_logged_as_such(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    site = Site(tmp_path, {1: bundle("one"), 2: bundle("two", bias=1.0)}, STABLE, Arm("shadow", 2, 1.0))
    two = site.infer(path="/v2/models/late/versions/2/infer").json()
    one = site.infer(path="/v2/models/late/versions/1/infer").json()
    assert [answer["parameters"]["arm"] for answer in (two, one)] == ["direct", "stable"]
    assert [event.arm for event in site.events()] == ["direct", "stable"]


def test_a_request_of_more_rows_than_a_chunk_is_answered_in_order(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    site = Site(
        tmp_path,
        {1: bundle("one"), 2: bundle("strict", transform=STRICT)},
        Arm("canary", 2, 0.5),
        Arm("stable", 1, 0.5),
    )
    carriers = ["ZZ" if row % 100 == 0 else "UA" for row in range(1300)]
    answer = site.call("POST", "/v2/models/late/infer", json=request(*carriers)).json()
    outputs = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
    values = {
        carrier: {v for c, v in zip(carriers, outputs["probability"], strict=True) if c == carrier}
        for carrier in ("UA", "ZZ")
    }
    assert len(values["UA"]) == len(values["ZZ"]) == 1
    assert values["UA"] != values["ZZ"]
    events = site.events()
    failed = [event for event in events if event.status == "error"]
    assert len([event for event in events if event.status != "error"]) == 1300
    assert {event.id for event in failed} == {event.id for event in events if event.status == "fallback"}
    assert len(failed) > 0
    assert all(event.inputs[2] == "ZZ" for event in failed)


def test_copies_for_a_shadow_are_dropped_rather_than_piled_up(
    tmp_path: Path, bundle: Callable[..., Bundle]
) -> None:
    site = Site(tmp_path, {1: bundle("one"), 2: bundle("two")}, STABLE, Arm("shadow", 2, 1.0))
    site.call("POST", "/v2/models/late/infer", json=request(*["UA"] * (SHADOW_QUEUE + 10)))
    shadow = [event for event in site.events() if event.arm == "shadow"]
    assert len(shadow) == SHADOW_QUEUE
    assert 'loopwright_shadow_dropped_total{model="late",version="2"} 10' in site.call("GET", "/metrics").text


def test_metadata_names_inputs_as_a_client_must_send_them(site: Site) -> None:
    document = site.call("GET", "/v2/models/late").json()
    assert [(tensor["name"], tensor["datatype"]) for tensor in document["inputs"]] == [
        ("distance", "FP64"),
        ("hour", "INT64"),
        ("carrier", "BYTES"),
    ]
    assert document["versions"] == ["1"]
    assert document["parameters"]["refused"] == {"9": "not approved"}
    assert json.dumps(document)


def test_headers_name_a_request_and_its_unit_where_the_body_names_none(site: Site) -> None:
    path = "/v2/models/late/infer"
    headers = {"X-Request-Id": "from-balancer", "X-Loopwright-Unit": "user-7"}
    answers = [
        site.call("POST", path, json=request("UA"), headers=headers),
        site.call("POST", path, json=request("UA", "B6"), headers=headers),
        site.call("POST", path, json=request("UA", id="own", parameters={"unit": "N1"}), headers=headers),
    ]
    assert [answer.json()["parameters"]["request_id"] for answer in answers] == [
        "from-balancer", "from-balancer", "own",
    ]  # fmt: skip
    assert [(event.id, event.unit) for event in site.events()] == [
        ("from-balancer", "user-7"), ("from-balancer/0", "user-7"), ("from-balancer/1", "user-7"), ("own", "N1"),
    ]  # fmt: skip


@pytest.mark.parametrize("header", ["X-Request-Id", "X-Loopwright-Unit"])
@pytest.mark.parametrize("value", [b"x" * 257, b"caf\xe9", b"a\x01b"])
def test_a_header_that_is_no_name_is_refused(site: Site, header: str, value: bytes) -> None:
    answer = site.call("POST", "/v2/models/late/infer", json=request("UA"), headers={header.encode(): value})
    assert (answer.status_code, header.lower() in answer.json()["error"]) == (422, True)
    assert site.events() == []
