"""No sequence of acts, accidents and clocks brings a version to Production past its policy.

The product and a model of the documents (`reference`) do the same; whatever one allows the other must allow, and
after every act the registry, MLflow's rows, the route table and the audit log say what the model says.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import iso
from tests.contract.registry.agreement import Agreement
from tests.contract.registry.reference import (
    DAY,
    NEVER,
    PRODUCTION,
    SECTIONS,
    Evidence,
    No,
    Reference,
    Rules,
)
from tests.contract.registry.world import MODEL, Accident, Crash, World, die, kill_connection, refused

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Person(Actor):
    """An actor whom a failing example names in a word."""

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(f"<{self.name}, {self.role.name.lower()}>")


ANA, DEE = Person("ana", Role.DEVELOPER), Person("dee", Role.DEVELOPER)
BO, CY, DI = (Person(name, Role.APPROVER) for name in ("bo", "cy", "di"))
EVE, ROOT = Person("eve", Role.VIEWER), Person("root", Role.ADMIN)
BOT = Person("bot", Role.ADMIN, service=True)
RISEN = Person("ana", Role.APPROVER)
"""The author, made an approver since."""
WHY = "because it was decided so"

people = st.sampled_from([BO, CY, DI, ROOT, ANA, RISEN, EVE, BOT])
authors = st.sampled_from([ANA, ANA, DI, BOT, EVE])
askers = st.sampled_from([ANA, DEE, DEE, DI, BOT, EVE])
numbers = st.integers(0, 7)
stages = st.sampled_from(["Production", "Production", "Staging"])
DOSSIER: dict[str, frozenset[str]] = dict.fromkeys(("gates", "fairness", "explainability"), frozenset()) | {
    "card": SECTIONS
}
"""All that the strictest tier asks for, and the sections that must be filled."""

CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"approvals": {"production": 1}}, {"production": 1}),
    ({"approvals": {"production": 3}}, {"production": 3}),
    ({"approvals": {"staging": 0, "production": 0}}, {"staging": 0, "production": 0}),
    ({"author_may_approve": True}, {"author": True}),
    ({"requester_may_approve": True}, {"requester": True}),
    ({"approvals_expire": "1d"}, {"lasts": DAY}),
    ({"approvals_expire": "never"}, {"lasts": NEVER}),
    ({"emergency": {"allowed": False}}, {"glass": False}),
    ({"emergency": {"failed_gates": True, "role": "approver"}}, {"failed_gates": True, "breaker": Role.APPROVER}),
    ({"retain": "30d"}, {"retain": 30 * DAY}),
    (
        {"evidence": {"production": {"gates": {"max_age": "1d", "snapshot": "version"}}}},
        {"gates_age": DAY},
    ),
]  # fmt: skip
"""What a policy may say, as its document says it and as the model reads it."""
PLANS: dict[str, dict[str, Any]] = {
    "careful": {},
    "quick": {"shadow_first": "0s", "steps": [{"weight": "50%"}, {"weight": "100%"}]},
    "instant": {"strategy": "instant"},
}


def digest(number: int) -> str:
    return f"{number:064x}"


def waits(machine: "Governance") -> bool:
    return any(ask.state == "pending" for ask in machine.model.asks)


def rolls(machine: "Governance") -> bool:
    return machine.model.running is not None


class Governance(RuleBasedStateMachine):
    """The acts. `fresh` gives the URL of a prepared ledger and a folder for the keys."""

    fresh: Callable[[], tuple[str, Path]]

    def __init__(self) -> None:
        super().__init__()
        url, folder = type(self).fresh()
        self.world = World(url, folder, NOON)
        self.model = Reference(NOON)
        self.accidents: Iterator[int | None] = iter(())
        self.agreement = Agreement()

    def teardown(self) -> None:
        self.world.close()

    # How an act is tried on both

    def attempt(
        self, act: Callable[[], object], expected: Callable[[Reference], object], *, crash: bool = True
    ) -> None:
        """Do it to the product and to the model: both do it, or both refuse and nothing remains of it.

        An accident that was called down strikes during the act; it leaves all of the act or nothing, and is repeated.
        """
        after, before = copy.deepcopy(self.model), self.world.dump()
        allowed = True
        try:
            expected(after)
        except No:
            allowed = False
        if crash and (left := next(self.accidents, None)) is not None:
            self._suffer(act, left)
            if self.world.dump() != before:
                assert allowed, "something of a refused act remained after an accident"
                self.model = after
                return
        no = self._refusal(act)
        assert allowed or no is not None, "allowed although the documents refuse it"
        assert not allowed or no is None, f"refused although the documents allow it: {no}"
        if allowed:
            self.model = after
        else:
            assert self.world.dump() == before, "something of a refused act remained"

    def _refusal(self, act: Callable[[], object]) -> Exception | None:
        try:
            act()
        except Exception as error:
            if not refused(error):
                raise
            return error
        return None

    def _suffer(self, act: Callable[[], object], left: int) -> None:
        """Begin the act in a process that dies, or loses its connection, before its `left`-th statement from here."""
        accident: Accident = self.world.accident
        on_postgres = self.world.ledger.engine.dialect.name == "postgresql"
        accident.strike = kill_connection if on_postgres and left % 2 else die
        accident.left, accident.struck = left, False
        try:
            act()
        except Crash:
            self.world.start_anew()
        except Exception as error:
            if not accident.struck and not refused(error):
                raise
        finally:
            accident.strike = None

    def number(self, drawn: int) -> int:
        return 1 + drawn % max(len(self.model.versions), 1)

    def waiting(self, drawn: int) -> int:
        asked = [ask.version for ask in self.model.asks if ask.state == "pending"]
        return asked[drawn % len(asked)]

    # Versions and evidence

    @initialize(
        author=st.sampled_from([ANA, DI]), plan=st.sampled_from([None, "careful", "quick", "quick", "instant"]),
        serving=st.sampled_from([True, True, False]),
        accidents=st.lists(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 30)), min_size=4, max_size=12),
    )  # fmt: skip
    def begin(self, author: Actor, plan: str | None, serving: bool, accidents: list[int | None]) -> None:
        if plan is not None:
            self.apply(ROOT, "high", CHANGES[0], plan, None)
        for bundle in (1, 2, 3):
            self.register(author, bundle, "s1")
        if serving:
            self.whole_way(0, "people", (), "")
        self.accidents = cycle(accidents)

    @precondition(lambda self: len(self.model.versions) < 5)
    @rule(
        author=authors, bundle=st.sampled_from([None, 1, 2, 3, 4, 4]), snapshot=st.sampled_from(["s1", "s2"])
    )
    def register(self, author: Actor, bundle: int | None, snapshot: str) -> None:
        if bundle is None:
            self.attempt(
                lambda: self.world.register_plainly(author), lambda model: model.register(author, None, None)
            )
            return
        self.attempt(
            lambda: self.world.register(author, digest(bundle), snapshot),
            lambda model: model.register(author, digest(bundle), snapshot),
        )

    @rule(
        kind=st.sampled_from(["gates", *DOSSIER]), bundle=st.integers(1, 4),
        verdict=st.sampled_from(["PASS", "PASS", "FAIL", "INCONCLUSIVE"]),
        age=st.sampled_from([0 * DAY, 2 * DAY, 100 * DAY, -HOUR]), snapshot=st.sampled_from([None, "s1", "s2"]),
        sections=st.sampled_from([SECTIONS, frozenset({"intended_use", "limitations"}), frozenset[str]()]),
    )  # fmt: skip
    def record(
        self,
        kind: str,
        bundle: int,
        verdict: str,
        age: timedelta,
        snapshot: str | None,
        sections: frozenset[str],
    ) -> None:
        snapshot, sections = (None, sections) if kind == "card" else (snapshot, frozenset())
        at = self.model.now - age
        found = Evidence(kind, digest(bundle), verdict, at, snapshot, sections)
        self.attempt(
            lambda: self.world.record(kind, digest(bundle), verdict, at, snapshot, sections),
            lambda model: model.record(found),
        )

    def vouch(self, number: int) -> None:
        """Record all that the strictest tier asks for."""
        bundle = self.model.versions[number].bundle
        if bundle is None:
            return
        known = [Evidence(kind, bundle, "PASS", self.model.now, None, said) for kind, said in DOSSIER.items()]

        def act() -> None:
            with self.world.ledger.write() as conn:
                for one in known:
                    self.world.record(one.kind, bundle, "PASS", one.at, None, one.sections, conn)

        self.attempt(act, lambda model: [model.record(one) for one in known])

    # Promotions

    @rule(who=askers, drawn=numbers, stage=stages)
    def ask(self, who: Actor, drawn: int, stage: str) -> None:
        number = self.number(drawn)
        self.attempt(
            lambda: self.world.operate("models.promote", who, model=MODEL, version=number, to=stage),
            lambda model: model.promote(who, number, stage),
        )

    @precondition(waits)
    @rule(
        who=people, drawn=numbers, yes=st.sampled_from([True] * 5 + [False]),
        looked_at=st.sampled_from([0, 0, 0, 1, 2]), to=st.sampled_from([None, None, PRODUCTION, "Staging"]),
        assumed=st.booleans(),
    )  # fmt: skip
    def speak(self, who: Actor, drawn: int, yes: bool, looked_at: int, to: str | None, assumed: bool) -> None:
        seen = digest(looked_at) if looked_at else None
        self.speak_on(self.waiting(drawn), who, to, yes=yes, seen=seen, assumed=assumed)

    def speak_on(
        self,
        number: int,
        who: Actor,
        to: str | None = PRODUCTION,
        *,
        yes: bool = True,
        seen: str | None = None,
        assumed: bool = False,
    ) -> None:
        self.attempt(
            lambda: self.world.speak(who, number, yes, seen, to, assumed),
            lambda model: model.speak(who, number, yes, seen, to),
        )

    @rule(
        drawn=numbers, last=st.sampled_from(["people", "people", "mlflow", "controller"]),
        between=st.sampled_from([(), (), (), (15,), (15, -14), (-3,)]),
        then=st.sampled_from(["", "good", "good", "harm", "abort", "rollback", "promote", "tidy up"]),
    )  # fmt: skip
    def whole_way(self, drawn: int, last: str, between: tuple[int, ...], then: str) -> None:
        """To Production by the book, a person's word or the evidence coming last; and some way on from there.

        `between` the first yes and the others days pass, or are taken back.
        """
        absent = [
            one.number for one in self.model.versions.values() if one.stage != PRODUCTION and not one.deleted
        ]
        if not absent:
            return
        number = absent[drawn % len(absent)]
        if last == "people":
            self.vouch(number)
        self.ask(DEE, number - 1, PRODUCTION)
        if between and self.model.pending(number, PRODUCTION):
            self.speak_on(number, BO)
            for days in between:
                self.pass_time(days * DAY)
        self.agree_on(number)
        if last != "people":
            self.vouch(number)
            if last == "mlflow":
                self.transition(DEE, number - 1, PRODUCTION)
            self.govern()
        if then in ("good", "harm"):
            self.step(then, 1 + drawn % 4)
        elif then == "tidy up":
            for each in list(self.model.versions):
                self.transition(CY, each - 1, "Archived", through_mlflow=False)
        elif then:
            self.steer(CY, None, then)

    def agree_on(self, number: int) -> None:
        for who in (BO, CY, DI):
            if self.model.pending(number, PRODUCTION):
                self.speak_on(number, who)

    @rule()
    def ask_for_others(self) -> None:
        for number, version in list(self.model.versions.items()):
            if version.stage != PRODUCTION and not self.model.pending(number) and not version.deleted:
                self.vouch(number)
                self.ask(DEE, number - 1, PRODUCTION)

    @precondition(waits)
    @rule(
        drawn=numbers,
        first=st.lists(
            st.sampled_from(["author", "requester", "robot", "viewer", "elsewhere"]), min_size=1, unique=True
        ),
    )  # fmt: skip
    def agree(self, drawn: int, first: list[str]) -> None:
        """Some who may not, or who looked at other bytes, speak before those who may."""
        number = self.waiting(drawn)
        (ask, *_) = self.model.pending(number)
        impatient = {
            "author": Person(self.model.versions[number].author, Role.APPROVER),
            "requester": Person(ask.by, Role.APPROVER),
            "robot": BOT,
            "viewer": EVE,
            "elsewhere": CY,
        }
        for name in first:
            if self.model.pending(number, ask.stage):
                self.speak_on(
                    number, impatient[name], ask.stage, seen=digest(9) if name == "elsewhere" else None
                )
        self.agree_on(number)

    @rule(
        who=people, drawn=numbers, stage=st.sampled_from([PRODUCTION, PRODUCTION, "Staging", "Archived", "None"]),
        through_mlflow=st.booleans(),
    )  # fmt: skip
    def transition(self, who: Actor, drawn: int, stage: str, through_mlflow: bool = True) -> None:
        number = self.number(drawn)
        if through_mlflow or stage in (PRODUCTION, "Staging"):
            self.attempt(
                lambda: self.world.transition(who, number, stage),
                lambda model: model.transition(who, number, stage),
            )
        else:
            self.attempt(
                lambda: self.world.restage(who, number, stage),
                lambda model: model.restage(who, number, stage),
            )

    @rule(
        who=people, drawn=numbers,
        what=st.sampled_from(["set", "unset", "tag", "withdraw", "withdraw", "delete", "delete"]),
        name=st.sampled_from(["champion", "Production", "s-taging", "prod", "challenger", "ｌｉｖｅ"]),
    )  # fmt: skip
    def meddle(self, who: Actor, drawn: int, what: str, name: str) -> None:
        """Aliases and tags that say where a version stands are nobody's to set."""

        def never(_: Reference) -> None:
            raise No

        number = self.number(drawn)
        act: Callable[[], object]
        expected: Callable[[Reference], object] = never
        if what == "set":
            act = partial(self.world.point, who, name, number)
        elif what == "unset":
            act = partial(self.world.unpoint, who, name)
        elif what == "tag":
            act = partial(self.world.tag, who, number, "loopwright.stage")
        elif what == "withdraw":
            number, to = self.waiting(drawn) if waits(self) else number, (None, PRODUCTION)[drawn % 2]
            act = partial(self.world.operate, "models.withdraw", who, model=MODEL, version=number, to=to)
            expected = lambda model: model.withdraw(who, number, to)  # noqa: E731
        else:
            act = partial(self.world.operate, "models.delete", ROOT, model=MODEL, version=number, reason=WHY)
            expected = lambda model: model.delete(ROOT, number)  # noqa: E731
        self.attempt(act, expected)

    # Policies and clocks

    @rule(
        who=st.sampled_from([ROOT, ROOT, ROOT, BO]), tier=st.sampled_from(["high", "high", "medium", "low"]),
        one=st.sampled_from(CHANGES), other=st.sampled_from(CHANGES),
        freeze=st.sampled_from([None, None, (-1, 1), (0, 3), (2, 5), (-5, -1)]),
        reasoned=st.sampled_from([True] * 4 + [False]),
    )  # fmt: skip
    def set_document(
        self, who: Actor, tier: str, one: Any, other: Any, freeze: tuple[int, int] | None, reasoned: bool
    ) -> None:
        said, read = {**one[0], **other[0]}, {**one[1], **other[1]}
        # Of two that speak of the same thing the later one stands alone.
        if set(one[0]) & set(other[0]):
            said, read = other
        said, read = self._frozen(dict(said), dict(read), freeze)
        self.attempt(
            lambda: self.world.operate(
                "policy.set", who, document={"tier": tier, **said}, reason=WHY if reasoned else ""
            ),
            lambda model: model.set_document(who, tier, read, reasoned=reasoned),
        )

    @rule(
        who=st.sampled_from([ROOT, ROOT, ANA]), tier=st.sampled_from(["high", "medium", "low"]),
        change=st.sampled_from(CHANGES[:11]), plan=st.sampled_from(sorted(PLANS)),
        freeze=st.sampled_from([None, None, (-1, 1), (1, 3)]),
    )  # fmt: skip
    def apply(self, who: Actor, tier: str, change: Any, plan: str, freeze: tuple[int, int] | None) -> None:
        said, read = self._frozen(dict(change[0]), dict(change[1]), freeze)
        self.attempt(
            lambda: self.world.apply(who, {"tier": tier, **said}, PLANS[plan]),
            lambda model: model.apply(who, {"tier": tier, **read}, plan),
        )

    def _frozen(
        self, said: dict[str, Any], read: Rules, days: tuple[int, int] | None
    ) -> tuple[dict[str, Any], Rules]:
        if days is not None:
            start, until = (self.model.now + day * DAY for day in days)
            said["freeze"] = [{"from": iso(start), "until": iso(until), "why": "a fair"}]
            read["freeze"] = frozenset({(start, until)})
        return said, read

    @rule(
        by=st.sampled_from([HOUR, DAY, 4 * DAY, 15 * DAY, 100 * DAY, -HOUR, -2 * DAY, -40 * DAY, 3000 * DAY])
    )
    def pass_time(self, by: timedelta) -> None:
        if self.model.now + by < NOON + 20_000 * DAY:
            self.model.set_clock(self.model.now + by)
            self.world.set_clock(self.model.now)

    # Emergencies

    @rule(
        who=st.sampled_from([ROOT, ROOT, BO, ANA, BOT]),
        drawn=numbers,
        reasoned=st.sampled_from([True] * 5 + [False]),
    )
    def break_glass(self, who: Actor, drawn: int, reasoned: bool) -> None:
        number = self.number(drawn)
        self.attempt(
            lambda: self.world.operate(
                "models.break_glass", who, model=MODEL, version=number, reason=WHY if reasoned else "quick"
            ),
            lambda model: model.break_glass(who, number, reasoned=reasoned),
        )

    @precondition(lambda self: any(ask.review == "open" for ask in self.model.asks))
    @rule(who=people, drawn=numbers, uphold=st.booleans(), reasoned=st.sampled_from([True] * 5 + [False]))
    def review(self, who: Actor, drawn: int, uphold: bool, reasoned: bool) -> None:
        waiting = [ask for ask in self.model.asks if ask.review == "open"]
        number = waiting[drawn % len(waiting)].version
        mine = self.model.reviews(number)
        if len({ask.due for ask in mine}) < len(mine):
            return  # two due at one instant: either may be decided first
        self.attempt(
            lambda: self.world.operate(
                "reviews.decide",
                who,
                model=MODEL,
                version=number,
                outcome="uphold" if uphold else "revoke",
                comment=WHY if reasoned else "",
            ),
            lambda model: model.review(who, number, uphold=uphold, reasoned=reasoned),
        )

    # Delivery and controllers

    @precondition(rolls)
    @rule(seen=st.sampled_from(["good", "good", "harm", "nothing"]), times=st.integers(1, 4))
    def step(self, seen: str, times: int) -> None:
        for _ in range(times):
            self.attempt(lambda: self.world.step(seen), lambda model: model.step(seen))

    @rule(
        who=st.sampled_from([BO, CY, ROOT, DEE, BOT]), to=st.one_of(st.none(), st.none(), numbers),
        act=st.sampled_from(["pause", "resume", "abort", "promote", "promote", "rollback", "rollback"]),
    )  # fmt: skip
    def steer(self, who: Actor, to: int | None, act: str) -> None:
        number = None if to is None else self.number(to)
        expected: dict[str, Callable[[Reference], object]] = {
            "pause": lambda model: model.pause(who, paused=True),
            "resume": lambda model: model.pause(who, paused=False),
            "abort": lambda model: model.abort(who),
            "promote": lambda model: model.finish(who),
            "rollback": lambda model: model.rollback(who, number),
        }
        said = {"to_version": number} if act == "rollback" else {}
        room = "models" if act == "rollback" else "delivery"
        self.attempt(lambda: self.world.operate(f"{room}.{act}", who, model=MODEL, **said), expected[act])

    @rule()
    def govern(self) -> None:
        """A round of both controllers."""

        def tick() -> None:
            try:
                self.world.govern()
            except Exception as error:
                # One promotion that may not settle is told at the end of the round; the others have settled.
                if not refused(error):
                    raise

        # A lost connection ends one transaction of a round and not the others: the order would be another.
        self.attempt(tick, lambda model: model.govern(), crash=False)
        self.attempt(self.world.deliver, lambda model: model.deliver_due(), crash=False)

    # What must hold

    @invariant()
    def everything_agrees(self) -> None:
        self.agreement.check(self.world, self.model)


def run(fresh: Callable[[], tuple[str, Path]], examples: int, steps: int) -> None:
    # Not shrunk: that replays for minutes, and an example that failed names each of its acts.
    machine = type("Governance", (Governance,), {"fresh": staticmethod(fresh)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=False,
            suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )  # fmt: skip


def test_on_sqlite(sqlite_template: Path, tmp_path: Path) -> None:
    made = count(1)

    def fresh() -> tuple[str, Path]:
        folder = tmp_path / str(next(made))
        folder.mkdir()
        shutil.copy(sqlite_template, folder / "ledger.db")
        return f"sqlite:///{folder / 'ledger.db'}", folder

    run(fresh, examples=12, steps=36)


@pytest.fixture
def databases(postgres_template: tuple[str, str]) -> Iterator[Callable[[], str]]:
    import psycopg

    server, template = postgres_template
    made: list[str] = []
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:

        def create() -> str:
            made.append(f"machine_{len(made)}")
            connection.execute(f"CREATE DATABASE {made[-1]} TEMPLATE {template}")
            return f"{server}/{made[-1]}"

        yield create
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_on_postgresql(databases: Callable[[], str], tmp_path: Path) -> None:
    made = count(1)

    def fresh() -> tuple[str, Path]:
        folder = tmp_path / str(next(made))
        folder.mkdir()
        return databases(), folder

    run(fresh, examples=4, steps=30)
