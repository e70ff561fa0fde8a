"""What a model card is made from: the records of one version, gathered by whoever can see them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from loopwright.bundle.manifest import Manifest
from loopwright.registry.policy import Promotion
from loopwright.registry.records import Evidence, Version

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """Records, as they are; what is None or empty was never recorded.

    evidence: oldest first. spec: the loop.yaml the run was made from. run: its row with the captured context.
    snapshot: the data's manifest. landed: table → reports of the batches in it. rollouts: newest first, each with its
    `events`. windows and alerts: what monitoring said of this version. policy: what governs it now, `missing` what it
    lacks by stage, `sections` what the policy wants people to write. reviews: by promotion, the later look at an
    emergency.
    """

    version: Version
    now: datetime
    manifest: Manifest | None = None
    evidence: Sequence[Evidence] = ()
    promotions: Sequence[Promotion] = ()
    spec: Json | None = None
    run: Json | None = None
    snapshot: Json | None = None
    landed: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    rollouts: Sequence[Json] = ()
    windows: Sequence[Json] = ()
    alerts: Sequence[Json] = ()
    serving: bool | None = None
    policy: Json | None = None
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sections: Sequence[str] = ()
    reviews: Mapping[str, Json] = field(default_factory=dict)

    def latest(self, kind: str) -> Evidence | None:
        """The newest evidence of `kind` for exactly these bytes."""
        bundle = self.version.bundle
        found = [item for item in self.evidence if item.kind == kind and bundle and item.bundle == bundle]
        return found[-1] if found else None
