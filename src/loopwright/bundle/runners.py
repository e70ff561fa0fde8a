"""What answers inside a bundle: an ONNX graph, or pickled objects that a person approved."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput

ONNX = "model.onnx"
PICKLED = ("model.joblib", "model.pkl")
TRUST = "trust.json"


class Runner(Protocol):
    """A model alone. Safe to use from several threads."""

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return one row of numbers per row of float32 (n, f)."""
        ...


class OnnxRunner:
    """Runs a graph on ONNX Runtime's CPU provider."""

    def __init__(self, model: bytes, threads: int) -> None:
        self._session = _session(model, threads)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [_pick_output(self._session)]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self._session.run(self._outputs, {self._input: features})[0])


class PickledRunner:
    """Calls an estimator in scikit-learn's manner: `predict_proba` for classes, `predict` for numbers."""

    def __init__(self, model: Any, schema: Schema) -> None:
        method = "predict" if schema.task == "regression" else "predict_proba"
        predict = getattr(model, method, None)
        if not callable(predict):
            raise BadInput(
                f"a {schema.task} model without `{method}`", got=type(model).__name__, wanted="an estimator"
            )
        self._predict: Callable[..., Any] = predict
        self._order = _order(model, schema)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        answer = np.asarray(self._predict(features))
        return answer if self._order is None else answer[:, self._order]


def model_file(files: Mapping[str, object]) -> str | None:
    """The name of the one model among a bundle's files; None for none or several."""
    found = [name for name in (ONNX, *PICKLED) if name in files]
    return found[0] if len(found) == 1 else None


def _order(model: Any, schema: Schema) -> list[int] | None:
    """Where the schema's classes stand in the estimator's answers."""
    known = getattr(model, "classes_", None)
    if schema.task != "multiclass" or known is None:
        return None
    names = [str(name) for name in known]
    if sorted(names) != sorted(schema.classes):
        raise BadInput(
            "the model knows other classes", got=", ".join(names), wanted=", ".join(schema.classes)
        )
    return [names.index(name) for name in schema.classes]


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # An idle session must not burn a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise BadInput(f"ONNX Runtime cannot load the model ({error})", where="model.onnx") from error


def _pick_output(session: ort.InferenceSession) -> str:
    outputs = [o.name for o in session.get_outputs() if o.type in ("tensor(float)", "tensor(double)")]
    if not outputs:
        kinds = ", ".join(f"{o.name}: {o.type}" for o in session.get_outputs())
        raise BadInput(
            "the model has no float output", where="model.onnx", got=kinds, wanted="a tensor, not a map"
        )
    return str(next((name for name in outputs if "prob" in name.lower()), outputs[-1]))
