"""The model repository extension: an index, and loading only what the routes allow."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from loopwright.kernel.errors import NotFound, Unavailable
from loopwright.serving.models import Model, Served
from loopwright.serving.protocols.repository import COLD, carry_out
from tests.unit.serving.inside import STABLE, Inside, model_of, tiny


class Host:
    """Keeps what it is asked, and answers what it was told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: tuple[int, dict[str, Any]] = (200, {})

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(what)
        return self.answer


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def inside(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Inside]:
    folder = tmp_path_factory.mktemp("site")
    bundle = tiny(folder / "one")
    cold = Model(
        "cold", "salt", (STABLE,), {1: Served.cold(1, bundle.manifest, bundle.digest)}, {10: "not approved"}
    )
    site = Inside(
        folder, model_of("late", {1: bundle}), cold, Model("none", "salt", (), {}, {2: "one wrong byte"})
    )
    site.app.front.host = host  # type: ignore[assignment]
    yield site
    site.close()


def test_the_index_names_every_version_and_why_it_is_not_ready(inside: Inside) -> None:
    assert inside.post("/v2/repository/index", b"").json() == [
        {"name": "cold", "version": "1", "state": "UNAVAILABLE", "reason": COLD},
        {"name": "cold", "version": "10", "state": "UNAVAILABLE", "reason": "not approved"},
        {"name": "late", "version": "1", "state": "READY", "reason": ""},
        {"name": "none", "version": "2", "state": "UNAVAILABLE", "reason": "one wrong byte"},
    ]
    ready = inside.post("/v2/repository/index", {"ready": True}).json()
    assert [entry["name"] for entry in ready] == ["late"]
    assert inside.post("/v2/repository/index", {"ready": 1}).status_code == 422


def test_loading_is_asked_of_every_worker(inside: Inside, host: Host) -> None:
    assert inside.post("/v2/repository/models/cold/load", b"").json() == {}
    unload = {"parameters": {"unload_dependents": True}}
    assert inside.post("/v2/repository/models/late/unload", unload).status_code == 200
    assert host.asked == ["load cold", "unload late"]
    host.answer = (503, {"error": "nothing leaves memory on this server"})
    reply = inside.post("/v2/repository/models/late/unload", b"")
    assert (reply.status_code, reply.json()["error"]) == (503, "nothing leaves memory on this server")


@pytest.mark.parametrize(
    ("path", "body", "client", "status", "message"),
    [
        ("early/load", b"", "127.0.0.1", 404, "no model `early`"),
        ("none/load", b"", "127.0.0.1", 403, "no version that may be loaded; got version 2: one wrong byte"),
        ("late/load", b'{"parameters": {"config": "{}"}}', "127.0.0.1", 403, "decided by promotion"),
        (
            "late/load",
            b'{"parameters": {"file:1/model.onnx": "AA=="}}',
            "127.0.0.1",
            403,
            "loopwright promote late",
        ),
        ("late/load", b'{"parameters": [1]}', "127.0.0.1", 422, "parameters: not an object"),
        ("late/load", b"[1]", "127.0.0.1", 422, "body: not an object"),
        ("late/load", b"{", "127.0.0.1", 400, "not JSON"),
        ("late/load", b"", "10.0.0.9", 403, "this machine only"),
        ("late/unload", b"", "10.0.0.9", 403, "this machine only"),
    ],
)
def test_what_is_not_approved_is_not_loaded_whatever_is_asked(
    inside: Inside, host: Host, path: str, body: bytes, client: str, status: int, message: str
) -> None:
    headers = {"content-type": "application/json"}
    reply = inside.call("POST", f"/v2/repository/models/{path}", content=body, headers=headers, client=client)
    assert reply.status_code == status
    assert message in reply.json()["error"]
    assert host.asked == []


class Residency:
    def __init__(self) -> None:
        self.did: list[str] = []

    async def load(self, model: str) -> None:
        if model != "late":
            raise NotFound("no such model")
        self.did.append(f"load {model}")

    def unload(self, model: str) -> None:
        raise Unavailable("nothing leaves memory on this server")


def test_a_worker_says_what_became_of_it() -> None:
    residency: Any = Residency()
    assert asyncio.run(carry_out(residency, "load", "late")) == (200, "")
    assert asyncio.run(carry_out(residency, "load", "early")) == (404, "no such model")
    told = asyncio.run(carry_out(residency, "unload", "late"))
    assert told == (503, "nothing leaves memory on this server")
    assert residency.did == ["load late"]
