"""Windows are measured a few a round; one that fails, or has nothing to measure, holds nobody up."""

from datetime import UTC, datetime, timedelta

import pytest

from loopwright.control.context import Context
from loopwright.control.controllers import features
from loopwright.control.controllers.features import WINDOWS_A_ROUND, FeaturesController
from loopwright.control.feature_watching import Watched
from loopwright.monitoring.feature_health.statistics import FeatureStatistics
from loopwright.monitoring.windows import Window
from loopwright.project.spec import Spec

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def spec(model: str) -> Spec:
    return Spec.model_validate({
        "model": model, "task": "binary",
        "data": {"sources": {"t": {"uri": "t.csv", "contract": "t.yaml"}}, "label": {"name": "late"}},
    })  # fmt: skip


class Windows:
    """Ten days of three models: requests of `gone` are no longer in the log, `broken` has a features.py that raises."""

    def __init__(self) -> None:
        self.measured: set[tuple[str, Window]] = set()
        self.asked: list[str] = []
        self.state = 1

    def due(self, _: Context, spec: Spec) -> list[Window]:
        every = [Window(START + n * DAY, START + (n + 1) * DAY) for n in range(10)]
        return [window for window in every if (spec.model, window) not in self.measured]

    def watch(self, _: Context, spec: Spec, window: Window) -> Watched:
        self.asked.append(spec.model)
        if spec.model == "broken":
            raise RuntimeError("a features.py that raises")
        if spec.model == "gone":
            return Watched(spec.model, 1, window, (), ())
        self.measured.add((spec.model, window))
        found = FeatureStatistics("x", "spine", "requests", window, rows=1, nulls=0, distinct=1)
        return Watched(spec.model, 1, window, (found,), ())


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    made = Windows()
    models = ["broken", "gone", "whole"]
    monkeypatch.setattr(features, "windows_due", made.due)
    monkeypatch.setattr(features, "watch", made.watch)
    monkeypatch.setattr(features.store, "monitoring_state", lambda _: made.state)
    monkeypatch.setattr(features.monitoring_store, "monitored_models", lambda _: [(m, START) for m in models])
    monkeypatch.setattr(features.monitoring_store, "load_spec", lambda _, model: spec(model))
    return made


def test_neither_what_fails_nor_what_has_nothing_to_measure_is_tried_for_ever(
    ctx: Context, windows: Windows
) -> None:
    made = FeaturesController()
    told = [each for _ in range(10) for each in made.tick(ctx)]
    assert windows.measured == {("whole", window) for window in windows.due(ctx, spec("other"))}
    assert len(windows.asked) == 30 and len([each for each in told if each["model"] == "whole"]) == 10
    windows.state = 2  # something moved, but none of these windows did
    made.tick(ctx)
    assert len(windows.asked) == 30


def test_a_round_works_off_a_few_windows_and_an_idle_one_none(ctx: Context, windows: Windows) -> None:
    made = FeaturesController()
    made.tick(ctx)
    assert len(windows.asked) == WINDOWS_A_ROUND
    for _ in range(10):
        made.tick(ctx)
    windows.measured.clear()  # it would be due again, but nothing says that anything moved
    assert made.tick(ctx) == []
