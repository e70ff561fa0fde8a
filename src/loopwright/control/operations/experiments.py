"""Experiments: start, show, list, stop."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.routes import Arm
from loopwright.control.context import Context
from loopwright.control.desired import deliver_due
from loopwright.control.operation import operation
from loopwright.control.signals import event_time_of
from loopwright.delivery import experiments
from loopwright.delivery import store as delivery_store
from loopwright.delivery.store import Experiment
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import NotFound, Refused
from loopwright.monitoring.experiments import RATIO_ALPHA, ArmUnits, Mean, sample_ratio, units_by_arm
from loopwright.monitoring.labels import LabelLog
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.store import arm_tally, load_spec
from loopwright.registry import versions
from loopwright.registry.approval import approval_record
from loopwright.serving.router import assign
from loopwright.stats.confidence import mean_difference, mean_sequence
from loopwright.stats.proportions import Estimate, wilson

CONFIDENCE = 0.95


@operation("experiments.start", "POST", "/models/{model}/experiment", role=Role.APPROVER)
def start(ctx: Context, model: str, variants: list[str], salt: str = "", reason: str = "") -> dict[str, Any]:
    """Split traffic between approved versions, each variant as "NAME=VERSION:SHARE%"; stable takes the rest."""
    arms = experiments.read_variants(variants)
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        return experiments.start_experiment(
            conn, model=model, variants=arms, key=ctx.key, actor=ctx.actor, now=ctx.now,
            event_time=event_time_of(conn, model, ctx.now), salt=salt, why=reason,
        ).to_json()  # fmt: skip


@operation("experiments.stop", "POST", "/models/{model}/experiment/stop", role=Role.APPROVER)
def stop(ctx: Context, model: str, reason: str = "") -> dict[str, Any]:
    """Give all traffic back to stable. What waited for it to end begins."""
    with ctx.ledger.write() as conn:
        versions.check_model(conn, model)
        ended = experiments.stop_experiment(
            conn, model, key=ctx.key, actor=ctx.actor, now=ctx.now,
            event_time=event_time_of(conn, model, ctx.now), why=reason or f"stopped by {ctx.actor.name}",
        )  # fmt: skip
        deliver_due(ctx, conn, model)
        return ended.to_json()


@operation("experiments.list", "GET", "/experiments")
def list_experiments(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """List experiments, newest first."""
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        return [one.to_json() for one in delivery_store.list_experiments(conn, model)]


@operation("experiments.show", "GET", "/models/{model}/experiment")
def show(ctx: Context, model: str, id: str | None = None) -> dict[str, Any]:
    """Show what an experiment says so far: answers and errors by arm, units, outcomes, and whether the split is sound.

    Intervals of units hold at every moment, so looking often does no harm. Without an id: the newest.
    """
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        found = delivery_store.list_experiments(conn, model, limit=1000)
        one = next((each for each in found if id in (None, each.id)), None)
        if one is None:
            raise NotFound(
                f"no experiment on {model}" + (f" is called {id}" if id else " yet"), where=model,
                next=f"loopwright experiment start {model} --variant b=VERSION:30%",
            )  # fmt: skip
        end = (one.until or event_time_of(conn, model, ctx.now)) + timedelta(microseconds=1)
        spec = load_spec(conn, model)
        sampled = spec.serving.log.sample if spec is not None else 1.0
        arms = [_arm(conn, one, arm, end) for arm in one.arms]
    units = units_by_arm(
        PredictionLog(ctx.home.predictions), LabelLog(ctx.home.labels), model=model,
        arms=tuple(arm.name for arm in one.arms), assigned=lambda unit: assign(one.salt, unit, one.arms).name,
        start=one.began, end=end, until=ctx.now,
    )  # fmt: skip
    for told in arms:
        told |= _units(units[told["arm"]], units["stable"] if told["arm"] != "stable" else None)
    return {
        **one.to_json(),
        "arms": arms,
        "confidence": CONFIDENCE,
        "sample_ratio": _ratio(one, units, sampled),
    }


def _arm(conn: Connection, one: Experiment, arm: Arm, end: datetime) -> dict[str, Any]:
    """What was answered under the arm's name; counted by the hour, the hour it began in counts whole."""
    hour = one.began.replace(minute=0, second=0, microsecond=0)
    answers, errors, _ = arm_tally(conn, one.model, arm.version, arm.name, hour, end)
    approved = True
    try:
        approval_record(conn, model=one.model, version=arm.version, back=True)
    except Refused:
        approved = False  # its units are answered by stable from then on
    return {
        "arm": arm.name, "version": arm.version, "weight": arm.weight, "approved": approved,
        "answers": answers, "errors": errors,
        "error_rate": _estimate(wilson(errors, answers, CONFIDENCE) if answers else None),
    }  # fmt: skip


def _units(own: ArmUnits, stable: ArmUnits | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "units": own.units, "crossed": own.crossed, "labelled": own.label.n, "label": _mean(own.label),
        "output": _mean(own.output),
    }  # fmt: skip
    if stable is None:
        return told
    gaps = {"label": (own.label, stable.label), "output": (own.output, stable.output)}
    return told | {
        "against_stable": {
            name: _estimate(mean_difference(_plain(one), _plain(other), confidence=CONFIDENCE))
            for name, (one, other) in gaps.items()
        }
    }


def _ratio(one: Experiment, units: dict[str, ArmUnits], sampled: float) -> dict[str, Any]:
    if sampled < 1.0:
        # Errors are kept whatever the sample: an arm that fails would seem to have more units.
        return {"p": None, "sound": None, "why": f"only {100 * sampled:g}% of rows are kept in the log"}
    p = sample_ratio(
        {arm: each.units for arm, each in units.items()}, {arm.name: arm.weight for arm in one.arms}
    )
    if p is None:
        return {"p": None, "sound": None, "why": "no units yet"}
    sound = p >= RATIO_ALPHA
    why = "" if sound else "units did not come as the weights say: find out why before reading anything else"
    return {"p": p, "sound": sound, "why": why}


def _plain(mean: Mean) -> tuple[int, float, float]:
    return mean.n, mean.value, mean.variance


def _mean(mean: Mean) -> dict[str, Any] | None:
    if mean.n == 0:
        return None
    interval = mean_sequence(*_plain(mean), confidence=CONFIDENCE)
    return _estimate(interval) or {"value": mean.value, "low": None, "high": None}


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
