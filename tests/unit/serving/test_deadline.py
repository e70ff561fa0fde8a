"""A prediction that takes too long is stopped; one that does not is left alone."""

import signal
import time
from collections.abc import Iterator

import pytest

from loopwright.serving.deadline import Deadline, PredictionTimeout


@pytest.fixture
def deadline() -> Iterator[Deadline]:
    before = signal.getsignal(signal.SIGALRM)
    limit = Deadline()
    limit.install()
    yield limit
    signal.signal(signal.SIGALRM, before)


def loop_forever(_: None) -> None:
    while True:
        pass


@pytest.mark.parametrize("stuck", [loop_forever, lambda _: time.sleep(60)])
def test_a_stuck_prediction_is_stopped_and_the_next_one_runs(deadline: Deadline, stuck: object) -> None:
    started = time.monotonic()
    with pytest.raises(PredictionTimeout, match=r"longer than 0\.1 s"):
        deadline.run(stuck, None, 0.1)  # type: ignore[arg-type]
    assert time.monotonic() - started < 10
    assert deadline.run(lambda x: x + 1, 1, 0.1) == 2


def test_many_short_predictions_are_not_mistaken_for_a_long_one(deadline: Deadline) -> None:
    until = time.monotonic() + 0.5
    runs = 0
    while time.monotonic() < until:
        deadline.run(lambda _: None, None, 0.2)
        runs += 1
    assert runs > 100


def test_an_error_of_the_prediction_passes_through(deadline: Deadline) -> None:
    with pytest.raises(ZeroDivisionError):
        deadline.run(lambda x: 1 / x, 0, 1.0)
