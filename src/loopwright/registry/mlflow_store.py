# mypy: disable-error-code="no-untyped-call,no-any-return"
# MLflow's stores carry no types.
"""MLflow's model registry under our policy: every change passes here, with its audit row in the same transaction.

| MLflow call | what happens |
|---|---|
| create model, create version, descriptions, tags, aliases | allowed to developers; not under our reserved names |
| stage to Staging or Production | only what `promotion` allows; the refusal says what is missing |
| stage to None or Archived | allowed for versions that do not serve |
| rename, delete version, delete a model with versions | refused |
| webhooks | admins |
| anything else that writes the registry's rows | refused (`unit_of_work`) |
"""

from collections.abc import Iterator, Mapping
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
    UNAUTHENTICATED,
)
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.validation import _validate_model_version
from sqlalchemy import Connection, Engine

from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock, utc_now
from loopwright.kernel.errors import (
    BadInput,
    Conflict,
    LoopwrightError,
    NotFound,
    Refused,
    Unauthenticated,
)
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger
from loopwright.ledger.engine import become_writer
from loopwright.registry import promotion, store
from loopwright.registry.identity import acting, current_actor
from loopwright.registry.promotion import RESERVED_ALIASES
from loopwright.registry.records import Version
from loopwright.registry.unit_of_work import UnitOfWork, shared_engine
from loopwright.registry.versions import TAG_PREFIX, check_name

PROMPT_TAG = "mlflow.prompt.is_prompt"
"""Marks a prompt, which is no model: MLflow keeps both in one table and hides prompts from searches."""


@dataclass(frozen=True, slots=True)
class Act:
    """An open act: who, when, and the connection that MLflow's rows, ours and the audit row share."""

    conn: Connection
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

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)
        self.ManagedSessionMaker = UnitOfWork(self.engine)

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
        with self._act("model.created", name) as act:
            check_name(name)
            _check_tags(act.conn, name, tags)
            made = super().create_registered_model(name, tags, description, deployment_job_id)
            act.record({"through": "mlflow", "tags": {tag.key: tag.value for tag in tags or []}})
            return made

    def update_registered_model(
        self, name: str, description: str | None, deployment_job_id: str | None = None
    ) -> RegisteredModel:
        with self._act("model.described", name) as act:
            changed = super().update_registered_model(name, description, deployment_job_id)
            act.record({"description": description})
            return changed

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        with self._act("model.renamed", name):
            raise Refused(
                "models are not renamed: versions, approvals and the audit log carry the name",
                where=name, next="Register under the new name instead.",
            )  # fmt: skip

    def delete_registered_model(self, name: str) -> None:
        with self._act("model.deleted", name) as act:
            if store.has_ml_versions(act.conn, name):
                raise Refused("a model with versions is kept: its versions are under retention", where=name)
            super().delete_registered_model(name)
            act.record({})

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        with self._act("model.tagged", name) as act:
            _check_tag(act.conn, name, tag.key)
            super().set_registered_model_tag(name, tag)
            act.record({"key": tag.key, "value": tag.value})

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        with self._act("model.untagged", name) as act:
            _check_tag(act.conn, name, key)
            super().delete_registered_model_tag(name, key)
            act.record({"key": key})

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        with self._act("alias.set", name) as act:
            _check_alias(name, alias)
            super().set_registered_model_alias(name, alias, version)
            act.record({"alias": alias, "version": int(version)})

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        with self._act("alias.deleted", name) as act:
            _check_alias(name, alias)
            super().delete_registered_model_alias(name, alias)
            act.record({"alias": alias})

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
            _check_tags(act.conn, name, tags)
            made = super().create_model_version(
                name, source, run_id, tags, run_link, description, local_model_path, model_id
            )
            number = int(made.version)
            if not any(tag.key == PROMPT_TAG for tag in tags or []):
                version = Version(
                    name,
                    number,
                    None,
                    made.run_id or None,
                    None,
                    None,
                    Stage.NONE,
                    act.actor.name,
                    act.now,
                    None,
                )
                store.insert_version(act.conn, version)
            act.record({"version": number, "through": "mlflow", "source": source, "run_id": made.run_id})
            return made

    def update_model_version(self, name: str, version: str, description: str | None = None) -> ModelVersion:
        with self._act("version.described", name, version) as act:
            changed = super().update_model_version(name, version, description)
            act.record({"description": description})
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
        with self._act("version.deleted", name, version):
            raise Refused("versions are kept: they are under retention", where=f"{name}/{version}")

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        with self._act("version.tagged", name, version) as act:
            _check_tag(act.conn, name, tag.key)
            super().set_model_version_tag(name, version, tag)
            act.record({"key": tag.key, "value": tag.value})

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        with self._act("version.untagged", name, version) as act:
            _check_tag(act.conn, name, key)
            super().delete_model_version_tag(name, version, key)
            act.record({"key": key})

    # Webhooks send what happens here to other places: admins only

    def create_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.created", super().create_webhook, args, kwargs)

    def update_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.updated", super().update_webhook, args, kwargs)

    def delete_webhook(self, *args: Any, **kwargs: Any) -> Any:
        return self._webhook("webhook.deleted", super().delete_webhook, args, kwargs)

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
        missing = promotion.assessment(act.conn, model=found.model, version=found.version, stage=stage)
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
        self, action: str, name: str, version: str | int | None = None, *, role: Role = Role.DEVELOPER
    ) -> Iterator[Act]:
        """Open the one transaction of an act. Our errors leave as MLflow's with a 4xx code; refusals are audited."""
        about = f"{name}/{version}" if version is not None else name
        try:
            with self.ManagedSessionMaker(read_only=False) as session:
                session.info["act"] = action
                try:
                    actor = acting()
                    require(actor, role, f"change {about}")
                    conn = session.connection()
                    become_writer(conn)
                    yield Act(conn, actor, self.clock(), action, about)
                    session.flush()
                finally:
                    session.info.pop("act", None)
        except LoopwrightError as error:
            if isinstance(error, Refused):
                self._note_refusal(action, about, error)
            raise as_mlflow(error) from error

    def _note_refusal(self, action: str, about: str, error: Refused) -> None:
        """Keep the attempt: an act that was refused has left no other trace."""
        actor = current_actor.get()
        with self.ManagedSessionMaker(read_only=False) as session:
            ledger.append(
                session.connection(), at=self.clock(), actor=actor.name if actor else "nobody",
                action="registry.refused", subject=about[:200], payload={"act": action, "why": str(error)},
            )  # fmt: skip


def as_mlflow(error: LoopwrightError) -> MlflowException:
    """Say our error the way MLflow's clients show it whole: anything mapped to 5xx would be retried for minutes."""
    codes: tuple[tuple[type[LoopwrightError], int], ...] = (
        (Unauthenticated, UNAUTHENTICATED),
        (Refused, PERMISSION_DENIED),
        (NotFound, RESOURCE_DOES_NOT_EXIST),
        (Conflict, RESOURCE_CONFLICT),
        (BadInput, INVALID_PARAMETER_VALUE),
    )
    code = next((code for kind, code in codes if isinstance(error, kind)), INVALID_PARAMETER_VALUE)
    return MlflowException(str(error), code)


def _check_alias(name: str, alias: str) -> None:
    if alias.strip().lower() in RESERVED_ALIASES:
        raise Refused(
            f"the alias `{alias}` says where a version stands and follows its promotion",
            where=name, next=f"Promote instead: loopwright promote {name} N --to production",
        )  # fmt: skip


def _check_tag(conn: Connection, name: str, key: str) -> None:
    if key.strip().lower().startswith(TAG_PREFIX):
        raise Refused(f"tags under `{TAG_PREFIX}` are written by Loopwright only", where=name, got=key)
    if key == PROMPT_TAG and store.list_versions(conn, name):
        raise Refused("this tag would hide a model that has versions from every search", where=name, got=key)


def _check_tags(conn: Connection, name: str, tags: list[Any] | None) -> None:
    for tag in tags or []:
        _check_tag(conn, name, tag.key)
