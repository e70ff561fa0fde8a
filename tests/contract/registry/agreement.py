"""Whether the product stands where the model of the documents stands: what must hold after every act."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection

from loopwright.bundle.approval import verify_record
from loopwright.bundle.routes import open_routes
from loopwright.delivery.routes import current_routes, stable_version
from loopwright.delivery.store import active_rollout
from loopwright.kernel.errors import NotFound, Refused
from loopwright.ledger import store as audit
from loopwright.ledger.audit import START, Walk
from loopwright.registry import promotion, review, store, versions
from loopwright.registry.approval import approval_record
from tests.contract.registry.reference import PRODUCTION, STAGING, Reference
from tests.contract.registry.world import MODEL, World

TRACKED = ("approval.", "policy.", "project.", "promotion.", "review.", "rollout.", "version.")
LATER = {("pending", state) for state in ("effective", "rejected", "withdrawn", "reverted")} | {
    ("effective", "reverted")
}


@dataclass
class Agreement:
    """Remembers how far the audit log was walked, and in which state each promotion was seen."""

    walked: Walk = START
    states: dict[str, str] = field(default_factory=dict)

    def check(self, world: World, model: Reference) -> None:
        with world.ledger.read() as conn:
            self._log_tells_every_act_once(conn, model)
            self._stages_agree(conn, world, model)
            self._promotions_agree(conn, model)
            _production_is_earned(conn, model)
            _routes_are_earned(conn, world, model)

    def _log_tells_every_act_once(self, conn: Connection, model: Reference) -> None:
        report = audit.verify(conn, since=self.walked)
        assert report.ok, report.why
        self.walked = report.reached
        rows = [row for row in audit.rows(conn) if row.action.startswith(TRACKED)]
        assert [(row.action, row.subject, row.actor) for row in rows] == model.acts

    def _stages_agree(self, conn: Connection, world: World, model: Reference) -> None:
        ours = {one.version: one.stage.value for one in versions.list_versions(conn, model=MODEL)}
        assert ours == {one.number: one.stage for one in model.versions.values() if not one.deleted}
        assert {number: store.ml_stage(conn, MODEL, number) for number in ours} == ours
        wanted = {"champion": PRODUCTION, "production": PRODUCTION, "staging": STAGING}
        pointed = {alias: model.current(stage) for alias, stage in wanted.items()}
        assert world.aliases(conn) == {
            alias: number for alias, number in pointed.items() if number is not None
        }

    def _promotions_agree(self, conn: Connection, model: Reference) -> None:
        asked = promotion.list_promotions(conn, model=MODEL)
        assert [
            (one.version, one.stage.value, one.bundle, one.requested_by, one.state, _yes(one.approvals))
            for one in asked
        ] == [
            (one.version, one.stage, one.bundle, one.by, one.state, [yes.who for yes in one.yes])
            for one in model.asks
        ]
        reviews = {one.promotion_id: one.state for one in review.list_reviews(conn, model=MODEL)}
        assert [reviews.get(one.id) for one in asked] == [one.review for one in model.asks]
        for one in asked:
            before = self.states.get(one.id, "pending")
            assert before == one.state or (before, one.state) in LATER, "a final state was left"
            self.states[one.id] = one.state


def _production_is_earned(conn: Connection, model: Reference) -> None:
    """Whoever is in Production is there by a promotion that stands, and only they have a record to be served by."""
    here = {one.number for one in model.versions.values() if one.stage == PRODUCTION and not one.deleted}
    for number, version in model.versions.items():
        if number not in here:
            with pytest.raises((NotFound, Refused), match=r"may not be served|was deleted"):
                approval_record(conn, model=MODEL, version=number)
            continue
        record, ask = approval_record(conn, model=MODEL, version=number), model.granted(number)[0]
        assert (record.bundle, record.requested_by) == (version.bundle, ask.by)
        assert record.emergency == (ask.review is not None)
        assert [who for who, _ in record.approvals] == [yes.who for yes in ask.yes]
        # A revoked version answers only while there is nothing to go back to.
        assert ask.review != "revoked" or number == model.stable
    # What is wanted, what it replaces while it comes, and what waits for its turn: nobody else.
    rolling = {model.running.version} if model.running else set()
    answering = {model.stable} if model.stable else set()
    assert here == answering | rolling | {ask.version for ask in model.due()}


def _routes_are_earned(conn: Connection, world: World, model: Reference) -> None:
    keys = world.ctx.keyring.public
    running = active_rollout(conn, MODEL)
    assert stable_version(conn, MODEL) == model.stable
    assert (running.version if running else None) == (model.running.version if model.running else None)
    current = current_routes(conn)
    if current is None:
        assert model.arms() == {}
        return
    route = open_routes(current[1], keys).models[MODEL]
    assert {arm.name: arm.version for arm in route.arms} == model.arms()
    for number, routed in route.versions.items():
        record = approval_record(conn, model=MODEL, version=int(number))
        assert verify_record(routed.approval, keys).bundle == routed.bundle == record.bundle


def _yes(approvals: Any) -> list[str]:
    return [one.reviewer for one in approvals if one.decision == "approve"]
