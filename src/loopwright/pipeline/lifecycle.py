"""The default lifecycle: one foreground run of a project, from its sources to a gated, registered version.

Every step's act is safe to repeat: the same source lands once, the same snapshot has the same digest, the same bundle
is the same version. A run that is killed leaves no version; running it again starts over from the landed data.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.data.incidents.record import require_no_incident
from loopwright.data.ingest import IngestReport
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, verify_snapshot
from loopwright.features.frame import Frame
from loopwright.features.lineage import feature_lineage
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.registry import remember_views
from loopwright.features.served import Types
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock, iso
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress, Silent
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.monitoring.feature_health.rules import check_rules
from loopwright.pipeline import store
from loopwright.pipeline.baseline import Baseline, stable_baseline
from loopwright.pipeline.explained import Explainability, explain_bundle
from loopwright.pipeline.feature_watch import views_of
from loopwright.pipeline.findings import keep_documents, keep_gates, record_findings
from loopwright.pipeline.fit import Fitted, Parts, cut, fit_model
from loopwright.pipeline.frames import known_rows
from loopwright.pipeline.gold import refresh_gold
from loopwright.pipeline.intake import bring_in
from loopwright.pipeline.keep import keep_project
from loopwright.pipeline.numbering import number_for
from loopwright.pipeline.online import after_run
from loopwright.pipeline.package import Origin, seal, span
from loopwright.pipeline.tracked import Setting, recorded, tracked
from loopwright.pipeline.trusting import kept_untrusted
from loopwright.pipeline.weights import keep_weights
from loopwright.project.spec import Project
from loopwright.quality.gates import run_gates
from loopwright.quality.report import GateReport
from loopwright.registry import semver
from loopwright.registry import store as registry_store
from loopwright.registry.authority import check_team
from loopwright.registry.documents.sections import read_card
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.policies import admit, waive
from loopwright.registry.versions import register_version
from loopwright.training.context import capture, mlflow_tags


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
    compressed: Mapping[str, Any] | None = None
    """Where loop.yaml asks for it: {"version": the smaller version or None, "said", "why"}."""

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
            "compressed": None if self.compressed is None else dict(self.compressed),
        }


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
    version_number: str | None = None,
    trusted: Sequence[PublicKey] = (),
    snapshot: str | None = None,
) -> RunReport:
    """Run `project` once and return what happened.

    `version_number` is the semantic version asked for in the place of the proposed one. `trusted`: keys whose seals
    count besides `key`'s. `snapshot`: train on what was pinned then; nothing is ingested, nor stands in the way.

    Raises Refused when the actor may not train or may not have that number, BadInput for anything wrong in the project
    or its data, Refused when a contract blocks or an incident stands on a table that the features read. Gates that say
    no are not an error: the report has `version` None and no version is registered.
    """
    require(actor, Role.DEVELOPER, "train a model", model=project.spec.model, team=project.spec.team)
    with ledger.read() as conn:
        check_team(conn, actor, model=project.spec.model, team=project.spec.team)
        _admitted(conn, project, actor)
    ensure_mlflow_tables(ledger)
    spec = project.spec
    if spec.compression is not None:
        from loopwright.pipeline.compression_asked import Asked

        Asked.of(spec.compression, spec.model, 0, reason).checked()  # told before an hour of training
    written = read_card(project.path(spec.card), name=spec.card) if spec.card else None
    if version_number is not None:  # told before an hour of training, and again when it is registered
        with ledger.read() as conn:
            semver.check_free(version_number, registry_store.semvers(conn, spec.model))
    setting = Setting(
        project, home, ledger, actor, clock, key, reason, progress or Silent(), written, tuple(trusted)
    )
    here = actor.on(model=spec.model, team=spec.team)
    ingests, pinned = _data(setting, Lake.of(home, ledger), here, snapshot)
    module = load_features(project)
    remember_views(module, model=spec.model, ledger=ledger, actor=here, clock=clock)
    if snapshot is None:
        with ledger.read() as conn:
            require_no_incident(conn, spec.model, module.tables())
    check_rules(project.spec.monitoring.features, views_of(module))
    _check_redacted(spec.serving.log.redact, module)
    parts = _parts(setting, module, pinned, gold=snapshot is None)
    tags = {"loopwright.snapshot": pinned.digest} | ({"loopwright.retrain": retrain_id} if retrain_id else {})
    run = tracked(setting, tracking_uri, f"{spec.model} {reason}", tags)
    with run, recorded(setting, run.run_id, pinned.digest):
        context = capture(
            project=project, snapshot=pinned.digest, splits=parts.sizes(), seed=spec.train.seed, actor=actor
        )
        schemas = {name: list(table["schema"]) for name, table in pinned.tables.items()}
        context["lineage"] = feature_lineage(module, schemas)
        run.tags(mlflow_tags(context))
        run.artifact_json(context, "context.json")
        run.text(keep_project(project, home, run.run_id).composed, "project/loop.composed.yaml")

        with kept_untrusted(home, f"loopwright run {project.dir}"):
            fitted = fit_model(project, module, parts, run, setting.watch, trusts=setting.trusts)
        if fitted.weights is not None:
            keep_weights(home, run.run_id, fitted.weights)
        context["lineage"]["transform"]["gives"] = list(fitted.names)
        setting.watch.step("Bundle, gates")
        origin = Origin(run.run_id, pinned.digest, actor.name, reason, *span(parts.train))
        types = {name: table["schema"] for name, table in pinned.tables.items()}
        bundle = _sealed(setting, module, fitted, parts, origin, types)
        baseline = stable_baseline(ledger, home, setting.trusted, spec.model)
        gates = _gated(setting, bundle, fitted, parts, baseline)
        keep_gates(run, gates)
        explained = explain_bundle(
            bundle, setting.depot.path(bundle.digest), parts.holdout, rows=spec.explain.rows
        )
        keep_documents(run, gates, explained)
        version = _registered(
            setting, bundle, fitted, gates, explained, origin, context, baseline, version_number
        )
        setting.watch.done(f"bundle {bundle.digest[:12]} sealed; {gates.summary()}; {explained.summary()}")
    after_run(project, home, ledger, here, clock, setting.watch)
    compressed = None
    if version is not None and spec.compression is not None:
        from loopwright.pipeline.compressing import compress_new  # ONNX, and torch where there is some

        compressed = compress_new(setting, version, tracking_uri)
    return RunReport(
        run_id=run.run_id,
        model=spec.model,
        version=version,
        bundle=bundle.digest,
        snapshot=pinned.digest,
        metrics=fitted.metrics,
        params=fitted.params,
        gates=gates,
        ingests=tuple(ingests),
        sizes=parts.sizes(),
        export_difference=fitted.export.max_difference,
        export_rows=fitted.export.rows,
        baseline=baseline.version if baseline else None,
        refused=None if gates.passed else gates.summary(),
        compressed=compressed,
    )


def _admitted(conn: Connection, project: Project, actor: Actor) -> tuple[str, ...]:
    """The points of the project's policy that are waived; raises Refused where a run would loosen what governs it."""
    spec = project.spec
    return admit(
        conn,
        model=spec.model,
        section=spec.to_json()["policy"],
        actor=actor,
        where=str(project.dir / "loop.yaml"),
    )


def _data(
    setting: Setting, lake: Lake, actor: Actor, snapshot: str | None
) -> tuple[Sequence[IngestReport], Snapshot]:
    """What the run learns from: the sources as they stand, or an earlier snapshot, each row of it read and compared."""
    if snapshot is None:
        return bring_in(setting.project, lake, actor, setting.clock, setting.watch)
    setting.watch.step("The data as it was pinned")
    pinned = verify_snapshot(lake, snapshot)
    model, where = setting.project.spec.model, f"snapshot {pinned.digest[:12]}"
    if pinned.manifest["model"] != model:
        raise BadInput(
            "the snapshot is another model's", where=where, got=pinned.manifest["model"], wanted=model
        )
    setting.watch.done(f"{pinned.rows:,} rows of snapshot {pinned.digest[:12]}, as they were pinned")
    return (), pinned


def _parts(setting: Setting, module: FeatureModule, snapshot: Snapshot, *, gold: bool) -> Parts:
    project = setting.project
    setting.watch.step("Features as known at each moment")
    lake = Lake.of(setting.home, setting.ledger)

    def keep(whole: Frame) -> None:
        refresh_gold(project, module, lake, snapshot, whole, actor=setting.actor, now=setting.clock())

    frame = known_rows(
        project, module, lake, snapshot.digest, until=project.spec.data.as_of, cache=setting.home.frames,
        told=keep if gold else None,
    )  # fmt: skip
    parts = cut(frame, project.spec.data.holdout, where=str(project.dir / "loop.yaml"))
    setting.watch.done(
        f"{frame.rows:,} labelled rows, {len(module.inputs)} inputs; "
        f"{parts.train.rows:,} to train, {parts.holdout.rows:,} held out"
    )
    return parts


def _sealed(
    setting: Setting,
    module: FeatureModule,
    fitted: Fitted,
    parts: Parts,
    origin: Origin,
    tables: Mapping[str, Types],
) -> Bundle:
    """Build the bundle beside the depot, move it in whole, and open it as serving would."""
    setting.home.cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=setting.home.cache))
    try:
        sealed = seal(
            building / "bundle",
            project=setting.project,
            module=module,
            fitted=fitted,
            parts=parts,
            origin=origin,
            created_at=setting.clock(),
            key=setting.key,
            written=setting.written.text if setting.written else "",
            trusts=setting.trusts,
            tables=tables,
        )
        digest = setting.depot.add(sealed.path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_bundle(setting.depot.path(digest), setting.trusted)


def _gated(
    setting: Setting, bundle: Bundle, fitted: Fitted, parts: Parts, baseline: Baseline | None
) -> GateReport:
    project, spec = setting.project, setting.project.spec
    return run_gates(
        bundle=bundle,
        holdout=parts.holdout,
        gates=spec.gates,
        task=spec.task,
        export=fitted.export,
        baseline=baseline.bundle if baseline else None,
        baseline_trained_until=baseline.trained_until if baseline else None,
        behaviour=project.path(spec.gates.behaviour) if spec.gates.behaviour else None,
        seed=spec.train.seed,
        now=setting.clock(),
    )


def _registered(
    setting: Setting,
    bundle: Bundle,
    fitted: Fitted,
    gates: GateReport,
    explained: Explainability,
    origin: Origin,
    context: Mapping[str, Any],
    baseline: Baseline | None,
    version_number: str | None = None,
) -> int | None:
    """Record the findings as evidence, register the version if the gates passed, and close the run: all or nothing."""
    project, model, now = setting.project, setting.project.spec.model, setting.clock()
    version = None
    with setting.ledger.write() as conn:
        record_findings(conn, setting, bundle, gates, explained, now)
        if gates.passed:
            # Only now: a project that never came this far must not govern a model that is in service.
            check_team(conn, setting.actor, model=model, team=project.spec.team)
            waived = _admitted(conn, project, setting.actor)
            store.save_project(conn, model, str(project.dir), project.spec.to_json(), project.digest, now)
            waive(conn, model, waived, actor=setting.actor, now=now)
            until = {"trained_until": iso(origin.trained_until)} if origin.trained_until else {}
            parent = baseline.version if baseline else None
            proposal = number_for(
                conn, setting.depot, bundle.manifest, parent=parent, asked=version_number, actor=setting.actor
            )
            version = register_version(
                conn,
                model=model,
                bundle=bundle.digest,
                run_id=origin.run_id,
                snapshot=origin.snapshot,
                author=setting.actor,
                metrics=fitted.metrics,
                parent=parent,
                now=now,
                card=bundle.card,
                annotations={"reason": setting.reason, **until},
                proposal=proposal,
            ).version
        store.finish_run(
            conn,
            origin.run_id,
            status="FINISHED" if gates.passed else "REFUSED",
            now=now,
            bundle=bundle.digest,
            params=fitted.params,
            metrics=fitted.metrics,
            context=context,
        )
        ledger_store.append(
            conn,
            at=now,
            actor=setting.actor.name,
            action="run.finished" if gates.passed else "run.refused",
            subject=f"run {origin.run_id}",
            payload={
                "model": model,
                "bundle": bundle.digest,
                "version": version,
                **({} if gates.passed else {"why": gates.summary()[:500]}),
            },
        )
    return version


def _check_redacted(names: tuple[str, ...], module: FeatureModule) -> None:
    """Raise BadInput for a name that is no input: misspelled, it would keep nothing out of the log."""
    for name in names:
        if name not in module.inputs:
            raise BadInput(
                "an input that there is not", where="loop.yaml: serving.log.redact", got=name,
                wanted=", ".join(module.inputs), next=did_you_mean(name, module.inputs),
            )  # fmt: skip
