"""The worker's HTTP protocol: the short way answers as the ASGI application does, and no client holds up another."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.bundle.routes import Batching, ServingPolicy
from loopwright.serving.app import Bounds
from loopwright.serving.connections import SPARE, Limits
from loopwright.serving.counters import read_counters
from tests.unit.serving.inside import Inside, model_of, tiny
from tests.unit.serving.wire import Client, Said, Wire, post, run

PATH = "/v2/models/late/infer"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def request(id: str = "a", **more: Any) -> dict[str, Any]:
    inputs = [
        {"name": "distance", "datatype": "FP64", "shape": [1], "data": [500.0]},
        {"name": "hour", "datatype": "INT64", "shape": [1], "data": [6]},
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]},
    ]
    return {"id": id, "inputs": inputs, **more}


def body(id: str = "a", **more: Any) -> bytes:
    return json.dumps(request(id, **more)).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hot")


@pytest.fixture(scope="module")
def inside(folder: Path) -> Iterator[Inside]:
    """A fast model, and one that is predicted in a thread."""
    slow = ServingPolicy(batching=Batching(mode="on"))
    site = Inside(
        folder / "one",
        model_of("late", {1: tiny(folder / "late")}),
        model_of("slow", {1: tiny(folder / "slow")}, policy=slow),
        bounds=Bounds(body=4096, rows=50),
    )
    yield site
    site.close()


# Both ways give the same answers.

_NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.none(), st.text(max_size=3), st.booleans()
)  # fmt: skip


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """Whole requests, most of them right and each with a few things that may be wrong."""
    said = request(draw(st.sampled_from(["a", "", "é", "x" * 300])))
    if draw(st.booleans()):
        tensor = draw(st.sampled_from(said["inputs"]))
        field, value = draw(
            st.sampled_from(
                [("name", "other"), ("datatype", "FP32"), ("shape", [1, 1]), ("shape", [2]), ("shape", [-1])]
            )
            | st.tuples(st.just("data"), st.lists(_NUMBERS, max_size=3))
        )
        tensor[field] = value
    said.update(
        draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "parameters": st.sampled_from(
                        [
                            {"unit": "u1"},
                            {"unit": 5},
                            {"binary_data_output": True},
                            {"event_time": "soon"},
                            [],
                        ]
                    ),
                    "outputs": st.sampled_from([[{"name": "probability"}], [{"name": "nothing"}], []]),
                    "inputs": st.sampled_from([[], {}, said["inputs"] * 2, list(reversed(said["inputs"]))]),
                },
            )
        )
    )
    raw = json.dumps(said).encode()
    cut = draw(st.sampled_from([0, 0, 0, 0, 1, 40]))
    raw = raw[: len(raw) - cut] + draw(st.sampled_from([b"", b"", b"", b" ", b"{", b"\x00", b"\xff" * 5000]))
    headers = draw(
        st.lists(
            st.sampled_from(
                [
                    ("Content-Type", "application/json"), ("Connection", "keep-alive"), ("Content-Encoding", "gzip"),
                    ("Inference-Header-Content-Length", str(len(raw))), ("Inference-Header-Content-Length", "x"),
                    ("X-Loopwright-Timeout-Ms", "1000"), ("X-Loopwright-Timeout-Ms", "soon"),
                    ("X-Loopwright-Arm", "stable"), ("X-Loopwright-Arm", "canary"), ("Expect", "100-continue"),
                    ("Authorization", "Bearer x"), ("Upgrade", "h2c"),
                ]
            ),
            max_size=3, unique_by=lambda header: header[0],
        )
    )  # fmt: skip
    path = draw(
        st.sampled_from(
            [PATH, PATH, PATH, PATH + "?q=1", "/v2/models/l%61te/infer", "/v2/models/none/infer",
             "/v2/models/late/versions/1/infer", "/v2/models/slow/infer"]
        )
    )  # fmt: skip
    version = draw(st.sampled_from(["1.1", "1.1", "1.0"]))
    whole = post(path, raw, *headers, version=version)
    if draw(st.booleans()) and version == "1.1":  # the same body in chunks
        head, _, _ = whole.partition(b"\r\n\r\n")
        head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head, count=1)
        size = draw(st.integers(1, 400))
        chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        whole = head + b"\r\n\r\n" + framed + b"0\r\n\r\n"
    return whole


@given(raw=_requests(), data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_give_the_same_answer_however_a_request_is_cut(
    inside: Inside, raw: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=4), label="cuts"))
    parts = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if b > a]

    async def both() -> tuple[list[Said], list[Said], list[Said]]:
        short, plain = Wire(inside.app), Wire(inside.app, hot=False)
        return await short.say([raw]), await short.say(parts), await plain.say(parts)

    at_once, in_parts, by_asgi = run(both())
    assert len(at_once) == len(in_parts) == len(by_asgi) == 1
    assert _plain(at_once[0]) == _plain(in_parts[0]) == _plain(by_asgi[0])


def _plain(said: Said) -> tuple[int, dict[str, str], bytes]:
    """Without what is new in each answer: ids given here, and how much of a body had come when it was too much."""
    text = re.sub(rb"rq_[0-9a-z_-]+", b"rq", said.body)
    text = re.sub(rb"too large; got \d+", b"too large; got n", text)
    headers = {name: value for name, value in said.headers.items() if name != "content-length"}
    return said.status, headers, text


def test_a_plain_request_takes_the_short_way(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("went through the application")

    async def ask() -> list[Said]:
        wire = Wire(inside.app)
        monkeypatch.setattr(type(inside.app), "__call__", never)
        return await wire.say([post(PATH, body("k1"))])

    (said,) = run(ask())
    assert (said.status, said.json["id"]) == (200, "k1")
    assert "connection" not in said.headers


def test_answers_are_counted_by_status(folder: Path, inside: Inside) -> None:
    def counted(status: str) -> int:
        series = read_counters(inside.folder).get(("http", status))
        return series.count if series else 0

    before = [counted(status) for status in ("200", "400", "422")]

    async def ask() -> None:
        await Wire(inside.app).say([post(PATH, body()), post(PATH, b"{"), post(PATH, b"{}")], 3)

    run(ask())
    assert [counted(status) for status in ("200", "400", "422")] == [n + 1 for n in before]


def test_an_error_in_our_own_code_is_an_answer_and_the_end_of_the_connection(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> tuple[Said, bool]:
        client = await Wire(inside.app).open()
        with monkeypatch.context() as patch:
            patch.setattr(type(inside.app.inference), "start", lambda *_: 1 // 0)
            await client.send(post(PATH, body()))
            said = await client.answer()
        return said, await client.end_of_answers()

    said, ended = run(ask())
    assert (said.status, said.headers["connection"], ended) == (500, "close", True)


# Order.


def test_pipelined_requests_are_answered_in_their_order_whatever_way_they_take(inside: Inside) -> None:
    wanted = ["a", None, "b", "c", None, "d", "e"]
    raw = b"".join(
        [post(PATH, body("a")), GET, post(PATH, body("b")), post("/v2/models/slow/infer", body("c")), GET,
         post(PATH, body("d")), post(PATH, body("e"))]
    )  # fmt: skip

    async def ask() -> list[Said]:
        return await Wire(inside.app).say([raw[:700], raw[700:]], len(wanted))

    assert [said.json.get("id") for said in run(ask())] == wanted


def test_a_client_that_pipelines_too_much_gets_a_bounded_number_of_answers_in_order(inside: Inside) -> None:
    limits = Limits(pipelined=8)
    raw = b"".join(post("/v2/models/slow/infer", body(str(i))) for i in range(50))

    async def ask() -> tuple[list[Said], bool]:
        client = await Wire(inside.app, limits).open()
        await client.send(raw)
        return await client.answers(50), client.ended

    said, ended = run(ask())
    assert [one.json["id"] for one in said] == [str(i) for i in range(len(said))]
    assert 8 <= len(said) <= 10
    assert (said[-1].headers["connection"], ended) == ("close", True)


def test_many_plain_requests_at_once_are_all_answered(inside: Inside) -> None:
    async def ask() -> list[Said]:
        return await Wire(inside.app).say([b"".join(post(PATH, body(str(i))) for i in range(100))], 100)

    assert [one.json["id"] for one in run(ask())] == [str(i) for i in range(100)]


def test_what_follows_an_offer_of_another_protocol_is_the_next_request(inside: Inside) -> None:
    offer = post(PATH, body("a"), ("Connection", "Upgrade"), ("Upgrade", "h2c"))

    async def ask() -> list[Said]:
        return await Wire(inside.app).say([offer + post(PATH, body("b")) + GET], 3)

    first, second, third = run(ask())
    assert (first.json["id"], second.json["id"], third.json) == ("a", "b", {"live": True})


# What is no request.


@pytest.mark.parametrize(
    "raw",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 10,
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
     b"GET / HTTP/9.9\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
     b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
     b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
     b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
     b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_told_so_and_the_connection_ends(inside: Inside, raw: bytes) -> None:
    async def ask() -> tuple[Said, bool]:
        client = await Wire(inside.app).open()
        await client.send(raw)
        return await client.answer(), await client.end_of_answers()

    said, ended = run(ask())
    assert (said.status, said.headers["connection"], ended) == (400, "close", True)
    assert "not HTTP/1.1" in said.json["error"]


def test_requests_before_the_garbage_are_answered_first(inside: Inside) -> None:
    async def ask() -> list[Said]:
        raw = post("/v2/models/slow/infer", body("a")) + GET + b"garbage garbage\r\n\r\n"
        return await Wire(inside.app).say([raw], 4)

    assert [one.status for one in run(ask())] == [200, 200, 400]


@pytest.mark.parametrize("path", [PATH, "/v2/models/late/nothing", "/v2/models/l%61te/infer"])
def test_a_body_whose_chunks_are_broken_is_told_so(inside: Inside, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    async def ask() -> tuple[list[Said], bool]:
        client = await Wire(inside.app).open()
        await client.send(head + b"5\r\nhello\r\n", b"zz\r\n")
        said = await client.answers(2 if "nothing" in path else 1)
        return said, await client.end_of_answers()

    said, ended = run(ask())
    assert (said[-1].status, ended) == (400, True)


@pytest.mark.parametrize("cut", [False, True])
def test_a_head_is_bounded_in_bytes_and_in_lines(inside: Inside, cut: bool) -> None:
    large = b"GET / HTTP/1.1\r\nX: " + b"x" * (70 << 10) + b"\r\n\r\n"
    endless = b"GET / HTTP/1.1\r\nX: " + b"x" * (200 << 10)
    many = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"
    url = b"GET /" + b"x" * (200 << 10)

    async def ask() -> list[int]:
        found = []
        for raw in (large, endless, many, url):
            parts = [raw[at : at + 30_000] for at in range(0, len(raw), 30_000)] if cut else [raw]
            (said,) = await Wire(inside.app).say(parts)
            found.append(said.status)
        return found

    assert run(ask()) == [431] * 4


@pytest.mark.parametrize("path", [PATH, "/v2/models/late/nothing"])
@pytest.mark.parametrize(
    "endless", [b"0\r\nX: " + b"x" * 300_000, b"1;" + b"x" * 300_000, b"0\r\n" + b"a: b\r\n" * 50_000]
)
def test_what_frames_a_body_is_bounded(inside: Inside, path: str, endless: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    async def ask() -> list[Said]:
        client = await Wire(inside.app).open()
        await client.send(head, *(endless[at : at + 20_000] for at in range(0, len(endless), 20_000)))
        return await client.answers(2)

    assert run(ask())[-1].status == 400


def test_what_a_trailer_says_is_no_header(inside: Inside) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    raw = body()
    chunked = head + b"%x\r\n%b\r\n0\r\nX-Loopwright-Timeout-Ms: soon\r\n\r\n" % (len(raw), raw)

    async def ask() -> list[Said]:
        return await Wire(inside.app).say([chunked, post(PATH, body("b"))], 2)

    assert [said.status for said in run(ask())] == [200, 200]


def test_a_body_beyond_its_bound_is_answered_while_the_client_still_sends(inside: Inside) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()

    async def ask() -> tuple[Said, bool]:
        client = await Wire(inside.app).open()
        await client.send(head, *[b"x" * 50_000] * 20)
        said = await client.answer()
        client.done_sending()
        return said, await client.end_of_answers()

    said, ended = run(ask())
    assert (said.status, said.headers["connection"], ended) == (413, "close", True)
    assert said.json["error"].startswith("the body is too large; got 1000000")


def test_unfinished_bodies_are_bounded_all_together(folder: Path) -> None:
    site = Inside(
        folder / "budget", model_of("late", {1: tiny(folder / "budgeted")}), bounds=Bounds(body=1000, unfinished=10)
    )  # fmt: skip
    whole = post(PATH, body())

    async def ask() -> tuple[list[Said], list[Said]]:
        wire = Wire(site.app)
        held = [await wire.open() for _ in range(2)]
        for client in held:  # together all that there is: two whole bodies
            await client.send(post(PATH, b"x" * 999)[:-1], b"")
        third = await wire.say([whole[:-40], b""])
        held[0].end.close()
        await asyncio.sleep(0.01)
        return third, await wire.say([whole[:-40], whole[-40:]])

    refused, answered = run(ask())
    site.close()
    assert (refused[0].status, refused[0].headers["retry-after"]) == (503, "1")
    assert answered[0].status == 200


# Time.


def test_a_head_that_does_not_come_is_given_up(inside: Inside) -> None:
    async def ask() -> tuple[Said, bool, Said]:
        wire = Wire(inside.app, Limits(head_seconds=10))
        slow, other = await wire.open(), await wire.open()
        await slow.send(b"POST /v2 HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n")
        wire.later(9)
        await slow.send(b"X: z\r\n")
        wire.later(11)
        await other.send(post(PATH, body()))
        return await slow.answer(), await slow.end_of_answers(), await other.answer()

    said, ended, other = run(ask())
    assert (said.status, ended, other.status) == (408, True, 200)
    assert said.json["error"] == "the head came too slowly; wanted all of it within 10 s"


def test_a_body_that_does_not_come_is_given_up(inside: Inside) -> None:
    async def ask() -> tuple[Said, bool]:
        wire = Wire(inside.app, Limits(body_seconds=30))
        client = await wire.open()
        await client.send(post(PATH, body())[:-5], b"")
        wire.later(29)
        await client.send(b"x")
        wire.later(31)
        return await client.answer(), await client.end_of_answers()

    said, ended = run(ask())
    assert (said.status, ended) == (408, True)
    assert said.json["error"] == "the body came too slowly; wanted all of it within 30 s"


def test_what_is_left_of_a_request_that_was_answered_is_not_read_for_ever(inside: Inside) -> None:
    async def ask() -> tuple[Said, bool]:
        wire = Wire(inside.app)
        client = await wire.open()
        await client.send(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        said = await client.answer()
        wire.later(31)
        return said, await client.end_of_answers()

    said, ended = run(ask())
    assert (said.status, ended) == (404, True)


def test_a_connection_that_rests_too_long_is_closed_and_one_at_work_is_not(inside: Inside) -> None:
    async def ask() -> tuple[bool, Said]:
        wire = Wire(inside.app, Limits(idle_seconds=75))
        idle, used, busy = await wire.open(), await wire.open(), await wire.open()
        await used.send(post(PATH, body()))
        await used.answer()
        await busy.send(post("/v2/models/slow/infer", body("b")))
        wire.later(80)
        return await idle.end_of_answers() and await used.end_of_answers(), await busy.answer()

    ended, busy = run(ask())
    assert ended
    assert busy.json["id"] == "b"


def test_a_client_that_does_not_read_is_cut_off_and_one_that_reads_slowly_is_not(inside: Inside) -> None:
    async def ask() -> tuple[bool, int, int]:
        wire = Wire(inside.app, Limits(write_seconds=30))
        deaf, slow = await wire.open(buffer=4096), await wire.open(buffer=4096)
        sending = [asyncio.create_task(_flood(one)) for one in (deaf, slow)]
        async with asyncio.timeout(30):  # until neither can be written to any more
            while len(wire.connections._unread) < 2:
                await asyncio.sleep(0.005)
        held = max(connection.unread() for connection in wire.state.connections)
        await slow.answers(20)
        await asyncio.sleep(0.05)
        wire.later(31)
        await asyncio.sleep(0.05)
        left = len(wire.state.connections)
        for task in sending:
            task.cancel()
        return await _cut(deaf), held, left

    cut, held, left = run(ask())
    assert (cut, left) == (True, 1)
    assert held < 200_000


async def _flood(client: Client) -> None:
    raw = b"GET /v2/models/late HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        while True:
            await asyncio.get_running_loop().sock_sendall(client.end, raw)
    except OSError:
        return


async def _cut(client: Client) -> bool:
    while not client.ended:
        await client.answers(1000)
    return client.ended


# Ends.


def test_a_client_that_has_said_all_still_gets_its_answers(inside: Inside) -> None:
    async def ask() -> tuple[list[Said], bool]:
        client = await Wire(inside.app).open()
        raw = post("/v2/models/slow/infer", body("a")) + GET + post("/v2/models/slow/infer", body("b"))
        await asyncio.get_running_loop().sock_sendall(client.end, raw)
        client.done_sending()
        return await client.answers(3), await client.end_of_answers()

    said, ended = run(ask())
    assert ([one.json.get("id") for one in said], ended) == (["a", None, "b"], True)


@pytest.mark.parametrize("part", [b"", b"POST /v2", post(PATH, body())[:-3]])
def test_a_client_that_leaves_in_mid_request_leaves_nothing_behind(inside: Inside, part: bytes) -> None:
    async def ask() -> tuple[int, int]:
        wire = Wire(inside.app)
        client = await wire.open()
        await client.send(part)
        client.done_sending()
        ended = await client.end_of_answers()
        found = wire.connections
        return ended, len(wire.state.connections) + sum(map(len, (found.idle, found.heads, found.bodies)))

    left = inside.app.budget.left
    assert run(ask()) == (True, 0)
    assert inside.app.budget.left == left


def test_a_leaving_worker_gives_each_client_one_last_answer(inside: Inside) -> None:
    async def ask() -> tuple[Said, bool, bool, Said, Said]:
        wire = Wire(inside.app)
        leaving, idle, half, slow = [await wire.open() for _ in range(4)]
        wire.state.default_headers = [(b"connection", b"close")]
        await leaving.send(post(PATH, body()))
        said = await leaving.answer()
        ended = await leaving.end_of_answers()
        wire.state.default_headers = []
        whole = post(PATH, body("half"))
        await half.send(whole[:-10])
        await asyncio.get_running_loop().sock_sendall(slow.end, post("/v2/models/slow/infer", body("slow")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in list(wire.state.connections):
            connection.shutdown()
        await half.send(whole[-10:])
        return said, ended, await idle.end_of_answers(), await half.answer(), await slow.answer()

    said, ended, idle_ended, half, slow = run(ask())
    assert (said.status, said.headers["connection"], ended, idle_ended) == (200, "close", True, True)
    assert (half.json["id"], half.headers["connection"]) == ("half", "close")
    assert slow.json["id"] == "slow"


# How many.


def test_the_longest_idle_connection_makes_room_for_a_new_one(inside: Inside) -> None:
    async def ask() -> tuple[list[bool], Said]:
        wire = Wire(inside.app, Limits(connections=3))
        clients = [await wire.open() for _ in range(3)]
        await clients[0].send(post(PATH, body()))  # now the second is idle longest
        await clients[0].answer()
        fourth = await wire.open()
        await fourth.send(post(PATH, body("4")))
        said = await fourth.answer()
        await asyncio.sleep(0.01)
        return [connection.client is not None for connection in wire.state.connections], said

    open_now, said = run(ask())
    assert (len(open_now), said.json["id"]) == (3, "4")


def test_when_all_connections_are_at_work_a_new_one_is_told_so(inside: Inside) -> None:
    async def ask() -> tuple[Said, bool, bool, int]:
        wire = Wire(inside.app, Limits(connections=2))
        busy = [await wire.open() for _ in range(2)]
        for client in busy:
            await client.send(post(PATH, body())[:-5], b"")
        told = await wire.open()
        said, ended = await told.answer(), await told.end_of_answers()
        crowd = [await wire.open() for _ in range(SPARE + 4)]
        await asyncio.sleep(0.01)
        silent = await crowd[-1].end_of_answers()
        wire.later(7)  # a fifth of the time a body has
        return said, ended, silent, len(wire.state.connections)

    said, ended, silent, count = run(ask())
    assert (said.status, said.headers["retry-after"], ended, silent) == (503, "1", True, True)
    assert count <= 2 + SPARE + 1


def test_a_head_that_dawdles_makes_room_before_an_idle_client_does(inside: Inside) -> None:
    async def ask() -> tuple[bool, Said]:
        wire = Wire(inside.app, Limits(connections=2, head_seconds=0.05))
        idle, loris = await wire.open(), await wire.open()
        await loris.send(b"POST ")
        await asyncio.sleep(0.02)
        await wire.open()
        await idle.send(post(PATH, body("i")))
        return await loris.end_of_answers(), await idle.answer()

    cut, said = run(ask())
    assert (cut, said.json["id"]) == (True, "i")
