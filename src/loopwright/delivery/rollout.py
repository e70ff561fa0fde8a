"""Decides where a rollout goes next. Pure: it knows no database and no clock; holds run in event time.

begin ─┬─► Shadow ─► Canary(1 %) ─► Canary(5 %) ─► … ─► Done        strategy canary
       ├─► Shadow ─► Smoke ─► Canary(100 %) ─► Done                  strategy blue_green
       ├─► Shadow (until a person promotes or aborts)                strategy shadow
       └─► Done                                                      strategy instant, or a first version
any of them ─► RolledBack (the judge says FAIL) or Aborted (a person says so); Paused wraps Shadow, Smoke,
Canary
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from loopwright.delivery.judge import ArmCounts, Judgement, judge
from loopwright.delivery.plan import Plan, Require, Step, Strategy
from loopwright.kernel.clock import iso, parse_time
from loopwright.kernel.errors import Conflict
from loopwright.kernel.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Shadow:
    """Requests are copied to the candidate; stable answers all of them."""

    since: datetime


@dataclass(frozen=True, slots=True)
class Smoke:
    """Green is loaded and waits for its smoke test; no traffic yet."""

    since: datetime


@dataclass(frozen=True, slots=True)
class Canary:
    """The candidate answers `weight` of the requests.

    `began` is when its first step began (counts are read from there), `since` when this step did, and `seen`
    how many requests it had answered by then.
    """

    step: int
    weight: float
    since: datetime
    began: datetime
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Paused:
    """A person stopped progress at event time `at`. Harm still rolls back."""

    inner: "Shadow | Smoke | Canary"
    at: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The candidate is the stable version."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    why: str


@dataclass(frozen=True, slots=True)
class Aborted:
    why: str


Moving = Shadow | Smoke | Canary
Active = Moving | Paused
Ended = Done | RolledBack | Aborted
State = Active | Ended


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a step is decided on; recorded by digest with the decision.

    baseline   the stable arm since the current phase (shadow, or all canary steps) began
    candidate  the shadow arm in Shadow, the canary arm in Canary, over the same span
    smoke      result of the golden smoke on the candidate's bundle; None = not run
    agreement  figures of stable's and shadow's answers to the same requests (`delivery.shadow`), for people
    """

    baseline: ArmCounts = field(default_factory=ArmCounts)
    candidate: ArmCounts = field(default_factory=ArmCounts)
    smoke: Verdict | None = None
    agreement: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline.to_json(),
            "candidate": self.candidate.to_json(),
            "smoke": self.smoke.value if self.smoke else None,
            "agreement": self.agreement,
        }


@dataclass(frozen=True, slots=True)
class Move:
    """Where the rollout is now and the sentence a person will read; `changed` is False when it holds.

    `judgement` is None only for a rollout that had ended before.
    """

    state: State
    why: str
    judgement: Judgement | None
    changed: bool


def begin(plan: Plan, *, baseline: int | None, event_time: datetime) -> State:
    """The first state. Without a stable version there is nothing to protect or to compare with: Done."""
    if baseline is None or plan.strategy is Strategy.INSTANT:
        return Done()
    if plan.shadow_first > timedelta() or plan.strategy is Strategy.SHADOW:
        return Shadow(event_time)
    return _after_shadow(plan, event_time)


def advance(plan: Plan, state: State, evidence: Evidence, event_time: datetime) -> Move:
    """Decide on `evidence` as of `event_time`. At most one step a call; the same arguments give the same
    move.

    FAIL always rolls back, also when paused. INCONCLUSIVE never moves a step that requires PASS. Raises
    Conflict when the rollout has ended.
    """
    if isinstance(state, Ended):
        raise Conflict("this rollout has ended", got=describe(state), next="Promote again to start another.")
    state = _anchored(state, event_time)
    judgement = _judge(plan, state, evidence)
    if judgement.verdict is Verdict.FAIL:
        return Move(RolledBack(judgement.why), f"rolled back: {judgement.why}", judgement, changed=True)
    if isinstance(state, Paused):
        return Move(state, "paused by a person", judgement, changed=False)
    hindrance = _hindrance(plan, state, evidence, judgement, event_time)
    if hindrance:
        return Move(state, hindrance, judgement, changed=False)
    after = _next(plan, state, evidence, event_time)
    return Move(
        after, f"{describe(state)} held: {judgement.why}; now {describe(after)}", judgement, changed=True
    )


def pause(state: State, event_time: datetime) -> Paused:
    """Stop progress, keep traffic as it is. Raises Conflict when ended or paused already."""
    if not isinstance(state, Moving):
        raise Conflict("this rollout cannot be paused", got=describe(state), wanted="a moving one")
    return Paused(state, event_time)


def resume(state: State, event_time: datetime) -> Moving:
    """Go on; the time paused does not count towards the hold. Raises Conflict when it is not paused."""
    if not isinstance(state, Paused):
        raise Conflict("this rollout is not paused", got=describe(state))
    idle = max(event_time - state.at, timedelta())
    return replace(state.inner, since=state.inner.since + idle)


def abort(state: State, why: str) -> Aborted:
    """All traffic back to the baseline. Raises Conflict when it has ended."""
    if isinstance(state, Ended):
        raise Conflict(
            "this rollout has ended",
            got=describe(state),
            next="To bring the version before back: loopwright rollback MODEL",
        )
    return Aborted(why)


def promote(plan: Plan, state: State, evidence: Evidence) -> tuple[Done, Judgement]:
    """Skip the remaining steps on a person's word; raises Conflict when the judge says FAIL."""
    if isinstance(state, Ended):
        raise Conflict("this rollout has ended", got=describe(state))
    judgement = _judge(plan, state, evidence)
    if judgement.verdict is Verdict.FAIL:
        raise Conflict(
            "the judge says FAIL",
            got=judgement.why,
            wanted="a candidate within limits",
            next="Let it roll back, repair it and promote a new version.",
        )
    return Done(), judgement


def canary_weight(state: State) -> float:
    """Share of requests the candidate answers."""
    match state:
        case Canary():
            return state.weight
        case Paused():
            return canary_weight(state.inner)
        case Done():
            return 1.0
        case _:
            return 0.0


def describe(state: State) -> str:
    """Two or three words for a table: "shadow", "canary 5 %", "paused at canary 5 %", "complete"."""
    match state:
        case Shadow():
            return "shadow"
        case Smoke():
            return "smoke test"
        case Canary():
            return f"canary {100 * state.weight:g} %"
        case Paused():
            return f"paused at {describe(state.inner)}"
        case Done():
            return "complete"
        case RolledBack():
            return "rolled back"
        case Aborted():
            return "aborted"


def state_to_json(state: State) -> dict[str, Any]:
    match state:
        case Shadow() | Smoke():
            return {"kind": type(state).__name__, "since": iso(state.since)}
        case Canary():
            return {
                "kind": "Canary",
                "step": state.step,
                "weight": state.weight,
                "since": iso(state.since),
                "began": iso(state.began),
                "seen": state.seen,
            }
        case Paused():
            return {"kind": "Paused", "at": iso(state.at), "inner": state_to_json(state.inner)}
        case Done():
            return {"kind": "Done"}
        case RolledBack() | Aborted():
            return {"kind": type(state).__name__, "why": state.why}


def state_from_json(data: dict[str, Any]) -> State:
    """The inverse of `state_to_json`."""
    match data["kind"]:
        case "Shadow":
            return Shadow(parse_time(data["since"]))
        case "Smoke":
            return Smoke(parse_time(data["since"]))
        case "Canary":
            return Canary(
                data["step"],
                data["weight"],
                parse_time(data["since"]),
                parse_time(data["began"]),
                data["seen"],
            )
        case "Paused":
            inner = state_from_json(data["inner"])
            assert isinstance(inner, Moving)
            return Paused(inner, parse_time(data["at"]))
        case "RolledBack":
            return RolledBack(data["why"])
        case "Aborted":
            return Aborted(data["why"])
        case _:
            return Done()


def _anchored(state: Active, event_time: datetime) -> Active:
    """A rollout begun before any traffic is anchored to the wall clock; a replay may lie years before."""
    if isinstance(state, Paused):
        return (
            state
            if state.at <= event_time
            else replace(state, at=event_time, inner=_back(state.inner, event_time))
        )
    return _back(state, event_time)


def _back(state: Moving, event_time: datetime) -> Moving:
    if state.since <= event_time:
        return state
    if isinstance(state, Canary):
        return replace(state, since=event_time, began=min(state.began, event_time))
    return replace(state, since=event_time)


def _after_shadow(plan: Plan, event_time: datetime) -> Moving:
    if plan.strategy is Strategy.BLUE_GREEN:
        return Smoke(event_time)
    return Canary(0, plan.steps[0].weight, since=event_time, began=event_time)


def _judge(plan: Plan, state: Active, evidence: Evidence) -> Judgement:
    at = state.inner if isinstance(state, Paused) else state
    if not isinstance(at, Smoke):
        return judge(evidence.baseline, evidence.candidate, plan.limits, plan.alpha)
    if evidence.smoke is None:
        return Judgement(Verdict.INCONCLUSIVE, ("the smoke test has not run",), {})
    passed = evidence.smoke is Verdict.PASS
    verdict = Verdict.PASS if passed else Verdict.FAIL
    return Judgement(
        verdict, (f"golden smoke test: {evidence.smoke.value}",), {"smoke": evidence.smoke.value}
    )


def _hindrance(
    plan: Plan, state: Moving, evidence: Evidence, judgement: Judgement, event_time: datetime
) -> str:
    """Why the rollout must stay where it is, or ""."""
    if isinstance(state, Smoke):
        return "" if judgement.verdict is Verdict.PASS else judgement.why
    step = _step(plan, state)
    held = max(event_time - state.since, timedelta())
    if held < step.hold:
        # Until when, not how long still: a sentence that stands still need not be written twice a second.
        return f"{describe(state)}: holding until event time {iso(state.since + step.hold)}"
    seen = evidence.candidate.n - (state.seen if isinstance(state, Canary) else 0)
    if seen < plan.min_requests:
        return f"{describe(state)}: {seen} of the {plan.min_requests} requests it must see"
    if step.require is Require.PASS and judgement.verdict is not Verdict.PASS:
        return f"{describe(state)}: needs PASS, is {judgement.verdict.value} ({judgement.why})"
    if isinstance(state, Shadow) and plan.strategy is Strategy.SHADOW:
        return "shadow is over and showed no harm: promote or abort it"
    return ""


def _step(plan: Plan, state: Shadow | Canary) -> Step:
    if isinstance(state, Shadow):
        return Step(1.0, plan.shadow_first, Require.NO_HARM)
    return plan.steps[state.step]


def _next(plan: Plan, state: Moving, evidence: Evidence, event_time: datetime) -> State:
    if isinstance(state, Shadow):
        return _after_shadow(plan, event_time)
    if isinstance(state, Canary):
        index, began, seen = state.step + 1, state.began, evidence.candidate.n
    else:
        index, began, seen = 0, event_time, 0
    if index >= len(plan.steps):
        return Done()
    step = plan.steps[index]
    if step.weight == 1.0 and not step.hold:
        return Done()
    return Canary(index, step.weight, since=event_time, began=began, seen=seen)
