"""ONNX Runtime as production runs it: threads pinned, and none that spins while it waits."""

import onnxruntime as ort

from loopwright.compression.artefact import Artefact
from loopwright.compression.subject import Array
from loopwright.kernel.errors import BadInput

_ANSWERS = ("tensor(float)", "tensor(double)", "tensor(float16)")


def open_session(artefact: Artefact, threads: int = 1) -> ort.InferenceSession:
    """Load the model: `threads` within an operator, one operator after the other.

    Raises BadInput when it cannot run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
    # As served (bundle/runners.py); and waiting threads of one session would slow the other that it is compared with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(artefact.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise BadInput(
            f"ONNX Runtime cannot load the model ({type(error).__name__}: {_line(error)})",
            where=str(artefact.path), wanted="a graph of operators and types that it has",
        ) from error  # fmt: skip


def answer_name(session: ort.InferenceSession, where: str) -> str:
    """The output that is measured: the first of floating point numbers. Raises BadInput without one."""
    for one in session.get_outputs():
        if one.type in _ANSWERS:
            return str(one.name)
    kinds = ", ".join(f"{one.name}: {one.type}" for one in session.get_outputs())
    raise BadInput(
        "the model has no output of numbers", where=where, got=kinds, wanted="a float tensor, not a map"
    )


def run(session: ort.InferenceSession, output: str, feeds: dict[str, Array], where: str) -> Array:
    """The output for `feeds`; raises BadInput when the model cannot answer them."""
    try:
        answers: Array = session.run([output], feeds)[0]
    except Exception as error:  # as above
        raise BadInput(
            f"the model cannot answer ({type(error).__name__}: {_line(error)})", where=where,
            got=", ".join(f"{name} {values.dtype}{values.shape}" for name, values in feeds.items()),
        ) from error  # fmt: skip
    return answers


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
