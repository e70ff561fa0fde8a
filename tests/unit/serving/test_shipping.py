"""Shipping under a policy: samples, what the control plane refuses, and who else needs the segments."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput, Conflict, Unavailable
from loopwright.serving.events import SegmentWriter, frame, read_frames
from loopwright.serving.segments import REFUSED, is_claimed
from loopwright.serving.shipping import Shipper
from loopwright.serving.wire import open_batch, pack_batch
from tests.unit.serving.test_log import Control, event


def ship(folder: Path, send: Callable[[bytes], int], **options: object) -> Shipper:
    said: list[str] = []
    shipper = Shipper(
        folder, "sv_1", send=send, profiler=lambda m, v: None,
        complain=said.append, **{"is_writing": lambda name: False, **options},  # type: ignore[arg-type]
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


def test_what_was_set_aside_is_sent_when_it_is_put_back_and_the_living_writers_segment_stays(
    tmp_path: Path,
) -> None:
    log = SegmentWriter(tmp_path, "w0")
    for name in ("a", "bad", "c"):
        log.append(frame(event(name)))
    control = Picky({"bad"})
    shipper = ship(tmp_path, control)
    shipper._is_writing = lambda name: name == "w0"
    shipper.ship()
    (kept,) = (tmp_path / REFUSED).glob("*.seg")
    assert f"move {kept.name} to {tmp_path}" in kept.with_suffix(".txt").read_text()
    control.bad = set()
    kept.rename(tmp_path / kept.name)
    shipper.ship()
    assert control.ids == ["a", "c", "bad"]
    # The worker's own segment is still there to be written to.
    assert [path.name for path in tmp_path.glob("*.seg")] == ["w0-000000.seg"]
    log.append(frame(event("d")))
    shipper.ship()
    assert control.ids == ["a", "c", "bad", "d"]


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


def test_tidying_deletes_what_all_have_and_sends_nothing(tmp_path: Path) -> None:
    for name in ("w0", "w1"):
        SegmentWriter(tmp_path, name).append(frame(event(name)))
    reader, control = Behind(), Control()
    shipper = ship(tmp_path, control, readers=[reader])
    shipper.ship()
    (tmp_path / "w2-000000.seg").write_bytes(b"\xff" * 100)
    reader.read["w0-000000"] = 10**6
    shipper.tidy()
    assert [path.name for path in sorted(tmp_path.glob("*.seg"))] == ["w1-000000.seg", "w2-000000.seg"]
    assert control.ids == ["w0", "w1"]


def test_a_round_that_hangs_and_the_last_one_of_a_server_that_stops_take_turns(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0").append(frame(event("a")))
    control, under_way, go_on = Control(), threading.Event(), threading.Event()

    def send(body: bytes) -> int:
        under_way.set()
        assert go_on.wait(10)
        return control(body)

    shipper = ship(tmp_path, send)
    with ThreadPoolExecutor(2) as rounds:
        first = rounds.submit(shipper.ship)
        assert under_way.wait(10)
        second = rounds.submit(shipper.ship)
        shipper.tidy()  # neither waits nor gets in the way
        go_on.set()
        assert first.result(10) > 0 and second.result(10) == 0
    assert control.ids == ["a"] and not list(tmp_path.glob("*.seg"))


def test_a_wrong_length_is_no_torn_tail_what_lies_behind_it_is_kept(tmp_path: Path) -> None:
    frames = [frame(event(name)) for name in ("a", "b", "c")]
    spoiled = b"".join([frames[0], (1 << 20).to_bytes(4, "little"), frames[1][4:], frames[2]])
    (tmp_path / "w0-000000.seg").write_bytes(spoiled)
    (tmp_path / "w1-000000.seg").write_bytes(frames[0] + frames[1][:-1])  # its worker was killed
    shipper = ship(tmp_path, Control())
    shipper.ship()
    assert [path.name for path in tmp_path.glob("w*")] == ["w0-000000.damaged"]
    assert (tmp_path / "w0-000000.damaged").read_bytes() == spoiled
    assert ["length is wrong" in said for said in shipper.said] == [True]  # type: ignore[attr-defined]


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


WRITES = """
import sys
from pathlib import Path
from loopwright.serving.events import SegmentWriter
from loopwright.serving.segments import claim
claim(Path(sys.argv[1]), "w0")
writer = SegmentWriter(Path(sys.argv[1]), "w0")
for line in sys.stdin:
    writer.append(bytes.fromhex(line))
    print("logged", flush=True)
"""


def test_what_another_servers_worker_still_writes_is_not_taken_for_finished(tmp_path: Path) -> None:
    """Its supervisor was killed, and another one ships the same folder while it answers what was under way."""
    orphan = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    control = Control()
    shipper = ship(tmp_path, control, is_writing=lambda log: is_claimed(tmp_path, log))
    with orphan:
        for name in ("a", "b"):
            assert orphan.stdin and orphan.stdout
            orphan.stdin.write(frame(event(name)).hex().encode() + b"\n")
            orphan.stdin.flush()
            assert orphan.stdout.readline() == b"logged\n"
            shipper.ship()
        orphan.kill()
    shipper.ship()
    assert control.ids == ["a", "b"]
    assert not list(tmp_path.glob("*.seg")) and not list(tmp_path.glob(".*.writer"))
