"""How one worker follows another in its place: the processes here are stand-ins whose ends the test decides."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from loopwright.kernel.errors import BadInput
from loopwright.serving import slots
from loopwright.serving.options import ServeOptions
from loopwright.serving.slots import Slot, WorkerProcess, Workers
from loopwright.serving.worker import WorkerConfig


class Process:
    """Stands for a process. When it is to go by itself, `obeys`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: list[str] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send_signal(self, number: Any) -> None:
        self.signals.append(number.name)
        if number.name == "SIGKILL":
            self.end(-9)

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)


class Wire:
    """Stands for the channel: a worker that is told to leave does."""

    def __init__(self, process: Process, *, obeys: bool) -> None:
        self.sent: list[dict[str, Any]] = []
        self._process, self._obeys = process, obeys

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if "leave" in message and self._obeys:
            self._process.end(0)


class Pool(Workers):
    """Workers whose processes come up as soon as they are started, unless told otherwise."""

    comes_up, obeys = True, True

    def __init__(self, options: ServeOptions, names: list[str]) -> None:
        def configure(*_: Any) -> WorkerConfig:
            raise AssertionError("no real process is started here")

        super().__init__(
            options, [], counters=Path(), configure=configure, greet=list, heard=lambda *_: None
        )  # fmt: skip
        self.slots += [Slot(name, None) for name in names]
        self.begun: list[WorkerProcess] = []

    async def _begin(self, slot: Slot) -> WorkerProcess:
        process: Any = Process(len(self.begun) + 1)
        wire: Any = Wire(process, obeys=self.obeys)
        worker = WorkerProcess(
            slot.name, f"{slot.name}-{process.pid}", process, wire, asyncio.get_running_loop().time()
        )
        worker.ended = process.ended
        self.begun.append(worker)
        if self.comes_up:
            self.come_up(slot, worker)
        return worker

    def come_up(self, slot: Slot, worker: WorkerProcess) -> None:
        slot.started = True
        worker.up.set()


Story = Callable[[Pool], Awaitable[None]]
said: list[str] = []


def play(story: Story, *names: str, **options: Any) -> None:
    """Let `story` happen to a server whose slots are kept alive."""
    said.clear()

    async def run() -> None:
        asked = ServeOptions(control="http://127.0.0.1:1", home=Path(), say=said.append, **options)
        pool = Pool(asked, list(names or ["w0"]))
        keeping = [asyncio.create_task(pool.keep_alive(slot)) for slot in pool.slots]
        try:
            async with asyncio.timeout(10):
                await until(lambda: pool.ready == len(pool.slots))
                await story(pool)
        finally:
            for task in keeping:
                task.cancel()

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def current(slot: Slot) -> WorkerProcess:
    assert slot.worker is not None
    return slot.worker


def reasons(pool: Pool) -> dict[str, float]:
    return {name.split('"')[1]: n for name, n in pool.restarts().items() if n}


def test_the_old_worker_is_told_to_leave_only_when_the_new_one_is_up() -> None:
    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        old = current(slot)
        pool.comes_up = False
        pool.recycle(slot, old, "asked", "asks to be replaced: lanes are stuck")
        await until(lambda: slot.coming)
        await asyncio.sleep(0.02)
        assert (current(slot), old.channel.sent, reasons(pool)) == (old, [], {})  # type: ignore[attr-defined]
        fresh = slot.coming
        assert fresh is not None
        pool.come_up(slot, fresh)
        await until(lambda: old.ended.done())
        assert (current(slot), slot.coming, reasons(pool)) == (fresh, None, {"asked": 1})
        assert [list(message) for message in old.channel.sent] == [["leave"]]  # type: ignore[attr-defined]
        await until(lambda: slot.leaving is None)
        assert len(pool.begun) == 2, "one that left because it was told to is no crash"

    play(story)
    assert said == ["worker w0 asks to be replaced: lanes are stuck; starting its replacement"]


def test_a_worker_stays_when_its_replacement_does_not_come_up_and_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "RETRY_SECONDS", 0.02)

    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        old = current(slot)
        pool.comes_up = False
        pool.recycle(slot, old, "memory", "is too large")
        await until(lambda: slot.coming)
        pool.begun[-1].process.end(1)  # type: ignore[attr-defined]
        await until(lambda: len(said) == 2)
        assert (current(slot), old.ready, reasons(pool)) == (old, True, {})
        pool.comes_up = True
        await until(lambda: current(slot) is not old)
        assert reasons(pool) == {"memory": 1}

    play(story)
    assert said[1] == "worker w0 stays for now: its replacement ended as it started (exit code 1)"


def test_when_the_old_one_dies_meanwhile_the_new_one_takes_its_place() -> None:
    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        old = current(slot)
        pool.comes_up = False
        pool.recycle(slot, old, "asked", "asks")
        await until(lambda: slot.coming)
        fresh = slot.coming
        assert fresh is not None
        old.process.end(-11)  # type: ignore[attr-defined]
        await until(lambda: slot.worker is fresh)
        pool.come_up(slot, fresh)
        await asyncio.sleep(0.02)
        assert (len(pool.begun), reasons(pool), pool.ready) == (2, {"crash": 1}, 1)

    play(story)
    assert "killed by SIGSEGV" in said[-1]


def test_workers_are_replaced_one_after_another() -> None:
    async def story(pool: Pool) -> None:
        pool.comes_up = False
        pool.recycle_all("is to be replaced")
        for turn in range(3):
            await until(lambda: any(slot.coming for slot in pool.slots))
            await asyncio.sleep(0.01)
            (slot,) = [slot for slot in pool.slots if slot.coming]
            assert pool.ready == 3
            assert len(pool.begun) == 3 + turn + 1
            assert slot.coming is not None
            pool.come_up(slot, slot.coming)
            await until(lambda: reasons(pool).get("asked") == turn + 1)  # noqa: B023 - called at once

    play(story, "w0", "w1", "w2")


def test_asking_twice_replaces_once() -> None:
    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        old = current(slot)
        for _ in range(5):
            pool.recycle(slot, old, "asked", "asks")
        await until(lambda: current(slot) is not old)
        pool.recycle(slot, old, "asked", "asks, though it is replaced")
        await asyncio.sleep(0.02)
        assert (len(pool.begun), reasons(pool)) == (2, {"asked": 1})

    play(story)


def test_a_worker_that_was_replaced_and_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(slots, "GRACE_SECONDS", -4.98)

    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        old = current(slot)
        old.channel._obeys = False  # type: ignore[attr-defined]
        pool.recycle(slot, old, "asked", "asks")
        await until(lambda: old.ended.done())
        assert old.process.signals == ["SIGKILL"]  # type: ignore[attr-defined]
        assert reasons(pool) == {"asked": 1}

    play(story)
    assert "does not go; killing it" in said[-1]


def test_a_silent_worker_is_killed_after_the_time_it_was_given() -> None:
    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        first, watching = current(slot), asyncio.create_task(pool.watch())
        began = asyncio.get_running_loop().time()
        await until(lambda: first.ended.done())
        assert 0.4 < asyncio.get_running_loop().time() - began < 5
        await until(lambda: pool.ready and current(slot) is not first)
        assert reasons(pool) == {"hang": 1}
        watching.cancel()

    play(story, hang_seconds=0.5)
    assert said[0] == "worker w0 hangs; killing it"


def test_a_worker_that_answers_is_left_alone_however_long_the_supervisor_was_away() -> None:
    async def story(pool: Pool) -> None:
        worker = current(pool.slots[0])
        now = asyncio.get_running_loop().time()
        for hour in range(100):
            pool._look(pool.slots[0], worker, 10, now + hour * 3600)
            worker.missed = 0  # it answered as soon as it could
        assert worker.process.signals == []  # type: ignore[attr-defined]

    play(story)


def test_a_worker_that_never_comes_up_is_replaced() -> None:
    async def story(pool: Pool) -> None:
        (slot,) = pool.slots
        pool.comes_up = False
        current(slot).process.end(1)  # type: ignore[attr-defined]
        await until(lambda: len(pool.begun) == 2)
        now = pool.begun[1].born
        pool._look(slot, pool.begun[1], 10, now + 29)
        assert not pool.begun[1].ended.done()
        pool.comes_up = True
        pool._look(slot, pool.begun[1], 10, now + 31)
        await until(lambda: pool.ready)
        assert reasons(pool) == {"crash": 1, "start": 1}

    play(story, start_seconds=30.0)
    assert "did not come up within 30 s" in said[1]


def test_a_server_has_started_once_every_slot_had_a_worker() -> None:
    async def story(pool: Pool) -> None:
        assert pool.not_started() == ""
        pool.comes_up = False
        current(pool.slots[0]).process.end(1)  # type: ignore[attr-defined]
        await until(lambda: pool.ready == 1)
        assert pool.not_started() == "", "a startup probe is not for what happens later"
        pool.slots[1].started = False
        assert pool.not_started() == "1 of 2 workers have come up"

    play(story, "w0", "w1")


@pytest.mark.parametrize(("options", "where"), [
    ({"hang_seconds": 0.1}, "--hang-seconds"), ({"start_seconds": 0}, "--start-seconds"),
    ({"drain_seconds": -1}, "--drain-seconds"), ({"drain_seconds": float("nan")}, "--drain-seconds"),
    ({"max_memory": 1}, "--max-memory"), ({"max_connections": 0}, "--max-connections"),
])  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput) as error:
        ServeOptions(control="http://127.0.0.1:1", home=Path(), **options).check()
    assert error.value.where == where


def test_workers_do_not_get_what_only_the_supervisor_signs_in_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models run in workers."""
    for name in ("LOOPWRIGHT_TOKEN", "LOOPWRIGHT_KAFKA_PASSWORD", "HOUSE_PASSWORD", "OTEL_SERVICE_NAME"):
        monkeypatch.setenv(name, "said")
    sinks = ("kafka://broker:9092/topic", "clickhouse://u@host:8123/d/t?password_env=HOUSE_PASSWORD")
    inherited = slots._inherited(ServeOptions(control="http://127.0.0.1:1", home=Path(), log_to=sinks))
    said = {name for name, value in inherited.items() if value == "said"}
    assert said == {"OTEL_SERVICE_NAME"}
