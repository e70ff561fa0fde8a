"""Loopwright carries a model through its whole life, in one loop."""

import os

# Set before anything loads ONNX Runtime, whose Linux builds report sessions to their maker since 1.29: how somebody's
# models run is nobody else's business. Who wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
