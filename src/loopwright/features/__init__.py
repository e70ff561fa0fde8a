"""Features: what was known about a row at the moment of the question."""

from loopwright.features.view import Aggregate, FeatureView, Prior, Spine, ViewTest, WindowedRate

__all__ = ["Aggregate", "FeatureView", "Prior", "Spine", "ViewTest", "WindowedRate"]
