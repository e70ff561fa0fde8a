"""What of an answer is written down: samples, redaction, and policies that change while events wait."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.approval import SignedRecord
from loopwright.bundle.routes import Arm, LogPolicy, ModelRoute, RouteTable, ServingPolicy, VersionRoute
from loopwright.bundle.signature import Field, Schema
from loopwright.serving.events import Event
from loopwright.serving.logrule import APPLY_US, LogRule, LogRules, in_sample

SCHEMA = Schema(
    inputs=(Field("a", "float64"), Field("b", "float64"), Field("c", "string")),
    features=("a",),
    outputs=("p",),
    task="binary",
)


def event(id: str = "a", **change: object) -> Event:
    base = Event(id, "u", 7, 1_000, "m", 1, "stable", 100, "ok", "", [1.5, None, "x"], [0.25])
    return msgspec.structs.replace(base, **change)


def table(**log: object) -> RouteTable:
    route = ModelRoute(
        "m", "salt", (Arm("stable", 1, 1.0),), {"1": VersionRoute("0" * 64, SignedRecord("{}", "k", "s"))},
        ServingPolicy(log=LogPolicy(**log)),  # type: ignore[arg-type]
    )  # fmt: skip
    return RouteTable(1, "2013-04-01T00:00:00Z", {"m": route})


@given(st.text(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_what_is_in_a_sample_is_in_every_larger_one(id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert in_sample(id, large) or not in_sample(id, small)
    assert in_sample(id, 1.0)
    assert not in_sample(id, 0.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_sample_is_as_large_as_was_asked(share: float) -> None:
    n = 20_000
    kept = sum(in_sample(f"rq-{i}", share) for i in range(n))
    # Five standard deviations of a fair draw.
    assert abs(kept - n * share) < 5 * (n * share * (1 - share)) ** 0.5


def test_a_redacted_input_is_null_and_the_answered_values_stay_as_they_are() -> None:
    rule = LogRule.of(LogPolicy(redact=("c", "a", "of another version")), SCHEMA)
    values: list[float | int | bool | str | None] = [1.5, 2.5, "secret"]
    assert rule.inputs(values) == [None, 2.5, None]
    assert values == [1.5, 2.5, "secret"]
    assert rule.redacted == (0, 2)


def test_an_error_that_may_quote_an_input_keeps_its_kind_alone() -> None:
    why = "ValueError: could not convert string to float: 'secret'"
    assert LogRule.of(LogPolicy(redact=("c",)), SCHEMA).error(why) == "ValueError"
    assert LogRule.of(LogPolicy(), SCHEMA).error(why) == why


def test_errors_and_fallbacks_are_kept_whatever_the_sample(tmp_path: Path) -> None:
    rules = LogRules(tmp_path / "rules.json")
    rules.follow(table(sample=0.0))
    assert not rules.keep(event())
    assert rules.keep(event(status="error", outputs=[]))
    assert rules.keep(event(status="fallback", arm="cache"))
    assert rules.keep(event(model="of another table"))


def test_all_events_of_an_id_are_kept_or_none(tmp_path: Path) -> None:
    rules = LogRules(tmp_path / "rules.json")
    rules.follow(table(sample=0.5))
    for number in range(200):
        told = {
            rules.keep(event(f"e{number}", arm=arm, version=v)) for arm, v in (("stable", 1), ("shadow", 2))
        }
        assert len(told) == 1


def test_a_policy_that_ended_holds_for_what_was_written_under_it_also_after_a_restart(tmp_path: Path) -> None:
    now = [10**9]
    rules = LogRules(tmp_path / "rules.json", lambda: now[0])
    rules.follow(table(redact=["c"]))
    assert rules.redacted("m", [event(at=0)]) == {"c"}
    rules.follow(table())
    again = LogRules(tmp_path / "rules.json", lambda: now[0])
    assert again.redacted("m", [event(at=now[0] + APPLY_US), event(at=now[0] + 2 * APPLY_US)]) == {"c"}
    assert again.redacted("m", [event(at=now[0] + APPLY_US + 1)]) == frozenset()
    assert again.redacted("another", [event(at=0)]) == frozenset()


def test_rules_that_cannot_be_read_are_those_of_the_next_table(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_bytes(b"\xff{")
    rules = LogRules(path)
    assert rules.keep(event())
    rules.follow(table(sample=0.0, redact=["a"]))
    assert not rules.keep(event())
    assert LogRules(path).redacted("m", [event()]) == {"a"}
