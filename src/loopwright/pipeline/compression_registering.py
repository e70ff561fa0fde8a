"""From the choice of a compression to a version: sealed, gated against its parent, registered; or why it is none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loopwright.bundle.forms import ONNX
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.compression.candidate import Candidate
from loopwright.compression.report import LadderReport, need_said
from loopwright.compression.tradeoff import ORIGINAL
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.pipeline import store
from loopwright.pipeline.baseline import stable_baseline, trained_until
from loopwright.pipeline.compression_asked import SEED, Asked, CompressReport, finite
from loopwright.pipeline.compression_sealing import payload_of, sealed_candidate
from loopwright.pipeline.compression_subject import NOTE, Source
from loopwright.pipeline.explained import Explainability, explain_bundle
from loopwright.pipeline.findings import keep_documents, keep_gates, record_findings
from loopwright.pipeline.fit import Fitted
from loopwright.pipeline.numbering import number_for
from loopwright.pipeline.tracked import Setting
from loopwright.quality.gates import run_gates
from loopwright.quality.parent import kept_fairness, kept_quality
from loopwright.quality.report import GateReport, GateResult
from loopwright.registry.authority import require_on
from loopwright.registry.versions import Version, list_versions, register_version
from loopwright.training.recorder import Recorder

STEADY = 0.05
"""Of the range of the golden answers; what twice one step in 255 of each of a few layers adds up to is less."""
_LEAST = 1e-5


def closed_without(
    asked: Asked, setting: Setting, source: Source, run_id: str, found: LadderReport, out: Path
) -> CompressReport:
    """Nothing smaller keeps to what is asked, or the version does already: the run is closed, nothing is registered."""
    already = found.chosen == ORIGINAL
    said = (
        f"version {source.version.version} keeps to it already: {found.said()}" if already else found.said()
    )
    now = setting.clock()
    with setting.ledger.write() as conn:
        store.finish_run(
            conn, run_id, status="FINISHED" if already else "REFUSED", now=now,
            context=_context(source, {"said": said}),
        )  # fmt: skip
        ledger_store.append(
            conn, at=now, actor=setting.actor.name, action="run.finished" if already else "run.refused",
            subject=f"run {run_id}", payload={"model": asked.model, "bundle": None, "version": None, "why": said[:500]},
        )  # fmt: skip
    needed = () if already else tuple(need_said(one) for one in found.needed())
    return CompressReport(
        asked.model, source.version.version, source.version.version if already else None,
        source.version.bundle if already else None, run_id, found.chosen, found.to_json(), None, str(out), said, needed,
        None if already else said, already,
    )  # fmt: skip


def judged(
    asked: Asked, setting: Setting, source: Source, run: Recorder, found: LadderReport,
    choice: Candidate, folder: Path, out: Path,
) -> CompressReport:  # fmt: skip
    """Seal the choice, run its gates, and register it when they pass."""
    model, watch = asked.model, setting.watch
    twin = _twin(setting, source, choice)
    watch.step("Bundle, gates")
    if twin is not None:
        return _same(asked, setting, source, run, found, twin, out)
    bundle, fitted = sealed_candidate(setting, source, choice, folder / choice.file, run.run_id, found.gains)
    try:
        gates = _gated(asked, setting, source, bundle)
        keep_gates(run, gates)
        explained = explain_bundle(
            bundle,
            setting.depot.path(bundle.digest),
            source.parts.holdout,
            rows=source.project.spec.explain.rows,
        )
    finally:
        bundle.close()
    keep_documents(run, gates, explained)
    run.text(bundle.card, "card.md")
    run.metrics({**fitted.metrics, "size": choice.size, "ratio": choice.ratio})
    said = found.said()
    payload = payload_of(
        source, choice, found.gains, asked=asked.key(str(source.version.bundle)), run_id=run.run_id,
        told={"said": said, "wanted": asked.wanted.to_json(), "ladder": _without_curves(found.to_json())},
    )  # fmt: skip
    version = _registered(
        asked, setting, source, bundle, fitted, gates, explained, run.run_id, finite(payload)
    )
    watch.done(f"bundle {bundle.digest[:12]} sealed; {gates.summary()}")
    return CompressReport(
        model, source.version.version, version, bundle.digest, run.run_id, choice.name, found.to_json(),
        gates.to_json(), str(out), said, (), None if gates.passed else gates.summary(),
    )  # fmt: skip


def _twin(setting: Setting, source: Source, choice: Candidate) -> Version | None:
    """A version that another request of the same parent made of the very same graph."""
    with setting.ledger.read() as conn:
        children = [
            one
            for one in list_versions(conn, model=source.version.model)
            if one.parent == source.version.version and NOTE in one.annotations
        ]
    for one in children:
        if one.bundle is None or not setting.depot.has(one.bundle):
            continue
        file = setting.depot.path(one.bundle) / MANIFEST
        manifest = parse_manifest(file.read_bytes(), where=str(file))
        if manifest.files.get(ONNX) == choice.digest:
            return one
    return None


def _same(
    asked: Asked,
    setting: Setting,
    source: Source,
    run: Recorder,
    found: LadderReport,
    twin: Version,
    out: Path,
) -> CompressReport:
    """Close the run: what it chose is a version already, which this request's gates judge all the same.

    They may ask for more than those it was registered by: `max_loss` is each request's own.
    """
    assert twin.bundle is not None
    bundle = open_bundle(setting.depot.path(twin.bundle), setting.trusted)
    try:
        gates = _gated(asked, setting, source, bundle)
    finally:
        bundle.close()
    keep_gates(run, gates)
    now, said = setting.clock(), f"{found.said()}; it is version {twin.version} already"
    version = twin.version if gates.passed else None
    with setting.ledger.write() as conn:
        store.finish_run(
            conn, run.run_id, status="FINISHED" if gates.passed else "REFUSED", now=now, bundle=twin.bundle,
            context=_context(source, {"said": said}),
        )  # fmt: skip
        ledger_store.append(
            conn, at=now, actor=setting.actor.name, action="run.finished" if gates.passed else "run.refused",
            subject=f"run {run.run_id}",
            payload={
                "model": asked.model, "bundle": twin.bundle, "version": version,
                **({} if gates.passed else {"why": gates.summary()[:500]}),
            },
        )  # fmt: skip
    setting.watch.done(f"{said}; {gates.summary()}")
    return CompressReport(
        asked.model, source.version.version, version, twin.bundle, run.run_id, found.chosen, found.to_json(),
        gates.to_json(), str(out), said, (), None if gates.passed else gates.summary(), again=True,
    )  # fmt: skip


def _gated(asked: Asked, setting: Setting, source: Source, bundle: Bundle) -> GateReport:
    """The project's own gates on its held-out rows, and those against the parent on the rows that chose nothing."""
    project, spec = source.project, source.project.spec
    baseline = stable_baseline(setting.ledger, setting.home, setting.trusted, spec.model)
    reporting = source.reporting
    inputs, labels = reporting.inputs(), reporting.labels()

    def quality() -> list[GateResult]:
        return [
            kept_quality(
                source.metric, labels, bundle.predict(inputs), source.bundle.predict(inputs),
                max_loss=asked.wanted.loss, parent=source.version.version, seed=SEED,
            )
        ]  # fmt: skip

    def fairness() -> list[GateResult]:
        if spec.gates.fairness is None:
            return []
        return kept_fairness(
            spec.gates.fairness, spec.task, inputs, labels, bundle.predict(inputs), source.bundle.predict(inputs),
            max_loss=asked.wanted.loss, parent=source.version.version, seed=SEED,
            classes=tuple(bundle.schema.classes),
        )  # fmt: skip

    given = [
        *_guarded("alike however it runs", "smoke", lambda: [_steady(bundle)]),
        *_guarded("against the parent", "comparison", quality),
        *_guarded("fairness", "fairness", fairness),
    ]
    try:
        return run_gates(
            bundle=bundle,
            holdout=source.parts.holdout,
            gates=spec.gates,
            task=spec.task,
            seed=spec.train.seed,
            now=setting.clock(),
            baseline=baseline.bundle if baseline else None,
            baseline_trained_until=trained_until(baseline.bundle) if baseline else None,
            behaviour=project.path(spec.gates.behaviour) if spec.gates.behaviour else None,
            given=given,
        )
    finally:
        if baseline is not None:
            baseline.bundle.close()


def _steady(bundle: Bundle) -> GateResult:
    """FAIL for answers that move so much with threads, batch or fusion that the golden rows would prove nothing."""
    answers, tolerance = np.array(bundle.golden.outputs, dtype=np.float64), bundle.golden.tolerance
    span = float(np.ptp(answers)) if answers.size else 0.0
    verdict = Verdict.PASS if tolerance <= max(_LEAST, STEADY * span) else Verdict.FAIL
    detail = f"golden answers may differ by {tolerance:.2g} elsewhere; their range is {span:.3g}"
    return GateResult(
        "alike however it runs", "smoke", verdict, tolerance, f"<= {STEADY:.0%} of their range", detail
    )


def _guarded(name: str, kind: str, gate: Callable[[], list[GateResult]]) -> list[GateResult]:
    try:
        return gate()
    except Exception as error:  # noqa: BLE001 - whatever broke it, the gate must show as broken
        return [GateResult(name, kind, Verdict.ERROR, None, "", f"{type(error).__name__}: {error}")]


def _registered(
    asked: Asked, setting: Setting, source: Source, bundle: Bundle, fitted: Fitted, gates: GateReport,
    explained: Explainability, run_id: str, payload: Mapping[str, Any],
) -> int | None:  # fmt: skip
    """Record the findings, register the version if the gates passed, and close the run: all or nothing."""
    model, now, spec = asked.model, setting.clock(), source.project.spec
    version = None
    with setting.ledger.write() as conn:
        record_findings(conn, setting, bundle, gates, explained, now, **{NOTE: payload})
        if gates.passed:
            require_on(conn, setting.actor, Role.DEVELOPER, f"register a version of {model}", model=model)
            until = trained_until(bundle)
            proposal = number_for(
                conn, setting.depot, bundle.manifest, parent=source.version.version, asked=None, actor=setting.actor
            )  # fmt: skip
            version = register_version(
                conn,
                model=model,
                bundle=bundle.digest,
                run_id=run_id,
                snapshot=source.snapshot.digest,
                author=setting.actor,
                metrics=fitted.metrics,
                parent=source.version.version,
                now=now,
                card=bundle.card,
                annotations={
                    "reason": asked.reason,
                    NOTE: f"from version {source.version.version} by {payload['name']}: {payload['said']}"[
                        :1000
                    ],
                    **({"trained_until": iso(until)} if until else {}),
                },
                proposal=proposal,
            ).version
        store.finish_run(
            conn, run_id, status="FINISHED" if gates.passed else "REFUSED", now=now, bundle=bundle.digest,
            params=fitted.params, metrics=fitted.metrics,
            context=_context(source, {"said": payload["said"], "recipe": payload["recipe"]}),
        )  # fmt: skip
        ledger_store.append(
            conn,
            at=now,
            actor=setting.actor.name,
            action="run.finished" if gates.passed else "run.refused",
            subject=f"run {run_id}",
            payload={
                "model": spec.model,
                "bundle": bundle.digest,
                "version": version,
                **({} if gates.passed else {"why": gates.summary()[:500]}),
            },
        )
    return version


def _context(source: Source, told: Mapping[str, Any]) -> dict[str, Any]:
    """The context of the run that trained the weights, and that this one compressed them."""
    parent = source.version
    return {
        **source.run["context"],
        NOTE: {
            "parent": parent.version, "parent_bundle": parent.bundle, "trained_in": source.run["run_id"],
            **finite(told),
        },
    }  # fmt: skip


def _without_curves(said: Mapping[str, Any]) -> dict[str, Any]:
    """A ladder's report without the points of its curves: they are in the candidates' own runs."""
    return {**said, "candidates": [{**one, "curve": {}} for one in said["candidates"]]}
