"""Counts a model's features in a window: as it was asked with, and as it is trained on."""

from collections.abc import Collection, Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa

from loopwright.bundle.signature import Field
from loopwright.data.duck import connect
from loopwright.data.lake import Lake
from loopwright.features.frame import Frame
from loopwright.features.freshness import newest_known
from loopwright.features.module import FeatureModule
from loopwright.features.view import FeatureView, as_mapping
from loopwright.kernel.clock import to_us
from loopwright.monitoring.feature_health.statistics import FeatureStatistics, statistics_of
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.requests import logged_requests
from loopwright.monitoring.windows import Window

GOLD = "frame"
"""The gold table that holds what a model is trained on."""
SAMPLE = 200_000
"""Requests of a window that are counted; of more, a fixed sample is."""


def views_of(module: FeatureModule) -> dict[str, str]:
    """Input → the view that makes it, or "spine"."""
    made = dict.fromkeys(as_mapping(module.spine.inputs), "spine")
    for view in module.views:
        names = view.names() if isinstance(view, FeatureView) else (view.name, *filter(None, [view.count]))
        made |= dict.fromkeys(names, view.name)
    return {name: made[name] for name in module.inputs}


def lives_of(module: FeatureModule) -> dict[str, timedelta]:
    """View → its TTL, where it has one."""
    return {
        view.name: view.ttl for view in module.views if isinstance(view, FeatureView) and view.ttl is not None
    }


def measure(
    module: FeatureModule,
    lake: Lake,
    log: PredictionLog,
    *,
    model: str,
    version: int | None,
    fields: Sequence[Field],
    window: Window,
    unlogged: Collection[str] = (),
) -> list[FeatureStatistics]:
    """Statistics of the model's inputs in `window`; a source without rows there gives none.

    `version` None: whichever version answered. `fields`: the inputs in the order that requests were logged in.
    `unlogged`: those that the log is to be without; nothing is said of how requests had them.
    """
    views = views_of(module)
    files = {
        name: lake.files("silver", model, name)
        for name in module.tables()
        if lake.exists("silver", model, name)
    }
    complete = len(files) == len(module.tables())
    newest = newest_known(module, files, as_of=window.end) if complete else {}
    requests = logged_requests(
        log, model, fields, start=window.start, end=window.end, version=version, limit=SAMPLE
    )
    found: list[FeatureStatistics] = []
    if len(requests):
        dtypes = {field.name: field.dtype for field in fields if field.name not in unlogged}
        found += statistics_of(
            requests.inputs, dtypes, views=views, source="requests", window=window, newest=newest
        )
    trained_on = _gold(module, lake, model, window)
    if trained_on is not None and len(trained_on):
        found += statistics_of(
            trained_on.inputs(), module.inputs, views=views, source="offline", window=window, newest=newest
        )
    return found


def _gold(module: FeatureModule, lake: Lake, model: str, window: Window) -> Frame | None:
    """The rows of the gold frame with event times in `window`; None where there is no frame, or one of other inputs."""
    if not lake.exists("gold", model, GOLD):
        return None
    files = lake.files("gold", model, GOLD)
    if not {"_event_time", *module.inputs} <= set(files.names):
        return None
    columns = ["_event_time", *module.inputs]
    with connect() as engine:
        engine.execute("SET threads = 1")
        files.view(engine, "frame", columns)
        listed = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        rows: pa.Table = engine.sql(
            f"SELECT {listed} FROM frame WHERE epoch_us(_event_time) >= {to_us(window.start)} "
            f"AND epoch_us(_event_time) < {to_us(window.end)}"
        ).to_arrow_table()
    return Frame(rows, dict(module.inputs))


def sparkline(values: Sequence[float | None]) -> str:
    """Values over time in one line of eight heights, "·" where there is none."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return "·" * len(values)
    low, span = float(known.min()), float(known.max() - known.min())
    heights = "▁▂▃▄▅▆▇█"

    def height(value: float | None) -> str:
        if value is None:
            return "·"
        return heights[int(7 * (value - low) / span)] if span else heights[3]

    return "".join(map(height, values))
