"""What a version still lacks for a stage, requirement by requirement. Pure: the same records give the same answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import format_duration, iso
from loopwright.kernel.errors import Conflict, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.registry.documents.sections import is_filled, title_of
from loopwright.registry.freeze import frozen
from loopwright.registry.policy import Policy, Promotion, Wanted
from loopwright.registry.records import Approval, Evidence, Version

CLOCKS_DIFFER = timedelta(minutes=5)
"""How far after now something may be dated before it is held against it: clocks of machines differ a little."""


class Cost(IntEnum):
    """What a step takes, from cheap to dear."""

    COMMAND = 1
    PERSON = 2
    DOCUMENT = 3
    WAITING = 4
    TRAINING = 5


_TAKES = {
    Cost.COMMAND: "a command", Cost.PERSON: "a person's word", Cost.DOCUMENT: "writing",
    Cost.WAITING: "waiting", Cost.TRAINING: "a training run",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing a stage asks.

    what: what is asked. found: what there is. lack: what is missing, as a sentence's part, "" when nothing is. next:
    the command that helps. cost: what that takes.
    """

    kind: str
    what: str
    found: str
    lack: str = ""
    next: str = ""
    cost: Cost = Cost.COMMAND

    @property
    def met(self) -> bool:
        return not self.lack

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "kind": self.kind, "met": self.met, "what": self.what, "found": self.found, "lack": self.lack,
            "next": self.next if self.lack else "", "cost": _TAKES[self.cost] if self.lack else "",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overdue:
    """A version whose glass was broken and whose review is late."""

    version: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a stage asks of a version and how far it is there; nothing missing means satisfied."""

    requirements: tuple[Requirement, ...]
    evidence: tuple[str, ...] = ()
    """Digests of the evidence the answer rests on."""
    policy_digest: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """What is missing, in plain words."""
        return tuple(each.lack for each in self.requirements if each.lack)

    @property
    def satisfied(self) -> bool:
        return not self.missing

    @property
    def cheapest(self) -> Requirement | None:
        """The missing requirement whose next step takes least."""
        steps = [each for each in self.requirements if each.lack and each.next]
        return min(steps, key=lambda each: each.cost, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the requirements, what is missing in words, and the next cheapest step."""
        cheapest = self.cheapest
        return {
            "satisfied": self.satisfied, "missing": list(self.missing),
            "requirements": [each.to_json() for each in self.requirements],
            "next": cheapest.to_json() if cheapest else None, "policy_digest": self.policy_digest,
        }  # fmt: skip

    def __str__(self) -> str:
        return "; ".join(self.missing) or "nothing is missing"


def assess(
    version: Version,
    promotion: Promotion | None,
    evidence: Sequence[Evidence],
    policy: Policy,
    stage: Stage,
    *,
    now: datetime,
    overdue: Overdue | None = None,
) -> Assessment:
    """Say what `version` lacks to be in `stage` at `now`.

    `evidence` may hold anything: only what was recorded for exactly the version's bytes counts, the latest of a kind.
    No evidence is never a pass, and neither is what is dated after now.
    """
    if version.bundle is None:
        return Assessment((_no_seal(version),), policy_digest=policy.digest)
    asked = [Requirement("seal", "a sealed bundle", version.bundle[:12])]
    used: list[str] = []
    for wanted in policy.rules(stage).evidence:
        latest = _latest(evidence, wanted.kind, version.bundle)
        used += [latest.digest] if latest else []
        asked.append(_of_evidence(version, wanted, latest, now))
    asked += _of_people(version, promotion, policy, stage, now)
    if (ice := frozen(policy.freeze, stage, now)) is not None:
        why = f" ({ice.why})" if ice.why else ""
        asked.append(Requirement(
            "freeze", "no freeze", f"frozen until {iso(ice.until)}{why}", f"frozen until {iso(ice.until)}{why}",
            "It moves by itself when the freeze is over.", Cost.WAITING,
        ))  # fmt: skip
    elif policy.freeze:
        asked.append(Requirement("freeze", "no freeze", "none now"))
    if overdue is not None:
        asked.append(_of_review(version.model, overdue))
    return Assessment(tuple(asked), tuple(used), policy.digest)


def counting(
    version: Version, promotion: Promotion, policy: Policy, now: datetime
) -> tuple[tuple[Approval, ...], tuple[str, ...]]:
    """The approvals of `promotion` that count at `now`, and why each other one does not."""
    count: dict[str, Approval] = {}
    idle: list[tuple[str, str]] = []
    stale = 0
    for approval in promotion.approvals:
        if approval.decision != "approve":
            continue
        if approval.bundle != version.bundle:
            stale += 1
        elif why := _idle(approval, version, promotion, policy, now):
            idle.append((approval.reviewer, why))
        else:
            count[approval.reviewer] = approval
    # Who renewed a yes is not told of the old one.
    told = tuple(dict.fromkeys(why for reviewer, why in idle if reviewer not in count))
    other = (f"{stale} given for other bytes do not count",) if stale else ()
    return tuple(count.values()), (*other, *told)


def check_reviewer(
    reviewer: Actor,
    version: Version,
    promotion: Promotion,
    policy: Policy,
    *,
    reviewed: str | None,
    now: datetime,
    role: Role | None = None,
) -> None:
    """Raise unless `reviewer` may speak on `promotion`. `reviewed` is the digest they looked at, when they say so.

    `role` is the one they hold on the model; by default, everywhere. Raises Refused (role, service account, author,
    requester, other bytes, twice by one person) or Conflict (decided already). Whose yes has expired may renew it.
    """
    where = f"{promotion.model}/{promotion.version} to {promotion.stage.value}"
    given, _ = counting(version, promotion, policy, now)
    still = f"{len(given)} of {policy.approvals(promotion.stage)} approvals given"
    needed = policy.rules(promotion.stage).reviewer
    held = reviewer.role_on(model=promotion.model) if role is None else role
    if held < needed:
        raise Refused(
            f"{reviewer.name} may not approve or reject {where}", got=f"role {held.name.lower()}",
            wanted=f"role {needed.name.lower()} or above",
            next=f"A role would not help: {reviewer.name} is the {out[0]}, and another person has to review it."
            if (out := [what for what, name in barred(version, promotion, policy) if name == reviewer.name])
            else f"An admin can change it: loopwright user set {reviewer.name} --role {needed.name.lower()}",
        )  # fmt: skip
    if reviewer.service:
        raise Refused(
            f"{reviewer.name} is a service account; machines review nothing", where=where,
            wanted=f"a person ({still})",
        )  # fmt: skip
    if promotion.state != "pending":
        raise Conflict(f"the promotion is {promotion.state} already", where=where)
    if reviewer.name in {approval.reviewer for approval in given}:
        raise Refused(
            f"{reviewer.name} has spoken on this promotion already",
            where=where,
            wanted=f"another person ({still})",
        )
    if not policy.author_may_approve and reviewer.name == version.author:
        raise Refused(
            f"{reviewer.name} is the author of this version; authors do not approve their own work",
            where=where,
            wanted=f"somebody else ({still})",
        )
    if not policy.requester_may_approve and reviewer.name == promotion.requested_by:
        raise Refused(
            f"{reviewer.name} requested this promotion; requesters do not approve their own requests",
            where=where,
            wanted=f"somebody else ({still})",
        )
    if promotion.bundle != version.bundle or (reviewed is not None and reviewed != promotion.bundle):
        raise Refused(
            "the approval is for other bytes than the version's",
            where=where,
            got=reviewed or promotion.bundle,
            wanted=f"bundle {version.bundle}",
            next="Look at the version as it stands now, then approve again.",
        )


def barred(version: Version, promotion: Promotion, policy: Policy) -> tuple[tuple[str, str], ...]:
    """Who may not review: (what they are, name), the author before the requester."""
    out = [] if policy.author_may_approve else [("author", version.author)]
    if not policy.requester_may_approve and promotion.requested_by not in {name for _, name in out}:
        out.append(("requester", promotion.requested_by))
    return tuple(out)


def _no_seal(version: Version) -> Requirement:
    lack = (
        "a sealed bundle (it was registered by a plain MLflow client; only bytes that "
        "`loopwright run` packed, gated and sealed can be promoted)"
    )
    return Requirement("seal", "a sealed bundle", "none", lack, "loopwright run DIR", Cost.TRAINING)


def _of_evidence(version: Version, wanted: Wanted, latest: Evidence | None, now: datetime) -> Requirement:
    kind = wanted.kind
    what = kind if wanted.max_age is None else f"{kind}, at most {format_duration(wanted.max_age)} old"
    if wanted.sections:
        what += f" with {', '.join(title_of(name) for name in wanted.sections)}"
    if latest is None:
        found, lack = "none", f"{kind}: no result is recorded for these bytes ({str(version.bundle)[:12]})"
    else:
        found = f"{latest.verdict.value}, {iso(latest.at)}"
        lack = _fault(version, wanted, latest, now)
    step, cost = _remedy(version, kind)
    return Requirement(kind, what, found, lack, step, cost)


def _fault(version: Version, wanted: Wanted, latest: Evidence, now: datetime) -> str:
    """What is wrong with the latest result of a kind; "" when nothing is."""
    kind, age = wanted.kind, max(now, latest.passed or now) - latest.at
    measured_on = latest.payload.get("snapshot")
    written = latest.payload.get("sections")
    texts = written if isinstance(written, dict) else {}
    empty = [title_of(name) for name in wanted.sections if not is_filled(str(texts.get(name) or ""))]
    if empty:
        return f"{kind}: not filled: {', '.join(empty)}"
    if latest.verdict is not Verdict.PASS:
        return f"{kind}: the latest result is {latest.verdict.value} ({iso(latest.at)})"
    if latest.at - now > CLOCKS_DIFFER:
        return f"{kind}: the latest result is dated {iso(latest.at)}, after now ({iso(now)}); was a clock set back?"
    if wanted.max_age is not None and age > wanted.max_age:
        return (
            f"{kind}: the latest result is of {iso(latest.at)}, older than {format_duration(wanted.max_age)}"
        )
    if wanted.snapshot == "version" and measured_on is not None and measured_on != version.snapshot:
        return f"{kind}: measured on snapshot {str(measured_on)[:12]}, not on the version's own"
    return ""


def _remedy(version: Version, kind: str) -> tuple[str, Cost]:
    about = f"{version.model} {version.version}"
    if kind == "card":
        return f"loopwright models document {about} card.md", Cost.DOCUMENT
    if kind == "fairness":
        return "Say `gates.fairness` in loop.yaml, then: loopwright run DIR", Cost.TRAINING
    return "loopwright run DIR", Cost.TRAINING


def _of_people(
    version: Version, promotion: Promotion | None, policy: Policy, stage: Stage, now: datetime
) -> Iterable[Requirement]:
    needed = policy.approvals(stage)
    about = f"{version.model} {version.version}"
    if promotion is None:
        if needed:
            lack = f"a request for {stage.value} and {_people(needed)} on it"
            ask = f"loopwright promote {about} --to {stage.value.lower()}"
            yield Requirement("request", f"a request and {_people(needed)}", "none", lack, ask)
        return
    if promotion.bundle != version.bundle:
        lack = "a request for these bytes (the pending one names another bundle)"
        ask = f"loopwright withdraw {about}"
        yield Requirement("request", "a request for these bytes", promotion.bundle[:12], lack, ask)
    given, idle = counting(version, promotion, policy, now)
    found = f"{len(given)} given" + (f": {', '.join(a.reviewer for a in given)}" if given else "")
    lack = ""
    if len(given) < needed:
        out = [f"the {what} {name}" for what, name in barred(version, promotion, policy)]
        lack = f"{_people(needed - len(given))} more" if given else _people(needed)
        lack += f" ({len(given)} of {needed} given" + (f"; not by {' or '.join(out)}" if out else "") + ")"
        lack += "".join(f"; {why}" for why in idle)
    if needed:
        ask = f"loopwright approve {about}"
        role = policy.rules(stage).reviewer.name.lower()
        yield Requirement("approvals", f"{_people(needed)}, role {role}", found, lack, ask, Cost.PERSON)


def _of_review(model: str, overdue: Overdue) -> Requirement:
    lack = f"the review of version {overdue.version}, for which the glass was broken; it was due {iso(overdue.since)}"
    step = f"loopwright review {model} {overdue.version} --uphold --comment TEXT (or --revoke)"
    return Requirement("review", "no review overdue", f"version {overdue.version}", lack, step, Cost.PERSON)


def _idle(approval: Approval, version: Version, promotion: Promotion, policy: Policy, now: datetime) -> str:
    """Why a yes for the right bytes does not count; "" when it does."""
    whose, needed = f"{approval.reviewer}'s", policy.rules(promotion.stage).reviewer
    if approval.at - now > CLOCKS_DIFFER:
        return f"{whose} is dated {iso(approval.at)}, after now: was a clock set back?"
    age = max(now, approval.passed or now) - approval.at
    if policy.approvals_expire is not None and age > policy.approvals_expire:
        return f"{whose} of {iso(approval.at)} expired after {format_duration(policy.approvals_expire)}"
    if approval.role < needed:
        return f"{whose} was given as {approval.role.name.lower()}, not as {needed.name.lower()}"
    for what, name in barred(version, promotion, policy):
        if name == approval.reviewer:
            return f"{whose} does not count: {name} is the {what}"
    return ""


def _people(count: int) -> str:
    return "one approval" if count == 1 else f"{count} approvals by different people"


def _latest(evidence: Sequence[Evidence], kind: str, bundle: str) -> Evidence | None:
    matching = [item for item in evidence if item.kind == kind and item.bundle == bundle]
    # The audit log's order, not the clocks'. Of two whose order is not known the worse one counts.
    worst = {Verdict.PASS: 0, Verdict.INCONCLUSIVE: 1, Verdict.ERROR: 2, Verdict.FAIL: 3}
    return max(matching, key=lambda item: (item.seq, item.at, worst[item.verdict]), default=None)
