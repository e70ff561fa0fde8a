"""Prometheus text of one server: the sum over its workers, whichever of them is asked."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loopwright.serving.counters import BOUNDS, SIZES, Series, read_counters, worker_pids

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")

_COUNTERS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "predictions": (
        "predictions_total",
        ("model", "version", "arm", "status"),
        "Predictions by arm; an arm's error counts though another answered in its place.",
    ),
    "http": ("http_requests_total", ("code",), "HTTP answers by status code."),
    "grpc": ("grpc_requests_total", ("code",), "gRPC answers by status."),
    "shadow_dropped": (
        "shadow_dropped_total",
        ("model", "version"),
        "Copies that were not predicted because too many waited.",
    ),
    "log_dropped": (
        "log_dropped_total",
        ("model",),
        "Predictions given without a record, because the disk is full and the policy says shed.",
    ),
    "log_refused": (
        "log_refused_total",
        ("model",),
        "Predictions not given because they cannot be logged: the disk is full, the policy says refuse.",
    ),
    "breaker_opened": (
        "breaker_opened_total",
        ("model", "version", "arm"),
        "How often an arm was left alone because it failed or lagged.",
    ),
    "features": (
        "feature_lookups_total",
        ("model", "status"),
        "Rows looked up in an online view, by how it stands there.",
    ),
    "features_unfit": (
        "features_unfit_total",
        ("model", "version"),
        "Requests whose looked-up inputs were kept from a version: away, stale, or of another definition.",
    ),
    "overflow": ("series_overflow_total", (), "Events counted together because there were too many series."),
}
_GAUGES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "queue_rows": ("queue_rows", ("model", "version"), "Rows that wait for a prediction or are in one."),
    "breaker_open": (
        "breaker_open_workers",
        ("model", "version", "arm"),
        "Workers in which an arm is left alone, or only tried.",
    ),
}
_HISTOGRAMS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "latency": (
        "request_seconds",
        ("model", "version", "arm"),
        "Time from request to answer inside the worker; one bucket ends at the model's objective.",
    ),
    "lookup": (
        "feature_lookup_seconds",
        ("model",),
        "Time to look up what a request left to the online store.",
    ),
    "batch": ("batch_rows", ("model", "version"), "Rows predicted together by a version with a queue."),
}


def render(folder: Path, gauges: Mapping[str, float]) -> str:
    """Return the exposition of the counters in `folder`, each worker's memory and CPU, and `gauges`."""
    series = read_counters(folder)
    lines: list[str] = []
    for families, kind_of in ((_COUNTERS, "counter"), (_GAUGES, "gauge")):
        for kind, (name, labels, text) in families.items():
            lines += [f"# HELP loopwright_{name} {text}", f"# TYPE loopwright_{name} {kind_of}"]
            lines += [
                f"loopwright_{name}{_labels(labels, key[1:])} {value.count}"
                for key, value in sorted(series.items())
                if key[0] == kind
            ]
    for kind, (name, labels, text) in _HISTOGRAMS.items():
        lines += [f"# HELP loopwright_{name} {text}", f"# TYPE loopwright_{name} histogram"]
        for key, value in sorted(series.items()):
            if key[0] == kind:
                lines += _histogram(f"loopwright_{name}", dict(zip(labels, key[1:], strict=False)), value)
    lines += _processes(worker_pids(folder))
    typed = ""
    for name, number in sorted(gauges.items()):
        metric = name.partition("{")[0]
        if metric != typed:
            lines.append(f"# TYPE loopwright_{metric} {'counter' if metric.endswith('_total') else 'gauge'}")
            typed = metric
        lines.append(f"loopwright_{name} {number:.15g}")
    return "\n".join(lines) + "\n"


def _histogram(metric: str, labels: Mapping[str, str], series: Series) -> list[str]:
    """One series' buckets, cumulative; durations have one more, at the objective, where none ends there anyway."""
    sizes = metric.endswith("_rows")
    bounds: Sequence[float] = SIZES if sizes else BOUNDS
    buckets: list[tuple[float, int]] = []
    below = 0
    for bound, count in zip(bounds, series.buckets, strict=False):
        objective = series.slo_us / 1e6
        if not sizes and objective and (buckets[-1][0] if buckets else 0.0) < objective < bound:
            buckets.append((objective, below + series.within))
        below += count
        buckets.append((bound, below))
    if not sizes and series.slo_us / 1e6 > bounds[-1]:
        buckets.append((series.slo_us / 1e6, below + series.within))
    lines = [
        f"{metric}_bucket{_labels((*labels, 'le'), (*labels.values(), f'{bound:.15g}'))} {count}"
        for bound, count in [*buckets, (math.inf, series.count)]
    ]
    total = f"{series.sum}" if sizes else f"{series.sum / 1e6:.6f}"
    plain = _labels(labels, labels.values())
    return [line.replace('le="inf"', 'le="+Inf"') for line in lines] + [
        f"{metric}_sum{plain} {total}",
        f"{metric}_count{plain} {series.count}",
    ]


def _processes(pids: Mapping[str, int]) -> list[str]:
    memory = ["# TYPE loopwright_worker_resident_bytes gauge"]
    cpu = ["# TYPE loopwright_worker_cpu_seconds gauge"]
    for slot, pid in pids.items():
        try:
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            spent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue  # between a worker's death and its replacement there is nothing to say
        label = _labels(("worker",), (slot,))
        memory.append(f"loopwright_worker_resident_bytes{label} {resident}")
        cpu.append(f"loopwright_worker_cpu_seconds{label} {(int(spent[11]) + int(spent[12])) / _TICK:.2f}")
    return memory + cpu


def _labels(names: Iterable[str], values: Iterable[str]) -> str:
    def escape(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    if not (labels := list(zip(names, values, strict=False))):
        return ""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels) + "}"
