"""The prediction log: frames, segments, folds and shipping that counts every event once."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.errors import BadInput, Conflict, Unavailable
from loopwright.serving.events import Event, SegmentWriter, frame, read_frames, whole_frames
from loopwright.serving.fold import HOUR_US, Profiler, fold_events
from loopwright.serving.segments import REFUSED
from loopwright.serving.shipping import Shipper
from loopwright.serving.wire import Fold, open_batch, pack_batch
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


# Samples, and what the control plane refuses.


def ship(folder: Path, send: Callable[[bytes], int], **options: object) -> Shipper:
    said: list[str] = []
    shipper = Shipper(
        folder, "sv_1", send=send, profiler=lambda m, v: None, is_writing=lambda name: False,
        complain=said.append, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    shipper.said = said  # type: ignore[attr-defined]
    return shipper


@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=30),
    moods=st.lists(st.sampled_from(["well", "answer lost"]), max_size=4),
)
def test_rows_outside_the_sample_stay_behind_and_are_counted_once(
    tmp_path_factory: pytest.TempPathFactory, kept: list[bool], moods: list[str]
) -> None:
    folder, control = tmp_path_factory.mktemp("log"), Control(moods)
    log = SegmentWriter(folder, "w0", rotate=600)
    for number in range(len(kept)):
        log.append(frame(event(str(number))))
    shipper = ship(folder, control, in_sample=lambda event: kept[int(event.id)])
    for _ in range(len(moods) + 1):
        try:
            shipper.ship()
        except Unavailable:
            continue
    assert control.ids == [str(number) for number in range(len(kept)) if kept[number]]
    assert control.counted == len(kept)
    assert list(folder.glob("*.seg")) == []


def test_an_event_has_the_same_uid_whether_rows_before_it_are_in_the_sample_or_not(tmp_path: Path) -> None:
    uids: list[dict[str, str]] = []
    for chosen in ("abc", "bc", "c"):
        folder = tmp_path / chosen
        folder.mkdir()
        log = SegmentWriter(folder, "w0")
        for name in "abc":
            log.append(frame(event(name)))

        def send(body: bytes) -> int:
            batch = open_batch(body)
            uids.append({e.id: uid for e, uid in zip(batch.events, batch.uids, strict=True)})
            return batch.header.end

        ship(folder, send, in_sample=lambda event, chosen=chosen: event.id in chosen).ship()
    size = len(frame(event("a")))
    assert uids[0] == {
        "a": "sv_1/w0-000000/0",
        "b": f"sv_1/w0-000000/{size}",
        "c": f"sv_1/w0-000000/{2 * size}",
    }
    assert uids[1] == {name: uids[0][name] for name in "bc"}
    assert uids[2] == {"c": uids[0]["c"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0]}, "one offset"),
        ({"offsets": [50, 10]}, "outside their stretch"),
        ({"offsets": [0, 2**40]}, "outside their stretch"),
        ({"offsets": [0, 1]}, "outside their stretch"),
        ({"events": 1}, "number of frames"),
        ({"end": 10}, "another length"),
    ],
)
def test_a_sampled_batch_whose_places_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    sent: list[bytes] = []

    def send(body: bytes) -> int:
        sent.append(body)
        return open_batch(body).header.end

    log = SegmentWriter(tmp_path, "w0")
    for name in "abc":
        log.append(frame(event(name)))
    ship(tmp_path, send, in_sample=lambda event: event.id != "b").ship()
    batch = open_batch(sent[0])
    assert [e.id for e in batch.events] == ["a", "c"]
    with pytest.raises(BadInput, match=message):
        open_batch(pack_batch(msgspec.structs.replace(batch.header, **change), batch.frames))


def test_another_releases_format_is_no_fault_of_the_batch(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event()))

    def send(body: bytes) -> int:
        header = open_batch(body).header
        with pytest.raises(Conflict, match="same release"):
            open_batch(pack_batch(msgspec.structs.replace(header, format=1), b""))
        return header.end

    assert ship(tmp_path, send).ship() > 0


class Picky(Control):
    """Refuses batches that hold certain events, as for ever."""

    def __init__(self, bad: set[str], *, refuses_nothing: bool = False) -> None:
        super().__init__()
        self.bad, self.refuses_nothing = bad, refuses_nothing
        self.asked = 0

    def __call__(self, body: bytes) -> int:
        self.asked += 1
        batch = open_batch(body)
        if {e.id for e in batch.events} & self.bad or (self.refuses_nothing and not batch.events):
            raise BadInput("an arm no server has", got="x")
        return super().__call__(body)


def test_what_the_control_plane_refuses_is_set_aside_event_by_event_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    log = SegmentWriter(tmp_path, "w0", rotate=4000)
    for number in range(100):
        log.append(frame(event(str(number))))
    control = Picky({"17", "80"})
    shipper = ship(tmp_path, control)
    shipper.ship()
    assert control.ids == [str(n) for n in range(100) if n not in (17, 80)]
    assert control.counted == 98
    assert control.asked < 60
    aside = sorted((tmp_path / REFUSED).glob("*.seg"))
    assert [e.id for path in aside for e in read_frames(path.read_bytes())] == ["17", "80"]
    assert "an arm no server has" in aside[0].with_suffix(".txt").read_text()
    assert shipper.set_aside() == 2
    assert len(shipper.said) == 2  # type: ignore[attr-defined]
    assert list(tmp_path.glob("*.seg")) == []


def test_a_segment_on_which_nothing_can_be_agreed_holds_up_no_other(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event("bad")))
    SegmentWriter(tmp_path, "w1").append(frame(event("good", event_time=9)))
    control = Picky({"bad"}, refuses_nothing=True)
    shipper = ship(tmp_path, control)
    for _ in range(2):
        with pytest.raises(BadInput, match="no server has"):
            shipper.ship()
    assert control.ids == ["good"]
    assert [path.name for path in tmp_path.glob("*.seg")] == ["w0-000000.seg"]
    control.bad, control.refuses_nothing = set(), False
    shipper.ship()
    assert control.ids == ["good", "bad"]


class Behind:
    """A reader that has read nothing, until it is told to give up."""

    def __init__(self) -> None:
        self.read: dict[str, int] = {}
        self.given_up: list[str] = []

    def reached(self, segment: str) -> int:
        return self.read.get(segment, 0)

    def give_up(self, segment: str, end: int) -> None:
        self.given_up.append(segment)
        self.read[segment] = end

    def forget(self, segment: str) -> None:
        self.read.pop(segment)


def test_a_segment_stays_until_every_reader_has_it(tmp_path: Path) -> None:
    log = SegmentWriter(tmp_path, "w0", rotate=1)
    for name in "abc":
        log.append(frame(event(name)))
    reader, control = Behind(), Control()
    shipper = ship(tmp_path, control, readers=[reader])
    shipper.ship()
    assert control.ids == ["a", "b", "c"]
    assert len(list(tmp_path.glob("*.seg"))) == 3
    reader.read["w0-000001"] = 10**6
    shipper.ship()
    assert [path.stem for path in sorted(tmp_path.glob("*.seg"))] == ["w0-000000", "w0-000002"]
    assert control.ids == ["a", "b", "c"]
    assert reader.given_up == []


def test_beyond_the_budget_the_oldest_is_given_up_for_a_reader_and_never_for_the_control_plane(
    tmp_path: Path,
) -> None:
    log = SegmentWriter(tmp_path, "w0", rotate=1)
    for number in range(6):
        log.append(frame(event(str(number))))
        os.utime(tmp_path / f"w0-{number:06d}.seg", (number, number))
    size = len(frame(event("0")))
    reader, control = Behind(), Control(["down"])
    shipper = ship(tmp_path, control, readers=[reader], keep=2 * size)
    with pytest.raises(Unavailable):
        shipper.ship()
    assert (reader.given_up, len(list(tmp_path.glob("*.seg")))) == ([], 6)
    shipper.ship()
    assert reader.given_up == [f"w0-{number:06d}" for number in range(4)]
    assert [path.stem for path in sorted(tmp_path.glob("*.seg"))] == ["w0-000004", "w0-000005"]
    assert control.ids == [str(number) for number in range(6)]


def test_a_disk_that_is_nearly_full_is_worth_more_than_what_waits_for_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SegmentWriter(tmp_path, "w0", rotate=1)
    for number in range(4):
        log.append(frame(event(str(number))))
        os.utime(tmp_path / f"w0-{number:06d}.seg", (number, number))
    size = len(frame(event("0")))
    monkeypatch.setattr("loopwright.serving.shipping.disk_room", lambda folder: (10_000, 10_000 + size + 1))
    reader = Behind()
    ship(tmp_path, Control(), readers=[reader]).ship()
    assert reader.given_up == ["w0-000000", "w0-000001"]


def test_a_damaged_segment_waits_for_its_readers_too(tmp_path: Path) -> None:
    data = bytearray(frame(event("a")) + frame(event("c")))
    data[-1] ^= 1
    (tmp_path / "w0-000000.seg").write_bytes(data)
    reader, control = Behind(), Control()
    shipper = ship(tmp_path, control, readers=[reader])
    shipper.ship()
    shipper.ship()
    assert control.ids == ["a"]
    assert len(shipper.said) == 1  # type: ignore[attr-defined]
    assert (tmp_path / "w0-000000.seg").exists()
    reader.read["w0-000000"] = len(frame(event("a")))
    shipper.ship()
    assert [path.name for path in tmp_path.glob("w0*")] == ["w0-000000.damaged"]
