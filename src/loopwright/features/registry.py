"""The registry of feature views: every definition that a model's views ever had, numbered."""

from loopwright.features import store
from loopwright.features.definition import definition_digest, document
from loopwright.features.module import FeatureModule, View
from loopwright.features.view import FeatureView
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.ledger.engine import Ledger


def remember_views(module: FeatureModule, *, model: str, ledger: Ledger, actor: Actor, clock: Clock) -> None:
    """Keep the definitions of the model's views in the ledger, numbered; is idempotent.

    `inputs` in a document: name → type of what the model takes from the view.
    """
    with ledger.write() as conn:
        for view in module.views:
            store.register_view(
                conn, model=model, name=view.name, digest=definition_digest(view),
                document=document(view) | {"inputs": _inputs(module, view)},
                actor=actor.name, at=clock(),
            )  # fmt: skip


def _inputs(module: FeatureModule, view: View) -> dict[str, str]:
    given = view.names() if isinstance(view, FeatureView) else (view.name, view.count)
    return {name: dtype for name, dtype in module.inputs.items() if name in given}
