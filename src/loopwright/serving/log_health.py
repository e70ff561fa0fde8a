"""What the log's gauges mean to a person."""

from collections.abc import Mapping

from loopwright.kernel.sizes import said_size


def log_warnings(gauges: Mapping[str, float], failing: str = "") -> list[str]:
    """What a person should know about the log. failing: why this worker could not write to it just now."""
    found = []
    if failing:
        found.append(
            f"PREDICTIONS CANNOT BE LOGGED ({failing}): models are not answered for, or, where serving.log.disk_full "
            "is shed, answered without a record. Free disk space; it goes on by itself"
        )
    if gauges.get("log_disk_low"):
        found.append(
            f"the log's disk has {said_size(gauges.get('log_disk_free_bytes', 0.0))} left: when it is full, models are "
            "not answered for, or answered without a record where serving.log.disk_full is shed"
        )
    if files := int(gauges.get("log_refused_files", 0)):
        found.append(f"{files} files of predictions that a receiver refused lie in segments/refused")
    for name, value in sorted(gauges.items()):
        kind, _, label = name.partition("{")
        sink = label.removeprefix('sink="').removesuffix('"}')
        if kind == "log_sink_up" and not value:
            found.append(f"{sink} does not take predictions; they wait on this disk")
        elif kind == "log_sink_given_up_total" and value:
            found.append(f"{int(value)} predictions were given up for {sink}: it lagged beyond --log-keep")
    return found
