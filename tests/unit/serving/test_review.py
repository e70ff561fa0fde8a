"""What clients, clocks and changes of routes must not do to a worker: each of these once went wrong."""

import asyncio
import gc
import json
import os
import socket
import sys
import threading
import time
import weakref
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Arm, Batching, Breaker, LogPolicy, ServingPolicy
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, logistic_onnx
from loopwright.serving.access_log import AccessLog
from loopwright.serving.app import Bounds
from loopwright.serving.breaker import Breaker as CircuitBreaker
from loopwright.serving.cache import Cache
from loopwright.serving.callers import Caller, Callers, is_loopback
from loopwright.serving.channel import Channel
from loopwright.serving.connections import Limits
from loopwright.serving.counters import Counters, read_counters
from loopwright.serving.engine import Answer, Call, Model, Served
from loopwright.serving.entities import EntityFeatures
from loopwright.serving.events import Event, NotLogged, SegmentWriter, frame, read_frames
from loopwright.serving.lanes import DeadlinePassed
from loopwright.serving.rows import Rows
from loopwright.serving.watching import Asked
from loopwright.serving.worker import Worker, WorkerConfig
from tests.unit.serving.inside import KEY, Inside, model_of, tiny
from tests.unit.serving.watched import Watched
from tests.unit.serving.wire import Wire, run


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny(tmp_path_factory.mktemp("late") / "bundle")


def test_a_body_of_which_nothing_comes_is_given_up_on_every_path(tmp_path: Path, late: Bundle) -> None:
    site = Inside(tmp_path, model_of("late", {1: late}), bounds=Bounds(body_seconds=0.2))

    async def ask() -> int:
        client = await Wire(site.app, Limits(body_seconds=0.2)).open()
        head = "POST /models/late/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9"
        await client.send(head.encode() + b"\r\n\r\n")
        return (await client.answer()).status

    assert run(ask()) == 408
    site.close()


# A version trained later may have the same inputs and outputs in another order.

CLASSES = {"a": [3.0, 0.0], "b": [0.0, 2.0]}
"""What each class makes of the inputs x and y."""


def ordered(dest: Path, inputs: str, outputs: str = "ab", *, more: tuple[Field, ...] = ()) -> Bundle:
    """The same model, whatever the order of its inputs and of its classes."""
    fields = (*(Field(name, "float64") for name in inputs), *more)
    weights = np.array([[CLASSES[label]["xy".index(name)] for label in outputs] for name in inputs])
    weights = np.vstack([weights, np.zeros((len(more), len(outputs)))])
    golden = {**{name: [0.0] for name in inputs}, **{field.name: [0.0] for field in more}}
    sealed = build_bundle(
        dest, model="m", onnx=logistic_onnx(weights, 0.0), transform=None, state={}, reference={}, card="m",
        schema=Schema(
            inputs=fields, features=tuple(field.name for field in fields), outputs=tuple(outputs),
            task="multiclass", classes=tuple(outputs),
        ),
        golden=Golden(golden, [[0.5] * len(outputs)]), provenance={"run_id": "r"}, created_at=CREATED, key=KEY,
    )  # fmt: skip
    return open_bundle(sealed.path, [KEY.public])


def logistic(x: float) -> Any:
    return pytest.approx(1 / (1 + np.exp(-x)), abs=1e-6)


HALVES = Arm("stable", 1, 0.5), Arm("canary", 2, 0.5)


@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_and_outputs_in_another_order_are_not_mixed_up(tmp_path: Path, rows: int) -> None:
    hidden = ServingPolicy(log=LogPolicy(redact=("y",)))
    bundles = {1: ordered(tmp_path / "1", "xy"), 2: ordered(tmp_path / "2", "yx", "ba")}
    site = Inside(tmp_path / "s", model_of("m", bundles, *HALVES, policy=hidden))
    asked = [{"x": 1.0, "y": row} for row in range(rows)]
    for arm in ("stable", "canary"):
        said = site.post("/models/m/predict", {"inputs": asked}, **{"x-loopwright-arm": arm}).json()
        assert [one["outputs"] for one in said["predictions"]] == [
            {"a": logistic(3.0), "b": logistic(2.0 * row)} for row in range(rows)
        ]
        assert {one["arm"] for one in said["predictions"]} == {arm}
    by_arm = {arm: [event for event in site.events() if event.arm == arm] for arm in ("stable", "canary")}
    assert [event.inputs for event in by_arm["stable"]] == [[1.0, None]] * rows
    assert [event.inputs for event in by_arm["canary"]] == [[None, 1.0]] * rows
    assert by_arm["canary"][0].outputs == by_arm["stable"][0].outputs[::-1]
    site.close()


def test_a_version_asked_by_number_is_asked_in_its_own_order(tmp_path: Path) -> None:
    bundles = {1: ordered(tmp_path / "1", "xy"), 2: ordered(tmp_path / "2", "yx")}
    site = Inside(tmp_path / "s", model_of("m", bundles, *HALVES))
    said = site.post("/v2/models/m/versions/2/infer", {"inputs": [
        {"name": "m", "datatype": "FP64", "shape": [1, 2], "data": [0.0, 1.0]}]})  # fmt: skip
    assert said.json()["outputs"][0]["data"] == [logistic(3.0)]
    site.close()


def test_a_shadow_gets_its_inputs_by_name_too(tmp_path: Path) -> None:
    bundles = {1: ordered(tmp_path / "1", "xy"), 2: ordered(tmp_path / "2", "yx")}
    site = Inside(tmp_path / "s", model_of("m", bundles, Arm("stable", 1, 1.0), Arm("shadow", 2, 1.0)))
    site.post("/models/m/predict", {"inputs": {"x": 1.0, "y": 0.5}})
    (copy,) = [event for event in site.events() if event.arm == "shadow"]
    assert (copy.inputs, copy.outputs) == ([0.5, 1.0], [logistic(3.0), logistic(1.0)])
    site.close()


def test_a_canary_that_wants_more_than_requests_bring_fails_and_stable_answers(tmp_path: Path) -> None:
    bundles = {
        1: ordered(tmp_path / "1", "xy"),
        2: ordered(tmp_path / "2", "xy", more=(Field("z", "float64"),)),
    }
    site = Inside(tmp_path / "s", model_of("m", bundles, *HALVES))
    said = site.post(
        "/models/m/predict", {"inputs": {"x": 1.0, "y": 0.0}}, **{"x-loopwright-arm": "canary"}
    ).json()
    assert (said["version"], said["arm"], said["fallback"]) == (1, "stable", True)
    first, second = site.events()
    assert (first.arm, first.status, first.error) == (
        "canary",
        "error",
        "it takes `z`, which requests do not bring",
    )
    assert (second.arm, second.status) == ("stable", "fallback")
    site.close()


def test_a_canary_that_takes_no_null_is_not_given_one(tmp_path: Path) -> None:
    strict = ordered(tmp_path / "2", "x", more=(Field("y", "float64", nullable=False),))
    stands_in = ServingPolicy(default={"a": 0.25, "b": 0.75})
    bundles = {1: ordered(tmp_path / "1", "xy"), 2: strict}
    site = Inside(tmp_path / "s", model_of("m", bundles, *HALVES, policy=stands_in))
    asked = [{"x": 1.0, "y": None}, {"x": 1.0, "y": 1.0}]
    said = site.post("/models/m/predict", {"inputs": asked}, **{"x-loopwright-arm": "canary"}).json()
    assert [(one["version"], one["arm"]) for one in said["predictions"]] == [(1, "default"), (2, "canary")]
    assert [event.error for event in site.events()][:2] == ["takes no null as `y`", ""]
    site.close()


# Kept answers.


def test_kept_answers_shrink_with_the_policy_and_go_with_their_version(tmp_path: Path, late: Bundle) -> None:
    def kept(most: int) -> ServingPolicy:
        return ServingPolicy(cached_answers=most)

    one, other = Arm("stable", 1, 1.0), Arm("stable", 2, 1.0)
    many, few = (model_of("late", {1: late}, one, policy=kept(most)) for most in (100, 2))
    site = Inside(tmp_path, many)
    for hour in range(5):
        site.post("/models/late/predict", {"inputs": {"distance": 500.0, "hour": hour, "carrier": "UA"}})
    rows = [[500.0, hour, "UA"] for hour in range(5)]
    assert all(site.engine._kept.find(many, row) for row in rows)
    site.serve(few)
    assert [bool(site.engine._kept.find(few, row)) for row in rows] == [False] * 3 + [True] * 2
    later = model_of("late", {2: late}, other, policy=kept(2))
    site.serve(later)
    assert not any(site.engine._kept.find(later, row) for row in rows)
    site.close()


# Slow models and short deadlines.


def slow_site(folder: Path, late: Bundle, each: float, policy: ServingPolicy) -> tuple[Inside, Model]:
    """A version that takes its time in company as well: `each` seconds a row."""
    slow = cast(Bundle, Watched(late, lambda rows: time.sleep(each * rows)))
    model = model_of("late", {1: slow}, policy=policy)
    return Inside(folder, model), model


def hours(n: int) -> Rows:
    return Rows("", n, [[500.0, 6, "UA"] for _ in range(n)], [""] * n, [""] * n, [0] * n)


def test_a_slow_model_asked_only_for_many_rows_leaves_the_event_loop(tmp_path: Path, late: Bundle) -> None:
    site, model = slow_site(tmp_path, late, 0.002, ServingPolicy())

    answer = asyncio.run(site.engine.infer(model, hours(100)))
    assert len(answer.outputs) == 100 and not any(answer.errors)
    watched = cast(Watched, model.versions[1].bundle)
    assert sum(rows for thread, rows in watched.ran if thread == threading.get_ident()) < 50
    lane = model.versions[1].lane
    assert lane is not None and not lane.inline
    site.close()


def test_a_deadline_ends_a_request_of_many_rows_between_its_parts(tmp_path: Path, late: Bundle) -> None:
    site, model = slow_site(tmp_path, late, 0.0008, ServingPolicy(batching=Batching(mode="off")))

    async def ask() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlinePassed):
            await site.engine.infer(model, hours(5000), Call(until=began + 0.05))
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(ask()) < 2.0  # of 4 s
    site.close()


def test_an_arm_that_is_too_slow_for_its_callers_is_on_record_and_left_alone(
    tmp_path: Path, late: Bundle
) -> None:
    policy = ServingPolicy(
        timeout_ms=1500,
        batching=Batching(mode="on"),
        breaker=Breaker(requests=4),
        default={"probability": 0.5},
    )
    site, model = slow_site(tmp_path, late, 1.0, policy)

    async def ask() -> Answer:
        loop = asyncio.get_running_loop()
        calls = [site.engine.infer(model, hours(1), Call(until=loop.time() + 0.5)) for _ in range(6)]
        said = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in said} == {DeadlinePassed}
        async with asyncio.timeout(30):
            while site.engine.breakers["late", 1, "stable"].state != "open":
                await asyncio.sleep(0.01)
        return await site.engine.infer(model, hours(1), Call(until=loop.time() + 0.5))

    assert asyncio.run(ask()).sources == ["default"]
    (first, *_) = site.events()
    assert (first.arm, first.status, first.error) == (
        "stable", "error", "DeadlinePassed: the caller's time was over before there was an answer",
    )  # fmt: skip


# Gauges and clocks.


def test_gauges_of_what_is_gone_say_so(tmp_path: Path, late: Bundle) -> None:
    site, model = slow_site(tmp_path, late, 0.0, ServingPolicy(batching=Batching(mode="on")))
    asyncio.run(site.engine.infer(model, hours(1)))
    lane = model.versions[1].lane
    assert lane is not None
    lane.waiting = 7
    site.engine.measure()
    breaker = site.engine.breakers.of(model, 1, "stable")
    for _ in range(20):
        breaker.record(False, 1, 1_000_000)

    def told() -> tuple[int, int]:
        series = read_counters(site.folder)
        return series["queue_rows", "late", "1"].count, series["breaker_open", "late", "1", "stable"].count

    assert told() == (7, 1)
    site.serve(model_of("late", {2: late}, Arm("stable", 2, 1.0)))
    site.engine.measure()
    assert told() == (0, 0)
    site.close()


def test_a_clock_that_is_put_back_does_not_keep_a_breaker_open() -> None:
    breaker, now = CircuitBreaker(Breaker(requests=1, open_s=5.0)), 10**15
    breaker.record(False, 1, now)
    assert breaker.state == "open"
    assert not breaker.allows(now + 1)
    earlier = now - 3_600_000_000
    assert (breaker.wait(earlier), breaker.allows(earlier)) == (0.0, True)
    assert not breaker.allows(earlier + 1)  # one at a time, by the new time
    breaker.record(True, 1, earlier)
    assert breaker.allows(earlier - 3_600_000_000)


# Who may ask.


@pytest.mark.parametrize(
    ("client", "inside"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::1:2:3", False),
     ("::1234", False), ("127.evil", False), ("", False), ("unix:/tmp/x", False), ("10.0.0.9", False)],
)  # fmt: skip
def test_this_machine_is_told_by_the_address_and_not_by_how_it_begins(client: str, inside: bool) -> None:
    assert is_loopback(client) == inside


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "origin"])
def test_nobody_administers_by_way_of_a_proxy_or_a_browser_on_this_machine(
    tmp_path: Path, late: Bundle, header: str
) -> None:
    site = Inside(tmp_path, model_of("late", {1: late}))
    assert site.call("POST", "/admin/flush").status_code == 200
    refused = site.call("POST", "/admin/flush", headers={header: "http://10.0.0.9"})
    assert refused.status_code == 403
    site.close()


def test_forcing_an_arm_is_one_request_and_not_two(tmp_path: Path, late: Bundle) -> None:
    token = sha256(b"lw_ops").hexdigest()
    ops = Caller("ops", token, ("predict", "override"), per_second=0.01)
    site = Inside(tmp_path, model_of("late", {1: late}), callers=Callers((ops,)))
    asked = {"inputs": {"distance": 500.0, "hour": 6, "carrier": "UA"}}
    said = [
        site.post(
            "/models/late/predict", asked, **{"authorization": "Bearer lw_ops", "x-loopwright-arm": "stable"}
        ).status_code
        for _ in range(2)
    ]
    assert said == [200, 429]
    site.close()


# A supervisor's questions.


def test_a_worker_answers_pings_while_copies_wait_for_a_slow_shadow(tmp_path: Path) -> None:
    class Engine:
        async def drained(self) -> None:
            await asyncio.sleep(3600)

        def measure(self) -> None:
            pass

    async def ask() -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        supervisor, channel = await Channel.open(ours), await Channel.open(theirs)
        worker = Worker.__new__(Worker)
        worker._channel, worker._applying, worker._access, worker._unready = channel, set(), None, ""
        worker.engine, worker.stopping = cast(Any, Engine()), asyncio.Event()
        listening = asyncio.create_task(worker._listen())
        supervisor.send({"drain": 1})
        supervisor.send({"ping": {}})
        async with asyncio.timeout(5):
            answer = await anext(aiter(supervisor.messages()))
        listening.cancel()
        supervisor.close()
        channel.close()
        return answer

    assert asyncio.run(ask()) == {"pong": True}


def test_a_worker_knows_what_probes_ask_before_the_supervisor_has_greeted_it(tmp_path: Path) -> None:
    """The first connection may have waited for it to accept."""
    Cache(tmp_path).create()
    config = WorkerConfig(
        home=str(tmp_path), slot="w0", listen=-1, channel=-1, keys=[], log="w0-w_1", gauges={"control_up": 1.0},
        unstarted="1 of 2 workers have come up",
    )  # fmt: skip
    worker = Worker(config, cast(Channel, None))
    worker._log.close()
    assert worker.gauges()["control_up"] == 1.0
    assert worker.not_started() == "1 of 2 workers have come up"


# What is said of requests.


def test_an_error_of_our_own_is_counted_and_seen_by_those_who_look_on(
    tmp_path: Path, late: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Inside(tmp_path, model_of("late", {1: late}))
    monkeypatch.setattr(site.engine, "start", lambda *asked: 1 / 0)
    log = AccessLog(str(tmp_path / "access"))
    site.app.front.watchers.append(log)
    asked = {"inputs": {"distance": 500.0, "hour": 6, "carrier": "UA"}}
    assert site.post("/models/late/predict", asked).status_code == 500
    log.close()
    assert json.loads((tmp_path / "access").read_bytes())["status"] == 500
    assert read_counters(tmp_path)["http", "500"].count == 1
    site.close()


def test_an_access_log_that_nobody_reads_holds_up_no_request(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    log = AccessLog("-")
    asked = Asked("http", "GET", "/" + "x" * 400, "127.0.0.1", [])
    for _ in range(400):
        log.end(None, asked, 200, 0, 1, None)  # four times what a pipe holds
    assert log.lost > 100
    whole = os.read(reading, 1 << 20).splitlines()
    assert {json.loads(line)["status"] for line in whole} == {200}
    log.end(None, asked, 201, 0, 1, None)
    log.flush()
    assert json.loads(os.read(reading, 1 << 20))["status"] == 201
    assert capfd.readouterr().err.count("lines of the access log are lost") == 1
    sys.stdout.close()
    os.close(reading)


def test_a_version_that_has_left_is_not_held_by_what_is_known_of_its_views(tmp_path: Path) -> None:
    served = Served.of(1, tiny(tmp_path / "bundle"))
    features = EntityFeatures(cast(Any, None), cast(Any, None))
    features._known(served)
    gone = weakref.ref(served.bundle)
    del served
    gc.collect()
    assert gone() is None


def test_long_names_keep_their_labels_and_too_many_series_spoil_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopwright.serving.counters._ROWS", 4)
    counters = Counters(tmp_path / "w0.counters")
    for status in ("ok", "error"):
        counters.add(("predictions", "ä" * 256, "1", "stable", status))
    kept = list(read_counters(tmp_path))
    assert [(len(key), key[2:]) for key in kept] == [
        (5, ("1", "stable", "ok")),
        (5, ("1", "stable", "error")),
    ]
    counters.add(("http", "200"))
    counters.add(("http", "404"))
    counters.put(("queue_rows", "late", "1"), 50)
    assert read_counters(tmp_path)["overflow",].count == 1


def test_a_frame_that_can_neither_be_written_nor_taken_back_spoils_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def event(id: str) -> Event:
        return Event(id, id, 1, 1, "late", 1, "stable", 1, "ok", "", [], [0.5])

    log, write = SegmentWriter(tmp_path, "w0"), os.write
    log.append(frame(event("a")))
    with monkeypatch.context() as failing:
        failing.setattr(os, "write", lambda fd, data: write(fd, data[:-3]))
        failing.setattr(os, "ftruncate", lambda fd, size: Path("/nowhere").stat())
        with pytest.raises(NotLogged):
            log.append(frame(event("b")))
    log.append(frame(event("c")))
    kept = [each.id for path in sorted(tmp_path.glob("*.seg")) for each in read_frames(path.read_bytes())]
    assert kept == ["a", "c"]
