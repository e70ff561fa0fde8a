"""What a run finds of its sealed bundle: documents among its artifacts, and evidence in the ledger."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.open import Bundle
from loopwright.kernel.verdict import Verdict
from loopwright.pipeline.explained import Explainability
from loopwright.pipeline.tracked import Setting
from loopwright.quality.report import GateReport
from loopwright.registry.evidence import record_evidence
from loopwright.training.recorder import Recorder


def keep_gates(run: Recorder, gates: GateReport) -> None:
    """Keep what the gates said, before explaining the model, which takes longer, is begun."""
    run.text(gates.to_markdown(), "gates.md")
    run.artifact_json(gates.to_json(), "gates.json")


def keep_documents(run: Recorder, gates: GateReport, explained: Explainability) -> None:
    """Keep the documents and pictures of fairness and explainability."""
    if gates.fairness is not None:
        run.artifact_json(gates.fairness.to_json(), "fairness.json")
        run.text(gates.fairness.to_markdown(), "fairness.md")
        run.text(gates.fairness.to_svg(), "fairness.svg")
    run.artifact_json(dict(explained.payload), "explainability.json")
    if explained.picture is not None:
        run.text(explained.picture, "explainability.svg")


def record_findings(
    conn: Connection, setting: Setting, bundle: Bundle, gates: GateReport, explained: Explainability, now: datetime,
    **more: Mapping[str, Any],
) -> None:  # fmt: skip
    """Record as evidence of the bundle all that the run knows of it. more: kind → payload, with the gates' verdict."""
    for kind, verdict, payload in _findings(setting, gates, explained, more):
        record_evidence(
            conn, kind=kind, model=setting.project.spec.model, version=None, bundle=bundle.digest, verdict=verdict,
            payload=payload, at=now, actor=setting.actor,
        )  # fmt: skip


def _findings(
    setting: Setting, gates: GateReport, explained: Explainability, more: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Verdict, Mapping[str, Any]]]:
    yield "gates", gates.verdict, gates.to_json()
    for kind, payload in more.items():
        yield kind, gates.verdict, payload
    if gates.fairness is not None:
        yield "fairness", gates.fairness.verdict, gates.fairness.to_json()
    yield "explainability", explained.verdict, explained.payload
    if setting.written is not None:
        yield "card", setting.written.verdict, setting.written.payload(by=setting.actor.name)
