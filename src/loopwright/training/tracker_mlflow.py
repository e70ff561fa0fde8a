"""MLflow's tracking protocol: any server, database or folder that MLflow's client reaches."""

import os
import re
import socket
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.training.recorder import Metric

T = TypeVar("T")

_LIMIT = 100  # params and tags that one call of the protocol may carry
_PROBE_SECONDS = 2.0
_REJECTED = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}
)  # trying again would not help


class MlflowTracker:
    """See `recorder.Tracker`. Not shared between runs; used by one thread at a time.

    MLflow's client retries a dead server for minutes; a connection is tried first, so that an outage is
    noticed at once.
    """

    def __init__(self, uri: str, artifact_location: str | None = None) -> None:
        self._uri, self._artifact_location = uri, artifact_location
        self._client: MlflowClient | None = None

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        """Start a run in `experiment`, created if need be."""

        def call(client: MlflowClient) -> str:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                try:
                    number = client.create_experiment(experiment, artifact_location=self._artifact_location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = client.get_experiment_by_name(experiment)
                    if found is None:
                        raise
                    number = found.experiment_id
            else:
                number = found.experiment_id
            run = client.create_run(number, start_time=started_ms, tags=dict(tags), run_name=name)
            return str(run.info.run_id)

        return self._call(call)

    def log(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Send in as few calls as the protocol's limits allow."""
        points = [MlflowMetric(key, value, at, step) for key, value, at, step in metrics]
        pairs = [Param(key, value) for key, value in params.items()]
        marks = [RunTag(key, value) for key, value in tags.items()]

        def call(client: MlflowClient) -> None:
            for start in range(0, max(len(pairs), len(marks)), _LIMIT):
                part = slice(start, start + _LIMIT)
                client.log_batch(run_id, params=pairs[part], tags=marks[part])
            for start in range(0, len(points), 1000):
                client.log_batch(run_id, metrics=points[start : start + 1000])

        self._call(call)

    def artifact(self, run_id: str, file: Path, name: str) -> None:
        """Upload `file` as `name`; its folders are the name's."""
        target = PurePosixPath(Path(name).as_posix())
        folder = str(target.parent) if str(target.parent) != "." else None
        if file.name == target.name:
            self._call(lambda client: client.log_artifact(run_id, str(file), folder))
            return
        with tempfile.TemporaryDirectory() as place:
            renamed = Path(place) / target.name
            renamed.write_bytes(file.read_bytes())
            self._call(lambda client: client.log_artifact(run_id, str(renamed), folder))

    def end_run(self, run_id: str, status: str, ended_ms: int) -> None:
        """Set the final status and time."""
        self._call(lambda client: client.set_terminated(run_id, status, ended_ms))

    def _call(self, call: Callable[[MlflowClient], T]) -> T:
        self._probe()
        try:
            # MLflow's own deprecations are not our user's. No `catch_warnings`: it puts the whole process's filters
            # back, and this is a thread beside others, one of which may just have done so.
            warnings.filterwarnings("ignore", module=rf"(mlflow|{re.escape(__name__)})\b")
            if self._client is None:
                self._client = MlflowClient(self._uri)
            return call(self._client)
        except MlflowException as error:
            if error.error_code in _REJECTED:
                raise BadInput(
                    f"the tracking server rejects it: {str(error)[:500]}", where=self._uri
                ) from error
            raise self._unavailable(error) from error
        except (requests.RequestException, SQLAlchemyError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"tracking failed ({type(error).__name__}: {str(error)[:500]})",
            where=self._uri,
            next="Training goes on; what was recorded is spooled.",
        )

    def _probe(self) -> None:
        parts = urlsplit(self._uri)
        if parts.scheme not in ("http", "https") or not parts.hostname or os.environ.get("HTTP_PROXY"):
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), _PROBE_SECONDS).close()
        except OSError as error:
            raise Unavailable(
                f"nothing answers ({error})", where=self._uri, wanted="an MLflow tracking server"
            ) from error
