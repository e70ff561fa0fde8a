"""The default lifecycle: one foreground run of a project, from its sources to a gated, registered version.

Every step's act is safe to repeat: the same source lands once, the same snapshot has the same digest, the same bundle
is the same version. A run that is killed leaves no version; running it again starts over from the landed data.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.data.ingest import IngestReport
from loopwright.data.lake import Lake
from loopwright.delivery.routes import stable_version
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.offline import build_frame
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock, iso, parse_time
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.pipeline.fit import Fitted, cut, fit_model
from loopwright.pipeline.intake import bring_in, pinned_tables
from loopwright.pipeline.keep import keep_project
from loopwright.pipeline.package import Outcome, card, provenance, seal, span
from loopwright.pipeline.progress import Progress, Silent
from loopwright.project.spec import Project
from loopwright.quality.gates import run_gates
from loopwright.quality.report import GateReport
from loopwright.registry.evidence import record_evidence
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import current, get_version, register_version
from loopwright.training.context import capture
from loopwright.training.recorder import Recorder, start_run


@dataclass(frozen=True)
class RunReport:
    """What a run did. `version` is None when the gates said no; `refused` then says which and why."""

    run_id: str
    model: str
    version: int | None
    bundle: str
    snapshot: str
    metrics: Mapping[str, float]
    params: Mapping[str, Any]
    gates: GateReport
    ingests: tuple[IngestReport, ...]
    sizes: Mapping[str, int]
    export_difference: float
    export_rows: int
    baseline: int | None
    refused: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's own types; `ingests` and `gates` whole."""
        return {
            "run_id": self.run_id,
            "model": self.model,
            "version": self.version,
            "bundle": self.bundle,
            "snapshot": self.snapshot,
            "metrics": dict(self.metrics),
            "params": dict(self.params),
            "gates": self.gates.to_json(),
            "ingests": [report.to_json() for report in self.ingests],
            "sizes": dict(self.sizes),
            "export": {"rows": self.export_rows, "max_difference": self.export_difference},
            "baseline": self.baseline,
            "refused": self.refused,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Baseline:
    """The version in Production that a new one must not be worse than."""

    version: int
    bundle: Bundle
    trained_until: datetime | None


def run_project(
    *,
    project: Project,
    home: Home,
    ledger: Ledger,
    actor: Actor,
    clock: Clock,
    key: SigningKey,
    tracking_uri: str,
    reason: str = "by hand",
    progress: Progress | None = None,
    retrain_id: str | None = None,
) -> RunReport:
    """Run `project` once and return what happened.

    Raises Refused when the actor may not train, BadInput for anything wrong in the project or its data, Refused when a
    contract blocks. Gates that say no are not an error: the report has `version` None and no version is registered.
    """
    require(actor, Role.DEVELOPER, "train a model")
    watch = progress or Silent()
    ensure_mlflow_tables(ledger)
    spec = project.spec
    with ledger.write() as conn:
        store.save_project(conn, spec.model, str(project.dir), spec.to_json(), project.digest, clock())

    lake = Lake(home.lake, ledger)
    ingests, snapshot = bring_in(project, lake, actor, clock, watch)
    module = load_features(project)

    watch.step("Features as known at each moment")
    frame = labelled_frame(project, module, lake, snapshot.digest)
    parts = cut(frame, spec.data.holdout, where=str(project.dir / "loop.yaml"))
    watch.done(
        f"{frame.rows:,} labelled rows, {len(module.inputs)} inputs; "
        f"{parts.train.rows:,} to train, {parts.holdout.rows:,} held out"
    )

    tags = {
        **spec.tags,
        "owner": spec.owner,
        "loopwright.reason": reason,
        "loopwright.snapshot": snapshot.digest,
    }
    if retrain_id:
        tags["loopwright.retrain"] = retrain_id
    over_http = tracking_uri.startswith(("http://", "https://"))
    run = start_run(
        tracking_uri=tracking_uri,
        experiment=spec.experiment,
        name=f"{spec.model} {reason}"[:250],
        tags=tags,
        spool=home.root / "spool",
        artifact_location=None if over_http else (home.artifacts / "runs").as_uri(),
    )
    with run, recorded(run, ledger, project, actor, reason, snapshot.digest, clock):
        context = capture(
            project=project, snapshot=snapshot.digest, splits=parts.sizes(), seed=spec.train.seed, actor=actor
        )
        run.artifact_json(context, "context.json")
        kept = keep_project(project, home, run.run_id)
        run.text(kept.composed, "project/loop.composed.yaml")

        fitted = fit_model(project, module, parts, run, watch)
        trained_from, trained_until = span(parts.train)
        outcome = Outcome(fitted.metrics, fitted.params, parts.sizes(), trained_from, trained_until)

        watch.step("Bundle, gates")
        digest = seal_into_depot(
            project,
            module,
            fitted,
            parts.holdout,
            outcome,
            run.run_id,
            snapshot.digest,
            actor,
            reason,
            home,
            clock,
            key,
        )
        bundle = open_bundle(BundleDepot(home.bundles).path(digest), [key.public])
        baseline = production_baseline(ledger, home, key, spec.model)
        gates = run_gates(
            bundle=bundle,
            holdout=parts.holdout,
            gates=spec.gates,
            task=spec.task,
            export=fitted.export,
            baseline=baseline.bundle if baseline else None,
            baseline_trained_until=baseline.trained_until if baseline else None,
            behaviour=project.path(spec.gates.behaviour) if spec.gates.behaviour else None,
            seed=spec.train.seed,
            now=clock(),
        )
        run.text(gates.to_markdown(), "gates.md")
        run.artifact_json(gates.to_json(), "gates.json")
        passed = gates.verdict is Verdict.PASS
        watch.done(f"bundle {digest[:12]} sealed; {gates.summary()}")

        version = None
        with ledger.write() as conn:
            record_evidence(
                conn,
                kind="gates",
                model=spec.model,
                version=None,
                bundle=digest,
                verdict=gates.verdict,
                payload=gates.to_json(),
                at=clock(),
                actor=actor,
            )
            if passed:
                registered = register_version(
                    conn,
                    model=spec.model,
                    bundle=digest,
                    run_id=run.run_id,
                    snapshot=snapshot.digest,
                    author=actor,
                    metrics=fitted.metrics,
                    parent=baseline.version if baseline else None,
                    now=clock(),
                    card=bundle.card,
                    annotations={
                        "reason": reason,
                        **({"trained_until": iso(trained_until)} if trained_until else {}),
                    },
                )
                version = registered.version
            store.finish_run(
                conn,
                run.run_id,
                status="FINISHED" if passed else "REFUSED",
                now=clock(),
                bundle=digest,
                params=fitted.params,
                metrics=fitted.metrics,
                context=context,
            )
    return RunReport(
        run_id=run.run_id,
        model=spec.model,
        version=version,
        bundle=digest,
        snapshot=snapshot.digest,
        metrics=fitted.metrics,
        params=fitted.params,
        gates=gates,
        ingests=tuple(ingests),
        sizes=parts.sizes(),
        export_difference=fitted.export.max_difference,
        export_rows=fitted.export.rows,
        baseline=baseline.version if baseline else None,
        refused=None if passed else gates.summary(),
    )


class recorded:  # noqa: N801 - reads as a word at its call site: with run, recorded(...)
    """The run's row in the ledger: opened on entry; closed as FAILED when the body raises."""

    def __init__(
        self,
        run: Recorder,
        ledger: Ledger,
        project: Project,
        actor: Actor,
        reason: str,
        snapshot: str,
        clock: Clock,
    ) -> None:
        self.run, self.ledger, self.project, self.actor = run, ledger, project, actor
        self.reason, self.snapshot, self.clock = reason, snapshot, clock

    def __enter__(self) -> None:
        spec = self.project.spec
        with self.ledger.write() as conn:
            store.start_run(
                conn,
                run_id=self.run.run_id,
                model=spec.model,
                project=spec.project,
                experiment=spec.experiment,
                actor=self.actor.name,
                reason=self.reason,
                snapshot=self.snapshot,
                now=self.clock(),
            )
            ledger_store.append(
                conn,
                at=self.clock(),
                actor=self.actor.name,
                action="run.start",
                subject=f"run {self.run.run_id}",
                payload={
                    "model": spec.model,
                    "snapshot": self.snapshot,
                    "reason": self.reason,
                    "project": self.project.digest,
                },
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with self.ledger.write() as conn:
                store.finish_run(conn, self.run.run_id, status="FAILED", now=self.clock())


def labelled_frame(project: Project, module: FeatureModule, lake: Lake, snapshot: str) -> Frame:
    """The rows a run may learn from: before `data.as_of`, with labels known by then."""
    spec = project.spec
    return build_frame(
        module,
        pinned_tables(lake, snapshot, module.tables()),
        label_available_after=spec.data.label.available_after,
        until=spec.data.as_of,
        require_label=True,
    )


def seal_into_depot(
    project: Project,
    module: FeatureModule,
    fitted: Fitted,
    holdout: Frame,
    outcome: Outcome,
    run_id: str,
    snapshot: str,
    actor: Actor,
    reason: str,
    home: Home,
    clock: Clock,
    key: SigningKey,
) -> str:
    """Build the bundle beside the depot, move it in, and return its digest."""
    home.cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=home.cache))
    try:
        sealed = seal(
            building / "bundle",
            project=project,
            module=module,
            fitted=fitted,
            holdout=holdout,
            card=card(project, outcome, run_id=run_id, snapshot=snapshot, features=fitted.names),
            provenance=provenance(
                project, outcome, run_id=run_id, snapshot=snapshot, author=actor.name, reason=reason
            ),
            created_at=clock(),
            key=key,
        )
        return BundleDepot(home.bundles).add(sealed.path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def production_baseline(ledger: Ledger, home: Home, key: SigningKey, model: str) -> Baseline | None:
    """The version that answers as stable, opened; before anything is served, the one approved for Production.

    A version still in its canary is no baseline: it has to prove itself first.
    """
    with ledger.read() as conn:
        stable = stable_version(conn, model)
        version = (
            get_version(conn, model=model, version=stable)
            if stable is not None
            else current(conn, model=model)
        )
    if version is None or version.bundle is None:
        return None
    bundle = open_bundle(BundleDepot(home.bundles).path(version.bundle), [key.public])
    until = bundle.manifest.provenance.get("trained_until")
    return Baseline(version.version, bundle, parse_time(until) if until else None)
