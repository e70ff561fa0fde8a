"""Judges a canary against the stable arm from counts alone. Pure: the same counts give the same verdict.

Both tests are sequential (mixture e-processes, `stats.sequential`), so they may be read after every request
without raising the chance of a false verdict above `alpha`. FAIL is said when either test says so, so each gets
half of alpha; PASS needs both, so each may use all of it (an intersection-union test).
"""

from dataclasses import dataclass, field
from math import sqrt

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.sequential import error_rate_judgement, exceedance_judgement

# Below this many stable requests its p99 is little more than its maximum: no latency verdict is given.
_BASELINE_FOR_P99 = 300


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What one arm answered in a span of event time.

    `errors` counts the arm's own failures *before* stable stood in for them. `latency` is in microseconds.
    """

    n: int = 0
    errors: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)

    def __post_init__(self) -> None:
        if not 0 <= self.errors <= self.n:
            raise BadInput(
                "an arm's counts contradict each other", got=f"{self.errors} errors in {self.n} requests"
            )

    def to_json(self) -> dict[str, object]:
        """What a reader of the evidence needs to judge again: counts and the whole histogram."""
        return {"n": self.n, "errors": self.errors, "latency": self.latency.to_json()}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much worse than stable a canary may be.

    error_rate    largest tolerated difference of error rates (0.001 = +0.1 percentage points)
    latency_p99   largest tolerated ratio of p99 latencies; None = latency is not judged
    latency_floor_us  a p99 under this many microseconds is never called harm, whatever the ratio: a rarely
                      used arm has cold caches, and nobody notices 0.6 ms instead of 0.2 ms
    """

    error_rate: float = 0.001
    latency_p99: float | None = 1.5
    latency_floor_us: float = 5_000.0

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise BadInput(
                "not a tolerance for error rates",
                where="delivery.rollback.error_rate",
                got=self.error_rate,
                wanted='more than 0 and less than 1, like "+0.1pp"',
            )
        if self.latency_p99 is not None and self.latency_p99 < 1:
            raise BadInput(
                "not a ratio of latencies",
                where="delivery.rollback.latency_p99",
                got=self.latency_p99,
                wanted='at least 1, like "x1.5"',
            )


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the sentences that say why, and the figures they rest on (JSON-able)."""

    verdict: Verdict
    reasons: tuple[str, ...]
    figures: dict[str, object]

    @property
    def why(self) -> str:
        return "; ".join(self.reasons)

    def to_json(self) -> dict[str, object]:
        return {"verdict": self.verdict.value, "reasons": list(self.reasons), "figures": self.figures}


@dataclass(frozen=True, slots=True)
class _Alpha:
    """Error probabilities of one test's two verdicts; an e-value decides from 1/alpha up (Ville)."""

    fail: float
    pass_: float

    def verdict(self, e_fail: float, e_pass: float) -> Verdict:
        if e_fail >= 1 / self.fail:
            return Verdict.FAIL
        return Verdict.PASS if e_pass >= 1 / self.pass_ else Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class _Check:
    verdict: Verdict
    reason: str
    figures: dict[str, object]


def judge(baseline: ArmCounts, canary: ArmCounts, limits: Limits, alpha: float = 0.05) -> Judgement:
    """FAIL when any check fails, PASS when all pass, else INCONCLUSIVE. No requests are never a PASS."""
    if canary.n == 0 or baseline.n == 0:
        arm = "canary" if canary.n == 0 else "stable arm"
        figures: dict[str, object] = {"canary_n": canary.n, "baseline_n": baseline.n}
        return Judgement(Verdict.INCONCLUSIVE, (f"no requests on the {arm} yet",), figures)

    tests = 2 if limits.latency_p99 is not None else 1
    checks = {"errors": _errors(baseline, canary, limits, _Alpha(alpha / tests, alpha))}
    if limits.latency_p99 is not None:
        checks["latency"] = _latency(
            baseline, canary, limits, limits.latency_p99, _Alpha(alpha / tests, alpha)
        )
    verdicts = {check.verdict for check in checks.values()}
    if Verdict.FAIL in verdicts:
        decisive, verdict = Verdict.FAIL, Verdict.FAIL
    elif verdicts == {Verdict.PASS}:
        decisive, verdict = Verdict.PASS, Verdict.PASS
    else:
        decisive, verdict = Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE
    reasons = tuple(check.reason for check in checks.values() if check.verdict is decisive)
    return Judgement(verdict, reasons, {name: check.figures for name, check in checks.items()})


def _errors(baseline: ArmCounts, canary: ArmCounts, limits: Limits, alpha: _Alpha) -> _Check:
    result = error_rate_judgement(
        baseline.n, baseline.errors, canary.n, canary.errors, margin=limits.error_rate
    )
    verdict = alpha.verdict(result.e_fail, result.e_pass)
    counted = (
        f"{canary.errors} errors in {canary.n} canary requests, "
        f"{baseline.errors} in {baseline.n} on stable, tolerance +{100 * limits.error_rate:g} pp"
    )
    figures: dict[str, object] = {
        "canary_n": canary.n,
        "canary_errors": canary.errors,
        "baseline_n": baseline.n,
        "baseline_errors": baseline.errors,
        "margin": limits.error_rate,
        "e_fail": result.e_fail,
        "e_pass": result.e_pass,
        "verdict": verdict.value,
    }
    return _Check(verdict, f"error rate {_word(verdict)}: {counted}", figures)


def _latency(baseline: ArmCounts, canary: ArmCounts, limits: Limits, ratio: float, alpha: _Alpha) -> _Check:
    """P(canary > ratio × stable's p99) against 1 %.

    FAIL is tested against the upper 97.5 % bound of stable's p99 (order statistics), PASS against its
    estimate: a p99 of a few hundred requests is itself uncertain, and neither verdict may live off its luck.
    """
    if baseline.latency.n < _BASELINE_FOR_P99:
        wanted = f"p99 needs {_BASELINE_FOR_P99} stable requests, there are {baseline.latency.n}"
        reason = f"latency undecided: {wanted}"
        return _Check(Verdict.INCONCLUSIVE, reason, {"verdict": Verdict.INCONCLUSIVE.value})
    estimate = baseline.latency.quantile(0.99)
    upper = baseline.latency.quantile(min(1.0, 0.99 + 1.96 * sqrt(0.99 * 0.01 / baseline.latency.n)))
    pass_at = max(ratio * estimate, limits.latency_floor_us)
    fail_at = max(ratio * upper, limits.latency_floor_us)
    above_pass, above_fail = canary.latency.above(pass_at), canary.latency.above(fail_at)
    n = canary.latency.n
    e_fail = exceedance_judgement(n, above_fail, rate=0.01).e_fail
    e_pass = exceedance_judgement(n, above_pass, rate=0.01).e_pass
    verdict = alpha.verdict(e_fail, e_pass)
    limit, above = (fail_at, above_fail) if verdict is Verdict.FAIL else (pass_at, above_pass)
    reason = (
        f"latency {_word(verdict)}: {above} of {n} canary requests took over {limit / 1000:.2f} ms, 1 % may"
    )
    return _Check(
        verdict,
        reason,
        {
            "canary_n": n,
            "baseline_p99_us": estimate,
            "baseline_p99_upper_us": upper,
            "limit_pass_us": pass_at,
            "limit_fail_us": fail_at,
            "above_pass": above_pass,
            "above_fail": above_fail,
            "e_fail": e_fail,
            "e_pass": e_pass,
            "verdict": verdict.value,
        },
    )


def _word(verdict: Verdict) -> str:
    return {Verdict.PASS: "within limits", Verdict.FAIL: "too high"}.get(verdict, "undecided")
