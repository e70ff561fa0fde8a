"""Refusals in the audit log: all of them are told, none of them floods it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from loopwright.registry.refusals import ROWS_PER_WINDOW, WINDOW, Refusals

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        self.refusals = Refusals(lambda actor, subject, payload: self.rows.append((actor, subject, payload)))

    def refuse(
        self, at: datetime = NOON, *, actor: str = "eve", subject: str = "late/1", why: str = "no"
    ) -> None:
        self.refusals.note(actor=actor, act="stage.transition", subject=subject, why=why, now=at)


def test_the_first_is_written_at_once_and_the_same_again_is_counted_until_its_window_ends() -> None:
    log = Log()
    for second in range(100):
        log.refuse(NOON + timedelta(seconds=second))
    assert log.rows == [("eve", "late/1", {"act": "stage.transition", "why": "no"})]
    log.refuse(NOON + WINDOW)
    assert log.rows[1:] == [
        ("eve", "late/1", {"act": "stage.transition", "why": "no", "again": 99}),
        ("eve", "late/1", {"act": "stage.transition", "why": "no"}),
    ]


def test_another_actor_subject_or_reason_is_another_refusal() -> None:
    log = Log()
    log.refuse()
    log.refuse(actor="mallory")
    log.refuse(subject="late/2")
    log.refuse(why="never")
    assert len(log.rows) == 4


def test_a_client_that_varies_what_it_tries_is_told_in_one_more_row() -> None:
    log = Log()
    for number in range(3 * ROWS_PER_WINDOW):
        log.refuse(subject=f"late/{number}")
    log.refuse(actor="ana")
    assert len(log.rows) == ROWS_PER_WINDOW + 2
    assert log.rows[ROWS_PER_WINDOW][2]["act"] == "many acts" and log.rows[-1][0] == "ana"
    log.refuse(NOON + WINDOW, actor="ana")
    assert sum(payload.get("again", 0) for _, _, payload in log.rows) == 2 * ROWS_PER_WINDOW - 1


def test_a_clock_that_goes_back_does_not_silence_the_log() -> None:
    log = Log()
    log.refuse()
    log.refuse(NOON - timedelta(days=1))
    assert len(log.rows) == 2


def test_a_long_reason_is_cut() -> None:
    log = Log()
    log.refuse(subject="x" * 10_000, why="y" * 10_000)
    ((_, subject, payload),) = log.rows
    assert len(subject) == 200 and len(payload["why"]) == 1000
