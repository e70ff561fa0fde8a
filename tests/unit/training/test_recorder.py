"""The recorder against a tracker that can be switched off."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.training import recorder as module
from loopwright.training.recorder import Metric, Recorder, replay


class Memory:
    """A tracking server in memory. `down`: it answers nothing; `fails_after`: it goes down after so many calls."""

    def __init__(self, down: bool = False, fails_after: int | None = None) -> None:
        self.down, self.left = down, fails_after
        self.runs: dict[str, dict[str, object]] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.ended: str | None = None
        self.calls = 0

    def _answer(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.down = self.left < 0
        if self.down:
            raise Unavailable("switched off")
        self.calls += 1

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        self._answer()
        self.runs[f"run-{len(self.runs)}"] = {"experiment": experiment, "name": name, "started": started_ms}
        self.tags |= tags
        return f"run-{len(self.runs) - 1}"

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        if any("!" in name for name in [*params, *(m[0] for m in metrics)]):
            raise BadInput("names hold no `!`")
        self._answer()
        self.metrics += [(key, value, step) for key, value, _, step in metrics]
        self.params |= params
        self.tags |= tags

    def artifact(self, run_id: str, file: Path, name: str) -> None:
        self._answer()
        self.files[name] = file.read_bytes()

    def end_run(self, run_id: str, status: str, ended_ms: int) -> None:
        self._answer()
        self.ended = status


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


def train(tracker: Memory, spool: Path) -> Recorder:
    with Recorder(tracker, "team/project/model", "a run", {"owner": "me"}, spool) as run:
        run.params({"rounds": 3, "tree": {"leaves": 7}})
        for step in range(2500):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        run.text("hello", "notes/hello.txt")
    return run


def assert_complete(tracker: Memory) -> None:
    assert tracker.params == {"rounds": "3", "tree.leaves": "7"}
    assert tracker.metrics == [("loss", 1 / (step + 1), step) for step in range(2500)]
    assert tracker.files == {"notes/hello.txt": b"hello"}
    assert tracker.ended == "FINISHED"
    assert len(tracker.runs) == 1


def test_a_run_arrives_whole_in_few_calls(tmp_path: Path) -> None:
    tracker = Memory()
    run = train(tracker, tmp_path)
    assert_complete(tracker)
    assert tracker.calls < 300
    assert run.spooled is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_server_is_spooled_whole_and_replayed(tmp_path: Path) -> None:
    run = train(Memory(down=True), tmp_path)
    assert run.run_id.startswith("offline_")
    assert run.spooled is not None
    server = Memory()
    [sent] = replay(tmp_path, server)
    assert_complete(server)
    assert sent.offline_run_id == run.run_id == server.tags["loopwright.offline_run_id"]
    assert server.tags["owner"] == "me"
    assert replay(tmp_path, server) == []


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 6), second=st.integers(0, 6))
def test_wherever_the_server_stops_nothing_is_lost_and_no_second_run_starts(
    tmp_path_factory: pytest.TempPathFactory, first: int, second: int
) -> None:
    spool = tmp_path_factory.mktemp("spool")
    server = Memory(fails_after=first)
    train(server, spool)
    server.down, server.left = False, second
    try:
        replay(spool, server)
    except Unavailable:
        server.down, server.left = False, None
        replay(spool, server)
    assert server.params == {"rounds": "3", "tree.leaves": "7"}
    # A call that was made before the stop may be repeated; the protocol takes the same point twice as one.
    assert sorted(set(server.metrics)) == sorted(("loss", 1 / (step + 1), step) for step in range(2500))
    assert server.files == {"notes/hello.txt": b"hello"}
    assert (server.ended, len(server.runs)) == ("FINISHED", 1)


def test_a_server_that_comes_back_during_the_run_gets_everything(tmp_path: Path) -> None:
    tracker = Memory(down=True)
    with Recorder(tracker, "e", "n", {}, tmp_path) as run:
        run.metrics({"loss": 1.0})
        tracker.down = False
        assert run.flush(5)
    assert tracker.metrics == [("loss", 1.0, 0)]
    assert run.spooled is None


def test_recording_never_waits_for_a_slow_server(tmp_path: Path) -> None:
    release = threading.Event()

    class Stuck(Memory):
        def log(self, *args: object) -> None:
            release.wait(20)

    run = Recorder(Stuck(), "e", "n", {}, tmp_path, grace=0.05)
    start = time.monotonic()
    for step in range(1000):
        run.metrics({"loss": 0.0}, step=step)
    run.end()
    waited = time.monotonic() - start
    journal = run.spooled
    assert journal is not None
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    release.set()
    assert waited < 5
    assert sum(line["kind"] == "metrics" for line in lines) == 1000


def test_one_record_that_the_server_rejects_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Memory()
    with Recorder(tracker, "e", "n", {}, tmp_path) as run:
        for name in ("a", "bad!", "b"):
            run.metrics({name: 1.0})
    assert {name for name, _, _ in tracker.metrics} == {"a", "b"}
    assert tracker.ended == "FINISHED"
    assert "left out" in caplog.text


def test_an_error_in_training_ends_the_run_as_failed_and_is_raised(tmp_path: Path) -> None:
    tracker = Memory()
    with pytest.raises(ZeroDivisionError), Recorder(tracker, "e", "n", {}, tmp_path) as run:
        run.params({"x": 1})
        1 / 0  # noqa: B018 - the error is the point
    assert tracker.ended == "FAILED"
    assert tracker.tags["loopwright.error"] == "ZeroDivisionError: division by zero"


def test_a_parameter_keeps_its_first_value(tmp_path: Path) -> None:
    with Recorder(Memory(), "e", "n", {}, tmp_path) as run:
        run.params({"x": 1})
        run.params({"x": 1})
        with pytest.raises(BadInput, match="`x` has a value already"):
            run.params({"x": 2})


def test_a_file_is_kept_as_it_was_when_it_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "plot.txt"
    file.write_text("then")
    tracker = Memory(down=True)
    with Recorder(tracker, "e", "n", {}, tmp_path / "spool") as run:
        run.artifact(file, "plot.txt")
        file.write_text("now")
    replay(tmp_path / "spool", server := Memory())
    assert server.files == {"plot.txt": b"then"}


@pytest.mark.parametrize("name", ["../up.txt", "/etc/passwd", "", "a/../../b"])
def test_an_artifacts_name_stays_inside_the_run(tmp_path: Path, name: str) -> None:
    with Recorder(Memory(), "e", "n", {}, tmp_path) as run, pytest.raises(BadInput, match="not a name"):
        run.text("x", name)


def test_a_run_that_has_ended_takes_nothing_more(tmp_path: Path) -> None:
    run = Recorder(Memory(), "e", "n", {}, tmp_path)
    run.end()
    with pytest.raises(BadInput, match="has ended"):
        run.metrics({"late": 1.0})
