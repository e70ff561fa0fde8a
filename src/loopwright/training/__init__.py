"""Training: recorded, repeatable, exported. Import from the modules; nothing heavy is loaded here."""

from loopwright.training.split import Split

__all__ = ["Split"]
