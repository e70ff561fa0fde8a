"""Predictions over a WebSocket, spoken to as a server does: messages in, messages out."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest

from loopwright.bundle.routes import Batching, ServingPolicy
from loopwright.bundle.testing import tiny_answer
from loopwright.serving.callers import Caller, Callers
from loopwright.serving.protocols.stream import IN_FLIGHT, MAX_MESSAGE, Stream
from loopwright.serving.protocols.typed import Typed
from tests.unit.serving.inside import ROW, Inside, model_of, tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, bundle: Any) -> Iterator[Inside]:
    site = Inside(tmp_path_factory.mktemp("site"), model_of("late", {1: bundle}))
    yield site
    site.close()


class Talk:
    """One connection, from the client's side."""

    def __init__(self, app: Any, path: str, headers: dict[str, str], *, refusable: bool = True) -> None:
        self.to: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "websocket", "path": path, "client": ("10.0.0.9", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": {"websocket.http.response": {}} if refusable else {},
        }  # fmt: skip
        self.to.put_nowait({"type": "websocket.connect"})
        self.running = asyncio.create_task(app(scope, self.to.get, self.got.put))

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.got.get(), 5)

    def say(self, message: Any) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self.to.put_nowait({"type": "websocket.receive", "text": text})

    async def answer(self) -> dict[str, Any]:
        message = await self.next()
        assert message["type"] == "websocket.send", message
        told: dict[str, Any] = json.loads(message["text"])
        return told

    async def end(self) -> None:
        self.to.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.running, 5)


def talking(
    inside: Inside,
    act: Callable[[Talk], Awaitable[Any]],
    *,
    app: Any = None,
    accepted: bool = True,
    **headers: str,
) -> Any:
    async def run() -> Any:
        talk = Talk(app or inside.app, "/models/late/stream", headers)
        if accepted:
            assert (await talk.next())["type"] == "websocket.accept"
        found = await act(talk)
        if not talk.running.done():
            await talk.end()
        assert len(asyncio.all_tasks()) == 1
        return found

    return inside._runner.run(run())


def test_each_message_is_answered_in_order(inside: Inside) -> None:
    async def act(talk: Talk) -> list[dict[str, Any]]:
        for number in range(100):
            talk.say({"inputs": {**ROW, "distance": float(number)}, "id": f"m{number}", "unit": "u"})
        return [await talk.answer() for _ in range(100)]

    told = talking(inside, act)
    assert [each["request_id"] for each in told] == [f"m{number}" for number in range(100)]
    for number, each in enumerate(told):
        (prediction,) = each["predictions"]
        assert prediction["outputs"]["probability"] == pytest.approx(tiny_answer(number, 6, "UA"), abs=1e-6)
    assert [event.id for event in inside.events()[-100:]] == [f"m{number}" for number in range(100)]


def test_messages_of_a_slow_model_wait_together_and_keep_their_order(inside: Inside, bundle: Any) -> None:
    policy = ServingPolicy(batching=Batching(mode="on"))
    inside.serve(model_of("late", {1: bundle}, policy=policy))

    async def act(talk: Talk) -> list[str]:
        for number in range(3 * IN_FLIGHT):
            talk.say({"inputs": ROW, "id": f"s{number}"})
        return [(await talk.answer())["request_id"] for _ in range(3 * IN_FLIGHT)]

    order = talking(inside, act)
    inside.serve(model_of("late", {1: bundle}))
    assert order == [f"s{number}" for number in range(3 * IN_FLIGHT)]


def test_no_more_is_read_than_may_be_under_way(inside: Inside) -> None:
    async def run() -> int:
        received = 0

        async def receive() -> dict[str, Any]:
            nonlocal received
            received += 1
            if received == 1:
                return {"type": "websocket.connect"}
            return {"type": "websocket.receive", "text": json.dumps({"inputs": ROW})}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                await asyncio.Event().wait()  # a client that reads nothing

        scope = {"type": "websocket", "path": "/models/late/stream", "client": ("10.0.0.9", 1), "headers": []}
        running = asyncio.create_task(inside.app(scope, receive, send))  # type: ignore[arg-type]
        for _ in range(2000):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return received

    # The handshake, what is in the queue, the one being sent and the one that waits for a place.
    assert IN_FLIGHT < inside._runner.run(run()) <= IN_FLIGHT + 3


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ("{}", "inputs"),
        (
            json.dumps({"inputs": {**ROW, "hour": None}, "id": "q7"}),
            "inputs.hour: input `hour` may not be null",
        ),
        (json.dumps({"inputs": {**ROW, "carier": 1}, "id": "q7"}), "no input `carier`"),
        ('{"inputs": ' + "[" * 5000, "nested too deeply|not JSON"),
        ("x" * (MAX_MESSAGE + 1), "the message is too large"),
        (None, "a binary message"),
    ],
)
def test_a_bad_message_is_told_so_and_the_next_one_is_answered(
    inside: Inside, message: str | None, error: str
) -> None:
    async def act(talk: Talk) -> tuple[dict[str, Any], dict[str, Any]]:
        if message is None:
            talk.to.put_nowait({"type": "websocket.receive", "bytes": b"\0\1"})
        else:
            talk.say(message)
        talk.say({"inputs": ROW, "id": "after"})
        return await talk.answer(), await talk.answer()

    wrong, right = talking(inside, act)
    assert any(each in wrong["error"] for each in error.split("|")), wrong
    assert wrong.get("request_id") == ("q7" if message and "q7" in message else None)
    assert right["request_id"] == "after"


def test_a_handshake_that_is_not_allowed_is_answered_as_http_does(
    inside: Inside, bundle: Any, tmp_path: Any
) -> None:
    callers = Callers((Caller("shop", sha256(b"secret").hexdigest(), per_second=3.0),))
    site = Inside(tmp_path, model_of("late", {1: bundle}), callers=callers)

    async def refused(talk: Talk) -> list[dict[str, Any]]:
        return [await talk.next(), await talk.next()]

    start, body = talking(site, refused, accepted=False)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert "wants a token" in json.loads(body["body"])["error"]

    async def hurried(talk: Talk) -> list[dict[str, Any]]:
        for _ in range(30):
            talk.say({"inputs": ROW})
        return [await talk.answer() for _ in range(30)]

    told = talking(site, hurried, authorization="Bearer secret")
    site.close()
    errors = [each.get("error", "") for each in told]
    assert errors[:2] == ["", ""] and any(errors)  # the handshake took one of the three that a second gives
    assert all("sends too many requests" in each for each in errors if each)


def test_an_unknown_model_is_refused_where_the_server_can_only_close(inside: Inside) -> None:
    async def run() -> dict[str, Any]:
        talk = Talk(inside.app, "/models/early/stream", {}, refusable=False)
        message = await talk.next()
        await talk.running
        return message

    assert inside._runner.run(run()) == {"type": "websocket.close", "code": 1008}


def test_a_silent_client_is_seen_off(inside: Inside) -> None:
    front = inside.app.front
    stream = Stream(front, Typed(front), idle=0.05)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await stream.talk(scope, receive, send, {"model": "late"})

    async def act(talk: Talk) -> list[dict[str, Any]]:
        talk.say({"inputs": ROW, "id": "first"})
        return [await talk.next(), await talk.next()]

    answer, close = talking(inside, act, app=app)
    assert json.loads(answer["text"])["request_id"] == "first"
    assert close == {"type": "websocket.close", "code": 1001, "reason": "no message for 0.05 s"}


def test_a_client_that_went_away_takes_nothing_with_it(inside: Inside) -> None:
    async def run() -> int:
        messages = iter(
            [{"type": "websocket.connect"}]
            + [
                {"type": "websocket.receive", "text": json.dumps({"inputs": ROW, "id": f"g{i}"})}
                for i in range(9)
            ]
            + [{"type": "websocket.disconnect", "code": 1006}]
        )

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                raise OSError("gone")

        scope = {"type": "websocket", "path": "/models/late/stream", "client": ("10.0.0.9", 1), "headers": []}
        await asyncio.wait_for(inside.app(scope, receive, send), 5)  # type: ignore[arg-type]
        return len(asyncio.all_tasks())

    assert inside._runner.run(run()) == 1
    assert [event.id for event in inside.events()[-9:]] == [f"g{i}" for i in range(9)]


def test_an_error_of_our_own_ends_neither_the_connection_nor_other_messages(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = inside.engine.start

    def failing(model: Any, rows: Any, call: Any) -> Any:
        return 1 / 0 if rows.request_id == "bad" else start(model, rows, call)

    monkeypatch.setattr(inside.engine, "start", failing)

    async def act(talk: Talk) -> list[dict[str, Any]]:
        for name in ("good", "bad", "better"):
            talk.say({"id": name, "inputs": {"distance": 500.0, "hour": 6, "carrier": "UA"}})
        return [await talk.answer() for _ in range(3)]

    first, second, third = talking(inside, act)
    assert (first["request_id"], third["request_id"]) == ("good", "better")
    assert second == {"error": "Internal Server Error", "request_id": "bad"}
