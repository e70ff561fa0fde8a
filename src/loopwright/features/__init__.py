"""Features: what was known about a row at the moment of the question."""

from loopwright.features.view import FeatureView, Prior, Spine, WindowedRate

__all__ = ["FeatureView", "Prior", "Spine", "WindowedRate"]
