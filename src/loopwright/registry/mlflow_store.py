# mypy: disable-error-code="no-untyped-call,no-any-return"
# MLflow's stores carry no types.
"""MLflow's model registry under our policy: every change passes here, with its audit row in the same transaction.

What happens to each call stands in `surface`, and from there in docs/reference/mlflow-registry.md. A call that the
table does not name is refused, and so is a write to the registry's rows that no act announced (`unit_of_work`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_CONFLICT,
    RESOURCE_DOES_NOT_EXIST,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
)
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.validation import _validate_model_version
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock, utc_now
from loopwright.kernel.errors import (
    BadInput,
    Conflict,
    LoopwrightError,
    NotFound,
    Refused,
    TooMany,
    Unauthenticated,
)
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger
from loopwright.ledger.engine import become_writer
from loopwright.registry import checks, limits, promotion, store
from loopwright.registry.authority import require_on, role_on
from loopwright.registry.identity import acting, current_actor
from loopwright.registry.location import check_location
from loopwright.registry.mlflow_rows import store as rows
from loopwright.registry.records import Version
from loopwright.registry.refusals import Refusals
from loopwright.registry.retention import delete_version
from loopwright.registry.surface import known_calls
from loopwright.registry.unit_of_work import UnitOfWork, announced, shared_engine
from loopwright.registry.versions import check_name


@dataclass(frozen=True, slots=True)
class Act:
    """An open act: who, when, and the connection that MLflow's rows, ours and the audit row share."""

    conn: Connection
    session: Session
    actor: Actor
    now: datetime
    action: str
    subject: str

    def record(self, payload: Mapping[str, Any]) -> None:
        """Write the audit row."""
        ledger.append(
            self.conn,
            at=self.now,
            actor=self.actor.name,
            action=self.action,
            subject=self.subject,
            payload=payload,
        )


class GovernedRegistry(SqlAlchemyStore):
    """The registry store of the mounted MLflow app. Safe to share between threads."""

    clock: Clock = staticmethod(utc_now)
    takes_files = True
    """Whether versions may be registered from this machine's disk: not where clients are on other machines."""

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)
        self.ManagedSessionMaker = UnitOfWork(self.engine)
        self.refusals = Refusals(self._write_refusal)
        self.freed: Callable[[], object] = lambda: None
        """Called after versions were deleted: whoever holds the bundles may drop their bytes."""

    @classmethod
    def _get_or_create_engine(cls, db_uri: str) -> Engine:
        return shared_engine(db_uri)

    # Models

    def create_registered_model(
        self,
        name: str,
        tags: list[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> RegisteredModel:
        with self._act("model.created", name, everywhere=True) as act:
            check_name(name)
            given = checks.check_tags(act.conn, name, tags)
            limits.check_text(name, description)
            made = super().create_registered_model(name, tags, description, deployment_job_id)
            act.record({"through": "mlflow", **limits.shown_tags(given)})
            return made

    def update_registered_model(
        self, name: str, description: str | None, deployment_job_id: str | None = None
    ) -> RegisteredModel:
        with self._act("model.described", name) as act:
            limits.check_text(name, description)
            changed = super().update_registered_model(name, description, deployment_job_id)
            act.record({"description": limits.shown(description)})
            return changed

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        with self._act("model.renamed", name):
            raise Refused(
                "models are not renamed: versions, approvals and the audit log carry the name",
                where=name, next="Register under the new name instead.",
            )  # fmt: skip

    def delete_registered_model(self, name: str) -> None:
        """Delete a model without versions, or one whose versions may all go. Prompts go as they like."""
        with self._act("model.deleted", name) as act:
            kept = store.list_versions(act.conn, name)
            for version in kept:
                delete_version(
                    act.conn, model=name, version=version.version, actor=act.actor, now=act.now,
                    reason=f"the model {name} was deleted through MLflow",
                )  # fmt: skip
            # Written past MLflow's session, which remembers what it has read.
            act.session.expire_all()
            super().delete_registered_model(name)
            act.record({"versions": [version.version for version in kept]})
        if kept:
            self.freed()

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        with self._act("model.tagged", name) as act:
            checks.check_tag(act.conn, name, tag.key)
            limits.check_tags(name, rows.count_ml_tags(act.conn, name, besides=tag.key) + 1, [tag.key])
            super().set_registered_model_tag(name, tag)
            act.record({"key": tag.key, "value": limits.shown(tag.value)})

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        with self._act("model.untagged", name) as act:
            checks.check_tag(act.conn, name, key)
            super().delete_registered_model_tag(name, key)
            act.record({"key": key})

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        with self._act("alias.set", name) as act:
            checks.check_alias(act.conn, name, alias)
            before = rows.ml_alias(act.conn, name, alias)
            super().set_registered_model_alias(name, alias, version)
            act.record({"alias": alias, "version": int(version), "before": before})

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        with self._act("alias.deleted", name) as act:
            checks.check_alias(act.conn, name, alias)
            before = rows.ml_alias(act.conn, name, alias)
            super().delete_registered_model_alias(name, alias)
            act.record({"alias": alias, "before": before})

    # Versions

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: list[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        """Register what a client logged, in stage None. It has no sealed bundle, so no promotion can reach it."""
        with self._act("version.registered", name) as act:
            if isinstance(copied := checks.copied(source), tuple):
                tags = checks.copied_tags(act.conn, copied, tags)
            given = checks.check_tags(act.conn, name, tags)
            limits.check_text(name, description)
            source = checks.resolved(act.conn, source)
            if not store.is_prompt(act.conn, name):
                check_location(source, field="source", own="file:" if self.takes_files else "")
            if run_id and rows.is_run_deleted(act.conn, run_id):
                raise Refused(
                    f"the run {run_id} is deleted; a version needs what it was trained in",
                    where=name, next="Restore it first: MlflowClient().restore_run(RUN)",
                )  # fmt: skip
            rows.keep_counting(act.conn, name, act.now)
            made = super().create_model_version(
                name, source, run_id, tags, run_link, description, local_model_path, model_id
            )
            number = int(made.version)
            if not store.is_prompt(act.conn, name):
                version = Version(
                    name, number, None, made.run_id or None, None, None, Stage.NONE, act.actor.name, act.now, None,
                )  # fmt: skip
                store.insert_version(act.conn, version)
            said = {
                "version": number,
                "through": "mlflow",
                "source": limits.shown(source),
                "run_id": made.run_id,
            }
            act.record(said | limits.shown_tags(given))
            return made

    def update_model_version(self, name: str, version: str, description: str | None = None) -> ModelVersion:
        with self._act("version.described", name, version) as act:
            limits.check_text(act.subject, description)
            changed = super().update_model_version(name, version, description)
            act.record({"description": limits.shown(description)})
            return changed

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Move a version as far as policy allows; a stage it has already is no change.

        `archive_existing_versions` is accepted and left to delivery: the version in service is archived when its
        successor has all traffic, not before.
        """
        with self._act("stage.transition", name, version) as act:
            found = store.get_version(act.conn, name, _validate_model_version(version))
            wanted = Stage.parse(stage)
            if wanted in (Stage.STAGING, Stage.PRODUCTION):
                self._promote(act, found, wanted)
            elif found.stage is Stage.PRODUCTION:
                raise Refused(
                    "a version leaves Production only by a rollback or when its successor has taken over",
                    where=found.subject, next=f"loopwright rollback {name}",
                )  # fmt: skip
            else:
                move = promotion.archive if wanted is Stage.ARCHIVED else promotion.demote
                why = "asked through MLflow"
                move(act.conn, model=name, version=found.version, why=why, now=act.now, actor=act.actor)
        return self.get_model_version(name, version)

    def delete_model_version(self, name: str, version: str) -> None:
        """Delete a version whose retention is over, or one of a prompt, which has none."""
        with self._act("version.deleted", name, version) as act:
            prompt = store.is_prompt(act.conn, name)
            if prompt:
                super().delete_model_version(name, version)
                act.record({"prompt": True})
            else:
                delete_version(
                    act.conn, model=name, version=_validate_model_version(version), actor=act.actor, now=act.now,
                    reason="deleted through MLflow",
                )  # fmt: skip
        if not prompt:
            self.freed()

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        with self._act("version.tagged", name, version) as act:
            checks.check_tag(act.conn, name, tag.key, version=_validate_model_version(version))
            others = rows.count_ml_tags(act.conn, name, _validate_model_version(version), besides=tag.key)
            limits.check_tags(act.subject, others + 1, [tag.key])
            super().set_model_version_tag(name, version, tag)
            act.record({"key": tag.key, "value": limits.shown(tag.value)})

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        with self._act("version.untagged", name, version) as act:
            checks.check_tag(act.conn, name, key, version=_validate_model_version(version))
            super().delete_model_version_tag(name, version, key)
            act.record({"key": key})

    # Reading: whoever has a token for some models sees those

    def get_registered_model(self, name: str) -> RegisteredModel:
        self._may_read(name)
        return super().get_registered_model(name)

    def get_latest_versions(self, name: str, stages: list[str] | None = None) -> list[ModelVersion]:
        self._may_read(name)
        return super().get_latest_versions(name, stages)

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        self._may_read(name)
        return super().get_model_version(name, version)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        self._may_read(name)
        return super().get_model_version_download_uri(name, version)

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        self._may_read(name)
        return super().get_model_version_by_alias(name, alias)

    def search_registered_models(self, *args: Any, **kwargs: Any) -> Any:
        return self._readable(super().search_registered_models(*args, **kwargs))

    def search_model_versions(self, *args: Any, **kwargs: Any) -> Any:
        return self._readable(super().search_model_versions(*args, **kwargs))

    def _may_read(self, name: str) -> None:
        actor = current_actor.get()
        # Nobody is set where no server stands between: a folder of one's own.
        if actor is None or actor.role_on() >= Role.VIEWER:
            return
        try:
            with self.ManagedSessionMaker() as session:
                require_on(session.connection(), actor, Role.VIEWER, f"read {name}", model=name)
        except Refused as error:
            self._note_refusal("model.read", name, error)
            raise as_mlflow(error) from error

    def _readable(self, page: Any) -> Any:
        actor = current_actor.get()
        if actor is None or actor.role_on() >= Role.VIEWER:
            return page
        with self.ManagedSessionMaker() as session:
            conn = session.connection()
            seen = [one for one in page if role_on(conn, actor, model=one.name) >= Role.VIEWER]
        return PagedList(seen, page.token)

    # Webhooks send what happens here to other places: admins only

    def create_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.created", super().create_webhook, args, kwargs)

    def update_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.updated", super().update_webhook, args, kwargs)

    def delete_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.deleted", super().delete_webhook, args, kwargs)

    def test_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.tested", super().test_webhook, args, kwargs)

    def _webhook(self, action: str, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._act(action, "webhooks", role=Role.ADMIN) as act:
            done = call(*args, **kwargs)
            said = {
                name: str(value) for name, value in kwargs.items() if name in ("name", "url", "webhook_id")
            }
            act.record(said | {"arguments": [str(arg) for arg in args[:2]]})
            return done

    # How an act runs

    def _promote(self, act: Act, found: Version, stage: Stage) -> None:
        if found.stage is stage:
            return
        waiting = store.find_promotions(
            act.conn, model=found.model, version=found.version, stage=stage, state="pending"
        )
        missing = promotion.assessment(
            act.conn, model=found.model, version=found.version, stage=stage, now=act.now
        )
        if not missing.satisfied:
            remedy = f"Request it: loopwright promote {found.model} {found.version}"
            remedy += f" --to {stage.value.lower()}"
            if waiting:
                remedy = f"Approve it: loopwright approve {found.model} {found.version}"
            raise Refused(
                f"cannot be moved to {stage.value}; missing: {missing}", where=found.subject, next=remedy
            )
        if waiting:
            promotion.settle(act.conn, waiting[-1], now=act.now, actor=act.actor)
            return
        promotion.request_promotion(
            act.conn, model=found.model, version=found.version, stage=stage, actor=act.actor,
            reason="asked through MLflow", now=act.now,
        )  # fmt: skip

    @contextmanager
    def _act(
        self,
        action: str,
        name: str,
        version: str | int | None = None,
        *,
        role: Role = Role.DEVELOPER,
        everywhere: bool = False,
    ) -> Iterator[Act]:
        """Open the one transaction of an act. Our errors leave as MLflow's with a 4xx code; refusals are audited.

        `role` is asked for on the model; with `everywhere` a role in the model's team is not enough.
        """
        about = f"{name}/{version}" if version is not None else str(name)
        try:
            actor = acting()
            with self.ManagedSessionMaker(read_only=False) as session, announced(action):
                conn = session.connection()
                become_writer(conn)
                if everywhere:
                    require(actor, role, f"make {about}", model=name)
                else:
                    require_on(conn, actor, role, f"change {about}", model=name)
                yield Act(conn, session, actor, self.clock(), action, about)
                session.flush()
        except LoopwrightError as error:
            if isinstance(error, Refused):
                self._note_refusal(action, about, error)
            raise as_mlflow(error) from error

    def _note_refusal(self, action: str, about: str, error: Refused) -> None:
        """Keep the attempt: an act that was refused has left no other trace."""
        actor = current_actor.get()
        self.refusals.note(
            actor=actor.name if actor else "nobody",
            act=action,
            subject=about,
            why=str(error),
            now=self.clock(),
        )

    def _write_refusal(self, actor: str, subject: str, payload: dict[str, Any]) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            ledger.append(
                session.connection(), at=self.clock(), actor=actor, action="registry.refused", subject=subject,
                payload=payload,
            )  # fmt: skip


def _unknown(name: str) -> Callable[..., Any]:
    def refuse(self: GovernedRegistry, *_: Any, **__: Any) -> Any:
        error = Refused(
            f"`{name}` is a call of MLflow's registry that Loopwright does not govern; it was refused",
            where="registry",
        )
        self._note_refusal(name, "registry", error)
        raise as_mlflow(error)

    return refuse


def refuse_unknown(store_class: type) -> tuple[str, ...]:
    """Make every public call that the table in `surface` does not name refuse; returns their names."""
    unknown = tuple(
        name
        for name in dir(store_class)
        if not name.startswith("_")
        and name not in known_calls() | {"clock"}  # our own
        and callable(getattr(store_class, name))
    )
    for name in unknown:
        setattr(store_class, name, _unknown(name))
    return unknown


UNKNOWN = refuse_unknown(GovernedRegistry)
"""Calls that this MLflow has and we do not govern: none, as a test holds."""


def as_mlflow(error: LoopwrightError) -> MlflowException:
    """Say our error the way MLflow's clients show it whole: anything mapped to 5xx would be retried for minutes."""
    codes: tuple[tuple[type[LoopwrightError], int], ...] = (
        (Unauthenticated, UNAUTHENTICATED),
        (Refused, PERMISSION_DENIED),
        (NotFound, RESOURCE_DOES_NOT_EXIST),
        (Conflict, RESOURCE_CONFLICT),
        (TooMany, RESOURCE_EXHAUSTED),
        (BadInput, INVALID_PARAMETER_VALUE),
    )
    code = next((code for kind, code in codes if isinstance(error, kind)), INVALID_PARAMETER_VALUE)
    return MlflowException(str(error), code)
