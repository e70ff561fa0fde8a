"""Which versions are in memory: all of them, or as many as a budget of bytes allows, the least recently used go first.

Every version's approval and digests are checked when its route table comes, so that what must not answer is known at
once; loading may wait for the first request. Each load has a thread and a time limit of its own: one that hangs is
refused and holds up neither requests nor later tables. A version is warmed by its golden rows before anybody sees it.
"""

import asyncio
import ctypes
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.isolated import Limits
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import ModelRoute, RouteTable
from loopwright.kernel.errors import LoopwrightError, NotFound, Refused, Unavailable
from loopwright.serving.loading import (
    check_version,
    compose,
    kept_version,
    load_bundle,
    load_version,
    still_trusted,
)
from loopwright.serving.models import Model, Served

T = TypeVar("T")

AT_ONCE = 2
"""Loads under way at the same time; more would only take turns at the interpreter."""

STUCK = 3
"""Loads that may hang before the worker asks to be replaced."""

LINGER_SECONDS = 15.0
"""How long a version that left memory stays usable to requests that hold it already."""

TURN_SECONDS = 2.0
"""How long a load waits for others before it goes beside them: one that hangs must not hold it up."""

_LONGEST_PAUSE, _HUNG_PAUSE = 60.0, 600.0

State = Literal["loaded", "loading", "cold", "failed"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one version stands. bytes: about what it takes in memory now; why: the last load failed."""

    model: str
    version: int
    state: State
    bytes: int
    pinned: bool
    why: str = ""


class _Hung(Unavailable):
    """It did not load in time."""


@dataclass(slots=True)
class _Load:
    """A load that is under way, done, or failed with `why`. not_before: when a failed one is tried again."""

    task: asyncio.Task[Any]
    failures: int = 0
    hung: bool = False
    not_before: float = 0.0
    why: str = ""


@dataclass(slots=True)
class Residency:
    """One worker's; lives on its event loop.

    budget: bytes for models together, 0 for no bound. idle: seconds after which a version nobody asks for leaves
    memory, 0 for never. With neither, everything is loaded when its route table comes. limits: of isolated models'
    processes; timeout: what one prediction may take. patience: how long a new table waits for a slow load before
    it takes effect without it. now_us: microseconds since 1970.
    """

    depot: BundleDepot
    now_us: Callable[[], int]
    budget: int = 0
    idle: float = 0.0
    load_seconds: float = 60.0
    patience: float = 10.0
    limits: Limits = field(default_factory=Limits)
    timeout: float = 2.0
    stuck: Callable[[str], None] = lambda why: None
    evictions: int = 0
    loads: int = 0
    hung: int = 0
    _begun: int = 0
    _installed: int = 0
    _preparing: int = 0
    _models: Mapping[str, Model] = field(default_factory=dict)
    _keys: Sequence[PublicKey] = ()
    _trusted: tuple[str, ...] = ()
    _loads: dict[Any, _Load] = field(default_factory=dict)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def lazy(self) -> bool:
        """Whether versions are loaded when they are asked for."""
        return bool(self.budget or self.idle)

    # A route table comes.

    async def apply(
        self,
        table: RouteTable,
        keys: Sequence[PublicKey],
        unfetched: Mapping[str, str],
        install: Callable[[dict[str, Model]], None],
        *,
        patience: float | None = None,
    ) -> set[asyncio.Task[Any]]:
        """Check and load what the table needs, then hand its models to `install` as they take effect here.

        Returns the loads that were too slow to wait for: their versions are refused until the table is applied again,
        and what answered before goes on. A table that was overtaken by a later one is not installed.
        """
        self._begun += 1
        mine = self._begun
        self._keys, self._trusted = tuple(keys), tuple(table.trusted)
        wanted = self._prepare(table, unfetched)
        self._preparing += 1
        try:
            slow: set[asyncio.Task[Any]] = set()
            if wanted:
                _, slow = await asyncio.wait(wanted, timeout=self.patience if patience is None else patience)
        finally:
            self._preparing -= 1
        if mine < self._installed:
            return set()
        self._installed = mine
        models = self._compose(table, keys, unfetched)
        install(models)
        self._adopt(models)
        return slow

    def _prepare(self, table: RouteTable, unfetched: Mapping[str, str]) -> list[asyncio.Task[Any]]:
        """Begin what the table names and nobody has yet."""
        begun = []
        now = asyncio.get_running_loop().time()
        for name, route in table.models.items():
            old = still_trusted(self._models.get(name), table.trusted)
            due = self._due(old, route)
            for version in sorted({arm.version for arm in route.arms}):
                digest = route.versions[str(version)].bundle
                kept = kept_version(old, version, digest)
                if digest in unfetched or (kept is not None and (kept.bundle is not None or not due)):
                    continue
                if kept is not None:
                    begun.append(self._begin(kept, partial(self._warm, kept)).task)
                    continue
                key = (name, version, digest)
                failed = self._loads.get(key)
                if failed is not None and failed.hung and now < failed.not_before:
                    continue
                begun.append(self._begin(key, partial(self._fetch, route, version, due)).task)
        return begun

    def _compose(
        self, table: RouteTable, keys: Sequence[PublicKey], unfetched: Mapping[str, str]
    ) -> dict[str, Model]:
        def found(route: ModelRoute, version: int) -> Served | str:
            digest = route.versions[str(version)].bundle
            if digest in unfetched:
                return unfetched[digest]
            load = self._loads.get((route.model, version, digest))
            if load is None or not load.task.done():
                return "is still being loaded"
            return load.why or load.task.result()

        return compose(table, keys, self._models, found)

    def _adopt(self, models: Mapping[str, Model]) -> None:
        """These are served from now on; what only the former models held leaves memory."""
        stays = {served for model in models.values() for served in _all(model)}
        for served in {served for model in self._models.values() for served in _all(model)} - stays:
            self._forget(served)
        self._models = models
        for key, load in list(self._loads.items()):
            if isinstance(key, Served) or not load.task.done() or load.hung or self._preparing:
                continue
            del self._loads[key]
            found = None if load.why else load.task.result()
            if found is not None and found not in stays:
                self._forget(found)
        for served in stays:
            self._limit(served)
        self._fit()

    # Requests come.

    async def warm(self, served: Served) -> None:
        """Return when `served.bundle` is there. Raises Unavailable when it cannot be loaded, or could not a moment ago.

        A caller that is cancelled leaves the load to the others that wait for it.
        """
        while served.bundle is None:
            load = self._loads.get(served)
            if load is not None and load.task.done() and load.why:
                pause = load.not_before - asyncio.get_running_loop().time()
                if pause > 0:
                    raise Unavailable(
                        f"{_name(served)} cannot be loaded; it is tried again in {pause:.0f} s", got=load.why
                    )
            load = self._begin(served, partial(self._warm, served))
            await asyncio.shield(load.task)
            if load.why:
                raise Unavailable(f"{_name(served)} cannot be loaded", got=load.why)
            if served.bundle is None:
                # Evicted in the same moment: there is no room for it and what is pinned.
                raise Unavailable(f"{_name(served)} finds no room in memory")
        self.touch(served)

    def touch(self, served: Served) -> None:
        """Note that it was used."""
        served.used = self.now_us()

    def evict(self, served: Served) -> None:
        """Take a version out of memory; requests that hold it already are answered. Is idempotent."""
        bundle, served.bundle = served.bundle, None
        lane, served.lane = served.lane, None
        if bundle is not None:
            self.evictions += 1
            self._spawn(_end(lane, bundle))

    async def load(self, model: str, version: int | None = None) -> None:
        """Bring a model's versions into memory, or the one; raises NotFound, and Unavailable as `warm`."""
        for served in self._named(model, version):
            await self.warm(served)

    def unload(self, model: str, version: int | None = None) -> None:
        """Take a model's versions out of memory until they are asked for again; pinned ones stay.

        Raises Refused where everything has to be in memory.
        """
        if not self.lazy:
            raise Refused(
                "nothing leaves memory on this server",
                next="Start it with --model-memory or --idle-unload.",
            )
        for served in self._named(model, version):
            if not self.pinned(served):
                self.evict(served)

    def index(self) -> list[Standing]:
        """Where every version stands, by model and version."""
        found = []
        for name, model in sorted(self._models.items()):
            for served in sorted(_all(model), key=lambda one: one.version):
                load = self._loads.get(served)
                state: State = "loaded" if served.bundle else "cold"
                why = ""
                if served.bundle is None and load is not None and not load.task.done():
                    state = "loading"
                elif served.bundle is None and load is not None and load.why:
                    state, why = "failed", load.why
                found.append(Standing(name, served.version, state, _bytes(served), self.pinned(served), why))
        return found

    def pinned(self, served: Served) -> bool:
        """Whether it has to stay in memory: during a rollout or a test, or when nothing may leave at all."""
        if not self.lazy:
            return True
        model = self._models.get(served.manifest.model)
        return model is not None and len(model.arms) > 1 and served in _all(model)

    def gauges(self) -> dict[str, float]:
        """For /metrics."""
        loaded = [served for served in self._everything() if served.bundle is not None]
        return {
            "model_memory_bytes": float(sum(map(_bytes, loaded))),
            "model_memory_budget_bytes": float(self.budget),
            "versions_in_memory": float(len(loaded)),
            "model_loads_total": float(self.loads),
            "model_evictions_total": float(self.evictions),
        }

    async def run(self) -> None:
        """Unload what is idle, until cancelled; returns at once where nothing is unloaded."""
        while self.idle:
            await asyncio.sleep(max(0.05, min(self.idle / 4, 30.0)))
            self.sweep()

    def sweep(self) -> None:
        """Unload what has not been used for `idle` seconds."""
        latest = self.now_us() - int(self.idle * 1e6)
        for served in self._everything():
            busy = served.lane is not None and served.lane.waiting
            if served.bundle is not None and served.used <= latest and not busy and not self.pinned(served):
                self.evict(served)

    async def close(self) -> None:
        """End the processes of isolated models."""
        for task in list(self._tasks):
            task.cancel()
        for served in self._everything():
            if served.bundle is not None:
                served.bundle.close()

    # Loads.

    def _due(self, old: Model | None, route: ModelRoute) -> bool:
        """Whether a route's versions are loaded before it takes effect: always, unless models come when asked for.

        Even then, where somebody asks already (no request shall wait for a swap) and while a rollout is under way.
        """
        if not self.lazy or len(route.arms) > 1:
            return True
        return old is not None and any(served.bundle is not None for served in old.versions.values())

    def _begin(self, key: Any, act: Callable[[], Coroutine[Any, Any, T]]) -> _Load:
        """Start a load, or return the one that is under way."""
        before = self._loads.get(key)
        if before is not None and not before.task.done():
            return before
        load = _Load(task=None, failures=before.failures if before else 0)  # type: ignore[arg-type]
        load.task = asyncio.get_running_loop().create_task(self._settle(load, act))
        self._keep(load.task)
        self._loads[key] = load
        return load

    async def _settle(self, load: _Load, act: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Carry out a load; a failure is kept in it, never raised."""
        try:
            async with _turn(self._gate):
                found = await act()
        except _Hung as error:
            load.why, load.hung = str(error), True
        except LoopwrightError as error:
            load.why = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises while it is loaded
            load.why = f"cannot be loaded ({type(error).__name__}: {error})"
        else:
            load.failures = 0
            return found
        load.failures += 1
        pause = _HUNG_PAUSE if load.hung else min(_LONGEST_PAUSE, 2.0 ** (load.failures - 1))
        load.not_before = asyncio.get_running_loop().time() + pause
        return None

    async def _fetch(self, route: ModelRoute, version: int, due: bool) -> Served:
        """A version nobody has yet, checked, and loaded when that is due."""
        check: Callable[[], Served]
        if due:
            check = partial(load_version, route, version, self._keys, self.depot, self._trusted, self.limits)
        else:
            check = partial(check_version, route, version, self._keys, self.depot, self._trusted)
        served = await self._in_thread(check, f"{route.model} version {version}")
        self.loads += served.bundle is not None
        served.used = self.now_us()
        return served

    async def _warm(self, served: Served) -> None:
        path = self.depot.path(served.digest)
        load = partial(load_bundle, path, self._keys, self._trusted, self.limits)
        bundle = await self._in_thread(load, _name(served))
        if served.bundle is not None:
            bundle.close()
            return
        served.bundle = bundle
        self._limit(served)
        self.loads += 1
        self.touch(served)
        self._fit(but=served)

    async def _in_thread(self, act: Callable[[], T], about: str) -> T:
        """Run `act` in a thread of its own; raises Unavailable when it takes longer than a load may."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(found: T | None, error: BaseException | None) -> None:
            if done.done():
                # Too late: nobody waits for it any more.
                _discard(found)
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(found)  # type: ignore[arg-type]

        def work() -> None:
            found, failed = None, None
            try:
                found = act()
            except Exception as error:  # noqa: BLE001 - belongs to whoever waits
                failed = error
            except SystemExit:
                return  # told to stop
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(settle, found, failed)

        thread = threading.Thread(target=work, name="load", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(self.load_seconds):
                return await done
        except TimeoutError:
            _stop(thread)
            self.hung += 1
            if self.hung >= STUCK:
                self.stuck(f"{self.hung} versions did not load in time")
            raise _Hung(f"{about} did not load in time", wanted=f"at most {self.load_seconds:g} s") from None

    def _limit(self, served: Served) -> None:
        """Let a call of an isolated model end just before whoever waits for it gives up."""
        if served.bundle is not None and served.bundle.isolated:
            model = self._models.get(served.manifest.model)
            policy = model.policy.timeout_ms / 1000 if model else self.timeout
            served.bundle.limit_calls(0.95 * min(self.timeout, policy))

    # Room.

    def _fit(self, but: Served | None = None) -> None:
        """Let the least recently used leave until the rest fits; what is pinned and `but` stay, whatever they take."""
        if not self.budget:
            return
        loaded = [served for served in self._everything() if served.bundle is not None]
        total = sum(map(_bytes, loaded))
        for served in sorted(loaded, key=lambda one: one.used):
            if total <= self.budget:
                return
            if served is not but and not self.pinned(served):
                total -= _bytes(served)
                self.evict(served)

    def _forget(self, served: Served) -> None:
        """It left the routes: requests that hold it are answered from it still, then its process ends."""
        self._loads.pop(served, None)
        if served.bundle is not None:
            self._spawn(_end(None, served.bundle))

    def _everything(self) -> Iterable[Served]:
        return [served for model in self._models.values() for served in _all(model)]

    def _named(self, model: str, version: int | None) -> list[Served]:
        found = self._models.get(model)
        if found is None:
            raise NotFound(f"no model `{model}` is served here", wanted=", ".join(sorted(self._models)))
        versions = found.versions
        if version is not None and version not in versions:
            raise NotFound(f"{model} has no version {version} that may answer here")
        return list(versions.values()) if version is None else [versions[version]]

    def _spawn(self, act: Coroutine[Any, Any, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(act))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def _turn(gate: asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for a place, but not for long."""
    try:
        async with asyncio.timeout(TURN_SECONDS):
            await gate.acquire()
    except TimeoutError:
        yield
        return
    try:
        yield
    finally:
        gate.release()


async def _end(lane: Any, bundle: Bundle) -> None:
    """Close a bundle once the requests that hold it are over."""
    if lane is not None:
        await lane.close()
    if bundle.isolated:
        await asyncio.sleep(LINGER_SECONDS)
        await asyncio.to_thread(bundle.close)


def _all(model: Model) -> tuple[Served, ...]:
    return (*model.versions.values(), *model.standby.values())


def _bytes(served: Served) -> int:
    return served.bundle.memory() if served.bundle is not None else 0


def _name(served: Served) -> str:
    return f"{served.manifest.model} version {served.version}"


def _discard(found: Any) -> None:
    bundle = found.bundle if isinstance(found, Served) else found
    if isinstance(bundle, Bundle):
        bundle.close()


def _stop(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread that runs Python code; one that hangs in native code sees it when it returns."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
