"""No way into the registry's rows but through an act: MLflow may grow new calls, and those are refused."""

import inspect

import pytest
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from loopwright.kernel.actor import Actor, Role
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry

READING = (
    "get_", "search_", "list_", "supports_", "test_webhook",
)  # fmt: skip
# These end in the calls above them: prompts are kept as models, copies as new versions, links in tracking.
COMPOSED = (
    "copy_model_version", "create_prompt", "create_prompt_version", "delete_prompt", "delete_prompt_alias",
    "delete_prompt_tag", "delete_prompt_version", "delete_prompt_version_tag", "link_prompt_version_to_model",
    "link_prompt_version_to_run", "link_prompts_to_trace", "set_prompt_alias", "set_prompt_tag",
    "set_prompt_version_tag",
)  # fmt: skip


@pytest.fixture
def registry(registry_url: str) -> GovernedRegistry:
    return GovernedRegistry(registry_url)


@pytest.fixture(autouse=True)
def as_admin():
    token = current_actor.set(Actor("root", Role.ADMIN))
    yield
    current_actor.reset(token)


def test_every_call_that_can_change_the_registry_is_governed() -> None:
    public = {
        name
        for store in (AbstractStore, SqlAlchemyStore)
        for name, _ in inspect.getmembers(store, inspect.isfunction)
        if not name.startswith("_") and not name.startswith(READING)
    }
    governed = {name for name in vars(GovernedRegistry) if not name.startswith("_")}
    base = {name for name in COMPOSED if name in vars(SqlAlchemyStore)}
    assert not base, "a call that was composed of others now writes by itself"
    assert public - governed - set(COMPOSED) == set()


def test_a_write_that_no_act_announced_is_refused(registry: GovernedRegistry) -> None:
    registry.create_registered_model("m")
    registry.create_model_version("m", "s3://bucket/x", "r" * 32)
    with pytest.raises(MlflowException, match="does not govern") as flushed:
        SqlAlchemyStore.set_model_version_tag(registry, "m", "1", ModelVersionTag("a", "b"))
    assert flushed.value.get_http_status_code() == 403
    with (
        pytest.raises(MlflowException, match="does not govern"),
        registry.ManagedSessionMaker(read_only=False) as session,
    ):
        session.query(SqlModelVersion).filter(SqlModelVersion.name == "m").update(
            {"current_stage": "Production"}
        )
    assert registry.get_model_version("m", "1").current_stage == "None"


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
