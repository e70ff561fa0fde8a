"""Feeding sinks: each at its own pace, from where it was, and what it will never take put aside."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.clock import parse_time, to_us
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving.complaints import Complaints
from loopwright.serving.events import Event, SegmentWriter, frame, read_frames
from loopwright.serving.log_health import log_warnings
from loopwright.serving.options import ServeOptions
from loopwright.serving.rows import EARLIEST_US, LATEST_US
from loopwright.serving.segments import REFUSED
from loopwright.serving.sinks.address import open_sink, parse_sink
from loopwright.serving.sinks.base import Rejected, Row, document, rfc3339
from loopwright.serving.sinks.feeding import Feeder


def event(id: str = "a", **change: object) -> Event:
    base = Event(
        id,
        "u",
        1_364_792_400_000_001,
        1_364_792_400_500_000,
        "m",
        1,
        "stable",
        100,
        "ok",
        "",
        [1.5, None],
        [0.25],
    )
    return msgspec.structs.replace(base, **change)


class Memory:
    """A receiver in memory that fails as `moods` say: before it took the rows, or after."""

    every = 0.01

    def __init__(self, name: str = "kafka://b:9092/t", moods: Sequence[str] = (), never: str = "") -> None:
        self.name, self.moods, self.never = name, list(moods), never
        self.rows: list[Row] = []
        self.tokens: list[str] = []
        self.closed = False

    def deliver(self, rows: Sequence[Row], token: str) -> list[Rejected]:
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "away":
            raise Unavailable("nobody there", where=self.name)
        self.rows += [row for row in rows if row.event.id != self.never]
        self.tokens.append(token)
        if mood == "answer lost":
            raise Unavailable("no confirmation", where=self.name)
        return [Rejected(row, "too large") for row in rows if row.event.id == self.never]

    def close(self) -> None:
        self.closed = True

    @property
    def ids(self) -> list[str]:
        return [row.event.id for row in self.rows]


class Known:
    def __init__(self, keep: str = "", hidden: frozenset[str] = frozenset()) -> None:
        self.kept, self.hidden = keep, hidden

    def inputs(self, model: str, version: int) -> tuple[str, ...] | None:
        return ("distance", "carrier") if version == 1 else None

    def keep(self, event: Event) -> bool:
        return not self.kept or event.id in self.kept

    def redacted(self, model: str, events: list[Event]) -> frozenset[str]:
        return self.hidden


def feeder(folder: Path, sink: Memory, known: Known | None = None, said: list[str] | None = None) -> Feeder:
    complain = Complaints([].append if said is None else said.append)
    return Feeder(sink, folder, "sv_1", known or Known(), complain)


@given(
    moods=st.lists(st.sampled_from(["well", "away", "answer lost"]), max_size=10),
    rounds=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=8),
)
def test_every_row_arrives_under_one_uid_whatever_fails(
    tmp_path_factory: pytest.TempPathFactory, moods: list[str], rounds: list[tuple[int, bool]]
) -> None:
    folder, sink = tmp_path_factory.mktemp("log"), Memory(moods=moods)
    log, sent = SegmentWriter(folder, "w0", rotate=400), 0
    feeding = feeder(folder, sink)
    for count, restarted in rounds:
        for _ in range(count):
            log.append(frame(event(str(sent))))
            sent += 1
        if restarted:
            feeding = feeder(folder, sink)
        try:
            feeding.feed()
        except Unavailable:
            continue
    sink.moods = []
    feeding.feed()
    once = {row.uid: row.event.id for row in sink.rows}
    assert sorted(once.values(), key=int) == [str(number) for number in range(sent)]
    assert feeding.backlog() == 0
    before = len(sink.rows)
    assert feeder(folder, sink).feed() == 0
    assert len(sink.rows) == before


def test_a_row_says_which_inputs_it_was_written_without(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event("a")) + frame(event("b", version=2)))
    sink = Memory()
    feeder(tmp_path, sink, Known(hidden=frozenset({"carrier"}))).feed()
    told = json.loads(json.dumps(document(sink.rows[0])))
    assert told == {
        "schema": 1, "uid": "sv_1/w0-000000/0", "source": "sv_1", "model": "m", "version": 1, "arm": "stable",
        "id": "a", "unit": "u", "event_time": "2013-04-01T05:00:00.000001Z", "at": "2013-04-01T05:00:00.500000Z",
        "latency_us": 100, "status": "ok", "error": "", "inputs": {"distance": 1.5, "carrier": None},
        "redacted": ["carrier"], "outputs": [0.25],
    }  # fmt: skip
    # Without the version's bundle nobody knows the names.
    assert document(sink.rows[1])["inputs"] == [1.5, None]


@given(st.integers(EARLIEST_US, LATEST_US - 1))
def test_times_are_told_to_the_microsecond(us: int) -> None:
    assert to_us(parse_time(rfc3339(us))) == us


def test_rows_outside_the_sample_are_passed_by(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(b"".join(frame(event(name)) for name in "abc"))
    sink = Memory()
    feeding = feeder(tmp_path, sink, Known(keep="b"))
    assert feeding.feed() == 1
    assert (sink.ids, feeding.backlog()) == (["b"], 0)
    assert sink.rows[0].uid == f"sv_1/w0-000000/{len(frame(event('a')))}"


def test_what_a_sink_will_never_take_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(b"".join(frame(event(name)) for name in "abc"))
    sink, said = Memory(never="b"), list[str]()
    feeding = feeder(tmp_path, sink, said=said)
    feeding.feed()
    assert (sink.ids, feeding.backlog()) == (["a", "c"], 0)
    (kept,) = (tmp_path / REFUSED).glob("*.seg")
    assert [each.id for each in read_frames(kept.read_bytes())] == ["b"]
    assert "too large" in kept.with_suffix(".txt").read_text()
    assert "will never take 1 predictions (too large)" in said[0]
    assert feeding.gauges()['log_sink_rejected_total{sink="kafka://b:9092/t"}'] == 1


def test_a_sink_that_is_away_delays_no_other_and_is_said_once(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event("a")))
    away, well = Memory("clickhouse://h/d/t", moods=["away"] * 3), Memory()
    said: list[str] = []
    feeders = [feeder(tmp_path, sink, said=said) for sink in (away, well)]
    for each in feeders:
        each.start()
    try:
        until = time.monotonic() + 10
        while not well.ids or not said:
            assert time.monotonic() < until
            time.sleep(0.005)
        gauges = feeders[0].gauges()
        assert gauges['log_sink_up{sink="clickhouse://h/d/t"}'] == 0
        assert gauges['log_sink_backlog_bytes{sink="clickhouse://h/d/t"}'] == len(frame(event("a")))
        assert log_warnings(gauges) == [
            "clickhouse://h/d/t does not take predictions; they wait on this disk"
        ]
        assert well.ids == ["a"]
        # It comes back before it is told to stop: the last look sends what is there.
        away.moods = []
    finally:
        ended = [each.stop(10) for each in feeders]
    assert ended == [True, True]
    assert (away.ids, away.closed, well.closed) == (["a"], True, True)
    assert said == ["predictions wait for clickhouse://h/d/t: clickhouse://h/d/t: nobody there"]


def test_what_is_given_up_is_said_counted_and_not_sent_later(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event("a")) + frame(event("b")))
    sink, said = Memory(moods=["away"]), list[str]()
    feeding = feeder(tmp_path, sink, said=said)
    with pytest.raises(Unavailable):
        feeding.feed()
    end = (tmp_path / "w0-000000.seg").stat().st_size
    feeding.give_up("w0-000000", end)
    assert said[0].startswith("GIVEN UP for kafka://b:9092/t: 2 predictions")
    assert feeding.feed() == 0
    gauges = feeding.gauges()
    assert gauges['log_sink_given_up_total{sink="kafka://b:9092/t"}'] == 2
    assert gauges['log_sink_given_up_bytes_total{sink="kafka://b:9092/t"}'] == end
    assert "2 predictions were given up for kafka://b:9092/t" in log_warnings(gauges)[0]


def test_a_damaged_segment_is_fed_up_to_the_damage(tmp_path: Path) -> None:
    data = bytearray(frame(event("a")) + frame(event("b")))
    data[-1] ^= 1
    (tmp_path / "w0-000000.seg").write_bytes(data)
    sink = Memory()
    feeding = feeder(tmp_path, sink)
    feeding.feed()
    assert (sink.ids, feeding.reached("w0-000000")) == (["a"], len(frame(event("a"))))


# How sinks are named.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h/x", "not a sink"),
        ("kafka://b:9092", "does not name one topic"),
        ("kafka://b:9092/a/b", "does not name one topic"),
        ("kafka://b:9092/a%20b", "does not name one topic"),
        ("kafka://b:9092,:1/t", "not a host"),
        ("kafka://b:99999/t", "not a port"),
        ("kafka://b/t?retries=1", "no option of kafka"),
        ("kafka://b/t?every=soon", "not seconds"),
        ("clickhouse://h/only_a_database", "a database and a table"),
        ("clickhouse://h/d/t;DROP", "a database and a table"),
        ("clickhouse://h1,h2/d/t", "more than one host"),
        ("kafka://me:pass-word@b/t", "no place on a command line"),
        ("kafka://b/t?sasl.password=pass-word", "no option of kafka"),
        ("kafka://b/t?compression.type=pass", "librdkafka does not take this"),
        ("kafka://me@b/t", "without a way to sign in"),
        ("kafka://b/t?password_env=NOT_SET_ANYWHERE", "variable with the password is not set"),
    ],
)
def test_a_sink_that_cannot_be_meant_is_told_so_without_its_password(url: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        open_sink(parse_sink(url), {})
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (
            "kafka://a:9092,[::1]:9093/late.predictions-1?linger.ms=50",
            "kafka://a:9092,[::1]:9093/late.predictions-1",
        ),
        ("clickhouse://me@h:8123/d/t?secure=1", "clickhouse://h:8123/d/t"),
    ],
)
def test_a_sinks_name_is_its_place_without_user_and_options(url: str, name: str) -> None:
    assert parse_sink(url).name == name


def test_a_password_comes_from_the_environment_and_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    monkeypatch.setattr(
        "loopwright.serving.sinks.kafka.Producer", lambda settings, logger: given.append(settings)
    )
    sink = open_sink(
        parse_sink("kafka://me@b/t?security.protocol=SASL_SSL&sasl.mechanism=PLAIN&password_env=MINE"),
        {"MINE": "pass-word"},
    )
    assert (given[0]["sasl.username"], given[0]["sasl.password"]) == ("me", "pass-word")
    assert "pass-word" not in sink.name


def test_one_sink_is_not_named_twice(tmp_path: Path) -> None:
    options = ServeOptions(
        control="http://x", home=tmp_path, log_to=("kafka://b/t", "kafka://b/t?linger.ms=1")
    )
    with pytest.raises(BadInput, match="named twice"):
        options.check()
