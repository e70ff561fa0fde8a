"""/metrics in Prometheus' text format: written from the ledger at each scrape, so that nothing is counted twice."""

import os
from collections.abc import Iterable
from pathlib import Path

from loopwright import __version__
from loopwright.control import store
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.delivery import store as delivery_store
from loopwright.delivery.rollout import canary_weight
from loopwright.jobs import store as jobs_store
from loopwright.kernel.clock import to_us
from loopwright.monitoring import store as monitoring_store
from loopwright.registry import versions

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[dict[str, str], float]


def render(context: Context, controllers: Controllers) -> str:
    """Return every metric of the control plane."""
    parts = [
        _metric("loopwright_build_info", "gauge", "The running release.", [({"version": __version__}, 1)]),
        _metric("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, _resident())]),
        _metric("loopwright_controllers_leading", "gauge", "1 when this process leads the controllers.",
                [({}, float(controllers.leading))]),
        _metric("loopwright_controller_rounds_total", "counter", "Rounds a controller ran.",
                [({"controller": name}, h.rounds) for name, h in controllers.health.items()]),
        _metric("loopwright_controller_failures_total", "counter", "Rounds that ended in an error.",
                [({"controller": name}, h.failures) for name, h in controllers.health.items()]),
        _metric("loopwright_controller_seconds_total", "counter", "Time spent in a controller's rounds.",
                [({"controller": name}, h.seconds) for name, h in controllers.health.items()]),
    ]  # fmt: skip
    with context.ledger.read() as conn:
        models = versions.list_models(conn)
        marks = {model: monitoring_store.watermark(conn, model) for model in models}
        alerts = monitoring_store.list_alerts(conn, standing=True)
        running = {
            rollout.model: rollout for rollout in delivery_store.list_rollouts(conn, active=True, limit=1000)
        }
        rows = store.audit_rows(conn)
        counted = store.stage_counts(conn)
        queued, oldest = jobs_store.counts(conn), jobs_store.oldest_waiting(conn)
    standing: dict[tuple[str, str, str], int] = {}
    for alert in alerts:
        key = (alert.model, alert.tier.value, alert.state.value)
        standing[key] = standing.get(key, 0) + 1
    parts += [
        _metric("loopwright_audit_rows", "gauge", "Rows of the audit log.", [({}, rows)]),
        _metric("loopwright_versions", "gauge", "Versions by stage.",
                [({"model": model, "stage": stage}, count) for model, stage, count in counted]),
        _metric("loopwright_event_time_seconds", "gauge", "Latest event time seen, as a Unix time.",
                [({"model": model}, to_us(mark) / 1e6) for model, mark in marks.items() if mark]),
        _metric("loopwright_alerts", "gauge", "Alerts that stand.",
                [({"model": m, "tier": tier, "state": state}, n) for (m, tier, state), n in standing.items()]),
        _metric("loopwright_canary_weight", "gauge", "Share of requests the running rollout's candidate answers.",
                [({"model": model, "version": str(one.version)}, canary_weight(one.state))
                 for model, one in running.items()]),
        _metric("loopwright_jobs", "gauge", "Jobs by state.",
                [({"model": model, "state": state}, count) for model, state, count in queued]),
        _metric("loopwright_jobs_oldest_waiting_seconds", "gauge", "How long the oldest queued job has waited.",
                [({"model": model}, (context.now - since).total_seconds()) for model, since in oldest]),
    ]  # fmt: skip
    return "".join(parts)


def _metric(name: str, kind: str, help: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
