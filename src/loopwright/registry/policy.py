"""What a promotion needs, and what it still lacks. Pure: the same records give the same answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, Conflict, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.registry.records import Approval, Evidence, Version

PromotionState = Literal["pending", "effective", "rejected", "withdrawn", "reverted"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How many distinct people must approve each stage, who may not, and which evidence must be there.

    The default is the strict one: it holds for every model whose project says nothing.
    """

    tier: str = "high"
    staging: int = 1
    production: int = 2
    author_may_approve: bool = False
    required_evidence: tuple[str, ...] = ("gates",)

    def __post_init__(self) -> None:
        for name, count in (("staging", self.staging), ("production", self.production)):
            if count < 0:
                raise BadInput(
                    "a negative number", where=f"policy.approvals.{name}", got=count, wanted="0 or more"
                )

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> "Policy":
        """Read the `policy` section of a project (as JSON); what it does not say keeps the strict default."""
        approvals = section.get("approvals") or {}
        strict = cls()
        return cls(
            tier=str(section.get("tier") or strict.tier),
            staging=int(approvals.get("staging", strict.staging)),
            production=int(approvals.get("production", strict.production)),
            author_may_approve=bool(section.get("author_may_approve", strict.author_may_approve)),
            required_evidence=tuple(section.get("required_evidence") or strict.required_evidence),
        )

    def approvals(self, stage: Stage) -> int:
        """How many approvals `stage` needs."""
        return {Stage.STAGING: self.staging, Stage.PRODUCTION: self.production}.get(stage, 0)

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            "tier": self.tier,
            "approvals": {"staging": self.staging, "production": self.production},
            "author_may_approve": self.author_may_approve,
            "required_evidence": list(self.required_evidence),
        }

    def looser_than(self, other: "Policy") -> tuple[str, ...]:
        """Say in which points this asks for less than `other` does; nothing when in none."""
        points = [
            f"{stage} approvals {mine} instead of {theirs}"
            for stage, mine, theirs in (
                ("staging", self.staging, other.staging), ("production", self.production, other.production),
            )
            if mine < theirs
        ]  # fmt: skip
        if self.author_may_approve and not other.author_may_approve:
            points.append("authors may approve their own work")
        dropped = sorted(set(other.required_evidence) - set(self.required_evidence))
        return (*points, *(f"no evidence of {kind}" for kind in dropped))

    def check_not_looser(self, standing: "Policy", *, actor: Actor, model: str, where: str = "") -> None:
        """Refuse that anybody but an admin puts this in the place of a stricter `standing` policy."""
        looser = () if actor.role >= Role.ADMIN else self.looser_than(standing)
        if looser:
            raise Refused(
                f"{actor.name} may not loosen the policy of {model}", where=where, got="; ".join(looser),
                wanted="the role admin", next="Ask an admin to apply it: loopwright apply",
            )  # fmt: skip

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())


@dataclass(frozen=True, slots=True)
class Promotion:
    """A request to move exactly these bytes to a stage, with the policy it was made under and what people said."""

    id: str
    model: str
    version: int
    stage: Stage
    bundle: str
    requested_by: str
    requested_at: datetime
    reason: str
    state: PromotionState
    decided_at: datetime | None
    policy: Policy
    policy_digest: str
    approvals: tuple[Approval, ...] = ()

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Who approved exactly this promotion's bytes, in order."""
        return tuple(
            a.reviewer for a in self.approvals if a.decision == "approve" and a.bundle == self.bundle
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "id": self.id, "model": self.model, "version": self.version, "stage": self.stage.value,
            "bundle": self.bundle, "requested_by": self.requested_by, "requested_at": iso(self.requested_at),
            "reason": self.reason, "state": self.state,
            "decided_at": iso(self.decided_at) if self.decided_at else None,
            "policy": self.policy.to_json(), "policy_digest": self.policy_digest,
            "approvals": [approval.to_json() for approval in self.approvals],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a version lacks for a stage, in plain words; nothing missing means satisfied."""

    missing: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    """Digests of the evidence the answer rests on."""

    @property
    def satisfied(self) -> bool:
        return not self.missing

    def __str__(self) -> str:
        return "; ".join(self.missing) or "nothing is missing"


def assess(
    version: Version, promotion: Promotion | None, evidence: Sequence[Evidence], policy: Policy, stage: Stage
) -> Assessment:
    """Say what `version` lacks to be in `stage`.

    `evidence` may hold anything: only what was recorded for exactly the version's bytes counts, the latest of a kind.
    No evidence is never a pass.
    """
    if version.bundle is None:
        return Assessment(
            (
                "a sealed bundle (it was registered by a plain MLflow client; only bytes that "
                "`loopwright run` packed, gated and sealed can be promoted)",
            )
        )
    missing: list[str] = []
    used: list[str] = []
    for kind in policy.required_evidence:
        latest = _latest(evidence, kind, version.bundle)
        if latest is None:
            missing.append(f"{kind}: no result is recorded for these bytes ({version.bundle[:12]})")
            continue
        used.append(latest.digest)
        if latest.verdict is not Verdict.PASS:
            missing.append(f"{kind}: the latest result is {latest.verdict.value} ({iso(latest.at)})")
    needed = policy.approvals(stage)
    if promotion is None:
        if needed:
            missing.append(f"a request for {stage.value} and {_people(needed)} on it")
        return Assessment(tuple(missing), tuple(used))
    if promotion.bundle != version.bundle:
        missing.append("a request for these bytes (the pending one names another bundle)")
    stale = [a for a in promotion.approvals if a.decision == "approve" and a.bundle != version.bundle]
    given = len(set(promotion.approved_by))
    if given < needed:
        text = f"{_people(needed - given)} more" if given else _people(needed)
        barred = _barred(version, promotion, policy)
        text += f" ({given} of {needed} given" + (f"; not by {' or '.join(barred)}" if barred else "") + ")"
        text += f"; {len(stale)} given for other bytes do not count" if stale else ""
        missing.append(text)
    return Assessment(tuple(missing), tuple(used))


def check_reviewer(
    reviewer: Actor, version: Version, promotion: Promotion, policy: Policy, *, reviewed: str | None
) -> None:
    """Raise unless `reviewer` may speak on `promotion`. `reviewed` is the digest they looked at, when they say so.

    Raises Refused (role, author, requester, other bytes) or Conflict (twice by one person, already decided).
    """
    where = f"{promotion.model}/{promotion.version} to {promotion.stage.value}"
    require(reviewer, Role.APPROVER, f"approve or reject {where}")
    if promotion.state != "pending":
        raise Conflict(f"the promotion is {promotion.state} already", where=where)
    if reviewer.name in {a.reviewer for a in promotion.approvals}:
        raise Refused(
            f"{reviewer.name} has spoken on this promotion already",
            where=where,
            wanted=f"another person ({_still(promotion, policy)})",
        )
    if not policy.author_may_approve and reviewer.name == version.author:
        raise Refused(
            f"{reviewer.name} is the author of this version; authors do not approve their own work",
            where=where,
            wanted=f"somebody else ({_still(promotion, policy)})",
        )
    if not policy.author_may_approve and reviewer.name == promotion.requested_by:
        raise Refused(
            f"{reviewer.name} requested this promotion; requesters do not approve their own requests",
            where=where,
            wanted=f"somebody else ({_still(promotion, policy)})",
        )
    if promotion.bundle != version.bundle or (reviewed is not None and reviewed != promotion.bundle):
        raise Refused(
            "the approval is for other bytes than the version's",
            where=where,
            got=reviewed or promotion.bundle,
            wanted=f"bundle {version.bundle}",
            next="Look at the version as it stands now, then approve again.",
        )


def _still(promotion: Promotion, policy: Policy) -> str:
    given, needed = len(set(promotion.approved_by)), policy.approvals(promotion.stage)
    return f"{given} of {needed} approvals given"


def _barred(version: Version, promotion: Promotion, policy: Policy) -> list[str]:
    if policy.author_may_approve:
        return []
    barred = [f"the author {version.author}"]
    if promotion.requested_by != version.author:
        barred.append(f"the requester {promotion.requested_by}")
    return barred


def _people(count: int) -> str:
    return "one approval" if count == 1 else f"{count} approvals by different people"


def _latest(evidence: Sequence[Evidence], kind: str, bundle: str) -> Evidence | None:
    matching = [item for item in evidence if item.kind == kind and item.bundle == bundle]
    # Of two at one moment the worse one counts: no order among them is known.
    worst = {Verdict.PASS: 0, Verdict.INCONCLUSIVE: 1, Verdict.ERROR: 2, Verdict.FAIL: 3}
    return max(matching, key=lambda item: (item.at, worst[item.verdict]), default=None)
