"""Bulk requests as JSON lines: a line for a line, in order, whatever is wrong with one of them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import STRICT, tiny_answer
from loopwright.serving.http import Bounds
from loopwright.serving.protocols import bulk
from loopwright.serving.protocols.lines import MAX_LINE
from tests.unit.serving.inside import ODD, ROW, Inside, model_of, odd_answer, odd_bundle, tiny

LINES = "application/x-ndjson"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "one": tiny(folder / "one"),
        "two": tiny(folder / "two", bias=1.0),
        "strict": tiny(folder / "strict", transform=STRICT),
        "odd": odd_bundle(folder / "odd"),
    }


@pytest.fixture
def inside(tmp_path: Path, bundles: dict[str, Bundle]) -> Iterator[Inside]:
    site = Inside(
        tmp_path, model_of("late", {1: bundles["one"]}), model_of(ODD, {1: bundles["odd"]}),
        bounds=Bounds(stream=1 << 20, body_seconds=0.3),
    )  # fmt: skip
    yield site
    site.close()


def row(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


def answers(
    inside: Inside, *lines: bytes, path: str = "/models/late/bulk", **headers: str
) -> list[dict[str, Any]]:
    reply = inside.post(path, b"\n".join(lines), LINES, **headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == LINES
    return [json.loads(line) for line in reply.text.splitlines()]


def test_every_line_is_answered_in_its_place(inside: Inside) -> None:
    distances = [float(7 * i) for i in range(700)]
    told = answers(inside, *(row(distance=d, _id=f"r{i}", _unit="u") for i, d in enumerate(distances)))
    assert [each["id"] for each in told] == [f"r{i}" for i in range(700)]
    for distance, each in zip(distances, told, strict=True):
        assert each["outputs"]["probability"] == pytest.approx(tiny_answer(distance, 6, "UA"), abs=1e-6)
        assert (each["version"], each["arm"]) == (1, "stable")
    events = inside.events()
    assert [event.id for event in events] == [f"r{i}" for i in range(700)]
    assert {event.unit for event in events} == {"u"}


def test_a_bad_line_spoils_no_other(inside: Inside) -> None:
    bad = [
        (b"not json", "not JSON"),
        (b"[1]", "not a row"),
        (row(hour=None), "hour: input `hour` may not be null"),
        (row(distance="far"), "distance: a value of another kind; got far, wanted float64"),
        (row(carier="UA"), r"carier: the model has no input `carier`"),
        (b'{"distance": 1.0}', "input `hour` is missing and 1 more"),
        (b'{"distance": NaN}', "not JSON"),
        (row(_event_time="yesterday"), "_event_time: not a time with a zone"),
        (b'{"a":' * 3000, "nested too deeply|not JSON"),
        (b'{"distance": "\xff"}', "not JSON"),
    ]
    lines = [line for each, _ in bad for line in (each, row(_id="good"))]
    told = answers(inside, *lines)
    assert [each["id"] for each in told[1::2]] == ["good"] * len(bad)
    assert all("probability" in each["outputs"] for each in told[1::2])
    for position, ((_, message), each) in enumerate(zip(bad, told[::2], strict=True)):
        assert each["line"] == 2 * position + 1
        assert each["error"].startswith(f"line {2 * position + 1}: ")
        assert re.search(message, each["error"]), each["error"]
    assert len(inside.events()) == len(bad)


def test_a_row_that_no_version_answers_says_so_in_its_place(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    site = Inside(tmp_path / "strict", model_of("late", {1: bundles["strict"]}))
    told = answers(site, row(_id="a"), row(_id="b", carrier="ZZ"), row(_id="c"))
    site.close()
    assert ["error" in each for each in told] == [False, True, False]
    assert (told[1]["id"], told[1]["line"], told[1]["version"]) == ("b", 2, 1)
    assert "KeyError" in told[1]["error"]


def test_blank_lines_and_windows_line_ends_are_no_rows(inside: Inside) -> None:
    told = answers(inside, b"", row(_id="a") + b"\r", b"  ", row(hour=None, _id="b") + b"\r", b"")
    assert [each.get("id") for each in told] == ["a", "b"]
    assert told[1]["line"] == 4
    assert answers(inside, b"", b"\n\n") == []


def test_a_line_that_never_ends_is_cut_off_and_the_next_one_is_read(inside: Inside) -> None:
    endless = b'{"distance": "' + b"x" * (MAX_LINE - 200_000) + b'"}'
    assert len(endless) < MAX_LINE
    told = answers(inside, row(_id="a"), row(_id="b"))
    assert [each["id"] for each in told] == ["a", "b"]

    async def body() -> AsyncIterator[bytes]:
        yield row(_id="a") + b"\n"
        for _ in range(3):
            yield b"x" * (MAX_LINE // 2)
        yield b"\n" + row(_id="c") + b"\n"

    site = Inside(inside.folder / "wide", *inside.engine.models.values(), bounds=Bounds(stream=4 << 20))
    reply = site.call("POST", "/models/late/bulk", content=body(), headers={"content-type": LINES})
    site.close()
    told = [json.loads(line) for line in reply.text.splitlines()]
    assert [each.get("id") for each in told] == ["a", None, "c"]
    assert told[1] == {"error": f"line 2: the line is too long; wanted at most {MAX_LINE} bytes", "line": 2}


def test_classes_and_awkward_names_come_back_as_they_are(inside: Inside) -> None:
    line = json.dumps({'weight "kg"': 4.5, "is wild": True, "lives": 9, "@note,": None}).encode()
    wrong = json.dumps({'weight "kg"': 4.5, "is wild": 1.0, "lives": 9, "@note,": None}).encode()
    told = answers(inside, line, wrong, path=f"/models/{ODD}/versions/1/bulk")
    assert list(told[0]["outputs"].values()) == pytest.approx(odd_answer(4.5, True, 9), abs=1e-6)
    assert told[0]["label"] == max(told[0]["outputs"], key=told[0]["outputs"].get)
    assert "is wild: a value of another kind; got 1.0, wanted true or false" in told[1]["error"]


def test_an_id_of_the_request_names_every_row_once(inside: Inside) -> None:
    told = answers(inside, *[row()] * 600, **{"x-request-id": "nightly"})
    assert [each["id"] for each in told] == [f"nightly/{line}" for line in range(1, 601)]


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"content-type": "text/csv"}, 415, "a body of another type; got text/csv"),
        ({"content-type": LINES, "accept": "text/html, image/*;q=0.8"}, 406, "no answer of that type"),
        ({"content-type": LINES, "content-encoding": "gzip"}, 415, "compressed"),
        ({"content-type": LINES, "content-length": str(1 << 40)}, 413, "too large"),
    ],
)
def test_a_request_that_cannot_be_begun_is_a_status(
    inside: Inside, headers: dict[str, str], status: int, message: str
) -> None:
    reply = inside.call("POST", "/models/late/bulk", content=row(), headers=headers)
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_a_body_beyond_its_bound_ends_with_a_line_that_says_so(inside: Inside) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield (row(_id="x") + b"\n") * 500

    reply = inside.call("POST", "/models/late/bulk", content=body(), headers={"content-type": LINES})
    told = [json.loads(line) for line in reply.text.splitlines()]
    assert all(each["id"] == "x" for each in told[:-1])
    assert "the body is too large" in told[-1]["error"]
    assert told[-1]["line"] == len(told)


def test_answers_leave_before_the_next_rows_come(inside: Inside) -> None:
    """One row at a time: each is sent when the answer to the one before is there."""

    async def talk() -> list[str]:
        to_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        from_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http", "method": "POST", "path": "/models/late/bulk", "client": ("127.0.0.1", 1),
            "headers": [(b"content-type", LINES.encode())],
        }  # fmt: skip
        running = asyncio.create_task(inside.app(scope, to_server.get, from_server.put))  # type: ignore[arg-type]
        got = []
        for number in range(5):
            line = row(_id=f"r{number}") + b"\n"
            to_server.put_nowait({"type": "http.request", "body": line, "more_body": True})
            message = await asyncio.wait_for(from_server.get(), 5)
            if message["type"] == "http.response.start":
                message = await asyncio.wait_for(from_server.get(), 5)
            got.append(json.loads(message["body"])["id"])
        to_server.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await asyncio.wait_for(running, 5)
        return got

    assert inside._runner.run(talk()) == [f"r{number}" for number in range(5)]


def test_a_client_that_reads_nothing_until_all_is_sent_is_answered_from_disk(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bulk.Spool] = []

    class Small(bulk.Spool):
        def __init__(self) -> None:
            super().__init__(memory=1000)
            made.append(self)

    monkeypatch.setattr(bulk, "Spool", Small)
    seen_on_disk = []

    async def talk() -> bytes:
        sent = [*[row(_id=f"r{i}") + b"\n" for i in range(400)], b""]
        reading = asyncio.Event()

        async def receive() -> dict[str, Any]:
            part = sent.pop(0)
            if not sent:
                seen_on_disk.append(made[0].on_disk)
                reading.set()
            return {"type": "http.request", "body": part, "more_body": bool(sent)}

        got = bytearray()

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.wait_for(reading.wait(), 5)  # the client sends first, and reads then
                got.extend(message["body"])

        scope = {
            "type": "http", "method": "POST", "path": "/models/late/bulk", "client": ("127.0.0.1", 1),
            "headers": [(b"content-type", LINES.encode())],
        }  # fmt: skip
        await inside.app(scope, receive, send)  # type: ignore[arg-type]
        return bytes(got)

    told = [json.loads(line) for line in inside._runner.run(talk()).splitlines()]
    assert [each["id"] for each in told] == [f"r{i}" for i in range(400)]
    assert seen_on_disk == [True]
    assert not made[0].on_disk


def test_a_client_that_falls_silent_is_told_what_was_not_waited_for(inside: Inside) -> None:
    async def run() -> list[dict[str, Any]]:
        sent = [row(_id="a") + b"\n"]

        async def receive() -> dict[str, Any]:
            if not sent:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": sent.pop(), "more_body": True}

        got = bytearray()

        async def send(message: dict[str, Any]) -> None:
            got.extend(message.get("body", b""))

        scope = {
            "type": "http", "method": "POST", "path": "/models/late/bulk", "client": ("127.0.0.1", 1),
            "headers": [(b"content-type", LINES.encode())],
        }  # fmt: skip
        await asyncio.wait_for(inside.app(scope, receive, send), 5)  # type: ignore[arg-type]
        return [json.loads(line) for line in bytes(got).splitlines()]

    first, last = inside._runner.run(run())
    assert first["id"] == "a"
    assert last == {"error": "the body came too slowly; wanted all of it within 0.3 s", "line": 2}


def test_more_bulk_requests_than_one_worker_takes_are_told_to_wait(inside: Inside) -> None:
    async def run() -> list[int]:
        statuses = []
        hold = asyncio.Event()

        async def one() -> None:
            first = True

            async def receive() -> dict[str, Any]:
                nonlocal first
                if not first:
                    await hold.wait()
                more, first = first, False
                return {"type": "http.request", "body": row() + b"\n", "more_body": more}

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                    if len(statuses) == bulk.AT_ONCE + 1:
                        hold.set()

            scope = {
                "type": "http", "method": "POST", "path": "/models/late/bulk", "client": ("127.0.0.1", 1),
                "headers": [(b"content-type", LINES.encode())],
            }  # fmt: skip
            await inside.app(scope, receive, send)  # type: ignore[arg-type]

        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(bulk.AT_ONCE + 1))), 10)
        return statuses

    assert sorted(inside._runner.run(run())) == [200] * bulk.AT_ONCE + [503]
    assert answers(inside, row(_id="again"))[0]["id"] == "again"


def test_a_client_that_goes_away_leaves_nothing_running(inside: Inside) -> None:
    async def run() -> int:
        messages = [
            {"type": "http.request", "body": row() + b"\n", "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            pass

        scope = {
            "type": "http", "method": "POST", "path": "/models/late/bulk", "client": ("127.0.0.1", 1),
            "headers": [(b"content-type", LINES.encode())],
        }  # fmt: skip
        await asyncio.wait_for(inside.app(scope, receive, send), 5)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert inside._runner.run(run()) == 1


def test_rows_are_split_between_arms_as_single_requests_are(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    arms = (Arm("stable", 1, 0.5), Arm("blue", 2, 0.5))
    site = Inside(tmp_path / "ab", model_of("late", {1: bundles["one"], 2: bundles["two"]}, *arms))
    told = answers(site, *(row(_unit=f"u{i}") for i in range(60)))
    alone = [
        site.post("/models/late/predict", {"inputs": ROW, "unit": f"u{i}"}).json()["arm"] for i in range(60)
    ]
    site.close()
    assert [each["arm"] for each in told] == alone
    assert set(alone) == {"stable", "blue"}


pieces = st.lists(
    st.sampled_from(
        [
            b'{"distance":1.5,"hour":6,"carrier":"UA"}',
            b"\n",
            b"\r\n",
            b"{",
            b"}",
            b'"',
            b"\xff",
            b"[",
            b"null",
        ]
    )
    | st.binary(max_size=8),
    max_size=20,
)


@given(parts=pieces)
def test_no_bytes_break_bulk(parts: list[bytes], fuzzed: Inside) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    reply = fuzzed.call("POST", "/models/late/bulk", content=body(), headers={"content-type": LINES})
    assert reply.status_code == 200
    wanted = [line for line in b"".join(parts).split(b"\n") if line.strip()]
    told = [json.loads(line) for line in reply.text.splitlines()]
    assert len(told) == len(wanted)
    assert all(("error" in each) != ("outputs" in each) for each in told)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Iterator[Inside]:
    site = Inside(tmp_path_factory.mktemp("fuzzed"), model_of("late", {1: bundles["one"]}))
    yield site
    site.close()
