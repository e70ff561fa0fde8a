"""Brings traffic to where governance wants it: begins due rollouts, moves running ones."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from loopwright.bundle.depot import BundleDepot
from loopwright.control.context import Context
from loopwright.control.desired import plan_of
from loopwright.control.shadow_pairs import paired_answers
from loopwright.delivery import tick
from loopwright.delivery.evidence import smoke_test
from loopwright.delivery.plan import Plan
from loopwright.delivery.rollout import Shadow
from loopwright.delivery.shadow import agreement
from loopwright.delivery.store import Rollout
from loopwright.kernel.verdict import Verdict
from loopwright.monitoring.store import load_spec
from loopwright.registry import versions
from loopwright.registry.trust.store import approved


class RolloutController:
    """Keeps in mind what it has seen, so that a round without news reads next to nothing."""

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""

        def plan_for(model: str) -> Plan:
            with ctx.ledger.read() as conn:
                return plan_of(conn, model)

        def smoke(rollout: Rollout) -> Verdict:
            with ctx.ledger.read() as conn:
                version = versions.get_version(conn, model=rollout.model, version=rollout.version)
                trusted = approved(conn)
            if version.bundle is None:
                return Verdict.ERROR
            path = BundleDepot(ctx.home.bundles).path(version.bundle)
            return smoke_test(path, ctx.keyring.public, trusted)

        def compare(rollout: Rollout, until: datetime) -> Mapping[str, Any] | None:
            if not isinstance(rollout.state, Shadow) or rollout.baseline is None:
                return None
            with ctx.ledger.read() as conn:
                spec = load_spec(conn, rollout.model)
            stable, shadow = paired_answers(
                ctx.home.predictions,
                rollout.model,
                rollout.baseline,
                rollout.version,
                rollout.state.since,
                until,
            )
            return agreement(stable, shadow, task=spec.task if spec else "regression")

        happened = tick.tick(
            ctx.ledger,
            key=ctx.key,
            now=ctx.now,
            plan_for=plan_for,
            smoke=smoke,
            agreement=compare,
            memory=self._memory,
        )
        return [one.to_json() for one in happened]
