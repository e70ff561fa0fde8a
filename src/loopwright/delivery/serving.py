"""What a project says about serving, in the words of the route table."""

from loopwright.bundle.routes import Batching, Breaker, FeaturePolicy, LogPolicy, ServingPolicy
from loopwright.bundle.signature import default_outputs
from loopwright.project.spec import Spec


def policy_of(spec: Spec | None) -> ServingPolicy:
    """How servers answer for a model; the safe default for one without a project."""
    if spec is None:
        return ServingPolicy()
    serving = spec.serving
    default = serving.default
    if default is not None and not isinstance(default, dict):
        default = dict.fromkeys(
            default_outputs("regression" if spec.task == "regression" else "binary"), default
        )
    return ServingPolicy(
        timeout_ms=serving.timeout_ms,
        slo_ms=spec.monitoring.slo.latency_p99_ms,
        breaker=Breaker(
            error_rate=serving.breaker.error_rate,
            slow_ms=serving.breaker.slow_ms,
            requests=serving.breaker.requests,
            window_s=serving.breaker.window.total_seconds(),
            open_s=serving.breaker.open.total_seconds(),
        ),
        batching=Batching(mode=serving.batching.mode, max_rows=serving.batching.max_rows),
        log=LogPolicy(sample=serving.log.sample, redact=serving.log.redact, disk_full=serving.log.disk_full),
        cached_answers=serving.cached_answers,
        default=default,
        shadow_share=serving.shadow_share,
        features=FeaturePolicy(
            missing=serving.features.missing,
            max_age_s=serving.features.max_age.total_seconds() if serving.features.max_age else None,
            timeout_ms=serving.features.timeout_ms,
        ),
    )
