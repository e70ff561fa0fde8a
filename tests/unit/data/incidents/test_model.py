"""An incident's states, what it takes to close one, and what its triage says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from loopwright.data.check import RuleResult
from loopwright.data.contract import Scope, Severity
from loopwright.data.incidents.failures import Failures
from loopwright.data.incidents.model import (
    TRANSITIONS,
    Event,
    Incident,
    State,
    after,
    cause_of,
    require_closing,
)
from loopwright.data.incidents.post_mortem import post_mortem
from loopwright.data.incidents.proposals import propose
from loopwright.data.incidents.store import Delivery
from loopwright.data.incidents.triage import Before, joined, triage
from loopwright.kernel.errors import Conflict, Refused

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
RULE = RuleResult(
    "x <= 10", "x", Severity.BLOCK, Scope.ROW, "FAIL", 40, ({"row": 3, "x": "<b>|99</b>"},), "40 of 50 rows"
)
GOOD = Delivery("g" * 64, NOON - timedelta(days=1), 100, 100, 0, 4, "s3://bucket/day1.csv", "c1", {})


def told(**named: object) -> dict[str, object]:
    found = Failures(rows=40, first=3, last=50, columns=("x", "z"), nulls={"x": 0.5, "z": 0.01})
    before = Before(GOOD, ("x", "y"), {"x": 0.02, "y": 0.0})
    given = {
        "kind": "blocked", "uri": "s3://bucket/day2.csv", "batch": "b" * 64, "rules": [RULE], "input_rows": 50,
        "bad_rows": 40, "why": "too large", "now": NOON, "failures": found, "before": before,
    }  # fmt: skip
    return triage(**(given | named))  # type: ignore[arg-type]


def incident(state: State = State.OPEN, **named: object) -> Incident:
    made = Incident(
        "in_1",
        "m",
        "m/t",
        "blocked: x",
        state,
        "m/t: a delivery was refused",
        told(),
        None,
        "",
        "",
        NOON,
        NOON,
        None,
    )
    return replace(made, **named)  # type: ignore[arg-type]


def test_the_way_from_open_to_closed() -> None:
    state = State.OPEN
    for act in ("ack", "resolve", "backfill", "close"):
        state = after(incident(state), act)  # type: ignore[arg-type]
    assert state is State.CLOSED
    assert after(incident(State.CLOSED), "reopen") is State.OPEN
    assert after(incident(State.OPEN), "resolve") is State.RESOLVED


@pytest.mark.parametrize("state", list(State))
def test_every_other_move_is_refused_and_says_what_can_be_done(state: State) -> None:
    for act, moves in TRANSITIONS.items():
        if state in moves:
            continue
        with pytest.raises(Conflict, match=f"the incident is {state}") as caught:
            after(incident(state), act)
        assert "What can be done now" in str(caught.value)


def test_only_open_incidents_that_keep_data_out_are_blocking() -> None:
    assert incident().blocking
    assert incident(State.ACKNOWLEDGED).blocking
    assert not incident(State.RESOLVED).blocking
    assert not incident(triage=told(kind="quarantine")).blocking


def test_an_incident_that_reached_a_version_in_service_needs_a_post_mortem() -> None:
    hit = incident(State.RESOLVED, consumers={"live": ["m/3"]})
    assert hit.impact == "high"
    with pytest.raises(Refused, match="m/3"):
        require_closing(hit, " ")
    with pytest.raises(Refused, match=r"is a draft yet.*in 3 places"):
        require_closing(hit, post_mortem(hit, []))
    require_closing(hit, "We learnt.")
    require_closing(incident(State.RESOLVED, consumers={"live": []}), "")


def test_the_same_rules_in_another_order_are_the_same_cause() -> None:
    assert (
        cause_of("blocked", ["b", "a"])
        == cause_of("blocked", ["a", "b", "a"])
        != cause_of("error", ["a", "b"])
    )


def test_what_changed_since_the_last_good_delivery() -> None:
    changes = told()["changes"]
    assert changes == [
        "50 rows came, 100 the time before (0.50 ×)", "columns are gone: y", "columns are new: z",
        "`x` is null in 50.0% of the rows, 2.0% the time before",
    ]  # fmt: skip
    assert told(before=None)["changes"] == []


def test_a_recurring_cause_keeps_its_beginning_and_counts() -> None:
    later = told(now=NOON + timedelta(hours=2), uri="s3://bucket/day3.csv", before=None)
    both = joined(told(), later)
    assert (both["count"], both["first_seen"]) == (2, "2013-07-01T12:00:00Z")
    assert both["last_seen"] == "2013-07-01T14:00:00Z"
    assert [one["uri"] for one in both["deliveries"]] == ["s3://bucket/day2.csv", "s3://bucket/day3.csv"]
    assert both["last_good"]["batch"] == "g" * 64
    for _ in range(50):
        both = joined(both, later)
    assert both["count"] == 52 and len(both["deliveries"]) == 20


def test_lost_values_and_lost_rows_propose_rules() -> None:
    proposals = propose(told(input_rows=10))
    assert [one.where for one in proposals] == ["the table", "x"]
    assert "mustBeBetween:\n  - 50\n  - 200" in proposals[0].yaml.replace("    ", "  ")
    assert "nullValues" in proposals[1].yaml and "severity" in proposals[1].yaml


def test_values_of_data_cannot_write_markup_into_a_post_mortem() -> None:
    text = post_mortem(incident(), [Event(1, NOON, "ada", "opened", {"reason": "a | b <script>"})])
    assert "<script" not in text and "<b>" not in text
    assert "a \\| b" in text
    assert "s3://bucket/day2.csv" in text and "To be written" in text
