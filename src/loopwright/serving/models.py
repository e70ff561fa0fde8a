"""What a worker serves: models, their arms, and versions that are in memory or may be brought there."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopwright.bundle.manifest import Golden, Manifest
from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Arm, ServingPolicy
from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import Unavailable
from loopwright.serving.fit import Fit, fit_of
from loopwright.serving.logrule import LogRule
from loopwright.serving.rows import Reader

if TYPE_CHECKING:
    from loopwright.serving.lanes import Lane


@dataclass(slots=True, eq=False)
class Served:
    """A version that may answer: its approval and every digest are checked. `bundle` is None while it is not in memory.

    Compared by identity: one object per version and bytes, for as long as the routes name it. Who predicts takes
    `bundle` once and keeps it until the answer is there; what leaves memory meanwhile ends after its last user.
    lane: the engine's, made as it is needed; used: when somebody last asked for it, in microseconds since 1970; rule:
    what of its answers is written down; example: a golden row and its outputs, for people to see.
    """

    version: int
    bundle: Bundle | None
    reader: Reader
    digest: str
    manifest: Manifest
    lane: "Lane | None" = None
    used: int = 0
    rule: LogRule = field(default_factory=LogRule)
    example: tuple[dict[str, Any], list[float]] | None = None

    @classmethod
    def of(cls, version: int, bundle: Bundle) -> "Served":
        """Prepare a loaded bundle."""
        reader, example = Reader(bundle.schema), bundle.golden.first()
        return cls(version, bundle, reader, bundle.digest, bundle.manifest, example=example)

    @classmethod
    def cold(cls, version: int, manifest: Manifest, digest: str, golden: Golden | None = None) -> "Served":
        """A version whose files were verified and that nobody has loaded yet."""
        example = golden.first() if golden else None
        return cls(version, None, Reader(manifest.schema), digest, manifest, example=example)

    @property
    def schema(self) -> Schema:
        """What a request brings and what it gets; known whether it is in memory or not."""
        return self.reader.schema

    @property
    def loaded(self) -> Bundle:
        """The bundle; raises Unavailable while it is not in memory."""
        if self.bundle is None:
            raise Unavailable(f"version {self.version} of {self.manifest.model} is not in memory")
        return self.bundle


@dataclass(frozen=True, slots=True)
class Model:
    """A model's routes with what may answer. `arms` holds only arms whose version may.

    standby: versions that left the routes last and stay loaded: a rollback must not wait for a load. Nothing is
    answered from there. fits: of versions whose schema is not stable's, which requests that ask for no version meet.
    """

    name: str
    salt: str
    arms: tuple[Arm, ...]
    versions: dict[int, Served]
    refused: dict[int, str] = field(default_factory=dict)
    standby: dict[int, Served] = field(default_factory=dict)
    policy: ServingPolicy = field(default_factory=ServingPolicy)
    fits: dict[int, Fit] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        stable = self.stable
        if stable is None:
            return
        for version, served in self.versions.items():
            fit = fit_of(stable.schema, served.schema)
            if fit is not None:
                self.fits[version] = fit

    def default_for(self, served: Served) -> list[float] | None:
        """The outputs configured for when nothing else can answer; None without them, or for other outputs."""
        default = self.policy.default
        outputs = served.schema.outputs
        if default is None or default.keys() != set(outputs):
            return None
        return [default[name] for name in outputs]

    @property
    def stable(self) -> Served | None:
        """The version that answers when no other does, or None when it was refused."""
        return next((self.versions[arm.version] for arm in self.arms if arm.name == "stable"), None)
