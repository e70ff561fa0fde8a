"""The same features with a "faster" transform: version 3 of the demo, which must not survive its canary."""

from features import *  # noqa: F403 - the same spine, views and inputs

TRANSFORM = "transform_strict.py"
