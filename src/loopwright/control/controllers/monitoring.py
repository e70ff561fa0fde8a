"""Judges the windows that event time has completed, when something new has come in."""

from datetime import datetime, timedelta
from typing import Any

from loopwright.control import store
from loopwright.control.context import Context
from loopwright.monitoring import evaluate
from loopwright.monitoring import store as monitoring_store
from loopwright.monitoring.evaluate import Evaluation
from loopwright.monitoring.log import PredictionLog


class MonitoringController:
    """Evaluates only when a watermark rose or labels came since the last round: an idle tick costs one read."""

    def __init__(self) -> None:
        self._seen: object = None
        self._compacted: dict[str, datetime] = {}

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        with ctx.ledger.read() as conn:
            standing = store.monitoring_state(conn)
        if standing == self._seen:
            return []
        done = evaluate.tick(ctx.ledger, home=ctx.home, now=ctx.now)
        self._compact(ctx)
        self._seen = standing
        return [_told(evaluation) for evaluation in done]

    def _compact(self, ctx: Context) -> None:
        """Merge the small files of days that event time has left behind."""
        log = PredictionLog(ctx.home.predictions)
        with ctx.ledger.read() as conn:
            models = list(monitoring_store.monitored_models(conn))
        for model, reached in models:
            # Yesterday may still get stragglers; a day is merged once it is two days old.
            end = reached.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
            day = self._compacted.get(model, end - timedelta(days=7))
            while day < end:
                log.compact(model, day.date())
                day += timedelta(days=1)
            self._compacted[model] = end


def _told(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "model": evaluation.model,
        "event_time": evaluation.event_time,
        "windows": [
            f"{judged.kind} of {judged.version}: {judged.verdict.value}" for judged in evaluation.windows
        ],
        "opened": [alert.title for alert in evaluation.opened],
        "resolved": [alert.title for alert in evaluation.resolved],
    }
