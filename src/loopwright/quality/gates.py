"""Runs a project's gates on a sealed bundle. No evidence is never a pass: a gate that raises is ERROR."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.clock import iso, to_us
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Baseline, Gates
from loopwright.project.values import Threshold
from loopwright.quality.behaviour import Columns, load_checks, run_check
from loopwright.quality.fairness import fairness_report, gate_results
from loopwright.quality.fairness_report import FairnessReport
from loopwright.quality.report import GateReport, GateResult
from loopwright.stats.bootstrap import non_inferior, paired_bootstrap
from loopwright.stats.metrics import metric

Floats = NDArray[np.float64]

MIN_COMPARED = 500
"""Fewer rows that neither model was trained on give no verdict on which is better."""

WARM_UP = 50
MEASURED = 400
ROUNDS = 3


class Model(Protocol):
    """What gates need of an opened bundle."""

    digest: str
    schema: Any
    manifest: Any

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> Floats: ...

    def smoke(self) -> None: ...


class Rows(Protocol):
    """What gates need of a frame: labelled rows the new model was not trained on."""

    def inputs(self) -> dict[str, NDArray[Any]]: ...

    def labels(self) -> NDArray[Any]: ...

    def event_times(self) -> NDArray[Any]: ...


class ExportEquality(Protocol):
    """Result of comparing the trained model's answers with the exported one's."""

    @property
    def rows(self) -> int: ...

    @property
    def max_difference(self) -> float: ...

    @property
    def equal(self) -> bool: ...


def run_gates(
    *,
    bundle: Model,
    holdout: Rows,
    gates: Gates,
    task: str,
    seed: int,
    now: datetime,
    baseline: Model | None = None,
    baseline_trained_until: datetime | None = None,
    behaviour: Path | None = None,
    export: ExportEquality | None = None,
    given: Iterable[GateResult] = (),
    timer: Callable[[], float] = time.perf_counter,
) -> GateReport:
    """Run the gates that `gates` asks for, besides golden smoke, which always runs.

    holdout: labelled rows; rows without a label are left out. baseline: the opened bundle in Production, None
    for a first model. baseline_trained_until: event time up to which the baseline saw data; the comparison
    uses later rows only.
    behaviour: the file of checks (gates.behaviour, resolved). given: results found elsewhere. timer: seconds.
    Never raises for what a model or a project's check does: that becomes an ERROR result.
    """
    labels = np.asarray(holdout.labels(), dtype=np.float64)
    known = ~np.isnan(labels)
    inputs = {name: np.asarray(values)[known] for name, values in holdout.inputs().items()}
    times = np.asarray(holdout.event_times())[known]
    labels = labels[known]

    results = [_guarded("golden smoke", "smoke", "", lambda: [_smoke(bundle)])[0]]
    if export is not None:
        results.append(_export(export))
    results += given
    try:
        predicted: Floats | Exception = bundle.predict(inputs)
    except Exception as error:  # noqa: BLE001 - the transform is the project's: anything may come out of it
        predicted = error
    for name, limit in gates.metrics.items():
        results += _guarded(name, "metric", str(limit), partial(_metric, name, limit, labels, predicted))
    if gates.latency_p99_ms is not None:
        most = gates.latency_p99_ms
        results += _guarded(
            "latency p99", "latency", f"{most} ms", lambda: [_latency(bundle, inputs, most, timer)]
        )
    if gates.baseline is not None:
        asked = gates.baseline
        results += _guarded(
            f"not worse than baseline: {asked.metric}", "comparison", _tolerance(asked),
            lambda: [_compare(asked, bundle, baseline, baseline_trained_until, inputs, labels, times,
            predicted, seed)],
        )  # fmt: skip
    if behaviour is not None:
        results += _guarded("behaviour", "behaviour", "", lambda: _behaviour(behaviour, bundle, inputs, seed))
    fairness: list[FairnessReport] = []
    if gates.fairness is not None:
        asked_fair = gates.fairness

        def fair() -> list[GateResult]:
            fairness.append(
                fairness_report(
                    asked_fair,
                    task,
                    inputs,
                    labels,
                    # A stated reason needs no answers; a model that gives none must not look fair.
                    _answers(predicted),
                    model=str(bundle.manifest.model),
                    bundle=bundle.digest,
                    classes=tuple(getattr(bundle.schema, "classes", ())),
                    now=now,
                )
            )
            return gate_results(fairness[0])

        over = f": {asked_fair.metric} over {', '.join(asked_fair.attribute)}" if asked_fair.attribute else ""
        results += _guarded(f"fairness{over}", "fairness", "", fair)
    return GateReport(
        model=str(bundle.manifest.model),
        bundle=bundle.digest,
        baseline=baseline.digest if baseline is not None else None,
        rows=len(labels),
        at=now,
        results=tuple(results),
        fairness=fairness[0] if fairness else None,
    )


def _guarded(name: str, kind: str, limit: str, gate: Callable[[], list[GateResult]]) -> list[GateResult]:
    try:
        return gate()
    except LoopwrightError as error:
        return [GateResult(name, kind, Verdict.ERROR, None, limit, str(error))]
    except Exception as error:  # noqa: BLE001 - whatever broke it, the gate must show as broken
        return [GateResult(name, kind, Verdict.ERROR, None, limit, f"{type(error).__name__}: {error}")]


def _answers(predicted: Floats | Exception) -> Floats:
    if isinstance(predicted, Exception):
        raise predicted
    return predicted


def _smoke(bundle: Model) -> GateResult:
    try:
        bundle.smoke()
    except LoopwrightError as error:
        return GateResult("golden smoke", "smoke", Verdict.FAIL, None, "", str(error))
    return GateResult("golden smoke", "smoke", Verdict.PASS, None, "", "golden rows give the sealed outputs")


def _export(export: ExportEquality) -> GateResult:
    verdict = Verdict.PASS if export.equal and export.rows else Verdict.FAIL
    detail = f"trained and exported model differ by at most {export.max_difference:.2g} on {export.rows} rows"
    return GateResult(
        "export equals the trained model", "export", verdict, float(export.max_difference), "", detail
    )


def _metric(name: str, limit: Threshold, labels: Floats, predicted: Floats | Exception) -> list[GateResult]:
    value = float(metric(name)(labels, _answers(predicted)))
    if np.isnan(value):
        detail = f"undefined on these {len(labels)} rows"
        return [GateResult(name, "metric", Verdict.ERROR, None, str(limit), detail)]
    verdict = Verdict.PASS if limit.holds(value) else Verdict.FAIL
    detail = f"{value:.4f} on {len(labels)} held-out rows"
    return [GateResult(name, "metric", verdict, value, str(limit), detail)]


def _latency(bundle: Model, inputs: Columns, limit: Threshold, timer: Callable[[], float]) -> GateResult:
    """p99 over one-row predictions after a warm-up, the best of three rounds: other work only adds time."""
    rows = len(next(iter(inputs.values())))
    if not rows:
        return GateResult("latency p99", "latency", Verdict.ERROR, None, f"{limit} ms", "no rows to predict")
    one = [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(min(rows, MEASURED))]
    for i in range(WARM_UP):
        bundle.predict(one[i % len(one)])
    rounds = []
    for _ in range(ROUNDS):
        spent = np.empty(MEASURED)
        for i in range(MEASURED):
            began = timer()
            bundle.predict(one[i % len(one)])
            spent[i] = timer() - began
        rounds.append(1000 * float(np.quantile(spent, 0.99, method="higher")))
    value = min(rounds)
    verdict = Verdict.PASS if limit.holds(value) else Verdict.FAIL
    detail = f"{value:.3f} ms for one row, {MEASURED} predictions, best of {ROUNDS} rounds"
    return GateResult("latency p99", "latency", verdict, value, f"{limit} ms", detail)


def _compare(
    asked: Baseline,
    bundle: Model,
    baseline: Model | None,
    trained_until: datetime | None,
    inputs: Columns,
    labels: Floats,
    times: NDArray[Any],
    predicted: Floats | Exception,
    seed: int,
) -> GateResult:
    name, limit = f"not worse than baseline: {asked.metric}", _tolerance(asked)
    new = _answers(predicted)
    if baseline is None:
        return GateResult(
            name, "first model", Verdict.PASS, None, limit, "first model: nothing to compare with"
        )
    if baseline.schema.outputs != bundle.schema.outputs:
        before, after = list(baseline.schema.outputs), list(bundle.schema.outputs)
        detail = f"the baseline answers {before}, the new model {after}"
        return GateResult(name, "comparison", Verdict.ERROR, None, limit, detail)

    fresh = np.ones(len(labels), dtype=bool)
    unseen = "held-out rows"
    if trained_until is not None:
        fresh = times > np.datetime64(to_us(trained_until), "us")
        unseen = f"held-out rows after {iso(trained_until)}, where the baseline's training ends"
    rows = int(fresh.sum())
    if rows < MIN_COMPARED:
        detail = (
            f"{rows} {unseen}; a comparison needs {MIN_COMPARED}: "
            "bring more rows, hold out more (data.holdout), or do without (gates.baseline: null)"
        )
        return GateResult(name, "comparison", Verdict.INCONCLUSIVE, None, limit, detail)
    old = baseline.predict({column: values[fresh] for column, values in inputs.items()})
    result = paired_bootstrap(
        asked.metric, labels[fresh], new[fresh], old, confidence=asked.confidence, seed=seed
    )
    detail = (
        f"{result.new:.4f} against {result.old:.4f}: gain {result.difference:+.4f}, "
        f"at {asked.confidence:.0%} confidence at least {result.low:+.4f} and at most {result.high:+.4f}, "
        f"on {rows} {unseen}"
    )
    return GateResult(
        name,
        "comparison",
        non_inferior(result, asked.tolerance),
        result.difference,
        limit,
        detail,
        (result.low, result.high),
    )


def _tolerance(asked: Baseline) -> str:
    return f"gain >= {-asked.tolerance:g}"


def _behaviour(path: Path, bundle: Model, inputs: Columns, seed: int) -> list[GateResult]:
    found = [run_check(check, bundle, inputs, seed=seed) for check in load_checks(path)]
    return [
        GateResult(
            f"{one.kind}: {one.sentence}",
            "behaviour",
            one.verdict,
            one.value,
            f">= {one.limit:g} of the rows",
            one.detail,
        )
        for one in found
    ]
