"""What every run has in common: where it takes place, its record on the tracking server, its row in the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.pipeline.trusting import trusts_of
from loopwright.project.spec import Project
from loopwright.registry.documents.sections import Written
from loopwright.training.forms import Trusts
from loopwright.training.recorder import Recorder, start_run


@dataclass(frozen=True)
class Setting:
    """Where a run takes place: whose it is, on which home, and why."""

    project: Project
    home: Home
    ledger: Ledger
    actor: Actor
    clock: Clock
    key: SigningKey
    reason: str
    watch: Progress
    written: Written | None = None
    """The project's own card."""
    others: tuple[PublicKey, ...] = ()
    """Keys whose seals count too: those that signed before this one."""

    @property
    def trusted(self) -> tuple[PublicKey, ...]:
        """Whose seals count."""
        return (self.key.public, *self.others)

    @property
    def trusts(self) -> Trusts:
        """Which forms that run code may be loaded."""
        return trusts_of(self.ledger, self.trusted)

    @property
    def depot(self) -> BundleDepot:
        """The home's bundles."""
        return BundleDepot(self.home.bundles)


def tracked(setting: Setting, tracking_uri: str, name: str, tags: Mapping[str, str]) -> Recorder:
    """A run on the tracking server, under the model's experiment, with the project's tags and `tags`."""
    spec = setting.project.spec
    over_http = tracking_uri.startswith(("http://", "https://"))
    return start_run(
        tracking_uri=tracking_uri,
        experiment=spec.experiment,
        name=name[:250],
        tags={**spec.tags, "owner": spec.owner, "loopwright.reason": setting.reason, **tags},
        spool=setting.home.root / "spool",
        artifact_location=None if over_http else (setting.home.artifacts / "runs").as_uri(),
    )


class recorded:  # noqa: N801 - reads as a word at its call site: with run, recorded(...)
    """The run's row in the ledger: opened on entry; closed as FAILED when the body raises."""

    def __init__(self, setting: Setting, run_id: str, snapshot: str) -> None:
        self.setting, self.run_id, self.snapshot = setting, run_id, snapshot

    def __enter__(self) -> None:
        setting, spec = self.setting, self.setting.project.spec
        with setting.ledger.write() as conn:
            store.start_run(
                conn,
                run_id=self.run_id,
                model=spec.model,
                project=spec.project,
                experiment=spec.experiment,
                actor=setting.actor.name,
                reason=setting.reason,
                snapshot=self.snapshot,
                now=setting.clock(),
            )
            ledger_store.append(
                conn,
                at=setting.clock(),
                actor=setting.actor.name,
                action="run.start",
                subject=f"run {self.run_id}",
                payload={
                    "model": spec.model,
                    "snapshot": self.snapshot,
                    "reason": setting.reason,
                    "project": setting.project.digest,
                },
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            close_failed(self.setting, self.run_id, f"{kind.__name__}: {error}")


def close_failed(setting: Setting, run_id: str, why: str) -> None:
    """Close a run in the ledger that came to nothing."""
    now = setting.clock()
    with setting.ledger.write() as conn:
        store.finish_run(conn, run_id, status="FAILED", now=now)
        ledger_store.append(
            conn,
            at=now,
            actor=setting.actor.name,
            action="run.failed",
            subject=f"run {run_id}",
            payload={"model": setting.project.spec.model, "why": why[:500]},
        )
