"""The forms in which a bundle may hold its one model, by the name of its file."""

from collections.abc import Mapping

ONNX = "model.onnx"
PICKLED = ("model.joblib", "model.pkl")
TORCHSCRIPT = "model.torchscript.pt"
EXPORTED = "model.pt2"
PYFUNC = "model.pyfunc.zip"
LIGHTGBM = "model.lightgbm.txt"
XGBOOST = "model.xgboost.ubj"
NATIVES = (TORCHSCRIPT, EXPORTED, LIGHTGBM, XGBOOST)
"""Forms that hold numbers and a graph; the others hold code, or objects that run it."""
TRUSTED_ONLY = (*PICKLED, PYFUNC)
"""Forms that run what they please when they are loaded: only under a record that two people trust these bytes."""
ISOLATED = (*NATIVES, *TRUSTED_ONLY)
"""Forms that a process of their own loads; ONNX alone answers within the worker."""
TRUST = "trust.json"


def model_file(files: Mapping[str, object]) -> str | None:
    """The name of the one model among a bundle's files; None for none or several."""
    found = [name for name in (ONNX, *ISOLATED) if name in files]
    return found[0] if len(found) == 1 else None
