"""Measures the features of windows that event time has completed, and raises or ends the alert about them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.bundle.signature import Field
from loopwright.control.context import Context
from loopwright.data.lake import Lake
from loopwright.features.module import FeatureModule, load_features
from loopwright.kernel.errors import NotFound
from loopwright.kernel.home import Home
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.alerts import Alert
from loopwright.monitoring.evaluate import apply_conditions
from loopwright.monitoring.feature_health import store
from loopwright.monitoring.feature_health.rules import Broken, broken_rules, feature_condition
from loopwright.monitoring.feature_health.statistics import FeatureStatistics
from loopwright.monitoring.log import PredictionLog
from loopwright.monitoring.windows import LATENESS, Window, complete_windows, window_of
from loopwright.pipeline.feature_watch import lives_of, measure
from loopwright.pipeline.keep import kept_project
from loopwright.project.spec import Spec
from loopwright.registry.versions import get_version


@dataclass(frozen=True, slots=True)
class Definition:
    """What a version was made of: its features, and its inputs in logged order."""

    module: FeatureModule
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Watched:
    """What one window showed."""

    model: str
    version: int
    window: Window
    statistics: tuple[FeatureStatistics, ...]
    broken: tuple[Broken, ...]
    opened: tuple[Alert, ...] = ()
    resolved: tuple[Alert, ...] = ()


def definition_of(ctx: Context, model: str, version: int) -> Definition:
    """The features a version was trained with, from the project kept with its run.

    Raises NotFound for a version without a bundle here, or whose run kept no project.
    """
    with ctx.ledger.read() as conn:
        found = get_version(conn, model=model, version=version)
    depot = BundleDepot(ctx.home.bundles)
    if found.bundle is None or not depot.has(found.bundle) or found.run_id is None:
        raise NotFound(
            "the version was not made by `loopwright run` on this home", where=f"{model}/{version}",
            next="Only such versions know what their features are made of.",
        )  # fmt: skip
    return _definition(ctx.home.root, found.run_id, depot.path(found.bundle))


@lru_cache(maxsize=64)
def _definition(root: Path, run_id: str, bundle: Path) -> Definition:
    # Content-addressed, or written once: neither changes.
    module = load_features(kept_project(Home(root), run_id))
    manifest = parse_manifest((bundle / MANIFEST).read_bytes(), where=str(bundle))
    return Definition(module, manifest.schema.inputs)


def windows_due(ctx: Context, spec: Spec) -> list[Window]:
    """Windows in which the model answered, complete at its watermark and not measured yet, oldest first."""
    with ctx.ledger.read() as conn:
        reached = monitoring_store.watermark(conn, spec.model)
        since = store.newest_end(conn, spec.model, "requests")
        if since is None and (began := monitoring_store.first_hour(conn, spec.model)) is not None:
            since = window_of(began, spec.monitoring.window).start
        if since is None or reached is None:
            return []
        complete = complete_windows(since, reached, spec.monitoring.window, LATENESS)
        if not complete:
            return []
        hours = monitoring_store.served_hours(conn, spec.model, complete[0].start, complete[-1].end)
    return sorted({window_of(hour, spec.monitoring.window) for hour, _ in hours})


def watch(ctx: Context, spec: Spec, window: Window) -> Watched | None:
    """Measure a window, keep what was found and raise or end the alert, in one transaction. None without answers.

    Is idempotent. Raises what the project's own code and tables raise.
    """
    with ctx.ledger.read() as conn:
        version = store.main_version(conn, spec.model, window)
    if version is None:
        return None
    made = definition_of(ctx, spec.model, version)
    statistics = measure_window(ctx, spec.model, version, made, window)
    broken = broken_rules(statistics, spec.monitoring.features, lives=lives_of(made.module))
    condition = feature_condition(statistics, broken, version)
    with ctx.ledger.write() as conn:
        store.save_statistics(conn, spec.model, statistics, ctx.now)
        opened, resolved = apply_conditions(conn, spec.model, [condition] if condition else [], ctx.now)
    return Watched(
        spec.model, version, window, tuple(statistics), tuple(broken), tuple(opened), tuple(resolved)
    )


def measure_window(
    ctx: Context, model: str, version: int, made: Definition, window: Window
) -> list[FeatureStatistics]:
    """Statistics of the version's inputs in any span; nothing is kept."""
    with ctx.ledger.read() as conn:
        spec = monitoring_store.load_spec(conn, model)
    return measure(
        made.module,
        Lake.of(ctx.home, ctx.ledger),
        PredictionLog(ctx.home.predictions),
        model=model,
        version=version,
        fields=made.fields,
        window=window,
        unlogged=spec.serving.log.redact if spec else (),
    )
