"""Events are taken in exactly once."""

import itertools
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.control import intake
from loopwright.control.context import Context
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.monitoring.store import arm_counts, watermark
from loopwright.serving.events import Event, frame
from loopwright.serving.fold import fold_events
from loopwright.serving.wire import BatchHeader, open_batch, pack_batch
from loopwright.stats.histogram import GROWTH

SEGMENTS = itertools.count()
HOUR = datetime(2013, 4, 1, 5, tzinfo=UTC)


def events(count: int, *, first: int = 0, moment: datetime = HOUR) -> list[Event]:
    return [
        Event(
            f"f{first + i}",
            "u",
            to_us(moment),
            to_us(moment),
            "late",
            1,
            "stable",
            900,
            "ok",
            "",
            [1.0],
            [0.2],
        )
        for i in range(count)
    ]


def body(sent: list[Event], start: int = 0, **changes: Any) -> bytes:
    frames = b"".join(frame(event) for event in sent)
    fields = {
        "source": "sv_1", "segment": "w0-1", "start": start, "end": start + len(frames), "events": len(sent),
        "crc32": zlib.crc32(frames), "event_times": {"late": max((e.event_time for e in sent), default=0)},
        "folds": fold_events(sent, lambda *_: None), **changes,
    }  # fmt: skip
    return pack_batch(BatchHeader(**fields), frames)


def counted(ctx: Context) -> int:
    with ctx.ledger.read() as conn:
        return arm_counts(conn, "late", 1, "stable", HOUR - timedelta(days=1), HOUR + timedelta(days=1)).n


def logged(ctx: Context) -> int:
    return sum(pq.read_metadata(file).num_rows for file in ctx.home.predictions.rglob("*.parquet"))


def test_a_batch_is_counted_logged_and_answered_with_its_end(ctx: Context) -> None:
    sent = body(events(10))
    reached = intake.take_in(ctx, sent)
    assert reached > 0
    assert (counted(ctx), logged(ctx)) == (10, 10)
    with ctx.ledger.read() as conn:
        assert watermark(conn, "late") == HOUR


def test_a_retry_changes_nothing_and_is_told_where_to_go_on(ctx: Context) -> None:
    sent = body(events(10))
    reached = intake.take_in(ctx, sent)
    assert intake.take_in(ctx, sent) == reached
    assert (counted(ctx), logged(ctx)) == (10, 10)


def test_a_gap_is_not_taken_in(ctx: Context) -> None:
    assert intake.take_in(ctx, body(events(5), start=1000)) == 0
    assert (counted(ctx), logged(ctx)) == (0, 0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_whatever_is_lost_or_repeated_each_event_counts_once(ctx: Context, order: list[int]) -> None:
    segment = f"s{next(SEGMENTS)}"
    before = counted(ctx)
    bodies, offsets, start = [], [0], 0
    for part in range(4):
        sent = events(3, first=part * 3)
        bodies.append(body(sent, start, segment=segment))
        start += sum(len(frame(event)) for event in sent)
        offsets.append(start)
    expected = 0
    for part in order:
        reached = intake.take_in(ctx, bodies[part])
        expected = max(expected, part + 1) if part == expected else expected
        assert reached == offsets[expected]
    assert counted(ctx) - before == 3 * expected


def test_when_the_ledger_does_not_commit_the_next_attempt_writes_the_same_rows_over(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(intake.store, "set_shipped", fails)
        with pytest.raises(RuntimeError):
            intake.take_in(ctx, body(events(10)))
    assert counted(ctx) == 0
    intake.take_in(ctx, body(events(12)))
    assert (counted(ctx), logged(ctx)) == (12, 12)


@pytest.mark.parametrize(
    "change", [{"crc32": 1}, {"end": 7}, {"source": "../x"}, {"segment": "a/b"}, {"source": ""}]
)
def test_a_damaged_batch_is_refused_whole(ctx: Context, change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        intake.take_in(ctx, body(events(3), **change))
    assert (counted(ctx), logged(ctx)) == (0, 0)


@given(st.binary(max_size=200))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_noise_is_refused(ctx: Context, noise: bytes) -> None:
    with pytest.raises(BadInput):
        intake.take_in(ctx, noise)


def test_event_time_never_runs_ahead_of_our_clock(ctx: Context) -> None:
    intake.take_in(ctx, first := body(events(1)))
    ahead = body(
        events(1, first=1, moment=ctx.now + timedelta(days=900)), start=len(open_batch(first).frames)
    )
    intake.take_in(ctx, ahead)
    with ctx.ledger.read() as conn:
        assert watermark(conn, "late") == HOUR


def spoiled(**changes: Any) -> list[Event]:
    (event,) = events(1)
    return [msgspec.structs.replace(event, **changes)]


@pytest.mark.parametrize(
    "changes",
    [{"event_time": 2**62}, {"event_time": -(2**62)}, {"at": 2**62}, {"version": 2**40}, {"version": -1},
     {"latency_us": -5}, {"model": "../../keys"}, {"model": "a\0b"}, {"model": "é" * 200}],
    ids=str,
)  # fmt: skip
def test_what_no_server_sends_is_refused_and_nothing_of_it_kept(
    ctx: Context, changes: dict[str, Any]
) -> None:
    sent = body(spoiled(**changes), event_times={}, folds=[])
    with pytest.raises(BadInput):
        intake.take_in(ctx, sent)
    assert not list(ctx.home.predictions.rglob("*.parquet"))


@pytest.mark.parametrize(
    "changes",
    [{"n": -5}, {"n": 2**63 - 1}, {"errors": -1}, {"bucket": 2**62}, {"version": 2**40}, {"arm": "x" * 100_000},
     {"model": "a\0b"}, {"model": "x" * 300},
     {"latency": {"growth": GROWTH, "counts": {"1": 2**63}, "total_us": 1.0}},
     {"profile": {"columns": {"a": [2**63]}, "rows": 1}}, {"profile": {"columns": {}, "rows": 1e300}}],
    ids=lambda changes: str(changes)[:40],
)  # fmt: skip
def test_counts_no_server_has_are_refused(ctx: Context, changes: dict[str, Any]) -> None:
    (fold,) = fold_events(events(1), lambda *_: None)
    with pytest.raises(BadInput):
        intake.take_in(ctx, body(events(1), folds=[msgspec.structs.replace(fold, **changes)]))
    assert counted(ctx) == 0


@pytest.mark.parametrize(
    "arm", ["stable", "canary", "shadow", "direct", "cache", "default", "variant-b", "b_2"]
)
def test_every_documented_arm_is_taken_in(ctx: Context, arm: str) -> None:
    sent = spoiled(arm=arm, status="fallback" if arm in ("cache", "default") else "ok")
    assert intake.take_in(ctx, body(sent)) > 0
    with ctx.ledger.read() as conn:
        assert arm_counts(conn, "late", 1, arm, HOUR, HOUR + timedelta(hours=1)).n == 1
    assert logged(ctx) == 1


@pytest.mark.parametrize("arm", ["", "B", "-b", "a/b", "x" * 33, "a\n"])
def test_what_is_no_arm_is_refused_by_name(ctx: Context, arm: str) -> None:
    sent = spoiled(arm=arm)
    for folds in (fold_events(sent, lambda *_: None), []):
        with pytest.raises(BadInput, match="not an arm"):
            intake.take_in(ctx, body(sent, folds=folds))
    assert (counted(ctx), logged(ctx)) == (0, 0)


def test_a_sample_is_logged_with_the_uids_of_its_places_and_everything_is_counted(ctx: Context) -> None:
    sent = events(4)
    frames = [frame(event) for event in sent]
    places = [sum(map(len, frames[:number])) for number in range(5)]
    kept = frames[1] + frames[3]
    sampled = pack_batch(
        BatchHeader(
            source="sv_1", segment="w0-1", start=0, end=places[4], events=2, crc32=zlib.crc32(kept),
            event_times={}, folds=fold_events(sent, lambda *_: None), offsets=[places[1], places[3]],
        ),
        kept,
    )  # fmt: skip
    assert intake.take_in(ctx, sampled) == places[4]
    assert intake.take_in(ctx, sampled) == places[4]
    assert counted(ctx) == 4
    (file,) = ctx.home.predictions.rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None).select(["id", "uid"]).to_pylist()
    assert rows == [
        {"id": "f1", "uid": f"sv_1/w0-1/{places[1]}"}, {"id": "f3", "uid": f"sv_1/w0-1/{places[3]}"},
    ]  # fmt: skip
    # The next stretch follows on, and so does one of which nothing was kept.
    after = body(events(1, first=4), places[4])
    assert intake.take_in(ctx, after) == places[4] + len(frame(events(1, first=4)[0]))
    end = intake.take_in(ctx, after)
    nothing = BatchHeader(
        source="sv_1", segment="w0-1", start=end, end=end + 500, events=0, crc32=0, event_times={}, folds=[]
    )
    assert intake.take_in(ctx, pack_batch(nothing, b"")) == end + 500
    assert logged(ctx) == 3


def test_another_releases_format_is_a_conflict_and_not_the_batchs_fault(ctx: Context) -> None:
    with pytest.raises(Conflict, match="same release"):
        intake.take_in(ctx, body(events(1), format=1))


def test_an_event_time_no_clock_shows_moves_no_watermark(ctx: Context) -> None:
    intake.take_in(ctx, body(events(1), event_times={"late": -(2**62)}))
    with ctx.ledger.read() as conn:
        assert watermark(conn, "late") is None
