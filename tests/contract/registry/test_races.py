"""Two people at the same instant: one legal outcome, and the audit log tells it the same way.

Each race is run many times on each engine, between threads with connections of their own and between processes.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from loopwright.bundle.keyring import Keyring
from loopwright.control.context import Context
from loopwright.control.desired import deliver_due
from loopwright.control.operation import find
from loopwright.delivery import conduct
from loopwright.delivery.rollout import Evidence
from loopwright.delivery.routes import stable_version
from loopwright.delivery.store import active_rollout
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict, NotFound, Refused
from loopwright.kernel.home import Home
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import policies, promotion, review, versions
from loopwright.registry.policy import Policy, Promotion
from tests.governing import ADMIN, vouch

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ANA = Actor("ana", Role.DEVELOPER)
BO, CY, DI = (Actor(name, Role.APPROVER) for name in ("bo", "cy", "di"))
WHY = "the airport is closed"
TIMES = 10
"""On each engine and in each of the two ways: twenty times an engine."""

Act = Callable[[Ledger], object]
Race = Callable[..., list[str]]
SAID = {0: "did", 4: "Refused", 5: "Conflict", 6: "NotFound"}
"""How a process that raced says with its exit code what became of its act."""


def attempt(act: Act, ledger: Ledger) -> str:
    try:
        act(ledger)
    except (Refused, Conflict, NotFound) as error:
        return type(error).__name__
    return "did"


def between_threads(url: str, *acts: Act) -> list[str]:
    start = threading.Barrier(len(acts))

    def run(act: Act) -> str:
        ledger = Ledger.open(url)
        try:
            with ledger.read() as conn:
                conn.execute(text("SELECT 1"))
            start.wait()
            return attempt(act, ledger)
        finally:
            ledger.dispose()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def between_processes(url: str, *acts: Act) -> list[str]:
    ready_out, ready_in = os.pipe()
    go_out, go_in = os.pipe()
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            signal.alarm(300)
            try:
                os.close(go_in)
                ledger = Ledger.open(url)
                with ledger.read() as conn:
                    conn.execute(text("SELECT 1"))
                os.write(ready_in, b".")
                os.read(go_out, 1)  # ends when the parent closes its side
                said = attempt(act, ledger)
                os._exit(next(code for code, word in SAID.items() if word == said))
            except BaseException:  # noqa: BLE001  the child must never run on into the parent's tests
                os._exit(3)
        children.append(child)
    os.close(ready_in)
    for _ in acts:
        os.read(ready_out, 1)
    os.close(go_in)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(ready_out)
    os.close(go_out)
    return [SAID.get(code, f"exit {code}") for code in ended]


@pytest.fixture(params=["threads", "processes"])
def race(request: pytest.FixtureRequest, registry_url: str, ledger: Ledger) -> Race:
    run = between_threads if request.param == "threads" else between_processes

    def at_once(*acts: Act) -> list[str]:
        ledger.dispose()  # no connection goes with a fork
        return run(registry_url, *acts)

    return at_once


@pytest.fixture
def models() -> Iterator[str]:
    """As many models as a race is run times: none knows of the others."""
    return (f"m{number}" for number in range(TIMES))


def ask(conn: Connection, model: str, number: int, *reviewers: Actor) -> None:
    """Register a version, ask for it, and have `reviewers` say yes: it needs two."""
    bundle = f"{number:064x}"
    vouch(conn, model, bundle, at=NOON)
    versions.register_version(
        conn, model=model, bundle=bundle, run_id=None, snapshot=None, author=ANA, metrics={}, now=NOON
    )
    promotion.request_promotion(
        conn, model=model, version=number, stage=Stage.PRODUCTION, actor=ANA, reason="", now=NOON
    )
    for reviewer in reviewers:
        promotion.approve(conn, model=model, version=number, reviewer=reviewer, now=NOON)


def waiting(ledger: Ledger, model: str, *reviewers: Actor) -> None:
    with ledger.write() as conn:
        ask(conn, model, 1, *reviewers)


def speak(who: Actor, model: str, ledger: Ledger, *, yes: bool = True) -> None:
    say = promotion.approve if yes else promotion.reject
    with ledger.write() as conn:
        say(conn, model=model, version=1, reviewer=who, now=NOON)


def withdraw(model: str, ledger: Ledger) -> None:
    with ledger.write() as conn:
        promotion.withdraw(conn, model=model, version=1, actor=ANA, now=NOON)


def break_glass(model: str, ledger: Ledger) -> None:
    with ledger.write() as conn:
        review.break_glass(conn, model=model, version=1, actor=ADMIN, reason=WHY, now=NOON)


def set_policy(ledger: Ledger, approvals: int) -> None:
    with ledger.write() as conn:
        policies.set_document(
            conn, {"tier": "high", "approvals": {"production": approvals}}, actor=ADMIN,
            reason="decided by the board", now=NOON,
        )  # fmt: skip


def outcome(ledger: Ledger, model: str) -> tuple[list[Promotion], list[str]]:
    """The model's promotions, and the acts on its version in the order of the audit log; both registries agree."""
    with ledger.read() as conn:
        assert audit.verify(conn).ok
        asked = promotion.list_promotions(conn, model=model)
        rows = [row.action for row in audit.rows(conn, subject=f"{model}/1")]
        ours = versions.get_version(conn, model=model, version=1).stage.value
        named = {"model": model}
        theirs = conn.execute(
            text("SELECT current_stage FROM model_versions WHERE name = :model"), named
        ).scalar_one()
        aliases = conn.execute(
            text("SELECT alias FROM registered_model_aliases WHERE name = :model ORDER BY alias"), named
        ).scalars()
        effective = [one for one in asked if one.state == "effective"]
        assert ours == theirs == ("Production" if effective else "None")
        assert list(aliases) == (["champion", "production"] if effective else [])
        assert rows.count("promotion.effective") == len(effective) <= 1
    return asked, [row for row in rows if row.startswith(("promotion.", "approval."))]


def test_two_last_approvers_take_effect_once(race: Race, ledger: Ledger, models: Iterator[str]) -> None:
    for model in models:
        waiting(ledger, model)
        assert race(partial(speak, BO, model), partial(speak, CY, model)) == ["did", "did"]
        (asked,), acts = outcome(ledger, model)
        assert asked.state == "effective" and sorted(asked.approved_by) == ["bo", "cy"]
        assert acts == ["promotion.requested", "approval.given", "approval.given", "promotion.effective"]


def test_of_three_approvers_two_count_and_one_comes_too_late(
    race: Race, ledger: Ledger, models: Iterator[str]
) -> None:
    for model in models:
        waiting(ledger, model)
        said = race(*(partial(speak, who, model) for who in (BO, CY, DI)))
        (asked,), acts = outcome(ledger, model)
        assert sorted(said) == ["NotFound", "did", "did"]
        assert len(asked.approved_by) == 2 and acts.count("approval.given") == 2


def test_one_person_at_two_keyboards_is_one_person(race: Race, ledger: Ledger, models: Iterator[str]) -> None:
    for model in models:
        waiting(ledger, model)
        assert sorted(race(partial(speak, BO, model), partial(speak, BO, model))) == ["Refused", "did"]
        (asked,), acts = outcome(ledger, model)
        assert (asked.state, asked.approved_by) == ("pending", ("bo",))
        assert acts == ["promotion.requested", "approval.given"]


def test_of_a_yes_a_no_and_a_withdrawal_one_ends_the_promotion(
    race: Race, ledger: Ledger, models: Iterator[str]
) -> None:
    for model in models:
        waiting(ledger, model, BO)
        said = race(partial(speak, CY, model), partial(speak, DI, model, yes=False), partial(withdraw, model))
        (asked,), acts = outcome(ledger, model)
        assert sorted(said) == ["NotFound", "NotFound", "did"]
        assert (said.index("did"), asked.state, acts[-1]) in (
            (0, "effective", "promotion.effective"),
            (1, "rejected", "promotion.rejected"),
            (2, "withdrawn", "promotion.withdrawn"),
        )


def test_a_last_yes_is_decided_under_the_policy_that_was_in_force_then(
    race: Race, ledger: Ledger, models: Iterator[str]
) -> None:
    for model in models:
        waiting(ledger, model, BO)
        assert race(partial(speak, CY, model), partial(set_policy, approvals=3)) == ["did", "did"]
        (asked,), _ = outcome(ledger, model)
        with ledger.read() as conn:
            tightened = audit.rows(conn, action="policy.set")[-1]
            (*_, said) = audit.rows(conn, subject=f"{model}/1", action="approval.given")
        assert (said.payload["policy"] == Policy().digest) == (said.seq < tightened.seq)
        assert asked.state == ("effective" if said.seq < tightened.seq else "pending")
        if asked.state == "effective":
            assert (asked.policy.approvals(Stage.PRODUCTION), asked.policy_digest) == (2, Policy().digest)
        set_policy(ledger, approvals=2)


def test_a_last_yes_and_broken_glass_promote_once(race: Race, ledger: Ledger, models: Iterator[str]) -> None:
    for model in models:
        waiting(ledger, model, BO)
        yes, broken = race(partial(speak, CY, model), partial(break_glass, model))
        asked, acts = outcome(ledger, model)
        states = [(one.state, one.emergency) for one in asked]
        with ledger.read() as conn:
            reviews = len(review.list_reviews(conn, model=model, state="open"))
        assert (yes, broken, states, reviews, acts.count("promotion.break_glass")) in (
            ("did", "Conflict", [("effective", None)], 0, 0),
            ("NotFound", "did", [("withdrawn", None), ("effective", WHY)], 1, 1),
        )


def test_a_promotion_and_a_rollback_leave_one_version_that_answers(
    race: Race, ledger: Ledger, tmp_path: Path, models: Iterator[str]
) -> None:
    home = Home.at(tmp_path)

    def context(books: Ledger, who: Actor) -> Context:
        return Context(home, books, who, lambda: NOON, Keyring.open(home.keys), "")

    def operate(name: str, who: Actor, books: Ledger, **said: object) -> None:
        find(name)(context(books, who), **said)

    def serve(conn: Connection, model: str, number: int) -> None:
        ask(conn, model, number, BO, CY)
        ctx = context(ledger, BO)
        deliver_due(ctx, conn, model)
        if active_rollout(conn, model) is not None:
            conduct.promote_rollout(
                conn, model, evidence=Evidence(), actor=BO, why="", event_time=NOON, now=NOON, key=ctx.key
            )

    for model in models:
        with ledger.write() as conn:
            for number in (1, 2):
                serve(conn, model, number)
            ask(conn, model, 3, BO)
        said = race(
            lambda books, model=model: operate("models.approve", CY, books, model=model, version=3),
            lambda books, model=model: operate("models.rollback", DI, books, model=model),
        )
        assert said == ["did", "did"]
        with ledger.read() as conn:
            assert audit.verify(conn).ok
            running, stable = active_rollout(conn, model), stable_version(conn, model)
            stages = {one.version: one.stage.value for one in versions.list_versions(conn, model=model)}
        approved_first = (None, 2, {1: "Archived", 2: "Production", 3: "Archived"})
        left_first = (3, 1, {1: "Production", 2: "Archived", 3: "Production"})
        assert (running.version if running else None, stable, stages) in (approved_first, left_first)
