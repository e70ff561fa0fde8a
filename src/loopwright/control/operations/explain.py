"""Why the model answered so: one logged prediction, one row of inputs, and how far the background job is."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.explaining import Explainable, columns_from, columns_of, open_version
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.monitoring.explanations import ExplanationLog
from loopwright.monitoring.lookup import Logged, coverage, find_answers
from loopwright.monitoring.store import STAND_INS, load_spec
from loopwright.quality.explain_report import explain_rows
from loopwright.registry import versions

ALIKE = 1e-4
"""A logged answer this near to the recomputed one is the same answer, on whatever machine it was given."""


@operation("explain.prediction", "GET", "/models/{model}/explain", role=Role.DEVELOPER)
def prediction(ctx: Context, model: str, id: str, version: int | None = None) -> dict[str, Any]:
    """Explain a logged prediction by its id, with the version that answered it.

    Of several answers to one id the one that was given counts, never a shadow's; `version` asks for another.
    """
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
    found = find_answers(ctx.home.predictions, model, id)
    if not found:
        raise NotFound("no prediction of this id in the log", where=model, got=id, next=_covered(ctx, model))
    logged = _chosen(found, model, version)
    opened = open_version(ctx, model, logged.version)
    inputs = columns_of([logged.inputs], opened.bundle.schema.inputs)
    (answer,) = explain_rows(opened.bundle, opened.explainer, inputs)
    place = opened.bundle.schema.outputs.index(answer["output"])
    return {
        "model": model,
        "version": logged.version,
        "bundle": opened.bundle.digest,
        "id": logged.id,
        "unit": logged.unit,
        "event_time": iso(logged.event_time),
        "answered_at": iso(logged.at),
        "arm": logged.arm,
        "logged": logged.outputs,
        "as_logged": abs(logged.outputs[place] - answer["prediction"]) <= ALIKE,
        **answer,
    }


@operation("explain.inputs", "POST", "/models/{model}/{version}/explain", role=Role.DEVELOPER)
def inputs(ctx: Context, model: str, version: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """Explain what a version answers to one row of inputs; nothing is logged."""
    opened: Explainable = open_version(ctx, model, version)
    columns = columns_from(inputs, opened.bundle.schema.inputs)
    (answer,) = explain_rows(opened.bundle, opened.explainer, columns)
    return {"model": model, "version": version, "bundle": opened.bundle.digest, **answer}


@operation("explain.status", "GET", "/models/{model}/explain/status")
def status(ctx: Context, model: str) -> dict[str, Any]:
    """Say how far the explanations of a model's logged predictions have come."""
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        spec = load_spec(conn, model)
    found = ExplanationLog(ctx.home.explanations, ctx.home.predictions).progress(model)
    return {
        "model": model,
        "log": spec.explain.log if spec else "none",
        "files": found.files,
        "waiting": found.waiting,
        "explained": found.explained,
        "skipped": sum(found.skipped.values()),
        "reasons": dict(found.skipped),
        "methods": dict(found.methods),
        "newest": iso(found.newest) if found.newest else None,
    }


def _chosen(found: list[Logged], model: str, version: int | None) -> Logged:
    if version is not None:
        found = [one for one in found if one.version == version]
        if not found:
            raise NotFound("this version did not answer that request", where=model, got=version)
    answered = [one for one in found if one.outputs and one.arm not in STAND_INS]
    if not answered:
        raise BadInput(
            "no model answered the request, so there is nothing to explain",
            where=model,
            got=found[0].error or found[0].arm,
        )
    given = [one for one in answered if one.arm != "shadow"]
    return (given or answered)[0]


def _covered(ctx: Context, model: str) -> str:
    held = coverage(ctx.home.predictions, model)
    if held.first is None or held.last is None:
        return "The log of this model is empty."
    return f"The log holds {held.rows:,} answers from {iso(held.first)} to {iso(held.last)}."
