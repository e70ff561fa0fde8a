"""What answers inside a bundle: an ONNX graph in the worker itself, or another form in a process of its own."""

import os
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

_SESSION = 256 << 10
"""Bytes that a session takes at least, besides its graph."""

_MOST = 16
"""A session takes at most so many times its graph's bytes; trees take seven times theirs (benchmarks/models.py)."""

_one_at_a_time = threading.Lock()
_shared = False


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
        with _one_at_a_time:  # so that what memory grows by is this session's
            before = resident()
            self._session = _session(model, threads)
            grown = resident() - before
        self._input = self._session.get_inputs()[0].name
        self._outputs = [_pick_output(self._session)]
        # What InferenceSession.run calls after questions about GPUs, which cost a fifth of a small model.
        self._run = getattr(getattr(self._session, "_sess", None), "run", self._session.run)
        least = _SESSION + len(model)
        self._memory = max(least, min(grown, _SESSION + _MOST * len(model)))

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self._run(self._outputs, {self._input: features}, None)[0])

    def memory(self) -> int:
        """What the process grew by when it was loaded, within what graphs of its size can take."""
        return self._memory

    def limit(self, seconds: float) -> None:
        """A kernel under way cannot be interrupted: whoever calls bounds the time."""

    def close(self) -> None:
        """Nothing lives outside this process."""


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    _share_memory()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # An idle session must not burn a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise BadInput(f"ONNX Runtime cannot load the model ({error})", where="model.onnx") from error


def _share_memory() -> None:
    """Let all sessions of this process take memory from one arena that grows by what is asked for.

    An arena for each keeps the peak of each: 50 networks of 2 MB took 6 MB each so, and take 3 (benchmarks/models.py).
    """
    global _shared
    if _shared:
        return
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(0, 1, -1, -1))
    _shared = True


def _pick_output(session: ort.InferenceSession) -> str:
    outputs = [o.name for o in session.get_outputs() if o.type in ("tensor(float)", "tensor(double)")]
    if not outputs:
        kinds = ", ".join(f"{o.name}: {o.type}" for o in session.get_outputs())
        raise BadInput(
            "the model has no float output", where="model.onnx", got=kinds, wanted="a tensor, not a map"
        )
    return str(next((name for name in outputs if "prob" in name.lower()), outputs[-1]))
