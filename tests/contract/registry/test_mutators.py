"""No way into the registry's rows but through an act: MLflow may grow new calls, and those are refused."""

import inspect
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.ledger.schema import projects
from loopwright.pipeline.store import save_project
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import UNKNOWN, GovernedRegistry, refuse_unknown
from loopwright.registry.surface import CALLS, known_calls

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def registry(registry_url: str) -> GovernedRegistry:
    return GovernedRegistry(registry_url)


@pytest.fixture(autouse=True)
def as_admin():
    token = current_actor.set(Actor("root", Role.ADMIN))
    yield
    current_actor.reset(token)


def test_every_call_of_the_registry_stands_in_the_table() -> None:
    public = {
        name
        for store in (AbstractStore, SqlAlchemyStore)
        for name, _ in inspect.getmembers(store, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public == known_calls() and UNKNOWN == ()
    made_of = {call.name for call in CALLS if call.made_of}
    assert not made_of & set(vars(SqlAlchemyStore)), "a call that was made of others now writes by itself"
    reading = {name for name in public if name.startswith(("get_", "search_", "list_"))}
    governed = {name for name in vars(GovernedRegistry) if not name.startswith("_")}
    assert public - made_of - reading <= governed
    # Asked for by the server itself, to learn where to send; the rest of reading knows who asks.
    assert reading - made_of - governed == {"get_webhook", "list_webhooks", "list_webhooks_by_event"}


def test_a_call_that_a_later_mlflow_brings_is_refused(registry_url: str, ledger: Ledger) -> None:
    class Grown(GovernedRegistry):
        def promote_everything(self) -> None:
            raise AssertionError("it was let through")

    assert refuse_unknown(Grown) == ("promote_everything",)
    with pytest.raises(MlflowException, match="does not govern") as refused:
        Grown(registry_url).promote_everything()
    assert refused.value.get_http_status_code() == 403
    with ledger.read() as conn:
        assert [row.payload["act"] for row in audit.rows(conn, action="registry.refused")] == [
            "promote_everything"
        ]


def test_a_write_that_no_act_announced_is_refused_however_it_is_made(registry: GovernedRegistry) -> None:
    registry.create_registered_model("m")
    registry.create_model_version("m", "s3://bucket/x", "r" * 32)
    row = SqlModelVersion.__table__
    attempts: list[Callable[[Session], object]] = [
        lambda session: session.query(SqlModelVersion).update({"current_stage": "Production"}),
        lambda session: session.execute(row.update().values(current_stage="Production")),
        lambda session: session.execute(text("UPDATE model_versions SET current_stage = 'Production'")),
        lambda session: session.connection().exec_driver_sql("delete  from\nregistered_models"),
        lambda session: session.add(
            SqlRegisteredModelAlias(workspace="default", name="m", alias="champion", version=1)
        ),
    ]
    for attempt in attempts:
        with (
            pytest.raises(MlflowException, match="does not govern") as refused,
            registry.ManagedSessionMaker(read_only=False) as session,
        ):
            attempt(session)
        assert refused.value.get_http_status_code() == 403
    with pytest.raises(MlflowException, match="does not govern"):
        SqlAlchemyStore.set_model_version_tag(registry, "m", "1", ModelVersionTag("a", "b"))
    assert registry.get_model_version("m", "1").current_stage == "None"


@pytest.mark.parametrize("number", [str(10**30), 10**30])
def test_what_no_column_holds_is_the_callers_fault(registry: GovernedRegistry, number: object) -> None:
    registry.create_registered_model("m")
    for call in (
        lambda: registry.set_model_version_tag("m", number, ModelVersionTag("a", "b")),
        lambda: registry.get_model_version("m", number),
        lambda: registry.set_registered_model_tag("m", RegisteredModelTag("half", "\ud800")),
    ):
        with pytest.raises(MlflowException) as refused:
            call()
        assert 400 <= refused.value.get_http_status_code() < 500


def test_a_filter_too_large_for_the_database_is_the_callers_fault(registry: GovernedRegistry) -> None:
    registry.create_registered_model("m")
    long = " and ".join(f"tags.k{n} = 'v'" for n in range(1500))
    with pytest.raises(MlflowException) as refused:
        registry.search_registered_models(long)
    assert 400 <= refused.value.get_http_status_code() < 500


def test_a_role_in_the_models_team_counts_and_one_elsewhere_does_not(
    registry: GovernedRegistry, ledger: Ledger
) -> None:
    registry.create_registered_model("late")
    with ledger.write() as conn:
        save_project(conn, "late", "", {"policy": {"tier": "low"}}, "", NOON)
        conn.execute(update(projects).values(team="ops"))
    tag = RegisteredModelTag("a", "b")
    for actor, may in (
        (Actor("tom", Role.VIEWER, teams=(("ops", Role.DEVELOPER),)), True),
        (Actor("ann", Role.VIEWER, teams=(("fraud", Role.DEVELOPER),)), False),
        (Actor("ci", Role.DEVELOPER, scopes=(Scope.parse("write:late"),)), True),
        (Actor("ci", Role.DEVELOPER, scopes=(Scope.parse("write:other"),)), False),
        (Actor("ci", Role.DEVELOPER, scopes=(Scope.parse("read"),)), False),
    ):
        token = current_actor.set(actor)
        try:
            if may:
                registry.set_registered_model_tag("late", tag)
                assert registry.get_registered_model("late").name == "late"
            else:
                with pytest.raises(MlflowException, match="may not"):
                    registry.set_registered_model_tag("late", tag)
            with pytest.raises(MlflowException, match="may not"):
                registry.create_registered_model(f"new {actor.name}")
        finally:
            current_actor.reset(token)


def test_an_act_that_fails_leaves_neither_row_nor_audit(
    registry: GovernedRegistry, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("loopwright.registry.mlflow_store.ledger.append", fail)
    with pytest.raises(MlflowException, match="no space left"):
        registry.create_registered_model("m")
    monkeypatch.undo()
    with ledger.read() as conn:
        assert audit.rows(conn) == []
    assert registry.search_registered_models() == []


def test_nobody_signed_in_means_no_change(registry: GovernedRegistry) -> None:
    token = current_actor.set(None)
    try:
        with pytest.raises(MlflowException, match="nobody is signed in") as refused:
            registry.create_registered_model("m")
    finally:
        current_actor.reset(token)
    assert refused.value.get_http_status_code() == 401


def test_a_versions_source_is_kept_in_its_one_spelling(registry: GovernedRegistry) -> None:
    """Else what it was registered from would not be found when somebody writes there."""
    registry.create_registered_model("m")
    registry.takes_files = False
    for spelled in ("mlflow-artifacts:///1/r/artifacts/m/", "mlflow-artifacts:/1//r/./artifacts/m"):
        made = registry.create_model_version("m", spelled, "r" * 32)
        assert made.source == "mlflow-artifacts:/1/r/artifacts/m"
    for spelled in ("mlflow-artifacts:/1/r/artifacts/my%20m", "mlflow-artifacts:/1/r/artifacts/m?x"):
        with pytest.raises(MlflowException, match="could be read as another"):
            registry.create_model_version("m", spelled, "r" * 32)


@pytest.mark.parametrize("name", ["la\u202ete", "late\u200b", "late\n", "la\x1bte"])
def test_no_model_has_a_name_that_shows_as_another(registry: GovernedRegistry, name: str) -> None:
    with pytest.raises(MlflowException, match="not a model name"):
        registry.create_registered_model(name)
