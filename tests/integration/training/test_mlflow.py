"""The recorder on a real MLflow store, and on a port where nothing listens."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from loopwright.kernel.errors import BadInput
from loopwright.training.recorder import replay, start_run
from loopwright.training.tracker_mlflow import MlflowTracker

EXPERIMENT = "airline-ops/delays/flight-late"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def dead() -> Iterator[str]:
    with socket.socket() as taken:  # held, and listened on by nobody
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def assert_recorded(store: str, run_id: str) -> None:
    client = MlflowClient(store)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["tree.leaves"] == "7"
    assert len(run.data.params) == 151
    assert run.data.tags["cost_center"] == "cc-114"
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [
        (step, 1 / (step + 1)) for step in range(1200)
    ]
    assert {file.path for file in client.list_artifacts(run_id, "notes")} == {"notes/a.json"}


def record(uri: str, tmp_path: Path, artifacts: Path) -> tuple[str, Path | None, float]:
    start = time.monotonic()
    tags = {"cost_center": "cc-114"}
    with start_run(
        uri, EXPERIMENT, "first", tags, tmp_path / "spool", artifact_location=artifacts.as_uri()
    ) as run:
        run.params({"tree": {"leaves": 7}, **{f"p{number}": number for number in range(150)}})
        for step in range(1200):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        run.artifact_json({"b": 1}, "notes/a.json")
    return run.run_id, run.spooled, time.monotonic() - start


def test_a_run_is_in_mlflow_as_any_client_reads_it(store: str, tmp_path: Path) -> None:
    run_id, spooled, _ = record(store, tmp_path, tmp_path / "artifacts")
    assert spooled is None
    assert_recorded(store, run_id)


def test_training_goes_on_without_a_server_and_the_run_arrives_later(
    store: str, dead: str, tmp_path: Path
) -> None:
    _, spooled, seconds = record(dead, tmp_path, tmp_path / "artifacts")
    assert spooled is not None
    assert seconds < 15
    [sent] = replay(tmp_path / "spool", MlflowTracker(store, (tmp_path / "artifacts").as_uri()))
    assert_recorded(store, sent.run_id)
    assert not spooled.exists()


def test_what_mlflow_rejects_is_told_apart_from_an_outage(store: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(store, tmp_path.as_uri())
    run_id = tracker.create_run(EXPERIMENT, "second", {}, 0)
    with pytest.raises(BadInput, match="rejects"):
        tracker.log(run_id, [("not/../a name!", 1.0, 0, 0)], {}, {})
