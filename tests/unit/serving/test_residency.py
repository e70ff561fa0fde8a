"""Versions come into memory when they are asked for, and leave it: the least recently used first."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Arm, RouteTable
from loopwright.bundle.testing import TOLERANT, route_for, table_of, tiny_answer, tiny_bundle
from loopwright.kernel.errors import NotFound, Refused, Unavailable
from loopwright.serving import residency as room
from loopwright.serving.models import Model, Served
from loopwright.serving.residency import Residency

KEY = SigningKey.generate()
STABLE = Arm("stable", 1, 1.0)
COST = 1000


class Build:
    """A depot, and bundles by (model, bias, transform), built once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.depot = folder, BundleDepot(folder / "depot")
        self.known: dict[tuple[str, float, str], str] = {}

    def digest(self, model: str, bias: float = 0.0, transform: str = TOLERANT) -> str:
        key = (model, bias, transform)
        if key not in self.known:
            path = self.folder / f"built{len(self.known)}"
            self.known[key] = self.depot.add(
                tiny_bundle(path, KEY, model=model, bias=bias, transform=transform).path
            )
        return self.known[key]

    def table(self, serial: int, *models: str) -> RouteTable:
        return table_of(
            serial, *(route_for(KEY, {1: self.digest(name)}, [STABLE], model=name) for name in models)
        )


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("models")
    return Build(folder)


class Worker:
    """A residency with what its models answer."""

    def __init__(self, build: Build, **options: Any) -> None:
        self.clock = 0
        self.models: dict[str, Model] = {}
        self.stuck: list[str] = []
        self.residency = Residency(
            build.depot, now_us=self.now, stuck=self.stuck.append, **{"load_seconds": 20.0, **options}
        )

    def now(self) -> int:
        self.clock += 1
        return self.clock

    async def apply(self, table: RouteTable, **options: Any) -> set[asyncio.Task[Any]]:
        return await self.residency.apply(
            table, [KEY.public], options.pop("unfetched", {}), self.install, **options
        )

    def install(self, models: dict[str, Model]) -> None:
        self.models = models

    def served(self, name: str = "late", version: int = 1) -> Served:
        return self.models[name].versions[version]

    def loaded(self) -> set[str]:
        return {one.model for one in self.residency.index() if one.state == "loaded"}


def play(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(act())


def answer(served: Served) -> float:
    assert served.bundle
    columns = served.reader.columns([[500.0, 6, "UA"]])
    return float(served.bundle.predict_columns(columns)[0, 0])


def test_without_a_bound_everything_is_in_memory_when_its_table_takes_effect(depot: Build) -> None:
    async def act() -> None:
        worker = Worker(depot)
        assert not await worker.apply(depot.table(1, "a", "b"))
        assert worker.loaded() == {"a", "b"}
        with pytest.raises(Refused, match="nothing leaves memory"):
            worker.residency.unload("a")

    play(act)


def test_a_cold_version_is_verified_at_once_and_loaded_by_its_first_request(
    depot: Build, tmp_path: Path
) -> None:
    damaged = Build(tmp_path)
    name = damaged.depot.path(damaged.digest("b")) / "model.onnx"

    async def act() -> None:
        worker = Worker(damaged, budget=1 << 30)
        table = damaged.table(1, "a", "b")
        name.write_bytes(name.read_bytes()[:-1] + b"x")
        await worker.apply(table)
        assert worker.loaded() == set()
        assert "model.onnx was changed" in worker.models["b"].refused[1], "known though nobody asked"
        served = worker.served("a")
        assert served.bundle is None and served.schema.outputs == ("probability",)
        # Ten requests wait for one load.
        await asyncio.gather(*(worker.residency.warm(served) for _ in range(10)))
        assert worker.residency.loads == 1
        assert answer(served) == pytest.approx(tiny_answer(500.0, 6, "UA"), abs=1e-6)

    play(act)


def test_the_least_recently_used_leaves_when_there_is_no_room(
    depot: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "memory", lambda self: COST)

    async def act() -> None:
        worker = Worker(depot, budget=2 * COST)
        await worker.apply(depot.table(1, "a", "b", "c"))
        for name in ("a", "b", "a", "c"):
            await worker.residency.warm(worker.served(name))
        assert worker.loaded() == {"a", "c"}
        await worker.residency.warm(worker.served("b"))
        assert worker.loaded() == {"b", "c"}
        states = {one.model: one.state for one in worker.residency.index()}
        assert states == {"a": "cold", "b": "loaded", "c": "loaded"}

    play(act)


@settings(max_examples=8, deadline=None)
@given(asked=st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), room_for=st.integers(1, 3))
def test_what_is_in_memory_is_what_was_used_last(asked: list[str], room_for: int) -> None:
    build = _BUILD[0]

    async def act() -> None:
        worker = Worker(build, budget=room_for * COST)
        await worker.apply(build.table(1, *"abcd"))
        expected: list[str] = []
        for name in asked:
            await worker.residency.warm(worker.served(name))
            expected = ([one for one in expected if one != name] + [name])[-room_for:]
            assert worker.loaded() == set(expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "memory", lambda self: COST)
        patch.setattr(room, "load_bundle", _once(build))
        play(act)


_BUILD: list[Build] = []


@pytest.fixture(scope="module", autouse=True)
def _remember(depot: Build) -> None:
    _BUILD.append(depot)


def _once(build: Build) -> Callable[..., Bundle]:
    """The real loader, once for each bundle: the order of leaving is what is looked at, not loading."""
    known: dict[Path, Bundle] = {}
    real = room.load_bundle

    def load(path: Path, *rest: Any) -> Bundle:
        if path not in known:
            known[path] = real(path, *rest)
        return known[path]

    return load


def test_a_version_is_loaded_before_it_takes_the_traffic_of_one_that_is(depot: Build) -> None:
    async def act() -> None:
        worker = Worker(depot, budget=1 << 30)
        await worker.apply(depot.table(1, "a", "b"))
        await worker.residency.warm(worker.served("a"))
        after = {"a": depot.digest("a", 0.5), "b": depot.digest("b", 0.5)}
        swap = table_of(
            2, *(route_for(KEY, {2: after[name]}, [Arm("stable", 2, 1.0)], model=name) for name in "ab")
        )
        await worker.apply(swap)
        assert worker.served("a", 2).bundle, "somebody asks for it"
        assert worker.served("b", 2).bundle is None, "nobody does"
        assert worker.models["a"].standby[1].bundle

    play(act)


def test_a_rollouts_versions_stay_however_little_room_there_is(depot: Build) -> None:
    async def act() -> None:
        worker = Worker(depot, budget=1)
        bundles = {1: depot.digest("a"), 2: depot.digest("a", 0.5)}
        rollout = route_for(KEY, bundles, [Arm("stable", 1, 0.9), Arm("canary", 2, 0.1)], model="a")
        await worker.apply(table_of(1, rollout, route_for(KEY, {1: depot.digest("b")}, [STABLE], model="b")))
        assert worker.loaded() == {"a"}
        worker.residency.unload("a")
        assert {one.version for one in worker.residency.index() if one.state == "loaded"} == {1, 2}
        await worker.residency.warm(worker.served("b"))
        await worker.apply(depot.table(2, "a", "b"))
        assert len(worker.loaded()) <= 1, "the rollout is over and there is no room"

    play(act)


def test_what_nobody_asks_for_leaves_and_comes_back_when_asked(depot: Build) -> None:
    async def act() -> None:
        worker = Worker(depot, idle=0.001)
        await worker.apply(depot.table(1, "a", "b"))
        await worker.residency.warm(worker.served("a"))
        worker.residency.sweep()
        assert worker.loaded() == {"a"}
        worker.clock += 1_000_000
        await worker.residency.warm(worker.served("b"))
        worker.residency.sweep()
        assert worker.loaded() == {"b"}
        await worker.residency.warm(worker.served("a"))
        assert answer(worker.served("a"))

    play(act)


def test_a_request_that_holds_a_version_is_answered_after_it_left(depot: Build) -> None:
    async def act() -> None:
        worker = Worker(depot, budget=1 << 30)
        await worker.apply(depot.table(1, "a"))
        served = worker.served("a")
        await worker.residency.warm(served)
        held = served.bundle
        worker.residency.unload("a", 1)
        assert served.bundle is None and held
        held.smoke()
        with pytest.raises(NotFound, match="no version 7"):
            worker.residency.unload("a", 7)
        with pytest.raises(NotFound, match="no model `zoo`"):
            await worker.residency.load("zoo")
        await worker.residency.load("a")
        assert worker.loaded() == {"a"}

    play(act)


def test_a_load_that_hangs_is_refused_and_holds_up_no_later_table(depot: Build) -> None:
    hanging = depot.digest("slow")

    async def act() -> None:
        worker = Worker(depot, load_seconds=6.0, patience=10.0)
        await worker.apply(depot.table(1, "a"))
        route = route_for(KEY, {1: hanging}, [STABLE], model="slow")
        slow = await worker.apply(table_of(2, *depot.table(1, "a").models.values(), route), patience=0.3)
        assert slow and worker.models["slow"].refused == {1: "is still being loaded"}
        assert worker.loaded() == {"a"}
        await worker.apply(depot.table(3, "a", "b"))
        assert worker.loaded() == {"a", "b"}
        assert not any(task.done() for task in slow), "neither waited for the one that hangs"
        await asyncio.wait(slow)
        await worker.apply(table_of(4, route))
        assert "did not load in time" in worker.models["slow"].refused[1]
        before = worker.residency.hung
        await worker.apply(table_of(5, route))
        assert worker.residency.hung == before == 1, "not tried again with every table"

    def hang(route: Any, *rest: Any) -> Served:
        while route.model == "slow":
            time.sleep(0.01)
        return real(route, *rest)

    real = room.load_version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "load_version", hang)
        play(act)


def test_a_version_that_cannot_be_loaded_says_so_and_is_not_tried_at_every_request(
    depot: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*_: Any) -> Bundle:
        tries.append(1)
        raise RuntimeError("out of luck")

    async def act() -> None:
        worker = Worker(depot, budget=1 << 30)
        await worker.apply(depot.table(1, "a"))
        monkeypatch.setattr(room, "load_bundle", fail)
        for _ in range(3):
            with pytest.raises(Unavailable, match="out of luck"):
                await worker.residency.warm(worker.served("a"))
        assert len(tries) == 1
        (standing,) = worker.residency.index()
        assert standing.state == "failed" and "out of luck" in standing.why

    play(act)


def test_a_table_that_was_overtaken_is_not_installed(depot: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.load_version

    def slow(route: Any, *rest: Any) -> Served:
        if route.model == "b":
            time.sleep(0.5)
        return real(route, *rest)

    monkeypatch.setattr(room, "load_version", slow)

    async def act() -> None:
        worker = Worker(depot)
        first = asyncio.create_task(worker.apply(depot.table(1, "a", "b")))
        await asyncio.sleep(0.1)
        await worker.apply(depot.table(2, "a"))
        await first
        assert set(worker.models) == {"a"} and worker.loaded() == {"a"}

    play(act)
