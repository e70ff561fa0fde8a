"""A home at work on a database of its own, as one person after another uses it; and accidents at any statement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException
from sqlalchemy import Connection, event, text

from loopwright.bundle.keyring import Keyring
from loopwright.control.context import Context
from loopwright.control.controllers.governance import GovernanceController
from loopwright.control.desired import plan_of
from loopwright.control.operation import find
from loopwright.delivery import conduct
from loopwright.delivery import store as delivery
from loopwright.delivery.judge import ArmCounts
from loopwright.delivery.rollout import Evidence as Seen
from loopwright.delivery.tick import tick
from loopwright.kernel.actor import SYSTEM, Actor, Role
from loopwright.kernel.errors import Conflict, LoopwrightError
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.registry import evidence, promotion, unit_of_work, versions
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry
from loopwright.stats.histogram import LatencyHistogram
from tests.governing import SAID

MODEL = "flights"
OWNER = Actor("local", Role.ADMIN)
GOVERNED = (
    "lw_versions", "lw_promotions", "lw_approvals", "lw_evidence", "lw_policies", "lw_projects", "lw_reviews",
    "lw_rollouts", "lw_rollout_events", "lw_route_tables", "registered_models", "registered_model_tags",
    "registered_model_aliases", "model_versions", "model_version_tags",
)  # fmt: skip
ASIDE = ("user.assumed", "registry.refused")
"""Rows that an attempt leaves in the audit log although it changed nothing."""


class Crash(BaseException):
    """The process died here."""


@dataclass(eq=False)
class Accident:
    """What happens before the `left`-th statement or commit from now: `strike`, if any, and again at each later one."""

    strike: Callable[[Any], None] | None = None
    left: int = 0
    struck: bool = False

    def __call__(self, conn: Connection, *_: object) -> None:
        if self.strike is None:
            return
        self.left -= 1
        if self.left < 0:
            self.struck = True
            self.strike(conn)


def arm_counts(n: int, errors: int = 0) -> ArmCounts:
    latency = LatencyHistogram()
    latency.add(np.full(min(n, 50_000), 200.0))
    return ArmCounts(n, errors, latency)


@dataclass
class World:
    """The product, driven by the acts that people, MLflow's clients and controllers have."""

    url: str
    folder: Path
    now: datetime
    ledger: Ledger = field(init=False)
    accident: Accident = field(default_factory=Accident)
    steps: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger.open(self.url)
        self.registry = GovernedRegistry(self.url)
        self.registry.clock = lambda: self.now
        for engine in (self.ledger.engine, self.registry.engine):
            event.listen(engine, "before_cursor_execute", self.accident)
            event.listen(engine, "commit", self.accident)
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _without_fsync)
        home = Home.at(self.folder)
        self.ctx = Context(home, self.ledger, OWNER, lambda: self.now, Keyring.open(home.keys), "")

    def close(self) -> None:
        self.start_anew()
        unit_of_work._engines.pop(self.url, None)

    def start_anew(self) -> None:
        """Go on as the next process would: with no connection of the one that died."""
        self.ledger.dispose()
        self.registry.engine.dispose()

    def set_clock(self, now: datetime) -> None:
        """The clock says another time, and the log tells it: something happens then."""
        self.now = now
        self.ctx.record("clock.looked_at", subject="clock", payload={})

    # Acts

    def operate(self, name: str, actor: Actor, assumed: bool = False, **said: object) -> object:
        ctx = self.ctx.acting_as(actor, assumed_by=OWNER if assumed else None)
        return find(name)(ctx, **said)

    @contextmanager
    def mlflow(self, actor: Actor) -> Iterator[GovernedRegistry]:
        token = current_actor.set(actor)
        try:
            yield self.registry
        finally:
            current_actor.reset(token)

    def register(self, author: Actor, bundle: str, snapshot: str) -> None:
        with self.ledger.write() as conn:
            versions.register_version(
                conn, model=MODEL, bundle=bundle, run_id=None, snapshot=snapshot, author=author, metrics={},
                now=self.now,
            )  # fmt: skip

    def register_plainly(self, author: Actor) -> None:
        self.steps += 1
        with self.mlflow(author) as registry:
            registry.create_model_version(MODEL, f"mlflow-artifacts:/1/run{self.steps}/artifacts/model")

    def record(
        self,
        kind: str,
        bundle: str,
        verdict: str,
        at: datetime,
        snapshot: str | None,
        sections: frozenset[str],
        conn: Connection | None = None,
    ) -> None:
        payload: dict[str, Any] = {"snapshot": snapshot} if snapshot else {}
        if kind == "card":
            payload |= {"sections": dict.fromkeys(sorted(sections), SAID) | {"notes": "to be written"}}
        with nullcontext(conn) if conn is not None else self.ledger.write() as conn:
            evidence.record_evidence(
                conn, kind=kind, model=MODEL, version=None, bundle=bundle, verdict=Verdict(verdict), payload=payload,
                at=at,
            )  # fmt: skip

    def speak(
        self,
        actor: Actor,
        version: int,
        yes: bool = True,
        looked_at: str | None = None,
        to: str | None = None,
        assumed: bool = False,
    ) -> None:
        """`assumed`: the owner of the machine speaks under this name. `looked_at`: the bytes the actor means."""
        if looked_at is None:
            act = "models.approve" if yes else "models.reject"
            self.operate(act, actor, assumed, model=MODEL, version=version, to=to)
            return
        speak = promotion.approve if yes else promotion.reject
        with self.ledger.write() as conn:
            waiting = promotion.list_promotions(conn, model=MODEL, version=version, state="pending")
            meant = [one.id for one in waiting if to in (None, one.stage.value)]
            if len(meant) != 1:
                raise Conflict("not one promotion", got=len(meant))
            speak(
                conn, model=MODEL, version=version, reviewer=actor, now=self.now, bundle=looked_at, promotion=meant[0]
            )  # fmt: skip
            for due in delivery.due_promotions(conn):
                if delivery.active_rollout(conn, MODEL) is None:
                    self._begin(conn, due)

    def transition(self, actor: Actor, version: int, stage: str) -> None:
        with self.mlflow(actor) as registry:
            registry.transition_model_version_stage(MODEL, str(version), stage, True)

    def point(self, actor: Actor, alias: str, version: int) -> None:
        with self.mlflow(actor) as registry:
            registry.set_registered_model_alias(MODEL, alias, str(version))

    def unpoint(self, actor: Actor, alias: str) -> None:
        with self.mlflow(actor) as registry:
            registry.delete_registered_model_alias(MODEL, alias)

    def tag(self, actor: Actor, version: int, key: str) -> None:
        with self.mlflow(actor) as registry:
            registry.set_model_version_tag(MODEL, str(version), ModelVersionTag(key, "yes"))

    def restage(self, actor: Actor, version: int, stage: str) -> None:
        move = promotion.archive if stage == "Archived" else promotion.demote
        with self.ledger.write() as conn:
            move(conn, model=MODEL, version=version, why="tidying up", now=self.now, actor=actor)

    def apply(self, actor: Actor, policy: dict[str, Any], delivery: dict[str, Any]) -> None:
        spec = {
            "model": MODEL, "task": "binary", "policy": policy, "delivery": delivery,
            "data": {"sources": {"flights": {"uri": "a.csv", "contract": "a.yaml"}}, "label": {"name": "late"}},
        }  # fmt: skip
        self.operate("projects.apply", actor, model=MODEL, path="/srv/flights", spec=spec)

    def govern(self) -> None:
        GovernanceController().tick(self.ctx.acting_as(SYSTEM))

    def deliver(self) -> None:
        def plan_for(model: str) -> Any:
            with self.ledger.read() as conn:
                return plan_of(conn, model)

        tick(self.ledger, key=self.ctx.key, now=self.now, plan_for=plan_for)

    def step(self, seen: str) -> None:
        """One look of the rollout controller, long after every hold: at nothing, at many good answers, or at harm."""
        self.steps += 1
        with self.ledger.write() as conn:
            running = delivery.active_rollout(conn, MODEL)
            if running is None:
                return
            counted = {
                "nothing": Seen(),
                "good": Seen(arm_counts(300_000 * self.steps), arm_counts(300_000 * self.steps)),
                "harm": Seen(arm_counts(30_000), arm_counts(30_000, 9_000)),
            }  # fmt: skip
            later = datetime(2400, 1, 1, tzinfo=self.now.tzinfo) + self.steps * timedelta(days=30)
            conduct.step_rollout(
                conn, running.id, evidence=counted[seen], event_time=later, now=self.now, key=self.ctx.key
            )

    # What there is

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row that governance keeps, and the audit log without the traces of mere attempts."""
        with self.ledger.read() as conn:
            found: dict[str, list[tuple[Any, ...]]] = {}
            for table in GOVERNED:
                rows = [tuple(row) for row in conn.execute(text(f"SELECT * FROM {table}"))]
                found[table] = sorted(rows, key=repr)
            log = conn.execute(text("SELECT action, subject, actor, payload, at FROM lw_audit ORDER BY seq"))
            found["lw_audit"] = [tuple(row) for row in log if row.action not in ASIDE]
        return found

    def aliases(self, conn: Connection) -> dict[str, int]:
        return {
            row.alias: int(row.version)
            for row in conn.execute(text("SELECT alias, version FROM registered_model_aliases"))
        }

    def _begin(self, conn: Connection, due: delivery.DuePromotion) -> None:
        plan = plan_of(conn, due.model)
        conduct.start_due(conn, due, plan, key=self.ctx.key, now=self.now, event_time=self.now)


def refused(error: Exception) -> bool:
    """Whether an error says no, as against one that says something broke."""
    if isinstance(error, MlflowException):
        return 400 <= int(error.get_http_status_code()) < 500
    return isinstance(error, LoopwrightError)


def kill_connection(conn: Any) -> None:
    """Have the server end this connection (PostgreSQL)."""
    import psycopg

    driver = conn.connection.driver_connection
    if driver.closed:
        return
    with psycopg.connect(driver.info.dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (driver.info.backend_pid,))


def die(_: Any) -> None:
    raise Crash


def _without_fsync(connection: Any, _record: object) -> None:
    # Power does not fail in these tests: processes do.
    connection.execute("PRAGMA synchronous = OFF")
