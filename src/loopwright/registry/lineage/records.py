"""What the ledger remembers of a model, as far as lineage is concerned. Plain values, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Landing:
    """A batch brought into version `silver` of a table. `loading`: "append", or "full" in place of all others."""

    table: str
    silver: int
    batch: str
    uri: str
    loading: str
    good: int
    bad: int
    contract: str
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Pinned:
    """A table as a snapshot pins it."""

    version: int
    rows: int
    content: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snap:
    digest: str
    rows: int
    at: datetime
    tables: Mapping[str, Pinned]


@dataclass(frozen=True, slots=True)
class Run:
    """`lineage` is what `features.lineage` told of the run's features; None for a run that kept none."""

    id: str
    status: str
    actor: str
    reason: str
    experiment: str
    started: datetime
    ended: datetime | None
    snapshot: str | None
    bundle: str | None
    commit: str = ""
    code: str = ""
    config: str = ""
    dirty: bool = False
    lineage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    version: int
    bundle: str | None
    run: str | None
    snapshot: str | None
    semver: str | None
    stage: str
    author: str
    at: datetime
    parent: int | None
    metrics: Mapping[str, float]
    deleted: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A piece of evidence, without its content."""

    digest: str
    kind: str
    version: int | None
    bundle: str | None
    verdict: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Promoted:
    """A promotion. `said`: (reviewer, decision, comment)."""

    id: str
    version: int
    stage: str
    state: str
    requested_by: str
    requested: datetime
    decided: datetime | None
    reason: str
    emergency: str | None
    said: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Rolled:
    id: str
    version: int
    baseline: int | None
    promotion: str | None
    strategy: str
    status: str
    started: datetime
    ended: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What a version answered in one arm: counts, and the first and last hour (event time) that had any."""

    version: int
    arm: str
    answers: int
    errors: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Labels that became available within one day (UTC): their batches, rows, and the span of them."""

    batches: int
    rows: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Windows:
    """Judged windows of one kind and verdict."""

    version: int
    kind: str
    verdict: str
    count: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Alarm:
    id: str
    version: int | None
    tier: str
    kind: str
    title: str
    state: str
    event_time: datetime


@dataclass(frozen=True, slots=True)
class Retraining:
    id: str
    cause: str
    key: str
    decision: str
    why: str
    state: str
    run: str | None
    version: int | None
    event_time: datetime


@dataclass(frozen=True, slots=True)
class Arm:
    """A version's part in the newest route table."""

    version: int
    arm: str
    weight: float


@dataclass(frozen=True, slots=True)
class Records:
    """One model's. `arms` is None when no route table names the model: then nobody knows what serves."""

    model: str
    owner: str = ""
    team: str = ""
    landings: tuple[Landing, ...] = ()
    snapshots: tuple[Snap, ...] = ()
    runs: tuple[Run, ...] = ()
    versions: tuple[Registered, ...] = ()
    evidence: tuple[Judged, ...] = ()
    promotions: tuple[Promoted, ...] = ()
    rollouts: tuple[Rolled, ...] = ()
    answers: tuple[Answers, ...] = ()
    labels: tuple[Outcomes, ...] = ()
    windows: tuple[Windows, ...] = ()
    alerts: tuple[Alarm, ...] = ()
    retrains: tuple[Retraining, ...] = ()
    arms: tuple[Arm, ...] | None = field(default=None)
