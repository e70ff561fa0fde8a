"""What a policy asks: approvals, evidence, documents, freezes, the emergency path. Pure.

Policies are compared and merged point by point; every point has an order from loose to strict.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from loopwright.kernel.actor import Role
from loopwright.kernel.clock import format_duration, iso, parse_duration
from loopwright.kernel.digest import canonical_json, digest_json
from loopwright.kernel.errors import BadInput
from loopwright.kernel.stage import Stage
from loopwright.project.policy import TIERS
from loopwright.registry.freeze import Window, window_of
from loopwright.registry.records import Approval

PromotionState = Literal["pending", "effective", "rejected", "withdrawn", "reverted"]
Document = Mapping[str, Any]
NEVER = "never"
STAGES = ("staging", "production")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Evidence of one kind: how fresh, on which snapshot, and, for the card, which sections it must have."""

    kind: str
    max_age: timedelta | None = None
    snapshot: Literal["version", "any"] = "any"
    sections: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the kind, which is the key it stands under."""
        return {
            "max_age": _lifetime(self.max_age), "snapshot": self.snapshot, "sections": sorted(self.sections),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """What one stage asks. `reviewer` is the least role whose word counts."""

    approvals: int
    evidence: tuple[Wanted, ...] = (Wanted("gates"),)
    reviewer: Role = Role.APPROVER


@dataclass(frozen=True, slots=True)
class Emergency:
    """Who may break the glass, how soon a review must follow, and whether that passes over gates that failed."""

    allowed: bool = True
    role: Role = Role.ADMIN
    review_within: timedelta = timedelta(days=3)
    failed_gates: bool = False


_QUARTER = timedelta(days=90)
_CARD = ("intended_use", "limitations", "risks", "training_data")
_NOTHING = Rules(0, ())


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a model. The default is the strict one, tier high: it holds where nobody said anything.

    approvals_expire: how long a yes counts, None for ever. retain: how long versions and what they rest on are kept.
    """

    tier: str = "high"
    staging: Rules = Rules(1, (Wanted("gates", _QUARTER, "version"),))
    production: Rules = Rules(
        2,
        (
            Wanted("card", sections=_CARD), Wanted("explainability", _QUARTER, "version"),
            Wanted("fairness", _QUARTER, "version"), Wanted("gates", _QUARTER, "version"),
        ),
    )  # fmt: skip
    author_may_approve: bool = False
    requester_may_approve: bool = False
    approvals_expire: timedelta | None = timedelta(days=14)
    freeze: tuple[Window, ...] = ()
    emergency: Emergency = Emergency()
    retain: timedelta = timedelta(days=365.25 * 7)

    def __post_init__(self) -> None:
        for stage in STAGES:
            if (count := getattr(self, stage).approvals) < 0:
                raise BadInput(
                    "a negative number", where=f"policy.approvals.{stage}", got=count, wanted="0 or more"
                )

    def rules(self, stage: Stage) -> Rules:
        """What `stage` asks; the other stages ask for nothing."""
        return {Stage.STAGING: self.staging, Stage.PRODUCTION: self.production}.get(stage, _NOTHING)

    def approvals(self, stage: Stage) -> int:
        """How many approvals `stage` needs."""
        return self.rules(stage).approvals

    @classmethod
    def from_json(cls, document: Document) -> "Policy":
        """Read what `to_json` wrote; what is not said keeps the strict default."""
        strict, emergency = cls(), document.get("emergency") or {}
        approvals, reviewers = document.get("approvals") or {}, document.get("reviewer") or {}

        def rules(stage: str, default: Rules) -> Rules:
            asked = (document.get("evidence") or {}).get(stage)
            evidence = default.evidence if asked is None else tuple(
                _wanted(kind, asked[kind]) for kind in sorted(asked)
            )  # fmt: skip
            role = Role.parse(str(reviewers.get(stage) or "approver"))
            return Rules(int(approvals.get(stage, default.approvals)), evidence, role)

        return cls(
            tier=str(document.get("tier") or strict.tier),
            staging=rules("staging", strict.staging),
            production=rules("production", strict.production),
            author_may_approve=bool(document.get("author_may_approve", False)),
            requester_may_approve=bool(document.get("requester_may_approve", False)),
            approvals_expire=_duration(document.get("approvals_expire"), strict.approvals_expire),
            freeze=tuple(window_of(item) for item in _sorted(document.get("freeze") or ())),
            emergency=Emergency(
                bool(emergency.get("allowed", True)), Role.parse(str(emergency.get("role") or "admin")),
                _duration(emergency.get("review_within"), None) or strict.emergency.review_within,
                bool(emergency.get("failed_gates", False)),
            ),
            retain=_duration(document.get("retain"), None) or strict.retain,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The document in its full form, as `loopwright policy show --json` prints it."""
        stages = {stage: getattr(self, stage) for stage in STAGES}
        return {
            "tier": self.tier,
            "approvals": {stage: rules.approvals for stage, rules in stages.items()},
            "reviewer": {stage: rules.reviewer.name.lower() for stage, rules in stages.items()},
            "author_may_approve": self.author_may_approve,
            "requester_may_approve": self.requester_may_approve,
            "evidence": {
                stage: {wanted.kind: wanted.to_json() for wanted in rules.evidence} for stage, rules in stages.items()
            },
            "approvals_expire": _lifetime(self.approvals_expire),
            "freeze": _sorted(window.to_json() for window in self.freeze),
            "emergency": {
                "allowed": self.emergency.allowed, "role": self.emergency.role.name.lower(),
                "review_within": format_duration(self.emergency.review_within),
                "failed_gates": self.emergency.failed_gates,
            },
            "retain": format_duration(self.retain),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())

    def looser_than(self, other: "Policy") -> tuple[str, ...]:
        """Say in which points this asks for less than `other` does; nothing when in none."""
        mine, theirs = self.to_json(), other.to_json()
        points = [
            point.tell(_at(mine, path), _at(theirs, path))
            for path, point in POINTS.items()
            if point.rank(_at(mine, path)) < point.rank(_at(theirs, path))
        ]
        for stage in STAGES:
            points += _looser_evidence(stage, mine["evidence"][stage], theirs["evidence"][stage])
        dropped = [item for item in theirs["freeze"] if item not in mine["freeze"]]
        return (*points, *(f"no freeze from {item['from']} until {item['until']}" for item in dropped))

    def stricter(self, other: "Policy") -> "Policy":
        """Ask in every point what the stricter of the two asks."""
        mine, theirs = self.to_json(), other.to_json()
        for path, point in POINTS.items():
            if point.rank(_at(theirs, path)) > point.rank(_at(mine, path)):
                _put(mine, path, _at(theirs, path))
        return _joined(mine, theirs)

    def within(self, section: Document, waived: Sequence[str] = ()) -> "Policy":
        """This, a tier's document, with what a project's `policy:` section says.

        A section only tightens, but for the points that are `waived` ("approvals.production"). Evidence and freezes
        are added to those of the document and never taken away.
        """
        mine = self.to_json()
        for path, point in POINTS.items():
            said = _at(section, path)
            if said is None or path == ("tier",):
                continue
            if point.rank(said) > point.rank(_at(mine, path)) or ".".join(path) in waived:
                _put(mine, path, said)
        return _joined(mine, section)

    def replaced_by(self, document: Document) -> "Policy":
        """This with all that `document` says in its place: how a tier's new document is made from the built-in one."""
        mine = self.to_json()
        for path in POINTS:
            if (said := _at(document, path)) is not None:
                _put(mine, path, said)
        for stage in STAGES:
            if (asked := _at(document, ("evidence", stage))) is not None:
                mine["evidence"][stage] = asked
        if document.get("freeze") is not None:
            mine["freeze"] = document["freeze"]
        return Policy.from_json(mine)

    def loosened_by(self, section: Document) -> tuple[str, ...]:
        """The points in which a project's section asks for less than this document: what an admin may waive."""
        mine = self.to_json()
        return tuple(
            ".".join(path)
            for path, point in POINTS.items()
            if path != ("tier",) and (said := _at(section, path)) is not None
            if point.rank(said) < point.rank(_at(mine, path))
        )


@lru_cache(maxsize=512)
def read_policy(text: str) -> Policy:
    """What `to_json` wrote, as JSON text. Remembered: thousands of promotions share a handful of policies."""
    return Policy.from_json(json.loads(text))


@dataclass(frozen=True, slots=True)
class Promotion:
    """A request to move exactly these bytes to a stage, with the policy it was made under and what people said.

    `policy` is what was in force at the request; once it is decided, the one it was decided under. `emergency` is why
    the glass was broken. `seq` and `decided_seq` are the audit rows of the request and the decision: they order
    promotions, for clocks may be set back.
    """

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
    emergency: str | None = None
    seq: int = 0
    decided_seq: int | None = None

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Who approved exactly this promotion's bytes, in order, each once; whether it still counts is `assess`'s."""
        said = (a.reviewer for a in self.approvals if a.decision == "approve" and a.bundle == self.bundle)
        return tuple(dict.fromkeys(said))

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "id": self.id, "model": self.model, "version": self.version, "stage": self.stage.value,
            "bundle": self.bundle, "requested_by": self.requested_by, "requested_at": iso(self.requested_at),
            "reason": self.reason, "state": self.state,
            "decided_at": iso(self.decided_at) if self.decided_at else None,
            "policy": self.policy.to_json(), "policy_digest": self.policy_digest, "emergency": self.emergency,
            "approvals": [approval.to_json() for approval in self.approvals],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One thing a policy says: `rank` orders its values from loose to strict, `tell` says what became looser."""

    rank: Callable[[Any], float]
    tell: Callable[[Any, Any], str]


def _counted(what: str) -> Point:
    return Point(float, lambda mine, theirs: f"{what} {mine} instead of {theirs}")


def _role(what: str) -> Point:
    return Point(
        lambda name: float(Role.parse(name)), lambda mine, theirs: f"{what} {mine} instead of {theirs}"
    )


def _permission(what: str) -> Point:
    return Point(lambda allowed: float(not allowed), lambda _mine, _theirs: what)


def _length(what: str, *, shorter_is_stricter: bool) -> Point:
    sign = -1.0 if shorter_is_stricter else 1.0

    def rank(text: str) -> float:
        return sign * (float("inf") if text == NEVER else parse_duration(text).total_seconds())

    return Point(rank, lambda mine, theirs: f"{what} {mine} instead of {theirs}")


POINTS: dict[tuple[str, ...], Point] = {
    ("tier",): Point(lambda tier: float(TIERS.index(tier)), lambda mine, theirs: f"tier {mine} instead of {theirs}"),
    ("approvals", "staging"): _counted("staging approvals"),
    ("approvals", "production"): _counted("production approvals"),
    ("reviewer", "staging"): _role("reviewers for staging: role"),
    ("reviewer", "production"): _role("reviewers for production: role"),
    ("author_may_approve",): _permission("authors may approve their own work"),
    ("requester_may_approve",): _permission("requesters may approve their own requests"),
    ("approvals_expire",): _length("approvals expire after", shorter_is_stricter=True),
    ("emergency", "allowed"): _permission("the glass may be broken"),
    ("emergency", "role"): _role("who may break the glass: role"),
    ("emergency", "review_within"): _length("review of an emergency within", shorter_is_stricter=True),
    ("emergency", "failed_gates"): _permission("an emergency passes over failed gates"),
    ("retain",): _length("kept for", shorter_is_stricter=False),
}  # fmt: skip
"""What is compared value by value. Evidence and freezes are sets, compared and joined by their items."""

_AGE = _length("", shorter_is_stricter=True)


def _looser_evidence(stage: str, mine: Document, theirs: Document) -> list[str]:
    points = []
    for kind in sorted(theirs):
        if kind not in mine:
            points.append(f"no evidence of {kind} for {stage}")
            continue
        own, other = mine[kind], theirs[kind]
        if _AGE.rank(own["max_age"]) < _AGE.rank(other["max_age"]):
            age = "of any age" if own["max_age"] == NEVER else f"at most {own['max_age']} old"
            points.append(f"{kind} for {stage} {age} instead of at most {other['max_age']} old")
        if own["snapshot"] == "any" != other["snapshot"]:
            points.append(f"{kind} for {stage} on any snapshot")
        gone = sorted(set(other["sections"]) - set(own["sections"]))
        points += [f"no section {section} of the {kind} for {stage}" for section in gone]
    return points


def _joined(mine: dict[str, Any], section: Document) -> Policy:
    """`mine` with the evidence and freezes of `section` added; of one kind the stricter demand holds."""
    for stage in STAGES:
        for kind, said in ((section.get("evidence") or {}).get(stage) or {}).items():
            here = mine["evidence"][stage]
            # Read through Wanted: what a section leaves out is its loosest value.
            more = _wanted(kind, said).to_json()
            own = here.setdefault(kind, more)
            own["max_age"] = max(own["max_age"], more["max_age"], key=_AGE.rank)
            own["snapshot"] = "version" if "version" in (own["snapshot"], more["snapshot"]) else "any"
            own["sections"] = sorted({*own["sections"], *more["sections"]})
    windows = [window_of(item).to_json() for item in section.get("freeze") or ()]
    mine["freeze"] += [item for item in windows if item not in mine["freeze"]]
    return Policy.from_json(mine)


def _wanted(kind: str, said: Document) -> Wanted:
    snapshot: Literal["version", "any"] = "version" if said.get("snapshot") == "version" else "any"
    return Wanted(
        kind, _duration(said.get("max_age"), None), snapshot, tuple(sorted(said.get("sections") or ()))
    )


def _lifetime(length: timedelta | None) -> str:
    return NEVER if length is None else format_duration(length)


def _duration(text: Any, default: timedelta | None) -> timedelta | None:
    if text is None:
        return default
    return None if text == NEVER else parse_duration(str(text))


def _sorted(items: Any) -> list[Any]:
    return sorted(items, key=canonical_json)


def _at(document: Document, path: tuple[str, ...]) -> Any:
    here: Any = document
    for key in path:
        here = (here or {}).get(key)
    return here


def _put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = deepcopy(value)
