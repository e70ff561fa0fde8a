"""How predictions are carried out: the way follows what they take, and company changes no answer."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Batching
from loopwright.bundle.testing import STRICT, tiny_answer, tiny_bundle
from loopwright.serving import lanes
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.lanes import SLOW_ROWS, WAITING, DeadlinePassed, Lane, Overloaded
from loopwright.serving.rows import Reader
from tests.unit.serving.watched import Watched

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    sealed = tiny_bundle(tmp_path_factory.mktemp("bundle") / "one", KEY, transform=STRICT)
    return open_bundle(sealed.path, [KEY.public])


def lane_of(watched: Any, mode: Any = "auto", max_rows: int = 64, timeout: float = 5.0, **more: Any) -> Lane:
    batching = Batching(mode=mode, max_rows=max_rows)
    reader = Reader(watched.inner.schema)
    return Lane(watched, reader, batching, limit=NoDeadline(), timeout=timeout, **more)


def row(hour: int, carrier: str = "UA") -> list[Any]:
    return [500.0, hour, carrier]


def test_a_fast_model_is_predicted_where_the_request_is(bundle: Bundle) -> None:
    watched = Watched(bundle)
    lane = lane_of(watched)
    for hour in range(20):
        outputs, why, took = lane.now(row(hour))
        assert outputs == [pytest.approx(tiny_answer(500.0, hour, "UA"), abs=1e-6)]
        assert (why, took > 0) == ("", True)
    assert lane.inline
    assert watched.threads == {threading.get_ident()}


def test_a_slow_model_gets_a_thread_and_a_fast_one_comes_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "VERY_SLOW_US", 60_000_000)  # of which one hiccup of this machine is none
    pause = [0.003]
    watched = Watched(bundle, lambda rows: time.sleep(pause[0]))
    lane = lane_of(watched)
    for _ in range(SLOW_ROWS - 1):
        lane.now(row(6))
        assert lane.inline
    lane.now(row(6))
    assert not lane.inline
    pause[0] = 0.0

    async def until_inline() -> int:
        for tries in range(200):
            if lane.inline:
                return tries
            await lane.predict([row(6)], asyncio.get_running_loop().time() + 5)
        return -1

    assert 0 < asyncio.run(until_inline()) < 200


def test_a_fast_model_comes_back_though_its_rows_come_in_company(bundle: Bundle) -> None:
    pauses = iter([0.06, 0.06, *[0.0] * 200])
    lane = lane_of(Watched(bundle, lambda rows: time.sleep(next(pauses))))
    lane.now(row(6))
    assert lane.inline
    lane.now(row(6))
    assert not lane.inline

    async def together() -> int:
        for tries in range(100):
            if lane.inline:
                return tries
            until = asyncio.get_running_loop().time() + 5
            await asyncio.gather(*(lane.predict([row(hour)], until) for hour in range(8)))
        return -1

    assert 0 < asyncio.run(together()) < 100


def test_one_hiccup_changes_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "VERY_SLOW_US", 60_000_000)
    pauses = iter([0.002, *[0.0] * 50])
    lane = lane_of(Watched(bundle, lambda rows: time.sleep(next(pauses))))
    for _ in range(30):
        lane.now(row(6))
    assert lane.inline


def test_what_comes_while_a_batch_runs_forms_the_next_one(bundle: Bundle) -> None:
    watched = Watched(bundle, lambda rows: time.sleep(0.02))
    lane = lane_of(watched, "on", max_rows=8)

    async def run() -> list[Any]:
        until = asyncio.get_running_loop().time() + 10
        return await asyncio.gather(*(lane.predict([row(hour)], until) for hour in range(20)))

    answers = asyncio.run(run())
    assert [one[0].outputs[0] for one in answers] == [
        pytest.approx(tiny_answer(500.0, hour, "UA"), abs=1e-6) for hour in range(20)
    ]
    assert sum(watched.sizes) == 20
    assert len(watched.sizes) <= 4
    assert max(watched.sizes) == 8
    assert threading.get_ident() not in watched.threads


def test_without_batching_rows_are_never_put_together(bundle: Bundle) -> None:
    watched = Watched(bundle, lambda rows: time.sleep(0.06))
    lane = lane_of(watched, "off")

    async def run() -> None:
        lane.now(row(1))
        lane.now(row(1))
        assert not lane.inline
        until = asyncio.get_running_loop().time() + 10
        await asyncio.gather(*(lane.predict([row(hour)], until) for hour in range(4)))

    asyncio.run(run())
    assert watched.sizes == [1] * 6


ROWS = st.lists(
    st.tuples(st.integers(0, 23), st.sampled_from(["UA", "AA", "B6", "XX"])), min_size=1, max_size=5
)


@given(st.lists(ROWS, min_size=1, max_size=12), st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_company_changes_no_answer(
    bundle: Bundle, requests: list[list[tuple[int, str]]], max_rows: int
) -> None:
    """Any requests at once, some with rows the model cannot take: each gets what it would have got alone, in order."""
    alone = lane_of(Watched(bundle))
    wanted = [[alone.now(row(*one)).outputs for one in request] for request in requests]
    lane = lane_of(Watched(bundle), "on", max_rows)

    async def run() -> list[Any]:
        until = asyncio.get_running_loop().time() + 30
        return await asyncio.gather(
            *(lane.predict([row(*one) for one in request], until) for request in requests)
        )

    given = asyncio.run(run())
    assert [[outcome.outputs for outcome in answer] for answer in given] == wanted
    assert all(
        ("KeyError" in outcome.why) == (carrier == "XX")
        for answer, request in zip(given, requests, strict=True)
        for outcome, (_, carrier) in zip(answer, request, strict=True)
    )


def test_who_cannot_be_answered_in_time_is_told_at_once(bundle: Bundle) -> None:
    gate = threading.Event()
    gate.set()
    watched = Watched(bundle, lambda rows: time.sleep(0.05) or gate.wait(30))
    lane = lane_of(watched, "on", max_rows=1, timeout=60.0)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        await lane.predict([row(1)], loop.time() + 30)  # now it is known what a row takes
        gate.clear()
        waiting = [asyncio.ensure_future(lane.predict([row(1)], loop.time() + 60)) for _ in range(10)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="10 rows wait already") as caught:
            await lane.predict([row(1)], loop.time() + 0.1)
        assert caught.value.retry_after > 0.1
        gate.set()
        await asyncio.gather(*waiting)
        with pytest.raises(DeadlinePassed):
            await lane.predict([row(1)], loop.time() - 1)

    asyncio.run(run())


def test_no_more_rows_wait_than_may(bundle: Bundle) -> None:
    gate = threading.Event()
    lane = lane_of(Watched(bundle, lambda rows: gate.wait(5)), "on", max_rows=1)

    async def run() -> None:
        until = asyncio.get_running_loop().time() + 5
        first = asyncio.ensure_future(lane.predict([row(1)], until))
        rest = asyncio.ensure_future(lane.predict([row(1)] * (WAITING - 1), until))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await lane.predict([row(1)], until)
        gate.set()
        assert len(await first) + len(await rest) == WAITING
        assert lane.waiting == 0

    asyncio.run(run())


def test_rows_whose_caller_waits_no_more_are_not_predicted(bundle: Bundle) -> None:
    gate = threading.Event()
    watched = Watched(bundle, lambda rows: gate.wait(30))
    lane = lane_of(watched, "on", max_rows=1, timeout=60.0)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(lane.predict([row(1)], loop.time() + 60))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlinePassed, match="before there was an answer"):
            await lane.predict([row(2)], loop.time() + 0.02)
        gate.set()
        await first
        await lane.predict([row(3)], loop.time() + 30)

    asyncio.run(run())
    assert len(watched.sizes) == 2
    assert lane.waiting == 0


def test_a_thread_that_hangs_holds_up_nobody_and_is_told_of(bundle: Bundle) -> None:
    gate, hangs, said = threading.Event(), [True, True, False], []
    lane = lane_of(
        Watched(bundle, lambda rows: gate.wait(10) if hangs.pop(0) else None),
        "on",
        1,
        timeout=0.1,
        stuck=said.append,
    )

    async def run() -> None:
        until = asyncio.get_running_loop().time() + 30
        for _ in range(2):
            (outcome,) = await lane.predict([row(1)], until)
            assert outcome.outputs is None
            assert "PredictionTimeout: took longer than" in outcome.why
        lane._timeout = 10.0
        (outcome,) = await lane.predict([row(1)], until)
        assert outcome.outputs is not None
        assert said == [f"2 threads hang in {lane.bundle.name}"]
        gate.set()

    asyncio.run(run())


def test_what_is_not_finite_is_no_answer(bundle: Bundle) -> None:
    class Broken(Watched):
        def predict_columns(self, columns: dict[str, Any]) -> Any:
            answer = super().predict_columns(columns)
            answer[columns["hour"] == 13] = np.nan
            return answer

    lane = lane_of(Broken(bundle))
    assert lane.now(row(13)).why == "gave a value that is not finite: [nan]"
    assert [outcome.outputs is None for outcome in lane.many_now([row(1), row(13), row(2)])] == [
        False,
        True,
        False,
    ]


def test_closing_answers_what_waits_first(bundle: Bundle) -> None:
    lane = lane_of(Watched(bundle, lambda rows: time.sleep(0.02)), "on", 1)

    async def run() -> list[Any]:
        until = asyncio.get_running_loop().time() + 5
        waiting = [asyncio.ensure_future(lane.predict([row(hour)], until)) for hour in range(3)]
        await asyncio.sleep(0)
        await lane.close()
        return await asyncio.gather(*waiting)

    assert all(answer[0].outputs for answer in asyncio.run(run()))
