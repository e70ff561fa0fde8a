"""The ladder of fallbacks, arms that are left alone, forced arms, and what of it stands in the log."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.routes import Arm, Batching, Breaker, LogPolicy, ServingPolicy
from loopwright.bundle.testing import STRICT, tiny_answer, tiny_bundle
from loopwright.kernel.errors import Refused, Unavailable
from loopwright.serving.counters import Counters, read_counters
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.engine import PLAIN, Answer, Call, Engine, Model, ModelFailed, Served
from loopwright.serving.events import Event, SegmentWriter, read_frames
from loopwright.serving.lanes import Overloaded
from loopwright.serving.rows import Rows
from tests.unit.serving.watched import Watched

KEY = SigningKey.generate()
FAILING = STRICT.replace("codes = state", "raise RuntimeError('a bug')\n    codes = state")
SLOW = STRICT.replace("codes = state", "sum(range(400_000))\n    codes = state")
"""Takes some 5 ms."""

STABLE, CANARY = Arm("stable", 1, 0.5), Arm("canary", 2, 0.5)
NOW = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    folder, made = tmp_path_factory.mktemp("bundles"), dict[str, Bundle]()

    def make(transform: str) -> Bundle:
        if transform not in made:
            sealed = tiny_bundle(folder / str(len(made)), KEY, transform=transform)
            made[transform] = open_bundle(sealed.path, [KEY.public])
        return made[transform]

    return make


class Site:
    """An engine with one model, on a clock that the test moves."""

    def __init__(
        self, folder: Path, versions: dict[int, Bundle], *arms: Arm, policy: ServingPolicy | None = None
    ) -> None:
        self.folder = folder
        self.now = NOW
        self.log = SegmentWriter(folder, "w0")
        self.engine = Engine(
            self.log, Counters(folder / "w0.counters"), now_us=lambda: self.now, limit=NoDeadline()
        )
        served = {number: Served.of(number, bundle) for number, bundle in versions.items()}
        self.model = Model("late", "salt", arms, served, policy=policy or ServingPolicy())
        self.engine.serve({"late": self.model})

    def ask(self, *carriers: str, call: Call = PLAIN, unit: str = "", hour: int = 6) -> Answer:
        return self.ask_all([rows_of(carriers, unit=unit, hour=hour)], call)[0]

    def ask_all(self, requests: Sequence[Rows], call: Call = PLAIN) -> list[Answer]:
        async def run() -> list[Answer]:
            answers = await asyncio.gather(*(self.engine.infer(self.model, rows, call) for rows in requests))
            await self.engine.drained()
            return list(answers)

        return asyncio.run(run())

    def events(self) -> list[Event]:
        return [
            event for path in sorted(self.folder.glob("*.seg")) for event in read_frames(path.read_bytes())
        ]

    def trail(self) -> list[tuple[str, int, str]]:
        return [(event.arm, event.version, event.status) for event in self.events()]


def rows_of(carriers: Sequence[str], *, unit: str = "", hour: int = 6) -> Rows:
    n = len(carriers)
    return Rows("", n, [[500.0, hour, carrier] for carrier in carriers], [""] * n, [unit] * n, [0] * n)


def unit_of(site: Site, arm: str) -> str:
    """A unit that this arm answers."""
    chosen = (f"u{number}" for number in range(1000))
    return next(unit for unit in chosen if site.engine._choose(site.model, PLAIN, unit)[1] == arm)


UA = pytest.approx(tiny_answer(500.0, 6, "UA"), abs=1e-6)


class TestLadder:
    def test_stable_stands_in_for_a_failing_canary_whose_error_is_on_record_first(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(tmp_path, {1: bundles(STRICT), 2: bundles(FAILING)}, STABLE, CANARY)
        answer = site.ask("UA", unit=unit_of(site, "canary"))
        assert (answer.outputs, answer.versions, answer.arms) == ([[UA]], [1], ["stable"])
        assert (answer.sources, answer.fallbacks) == (["stable"], [True])
        assert site.trail() == [("canary", 2, "error"), ("stable", 1, "fallback")]
        assert len({event.id for event in site.events()}) == 1

    def test_an_earlier_answer_stands_in_when_no_version_answers(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(tmp_path, {1: bundles(STRICT)}, STABLE, policy=ServingPolicy(cached_answers=10))
        site.ask("UA")
        broken = Model(
            "late", "salt", (STABLE,), {1: Served.of(1, bundles(FAILING))}, policy=site.model.policy
        )
        site.model = broken
        asyncio.run(self._serve(site, broken))
        answer = site.ask("UA")
        assert (answer.outputs, answer.arms, answer.sources) == ([[UA]], ["cache"], ["cache"])
        with pytest.raises(ModelFailed, match="version 1 of late gave no answer; got RuntimeError: a bug"):
            site.ask("AA").raise_for_rows(broken)  # nothing is kept for this row
        assert site.trail()[1:3] == [("stable", 1, "error"), ("cache", 1, "fallback")]

    async def _serve(self, site: Site, model: Model) -> None:
        site.engine.serve({"late": model})

    def test_the_configured_answer_comes_last_and_is_labelled(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        policy = ServingPolicy(default={"probability": 0.25})
        site = Site(tmp_path, {1: bundles(FAILING)}, STABLE, policy=policy)
        answer = site.ask("UA")
        assert (answer.outputs, answer.arms, answer.sources) == ([[0.25]], ["default"], ["default"])
        assert site.trail() == [("stable", 1, "error"), ("default", 1, "fallback")]

    def test_a_configured_answer_with_other_outputs_than_the_models_is_none(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        policy = ServingPolicy(default={"a": 0.5, "b": 0.5})
        site = Site(tmp_path, {1: bundles(FAILING)}, STABLE, policy=policy)
        assert site.ask("UA").errors == ["RuntimeError: a bug"]

    def test_who_asks_for_a_version_gets_that_one_or_its_error(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        policy = ServingPolicy(default={"probability": 0.25})
        site = Site(tmp_path, {1: bundles(STRICT), 2: bundles(FAILING)}, STABLE, CANARY, policy=policy)
        assert site.ask("UA", call=Call(2)).errors == ["RuntimeError: a bug"]
        assert site.trail() == [("direct", 2, "error")]

    def test_of_many_rows_each_gets_what_it_can(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(tmp_path, {1: bundles(STRICT)}, STABLE)
        answer = site.ask("UA", "XX", "UA")
        assert [bool(outputs) for outputs in answer.outputs] == [True, False, True]
        assert ["KeyError" in why for why in answer.errors] == [False, True, False]
        with pytest.raises(ModelFailed, match="row 1: late gave no answer for 1 of 3 rows"):
            answer.raise_for_rows(site.model)

    @given(
        st.lists(st.sampled_from(["UA", "AA", "XX"]), min_size=1, max_size=8),
        st.booleans(),
        st.sampled_from(["on", "off"]),
    )
    @settings(max_examples=20)
    def test_every_row_has_one_answer_or_one_error_and_the_log_says_the_same(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        bundles: Callable[[str], Bundle],
        carriers: list[str],
        default: bool,
        batching: Any,
    ) -> None:
        policy = ServingPolicy(
            default={"probability": 0.25} if default else None,
            batching=Batching(mode=batching),
            breaker=Breaker(error_rate=1.0),
        )
        site = Site(
            tmp_path_factory.mktemp("site"),
            {1: bundles(STRICT), 2: bundles(FAILING)},
            STABLE,
            CANARY,
            policy=policy,
        )
        answer = site.ask(*carriers)
        final = {event.id: event for event in site.events() if event.status != "error"}
        for row, carrier in enumerate(carriers):
            wanted = 0.25 if carrier == "XX" else tiny_answer(500.0, 6, carrier)
            if carrier == "XX" and not default:
                assert answer.errors[row]
                assert answer.ids[row] not in final
                continue
            assert answer.outputs[row] == [pytest.approx(wanted, abs=1e-6)]
            logged = final.pop(answer.ids[row])
            assert (logged.outputs, logged.arm) == (answer.outputs[row], answer.arms[row])
        assert not final


class TestBreaker:
    POLICY = ServingPolicy(breaker=Breaker(requests=5, open_s=5.0))

    def test_a_failing_arm_is_left_alone_and_counted_as_failing_until_it_answers_again(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(tmp_path, {1: bundles(STRICT), 2: bundles(FAILING)}, STABLE, CANARY, policy=self.POLICY)
        unit = unit_of(site, "canary")
        for _ in range(6):
            assert site.ask("UA", unit=unit).arms == ["stable"]
        breaker = site.engine.breakers["late", 2, "canary"]
        assert (breaker.state, breaker.opened) == ("open", 1)
        last = [event for event in site.events() if event.arm == "canary"][-1]
        assert last.status == "error"
        assert last.error.startswith("the circuit is open for another 5 s")
        # The version is mended, and its time has come.
        site.model.versions[2].bundle = bundles(STRICT)
        site.now += 5_000_000
        assert [site.ask("UA", unit=unit).arms for _ in range(4)] == [["canary"]] * 4
        assert breaker.state == "closed"

    def test_when_everything_is_left_alone_it_is_said_when_to_come_again(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(tmp_path, {1: bundles(FAILING)}, STABLE, policy=self.POLICY)
        for _ in range(5):
            site.ask("UA")
        with pytest.raises(Overloaded, match="the circuit is open") as caught:
            site.ask("UA").raise_for_rows(site.model)
        assert caught.value.retry_after == pytest.approx(5.0)
        assert caught.value.http_status == 503

    def test_another_policy_makes_them_anew(self, tmp_path: Path, bundles: Callable[[str], Bundle]) -> None:
        site = Site(tmp_path, {1: bundles(FAILING)}, STABLE, policy=self.POLICY)
        for _ in range(5):
            site.ask("UA")
        other = Model("late", "salt", (STABLE,), site.model.versions, policy=ServingPolicy(timeout_ms=50))

        async def serve() -> None:
            site.engine.serve({"late": other})

        asyncio.run(serve())
        assert site.engine.breakers == {}


class TestArms:
    def test_an_arm_may_be_forced(self, tmp_path: Path, bundles: Callable[[str], Bundle]) -> None:
        variant = Arm("blue", 2, 0.3)
        site = Site(tmp_path, {1: bundles(STRICT), 2: bundles(STRICT)}, Arm("stable", 1, 0.7), variant)
        stable = unit_of(site, "stable")
        assert site.ask("UA", unit=stable, call=Call(arm="blue")).arms == ["blue"]
        assert site.ask("UA", unit=stable).arms == ["stable"]
        with pytest.raises(Refused, match="no arm of this name now; got canary, wanted stable, blue"):
            site.ask("UA", call=Call(arm="canary"))

    def test_no_answer_is_forced_from_a_shadow(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(
            tmp_path, {1: bundles(STRICT), 2: bundles(STRICT)}, Arm("stable", 1, 1.0), Arm("shadow", 2, 1.0)
        )
        with pytest.raises(Refused):
            site.ask("UA", call=Call(arm="shadow"))


class TestLog:
    def test_a_full_disk_refuses_or_sheds_as_the_policy_says(
        self, tmp_path: Path, bundles: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(frames: bytes) -> None:
            raise Unavailable("predictions cannot be logged (No space left on device)")

        for disk_full, folder in (("refuse", tmp_path / "a"), ("shed", tmp_path / "b")):
            folder.mkdir()
            policy = ServingPolicy(log=LogPolicy(disk_full=disk_full))  # type: ignore[arg-type]
            site = Site(folder, {1: bundles(STRICT)}, STABLE, policy=policy)
            monkeypatch.setattr(site.log, "append", full)
            if disk_full == "refuse":
                with pytest.raises(Unavailable, match="cannot be logged"):
                    site.ask("UA")
            else:
                assert site.ask("UA").outputs == [[UA]]
                assert read_counters(folder)["log_dropped", "late"].count == 1

    def test_what_is_redacted_reaches_no_file(self, tmp_path: Path, bundles: Callable[[str], Bundle]) -> None:
        policy = ServingPolicy(log=LogPolicy(redact=("carrier",)), default={"probability": 0.5})
        site = Site(tmp_path, {1: bundles(STRICT)}, STABLE, policy=policy)
        site.ask("UA")
        site.ask("SECRETCARRIER")  # the model's own error quotes it
        assert {event.inputs[2] for event in site.events()} == {None}
        assert all(b"SECRETCARRIER" not in path.read_bytes() for path in tmp_path.glob("*.seg"))


class TestShadow:
    def test_copies_take_no_more_of_the_worker_than_their_share(
        self, tmp_path: Path, bundles: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copies' time is measured, and the pauses between them make up for it."""
        from loopwright.serving import engine as engine_module

        monkeypatch.setattr(engine_module, "SHADOW_CREDIT_US", 0)
        policy = ServingPolicy(shadow_share=0.25, batching=Batching(mode="off"))
        site = Site(
            tmp_path,
            {1: bundles(STRICT), 2: bundles(SLOW)},
            Arm("stable", 1, 1.0),
            Arm("shadow", 2, 1.0),
            policy=policy,
        )
        site.engine._shadow_credit = 0.0
        spent: list[float] = []
        inner = site.engine._shadow

        async def timed(batch: Any) -> None:
            began = asyncio.get_running_loop().time()
            await inner(batch)
            spent.append(asyncio.get_running_loop().time() - began)

        monkeypatch.setattr(site.engine, "_shadow", timed)

        async def run() -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(8):
                await site.engine.infer(site.model, rows_of(["UA"]))
            await site.engine.drained()
            return loop.time() - began

        took = asyncio.run(run())
        assert sum(event.arm == "shadow" for event in site.events()) == 8
        # The last copy's time is paid by nobody any more.
        assert sum(spent[:-1]) <= 0.25 * took * 1.2

    def test_waiting_for_copies_ends_though_there_are_ever_more(
        self, tmp_path: Path, bundles: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = Site(
            tmp_path, {1: bundles(STRICT), 2: bundles(STRICT)}, Arm("stable", 1, 1.0), Arm("shadow", 2, 1.0)
        )
        inner, coming = site.engine._shadow, [True]

        async def followed(batch: Any) -> None:
            await inner(batch)
            if coming:
                await site.engine.infer(site.model, rows_of(["UA"]))

        monkeypatch.setattr(site.engine, "_shadow", followed)

        async def run() -> None:
            await site.engine.infer(site.model, rows_of(["UA"]))
            async with asyncio.timeout(30):
                await site.engine.drained()
            assert site.engine._copies
            coming.clear()
            await site.engine.drained()
            assert not site.engine._copies

        asyncio.run(run())

    def test_a_share_of_nothing_copies_nothing(
        self, tmp_path: Path, bundles: Callable[[str], Bundle]
    ) -> None:
        site = Site(
            tmp_path, {1: bundles(STRICT), 2: bundles(STRICT)}, Arm("stable", 1, 1.0), Arm("shadow", 2, 1.0),
            policy=ServingPolicy(shadow_share=0.0),
        )  # fmt: skip
        site.ask("UA")
        assert site.trail() == [("stable", 1, "ok")]


def test_a_slow_model_holds_up_no_other(tmp_path: Path, bundles: Callable[[str], Bundle]) -> None:
    """While a batch of the slow one runs in its thread, the fast one is answered on the spot."""
    gate = threading.Event()
    held = cast(Bundle, Watched(bundles(STRICT), lambda rows: gate.wait(30)))
    slow, fast = Served.of(1, held), Served.of(1, bundles(STRICT))
    site = Site(tmp_path, {1: bundles(STRICT)}, STABLE)
    policy = ServingPolicy(batching=Batching(mode="on"))
    models = {
        "slow": Model("slow", "s", (STABLE,), {1: slow}, policy=policy),
        "fast": Model("fast", "s", (STABLE,), {1: fast}),
    }

    async def run() -> list[str]:
        site.engine.serve(models)
        order: list[str] = []

        async def ask(name: str) -> None:
            await site.engine.infer(models[name], rows_of(["UA"]))
            order.append(name)

        waiting = [asyncio.ensure_future(ask("slow")) for _ in range(3)]
        await asyncio.sleep(0.001)
        await ask("fast")
        assert slow.lane is not None and slow.lane.waiting > 0
        gate.set()
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(run()) == ["fast", "slow", "slow", "slow"]


class SlowToLoad:
    """Brings no version into memory in anybody's time."""

    async def warm(self, served: Served) -> None:
        await asyncio.sleep(60)

    def touch(self, served: Served) -> None:
        raise AssertionError("nothing was used")


def test_a_version_that_is_still_being_loaded_is_a_reason_to_come_again(
    bundles: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Nothing was predicted, so another server may be asked: 503 and not 500."""
    site = Site(tmp_path, {1: bundles(STRICT)}, STABLE)
    site.engine.warmer = SlowToLoad()
    site.model.versions[1].bundle = None

    async def run() -> Answer:
        soon = asyncio.get_running_loop().time() + 0.05
        return await site.engine.infer(site.model, rows_of(["UA"]), Call(until=soon))

    answer = asyncio.run(run())
    assert site.trail() == [("stable", 1, "error")]
    with pytest.raises(Overloaded, match="not in memory yet") as refused:
        answer.raise_for_rows(site.model)
    assert refused.value.retry_after > 0
