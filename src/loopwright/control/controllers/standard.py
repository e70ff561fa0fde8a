"""The controllers every control plane runs, in their order: promotions, traffic, judgement, training,
features, a look at the bytes, at the keys, and anchors."""

from loopwright.control.context import Context
from loopwright.control.controllers.anchoring import AnchoringController
from loopwright.control.controllers.explanations import ExplanationsController
from loopwright.control.controllers.features import FeaturesController
from loopwright.control.controllers.governance import GovernanceController
from loopwright.control.controllers.incidents import IncidentsController
from loopwright.control.controllers.integrity import IntegrityController
from loopwright.control.controllers.keys import KeysController
from loopwright.control.controllers.lineage import LineageController
from loopwright.control.controllers.loop import Controllers
from loopwright.control.controllers.monitoring import MonitoringController
from loopwright.control.controllers.online import OnlineController
from loopwright.control.controllers.retraining import RetrainingController
from loopwright.control.controllers.rollout import RolloutController


def standard_controllers(ctx: Context, *, token: str | None = None) -> Controllers:
    """Return the controllers of the home. `token`: what retraining runs show to the tracking server."""
    rollout, monitoring, retraining = RolloutController(), MonitoringController(), RetrainingController(token)
    governance, explanations = GovernanceController(), ExplanationsController()
    return Controllers(
        ctx,
        [
            ("governance", governance.tick),
            ("rollout", rollout.tick),
            ("monitoring", monitoring.tick),
            ("retraining", retraining.tick),
            ("features", FeaturesController().tick),
            ("explanations", explanations.tick),
            ("incidents", IncidentsController().tick),
            ("integrity", IntegrityController().tick),
            ("keys", KeysController().tick),
            ("lineage", LineageController().tick),
            ("anchoring", AnchoringController().tick),
            ("online", OnlineController().tick),
        ],
    )
