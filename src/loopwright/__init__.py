"""Loopwright carries a model through its whole life, in one loop."""

__version__ = "0.1.0"
