# mypy: disable-error-code="no-untyped-call,no-any-return"
# MLflow's stores carry no types.
"""MLflow's tracking store, as it is, except that what registered versions rest on cannot be deleted or redirected, that
nobody works under another's name, and that no call carries more than fits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities import RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from loopwright.kernel.actor import Role
from loopwright.kernel.clock import utc_now
from loopwright.kernel.errors import BadInput, LoopwrightError, Refused
from loopwright.registry import limits, store
from loopwright.registry.identity import current_actor
from loopwright.registry.location import check_location, plain_location
from loopwright.registry.mlflow_rows import store as rows
from loopwright.registry.mlflow_store import as_mlflow
from loopwright.registry.refusals import Refusals
from loopwright.registry.unit_of_work import UnitOfWork, shared_engine

USER_TAG = "mlflow.user"
PLACE_TAG = "mlflow.artifactLocation"
"""Where the server reads a trace's files from."""


class GuardedTracking(SqlAlchemyStore):
    """The tracking store of the mounted MLflow app. Safe to share between threads."""

    def __init__(self, db_uri: str, artifact_root: str | None) -> None:
        super().__init__(db_uri, artifact_root)
        self.ManagedSessionMaker = UnitOfWork(self.engine)
        self.refusals: Refusals | None = None
        """Set on a server: keeps what was refused in the audit log."""

    @classmethod
    def _get_or_create_engine(cls, db_uri: str) -> Engine:
        return shared_engine(db_uri)

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: list[Any] | None = None
    ) -> Any:
        with self._refusing("experiment.created", name):
            check_location(artifact_location, own=self.artifact_root_uri)
            artifact_location = plain_location(artifact_location) if artifact_location else None
            _check(name, tags)
        return super().create_experiment(name, artifact_location, tags)

    def delete_experiment(self, experiment_id: str) -> None:
        with (
            self._refusing("experiment.deleted", str(experiment_id)),
            self.ManagedSessionMaker(read_only=False) as session,
        ):
            # SQLite takes " 7" and "7.0" for 7 where it compares them with a number.
            if not re.fullmatch(r"0|[1-9][0-9]*", str(experiment_id), re.ASCII):
                raise BadInput("not an experiment's id", where="experiments", got=experiment_id)
            self._keep(session, rows.runs_of_experiment(session.connection(), str(experiment_id)))
            super().delete_experiment(experiment_id)

    # Runs

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[Any], run_name: str
    ) -> Any:
        """Make a run in the name of whoever is signed in; admins may make one for somebody else."""
        with self._refusing("run.created", str(experiment_id)):
            _check(f"experiment {experiment_id}", tags)
        actor = current_actor.get()
        if actor is not None and not _speaks_for_others():
            user_id = actor.name
            tags = [RunTag(USER_TAG, actor.name) if tag.key == USER_TAG else tag for tag in tags or []]
        return super().create_run(experiment_id, user_id, start_time, tags, run_name)

    def set_tag(self, run_id: str, tag: Any) -> None:
        with self._refusing("run.tagged", run_id), self.ManagedSessionMaker(read_only=False) as session:
            self._check_user(session, run_id, [tag])
            super().set_tag(run_id, tag)

    def delete_tag(self, run_id: str, key: str) -> None:
        with self._refusing("run.untagged", run_id):
            if key == USER_TAG and not _speaks_for_others():
                raise Refused("who made a run stays with it", where=run_id, got=key)
        super().delete_tag(run_id, key)

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        with self._refusing("run.logged", run_id), self.ManagedSessionMaker(read_only=False) as session:
            self._check_user(session, run_id, tags or [])
            super().log_batch(run_id, metrics, params, tags)

    def delete_run(self, run_id: str) -> None:
        with self._refusing("run.deleted", run_id), self.ManagedSessionMaker(read_only=False) as session:
            self._keep(session, [run_id])
            super().delete_run(run_id)

    def _hard_delete_run(self, run_id: str) -> None:
        with self._refusing("run.deleted", run_id), self.ManagedSessionMaker(read_only=False) as session:
            self._keep(session, [run_id])
            super()._hard_delete_run(run_id)

    # Logged models, data sets, traces

    def create_logged_model(self, *args: Any, **kwargs: Any) -> Any:
        given = (
            dict(zip(("experiment_id", "name", "source_run_id", "tags", "params"), args, strict=False))
            | kwargs
        )
        with self._refusing("logged model.created", str(given.get("name"))):
            _check(f"logged model {given.get('name')}", given.get("tags"))
            limits.check_tags(f"logged model {given.get('name')}: params", len(given.get("params") or []))
        return super().create_logged_model(*args, **kwargs)

    def set_logged_model_tags(self, model_id: str, tags: list[Any]) -> None:
        with self._refusing("logged model.tagged", model_id):
            _check(f"logged model {model_id}", tags)
        super().set_logged_model_tags(model_id, tags)

    def log_logged_model_params(self, model_id: str, params: list[Any]) -> None:
        with self._refusing("logged model.logged", model_id):
            limits.check_tags(f"logged model {model_id}: params", len(params))
        super().log_logged_model_params(model_id, params)

    def delete_logged_model(self, model_id: str) -> None:
        with (
            self._refusing("logged model.deleted", model_id),
            self.ManagedSessionMaker(read_only=False) as session,
        ):
            self._keep_files(session, self.get_logged_model(model_id).artifact_location)
            super().delete_logged_model(model_id)

    def _hard_delete_logged_model(self, model_id: str) -> None:
        with (
            self._refusing("logged model.deleted", model_id),
            self.ManagedSessionMaker(read_only=False) as session,
        ):
            self._keep_files(session, self.get_logged_model(model_id, allow_deleted=True).artifact_location)
            super()._hard_delete_logged_model(model_id)

    def create_dataset(
        self, name: str, tags: dict[str, str] | None = None, experiment_ids: Any = None
    ) -> Any:
        with self._refusing("dataset.created", name):
            limits.check_tags(f"data set {name}", len(tags or {}), tags or {})
        return super().create_dataset(name, tags, experiment_ids)

    def set_dataset_tags(self, dataset_id: str, tags: dict[str, Any]) -> None:
        with self._refusing("dataset.tagged", dataset_id):
            limits.check_tags(f"data set {dataset_id}", len(tags), tags)
        super().set_dataset_tags(dataset_id, tags)

    def start_trace(self, trace_info: Any) -> Any:
        with self._refusing("trace.created", str(trace_info.trace_id)):
            limits.check_tags("trace", len(trace_info.tags), trace_info.tags)
            limits.check_tags("trace: metadata", len(trace_info.trace_metadata), trace_info.trace_metadata)
            check_location(trace_info.tags.get(PLACE_TAG), own=self.artifact_root_uri, field=PLACE_TAG)
        return super().start_trace(trace_info)

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        with self._refusing("trace.tagged", trace_id):
            if key == PLACE_TAG:
                raise Refused("where a trace's files lie is the server's to say", where=trace_id, got=value)
        super().set_trace_tag(trace_id, key, value)

    # What is refused, and how it is told

    @contextmanager
    def _refusing(self, act: str, subject: str) -> Iterator[None]:
        """Let our errors leave as MLflow's with a 4xx code; refusals are audited."""
        try:
            yield
        except LoopwrightError as error:
            if isinstance(error, Refused) and self.refusals is not None:
                actor = current_actor.get()
                self.refusals.note(
                    actor=actor.name if actor else "nobody",
                    act=act,
                    subject=subject,
                    why=str(error),
                    now=utc_now(),
                )
            raise as_mlflow(error) from error

    @staticmethod
    def _check_user(session: Session, run_id: str, tags: list[Any]) -> None:
        """Refuse to say that somebody else made the run than did."""
        claimed = next((tag.value for tag in tags if tag.key == USER_TAG), None)
        if claimed is None or _speaks_for_others():
            return
        made_by = rows.user_of_run(session.connection(), run_id)
        if made_by is not None and claimed != made_by:
            raise Refused("who made a run stays with it", where=run_id, got=claimed, wanted=made_by)

    @staticmethod
    def _keep(session: Session, run_ids: list[str]) -> None:
        """Refuse when a registered version came from one of the runs."""
        # SQLite takes at most some thousand parameters in one statement.
        for start in range(0, len(run_ids), 500):
            found = store.versions_of_runs(session.connection(), run_ids[start : start + 500])
            if found:
                run, model, version = found[0]
                why = f"the run {run} is kept: {model}/{version} was trained in it"
                raise Refused(why, where="tracking")

    @staticmethod
    def _keep_files(session: Session, location: str) -> None:
        found = rows.ml_sources_at(session.connection(), [location], location.rstrip("/") + "/")
        if found:
            model, version = found[0]
            why = f"the logged model is kept: {model}/{version} was registered from it"
            raise Refused(why, where="tracking")


def _check(where: str, tags: list[Any] | None) -> None:
    limits.check_tags(where, len(tags or []), [tag.key for tag in tags or []])


def _speaks_for_others() -> bool:
    """Whether nobody is signed in (a folder of one's own), or an admin: runs are started for others by the server."""
    actor = current_actor.get()
    return actor is None or actor.role_on() >= Role.ADMIN
