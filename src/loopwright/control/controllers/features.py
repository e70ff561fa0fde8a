"""Watches features: counts them in every window that event time completes, and alerts by the project's rules."""

import logging
from typing import Any

from loopwright.control import store
from loopwright.control.context import Context
from loopwright.control.faults import explain as in_words
from loopwright.control.feature_watching import Watched, watch, windows_due
from loopwright.kernel.errors import LoopwrightError
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.windows import Window
from loopwright.project.spec import Spec

log = logging.getLogger("loopwright.control")


WINDOWS_A_ROUND = 4
"""Rollouts are judged by the same thread: a backlog is worked off a little each round."""


class FeaturesController:
    """Looks only when a watermark rose since the last round; a window that cannot be measured is told and passed by."""

    def __init__(self) -> None:
        self._seen: object = None
        self._passed: set[tuple[str, Window]] = set()

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        with ctx.ledger.read() as conn:
            standing = store.monitoring_state(conn)
            if standing == self._seen:
                return []
            models = [model for model, _ in monitoring_store.monitored_models(conn)]
            specs = [monitoring_store.load_spec(conn, model) for model in models]
        due = [(spec, window) for spec in specs if spec is not None for window in windows_due(ctx, spec)]
        due = [(spec, window) for spec, window in due if (spec.model, window) not in self._passed]
        done = [self._watch(ctx, spec, window) for spec, window in due[:WINDOWS_A_ROUND]]
        if len(due) <= WINDOWS_A_ROUND:
            self._seen = standing
        return [_told(each) for each in done if each is not None]

    def _watch(self, ctx: Context, spec: Spec, window: Window) -> Watched | None:
        try:
            watched = watch(ctx, spec, window)
        except Exception as error:  # noqa: BLE001 - the project's own code is run: the other models are watched on
            known = error if isinstance(error, LoopwrightError) else in_words(error)
            self._passed.add((spec.model, window))
            log.warning(
                "the features of %s cannot be measured from %s on: %s",
                spec.model,
                window.start,
                known or f"{type(error).__name__}: {error}",
            )
            return None
        if watched is None or not any(one.source == "requests" for one in watched.statistics):
            # Nothing is kept that would say it was looked at: its requests are no longer in the log.
            self._passed.add((spec.model, window))
        return watched


def _told(watched: Watched) -> dict[str, Any]:
    return {
        "model": watched.model,
        "version": watched.version,
        "window": watched.window.start,
        "broken": [str(each) for each in watched.broken],
        "opened": [alert.title for alert in watched.opened],
        "resolved": [alert.title for alert in watched.resolved],
    }
