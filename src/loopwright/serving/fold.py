"""Folds events into counts per version, arm and hour, so that monitoring never reads raw traffic."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput
from loopwright.serving.events import Event
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import PREDICTION, Reference

HOUR_US = 3_600_000_000
STAND_INS = frozenset(("cache", "default"))
"""Arms whose answers no model gave just then: they are counted, and in no profile."""

Redacted = Callable[[str, list[Event]], frozenset[str]]


class Profiler:
    """Counts the answered rows of one bundle on its reference's bins."""

    def __init__(self, schema: Schema, reference: Reference | None) -> None:
        self._schema = schema
        names = {field.name for field in schema.inputs} | {PREDICTION}
        # A reference over columns that are not logged cannot be counted here.
        self._reference = reference if reference and names.issuperset(reference.columns) else None

    def count(self, events: list[Event], redacted: frozenset[str] = frozenset()) -> dict[str, Any] | None:
        """Return `Counts.to_json()` for events with outputs, or None without a usable reference.

        Inputs that were `redacted` are not in it: their nulls say nothing about the traffic.
        """
        if self._reference is None or not events:
            return None
        columns: dict[str, Any] = {}
        for position, field in enumerate(self._schema.inputs):
            if field.name in redacted:
                continue
            kind = object if field.dtype == "string" else np.float64
            # float64 turns None into NaN, which is how numbers are null.
            columns[field.name] = np.array([event.inputs[position] for event in events], dtype=kind)
        columns[PREDICTION] = np.array([event.outputs[0] for event in events], dtype=np.float64)
        reference = self._reference.without(redacted) if redacted else self._reference
        return reference.count(columns).to_json()


def fold_events(
    events: Iterable[Event],
    profiler: Callable[[str, int], Profiler | None],
    redacted: Redacted | None = None,
) -> list[Fold]:
    """Return one fold per (model, version, arm, hour) in `events`, in that order.

    profiler(model, version) gives the version's profiler, or None when its bundle is gone: then counts come without a
    profile. Events whose inputs do not fit the schema are counted, not profiled; nor are answers of `STAND_INS`.
    redacted(model, events) names the inputs that some of the events were written without.
    """
    groups: dict[tuple[str, int, str, int], list[Event]] = defaultdict(list)
    for event in events:
        groups[event.model, event.version, event.arm, event.event_time // HOUR_US * HOUR_US].append(event)
    folds = []
    for (model, version, arm, bucket), members in sorted(groups.items()):
        latency = LatencyHistogram()
        latency.add([event.latency_us for event in members if event.latency_us > 0])
        answered = [event for event in members if event.outputs]
        counting = profiler(model, version) if answered and arm not in STAND_INS else None
        hidden = redacted(model, answered) if redacted and counting else frozenset()
        try:
            profile = counting.count(answered, hidden) if counting else None
        except (BadInput, IndexError, TypeError, ValueError):
            profile = None
        folds.append(
            Fold(
                model=model,
                version=version,
                arm=arm,
                bucket=bucket,
                n=len(members),
                errors=sum(event.status == "error" for event in members),
                fallbacks=sum(event.status == "fallback" for event in members),
                latency=latency.to_json(),
                profile=profile,
            )
        )
    return folds
