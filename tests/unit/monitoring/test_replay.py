"""What is in the log can be sent again: the same rows under the same uids, whatever was merged meanwhile."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import Unavailable
from loopwright.monitoring import replay as module
from loopwright.monitoring.log import SCHEMA, PredictionLog
from loopwright.monitoring.replay import replay
from loopwright.serving.events import Event
from loopwright.serving.sinks.base import Rejected, Row, document

APRIL = datetime(2013, 4, 1, 5, tzinfo=UTC)


def event(number: int, **change: object) -> Event:
    moment = to_us(APRIL + timedelta(hours=number))
    base = Event(f"e{number}", "u", moment, moment + 7, "late", 1, "stable", 5, "ok", "", [1.5, None], [0.25])
    return msgspec.structs.replace(base, **change)


class Memory:
    name, every = "memory", 1.0

    def __init__(self, away_after: int = 10**9, never: str = "") -> None:
        self.rows: list[Row] = []
        self.tokens: list[str] = []
        self.left, self.never = away_after, never

    def deliver(self, rows: Sequence[Row], token: str) -> list[Rejected]:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("nobody there")
        self.rows += [row for row in rows if row.event.id != self.never]
        self.tokens.append(token)
        return [Rejected(row, "too large") for row in rows if row.event.id == self.never]

    def close(self) -> None:
        """Nothing is open."""


def send(
    log: PredictionLog, sink: Memory, start: datetime = APRIL, hours: float = 1000
) -> tuple[int, list[Rejected]]:
    return replay(
        log, sink, model="late", start=start, end=start + timedelta(hours=hours),
        names=lambda version: ("distance", "carrier") if version == 1 else None, unlogged=("carrier",),
    )  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    made = PredictionLog(tmp_path)
    made.append([event(n) for n in range(40)], "sv_1_w0_0", [f"sv_1/w0/{n * 100}" for n in range(40)])
    return made


def test_rows_have_the_uids_they_were_first_sent_under_also_when_their_day_was_merged(
    log: PredictionLog,
) -> None:
    first, second = Memory(), Memory()
    assert send(log, first) == (40, [])
    assert {row.uid: row.event for row in first.rows} == {f"sv_1/w0/{n * 100}": event(n) for n in range(40)}
    assert log.compact("late", APRIL.date(), least=1) == 1
    send(log, second)
    assert {row.uid: document(row) for row in first.rows} == {row.uid: document(row) for row in second.rows}
    assert first.rows[0].source == "sv_1"
    assert document(first.rows[0])["inputs"] == {"distance": 1.5, "carrier": None}
    assert first.rows[0].redacted == ("carrier",)


def test_only_the_span_is_sent_to_the_microsecond(log: PredictionLog) -> None:
    sink = Memory()
    send(log, sink, APRIL + timedelta(hours=10), 20)
    assert [row.event.id for row in sink.rows] == [f"e{n}" for n in range(10, 30)]


def test_what_is_merged_while_it_is_read_is_sent_from_its_day(
    log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, merged = pq.read_table, []

    def read(path: Path, **options: object) -> pa.Table:
        if not merged:
            merged.append(0)
            merged[0] = log.compact("late", APRIL.date(), least=1)
        return real(path, **options)

    monkeypatch.setattr(module.pq, "read_table", read)
    sink = Memory()
    send(log, sink)
    assert merged == [1]
    assert {row.event.id for row in sink.rows} == {f"e{n}" for n in range(40)}


def test_a_sink_that_goes_away_ends_it_and_the_next_try_spoils_nothing(log: PredictionLog) -> None:
    sink = Memory(away_after=1)
    with pytest.raises(Unavailable):
        send(log, sink)
    sink.left = 10
    send(log, sink)
    assert len(sink.rows) > 40
    assert len({row.uid for row in sink.rows}) == 40
    assert len(sink.tokens) > len(set(sink.tokens))  # the block that came twice was named alike


def test_rows_that_are_never_taken_are_told(log: PredictionLog) -> None:
    sent, rejected = send(log, Memory(never="e7"))
    assert (sent, [(each.row.uid, each.why) for each in rejected]) == (39, [("sv_1/w0/700", "too large")])


def test_rows_of_before_there_were_uids_get_one_that_lasts(tmp_path: Path, log: PredictionLog) -> None:
    for file in log.files("late", APRIL, APRIL + timedelta(days=9)):
        table = pq.read_table(file, schema=SCHEMA, partitioning=None)
        pq.write_table(table.drop_columns(["uid"]), file)
    first, second = Memory(), Memory()
    send(log, first)
    log.compact("late", APRIL.date(), least=1)
    send(log, second)
    assert {row.uid for row in first.rows} == {row.uid for row in second.rows}
    assert len({row.uid for row in first.rows}) == 40
    assert all(row.uid.startswith("log/") for row in first.rows)
