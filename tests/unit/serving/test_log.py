"""The prediction log: frames, segments, folds and shipping that counts every event once."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving.events import Event, SegmentWriter, frame, read_frames, whole_frames
from loopwright.serving.fold import HOUR_US, Profiler, fold_events
from loopwright.serving.shipping import Shipper
from loopwright.serving.wire import Fold, open_batch
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import PREDICTION, Counts, build_reference


def event(name: str = "a", **change: object) -> Event:
    base = Event(name, "u", 5 * HOUR_US + 7, 1, "m", 1, "stable", 100, "ok", "", [1.5, None, "x"], [0.25])
    return msgspec.structs.replace(base, **change)


SCHEMA = Schema(
    inputs=(Field("a", "float64"), Field("b", "float64"), Field("c", "string")),
    features=("a",),
    outputs=("p",),
    task="binary",
)
numbers = st.none() | st.floats(allow_nan=False) | st.integers(-(2**60), 2**60)
events = st.builds(
    event,
    st.text(max_size=8),
    unit=st.text(max_size=8),
    event_time=st.integers(0, 2**50),
    status=st.sampled_from(["ok", "error", "fallback"]),
    inputs=st.lists(numbers | st.text(max_size=4), max_size=4),
    outputs=st.lists(st.floats(allow_nan=False), max_size=3),
)


@given(st.lists(events, max_size=10), st.integers(min_value=0))
def test_a_log_cut_anywhere_gives_the_events_that_were_whole(written: list[Event], cut: int) -> None:
    frames = [frame(item) for item in written]
    data = b"".join(frames)
    data = data[: cut % (len(data) + 1)]
    whole = 0
    while whole < len(frames) and sum(map(len, frames[: whole + 1])) <= len(data):
        whole += 1
    assert list(read_frames(data)) == written[:whole]
    assert whole_frames(data) == sum(map(len, frames[:whole]))


def test_a_damaged_frame_is_an_error_not_an_end() -> None:
    data = bytearray(frame(event("a")) + frame(event("b")))
    data[20] ^= 1
    with pytest.raises(BadInput, match="checksum is wrong"):
        list(read_frames(bytes(data)))
    with pytest.raises(BadInput, match="checksum is wrong"):
        whole_frames(b"\xff" * 100)


def test_segments_rotate_and_hold_everything(tmp_path: Path) -> None:
    log = SegmentWriter(tmp_path, "w0", rotate=200)
    for number in range(20):
        log.append(frame(event(str(number))))
    log.close()
    paths = sorted(tmp_path.glob("*.seg"))
    assert len(paths) > 3
    assert [e.id for path in paths for e in read_frames(path.read_bytes())] == [str(n) for n in range(20)]


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="predictions cannot be logged"):
        SegmentWriter(tmp_path / "missing", "w0").append(frame(event()))


# Folds.


def profiler() -> Profiler:
    columns = {
        "a": np.arange(100.0),
        "b": np.arange(100.0),
        "c": np.array(["x", "y"] * 50, dtype=object),
        PREDICTION: np.linspace(0, 1, 100),
    }
    return Profiler(SCHEMA, build_reference(columns))


def test_events_fold_by_version_arm_and_hour() -> None:
    happened = [
        event("a"),
        event("b", latency_us=0),
        event("c", arm="canary", version=2, status="error", outputs=[]),
        event("c", status="fallback"),
        event("d", event_time=6 * HOUR_US),
    ]
    folds = fold_events(happened, lambda model, version: None)
    keys = [(f.model, f.version, f.arm, f.bucket // HOUR_US, f.n, f.errors, f.fallbacks) for f in folds]
    assert keys == [
        ("m", 1, "stable", 5, 3, 0, 1),
        ("m", 1, "stable", 6, 1, 0, 0),
        ("m", 2, "canary", 5, 1, 1, 0),
    ]
    assert LatencyHistogram.from_json(folds[0].latency).n == 2
    assert all(fold.profile is None for fold in folds)


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_folding_in_parts_is_folding_at_once(seed: int, n: int) -> None:
    rng = random.Random(seed)
    happened = [
        event(
            str(i),
            event_time=rng.randrange(3) * HOUR_US,
            arm=rng.choice(["stable", "canary"]),
            inputs=[rng.choice([None, rng.uniform(-10, 110)]), 3, rng.choice([None, "x", "z"])],
            outputs=[rng.random()],
        )
        for i in range(n)
    ]
    cut = rng.randrange(n + 1)
    count = profiler()
    parts = [fold_events(part, lambda m, v: count) for part in (happened[:cut], happened[cut:], happened)]

    def total(folds: list[Fold]) -> dict[object, object]:
        sums: dict[object, tuple[int, LatencyHistogram, Counts]] = {}
        for f in folds:
            assert f.profile is not None
            one = (f.n, LatencyHistogram.from_json(f.latency), Counts.from_json(f.profile))
            key = (f.arm, f.bucket)
            old = sums.get(key)
            sums[key] = one if old is None else (old[0] + one[0], old[1] + one[1], old[2] + one[2])
        return dict(sums)

    assert total(parts[0] + parts[1]) == total(parts[2])


def test_events_that_do_not_fit_the_schema_are_counted_without_a_profile() -> None:
    count = profiler()
    (fold,) = fold_events([event(inputs=[1.0])], lambda m, v: count)
    assert (fold.n, fold.profile) == (1, None)


def test_a_redacted_input_is_in_no_profile_and_the_others_are() -> None:
    count = profiler()
    happened = [event(str(i), inputs=[float(i), 2.0, None]) for i in range(5)]
    (fold,) = fold_events(happened, lambda m, v: count, lambda model, events: frozenset({"c"}))
    assert fold.profile is not None
    assert set(fold.profile["columns"]) == {"a", "b", PREDICTION}
    (whole,) = fold_events(happened, lambda m, v: count)
    assert whole.profile is not None
    assert whole.profile["columns"].items() >= fold.profile["columns"].items()


@pytest.mark.parametrize("arm", ["cache", "default"])
def test_answers_of_no_model_are_counted_and_not_profiled(arm: str) -> None:
    count = profiler()
    (fold,) = fold_events([event(arm=arm, status="fallback", inputs=[1.0, 1.0, "x"])], lambda m, v: count)
    assert (fold.n, fold.fallbacks, fold.profile) == (1, 1, None)


# Shipping.


class Control:
    """Applies batches exactly once; `moods` make it fail before or after it applied."""

    def __init__(self, moods: list[str] | None = None) -> None:
        self.moods = moods or []
        self.offsets: dict[str, int] = {}
        self.ids: list[str] = []
        self.counted = 0

    def __call__(self, body: bytes) -> int:
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "down":
            raise Unavailable("down")
        batch = open_batch(body)
        segment = batch.header.segment
        if self.offsets.get(segment, 0) == batch.header.start:
            self.offsets[segment] = batch.header.end
            self.ids += [e.id for e in read_frames(batch.frames)]
            self.counted += sum(fold.n for fold in batch.header.folds)
        if mood == "answer lost":
            raise Unavailable("lost")
        return self.offsets.get(segment, 0)


@pytest.fixture
def shipper(tmp_path: Path) -> Callable[..., Shipper]:
    def make(control: Control, writing: tuple[str, ...] = ("w0",)) -> Shipper:
        return Shipper(
            tmp_path,
            "sv_1",
            send=control,
            profiler=lambda m, v: None,
            is_writing=writing.__contains__,
            complain=pytest.fail,
        )

    return make


@given(moods=st.lists(st.sampled_from(["well", "down", "answer lost"]), max_size=12), seed=st.integers(0, 99))
def test_every_event_arrives_once_whatever_fails(
    tmp_path_factory: pytest.TempPathFactory, moods: list[str], seed: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("log"), random.Random(seed)
    control = Control(moods)
    log = SegmentWriter(folder, "w0", rotate=300)
    sent = 0
    for _ in range(8):
        for _ in range(rng.randrange(5)):
            log.append(frame(event(str(sent))))
            sent += 1
        # A new Shipper each time: the supervisor may have been restarted, even without its offsets.
        if rng.random() < 0.3:
            (folder / "offsets.json").unlink(missing_ok=True)
        shipper = Shipper(
            folder,
            "sv_1",
            send=control,
            profiler=lambda m, v: None,
            is_writing=lambda name: True,
            complain=pytest.fail,
        )
        try:
            shipper.ship()
        except Unavailable:
            continue
    control.moods = []
    shipper.ship()
    assert sorted(control.ids, key=int) == [str(n) for n in range(sent)]
    assert control.counted == sent
    assert shipper.backlog() == 0


def test_event_time_is_told_no_further_than_the_rows_that_were_sent(tmp_path: Path) -> None:
    logs = [SegmentWriter(tmp_path, name) for name in ("w0", "w1")]
    logs[0].append(frame(event("a", event_time=10)))
    logs[1].append(frame(event("b", event_time=20)))
    told: list[list[int]] = []
    sent: set[int] = set()

    def send(body: bytes) -> int:
        batch = open_batch(body)
        sent.update(item.event_time for item in read_frames(batch.frames))
        told.append(list(batch.header.event_times.values()))
        if len(told) == 1:
            # Requests go on while the first segment is on its way: its worker answers first, the other after it.
            logs[0].append(frame(event("c", event_time=30)))
            logs[1].append(frame(event("d", event_time=40)))
        return batch.header.end

    shipper = Shipper(
        tmp_path, "s", send=send, profiler=lambda m, v: None, is_writing=lambda n: True, complain=pytest.fail
    )
    shipper.ship()
    assert told == [[], [20]]
    assert sent == {10, 20}
    shipper.ship()
    assert told == [[], [20], [], [40]]
    assert sent == {10, 20, 30, 40}


def test_a_row_dated_in_the_future_does_not_move_event_time(tmp_path: Path) -> None:
    log = SegmentWriter(tmp_path, "w0")
    log.append(frame(event("a", event_time=10)))
    log.append(frame(event("b", event_time=900 * 86_400_000_000)))
    told: list[dict[str, int]] = []

    def send(body: bytes) -> int:
        batch = open_batch(body)
        told.append(batch.header.event_times)
        return batch.header.end

    Shipper(
        tmp_path, "s", send=send, profiler=lambda m, v: None, is_writing=lambda n: True, complain=pytest.fail
    ).ship()
    assert [list(times.values()) for times in told] == [[10]]


def test_a_finished_segment_is_deleted_and_an_open_one_kept(
    tmp_path: Path, shipper: Callable[..., Shipper]
) -> None:
    control = Control()
    log = SegmentWriter(tmp_path, "w0", rotate=1)
    log.append(frame(event("a")))
    log.append(frame(event("b")))
    shipper(control).ship()
    assert [path.name for path in tmp_path.glob("*.seg")] == ["w0-000001.seg"]
    shipper(control, writing=()).ship()
    assert list(tmp_path.glob("*.seg")) == []
    assert control.ids == ["a", "b"]


def test_a_frame_a_killed_worker_did_not_finish_is_left_behind(
    tmp_path: Path, shipper: Callable[..., Shipper]
) -> None:
    control = Control()
    (tmp_path / "w0-000000.seg").write_bytes(frame(event("a")) + frame(event("b"))[:-3])
    shipper(control, writing=()).ship()
    assert control.ids == ["a"]
    assert list(tmp_path.glob("*.seg")) == []


def test_a_damaged_segment_is_sent_up_to_the_damage_put_aside_and_named(tmp_path: Path) -> None:
    control, said = Control(), list[str]()
    data = bytearray(frame(event("a")) + frame(event("c")))
    data[-1] ^= 1
    (tmp_path / "w0-000000.seg").write_bytes(data)
    (tmp_path / "w1-000000.seg").write_bytes(frame(event("b")))
    shipper = Shipper(
        tmp_path,
        "sv_1",
        send=control,
        profiler=lambda m, v: None,
        is_writing=lambda name: False,
        complain=said.append,
    )
    shipper.ship()
    assert control.ids == ["a", "b"]
    assert "w0-000000.damaged" in said[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "too short"), (b"\xff\xff\xff\xff{}", "cannot be read"), (b"\2\0\0\0[]", "cannot be read")],
)
def test_a_batch_that_is_none_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_batch(body)


def test_a_batch_damaged_on_the_way_is_refused(tmp_path: Path) -> None:
    sent: list[bytes] = []

    def send(body: bytes) -> int:
        sent.append(body)
        return open_batch(body).header.end

    SegmentWriter(tmp_path, "w0").append(frame(event()))
    Shipper(
        tmp_path, "s", send=send, profiler=lambda m, v: None, is_writing=lambda n: True, complain=pytest.fail
    ).ship()
    damaged = bytearray(sent[0])
    damaged[-1] ^= 1
    with pytest.raises(BadInput, match="damaged on the way"):
        open_batch(bytes(damaged))
    with pytest.raises(BadInput, match="another length"):
        open_batch(sent[0] + b"x")
