"""What the registry remembers: versions, approvals, evidence. Plain values, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict

Decision = Literal["approve", "reject"]


def source_of(bundle: str) -> str:
    """Where MLflow's clients find the bundle's files."""
    return f"mlflow-artifacts:/bundles/{bundle}"


def subject(model: str, version: int | None = None) -> str:
    """How the audit log names a model or one of its versions: "flight-late" or "flight-late/3"."""
    return model if version is None else f"{model}/{version}"


@dataclass(frozen=True, slots=True)
class Version:
    """A bundle under a model name. `bundle` is None for what a plain MLflow client registered without a seal."""

    model: str
    version: int
    bundle: str | None
    run_id: str | None
    snapshot: str | None
    semver: str | None
    stage: Stage
    author: str
    created_at: datetime
    parent: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        return subject(self.model, self.version)

    @property
    def source(self) -> str | None:
        return source_of(self.bundle) if self.bundle else None

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "model": self.model, "version": self.version, "bundle": self.bundle, "run_id": self.run_id,
            "snapshot": self.snapshot, "semver": self.semver, "stage": self.stage.value, "author": self.author,
            "created_at": iso(self.created_at), "parent": self.parent, "metrics": dict(self.metrics),
            "annotations": dict(self.annotations), "source": self.source,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Approval:
    """One reviewer's word on a promotion, bound to the bytes that were reviewed.

    role: what the reviewer was on the model. policy_digest: the policy that governed when it was said. seq: its audit
    row. passed: the latest time that rows after it tell, where it was asked for (`promotion.dated`).
    """

    reviewer: str
    decision: Decision
    comment: str
    at: datetime
    bundle: str
    role: Role = Role.APPROVER
    policy_digest: str = ""
    seq: int = 0
    passed: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "reviewer": self.reviewer, "decision": self.decision, "comment": self.comment,
            "at": iso(self.at), "bundle": self.bundle, "role": self.role.name.lower(),
            "policy_digest": self.policy_digest,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """A recorded result of a gate, check, comparison or window, identified by the digest of its content.

    `seq` is the audit row it was recorded by: the order of results does not hang on clocks. `passed`: as of `Approval`.
    """

    digest: str
    kind: str
    model: str
    version: int | None
    bundle: str | None
    verdict: Verdict
    payload: Mapping[str, Any]
    at: datetime
    seq: int = 0
    passed: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest, "kind": self.kind, "model": self.model, "version": self.version,
            "bundle": self.bundle, "verdict": self.verdict.value, "payload": dict(self.payload), "at": iso(self.at),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Review:
    """The later look at a promotion for which the glass was broken. `reason` is why it was, `seq` the audit row.

    upheld: a reviewer agrees after the fact. revoked: the reviewer does not, and the version leaves.
    """

    promotion_id: str
    model: str
    version: int
    broken_by: str
    reason: str
    due_at: datetime
    state: Literal["open", "upheld", "revoked"] = "open"
    policy_digest: str = ""
    reviewer: str | None = None
    comment: str = ""
    decided_at: datetime | None = None
    seq: int = 0

    @property
    def subject(self) -> str:
        return subject(self.model, self.version)

    def overdue(self, now: datetime) -> bool:
        """Whether it should have been made by now."""
        return self.state == "open" and now > self.due_at

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {
            "promotion_id": self.promotion_id, "model": self.model, "version": self.version,
            "broken_by": self.broken_by, "reason": self.reason, "due_at": iso(self.due_at), "state": self.state,
            "policy_digest": self.policy_digest, "reviewer": self.reviewer, "comment": self.comment,
            "decided_at": iso(self.decided_at) if self.decided_at else None,
        }  # fmt: skip
