# mypy: disable-error-code="no-untyped-call,no-any-return"
# MLflow's stores carry no types.
"""MLflow's tracking store, as it is, except that what registered versions rest on cannot be deleted or redirected."""

from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from loopwright.kernel.errors import LoopwrightError, Refused
from loopwright.registry import store
from loopwright.registry.mlflow_store import as_mlflow
from loopwright.registry.unit_of_work import UnitOfWork, shared_engine


class GuardedTracking(SqlAlchemyStore):
    """The tracking store of the mounted MLflow app. Safe to share between threads."""

    def __init__(self, db_uri: str, artifact_root: str | None) -> None:
        super().__init__(db_uri, artifact_root)
        self.ManagedSessionMaker = UnitOfWork(self.engine)

    @classmethod
    def _get_or_create_engine(cls, db_uri: str) -> Engine:
        return shared_engine(db_uri)

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: list[Any] | None = None
    ) -> Any:
        try:
            check_location(artifact_location, own=self.artifact_root_uri)
        except LoopwrightError as error:
            raise as_mlflow(error) from error
        return super().create_experiment(name, artifact_location, tags)

    def delete_run(self, run_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            self._keep(session, [run_id])
            super().delete_run(run_id)

    def _hard_delete_run(self, run_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            self._keep(session, [run_id])
            super()._hard_delete_run(run_id)

    def delete_experiment(self, experiment_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            if str(experiment_id).isdigit():
                self._keep(session, store.runs_of_experiment(session.connection(), str(experiment_id)))
            super().delete_experiment(experiment_id)

    def delete_logged_model(self, model_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            self._keep_files(session, self.get_logged_model(model_id).artifact_location)
            super().delete_logged_model(model_id)

    def _hard_delete_logged_model(self, model_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            self._keep_files(session, self.get_logged_model(model_id, allow_deleted=True).artifact_location)
            super()._hard_delete_logged_model(model_id)

    @staticmethod
    def _keep(session: Session, run_ids: list[str]) -> None:
        """Refuse when a registered version came from one of the runs."""
        # SQLite takes at most some thousand parameters in one statement.
        for start in range(0, len(run_ids), 500):
            found = store.versions_of_runs(session.connection(), run_ids[start : start + 500])
            if found:
                run, model, version = found[0]
                why = f"the run {run} is kept: {model}/{version} was trained in it"
                raise as_mlflow(Refused(why, where="tracking"))

    @staticmethod
    def _keep_files(session: Session, location: str) -> None:
        found = store.ml_sources_at(session.connection(), [location], location.rstrip("/") + "/")
        if found:
            model, version = found[0]
            why = f"the logged model is kept: {model}/{version} was registered from it"
            raise as_mlflow(Refused(why, where="tracking"))


def check_location(location: str | None, own: str = "") -> None:
    """Refuse an artifact location the server would write to on a client's word: its own disk, or the bundles.

    Raises Refused. None (the server's default) and remote stores are fine, and so is what lies in `own`, the store's
    root: it is a folder only where no server stands between client and store.
    """
    if not location:
        return
    parts = urlsplit(location)
    in_own = own.startswith("file:") and location.startswith(own.rstrip("/") + "/")
    if not in_own and (parts.scheme in ("", "file") or len(parts.scheme) == 1):
        raise Refused(
            "a folder of the server is not a place for a client's artifacts",
            where="artifact_location", got=location, next="Leave it out: the server stores artifacts itself.",
        )  # fmt: skip
    segments = [part for part in unquote(unquote(parts.path)).split("/") if part not in ("", ".")]
    if "bundles" in {segment.casefold() for segment in segments} or ".." in segments:
        raise Refused("this location belongs to sealed bundles", where="artifact_location", got=location)
