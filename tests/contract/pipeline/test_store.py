"""What a pipeline asks the ledger, on every engine."""

from datetime import UTC, datetime

from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.project.spec import Spec

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def spec(model: str, log: str) -> Spec:
    return Spec.model_validate({
        "model": model, "task": "binary", "explain": {"log": log},
        "data": {"sources": {"f": {"uri": "f.csv", "contract": "f.yaml"}}, "label": {"name": "y"}},
    })  # fmt: skip


def test_the_models_whose_log_is_to_be_explained_are_those_that_ask(any_ledger: Ledger) -> None:
    with any_ledger.write() as conn:
        for model, log in (("b", "all"), ("c", "none"), ("a", "all")):
            store.save_project(conn, model, "/p", spec(model, log).to_json(), "d", NOON)
        store.save_project(conn, "b", "/p", spec("b", "none").to_json(), "d2", NOON)
    with any_ledger.read() as conn:
        assert store.explained_models(conn) == ["a"]
