"""Prometheus text of one server: the sum over its workers, whichever of them is asked."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from loopwright.serving.counters import BOUNDS, Series, read_counters, worker_pids

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")

_HELP = {
    "predictions": (
        "loopwright_predictions_total",
        "Predictions by arm; a canary's error counts though stable answered.",
    ),
    "http": ("loopwright_http_requests_total", "HTTP answers by status code."),
    "shadow_dropped": (
        "loopwright_shadow_dropped_total",
        "Copies that were not predicted because too many waited.",
    ),
}
_LABELS = {
    "predictions": ("model", "version", "arm", "status"),
    "http": ("code",),
    "shadow_dropped": ("model", "version"),
    "latency": ("model",),
}


def render(folder: Path, gauges: Mapping[str, float]) -> str:
    """Return the exposition of the counters in `folder`, each worker's memory and CPU, and `gauges`."""
    series = read_counters(folder)
    lines: list[str] = []
    for kind, (metric, text) in _HELP.items():
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} counter"]
        lines += [
            f"{metric}{_labels(_LABELS[kind], key[1:])} {value.count}"
            for key, value in sorted(series.items())
            if key[0] == kind
        ]
    lines += _histogram({key: value for key, value in series.items() if key[0] == "latency"})
    lines += _processes(worker_pids(folder))
    typed = ""
    for name, number in sorted(gauges.items()):
        metric = name.partition("{")[0]
        if metric != typed:
            lines.append(f"# TYPE loopwright_{metric} {'counter' if metric.endswith('_total') else 'gauge'}")
            typed = metric
        lines.append(f"loopwright_{name} {number:.15g}")
    return "\n".join(lines) + "\n"


def _histogram(series: Mapping[tuple[str, ...], Series]) -> list[str]:
    metric = "loopwright_request_seconds"
    lines = [f"# HELP {metric} Time from request to answer inside the worker.", f"# TYPE {metric} histogram"]
    for key, value in sorted(series.items()):
        below = 0
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], value.buckets, strict=True):
            below += count
            lines.append(f"{metric}_bucket{_labels(('model', 'le'), (key[1], bound))} {below}")
        label = _labels(("model",), key[1:])
        lines += [f"{metric}_sum{label} {value.sum_us / 1e6:.6f}", f"{metric}_count{label} {value.count}"]
    return lines


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

    return (
        "{" + ",".join(f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=False)) + "}"
    )
