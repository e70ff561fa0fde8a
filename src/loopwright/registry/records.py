"""What the registry remembers: versions, approvals, evidence. Plain values, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

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
    """One reviewer's word on a promotion, bound to the bytes that were reviewed."""

    reviewer: str
    decision: Decision
    comment: str
    at: datetime
    bundle: str

    def to_json(self) -> dict[str, Any]:
        return {
            "reviewer": self.reviewer, "decision": self.decision, "comment": self.comment,
            "at": iso(self.at), "bundle": self.bundle,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """A recorded result of a gate, check, comparison or window, identified by the digest of its content."""

    digest: str
    kind: str
    model: str
    version: int | None
    bundle: str | None
    verdict: Verdict
    payload: Mapping[str, Any]
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest, "kind": self.kind, "model": self.model, "version": self.version,
            "bundle": self.bundle, "verdict": self.verdict.value, "payload": dict(self.payload), "at": iso(self.at),
        }  # fmt: skip
