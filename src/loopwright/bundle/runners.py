"""What answers inside a bundle: an ONNX graph in the worker itself, or another form in a process of its own."""

from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

_SESSION = 256 << 10
"""Bytes a session takes besides its graph, measured over 50 of them (benchmarks/models.py)."""


class Runner(Protocol):
    """A model alone. Safe to use from several threads.

    isolated: whether it answers from another process, so that a call waits instead of computing.
    """

    isolated: bool

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return one row of numbers per row of float32 (n, f)."""
        ...

    def memory(self) -> int:
        """About how many bytes are in memory on its behalf."""
        ...

    def limit(self, seconds: float) -> None:
        """Bound what one row may take, where that can be enforced here."""
        ...

    def close(self) -> None:
        """Let go of what is not this process's own. Is idempotent."""
        ...


class OnnxRunner:
    """Runs a graph on ONNX Runtime's CPU provider."""

    isolated = False

    def __init__(self, model: bytes, threads: int) -> None:
        self._session = _session(model, threads)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [_pick_output(self._session)]
        self._memory = _SESSION + 2 * len(model)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self._session.run(self._outputs, {self._input: features})[0])

    def memory(self) -> int:
        """An estimate: a session's own share, and the graph with what the runtime makes of its weights."""
        return self._memory

    def limit(self, seconds: float) -> None:
        """A kernel under way cannot be interrupted: whoever calls bounds the time."""

    def close(self) -> None:
        """Nothing lives outside this process."""


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
